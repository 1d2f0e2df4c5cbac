"""The stage: write a file, prove it, and put beside it what is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from ..artifacts import Damping, Export, LayerName, sha256, write
from ..errors import ParityError
from ..models import LoadedModel, cast, lacking
from ..numbering import whole_layers
from ..precision import FULL
from ..samples import Samples
from .formats import FORMATS, Dialect, ExportSettings, Written
from .genai import write_genai_config
from .graphs import data_file
from .parity import Reference, prove_generation, prove_outputs
from .quieting import quiet
from .treating import Job, treat


def export_model(
    model: LoadedModel,
    samples: Samples,
    folder: Path,
    settings: ExportSettings,
    drop: tuple[LayerName, ...] = (),
    damp: tuple[Damping, ...] = (),
    silent: Mapping[int, Sequence[str]] | None = None,
    calibration: Samples | None = None,
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
        calibration: ID rows, where the settings ask for calibration samples.

    Raises:
        ExportError: If the exporter refuses the model, or the format's runtime the file.
        ParityError: If file and model differ, or a treated file loses too much; it is then `<name>.invalid`.
    """
    format_ = FORMATS[settings.format]
    assert not any(module.training for module in model.network.modules())
    same = model if settings.dtype == FULL else cast(model, settings.dtype)
    reference = Reference(model, same, settings.dtype, settings.tolerance)
    with lacking(same, silent or {}) as traced, quiet():
        dialect = Dialect(settings.opset, settings.ir_version)
        written = format_.write(traced, model.task.examples(model.processor)[0], folder, dialect)
    try:
        treated = treat(Job(model, samples, folder, settings, silent or {}, calibration), written)
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
    if written.cache:
        write_genai_config(folder, model, written)
    export = Export(
        model=model.source,
        task=model.task.name,
        format=settings.format,
        files={file.name: sha256(file) for file in _files(folder, written)},
        exporter=written.exporter,
        dtype=settings.dtype,
        opset=written.opset,
        inputs=written.inputs,
        outputs=written.outputs,
        cache=dict(written.cache),
        size_bytes=sum(file.stat().st_size for file in _files(folder, written)),
        sha256=sha256(folder / written.files[0]),
        num_layers=model.num_layers + len(whole_layers(drop)),
        drop=drop,
        damp=damp,
        max_length=model.processor.max_length,
        metric=model.task.metric,
        prompting=model.processor.prompting,
        note=format_.note,
        treatment=settings.treatment,
        loss=treated.loss,
        fusions=treated.fusions,
        **{**proof, "tolerance": proof["tolerance"] if isfinite(proof["tolerance"]) else None},
    )
    write(folder / "export.json", export)
    return export


def _files(folder: Path, written: Written) -> list[Path]:
    """Return the exported files and, where weights are beside them, theirs."""
    files = [file for name in written.files for file in (folder / name, data_file(folder / name))]
    return [file for file in files if file.exists()]
