"""How layers are named, and what may be dropped together.

Inside, a layer is one number: stack after stack, in the order in which a forward runs them. In every
option and file it is that number where a model has one stack, else the stack's name and the number in
it: `encoder:3`. Knows nothing about what a layer is.

Shapes: S stacks, L layers of all of them, L + S boundaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:  # a search counts in numbers, and its records are named once it is done
    LayerName = Any
else:
    LayerName = int | str


@dataclass(frozen=True)
class Numbering:
    """The layers of a model.

    Args:
        depths: Layers of each stack by its name, in the order of execution; the name of an only stack
            is "".
    """

    depths: Mapping[str, int]

    @classmethod
    def of(cls, stacks: Mapping[str, int], num_layers: int) -> Numbering:
        """Return the numbering that an artifact records: `stacks` is empty where there is one."""
        return cls(stacks or {"": num_layers})

    @property
    def stacks(self) -> dict[str, int]:
        """What artifacts record: the depth of each stack by name, nothing where there is one."""
        return dict(self.depths) if len(self.depths) > 1 else {}

    @property
    def num_layers(self) -> int:
        """Count the layers of all stacks."""
        return sum(self.depths.values())

    @property
    def ranges(self) -> tuple[range, ...]:
        """The numbers of each stack's layers."""
        ends = accumulate(self.depths.values())
        return tuple(range(end - depth, end) for end, depth in zip(ends, self.depths.values(), strict=True))

    @property
    def boundaries(self) -> tuple[range, ...]:
        """The numbers of each stack's boundaries: one before its first layer, and one behind each."""
        return tuple(
            range(part.start + stack, part.stop + stack + 1) for stack, part in enumerate(self.ranges)
        )

    def stack_of(self, layer: int) -> int:
        """Return which stack a layer is in, counted from 0."""
        return next(stack for stack, part in enumerate(self.ranges) if layer in part)

    def __str__(self) -> str:
        """Say how many layers there are, and where."""
        each = ", ".join(f"{name} {depth}" for name, depth in self.stacks.items())
        return f"{self.num_layers} layers ({each})" if each else f"{self.num_layers} layers"

    # --- names ----------------------------------------------------------------------------

    def name(self, layer: int) -> LayerName:
        """Return a layer's name."""
        stack = self.stack_of(layer)
        return self._named(stack, layer - self.ranges[stack].start)

    def names(self, layers: Collection[int]) -> tuple[LayerName, ...]:
        """Return the names of layers, in their order."""
        return tuple(map(self.name, layers))

    @property
    def boundary_names(self) -> tuple[LayerName, ...]:
        """The names of all boundaries: `encoder:0` is before, `encoder:1` behind the first layer."""
        return tuple(
            self._named(stack, number)
            for stack, part in enumerate(self.boundaries)
            for number in range(len(part))
        )

    def _named(self, stack: int, number: int) -> LayerName:
        return number if len(self.depths) == 1 else f"{list(self.depths)[stack]}:{number}"

    def index(self, name: LayerName) -> int:
        """Return a layer's number.

        Raises:
            ConfigError: If there is no such layer.
        """
        stack, _, written = str(name).rpartition(":")
        if stack not in self.depths:
            raise ConfigError(f"Layer {name} does not exist: {self._said(stack)}.", self._hint(written))
        depth, start = self.depths[stack], self.ranges[list(self.depths).index(stack)].start
        number = int(written) if written.removeprefix("-").isdecimal() else -1
        if not 0 <= number < depth:
            where = f"the {stack}" if stack else "the model"
            counted = f"{stack}:0 to {stack}:{depth - 1}" if stack else f"0 to {depth - 1}"
            raise ConfigError(
                f"Layer {name} does not exist: {where} has {depth} layers.",
                f"Layers are counted from {counted}.",
            )
        return start + number

    def _said(self, stack: str) -> str:
        if len(self.depths) == 1:
            return f"the model has one stack, of {self.num_layers} layers, and no name for it"
        have = " and ".join(f"{name} ({depth} layers)" for name, depth in self.depths.items())
        return f"the model has {len(self.depths)} stacks, {have}" + (
            f", and none called {stack}" if stack else ""
        )

    def _hint(self, number: str) -> str:
        return f"Write {' or '.join(f'{name}:{number}' if name else number for name in self.depths)}."

    def indices(self, names: Sequence[LayerName]) -> tuple[int, ...]:
        """Return the numbers of layers that are to be dropped, in the order of their names.

        Raises:
            ConfigError: If one does not exist or is named twice, or if none would be left of a stack.
        """
        return self.checked([self.index(name) for name in names])

    # --- what may go ----------------------------------------------------------------------

    def checked(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Return the layers, in their order, if they may be dropped together.

        Raises:
            ConfigError: If one does not exist or is named twice, or if none would be left of a stack.
        """
        for layer in layers:
            if not 0 <= layer < self.num_layers:
                raise ConfigError(
                    f"Layer {layer} does not exist: the model has {self.num_layers} layers.",
                    f"Layers are counted from 0 to {self.num_layers - 1}.",
                )
        twice = [layer for layer, times in Counter(layers).items() if times > 1]
        if twice:
            raise ConfigError(f"Layer {self.name(twice[0])} is named twice.")
        for name, part in zip(self.depths, self.ranges, strict=True):
            if set(part) <= set(layers):
                of = f" of the {name}" if name else ""
                raise ConfigError(f"All {len(part)} layers{of} would be dropped.", "Keep at least one.")
        return tuple(layers)

    def unprotected(self, first: int, last: int) -> tuple[int, ...]:
        """Return the layers without so many at the beginning and at the end of each stack."""
        return tuple(layer for part in self.ranges for layer in part[first : max(0, len(part) - last)])

    def most(self, allowed: Collection[int]) -> int:
        """Return how many of the layers can go together: one stays in every stack."""
        return sum(min(len(set(part) & set(allowed)), len(part) - 1) for part in self.ranges)

    def num_sets(self, allowed: Collection[int]) -> list[int]:
        """Return, by their size, how many sets of the layers can go together, from none to the most."""
        counts = [1]
        for part in self.ranges:
            own = len(set(part) & set(allowed))
            counts = _product(counts, [comb(own, size) for size in range(min(own, len(part) - 1) + 1)])
        return counts

    def left(self, allowed: Sequence[int], dropped: Collection[int]) -> tuple[int, ...]:
        """Return the allowed layers of which any one can follow those that are dropped."""
        full = [len(set(part) - set(dropped)) == 1 for part in self.ranges]
        return tuple(layer for layer in allowed if layer not in dropped and not full[self.stack_of(layer)])


@dataclass(frozen=True)
class Choices:
    """What a search may do to a model, each choice one number: a layer, times one of a few scales.

    Choices are counted layer by layer, and of each layer scale by scale. Scale 0 drops the layer: where
    that is the only one, a choice is the number of the layer that is dropped. Its name is the layer's if it
    is dropped, else the layer's and the scale: `4:0.5`.

    Args:
        layers: The layers.
        scales: What the layer's branches are multiplied by, in ascending order.
    """

    layers: Numbering
    scales: tuple[float, ...] = (0.0,)

    def layer(self, choice: int) -> int:
        """Return the number of a choice's layer."""
        return choice // len(self.scales)

    def scale(self, choice: int) -> float:
        """Return the scale of a choice."""
        return self.scales[choice % len(self.scales)]

    def of(self, layer: int, scale: float = 0.0) -> int:
        """Return the choice of a layer and one of the scales."""
        return layer * len(self.scales) + self.scales.index(scale)

    def chosen(self, drop: Sequence[LayerName], damp: Mapping[LayerName, float]) -> tuple[int, ...]:
        """Return the choices of layers to drop, and of layers to damp to one of the scales.

        Raises:
            ConfigError: If a layer does not exist, or too many would be dropped.
        """
        dropped = map(self.of, self.layers.indices(drop))
        return (*dropped, *(self.of(self.layers.index(name), scale) for name, scale in damp.items()))

    def dropped(self, choices: Collection[int]) -> list[int]:
        """Return the layers that are dropped, in order."""
        return sorted(self.layer(choice) for choice in choices if self.scale(choice) == 0)

    @property
    def damps(self) -> bool:
        """Tell whether layers may be damped, not only dropped."""
        return self.scales != (0.0,)

    # --- names ----------------------------------------------------------------------------

    def name(self, choice: int) -> LayerName:
        """Return a choice's name."""
        layer, scale = self.layers.name(self.layer(choice)), self.scale(choice)
        return f"{layer}:{scale!r}" if scale else layer

    def names(self, choices: Collection[int]) -> tuple[LayerName, ...]:
        """Return the names of choices, in their order."""
        return tuple(map(self.name, choices))

    def index(self, name: LayerName) -> int:
        """Return the choice of a name.

        Raises:
            ConfigError: If there is no such layer.
        """
        layer, _, written = str(name).rpartition(":")
        scales = {repr(scale): scale for scale in self.scales if scale}
        if written in scales:  # no number of a layer is written like a float
            return self.of(self.layers.index(layer), scales[written])
        return self.of(self.layers.index(name))

    # --- what may be chosen ---------------------------------------------------------------

    def most(self, allowed: Collection[int]) -> int:
        """Return how many of the choices can be made together: of each layer one, and one stays."""
        return len(self.num_sets(allowed)) - 1

    def num_sets(self, allowed: Collection[int]) -> list[int]:
        """Return, by their size, how many sets of the choices can be made, from none to the most."""
        counts = [1]
        for part in self.layers.ranges:
            own = [choice for choice in allowed if self.layer(choice) in part]
            each = Counter(map(self.layer, own))
            ways = [1]
            for number in each.values():
                ways = _product(ways, [1, number])
            if len(self.dropped(own)) == len(part):  # of each stack one stays
                ways[-1] -= 1
            counts = _product(counts, ways if ways[-1] else ways[:-1])
        return counts

    def left(self, allowed: Sequence[int], chosen: Collection[int]) -> tuple[int, ...]:
        """Return the allowed choices of which any one can follow those that are made."""
        changed, gone = {self.layer(choice) for choice in chosen}, self.dropped(chosen)
        may_go = set(self.layers.left(range(self.layers.num_layers), gone))
        return tuple(
            choice
            for choice in allowed
            if self.layer(choice) not in changed and (self.scale(choice) or self.layer(choice) in may_go)
        )


def _product(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the coefficients of a product of polynomials."""
    found = [0] * (len(one) + len(other) - 1)
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            found[i + j] += left * right
    return found
