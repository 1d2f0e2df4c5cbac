"""Prove a cut graph: against its source run in pieces, or weight by weight.

The pieces are what lies between the layers that went: what flows out of one is fed to the next. Nothing
is reconnected in them, so that they tell a wrong reconnection. Both are run as they are written: what ONNX
Runtime fuses of a quantised graph it rounds otherwise, and it fuses other things in a piece than in a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError, ParityError
from ..precision import TOLERANCE
from ..sessions import session_on_cpu
from .cutting import Layers, find_layers
from .files import read_graph
from .opening import Arrays, Opener, refused_as

if TYPE_CHECKING:
    import onnx_ir as ir

# In pieces, what one operator rounds once may be rounded twice: the sum that a fused norm takes in and hands
# on. Right cuts are off by less than ten units, wrong ones by about a hundred and more (as tests hold).
UNITS = 32
UNIT = {"FLOAT16": 2.0**-10, "BFLOAT16": 2.0**-7}
# Sizes of made-up inputs, by what an axis is called; those that are not known get the last.
BATCH, TOKENS, CACHED = 2, 5, 3


def prove_outputs(
    source: Path,
    file: Path,
    drop: Sequence[int],
    tolerance: float | None = None,
    sizes: Mapping[str, int] | None = None,
    whole: ir.Model | None = None,
) -> tuple[float, float]:
    """Return how far a cut graph's outputs are from those of its source in pieces, and how far they may be.

    Both get the same made-up inputs: token ids, masks of ones, a cache of random numbers.

    Args:
        source: The whole graph.
        file: The cut one.
        drop: The layers that went.
        tolerance: The largest difference that is allowed (default: 1e-4; in half precision no less than
            `UNITS` units in the last place of an output's largest number).
        sizes: Of axes that have a name in the graph and are of one size only.
        whole: The whole graph, where both files have been read; neither is then parsed again.

    Raises:
        ExportError: If ONNX Runtime does not run one of them.
        ParityError: If an output differs by more than the tolerance.
    """
    model = read_graph(source) if whole is None else whole
    graph = model.graph
    inputs = made_up_inputs(graph, sizes or {})
    layers = find_layers(graph)
    gone = {value for layer in drop for value in (*layers.inputs[layer], *layers.outputs[layer])}
    kept = (value for value in graph.inputs if value not in gone)
    names = [str(value.name) for value in kept if not value.is_initializer()]
    outputs = [str(value.name) for value in graph.outputs if value not in gone]
    opener = Opener(model, source.parent, is_literal=True)
    try:
        wanted = _run_in_pieces(opener, layers, sorted(drop), inputs)
    except ExportError:
        # Some attention, such as onnxruntime-genai's, reads several tokens behind a cache of one text only.
        inputs = made_up_inputs(graph, sizes or {}, batch=1)
        wanted = _run_in_pieces(opener, layers, sorted(drop), inputs)
    # The order stays, so that an input of the cut graph is told by its place, whatever its number.
    got = _run(file, [inputs[name] for name in names], is_checked=whole is not None)
    unit, found = _unit(graph), []
    for name, have in zip(outputs, got, strict=True):
        rounding = UNITS * unit * float(np.abs(wanted[name]).max(initial=0.0))
        limit = max(TOLERANCE, rounding) if tolerance is None else tolerance
        difference = _difference(wanted[name], have)
        if not difference <= limit:
            raise ParityError(
                f"{file.name} without layers {', '.join(map(str, drop))}: {name} differs by {difference:.3g} "
                f"from what the layers that are left compute (tolerance {limit:.3g}).",
                "Prune the checkpoint and export it again.",
            )
        found.append((difference, limit))
    return max(found)


def _unit(graph: ir.Graph) -> float:
    """Return a unit in the last place of 1 in the coarsest precision of a graph's weights, 0 for float32."""
    types = {value.dtype.name for value in graph.initializers.values() if value.dtype is not None}
    return max((UNIT.get(name, 0.0) for name in types), default=0.0)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))


def _run_in_pieces(
    whole: Opener, layers: Layers, drop: Sequence[int], inputs: Arrays
) -> dict[str, np.ndarray]:
    """Return the outputs of the layers that are left, each piece between dropped layers run by itself."""
    graph = whole.model.graph
    owned = {value: layer for layer, values in enumerate(layers.outputs) for value in values}
    owned |= {block.end: layer for layer, block in enumerate(layers.blocks[:-1])}  # a hidden state
    behind = [layer for layer in drop if layer + 1 not in drop]
    before = [layer for layer in drop if layer - 1 not in drop]
    found: dict[str, np.ndarray] = {}
    ends: list[ir.Value] = []
    stream: np.ndarray | None = None
    for begin, end in zip([None, *behind], [*before, None], strict=True):
        span = range(0 if begin is None else begin + 1, len(layers) if end is None else end)
        # What no layer owns is made by the last piece.
        kept = [value for value in graph.outputs if (owned[value] in span if value in owned else end is None)]
        streams = [] if begin is None else [layers.blocks[begin].end]
        for value in streams:
            whole.take(value, ends[0])  # what flowed into the layers that went
        ends = [] if end is None else [layers.blocks[end].start]
        with _running():
            made = whole.open(streams, [*ends, *kept], graph.inputs).run(inputs, stream)
        stream = made.pop(0) if ends else None
        found.update(zip((str(value.name) for value in kept), made, strict=True))
    return found


def _run(file: Path, inputs: Sequence[np.ndarray], *, is_checked: bool) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime on the CPU; inputs and outputs are in its order."""
    with _running():
        session = session_on_cpu(file, is_checked=is_checked, is_literal=True)
    feed = dict(zip((value.name for value in session.get_inputs()), inputs, strict=True))
    with _running():
        found: list[np.ndarray] = session.run(None, feed)
    return found


def _running() -> AbstractContextManager[None]:
    what = "ONNX Runtime does not run the graph on made-up inputs"
    return refused_as(ExportError, what, "Use --proof weights, which runs nothing, if it runs on yours.")


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
