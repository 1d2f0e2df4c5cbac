"""Choose layers: walk by one of `SEARCHES`, pick a point of the way, say what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..artifacts import (
    Candidate,
    Choices,
    Cost,
    Damping,
    Evaluation,
    LayerName,
    Point,
    Prediction,
    Selection,
    Step,
)
from ..errors import ConfigError, SelectionError
from .criteria import CRITERIA, NUM_PROPOSING
from .progress import Progress
from .rounds import Prober, SelectionSettings
from .searches import BY_METRIC, SEARCHES, BudgetSpent, Path, Walk

# The sets of layers of every size, none first -> what each trades.
Weigh = Callable[[Sequence[tuple[int, ...]]], tuple[Point, ...]]
# Criteria that end by themselves on rows without labels.
SELF_ENDING = ("realignment", "fixed")
# Criteria that refuse such rows themselves.
NEEDING_LABELS = (*BY_METRIC, "tapioca+tale", "taylor")
LEAST_RANKED = 3  # candidates, for a rank correlation
# Of the layers, that tapioca drops where no label says when to stop: as it was tried (benchmarks/RESULTS.md).
LABEL_FREE_SHARE = 0.25
# Criteria whose layers are named, or are a block of --max-drop-layers.
OF_A_DEPTH = ("fixed", "angular-distance")


def select_layers(
    probe: Prober,
    settings: SelectionSettings,
    *,
    model: str,
    task: Any,
    num_samples: int,
    weigh: Weigh | None = None,
) -> Selection:
    """Choose layers: ask the criterion, drop its best candidate, repeat.

    Args:
        probe: Measurements of the model under study.
        settings: Criterion, search, floor, caps, budgets.
        model: Name of the model, recorded.
        task: The task, for its name and metric.
        num_samples: Rows that drive the search, recorded.
        weigh: Says what the best set of every size trades; asked when the search has ended.

    Returns:
        The whole trajectory, and the part of it that `settings.pick` names.

    Raises:
        UnknownNameError: If there is no such criterion or search.
        SelectionError: If the criterion needs labels that are not there, or no layer may be dropped.
        ConfigError: If a number of layers is picked that the search did not reach, or the metric cannot
            be estimated from some rows.
    """
    CRITERIA[settings.criterion]
    if settings.search == "racing" and probe.is_labelled:
        _refuse_no_mean(probe, task)
    started = time.perf_counter()
    choices = settings.choices(probe.num_layers)
    baseline, walk, reason, is_cut = _walked(probe, settings, choices, getattr(task, "metric", "metric"))
    floor = walk.floor
    steps, picked = _picked(walk.paths, baseline, probe, settings)
    drop, damp = changed([step.layer for step in picked], choices)
    foretold = _prediction(settings.criterion, steps, walk.rejected, probe)
    found = Selection(
        model=model,
        task=task.name,
        criterion=settings.criterion,
        num_layers=choices.units.num_layers,
        drop=drop,
        damp=damp,
        steps=tuple(_named_step(step, choices) for step in steps),
        stop_reason=reason,
        metric=task.metric if probe.is_labelled else None,
        higher_is_better=task.higher_is_better if probe.is_labelled else None,
        baseline_metric=baseline.metric,
        baseline_loss=baseline.loss,
        selected_metric=picked[-1].metric if picked else baseline.metric,
        floor=floor,
        epsilon=settings.epsilon if floor is not None else None,
        pick=_pick(probe, settings),
        tie_break=settings.tie_break,
        select_on=probe.select_on,
        num_samples=num_samples,
        seed=settings.seed,
        rejected=tuple(_named(candidate, choices) for candidate in walk.rejected),
        search=settings.search,
        confidence=settings.confidence if settings.search == "racing" else None,
        cut=is_cut,
        prediction=None if isinstance(foretold, str) else foretold,
        unpredicted=foretold if isinstance(foretold, str) else None,
        cost=_cost(probe, walk, num_samples, time.perf_counter() - started),
        stacks=choices.units.stacks,
    )
    sets = [tuple(step.layer for step in path) for path in walk.paths]
    return replace(found, points=weigh(sets) if weigh else ())


def _walked(
    probe: Prober, settings: SelectionSettings, choices: Choices, metric: str
) -> tuple[Evaluation, Walk, str, bool]:
    """Return the original's scores, what was tried, why that ended, and whether a budget ended it."""
    search = SEARCHES[settings.search]
    # What needs no measuring is refused before anything is measured.
    allowed, cap = _allowed(choices, settings), _cap(probe, settings)
    rounds = min(choices.most(allowed), cap if cap is not None else probe.num_layers)
    with Progress(settings, rounds, probe, metric) as progress:
        baseline = probe.metric() if probe.is_labelled else Evaluation()
        probe.watch = progress.on_rows
        floor = _floor(probe, baseline, settings)
        walk = Walk(probe, settings, floor, allowed, cap, progress.on_finished, progress.on_round)
        try:
            return baseline, walk, search(walk), False
        except BudgetSpent as spent:
            return baseline, walk, str(spent), True
        finally:
            probe.watch = lambda num_scores: None


def beyond_reach(settings: SelectionSettings, num_units: int) -> str | None:
    """Return that --max-drop-layers is more than a search among so many layers, or parts, can reach.

    None where it is not, or where the criterion refuses another depth itself.

    Raises:
        SelectionError: If no layer may be dropped.
        ConfigError: If a number of layers is picked that no search can reach.
    """
    if settings.max_drop_layers is None or settings.criterion in OF_A_DEPTH:
        return None
    choices = settings.choices(num_units)
    most = choices.most(_allowed(choices, settings))
    if settings.max_drop_layers <= most:
        return None
    counted = f"{most} of {num_units} {choices.units.noun}"
    return f"--max-drop-layers {settings.max_drop_layers} is more than can go: {counted}"


def _cost(probe: Prober, walk: Walk, num_samples: int, seconds: float) -> Cost:
    """Return what the search took, and what full forwards of every candidate would have taken."""
    plain = (probe.num_layers * probe.is_labelled + walk.plain_layers) * num_samples * probe.num_answers
    ledger = probe.ledger
    return Cost(ledger.num_evaluations, ledger.layer_forwards, plain, seconds, ledger.layer_tokens)


def _refuse_no_mean(probe: Prober, task: Any) -> None:
    """Refuse a metric that no race can estimate from some rows.

    Raises:
        ConfigError: If it is no mean over rows.
    """
    if probe.best_value is None or probe.domains.is_worst:
        what = task.metric if probe.best_value is None else f"the worst domain's {task.metric}"
        raise ConfigError(
            f"--search racing estimates means over rows, and {what} is none.", "Use --search greedy."
        )


def changed(chosen: Sequence[int], choices: Choices) -> tuple[tuple[LayerName, ...], tuple[Damping, ...]]:
    """Return the layers that choices drop, and those that they damp."""
    name = choices.units.name
    scales = ((name(choices.unit(choice)), choices.scale(choice)) for choice in sorted(chosen))
    damp = tuple(Damping(layer, scale) for layer, scale in scales if scale)
    return choices.units.names(choices.dropped(chosen)), damp


def _named_step(step: Step, choices: Choices) -> Step:
    """Return a step with the names of its layers, and their scales, instead of the numbers of choices."""
    candidates = tuple(_named(candidate, choices) for candidate in step.candidates)
    layer, scale = _layer_and_scale(step.layer, choices)
    return replace(step, layer=layer, scale=scale, candidates=candidates)


def _named(candidate: Candidate, choices: Choices) -> Candidate:
    layer, scale = _layer_and_scale(candidate.layer, choices)
    if candidate.against is None:
        return replace(candidate, layer=layer, scale=scale)
    against, against_scale = _layer_and_scale(candidate.against, choices)
    return replace(candidate, layer=layer, scale=scale, against=against, against_scale=against_scale)


def _layer_and_scale(choice: int, choices: Choices) -> tuple[LayerName, float | None]:
    """Return the name of a choice's layer, and its scale where layers may be damped."""
    return choices.units.name(choices.unit(choice)), choices.scale(choice) if choices.damps else None


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
                "Raise --epsilon or --max-drop-layers, or pick fewer.",
            )
        return int(pick)
    sign = 1 if higher_is_better else -1
    values = [sign * m for m in metrics if m is not None]
    if len(values) < len(metrics):
        raise SelectionError(f"--pick {pick} needs labels.")
    if pick == "best":
        return values.index(max(values))
    return max(depth for depth, value in enumerate(values) if value >= values[0])


def _allowed(choices: Choices, settings: SelectionSettings) -> tuple[int, ...]:
    """Return the choices that there are at all: layers that may be dropped, and scales to damp layers to.

    Raises:
        SelectionError: If there are none.
    """
    numbering, stays = choices.units, "one must stay"
    if numbering.stacks:
        stays += " in each stack"
    every = range(numbering.num_units * len(settings.scales))
    if settings.pick.isdecimal() and int(settings.pick) > choices.most(every):
        counted = f"{numbering.num_units} {numbering.noun}"
        raise ConfigError(f"--pick {settings.pick}: the model has {counted}, {stays}.")
    if settings.criterion == "fixed":
        if held := sorted(set(settings.drop) & set(settings.held)):
            name = numbering.name(held[0])
            raise SelectionError(f"Layer {name} cannot go: the architecture builds it differently.")
        return settings.drop
    if numbering.num_layers == len(numbering.depths) and not choices.damps:
        each = " in each stack" if numbering.stacks else ""
        raise SelectionError(f"The model has one layer{each}, and one must stay.")
    allowed = numbering.unprotected(settings.protect_first, settings.protect_last)
    found = tuple(
        choices.of(layer, scale)
        for layer in allowed
        for scale in settings.scales
        if scale or layer not in settings.held  # which stays, but may be damped
    )
    if not found:
        raise SelectionError(
            f"No layer may be dropped: of {numbering.num_layers}, the first {settings.protect_first} and the "
            f"last {settings.protect_last}{' of each stack' if numbering.stacks else ''} are protected, and "
            f"{len(settings.held) // numbering.width} held by the architecture.",
            "Lower --protect-first or --protect-last.",
        )
    return found


def _cap(probe: Prober, settings: SelectionSettings) -> int | None:
    """Return the most layers to drop.

    Raises:
        ConfigError: If nothing else would stop the search.
    """
    if settings.criterion == "fixed":
        return len(settings.drop)
    if settings.criterion == "tapioca" and settings.max_drop_layers is None and not probe.is_labelled:
        return max(1, int(probe.num_layers * LABEL_FREE_SHARE))
    ends = (*SELF_ENDING, *NEEDING_LABELS)
    if settings.max_drop_layers is None and not probe.is_labelled and settings.criterion not in ends:
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
) -> Prediction | str | None:
    """Tell how well the label-free score ranked the first round's candidates, or why that cannot be told.

    None where there are no labels, or the score is the metric.
    """
    scored = [c for c in (steps[0].candidates if steps else rejected) if c.metric is not None]
    if criterion in BY_METRIC or not scored:
        return None
    if len(scored) < LEAST_RANKED:
        return f"fewer than {LEAST_RANKED} layers were scored in full"
    from scipy.stats import spearmanr

    scores = [c.score for c in scored]
    if criterion == "tapioca+tale":  # the metric scores its candidates; what proposed them is known
        turns = probe.turns([c.layer for c in scored], NUM_PROPOSING)
        scores = [-turns[c.layer] for c in scored]
    sign = 1 if probe.higher_is_better else -1
    gains = [sign * c.metric for c in scored if c.metric is not None]
    for alike, what in ((scores, "score"), (gains, "metric")):
        if len(set(alike)) == 1:  # which has no ranks
            return f"all {len(scored)} layers that were tried have the same {what}"
    result = spearmanr(scores, gains)
    return Prediction(float(result.statistic), float(result.pvalue), len(scored))
