"""How layers are named, and what may be dropped together.

Inside, a layer is one number: stack after stack, in the order in which a forward runs them. In every
option and file it is that number where a model has one stack, else the stack's name and the number in
it: `encoder:3`. Where the parts of layers go one by one, each is a unit with a number of its own, and
its name has the part behind the layer's: `3.attention`. Else a unit is a layer. Knows nothing about what
a layer is.

Shapes: S stacks, L layers of all of them, L + S boundaries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:  # a search counts in numbers, and its records are named once it is done
    LayerName = Any
else:
    LayerName = int | str


# What is dropped one by one: whole layers, or their parts.
GRANULARITIES = ("block", "sublayer")
PARTS = ("attention", "mlp")


def part_of(name: LayerName) -> str:
    """Return the part of a layer that a name means, "" where it means the layer."""
    return str(name).rpartition(":")[2].partition(".")[2]  # a stack's name may have dots too


def layer_of(name: LayerName) -> LayerName:
    """Return the name of the layer that a name means, or of which it means a part."""
    layer = str(name).removesuffix(f".{part_of(name)}")
    return int(layer) if layer.isdecimal() else layer


def whole_layers(names: Collection[LayerName]) -> tuple[LayerName, ...]:
    """Return the layers that go whole, named themselves or by all their parts."""
    named = Counter(layer_of(name) for name in names if part_of(name))
    wholes = (layer_of(name) for name in names if not part_of(name) or named[layer_of(name)] == len(PARTS))
    return tuple(dict.fromkeys(wholes))


def lone_parts(names: Collection[LayerName]) -> dict[str, tuple[LayerName, ...]]:
    """Return, by part, the layers that stay without it."""
    whole = whole_layers(names)
    alone = [name for name in names if layer_of(name) not in whole]
    found = {part: tuple(layer_of(name) for name in alone if part_of(name) == part) for part in PARTS}
    return {part: layers for part, layers in found.items() if layers}


def num_left(num_layers: int, dropped: Collection[LayerName]) -> float:
    """Return how many of a model's layers are left; one without a part counts for the share that it has."""
    shares = [len(layers) / len(PARTS) for layers in lone_parts(dropped).values()]
    return num_layers - len(whole_layers(dropped)) - sum(shares)


def layers_text(names: Iterable[LayerName]) -> str:
    """Return "layer 4", "layers 4 and 7", or "layer 4 and the attention of layer 7"."""
    named = tuple(names)
    texts = [counted("layer", whole)] if (whole := whole_layers(named)) else []
    for part, layers in lone_parts(named).items():
        texts.append(f"the {'MLP' if part == 'mlp' else part} of {counted('layer', layers)}")
    return " and ".join(texts) if len(texts) < 3 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def counted(noun: str, names: Sequence[LayerName]) -> str:
    """Return "layer 4" or "layers 4, 7 and 8"."""
    named = [str(name) for name in names]
    return f"{noun} {named[0]}" if len(named) == 1 else f"{noun}s {', '.join(named[:-1])} and {named[-1]}"


@dataclass(frozen=True)
class Numbering:
    """The layers of a model, and what of them may be dropped.

    Args:
        depths: Layers of each stack by its name, in the order of execution; the name of an only stack
            is "".
        parts: What a layer is made of, where that may go alone.
    """

    depths: Mapping[str, int]
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, stacks: Mapping[str, int], num_layers: int, parts: tuple[str, ...] = ()) -> Numbering:
        """Return the numbering that an artifact records: `stacks` is empty where there is one."""
        return cls(stacks or {"": num_layers}, parts)

    @property
    def width(self) -> int:
        """Count the units of a layer."""
        return max(1, len(self.parts))

    @property
    def stacks(self) -> dict[str, int]:
        """What artifacts record: the depth of each stack by name, nothing where there is one."""
        return dict(self.depths) if len(self.depths) > 1 else {}

    @property
    def num_layers(self) -> int:
        """Count the layers of all stacks."""
        return sum(self.depths.values())

    @property
    def num_units(self) -> int:
        """Count what may be dropped one by one."""
        return self.num_layers * self.width

    @property
    def noun(self) -> str:
        """What is counted, in words."""
        return "sublayers" if self.parts else "layers"

    @property
    def ranges(self) -> tuple[range, ...]:
        """The numbers of each stack's units."""
        sizes = [depth * self.width for depth in self.depths.values()]
        return tuple(range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True))

    @property
    def boundaries(self) -> tuple[range, ...]:
        """The numbers of each stack's boundaries: one before its first layer, and one behind each."""
        ends = accumulate(depth + 1 for depth in self.depths.values())
        return tuple(
            range(end - depth - 1, end) for end, depth in zip(ends, self.depths.values(), strict=True)
        )

    def stack_of(self, unit: int) -> int:
        """Return which stack a unit is in, counted from 0."""
        return next(stack for stack, part in enumerate(self.ranges) if unit in part)

    def layer_of(self, unit: int) -> int:
        """Return the number of the layer that a unit is, or is a part of."""
        return unit // self.width

    def split(self, units: Collection[int]) -> tuple[tuple[int, ...], dict[int, tuple[str, ...]]]:
        """Return the layers that go whole with these units, and the parts that go from other layers."""
        layers: dict[int, list[str]] = {}
        for unit in sorted(units):
            layers.setdefault(self.layer_of(unit), []).append(
                self.parts[unit % self.width] if self.parts else ""
            )
        whole = tuple(layer for layer, own in layers.items() if len(own) == self.width)
        return whole, {layer: tuple(own) for layer, own in layers.items() if layer not in whole}

    def left_of(self, units: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Return the parts that go from layers that stay, by the numbers that these have in what is left."""
        whole, silent = self.split(units)
        return {layer - sum(other < layer for other in whole): parts for layer, parts in silent.items()}

    def __str__(self) -> str:
        """Say how many layers there are, and where."""
        each = ", ".join(f"{name} {depth}" for name, depth in self.stacks.items())
        return f"{self.num_layers} layers ({each})" if each else f"{self.num_layers} layers"

    # --- names ----------------------------------------------------------------------------

    def name(self, unit: int) -> LayerName:
        """Return a unit's name."""
        stack = self.stack_of(unit)
        layer, part = divmod(unit - self.ranges[stack].start, self.width)
        named = self._named(stack, layer)
        return f"{named}.{self.parts[part]}" if self.parts else named

    def names(self, units: Collection[int]) -> tuple[LayerName, ...]:
        """Return the names of units, in their order."""
        return tuple(map(self.name, units))

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
        """Return a unit's number.

        Raises:
            ConfigError: If there is no such layer, or no such part of one.
        """
        part = part_of(name)
        if part and not self.parts:
            raise ConfigError(f"{name} is a part of a layer, and layers are taken whole here.")
        if part not in (self.parts or ("",)):
            raise ConfigError(
                f"Layer {layer_of(name)} has no part {part!r}.",
                f"Its parts are {' and '.join(f'{layer_of(name)}.{each}' for each in self.parts)}.",
            )
        layer = self._layer(layer_of(name))
        return layer * self.width + (self.parts.index(part) if self.parts else 0)

    def _layer(self, name: LayerName) -> int:
        """Return a layer's number.

        Raises:
            ConfigError: If there is no such layer.
        """
        stack, _, written = str(name).rpartition(":")
        if stack not in self.depths:
            raise ConfigError(f"Layer {name} does not exist: {self._said(stack)}.", self._hint(written))
        depth, start = self.depths[stack], self.ranges[list(self.depths).index(stack)].start // self.width
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
        """Return the numbers of units that are to be dropped, in the order of their names.

        A layer's name means all its parts.

        Raises:
            ConfigError: If one does not exist or is named twice, or if none would be left of a stack.
        """
        spelled: list[LayerName] = []
        for name in names:
            spelled += (
                [name] if part_of(name) or not self.parts else [f"{name}.{part}" for part in self.parts]
            )
        return self.checked([self.index(name) for name in spelled])

    # --- what may go ----------------------------------------------------------------------

    def checked(self, units: Sequence[int]) -> tuple[int, ...]:
        """Return the units, in their order, if they may be dropped together.

        Raises:
            ConfigError: If one does not exist or is named twice, or if none would be left of a stack.
        """
        for unit in units:
            if not 0 <= unit < self.num_units:
                raise ConfigError(
                    f"Layer {self.layer_of(unit)} does not exist: the model has {self.num_layers} layers.",
                    f"Layers are counted from 0 to {self.num_layers - 1}.",
                )
        twice = [unit for unit, times in Counter(units).items() if times > 1]
        if twice:
            raise ConfigError(f"Layer {self.name(twice[0])} is named twice.")
        for name, part in zip(self.depths, self.ranges, strict=True):
            if set(part) <= set(units):
                of = f" of the {name}" if name else ""
                depth = self.depths[name]
                raise ConfigError(f"All {depth} layers{of} would be dropped.", "Keep at least one.")
        return tuple(units)

    def unprotected(self, first: int, last: int) -> tuple[int, ...]:
        """Return the units without those of so many layers at the beginning and the end of each stack."""
        first, last = first * self.width, last * self.width
        return tuple(unit for part in self.ranges for unit in part[first : max(0, len(part) - last)])

    def most(self, allowed: Collection[int]) -> int:
        """Return how many of the units can go together: one stays in every stack."""
        return sum(min(len(set(part) & set(allowed)), len(part) - 1) for part in self.ranges)

    def num_sets(self, allowed: Collection[int]) -> list[int]:
        """Return, by their size, how many sets of the units can go together, from none to the most."""
        counts = [1]
        for part in self.ranges:
            own = len(set(part) & set(allowed))
            counts = _product(counts, [comb(own, size) for size in range(min(own, len(part) - 1) + 1)])
        return counts

    def left(self, allowed: Sequence[int], dropped: Collection[int]) -> tuple[int, ...]:
        """Return the allowed units of which any one can follow those that are dropped."""
        full = [len(set(part) - set(dropped)) == 1 for part in self.ranges]
        return tuple(unit for unit in allowed if unit not in dropped and not full[self.stack_of(unit)])


@dataclass(frozen=True)
class Choices:
    """What a search may do to a model, each choice one number: a unit, times one of a few scales.

    Choices are counted unit by unit, and of each unit scale by scale. Scale 0 drops the unit: where that is
    the only one, a choice is the number of the unit that is dropped. Its name is the unit's if it is
    dropped, else the unit's and the scale: `4:0.5`. Only where units are layers is there a scale but 0.

    Args:
        units: The layers, or their parts.
        scales: What the layer's branches are multiplied by, in ascending order.
    """

    units: Numbering
    scales: tuple[float, ...] = (0.0,)

    def unit(self, choice: int) -> int:
        """Return the number of a choice's unit."""
        return choice // len(self.scales)

    def scale(self, choice: int) -> float:
        """Return the scale of a choice."""
        return self.scales[choice % len(self.scales)]

    def layer_of(self, choice: int) -> int:
        """Return the number of the layer that a choice concerns."""
        return self.units.layer_of(self.unit(choice))

    def of(self, unit: int, scale: float = 0.0) -> int:
        """Return the choice of a unit and one of the scales."""
        return unit * len(self.scales) + self.scales.index(scale)

    def chosen(self, drop: Sequence[LayerName], damp: Mapping[LayerName, float]) -> tuple[int, ...]:
        """Return the choices of units to drop, and of layers to damp to one of the scales.

        Raises:
            ConfigError: If a layer does not exist, or too many would be dropped.
        """
        dropped = map(self.of, self.units.indices(drop))
        return (*dropped, *(self.of(self.units.index(name), scale) for name, scale in damp.items()))

    def dropped(self, choices: Collection[int]) -> list[int]:
        """Return the units that are dropped, in order."""
        return sorted(self.unit(choice) for choice in choices if self.scale(choice) == 0)

    def whole(self, choices: Collection[int]) -> tuple[int, ...]:
        """Return the layers of which nothing is left, in order."""
        return self.units.split(self.dropped(choices))[0]

    @property
    def damps(self) -> bool:
        """Tell whether layers may be damped, not only dropped."""
        return self.scales != (0.0,)

    # --- names ----------------------------------------------------------------------------

    def name(self, choice: int) -> LayerName:
        """Return a choice's name."""
        unit, scale = self.units.name(self.unit(choice)), self.scale(choice)
        return f"{unit}:{scale!r}" if scale else unit

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
            return self.of(self.units.index(layer), scales[written])
        return self.of(self.units.index(name))

    # --- what may be chosen ---------------------------------------------------------------

    def most(self, allowed: Collection[int]) -> int:
        """Return how many of the choices can be made together: of each unit one, and one stays."""
        return len(self.num_sets(allowed)) - 1

    def num_sets(self, allowed: Collection[int]) -> list[int]:
        """Return, by their size, how many sets of the choices can be made, from none to the most."""
        counts = [1]
        for part in self.units.ranges:
            own = [choice for choice in allowed if self.unit(choice) in part]
            each = Counter(map(self.unit, own))
            ways = [1]
            for number in each.values():
                ways = _product(ways, [1, number])
            if len(self.dropped(own)) == len(part):  # of each stack one stays
                ways[-1] -= 1
            counts = _product(counts, ways if ways[-1] else ways[:-1])
        return counts

    def left(self, allowed: Sequence[int], chosen: Collection[int]) -> tuple[int, ...]:
        """Return the allowed choices of which any one can follow those that are made."""
        changed, gone = {self.unit(choice) for choice in chosen}, self.dropped(chosen)
        may_go = set(self.units.left(range(self.units.num_units), gone))
        return tuple(
            choice
            for choice in allowed
            if self.unit(choice) not in changed and (self.scale(choice) or self.unit(choice) in may_go)
        )


def _product(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the coefficients of a product of polynomials."""
    found = [0] * (len(one) + len(other) - 1)
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            found[i + j] += left * right
    return found
