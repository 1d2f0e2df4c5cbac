"""What a sweep's numbers show, judged by intervals and ranks; nothing is claimed that they do not show.

Knows nothing about models or samples.

Shapes: A alphas, N rows, R bootstrap replicates, n random sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..artifacts import Flatness, Interval, Rank, Trend
from ..benchmarking.statistics import LEVEL, interval

# Two points are always monotone.
LEAST_ALPHAS = 3


def trend(alphas: Sequence[float], values: np.ndarray, drawn: np.ndarray) -> Trend:
    """Judge whether a quantity goes one way with alpha from 0 to 1.

    Args:
        alphas: A of them, rising.
        values: The quantity at each, (A,).
        drawn: Its replicates, (A, R), each on the same rows for all alphas.

    Returns:
        Spearman's correlation and the change from end to end, with intervals. A step from one alpha to the
        next is shown to go one way if its interval, at the level divided by the number of steps, excludes
        zero. The correlation has no say in the judgement: after one large step, ranks along a plateau are
        noise.
    """
    within = [place for place, alpha in enumerate(alphas) if 0 <= alpha <= 1]
    values, drawn = values[within], drawn[within]
    correlation, change = _spearman(values[:, None])[0], values[0] - values[-1]
    low, high = interval(drawn[0] - drawn[-1])
    steps = [interval(step, LEVEL / (len(within) - 1)) for step in np.diff(drawn, axis=0)]
    has_rise, has_fall = any(least > 0 for least, _ in steps), any(most < 0 for _, most in steps)
    judged: Literal["rises", "falls", "not monotone", "undecided"] = "undecided"
    if len(within) >= LEAST_ALPHAS:
        if has_rise and has_fall:
            judged = "not monotone"
        elif low > 0 and not has_rise:
            judged = "falls"
        elif high < 0 and not has_fall:
            judged = "rises"
    return Trend(float(correlation), interval(_spearman(drawn)), float(change), (low, high), judged)


def _spearman(values: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column of (A, R) with the rising alphas; 0 if it is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    rising = np.arange(len(values)) - (len(values) - 1) / 2
    scale = np.sqrt(np.square(ranks).sum(axis=0) * np.square(rising).sum())
    return np.asarray(np.divide(rising @ ranks, scale, out=np.zeros(values.shape[1]), where=scale > 0))


def flatness(
    alphas: Sequence[float], differences: Sequence[float], intervals: Sequence[Interval], epsilon: float
) -> Flatness:
    """Judge whether a metric stays within +-epsilon of the intact model's at every alpha from 0 to 1.

    All intervals of 95 % within it is an intersection of two one-sided tests, each at 2.5 %: no
    adjustment for their number is needed.
    """
    within = [place for place, alpha in enumerate(alphas) if 0 <= alpha <= 1]
    worst = max(within, key=lambda place: abs(differences[place]))
    if all(-epsilon <= intervals[place][0] and intervals[place][1] <= epsilon for place in within):
        judged = "flat"
    elif any(intervals[place][0] > epsilon or intervals[place][1] < -epsilon for place in within):
        judged = "not flat"
    else:
        judged = "undecided"
    return Flatness(epsilon, alphas[worst], differences[worst], intervals[worst], judged)  # type: ignore[arg-type]


def rank(
    selected: float, others: Sequence[float], margins: Sequence[Interval], *, has_all: bool
) -> Rank | None:
    """Judge whether the selected set does better than random ones.

    Args:
        selected: What it gains.
        others: What each random set gains, (n,).
        margins: Intervals of the difference to the random sets that were compared row by row.
        has_all: The random sets are all there are, and the margins are to all of them.

    Returns:
        None where there is no random set. p is one-sided, and counts the selected set among them.
    """
    if not others:
        return None
    as_good = int(np.count_nonzero(np.asarray(others) >= selected))
    p_value = (1 + as_good) / (1 + len(others))
    margin = min(margins, default=None)
    if p_value <= LEVEL or (has_all and margin is not None and margin[0] > 0):
        judged = "distinguishable"
    elif 1 / (1 + len(others)) > LEVEL:
        judged = "undecided"
    else:
        judged = "not distinguishable"
    return Rank(
        selected,
        float(np.median(others)),
        float(max(others)),
        as_good,
        len(others),
        p_value,
        judged,  # type: ignore[arg-type]
        margin,
    )
