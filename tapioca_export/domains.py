"""Several target domains as one set of rows: where each domain's rows stand, and how its numbers count.

The rows of all domains stand one domain after another, in the order of their names. A quantity of the
target is made of the same quantity of each domain: their mean, the worst of them, or a mean weighted by
the user. That is the mean of domains, not of rows: a domain with few rows counts as much as one with
many. A target without a name is one domain, and its numbers are what they would be without this module.

Knows nothing about what the numbers are of. Shapes: N rows, D domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .config import UNNAMED

# Decimals of a mean of several domains; what is behind them is rounding.
DIGITS = 12


@dataclass(frozen=True)
class Domains:
    """Where the rows of each domain stand among the N of all, and how the domains' numbers become one.

    Args:
        names: D of them, in the order of their rows.
        sizes: Rows of each.
        objective: "mean", "worst" or "weights".
        weights: What each counts for in a mean, adding up to one; 1 each for the worst of them.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    objective: str
    weights: tuple[float, ...]

    @classmethod
    def of(
        cls, sizes: Mapping[str, int], objective: str = "mean", weights: Mapping[str, float] | None = None
    ) -> Domains:
        """Make them of the number of rows of each, by name, in the order of the rows."""
        given = [1.0] * len(sizes)
        if objective == "weights":
            given = [(weights or {})[name] for name in sizes]
        total = 1.0 if objective == "worst" else sum(given)
        return cls(tuple(sizes), tuple(sizes.values()), objective, tuple(part / total for part in given))

    def __len__(self) -> int:
        """Count the domains."""
        return len(self.names)

    @property
    def are_named(self) -> bool:
        """Tell whether the user told domains apart."""
        return self.names != (UNNAMED,)

    @property
    def sizes_by_name(self) -> dict[str, int]:
        """Rows of each domain, by its name."""
        return dict(zip(self.names, self.sizes, strict=True))

    @property
    def is_worst(self) -> bool:
        """Tell whether the worst of several domains counts, which is no mean over rows."""
        return self.objective == "worst" and len(self) > 1

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """Where the rows of each domain stand."""
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    @cached_property
    def row_weights(self) -> np.ndarray:
        """What a row counts for, (N,): with these, the mean over rows of a domain's share is its number.

        N w / n for each of the n rows of a domain of weight w: the sum over all rows of weighted numbers
        is N times their weighted mean, and the largest domain's sum is N times the worst domain's mean.
        """
        total = sum(self.sizes)
        shares = [total * weight / size for weight, size in zip(self.weights, self.sizes, strict=True)]
        return np.repeat(shares, self.sizes)

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the parts of (N, ...), one a domain."""
        return [rows[part] for part in self.parts]

    def combined(self, numbers: Sequence[np.ndarray | float], higher_is_better: bool) -> np.ndarray:
        """Return one number of the target, (...), from one of each domain, (D, ...)."""
        found = np.asarray(numbers, dtype=np.float64)
        if self.objective == "worst":
            return np.asarray(found.min(axis=0) if higher_is_better else found.max(axis=0))
        shares = np.asarray(self.weights).reshape(-1, *[1] * (found.ndim - 1))
        mean = np.asarray((shares * found).sum(axis=0))
        # Candidates that gain in one domain what they lose in another are equals, and not by chance.
        return mean if len(self) == 1 else mean.round(DIGITS)

    def average(self, numbers: Sequence[object] | np.ndarray) -> np.ndarray:
        """Return the mean over domains of (D, ...), weighted where the objective is, also of the worst."""
        found = np.asarray(numbers, dtype=np.float64)
        shares = np.asarray(self.weights) / sum(self.weights)
        return np.asarray(np.tensordot(shares, found, axes=1))

    def total(self, sums: np.ndarray) -> float:
        """Return what the domains' sums of weighted penalties, (D,), come to: N times the combined mean."""
        return float(sums.max() if self.objective == "worst" else sums.sum())

    def metric(
        self, values: np.ndarray, aggregate: Callable[[np.ndarray], np.ndarray], higher_is_better: bool
    ) -> float:
        """Return the target's metric; `aggregate` makes that of a domain of its rows' values, (n, ...)."""
        return float(self.combined([aggregate(part) for part in self.split(values)], higher_is_better))
