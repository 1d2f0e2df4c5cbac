"""Prove a cut graph: against its source run in pieces, or weight by weight.

The pieces are what lies between the layers that went: what flows out of one is fed to the next. Nothing
is reconnected in them, so that they tell a wrong reconnection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError, ParityError, first_line, onnxruntime_errors
from ..sessions import session_on_cpu
from .cutting import find_layers
from .files import read_graph, write_graph

if TYPE_CHECKING:
    import onnx_ir as ir

# Sizes of made-up inputs, by what an axis is called; those that are not known get the last.
BATCH, TOKENS, CACHED = 2, 5, 3
# The file of a piece, and what flows into it.
PIECE, STREAM = ".piece.onnx", "tapioca_export.stream"


def prove_outputs(
    source: Path, file: Path, drop: Sequence[int], tolerance: float, sizes: Mapping[str, int] | None = None
) -> float:
    """Return the largest difference of a cut graph's outputs from those of its source in pieces.

    Both get the same made-up inputs: token ids, masks of ones, a cache of random numbers.

    Args:
        source: The whole graph.
        file: The cut one; a piece at a time is written beside it.
        drop: The layers that went.
        tolerance: The largest difference that is allowed.
        sizes: Of axes that have a name in the graph and are of one size only.

    Raises:
        ExportError: If ONNX Runtime does not run one of them.
        ParityError: If an output differs by more than the tolerance.
    """
    whole = read_graph(source)
    inputs = made_up_inputs(whole.graph, sizes or {})
    layers = find_layers(whole.graph)
    gone = {value for layer in drop for value in (*layers.inputs[layer], *layers.outputs[layer])}
    names = [str(value.name) for value in whole.graph.inputs if value not in gone]
    outputs = [str(value.name) for value in whole.graph.outputs if value not in gone]
    piece, without = file.with_name(PIECE), sorted(drop)
    try:
        wanted = _run_in_pieces(source, piece, without, inputs)
    except ExportError:
        # Some attention, such as onnxruntime-genai's, reads several tokens behind a cache of one text only.
        inputs = made_up_inputs(whole.graph, sizes or {}, batch=1)
        wanted = _run_in_pieces(source, piece, without, inputs)
    # The order stays, so that an input of the cut graph is told by its place, whatever its number.
    cut = read_graph(file).graph
    renamed = {str(new.name): inputs[old] for new, old in zip(cut.inputs, names, strict=True)}
    got = _run(file, renamed)
    largest = 0.0
    for name, have in zip(outputs, got.values(), strict=True):
        difference = _difference(wanted[name], have)
        if not difference <= tolerance:
            raise ParityError(
                f"{file.name} without layers {', '.join(map(str, drop))}: {name} differs by {difference:.3g} "
                f"from what the layers that are left compute (tolerance {tolerance:.3g}).",
                "Prune the checkpoint and export it again.",
            )
        largest = max(largest, difference)
    return largest


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))


def _run_in_pieces(
    source: Path, piece: Path, drop: Sequence[int], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the outputs of the layers that are left, each piece between dropped layers run by itself."""
    behind = [layer for layer in drop if layer + 1 not in drop]
    before = [layer for layer in drop if layer - 1 not in drop]
    found: dict[str, np.ndarray] = {}
    stream: np.ndarray | None = None
    for begin, end in zip([None, *behind], [*before, None], strict=True):
        model = read_graph(source)
        last = _keep_piece(model, begin, end, stream)
        write_graph(model, piece, source.parent)
        try:
            made = _run(piece, {**inputs, **({} if stream is None else {STREAM: stream})})
        finally:
            piece.unlink()
        stream = None if last is None else made.pop(last)
        found.update(made)
    return found


def _keep_piece(model: ir.Model, begin: int | None, end: int | None, stream: np.ndarray | None) -> str | None:
    """Keep of a graph what lies behind the layer `begin` and before the layer `end`.

    Returns:
        The name of the output in which the stream goes on, if it does.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph, layers = model.graph, find_layers(model.graph)
    owned = {value: layer for layer, values in enumerate(layers.outputs) for value in values}
    span = range(0 if begin is None else begin + 1, len(layers) if end is None else end)
    # What no layer owns is made by the last piece.
    kept = [value for value in graph.outputs if (owned[value] in span if value in owned else end is None)]
    ends = [] if end is None else [layers.blocks[end].start]
    graph.outputs[:] = [*kept, *ends]
    if begin is not None:
        assert stream is not None
        behind = layers.blocks[begin].end
        incoming = ir.Value(name=STREAM, type=ir.TensorType(ir.DataType.from_numpy(stream.dtype)))
        graph.inputs.append(incoming)
        shown = behind if behind in kept else None
        if shown is not None:
            same = ir.node("Identity", [incoming])
            same.outputs[0].name, same.outputs[0].type = behind.name, incoming.type
            graph.append(same)
            graph.outputs[kept.index(shown)] = same.outputs[0]
        behind.replace_all_uses_with(incoming)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    return str(ends[0].name) if ends else None


def _run(file: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph in ONNX Runtime on the CPU; return its outputs by name, in order."""
    try:
        session = session_on_cpu(file)
        names = [value.name for value in session.get_outputs()]
        feed = {value.name: inputs[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(names, feed), strict=True))
    except onnxruntime_errors() as error:
        raise ExportError(
            f"ONNX Runtime does not run the graph on made-up inputs: {first_line(error)}",
            "Use --proof weights, which runs nothing, if it runs on yours.",
        ) from error


def made_up_inputs(graph: ir.Graph, sizes: Mapping[str, int], batch: int = BATCH) -> dict[str, np.ndarray]:
    """Return inputs that a transformer's graph runs on: zeros and ones, ones as masks, random numbers.

    Axes of one name get one size, and the sum of two names the sum of theirs; `batch` texts.
    """
    random = np.random.default_rng(0)
    found = {}
    for value in graph.inputs:
        shape = [sizes.get(str(axis)) or _size(axis, batch) for axis in value.shape or ()]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if "mask" in str(value.name):
            made = np.ones(shape)
        elif np.issubdtype(dtype, np.integer):
            made = np.broadcast_to(np.arange(shape[-1]) % 2 if shape else np.array(1), shape)
        elif dtype == np.bool_:
            made = np.ones(shape)
        else:
            made = random.standard_normal(shape)
        found[str(value.name)] = np.ascontiguousarray(made.astype(dtype))
    return found


def _size(axis: Any, batch: int) -> int:
    name = str(axis)
    if "+" in name:
        return sum(_size(part.strip(), batch) for part in name.split("+"))
    if name.isdigit():
        return int(name)
    if "batch" in name:
        return batch
    if "total" in name:
        return TOKENS + CACHED
    return CACHED if "past" in name else TOKENS
