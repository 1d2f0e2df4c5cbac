"""Which points of a search are not dominated: target gain against ID loss against layers dropped.

Knows nothing about where the numbers come from. Shapes: n points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def are_on_front(gains: Sequence[float], losses: Sequence[float], depths: Sequence[int]) -> list[bool]:
    """Tell of each of n points whether no other is as good in all three and better in one.

    Args:
        gains: What each gains on the target; more is better.
        losses: What each loses on ID; less is better.
        depths: Layers that each drops; more is better.

    Source: Pareto 1896, "Cours d'économie politique"; the usual definition of non-dominance.
    """
    merits = np.stack([np.asarray(gains), -np.asarray(losses), np.asarray(depths, dtype=float)], axis=1)
    # (n, n): whether the point of the column dominates that of the row.
    no_worse = (merits[None] >= merits[:, None]).all(axis=-1)
    better = (merits[None] > merits[:, None]).any(axis=-1)
    num_dominating = np.count_nonzero(no_worse & better, axis=1)
    return [count == 0 for count in num_dominating.tolist()]
