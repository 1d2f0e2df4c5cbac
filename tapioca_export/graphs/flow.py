"""How values flow through an ONNX graph, and through which of them everything has to pass.

A shape carries no values: what reads only the shape of a tensor does not depend on what is in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from ..errors import UnsupportedModelError, first_line

if TYPE_CHECKING:
    import onnx_ir as ir

# They read how a tensor is shaped, not what is in it.
SHAPE_READERS = frozenset({"Shape", "Size"})


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads: its inputs, and what the graphs inside it read of those around."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        inside = set(_graphs_of(attribute))
        for graph in inside:
            read = (*(value for inner in graph for value in inner.inputs), *graph.outputs)
            yield from (value for value in read if value is not None and value.graph not in inside)


def _graphs_of(attribute: ir.Attr) -> Iterator[ir.Graph]:
    """Yield the graphs that an attribute holds, and those inside them."""
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.GRAPH:
        graphs: Sequence[ir.Graph] = (attribute.as_graph(),)
    else:
        graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
    for graph in graphs:
        yield graph
        for node in graph:
            for inner in node.attributes.values():
                yield from _graphs_of(inner)


def values_read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node's outputs depend on; nothing of a tensor whose shape alone is read."""
    return iter(()) if node.op_type in SHAPE_READERS else read_by(node)


def _most(ends: Sequence[object], marks: Sequence[int]) -> int:
    """Return the place of the end that most marks name."""
    return max(range(len(ends)), key=lambda place: sum(mark >> place & 1 for mark in marks))


class Flow:
    """The flow of values through a graph, its nodes in order.

    Raises:
        UnsupportedModelError: If the graph has a cycle.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        try:
            graph.sort()
        except ValueError as error:
            raise UnsupportedModelError(
                f"The graph cannot be put into an order: {first_line(error)}", "Export the model again."
            ) from error
        self.nodes: tuple[ir.Node, ...] = tuple(graph)
        # What each depends on, once each; looked up again and again.
        self.reads = {node: tuple(dict.fromkeys(values_read_by(node))) for node in self.nodes}
        self.readers: dict[ir.Value, list[ir.Node]] = {}
        for node, values in self.reads.items():
            for value in values:
                self.readers.setdefault(value, []).append(node)

    def after(self, sources: Iterable[ir.Value], stop: Iterable[ir.Value] = ()) -> set[ir.Value]:
        """Return what depends on sources, themselves included, but not what does so through `stop` alone."""
        found, ends = set(), set(stop)
        waiting = [value for value in sources if value not in ends]
        while waiting:
            value = waiting.pop()
            if value in found or value in ends:
                continue
            found.add(value)
            waiting += [output for node in self.readers.get(value, ()) for output in node.outputs]
        return found

    def entered(self, source: ir.Value, inside: Collection[ir.Value]) -> set[ir.Value]:
        """Return the values inside something at which what depends on a source first arrives."""
        outside = self.after([source], stop=inside)
        nodes = (node for value in outside for node in self.readers.get(value, ()))
        return {output for node in nodes for output in node.outputs if output in inside}

    def before(self, target: ir.Value) -> set[ir.Value]:
        """Return all that a value depends on, itself included."""
        found: set[ir.Value] = set()
        waiting = [target]
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            waiting += self.reads.get(value.producer(), ())
        return found

    def ways(self) -> Iterator[tuple[ir.Value, ...]]:
        """Yield all that lies between an input and an output, from the one to the other, in order.

        Each pair is the one with the most values between them that lie between no earlier pair.
        """
        values = [*self.graph.inputs, *(output for node in self.nodes for output in node.outputs)]
        sources = self._marks(self.nodes, self.graph.inputs)
        targets = self._marks(self.nodes[::-1], self.graph.outputs, backward=True)
        values = unseen = [value for value in values if sources.get(value) and targets.get(value)]
        while len(unseen) > 1:
            source = _most(self.graph.inputs, [sources[value] for value in unseen])
            reached = [value for value in unseen if sources[value] >> source & 1]
            target = _most(self.graph.outputs, [targets[value] for value in reached])
            between = [value for value in values if sources[value] >> source & targets[value] >> target & 1]
            yield tuple(between)
            seen = set(between)
            unseen = [value for value in unseen if value not in seen]

    def _marks(
        self, nodes: Sequence[ir.Node], ends: Sequence[ir.Value], *, backward: bool = False
    ) -> dict[ir.Value, int]:
        """Return for each value which of the ends it depends on, or which depend on it: a bit for each."""
        marks = {value: 1 << place for place, value in enumerate(ends)}
        for node in nodes:
            read = self.reads[node]
            known, told = (node.outputs, read) if backward else (read, node.outputs)
            mark = reduce(or_, (marks.get(value, 0) for value in known), 0)
            if mark:
                marks.update({value: marks.get(value, 0) | mark for value in told})
        return marks

    def beginning(self, start: ir.Value, between: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        """Return, of values in order, `start` and what depends on it."""
        found = {start}
        for value in between:
            if not found.isdisjoint(self.reads.get(value.producer(), ())):
                found.add(value)
        return tuple(value for value in between if value in found)

    def narrows(self, between: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
        """Return the values through which all passes that flows from the first to the last, in order.

        Of all values between the two, in any order, these are those that no edge jumps over.
        """
        place = {value: index for index, value in enumerate(between)}
        narrow, furthest = [], 0
        for index, value in enumerate(between):
            if furthest <= index:
                narrow.append(value)
            for node in self.readers.get(value, ()):
                for output in node.outputs:
                    furthest = max(furthest, place.get(output, 0))
        return tuple(narrow)
