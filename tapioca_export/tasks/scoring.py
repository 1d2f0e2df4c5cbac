"""What is found of each row, and put together of batches.

Shapes: N samples, k numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..domains import Domains


@dataclass(frozen=True)
class Scores:
    """Results a sample, in the samples' order: `Task.aggregate` makes the metric of `values`.

    `losses` have shape (N,), `values` as well, or (N, k) where it takes k numbers a row. Of a metric that
    is a mean over rows, the first of them is what is averaged.
    """

    values: np.ndarray
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    def split(self, domains: Domains) -> list[Scores]:
        """Return the scores of each domain's rows."""
        parts = zip(domains.split(self.values), domains.split(self.losses), strict=True)
        return [Scores(values, losses) for values, losses in parts]

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, Scores]]) -> Scores:
        """Put together the scores of batches, each with the indices of its rows, all N between them."""
        order = np.argsort(np.concatenate([indices for indices, _ in parts]))
        values = np.concatenate([scores.values for _, scores in parts])
        losses = np.concatenate([scores.losses for _, scores in parts])
        return cls(values[order], losses[order])


def averaged(values: np.ndarray) -> np.ndarray:
    """Return the one number of each row, (N,), whose mean is the metric, of (N,) or (N, k)."""
    return values if values.ndim == 1 else values[:, 0]
