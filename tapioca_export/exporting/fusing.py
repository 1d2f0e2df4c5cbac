"""Which operators of a graph are fused, layer by layer, and which layer stayed behind.

A fusion that does not happen says nothing: the graph is right, and slower. So the operators of each layer
are counted, and layers that were alike before must be alike after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import Fusions
from ..errors import UnsupportedModelError
from ..graphs.blocks import find_blocks
from ..graphs.counting import fused_operators
from ..graphs.flow import Flow
from ..graphs.norms import take_apart, taken_in_by

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Layered:
    """The operators of a graph: all, and those of each layer, in order (none where layers cannot be told)."""

    nodes: tuple[ir.Node, ...]
    layers: tuple[tuple[ir.Node, ...], ...]


def layered(file: Path) -> Layered:
    """Sort the nodes of a graph by layer; its weights are not read.

    A norm that takes in the sum before it counts as a norm and as a sum, but not as one that ends a layer:
    that goes with the norm that begins the next one, and behind the last layer there may be none.
    """
    import onnx_ir

    model = onnx_ir.load(file)
    nodes = tuple(model.graph)
    take_apart(model.graph)
    try:
        flow = Flow(model.graph)
        blocks = find_blocks(flow)
    except UnsupportedModelError:
        return Layered(nodes, ())
    layers = []
    for block in blocks:
        inside = (flow.after([block.start], stop=[block.end]) & flow.before(block.end)) - {block.start}
        end = block.end.producer()
        made = inside if end is not None and taken_in_by(end) else {*inside, block.end}
        layers.append(tuple(node for node in flow.nodes if not made.isdisjoint(node.outputs)))
    return Layered(nodes, tuple(layers))


def fusions(before: Layered, after: Layered) -> Fusions:
    """Count the fused operators of an optimised graph, and name layers that stayed behind others.

    Args:
        before: The graph before it was optimised, whose layers say which ought to be alike.
        after: The optimised one.
    """
    layers = tuple(fused_operators(nodes) for nodes in after.layers)
    unfused: list[str] = []
    if len(before.layers) == len(layers):
        unfused = _behind([_all(nodes) for nodes in before.layers], layers, after.layers)
    return Fusions(fused_operators(after.nodes), layers, tuple(unfused))


def _all(nodes: Sequence[ir.Node]) -> Counter[str]:
    return Counter(node.op_type for node in nodes)


def _behind(
    before: Sequence[Counter[str]], after: Sequence[dict[str, int]], nodes: Sequence[Sequence[ir.Node]]
) -> list[str]:
    """Name the layers that differ from most that were like them before."""
    found = []
    for index, kind in enumerate(before):
        alike = [other for other, its in enumerate(before) if its == kind]
        usual = max(alike, key=lambda other: (sum(after[other] == after[peer] for peer in alike), -other))
        if after[index] == after[usual]:
            continue
        missing = Counter(after[usual]) - Counter(after[index])
        instead = _all(nodes[index]) - _all(nodes[usual])
        stand = [f"{node.op_type} ({node.name})" for node in nodes[index] if node.op_type in instead]
        found.append(
            f"layer {index} of the file lacks {_listed(missing)}, which layer {usual} has; there stand "
            f"{', '.join(stand) or 'no other nodes'}"
        )
    return found


def _listed(operators: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items())) or "nothing"
