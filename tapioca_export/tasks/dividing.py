"""Rows into batches: which division takes the least time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Division:
    """How to divide rows into batches: one more batch takes the time of `batch_cost` tokens more.

    No batch has more than `batch_tokens` tokens, padding included, unless a single row has.
    """

    batch_cost: int
    batch_tokens: int


def cheapest_starts(lengths: np.ndarray, batch_size: int, division: Division) -> list[int]:
    """Return where batches begin so that they take the least time.

    Args:
        lengths: Tokens of each row (N,), in ascending order.
        batch_size: Most rows of a batch.
        division: What a batch costs besides its tokens, and how many tokens it may have.
    """
    costs, starts = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, dtype=np.int64)
    for end in range(1, len(lengths) + 1):
        longest = max(1, int(lengths[end - 1]))  # a row without tokens is refused later, with its place
        most = max(1, min(batch_size, division.batch_tokens // longest))
        first = max(0, end - most)
        totals = costs[first:end] + np.arange(end - first, 0, -1) * longest + division.batch_cost
        starts[end] = first + int(totals.argmin())
        costs[end] = totals[starts[end] - first]
    found = [int(starts[-1])]
    while found[-1] > 0:
        found.append(int(starts[found[-1]]))
    return found[::-1]
