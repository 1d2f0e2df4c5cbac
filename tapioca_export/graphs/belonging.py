"""What belongs to each layer of a graph, and whether a cut graph has what belongs to the layers that stay.

Told by names, by what reads a weight and by what depends on a cached value: nothing is run. Outputs say
nothing of the numbers that caches have: a proof feeds them by place, and who serves a graph by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ParityError
from .cutting import Layers
from .flow import Flow

if TYPE_CHECKING:
    import onnx_ir as ir

_NUMBER = re.compile(r"\d+")
_HINT = "Prune the checkpoint and export it again."


@dataclass(frozen=True)
class Belongings:
    """What belongs to each layer of a graph, by name.

    Attributes:
        weights: Of each layer, those that nothing else reads.
        inputs: Of each layer, what it has cached.
        outputs: Of each layer, what it will have cached.
        own: Of each of these outputs, the inputs of its own layer that it depends on.
    """

    weights: tuple[frozenset[str], ...]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]
    own: dict[str, frozenset[str]]


def belongings(graph: ir.Graph, found: Layers) -> Belongings:
    """Return what belongs to each layer of a graph that is still whole."""
    owners = {value: layer for layer, values in enumerate(found.inside) for value in values}
    weights: list[set[str]] = [set() for _ in found.blocks]
    flow = Flow(graph)
    used = {value for output in graph.outputs for value in flow.before(output)}
    for name, value in graph.initializers.items():
        made = [output for node, _ in value.uses() for output in node.outputs]
        layers = {owners.get(output, -1) for output in made if output in used}
        if len(layers) == 1 and layers != {-1}:
            weights[layers.pop()].add(name)
    own = {
        str(output.name): frozenset(str(v.name) for v in flow.before(output) & set(inputs))
        for inputs, outputs in zip(found.inputs, found.outputs, strict=True)
        for output in outputs
    }
    inputs, outputs = (
        tuple(tuple(str(value.name) for value in values) for values in layers)
        for layers in (found.inputs, found.outputs)
    )
    return Belongings(tuple(map(frozenset, weights)), inputs, outputs, own)


def prove_belongings(whole: Belongings, graph: ir.Graph, drop: Collection[int]) -> None:
    """Refuse a cut graph that has not what belongs to the layers that stay, or has what belonged to others.

    Args:
        whole: What belonged to the layers of the graph that it was cut from.
        graph: The cut graph, as it was written.
        drop: The layers that went.

    Raises:
        ParityError: Naming a weight or a cached value.
    """
    for layer, names in enumerate(whole.weights):
        have = names & graph.initializers.keys()
        if layer in drop and have:
            raise ParityError(f"layer {layer} was to go, and its weight {min(have)} is still there.", _HINT)
        if layer not in drop and have != names:
            raise ParityError(f"layer {layer} was to stay, and lacks its weight {min(names - have)}.", _HINT)
    kept = [layer for layer in range(len(whole.weights)) if layer not in drop]
    inputs = _renumbered(whole.inputs, kept)
    outputs = _renumbered(whole.outputs, kept)
    flow, given = Flow(graph), {str(value.name): value for value in graph.inputs}
    made = {str(value.name): value for value in graph.outputs}
    if missing := sorted((set(inputs.values()) - given.keys()) | (set(outputs.values()) - made.keys())):
        raise ParityError(f"the graph has no {missing[0]}, though the layer with that number stays.", _HINT)
    cached = set(inputs.values())
    below: set[str] = set()
    for layer in kept:
        mine = {inputs[name] for name in whole.inputs[layer]}
        for name in whole.outputs[layer]:
            reads = {str(value.name) for value in flow.before(made[outputs[name]])} & cached
            expected = {inputs[old] for old in whole.own[name]}
            if reads & mine != expected or not reads <= mine | below:
                raise ParityError(
                    f"{outputs[name]} is not made of {', '.join(sorted(expected))}: caches have wrong "
                    "numbers.",
                    _HINT,
                )
        below |= mine


def _renumbered(layers: Sequence[Sequence[str]], kept: Sequence[int]) -> dict[str, str]:
    """Return the names that cached values of layers get when these take the numbers of the first ones."""
    by_template: dict[str, list[str]] = defaultdict(list)
    for names in layers:
        for name in names:
            by_template[_NUMBER.sub("#", name)].append(name)
    ordered = {template: sorted(names, key=_numbers) for template, names in by_template.items()}
    left: dict[str, list[str]] = defaultdict(list)
    for layer in kept:
        for name in layers[layer]:
            left[_NUMBER.sub("#", name)].append(name)
    return {
        old: new
        for template, names in left.items()
        for old, new in zip(names, ordered[template], strict=False)
    }


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBER.findall(name)))
