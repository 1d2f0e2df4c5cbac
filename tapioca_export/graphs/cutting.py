"""Cut blocks out of an ONNX graph: the stream goes past them, and with them goes what only they used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnsupportedModelError
from ..numbering import Numbering
from .blocks import Block, find_blocks
from .flow import SHAPE_READERS, Flow
from .norms import put_together, take_apart

if TYPE_CHECKING:
    import onnx_ir as ir

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Layers:
    """The layers of a graph, from input to output.

    Attributes:
        blocks: Where each begins and ends in the residual stream.
        inside: Of each, what depends on its beginning by another way than through its end.
        inputs: Of each, the graph's inputs that it alone reads: what it has cached.
        outputs: Of each, the graph's outputs that it alone makes: what it will have cached.
    """

    blocks: tuple[Block, ...]
    inside: tuple[frozenset[ir.Value], ...]
    inputs: tuple[tuple[ir.Value, ...], ...]
    outputs: tuple[tuple[ir.Value, ...], ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.blocks)


def find_layers(graph: ir.Graph) -> Layers:
    """Return the layers of a graph, in which fused norms are taken apart for it.

    Raises:
        UnsupportedModelError: If there is no chain of layers, or more than one.
    """
    take_apart(graph)
    flow = Flow(graph)
    blocks = find_blocks(flow)
    inside = tuple(frozenset(flow.after([b.start], stop=[b.end]) - {b.start}) for b in blocks)
    times = Counter(value for values in inside for value in values)
    owners = {value: index for index, values in enumerate(inside) for value in values if times[value] == 1}
    inputs: list[list[ir.Value]] = [[] for _ in blocks]
    for value in graph.inputs:
        is_weight = value.is_initializer()  # files of IR version 3 list them among the inputs
        if not is_weight and blocks[0].start not in flow.after([value]) and _NUMBER.search(value.name or ""):
            reached = {owners.get(found, -1) for found in flow.entered(value, times)}
            if len(reached) == 1 and reached != {-1}:
                inputs[reached.pop()].append(value)
    outputs = [
        [value for value in graph.outputs if owners.get(value) == index] for index in range(len(blocks))
    ]
    return Layers(blocks, inside, tuple(map(tuple, inputs)), tuple(map(tuple, outputs)))


def cut(model: ir.Model, found: Layers, layers: Sequence[int]) -> None:
    """Cut layers out of a graph, in place; its weights are not touched.

    Args:
        model: The model.
        found: Its layers, as `find_layers` gives them.
        layers: Indices of those to cut out, counted from the input.

    Raises:
        ConfigError: If a layer does not exist or is named twice, or none would be left.
        UnsupportedModelError: If something else needs what they compute.
    """
    graph = model.graph
    drop = sorted(Numbering.of({}, len(found)).checked(layers))
    _refuse_outputs(graph, found, drop)
    for layer in drop:
        for value in found.outputs[layer]:
            graph.outputs.remove(value)
    _reconnect(graph, found, drop)
    _read_shapes_elsewhere(found, drop)
    _remove_unused(model, found, drop)
    put_together(graph)
    _renumber([values for layer, values in enumerate(found.inputs) if layer not in drop], found.inputs)
    _renumber([values for layer, values in enumerate(found.outputs) if layer not in drop], found.outputs)


def shown_by(graph: ir.Graph, found: Layers, layer: int) -> ir.Value | None:
    """Return an output that shows what a layer computes and is not its own, such as a hidden state."""
    ends = {found.blocks[layer].end} if layer < len(found) - 1 else set()
    shown = (ends | found.inside[layer]).difference(found.outputs[layer])
    return next((value for value in graph.outputs if value in shown), None)


def _refuse_outputs(graph: ir.Graph, found: Layers, drop: Sequence[int]) -> None:
    """Refuse to drop what an output shows that is not the layer's own."""
    for layer in drop:
        if (value := shown_by(graph, found, layer)) is not None:
            raise UnsupportedModelError(
                f"The output {value.name} shows what layer {layer} computes, which is gone with it.",
                "Export the model without outputs of single layers.",
            )


def _reconnect(graph: ir.Graph, found: Layers, drop: Sequence[int]) -> None:
    """Let what read the end of a layer read what came into it."""
    import onnx_ir as ir

    instead: dict[ir.Value, ir.Value] = {}
    for layer in drop:
        block = found.blocks[layer]
        start = instead[block.end] = instead.get(block.start, block.start)
        if block.end.is_graph_output():
            if start.is_graph_output() or start.is_graph_input():
                same = ir.node("Identity", [start])
                graph.append(same)
                start = same.outputs[0]
            start.name, start.type, start.shape = block.end.name, block.end.type, block.end.shape
        block.end.replace_all_uses_with(start, replace_graph_outputs=True)


def _read_shapes_elsewhere(found: Layers, drop: Sequence[int]) -> None:
    """Read of another layer's cache how long all are, where it was read of a dropped one's."""
    for layer in drop:
        for place, value in enumerate(found.inputs[layer]):
            like = [v[place] for i, v in enumerate(found.inputs) if i not in drop and place < len(v)]
            for node, index in list(value.uses()):
                if node.op_type in SHAPE_READERS and like:
                    node.replace_input_with(index, like[0])


def _remove_unused(model: ir.Model, found: Layers, drop: Sequence[int]) -> None:
    """Remove what nothing reads any more: nodes, weights, and what the dropped layers had cached.

    Raises:
        UnsupportedModelError: If something that is kept reads what a dropped layer computes.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    RemoveUnusedNodesPass()(model)
    left = set(graph)
    for layer in drop:
        nodes = {node for value in found.inside[layer] if (node := value.producer()) in left}
        held = next((value for value in found.inputs[layer] if value.uses()), None)
        if nodes or held is not None:
            name = held.name if held is not None else min(str(node.name) for node in nodes)
            raise UnsupportedModelError(
                f"Layer {layer} cannot go: what is behind it reads {name}, which is inside it.",
                "Drop others, or prune the checkpoint and export it again.",
            )
        for value in found.inputs[layer]:
            graph.inputs.remove(value)


def _renumber(kept: Sequence[Sequence[ir.Value]], layers: Sequence[Sequence[ir.Value]]) -> None:
    """Give the cache of the layers that are kept the numbers of the first of all, in order."""
    names = [[str(value.name) for value in values] for values in layers]
    numbers: dict[tuple[str, int], set[int]] = {}
    for name in (name for layer in names for name in layer):
        for place, number in enumerate(_NUMBER.findall(name)):
            numbers.setdefault((_template(name), place), set()).add(int(number))
    ranks: Counter[str] = Counter()
    for values in kept:
        for value in values:
            template = _template(str(value.name))
            places = {place: found for (key, place), found in numbers.items() if key == template}
            place = max(places, key=lambda place: (len(places[place]), -place))
            number = sorted(places[place])[ranks[template]]
            ranks[template] += 1
            spans = list(_NUMBER.finditer(str(value.name)))[place]
            value.name = f"{value.name[: spans.start()]}{number}{value.name[spans.end() :]}"


def _template(name: str) -> str:
    return _NUMBER.sub("#", name)
