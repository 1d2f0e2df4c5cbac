"""Several groups of sequences in one forward, each of which joins at a layer of its own.

What a layer is given beside the stream (masks, positions) is made for all groups: it is cut to those that
have joined where its first axis grew with the groups: it had an entry a sequence, or some (a head each),
when one group went through, and has as many for each group now. One length alone could be chance.

Shapes: S sequences of a group, T tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Join:
    """What one layer does in such a forward.

    Args:
        size: S.
        num_groups: Groups of the forward.
        num_below: Those that joined below this layer: it is run on them, in the order in which they joined.
        stream: What the group that joins behind this layer, and so lacks it, brings along, (S, T, H).
        output: What the layer returned when one group went through; it stands in where no group has joined.
    """

    size: int
    num_groups: int
    num_below: int
    stream: torch.Tensor | None = None
    output: Any = None

    def given(self, value: Any, lengths: Any) -> Any:
        """Cut what the layer is given to the groups that have joined.

        Args:
            value: Tensors, in lists, tuples and dictionaries.
            lengths: `lengths_of` the same, when one group went through.
        """
        if isinstance(value, torch.Tensor):
            is_of_batch = bool(lengths) and lengths % self.size == 0
            has_grown = is_of_batch and len(value) == lengths * self.num_groups
            return value[: lengths * self.num_below] if has_grown else value
        if isinstance(value, dict):
            return {name: self.given(part, (lengths or {}).get(name)) for name, part in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.given, value, lengths))
        return value


def lengths_of(value: Any) -> Any:
    """Return the length of the first axis of each tensor, in the same lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.shape[0] if value.dim() else None
    if isinstance(value, dict):
        return {name: lengths_of(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [lengths_of(part) for part in value]
    return None
