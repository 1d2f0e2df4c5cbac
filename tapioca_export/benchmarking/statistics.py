"""Paired statistics over per-sample results, and bootstrap intervals.

Both models see the same rows, so every test is on the differences row by row. Everything is
seeded: the same numbers give the same interval. Knows nothing about how a result came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..artifacts import Accuracy, Interval, Pair
from ..config import UNNAMED
from ..domains import Domains
from ..tasks import Scores, Task
from ..tasks.scoring import averaged

NUM_RESAMPLES = 9999
LEVEL = 0.05  # of what is drawn, intervals leave out
# Numbers held at a time while resampling: 2 million doubles are 16 MB.
_BATCH_NUMBERS = 2_000_000
_LITTLE_SPREAD = 0.1  # of all rows' spread: a replicate with less has missed the rows that differ
Statistic = Callable[..., np.ndarray]


def bootstrap_interval(values: np.ndarray, statistic: Statistic, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of a statistic of (N,) values.

    Percentile rather than BCa: BCa's jackknife is quadratic in N and is not a number where all
    values, or for a median most values, are equal. Equal values give an interval of no width.
    """
    if np.ptp(values) == 0.0:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(values)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare(task: Task, original: Scores, pruned: Scores, domains: Domains | None = None) -> Accuracy:
    """Compare two models row by row; the difference is pruned minus original.

    Args:
        task: Says what the metric is and whether a row is right or wrong.
        original: Results of the original model.
        pruned: Results of the pruned model on the same rows, in the same order.
        domains: The target domains that the rows are of, whose objective is compared (default: one).

    Returns:
        Difference with a 95 % paired bootstrap interval; p by the exact McNemar test where rows
        are right or wrong, by a paired permutation test otherwise; an interval a model (Wilson where
        rows are right or wrong, bootstrap-t where a row counts by how much it is off, percentile bootstrap
        otherwise); rows gained and lost, where the metric is a mean over rows. Of several domains,
        rows are drawn anew within each, and p is that of a permutation test of the objective; a model's
        interval for the worst of them is made of theirs.

    Source: McNemar 1947, doi:10.1007/BF02295996, in its exact binomial form; Wilson 1927,
        doi:10.1080/01621459.1927.10502953.
    """
    domains = domains or Domains.of({UNNAMED: len(original.values)})
    before, after = (
        domains.metric(scores.values, task.aggregate, task.higher_is_better) for scores in (original, pruned)
    )
    counts = [task.num_invalid(scores.values) for scores in (original, pruned)]
    invalid = [count for count in counts if count is not None]
    return Accuracy(
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        n=len(original.values),
        original=before,
        pruned=after,
        difference=after - before,
        invalid=Pair(*invalid) if invalid else None,
        **_compared(task, original.values, pruned.values, domains),
    )


def _compared(task: Task, original: np.ndarray, pruned: np.ndarray, domains: Domains) -> dict[str, Any]:
    """Return what intervals, test and counts there are for the kind of metric."""
    if len(domains) > 1:
        return _of_domains(task, original, pruned, domains)
    return (_of_means if task.best_value is not None else _of_aggregates)(task, original, pruned)


def _of_means(task: Task, original: np.ndarray, pruned: np.ndarray) -> dict[str, Any]:
    """Compare the means of what a row is worth."""
    original, pruned = averaged(original), averaged(pruned)
    differences = pruned - original
    gained, lost = _changed(task, differences)
    return {
        "interval": bootstrap_interval(differences, np.mean),
        "p_value": _mcnemar(gained, lost) if task.is_right_or_wrong else _permutation(original, pruned),
        "original_interval": _own_interval(task, original),
        "pruned_interval": _own_interval(task, pruned),
        "gained": gained,
        "lost": lost,
    }


def _changed(task: Task, differences: np.ndarray) -> tuple[int, int]:
    """Count the rows that became better and worse."""
    gained = int(np.count_nonzero(differences > 0 if task.higher_is_better else differences < 0))
    return gained, int(np.count_nonzero(differences)) - gained


def _of_domains(task: Task, original: np.ndarray, pruned: np.ndarray, domains: Domains) -> dict[str, Any]:
    """Compare the objective over several domains, each domain's metric made of its own rows."""
    higher = task.higher_is_better
    before, after = replicates((original, pruned), task.aggregate, domains, higher)
    both = np.concatenate(list(map(task.exchangeable, (pruned, original))))

    def metric(rows: np.ndarray) -> np.ndarray:
        return domains.combined([task.aggregate(both[rows[..., part]]) for part in domains.parts], higher)

    has_counts = task.best_value is not None
    counts = _changed(task, averaged(pruned) - averaged(original)) if has_counts else (None, None)
    if domains.is_worst:
        own = [_interval_of_worst(task, domains.split(values)) for values in (original, pruned)]
    else:
        own = [interval(before), interval(after)]
    return {
        "interval": interval(after - before),
        "p_value": _permutation_of_rows(lambda x, y: metric(x) - metric(y), both),
        "original_interval": own[0],
        "pruned_interval": own[1],
        "gained": counts[0],
        "lost": counts[1],
    }


def _of_aggregates(task: Task, original: np.ndarray, pruned: np.ndarray) -> dict[str, Any]:
    """Compare what a task makes of the values of all rows together, (N, k); rows are drawn in pairs."""

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(task.aggregate(one) - task.aggregate(other))

    both = np.concatenate(list(map(task.exchangeable, (pruned, original))))
    return {
        "interval": _bootstrap_of_pairs(difference, pruned, original),
        "p_value": _permutation_of_rows(lambda x, y: difference(both[x], both[y]), both),
        "original_interval": _own_interval(task, original),
        "pruned_interval": _own_interval(task, pruned),
        "gained": None,
        "lost": None,
    }


def _own_interval(task: Task, values: np.ndarray) -> Interval:
    """Return the 95 % interval of one model's metric on the rows of one domain, (N,) or (N, k)."""
    return _own_intervals(task, values, [LEVEL])[0]


def _own_intervals(task: Task, values: np.ndarray, levels: Sequence[float]) -> list[Interval]:
    """Return one interval a level, which is the share of what is drawn that both sides leave out together."""
    if task.best_value is None:
        drawn = replicates((values,), lambda rows: task.aggregate(rows[0]))
        return [interval(drawn, level) for level in levels]
    rows = averaged(values)
    if task.is_right_or_wrong:
        return [_wilson(rows, level) for level in levels]
    found = _bootstrap_t(rows, levels)
    # Nothing is better than perfect; and the other way, no row's value is negative.
    least, most = (0.0, task.best_value) if task.higher_is_better else (task.best_value, np.inf)
    return [(max(low, least), min(high, most)) for low, high in found]


def _interval_of_worst(task: Task, parts: Sequence[np.ndarray]) -> Interval:
    """Return the interval of the worst of the domains' metrics, made of an interval of each domain.

    Where rows are drawn anew, the worst of several domains that are about as good is worse than the truth,
    mostly, and drawn once more it is worse again: the middle of the replicates is off by twice that.
    Instead, the metric is no better than the end of any one domain's interval, and the worst domain's
    interval says how bad it may be. The better ends have to hold together, for the worst may be any; rows of
    domains are drawn one by one, so that their levels multiply.

    Source: Sidak 1967, doi:10.1080/01621459.1967.10482935, for the ends that hold together.
    """
    jointly = 2.0 * (1.0 - (1.0 - LEVEL) ** (1.0 / len(parts)))
    each = np.asarray([_own_intervals(task, part, [LEVEL, jointly]) for part in parts])  # (D, 2, 2)
    alone, together = each[:, 0], each[:, 1]
    if task.higher_is_better:
        return float(alone[:, 0].min()), float(together[:, 1].min())
    return float(together[:, 0].max()), float(alone[:, 1].max())


def _mcnemar(gained: int, lost: int) -> float:
    """Return how likely so uneven a split of the changed rows is if either way is as likely."""
    from scipy.stats import binomtest

    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def _permutation(original: np.ndarray, pruned: np.ndarray) -> float:
    """Return the two-sided p-value of swapping the two models' results within rows."""
    from scipy.stats import permutation_test

    if np.array_equal(original, pruned) or len(original) < 2:
        return 1.0
    result = permutation_test(
        (pruned, original),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // (2 * len(original))),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _wilson(values: np.ndarray, level: float) -> Interval:
    """Return the Wilson interval of a share of ones, (N,), that leaves out `level`."""
    from scipy.stats import binomtest

    share = binomtest(round(float(values.sum())), len(values))
    found = share.proportion_ci(1.0 - level, method="wilson")
    return float(found.low), float(found.high)


def _bootstrap_t(values: np.ndarray, levels: Sequence[float]) -> list[Interval]:
    """Return the bootstrap-t intervals of the mean of (N,) values that leave out each level.

    Rows that are off by orders of magnitude make the mean skewed, and percentiles of replicates end
    too early on the long side. Percentiles it is where few rows hold nearly all of the spread: a replicate
    without them has a t without bounds, and says nothing of how far the mean may be off.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5.
    """
    if np.ptp(values) == 0.0:
        return [(float(values[0]), float(values[0]))] * len(levels)
    mean, spread = values.mean(), values.std()
    means, spreads = replicates(
        (values,), lambda rows: np.stack([rows[0].mean(axis=-1), rows[0].std(axis=-1)])
    )
    is_spread = spreads > _LITTLE_SPREAD * spread
    t = (means[is_spread] - mean) / spreads[is_spread]
    found = []
    for level in levels:
        if 1.0 - is_spread.mean() > level / 2:
            found.append(interval(means, level))
        else:
            low, high = np.quantile(t, [level / 2, 1.0 - level / 2])
            found.append((float(mean - high * spread), float(mean - low * spread)))
    return found


def _bootstrap_of_pairs(statistic: Statistic, one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the interval of a statistic of two models' values, (N, k), on rows drawn anew."""
    if np.array_equal(one, other):
        found = float(statistic(one, other))
        return found, found
    return interval(replicates((one, other), lambda drawn: statistic(*drawn)))


def replicates(
    values: Sequence[np.ndarray],
    statistic: Statistic,
    domains: Domains | None = None,
    higher_is_better: bool = True,
) -> np.ndarray:
    """Return a statistic of models on resampled rows, (..., R): replicate r draws the same rows for all.

    Args:
        values: What each of A models scores on the same N rows, (N,) or (N, k).
        statistic: Makes something (..., B) of values (A, B, N) or (A, B, N, k).
        domains: The domains that the rows are of: rows are drawn within each, and the statistics of the
            domains become one (default: all rows are one domain).
        higher_is_better: Which way the statistic improves.
    """
    rows = np.asarray(values)
    num_rows = rows.shape[1]
    if num_rows < 2:  # there is one way to draw
        return np.repeat(np.asarray(statistic(rows[:, None])), NUM_RESAMPLES, axis=-1)
    from scipy.stats import bootstrap

    domains = domains or Domains.of({UNNAMED: num_rows})

    def of_drawn(*drawn: np.ndarray, axis: int) -> np.ndarray:
        parts = [statistic(rows[:, np.asarray(part, dtype=np.int64)]) for part in drawn]
        return parts[0] if len(parts) == 1 else domains.combined(parts, higher_is_better)

    found = bootstrap(
        tuple(domains.split(np.arange(num_rows))),
        of_drawn,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // rows.size),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.bootstrap_distribution)


def interval(drawn: np.ndarray, level: float = LEVEL) -> Interval:
    """Return the percentile interval of replicates (R,) that leaves out `level` of them."""
    low, high = np.percentile(drawn, [50 * level, 100 - 50 * level])
    return float(low), float(high)


def _permutation_of_rows(statistic: Statistic, both: np.ndarray) -> float:
    """Return the two-sided p-value of swapping two models' values, one after the other, within rows.

    Args:
        statistic: Makes something (...) of the places, (..., N), of one model's values and the other's.
        both: The values of one and of the other, (2N,) or (2N, k).
    """
    from scipy.stats import permutation_test

    rows = np.arange(len(both)).reshape(2, -1)  # SciPy swaps numbers of rows instead of rows
    if np.array_equal(both[rows[0]], both[rows[1]]) or rows.shape[1] < 2:
        return 1.0
    result = permutation_test(
        tuple(rows),
        lambda x, y, axis: statistic(x, y),
        permutation_type="samples",
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // both.size),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)
