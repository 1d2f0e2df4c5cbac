"""An ONNX file that no exporter wrote here: proven on the user's rows, and described as an export is.

A file that came from elsewhere is held against itself, run layer by layer, and nothing is said of the
checkpoint that it was made of; a file without layers, against the whole model with these layers skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..artifacts import Export, LayerName, sha256, write
from ..errors import ParityError
from ..generation import PAST, CacheShapes
from ..graphs import read_graph, weight_paths
from ..models import GraphNetwork, LoadedModel, cast, skipping
from ..precision import DTYPES, FULL
from ..samples import Samples
from ..treatments import Treatment
from .formats import Written
from .onnx import open_onnx
from .parity import Reference, prove_outputs

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
        ParityError: If it computes something else; it is then `<name>.invalid`.
    """
    graph = read_graph(file)
    inputs, outputs = (
        tuple(str(v.name) for v in values) for values in (graph.graph.inputs, graph.graph.outputs)
    )
    cache: CacheShapes = {
        str(value.name): (int(value.shape[1]), int(value.shape[3]))
        for value in graph.graph.inputs
        if str(value.name).startswith(PAST) and len(value.shape or ()) == 4
    }
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
    files = [file, *weight_paths(file)]
    export = Export(
        model=model.source,
        task=model.task.name,
        format="onnx",
        files={path.name: sha256(path) for path in files},
        exporter=made,
        dtype=dtype,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        cache=dict(cache),
        size_bytes=sum(path.stat().st_size for path in files),
        sha256=sha256(file),
        num_layers=model.num_layers,
        drop=drop,
        max_length=model.processor.max_length,
        metric=model.task.metric,
        prompting=model.processor.prompting,
        reference=reference,
        treatment=like.treatment if like else Treatment(),
        fusions=like.fusions if like else {},
        note=note,
        **proof,
    )
    write(file.with_name("export.json"), export)
    return export


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
