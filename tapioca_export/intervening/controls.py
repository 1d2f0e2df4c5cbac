"""Random sets of layers, to hold the selected one against. Knows nothing about what layers do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..artifacts import Numbering


def random_sets(
    numbering: Numbering, allowed: Sequence[int], size: int, draws: int, seed: int
) -> tuple[list[tuple[int, ...]], int]:
    """Draw different sets of layers that can go together.

    Args:
        numbering: The model's layers; one stays in every stack.
        allowed: The layers to draw from.
        size: Layers of a set.
        draws: Sets wanted.
        seed: Equal seeds draw equal sets.

    Returns:
        The sets, each sorted, all of them where there are no more than `draws`; and how many there are.
    """
    counts = numbering.num_sets(allowed)
    num_possible = counts[size] if size < len(counts) else 0
    if num_possible <= draws:
        every = combinations(sorted(allowed), size) if num_possible else ()
        return [chosen for chosen in every if _can_go(numbering, chosen)], num_possible
    generator = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < draws:
        chosen = tuple(sorted(generator.choice(allowed, size, replace=False).tolist()))
        if _can_go(numbering, chosen):
            found[chosen] = None
    return list(found), num_possible


def _can_go(numbering: Numbering, layers: Sequence[int]) -> bool:
    """Tell whether a layer is left in every stack."""
    return all(set(part) - set(layers) for part in numbering.ranges)
