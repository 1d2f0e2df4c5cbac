"""The proof of an exported file, made again with the libraries that are here."""

from __future__ import annotations

from pathlib import Path

from ..artifacts import Export
from ..models import LoadedModel, cast
from ..precision import FULL
from ..samples import Samples
from .formats import FORMATS, Written
from .graphs import data_file
from .parity import Reference, prove_generation, prove_outputs
from .stage import quiet


def prove_again(model: LoadedModel, samples: Samples, folder: Path, export: Export) -> float:
    """Compare an exported file with the model that it was exported from, as when it was written.

    Args:
        model: The model, in float32 and evaluation mode, on the CPU.
        samples: The rows that it was compared on.
        folder: Holds the files.
        export: What was recorded; its tolerance holds.

    Returns:
        The largest difference found.

    Raises:
        ExportError: If the file cannot be opened.
        ParityError: If file and model differ by more than the tolerance.
    """
    weights = {data_file(folder / name).name for name in export.files}
    files = tuple(name for name in export.files if name not in weights)
    written = Written(export.exporter, export.opset, export.inputs, export.outputs, files, export.cache)
    same = model if export.dtype == FULL else cast(model, export.dtype)
    reference = Reference(model, same, export.dtype, export.tolerance)
    with quiet():
        run = FORMATS[export.format].open(folder, written)
    differences = [prove_outputs(reference, samples, run, written)]
    if written.cache:
        differences.append(prove_generation(reference, samples, run, written))
    return max(float(proof.get("max_abs_difference", 0.0)) for proof in differences)
