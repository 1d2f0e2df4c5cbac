"""An ONNX file that no exporter wrote here: proven on the user's rows, and described as an export is.

A file that came from elsewhere is held against itself, run layer by layer, and nothing is said of the
checkpoint that it was made of; a file without layers, against the whole model with these layers skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import Export, LayerName, write
from ..errors import ParityError, UnsupportedModelError
from ..generation import PAST, CacheShapes
from ..graphs import genai_config, named_sizes, read_graph, weight_paths
from ..models import GraphNetwork, LoadedModel, cast, skipping
from ..precision import DTYPES, FULL
from ..samples import Samples
from ..treatments import Treatment
from .formats import Written, recorded
from .onnx import open_onnx
from .parity import Reference, prove_outputs

if TYPE_CHECKING:
    import onnx_ir as ir

REFERENCE = "the given file run layer by layer"
SKIPPED = "PyTorch with the dropped layers skipped"
NOTE = "Made of an ONNX file; no checkpoint was there to hold it against."


def describe(
    model: LoadedModel,
    samples: Samples,
    file: Path,
    drop: tuple[LayerName, ...] = (),
    tolerance: float | None = None,
    *,
    reference: str = REFERENCE,
    note: str = NOTE,
    like: Export | None = None,
) -> Export:
    """Prove a file equal to a whole model without some layers, and write `export.json` beside it.

    Args:
        model: The whole file, or the checkpoint that it was exported from.
        samples: The user's rows to compare on.
        file: The file that is described.
        drop: The layers that it lacks.
        tolerance: The largest difference of outputs that is allowed (default: that of an export).
        reference: What the model is, for the record.
        note: What else is to be known.
        like: An earlier record, whose optimised and quantised operators are those of the file.

    Raises:
        ExportError: If ONNX Runtime refuses the file.
        UnsupportedModelError: If it does not say what it caches.
        ParityError: If it computes something else; it is then `<name>.invalid`.
    """
    graph = read_graph(file)
    inputs, outputs = (
        tuple(str(v.name) for v in values) for values in (graph.graph.inputs, graph.graph.outputs)
    )
    cache = _cache_of(graph, file.parent)
    made = " ".join(filter(None, (graph.producer_name, graph.producer_version))) or "not named in the file"
    opset = graph.opset_imports.get("")
    written = Written(made, opset, inputs, outputs, (file.name,), cache)
    run = open_onnx(file.parent, written)
    answer = next(v for v in graph.graph.outputs if v.name == model.task.outputs[0])
    precision = "float32" if answer.dtype is None else answer.dtype.numpy().name
    dtype = next((name for name, known in DTYPES.items() if known.name == precision), FULL)
    try:
        with without(model, drop, dtype, tolerance) as wanted:
            proof = prove_outputs(wanted, samples, run, written)
    except ParityError as error:
        file.rename(file.with_name(f"{file.name}.invalid"))
        hint = "A file in half precision, or quantised, rounds otherwise in pieces: give --atol."
        is_given = isinstance(model.network, GraphNetwork)
        raise ParityError(f"{file.name}: {error.message}", hint if is_given else error.hint) from error
    export = recorded(
        model,
        written,
        [file, *weight_paths(file)],
        format="onnx",
        dtype=dtype,
        num_layers=model.num_layers,
        drop=drop,
        reference=reference,
        treatment=like.treatment if like else Treatment(),
        fusions=like.fusions if like else {},
        note=note,
        **proof,
    )
    write(file.with_name("export.json"), export)
    return export


def _cache_of(graph: ir.Model, folder: Path) -> CacheShapes:
    """Return the inputs that hold keys and values, each with its number of heads and the size of one.

    Raises:
        UnsupportedModelError: If a graph does not say how large they are.
    """
    named, found = named_sizes(genai_config(folder)), {}
    for value in graph.graph.inputs:
        if not str(value.name).startswith(PAST):
            continue
        sizes = [axis if isinstance(axis, int) else named.get(str(axis)) for axis in value.shape or ()]
        if len(sizes) != 4 or sizes[1] is None or sizes[3] is None:
            raise UnsupportedModelError(
                f"The input {value.name} does not say how many heads are cached, and how large they are.",
                "Export the model again, with these sizes fixed.",
            )
        found[str(value.name)] = (sizes[1], sizes[3])
    return found


@contextmanager
def without(
    model: LoadedModel, drop: Sequence[LayerName], dtype: str, tolerance: float | None
) -> Iterator[Reference]:
    """Give what a file without layers is held against: the whole model, these layers skipped.

    A given graph in half precision is held against itself, by the tolerance of float32.

    Args:
        model: The whole model.
        drop: The layers.
        dtype: The file's precision.
        tolerance: The user's, if any.
    """
    layers = model.units.indices(drop)
    if dtype == FULL or isinstance(model.network, GraphNetwork):
        with skipping(model, layers):
            yield Reference(model, model, FULL, tolerance)
    else:
        same = cast(model, dtype)  # of the whole network, as it is built anew
        with skipping(model, layers), skipping(same, layers):
            yield Reference(model, same, dtype, tolerance)
