"""Paired statistics over per-sample results, and bootstrap intervals.

Both models see the same rows, so every test is on the differences row by row. Everything is
seeded: the same numbers give the same interval. Knows nothing about how a result came about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..artifacts import Accuracy, Interval
from ..tasks import Scores, Task

NUM_RESAMPLES = 9999
# Numbers held at a time while resampling: 2 million doubles are 16 MB.
_BATCH_NUMBERS = 2_000_000
Statistic = Callable[..., np.ndarray]


def bootstrap_interval(values: np.ndarray, statistic: Statistic, seed: int = 0) -> Interval:
    """Return the 95 % percentile bootstrap interval of a statistic of (N,) values.

    Percentile rather than BCa: BCa's jackknife is quadratic in N and is not a number where all
    values, or for a median most values, are equal. Equal values give an interval of no width.
    """
    if np.ptp(values) == 0.0:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, _BATCH_NUMBERS // len(values)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def compare(task: Task, original: Scores, pruned: Scores) -> Accuracy:
    """Compare two models row by row; the difference is pruned minus original.

    Args:
        task: Says what the metric is and whether a row is right or wrong.
        original: Results of the original model.
        pruned: Results of the pruned model on the same rows, in the same order.

    Returns:
        Difference with a 95 % paired bootstrap interval; p by the exact McNemar test where rows
        are right or wrong, by a paired permutation test otherwise; an interval a model (Wilson,
        or bootstrap of the mean); rows gained and lost.

    Source: McNemar 1947, doi:10.1007/BF02295996, in its exact binomial form; Wilson 1927,
        doi:10.1080/01621459.1927.10502953.
    """
    differences = pruned.values - original.values
    better = differences > 0 if task.higher_is_better else differences < 0
    gained = int(np.count_nonzero(better))
    lost = int(np.count_nonzero(differences)) - gained
    if task.is_right_or_wrong:
        p_value = _mcnemar(gained, lost)
        interval_of = _wilson
    else:
        p_value = _permutation(original.values, pruned.values)
        interval_of = _bootstrap_of_mean
    return Accuracy(
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        n=len(differences),
        original=original.metric,
        pruned=pruned.metric,
        difference=pruned.metric - original.metric,
        interval=_bootstrap_of_mean(differences),
        p_value=p_value,
        original_interval=interval_of(original.values),
        pruned_interval=interval_of(pruned.values),
        gained=gained,
        lost=lost,
    )


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


def _wilson(values: np.ndarray) -> Interval:
    """Return the 95 % Wilson interval of a share of ones."""
    from scipy.stats import binomtest

    share = binomtest(round(float(values.sum())), len(values))
    interval = share.proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _bootstrap_of_mean(values: np.ndarray) -> Interval:
    return bootstrap_interval(values, np.mean)
