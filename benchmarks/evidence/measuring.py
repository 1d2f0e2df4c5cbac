"""Effects on report rows, each with a paired 95 % bootstrap interval. Knows nothing about claims.

A gain is the share of the intact model's error that is gone: 1 - error / intact error, where the error is
the distance of the metric from its best value (of accuracy, the share of wrong answers; of the normalised
squared error, itself). It is relative, so that the largest shift does not drown the others.

Shapes: N rows, A models, R bootstrap replicates, B boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import permutation_test, rankdata

from tapioca_export.artifacts import Numbering
from tapioca_export.benchmarking.statistics import interval, replicates
from tapioca_export.profiling import Response, surviving_boundaries
from tapioca_export.tasks import Scores, Task

Layers = tuple[int, ...]
Effect = dict[str, Any]  # "effect" and its "interval"


def error(task: Task, metric: Any) -> Any:
    """Return how far a metric is from its best value."""
    return np.abs(metric - task.best_value)


def least_error(task: Task, num_rows: int) -> float:
    """Return what an error is at least: half a wrong answer, as a ratio to nothing says nothing."""
    return 0.5 / num_rows if task.is_right_or_wrong else float(np.finfo(np.float64).tiny)


class Gains:
    """What sets of dropped layers gain on rows, and by how much one gains more than another.

    Args:
        task: Says what the metric is.
        scores: Of each set of layers, on the same rows; of the empty one, too.
    """

    def __init__(self, task: Task, scores: Mapping[Layers, Scores]) -> None:
        values = [found.values for found in scores.values()]
        least = least_error(task, len(values[0]))
        drawn = np.maximum(error(task, replicates(values, task.aggregate)), least)  # (A, R)
        exact = np.maximum(error(task, np.asarray([task.aggregate(part) for part in values])), least)
        place = list(scores).index(())
        self.errors = dict(zip(scores, exact.tolist(), strict=True))
        self._gains = dict(zip(scores, 1 - exact / exact[place], strict=True))
        self._drawn = dict(zip(scores, 1 - drawn / drawn[place], strict=True))

    def of(self, layers: Layers, instead_of: Layers = ()) -> Effect:
        """Return the gain of dropping layers, less that of dropping others."""
        found = self._drawn[layers] - self._drawn[instead_of]
        return effect(self._gains[layers] - self._gains[instead_of], found)


def effect(value: Any, drawn: np.ndarray) -> Effect:
    """Return a value and the interval of its replicates (R,)."""
    return {"effect": float(value), "interval": interval(drawn)}


def deviation(target: Response, id_: Response) -> Effect:
    """Return the mean deviation over all boundaries, and how much of it is above the noise floor of ID."""
    floor = id_.noise_floor
    assert floor is not None
    boundaries = range(_num_boundaries(target))
    drawn = target.deviation_replicates(id_, boundaries).mean(axis=0)
    each = np.asarray([target.deviations(id_, [b]) for b in boundaries])  # (B, 2)
    above = (each[:, 0] > floor.norms) & (each[:, 1] > floor.distances)
    return {**effect(each.mean(), drawn), "noise_floor": floor.mean, "boundaries_above": float(above.mean())}


def realignment(target: Response, pruned: Response, id_: Response, layers: Layers) -> dict[str, Effect]:
    """Return the share of the target's deviation that is gone: of norms, of distances, and at the head.

    Over the boundaries that are left; `head` is at the last of them, of norms and distances together.
    """
    last = _num_boundaries(target) - 1
    kept = surviving_boundaries(layers, _one_stack(last))
    found: dict[str, Effect] = {}
    before, after = (part.deviations(id_, kept) for part in (target, pruned))
    drawn = [part.deviation_replicates(id_, kept) for part in (target, pruned)]
    for place, name in enumerate(("norms", "distances")):
        share = 1 - after[place] / before[place]
        found[name] = effect(share, 1 - drawn[1][place] / drawn[0][place])
    before, after = (part.deviations(id_, [last]).mean() for part in (target, pruned))
    drawn = [part.deviation_replicates(id_, [last]).mean(axis=0) for part in (target, pruned)]
    return {**found, "head": effect(1 - after / before, 1 - drawn[1] / drawn[0])}


def removed(target: Response, changed: Response, id_: Response, layers: Layers) -> float:
    """Return the share of the mean deviation, over the boundaries left without layers, that is gone."""
    kept = surviving_boundaries(layers, _one_stack(_num_boundaries(target) - 1))
    before, after = (part.deviations(id_, kept).mean() for part in (target, changed))
    return float(1 - after / before)


def removed_drawn(target: Response, changed: Response, id_: Response, layers: Layers) -> np.ndarray:
    """Return the replicates (R,) of the same."""
    kept = surviving_boundaries(layers, _one_stack(_num_boundaries(target) - 1))
    before, after = (part.deviation_replicates(id_, kept).mean(axis=0) for part in (target, changed))
    return np.asarray(1 - after / before)


def _num_boundaries(response: Response) -> int:
    return int(response.norms.shape[-1])


def _one_stack(num_layers: int) -> Numbering:
    return Numbering.of({}, num_layers)


def spearman_over(levels: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column of (n, R) with levels (n,); 0 if it is constant."""
    ranks, fixed = rankdata(values, axis=0), rankdata(levels)
    ranks, fixed = ranks - ranks.mean(axis=0), fixed - fixed.mean()
    scale = np.sqrt(np.square(ranks).sum(axis=0) * np.square(fixed).sum())
    return np.asarray(np.divide(fixed @ ranks, scale, out=np.zeros(values.shape[1]), where=scale > 0))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> Effect:
    """Return Spearman's correlation, with the two-sided p-value of exchanging pairs.

    Source: Spearman 1904, doi:10.2307/1412159. A constant has no ranks: its correlation is 0, p is 1.
    """
    ranks, fixed = (rankdata(part) - (len(part) + 1) / 2 for part in (one, other))
    scale = np.sqrt(np.square(ranks).sum() * np.square(fixed).sum())
    if scale == 0:
        return {"effect": 0.0, "p_value": 1.0, "num": len(ranks)}
    found = permutation_test(
        (ranks,),
        lambda x, axis: (x * fixed).sum(axis=axis) / scale,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return {"effect": float(found.statistic), "p_value": float(found.pvalue), "num": len(ranks)}
