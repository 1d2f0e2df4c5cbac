"""The proof of an exported file, made again with the libraries that are here."""

from __future__ import annotations

from pathlib import Path

from ..artifacts import Export
from ..graphs import is_graph, weight_paths
from ..models import LoadedModel, cast
from ..precision import FULL
from ..samples import Samples
from .adopting import REFERENCE, SKIPPED, without
from .formats import FORMATS, Written
from .parity import ALLOWANCE, Reference, prove_generation, prove_outputs
from .quieting import quiet


def prove_again(model: LoadedModel, samples: Samples, folder: Path, export: Export) -> float:
    """Compare an exported file with the model that it was exported from, as when it was written.

    Args:
        model: The model, in float32 and evaluation mode, on the CPU; of a graph that was given, the whole.
        samples: The rows that it was compared on.
        folder: Holds the files.
        export: What was recorded; its tolerance holds, or where it has none, twice its difference.

    Returns:
        The largest difference found.

    Raises:
        ExportError: If the file cannot be opened.
        ParityError: If file and model differ by more than the tolerance.
    """
    graphs = [folder / name for name in export.files if is_graph(name)]
    weights = {file.name for graph in graphs for file in weight_paths(graph)}
    files = tuple(name for name in export.files if name not in weights)
    written = Written(export.exporter, export.opset, export.inputs, export.outputs, files, export.cache)
    with quiet():
        run = FORMATS[export.format].open(folder, written)
    if export.reference in (REFERENCE, SKIPPED):  # the model is the whole one
        with without(model, export.drop, export.dtype, export.tolerance) as wanted:
            return float(prove_outputs(wanted, samples, run, written)["max_abs_difference"])
    same = model if export.dtype == FULL else cast(model, export.dtype)
    tolerance = export.tolerance
    if tolerance is None:  # the file was held to none: it must be about as far off as it was
        tolerance = ALLOWANCE * (export.max_abs_difference or 0.0)
    lossy, known = export.treatment.may_lose, export.loss is not None
    reference = Reference(model, same, export.dtype, tolerance, is_lossy=lossy, loss_is_known=known)
    proofs = [prove_outputs(reference, samples, run, written)]
    if written.cache:
        proofs.append(prove_generation(reference, samples, run, written))
    return max(float(proof.get("max_abs_difference", 0.0)) for proof in proofs)
