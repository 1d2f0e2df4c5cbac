"""Choose layers: walk by one of `SEARCHES`, pick a point of the way, say what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..artifacts import Candidate, Cost, Evaluation, Numbering, Prediction, Selection, Step
from ..errors import ConfigError, SelectionError
from .criteria import CRITERIA
from .progress import Progress
from .rounds import Prober, SelectionSettings
from .searches import SEARCHES, BudgetSpent, Path, Walk

# Criteria that end by themselves on rows without labels.
SELF_ENDING = ("tapioca", "fixed")


def select_layers(
    probe: Prober, settings: SelectionSettings, *, model: str, task: Any, num_samples: int
) -> Selection:
    """Choose layers: ask the criterion, drop its best candidate, repeat.

    Args:
        probe: Measurements of the model under study.
        settings: Criterion, search, floor, caps, budgets.
        model: Name of the model, recorded.
        task: The task, for its name and metric.
        num_samples: Rows that drive the search, recorded.

    Returns:
        The whole trajectory, and the part of it that `settings.pick` names.

    Raises:
        UnknownNameError: If there is no such criterion or search.
        SelectionError: If the criterion needs labels that are not there, or no layer may be dropped.
        ConfigError: If a number of layers is picked that the search did not reach, or the metric cannot
            be estimated from some rows.
    """
    CRITERIA[settings.criterion]
    search = SEARCHES[settings.search]
    if settings.search == "racing" and probe.is_labelled and probe.best_value is None:
        raise ConfigError(
            f"--search racing estimates means over rows, and {task.metric} is none.", "Use --search greedy."
        )
    started = time.perf_counter()
    # What needs no measuring is refused before anything is measured.
    numbering = settings.numbering(probe.num_layers)
    allowed, cap = _allowed_layers(numbering, settings), _cap(probe, settings)
    rounds = min(numbering.most(allowed), cap if cap is not None else probe.num_layers)
    with Progress(settings, rounds, probe, getattr(task, "metric", "metric")) as progress:
        baseline = probe.metric() if probe.is_labelled else Evaluation()
        probe.watch = progress.on_rows
        floor = _floor(probe, baseline, settings)
        walk = Walk(probe, settings, floor, allowed, cap, progress.on_finished, progress.on_round)
        try:
            reason, is_cut = search(walk), False
        except BudgetSpent as spent:
            reason, is_cut = str(spent), True
        finally:
            probe.watch = lambda num_scores: None
    steps, drop = _picked(walk.paths, baseline, probe, settings)
    labelled = probe.is_labelled
    return Selection(
        model=model,
        task=task.name,
        criterion=settings.criterion,
        num_layers=numbering.num_layers,
        drop=numbering.names(sorted(step.layer for step in drop)),
        steps=tuple(_named_step(step, numbering) for step in steps),
        stop_reason=reason,
        metric=task.metric if labelled else None,
        higher_is_better=task.higher_is_better if labelled else None,
        baseline_metric=baseline.metric,
        baseline_loss=baseline.loss,
        selected_metric=drop[-1].metric if drop else baseline.metric,
        floor=floor,
        epsilon=settings.epsilon if floor is not None else None,
        pick=_pick(probe, settings),
        tie_break=settings.tie_break,
        select_on=probe.select_on,
        num_samples=num_samples,
        seed=settings.seed,
        rejected=tuple(_named(candidate, numbering) for candidate in walk.rejected),
        search=settings.search,
        confidence=settings.confidence if settings.search == "racing" else None,
        cut=is_cut,
        prediction=_prediction(settings.criterion, steps, walk.rejected, probe),
        cost=Cost(
            probe.ledger.num_evaluations,
            probe.ledger.layer_forwards,
            (probe.num_layers * probe.is_labelled + walk.plain_layers) * num_samples * probe.num_answers,
            time.perf_counter() - started,
            probe.ledger.layer_tokens,
        ),
        stacks=numbering.stacks,
    )


def _named_step(step: Step, numbering: Numbering) -> Step:
    """Return a step with the names of its layers instead of their numbers."""
    candidates = tuple(_named(candidate, numbering) for candidate in step.candidates)
    return replace(step, layer=numbering.name(step.layer), candidates=candidates)


def _named(candidate: Candidate, numbering: Numbering) -> Candidate:
    against = None if candidate.against is None else numbering.name(candidate.against)
    return replace(candidate, layer=numbering.name(candidate.layer), against=against)


def _picked(
    paths: Sequence[Path], baseline: Evaluation, probe: Prober, settings: SelectionSettings
) -> tuple[Path, Path]:
    """Return the trajectory to record, and the part of it that is picked."""
    metrics = [baseline.metric, *(path[-1].metric for path in paths[1:])]
    depth = pick_depth(metrics, _pick(probe, settings), probe.higher_is_better)
    if all(path == paths[-1][: len(path)] for path in paths):  # each set grew from the one before
        return paths[-1], paths[-1][:depth]
    return paths[depth], paths[depth]


def _pick(probe: Prober, settings: SelectionSettings) -> str:
    """Return the point to pick: what the user named; without a metric, every step is as good as the last."""
    if settings.criterion == "fixed" or (not probe.is_labelled and settings.pick in ("best", "bsba")):
        return "final"
    return settings.pick


def pick_depth(metrics: Sequence[float | None], pick: str, higher_is_better: bool) -> int:
    """Return how many steps of a trajectory to keep.

    `metrics` starts with the baseline. "best" is the best metric, fewest layers among equals; "bsba"
    (best speed-up at baseline accuracy) the last point no worse than the baseline; "final" the end.

    Raises:
        ConfigError: If a number is picked that the trajectory does not reach.

    Source: Naim et al. 2025, "TALE", arXiv:2510.22767, BEST and BSBA.
    """
    last = len(metrics) - 1
    if pick == "final":
        return last
    if pick.isdecimal():
        if int(pick) > last:
            raise ConfigError(
                f"--pick {pick}: the search dropped {last} layers only.",
                "Raise --epsilon or pick fewer.",
            )
        return int(pick)
    sign = 1 if higher_is_better else -1
    values = [sign * m for m in metrics if m is not None]
    if len(values) < len(metrics):
        raise SelectionError(f"--pick {pick} needs labels.")
    if pick == "best":
        return values.index(max(values))
    return max(depth for depth, value in enumerate(values) if value >= values[0])


def _allowed_layers(numbering: Numbering, settings: SelectionSettings) -> tuple[int, ...]:
    """Return the layers that may be dropped at all.

    Raises:
        SelectionError: If there are none.
    """
    num_layers, stays = numbering.num_units, "one must stay"
    if numbering.stacks:
        stays += " in each stack"
    if settings.pick.isdecimal() and int(settings.pick) > numbering.most(range(num_layers)):
        raise ConfigError(f"--pick {settings.pick}: the model has {num_layers} {numbering.noun}, {stays}.")
    if settings.criterion == "fixed":
        if held := sorted(set(settings.drop) & set(settings.held)):
            name = numbering.name(held[0])
            raise SelectionError(f"Layer {name} cannot go: the architecture builds it differently.")
        return settings.drop
    if numbering.num_layers == len(numbering.depths):
        each = " in each stack" if numbering.stacks else ""
        raise SelectionError(f"The model has one layer{each}, and one must stay.")
    allowed = numbering.unprotected(settings.protect_first, settings.protect_last)
    layers = tuple(layer for layer in allowed if layer not in settings.held)
    if not layers:
        raise SelectionError(
            f"No layer may be dropped: of {numbering.num_layers}, the first {settings.protect_first} and the "
            f"last {settings.protect_last}{' of each stack' if numbering.stacks else ''} are protected, and "
            f"{len(settings.held) // numbering.width} held by the architecture.",
            "Lower --protect-first or --protect-last.",
        )
    return layers


def _cap(probe: Prober, settings: SelectionSettings) -> int | None:
    """Return the most layers to drop.

    Raises:
        ConfigError: If nothing else would stop the search.
    """
    if settings.criterion == "fixed":
        return len(settings.drop)
    if settings.max_drop_layers is None and not probe.is_labelled and settings.criterion not in SELF_ENDING:
        raise ConfigError(
            f"Criterion {settings.criterion} on unlabelled rows has nothing to stop it.",
            "Add --max-drop-layers.",
        )
    return settings.max_drop_layers


def _floor(probe: Prober, baseline: Evaluation, settings: SelectionSettings) -> float | None:
    """Return the worst metric that is still accepted: fixed, from the baseline (TALE)."""
    if baseline.metric is None or settings.epsilon is None or settings.criterion == "fixed":
        return None
    sign = 1 if probe.higher_is_better else -1
    return baseline.metric - sign * settings.epsilon


def _prediction(
    criterion: str, steps: Sequence[Step], rejected: Sequence[Candidate], probe: Prober
) -> Prediction | None:
    """Tell how well the label-free score ranked the first round's candidates, where labels exist."""
    first = steps[0].candidates if steps else rejected
    pairs = [(c.score, c.metric) for c in first if c.metric is not None]
    if criterion in ("tale", "loss", "tapioca+tale") or len(pairs) < 3:
        return None
    from scipy.stats import spearmanr

    sign = 1 if probe.higher_is_better else -1
    scores, gains = zip(*((score, sign * metric) for score, metric in pairs), strict=True)
    if len(set(scores)) == 1 or len(set(gains)) == 1:
        return None  # a constant has no ranks
    result = spearmanr(scores, gains)
    return Prediction(float(result.statistic), float(result.pvalue), len(pairs))
