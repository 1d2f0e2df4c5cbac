"""The one selection loop: ask the criterion, drop its best candidate, repeat."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from ..artifacts import Candidate, Cost, Evaluation, Prediction, Selection, Step
from ..errors import ConfigError, SelectionError
from .criteria import CRITERIA, Prober, Round, SelectionSettings


def select_layers(
    probe: Prober, settings: SelectionSettings, *, model: str, task: Any, num_samples: int
) -> Selection:
    """Choose layers: ask the criterion, drop its best candidate, repeat.

    Args:
        probe: Measurements of the model under study.
        settings: Criterion, floor, caps.
        model: Name of the model, recorded.
        task: The task, for its name and metric.
        num_samples: Rows that drive the search, recorded.

    Returns:
        The whole trajectory, and the part of it that `settings.pick` names.

    Raises:
        UnknownNameError: If there is no such criterion.
        SelectionError: If the criterion needs labels that are not there, or no layer may be dropped.
        ConfigError: If a number of layers is picked that the search did not reach.
    """
    CRITERIA[settings.criterion]
    started = time.perf_counter()
    before = probe.num_evaluations, probe.layer_forwards, probe.plain_layer_forwards
    # What needs no measuring is refused before anything is measured.
    allowed, cap = _allowed_layers(probe.num_layers, settings), _cap(probe, settings)
    baseline = probe.metric() if probe.is_labelled else Evaluation()
    floor = _floor(probe, baseline, settings)
    steps, rejected, reason = _search(probe, settings, floor, allowed, cap)
    pick = settings.pick
    if settings.criterion == "fixed" or (not probe.is_labelled and pick in ("best", "bsba")):
        pick = "final"  # what the user named; or, without a metric, every step is as good as the last
    depth = pick_depth([baseline.metric, *(step.metric for step in steps)], pick, probe.higher_is_better)
    labelled = probe.is_labelled
    return Selection(
        model=model,
        task=task.name,
        criterion=settings.criterion,
        num_layers=probe.num_layers,
        drop=tuple(sorted(step.layer for step in steps[:depth])),
        steps=tuple(steps),
        stop_reason=reason,
        metric=task.metric if labelled else None,
        higher_is_better=task.higher_is_better if labelled else None,
        baseline_metric=baseline.metric,
        baseline_loss=baseline.loss,
        selected_metric=steps[depth - 1].metric if depth else baseline.metric,
        floor=floor,
        epsilon=settings.epsilon if floor is not None else None,
        pick=pick,
        tie_break=settings.tie_break,
        select_on=probe.select_on,
        num_samples=num_samples,
        seed=settings.seed,
        rejected=rejected,
        prediction=_prediction(settings.criterion, steps, rejected, probe),
        cost=Cost(
            probe.num_evaluations - before[0],
            probe.layer_forwards - before[1],
            probe.plain_layer_forwards - before[2],
            time.perf_counter() - started,
        ),
    )


def _search(
    probe: Prober, settings: SelectionSettings, floor: float | None, allowed: Sequence[int], cap: int | None
) -> tuple[list[Step], tuple[Candidate, ...], str]:
    """Run the loop; returns accepted steps, the candidates of the round that ended it, and why."""
    criterion = CRITERIA[settings.criterion]
    steps: list[Step] = []
    while True:
        dropped = tuple(step.layer for step in steps)
        layers = tuple(layer for layer in allowed if layer not in dropped)
        if len(steps) == cap:
            return steps, (), f"{cap} layers dropped, the most that was asked for"
        if not layers or len(dropped) == probe.num_layers - 1:
            return steps, (), "no layer is left that may be dropped"
        scored = criterion(Round(probe, dropped, layers, settings))
        if scored.stop is not None:
            return steps, scored.candidates, scored.stop
        best = _best(scored.candidates, settings.tie_break)
        found = Evaluation(best.metric, best.loss)
        if found.metric is None and probe.is_labelled:
            found = probe.metric({*dropped, best.layer})
        if floor is not None and found.metric is not None and _worse(probe, found.metric, floor):
            return (
                steps,
                scored.candidates,
                (
                    f"dropping layer {best.layer} next gives {found.metric:.6g}, "
                    f"beyond the floor of {floor:.6g}"
                ),
            )
        steps.append(Step(best.layer, best.score, found.metric, found.loss, scored.candidates))


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


def _allowed_layers(num_layers: int, settings: SelectionSettings) -> tuple[int, ...]:
    """Return the layers that may be dropped at all.

    Raises:
        SelectionError: If there are none.
    """
    if settings.pick.isdecimal() and int(settings.pick) >= num_layers:
        raise ConfigError(f"--pick {settings.pick}: the model has {num_layers} layers, one must stay.")
    if settings.criterion == "fixed":
        if held := sorted(set(settings.drop) & set(settings.held)):
            raise SelectionError(f"Layer {held[0]} cannot go: the architecture builds it differently.")
        return settings.drop
    if num_layers == 1:
        raise SelectionError("The model has one layer, and one must stay.")
    allowed = range(settings.protect_first, num_layers - settings.protect_last)
    layers = tuple(layer for layer in allowed if layer not in settings.held)
    if not layers:
        raise SelectionError(
            f"No layer may be dropped: of {num_layers}, the first {settings.protect_first} and the last "
            f"{settings.protect_last} are protected, and {len(settings.held)} held by the architecture.",
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
    if settings.max_drop_layers is None and not probe.is_labelled and settings.criterion != "tapioca":
        raise ConfigError(
            f"Criterion {settings.criterion} on unlabelled rows has nothing to stop it.",
            "Add --max-drop-layers.",
        )
    return settings.max_drop_layers


def _floor(probe: Prober, baseline: Evaluation, settings: SelectionSettings) -> float | None:
    """Return the worst metric that is still accepted: fixed, from the baseline (TALE)."""
    if baseline.metric is None or settings.criterion == "fixed":
        return None
    return (
        baseline.metric - settings.epsilon if probe.higher_is_better else baseline.metric + settings.epsilon
    )


def _worse(probe: Prober, metric: float, floor: float) -> bool:
    if math.isclose(metric, floor, rel_tol=0, abs_tol=1e-9):  # a rounding error is no difference
        return False
    return metric < floor if probe.higher_is_better else metric > floor


def _best(candidates: Sequence[Candidate], tie_break: str) -> Candidate:
    """Return the candidate to drop; ties go to the lowest loss if asked for, then the lowest index.

    Raises:
        SelectionError: If a score is not finite.
    """
    for candidate in candidates:
        if not math.isfinite(candidate.score):
            raise SelectionError(f"The score of layer {candidate.layer} is {candidate.score}.")

    def rank(candidate: Candidate) -> tuple[float, float, int]:
        loss = candidate.loss if tie_break == "loss" and candidate.loss is not None else 0.0
        return (-candidate.score, loss, candidate.layer)

    return min(candidates, key=rank)


def _prediction(
    criterion: str, steps: Sequence[Step], rejected: Sequence[Candidate], probe: Prober
) -> Prediction | None:
    """Tell how well the label-free score ranked the first round's candidates, where labels exist."""
    first = steps[0].candidates if steps else rejected
    pairs = [(c.score, c.metric) for c in first if c.metric is not None]
    if criterion in ("tale", "loss") or len(pairs) < 3:
        return None
    from scipy.stats import spearmanr

    sign = 1 if probe.higher_is_better else -1
    scores, gains = zip(*((score, sign * metric) for score, metric in pairs), strict=True)
    if len(set(scores)) == 1 or len(set(gains)) == 1:
        return None  # a constant has no ranks
    result = spearmanr(scores, gains)
    return Prediction(float(result.statistic), float(result.pvalue), len(pairs))
