"""The stage: write a file, prove it, and put beside it what is needed to use it; or prove it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from ..artifacts import Damping, Export, LayerName, write
from ..errors import ParityError
from ..graphs import is_graph, read_graph, refuse_misdescribed, weight_paths
from ..models import LoadedModel, cast, lacking, prove_settings
from ..numbering import whole_layers
from ..precision import FULL
from ..samples import NO_SPLIT, Samples, Split
from .adopting import REFERENCE, SKIPPED, without
from .formats import FORMATS, Dialect, ExportSettings, Written, recorded
from .genai import write_genai_config
from .graphs import data_file
from .parity import ALLOWANCE, Reference, prove_generation, prove_outputs
from .quieting import quiet
from .treating import Job, treat

logger = logging.getLogger(__name__)


def export_model(
    model: LoadedModel,
    samples: Samples,
    folder: Path,
    settings: ExportSettings,
    drop: tuple[LayerName, ...] = (),
    damp: tuple[Damping, ...] = (),
    silent: Mapping[int, Sequence[str]] | None = None,
    split: Split = NO_SPLIT,
) -> Export:
    """Export a model and prove the file equal to it.

    Args:
        model: The model, in float32 and evaluation mode, on the CPU.
        samples: The user's rows to compare on.
        folder: An existing folder; gets the file, config.json, tokenizer files and export.json.
        settings: Format, precision, opset, tolerance.
        drop: Layers, or parts of them, already removed, recorded.
        damp: Layers already damped, recorded.
        silent: Parts of the model's layers that do nothing, by the layers' numbers: the file lacks them.
        split: Rows to calibrate on, if the settings ask for that, and to measure on what is lost.

    Raises:
        ExportError: If the exporter refuses the model, or the format's runtime the file.
        ParityError: If file and model differ, or a treated file loses too much; it is then `<name>.invalid`.
        UnsupportedModelError: If config or tokenizer, read back, are others than the model's.
    """
    logger.info("Exporting %s as %s, and proving it", model.source, settings.format)
    format_ = FORMATS[settings.format]
    assert not any(module.training for module in model.network.modules())
    same = model if settings.dtype == FULL else cast(model, settings.dtype)
    reference = Reference(model, same, settings.dtype, settings.tolerance)
    with lacking(same, silent or {}) as traced, quiet():
        dialect = Dialect(settings.opset, settings.ir_version)
        written = format_.write(traced, model.task.examples(model.processor)[0], folder, dialect)
    try:
        treated = treat(Job(model, samples, folder, settings, silent or {}, split), written)
        reference = replace(reference, is_lossy=not treated.is_exact, loss_is_known=treated.loss is not None)
        with quiet():
            run = format_.open(folder, written)
        proof = prove_outputs(reference, samples, run, written)
        if written.cache:
            steps = prove_generation(reference, samples, run, written)
            proof |= {name: max(value, proof.get(name, value)) for name, value in steps.items()}
    except ParityError as error:
        for file in _files(folder, written):
            file.rename(file.with_name(file.name + ".invalid"))
        raise ParityError(f"{model.source} as {settings.format}: {error.message}", error.hint) from error
    same.save_settings(folder)
    prove_settings(folder, model, same.network.config)
    if written.cache:
        write_genai_config(folder, model, written)
        for name in written.files[:1]:
            refuse_misdescribed(folder, read_graph(folder / name).graph)
    export = recorded(
        model,
        written,
        _files(folder, written),
        format=settings.format,
        dtype=settings.dtype,
        num_layers=model.num_layers + len(whole_layers(drop)),
        drop=drop,
        damp=damp,
        note=format_.note,
        treatment=settings.treatment,
        loss=treated.loss,
        fusions=treated.fusions,
        **{**proof, "tolerance": proof["tolerance"] if isfinite(proof["tolerance"]) else None},
    )
    write(folder / "export.json", export)
    logger.debug(
        "Largest difference %s on %d rows (%s)",
        export.max_abs_difference, export.rows_checked, export.reference,
    )  # fmt: skip
    return export


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


def _files(folder: Path, written: Written) -> list[Path]:
    """Return the exported files and, where weights are beside them, theirs."""
    files = [file for name in written.files for file in (folder / name, data_file(folder / name))]
    return [file for file in files if file.exists()]
