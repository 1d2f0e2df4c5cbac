"""Graphs made fast after they were written, and what the metric loses by that.

Knows which treatment comes when; how each is done is its siblings' part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..artifacts import Fusions, Loss
from ..errors import ExportError, ParityError
from ..generation import CacheShapes, Evaluation, Session, first_step, with_cache, with_positions
from ..models import LoadedModel, lacking
from ..precision import FULL
from ..samples import Samples, Split
from .formats import FORMATS, Dialect, ExportSettings, Written
from .fusing import fusions, layered
from .optimizing import optimize
from .parity import Reference, prove_outputs
from .quantizing import quantize
from .quieting import quiet


@dataclass(frozen=True)
class Job:
    """What is exported, on which rows it is compared, where to and how, as in `export_model`."""

    model: LoadedModel
    samples: Samples
    folder: Path
    settings: ExportSettings
    silent: Mapping[int, Sequence[str]]
    split: Split


@dataclass(frozen=True)
class Treated:
    """What came of a treatment.

    `is_exact`: the files compute the same up to rounding. `loss` is what they lose on rows with labels, if
    there are any. `fusions` has what is fused in each file.
    """

    is_exact: bool = True
    fusions: dict[str, Fusions] = field(default_factory=dict)
    loss: Loss | None = None


def treat(job: Job, written: Written) -> Treated:
    """Optimise and quantise the files that were written, in place, and measure what they lose.

    Raises:
        ExportError: If a library refuses a graph, or there is nothing to calibrate on.
        ParityError: If more is lost than is allowed, or the files were wrong before they were treated.
    """
    treatment = job.settings.treatment
    if not treatment:
        return Treated()
    rows = _report_rows(job)
    float32 = _float32(job, written) if rows or treatment.may_lose else None
    with quiet():
        treated = _treat_files(job, written)
        run = FORMATS[job.settings.format].open(job.folder, written)
    if float32 is None or not rows:
        return treated
    return replace(treated, loss=_loss(job, rows, float32, run, written.cache))


def _treat_files(job: Job, written: Written) -> Treated:
    treatment = job.settings.treatment
    is_exact, found = treatment.quantize is None, {}
    for name in written.files:
        file = job.folder / name
        if treatment.optimize:
            before = layered(file)
            is_exact &= optimize(
                file, treatment.optimize, job.settings.dtype, for_quantizer=bool(treatment.quantize)
            )
            found[name] = fusions(before, layered(file))
        if treatment.quantize:
            feeds = _feeds(job, file, written)
            quantize(file, treatment.quantize, per_channel=treatment.per_channel, calibration=feeds)
    return Treated(is_exact, found)


def _feeds(job: Job, file: Path, written: Written) -> list[Mapping[str, np.ndarray]]:
    """Return the inputs of a graph for calibration rows, one row at a time: none is padded then.

    Raises:
        ExportError: If there are too few rows, or the graph reads what another computes.
    """
    wanted, rows = job.settings.treatment.calibration_samples, job.split.calibration
    if wanted is None:
        return []
    if len(written.files) > 1:
        raise ExportError(
            "A decoder beside an encoder is not calibrated: what it reads comes from the encoder.",
            "Leave out --calibration-samples.",
        )
    if rows is None or len(rows) < wanted:
        raise ExportError(
            f"--calibration-samples {wanted}: there are {len(rows or ())} ID rows to calibrate on.",
            "Half of --id is kept for reports, unless --id-report names rows: give more, or ask for fewer.",
        )
    import onnx_ir

    names = {value.name for value in onnx_ir.load(file).graph.inputs}
    feeds: list[Mapping[str, np.ndarray]] = []
    for index in np.random.default_rng(0).permutation(len(rows))[:wanted]:
        inputs = job.model.task.encode([rows.rows[index]], job.model.processor)
        if written.cache:
            inputs = with_cache(first_step(inputs), written.cache)
        inputs = with_positions(inputs, written.inputs)
        feeds.append({name: value for name, value in inputs.items() if name in names})
    return feeds


def _float32(job: Job, written: Written) -> Session:
    """Return what runs the network in float32: the file itself, before it is treated.

    Where that is in half precision, one in float32 is written for it, proven, and taken away again. The file
    itself is proven here if what comes of it will not be held to its outputs.

    Raises:
        ParityError: If that file is not what PyTorch computes.
    """
    model, settings, format_ = job.model, job.settings, FORMATS[job.settings.format]
    reference = Reference(model, model)
    if settings.dtype == FULL:
        with quiet():
            run = format_.open(job.folder, written)
        if settings.treatment.may_lose:
            prove_outputs(reference, job.samples, run, written)
        return run
    with TemporaryDirectory(dir=job.folder) as scratch:
        with lacking(model, job.silent) as traced, quiet():
            example = model.task.examples(model.processor)[0]
            dialect = Dialect(settings.opset, settings.ir_version)
            full = format_.write(traced, example, Path(scratch), dialect)
            run = format_.open(Path(scratch), full)
        prove_outputs(reference, job.samples, run, full)
        return run


def _report_rows(job: Job) -> Samples:
    """Return the rows with labels that nothing was chosen on."""
    report, calibration = job.split.report or job.samples, job.split.calibration
    seen = {row.key for row in calibration.rows} if calibration else set()
    rows = tuple(row for row in report.rows if row.label is not None and row.key not in seen)
    return replace(report, rows=rows)


def _loss(job: Job, rows: Samples, float32: Session, treated: Session, cache: CacheShapes) -> Loss | None:
    """Measure what a file loses on rows; None where it computes the same, and the metric is of no use there.

    Raises:
        ParityError: If that is more than is allowed.
    """
    task, processor, most = job.model.task, job.model.processor, job.settings.max_drop
    evaluation = Evaluation(task, rows, processor)
    exact, found = (float(task.aggregate(evaluation.score(run, cache).values)) for run in (float32, treated))
    if not isfinite(exact) and not job.settings.treatment.may_lose:  # as of numbers that are all the same
        return None
    drop = exact - found if task.higher_is_better else found - exact
    if not drop <= most:  # NaN is not
        raise ParityError(
            f"{task.metric} is {found:.4g} on {len(rows)} rows, {exact:.4g} in float32: {drop:.4g} worse, "
            f"more than --max-drop {most:g} ({job.settings.treatment}).",
            "Treat it less, or allow it with a larger --max-drop.",
        )
    return Loss(task.metric, len(rows), exact, found, drop, most)
