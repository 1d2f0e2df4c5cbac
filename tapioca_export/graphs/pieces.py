"""A graph in pieces that ONNX Runtime runs one by one: what is before the layers, each layer, what is behind.

So a layer of a file can be skipped, replayed or scaled like one of a network, and what flows between two
layers is there to be measured. What several layers read that is none of theirs (masks, positions) is
computed once, before the first.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnsupportedModelError
from .cutting import Layers, find_layers, shown_by
from .files import genai_config, named_sizes, read_graph, weight_files
from .flow import SHAPE_READERS, Flow, read_by
from .opening import Arrays, Opener, Piece, refused_as

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Input:
    """What a graph takes: its number type, and its sizes; None where any will do."""

    dtype: np.dtype[Any]
    sizes: tuple[int | None, ...]


class Pieces:
    """The pieces of one file; its weights are read where they are.

    Args:
        file: The ONNX file.
        num_threads: Of each operator.

    Attributes:
        inputs: What the graph takes.
        outputs: What it gives, but for what layers cache or show.
        droppable: The layers that can be cut out.
        size_bytes: Of the file and its weights.

    Raises:
        LoadError: If the file cannot be read.
        UnsupportedModelError: If its layers cannot be told, one needs what another computes beside the
            stream, or ONNX Runtime does not take a piece.
    """

    def __init__(self, file: Path, num_threads: int) -> None:
        model = read_graph(file)
        graph = model.graph
        layers = find_layers(graph)
        sizes = named_sizes(genai_config(file.parent))
        self.inputs = {str(value.name): _input(value, sizes) for value in graph.inputs}
        files = (file, *(file.parent / name for name in weight_files(model)))
        self.size_bytes = sum(path.stat().st_size for path in files)
        self.num_layers = len(layers)
        self.droppable = tuple(n for n in range(len(layers)) if shown_by(graph, layers, n) is None)
        parts = _parts(graph, layers)
        self.outputs = tuple(str(value.name) for value in parts[-1].targets)
        run = Opener(model, file.parent, num_threads)
        beside = dict.fromkeys(value for part in parts for value in part.beside)
        what = f"ONNX Runtime does not run {file} layer by layer"
        with refused_as(UnsupportedModelError, what, "Profile and select on the checkpoint."):
            self._before = run.open([], [parts[0].stream, *beside], graph.inputs)
            self._layers = [run.open([part.stream], part.targets, part.beside) for part in parts[:-1]]
            self._behind = run.open([parts[-1].stream], parts[-1].targets, parts[-1].beside)

    def before(self, inputs: Arrays) -> tuple[np.ndarray, Arrays]:
        """Run what is before the layers.

        Returns:
            The stream (B, T, H), and what the other pieces take beside it.
        """
        stream, *beside = _run(self._before, inputs)
        return stream, dict(zip(self._before.outputs[1:], beside, strict=True))

    def layer(self, index: int, stream: np.ndarray, beside: Arrays) -> np.ndarray:
        """Run one layer; takes and returns the stream, (B, T, H)."""
        return _run(self._layers[index], beside, stream)[0]

    def behind(self, stream: np.ndarray, beside: Arrays) -> dict[str, np.ndarray]:
        """Run what is behind the layers; returns outputs by name."""
        return dict(zip(self.outputs, _run(self._behind, beside, stream), strict=True))


def _run(piece: Piece, beside: Arrays, stream: np.ndarray | None = None) -> list[np.ndarray]:
    """Run a piece.

    Raises:
        UnsupportedModelError: If ONNX Runtime does not compute it.
    """
    hint = "Are its config and tokenizer those of another model?"
    with refused_as(UnsupportedModelError, "The graph does not compute what it is given", hint):
        return piece.run(beside, stream)


# --- dividing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What flows into a piece, what comes out, and what it reads beside the stream."""

    stream: ir.Value
    targets: tuple[ir.Value, ...]
    beside: tuple[ir.Value, ...]


def _parts(graph: ir.Graph, layers: Layers) -> list[_Part]:
    """Return each layer, and last what is behind them; what is before them has the rest.

    Raises:
        UnsupportedModelError: If a piece needs what another computes beside the stream.
    """
    first = layers.blocks[0].start
    _read_shapes_of(first, [block.end for block in layers.blocks])
    own = {value for values in layers.inside for value in values}
    late, fixed = _late_and_fixed(graph, own | {block.end for block in layers.blocks})
    between = {block.end for block in layers.blocks[:-1]}
    outputs = tuple(value for value in graph.outputs if value not in own | between)
    ends = [*((block.start, (block.end,)) for block in layers.blocks), (layers.blocks[-1].end, outputs)]
    parts = []
    for place, (stream, targets) in enumerate(ends):
        inside = layers.inside[place] if place < len(layers) else frozenset[Any]()
        beside = _beside(stream, targets, late, fixed, own - inside)
        parts.append(_Part(stream, targets, beside))
    return parts


def _read_shapes_of(first: ir.Value, others: Iterable[ir.Value]) -> None:
    """Let what reads the shape of the stream read it before the first layer: it is the same everywhere."""
    for value in others:
        for node, index in list(value.uses()):
            if node.op_type in SHAPE_READERS:
                node.replace_input_with(index, first)


def _late_and_fixed(graph: ir.Graph, layered: Collection[ir.Value]) -> tuple[set[ir.Value], set[ir.Value]]:
    """Return what cannot be computed before the layers, and what depends on no input."""
    late, fixed = set(layered), set(graph.initializers.values())
    for node in Flow(graph).nodes:
        read = list(read_by(node))
        if any(value in late for value in read):
            late.update(node.outputs)
        elif all(value in fixed for value in read):
            fixed.update(node.outputs)
    return late, fixed


def _beside(
    stream: ir.Value,
    targets: Sequence[ir.Value],
    late: Collection[ir.Value],
    fixed: Collection[ir.Value],
    foreign: Collection[ir.Value],
) -> tuple[ir.Value, ...]:
    """Return what a piece reads that is computed before the layers."""
    found: dict[ir.Value, None] = {}
    seen, waiting = {stream}, list(targets)
    while waiting:
        value = waiting.pop()
        if value in seen or value in fixed:
            continue
        seen.add(value)
        if value in foreign:
            raise UnsupportedModelError(
                f"A layer's {value.name} is read by another: such a graph is not run layer by layer.",
                "Profile and select on the checkpoint.",
            )
        node = value.producer()
        if value in late and node is not None:
            waiting += read_by(node)
        else:
            found[value] = None
    return tuple(found)


def _input(value: ir.Value, named: Mapping[str, int]) -> Input:
    sizes = tuple(axis if isinstance(axis, int) else named.get(str(axis)) for axis in value.shape or ())
    return Input(np.dtype(np.float32) if value.dtype is None else value.dtype.numpy(), sizes)
