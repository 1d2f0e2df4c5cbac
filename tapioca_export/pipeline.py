"""The story: the whole job, stage by stage, and the demo that runs it on the embedded example.

Knows where files go, and nothing of any stage's inside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import (
    cards,
    checkpoints,
    graph_files,
    measuring,
    provenance,
    reading,
    remeasuring,
    reporting,
    steps,
    trading,
)
from .artifacts import Benchmark, Export, Report, Selection, read, sha256, staged, write, write_sealed
from .benchmarking import SESSION_FILE, benchmark, fastest_sessions, time_exports
from .config import RunConfig
from .graphs import is_graph
from .models import LoadedModel, load_model
from .numbering import whole_layers
from .polynomial import WEIGHTS, sample_prompts
from .samples import Samples, Split, refuse_shared

JOURNAL = "search.jsonl"
DEMO_COEFFICIENT_SCALE = 3.0


def run(config: RunConfig) -> Report:
    """Profile, select, prune, export, benchmark and report.

    Args:
        config: At least `model`, `id`, `target` and `output`.

    Returns:
        The report; the run folder holds it and everything it rests on.

    Raises:
        TapiocaError: If anything a user can mend stands in the way; nothing half-written is left.
    """
    with staged(config.output, overwrite=config.overwrite, keep=JOURNAL) as folder:
        return _run_in(folder, config)


def _run_in(folder: Path, config: RunConfig) -> Report:
    """Do the whole job in a folder."""
    config = replace(config, format=tuple(dict.fromkeys(("onnx", *config.format))))
    steps.check(config, searches=True)
    graph_files.check(config)
    settings = steps.benchmark_settings(config)
    clock = _Clock()
    with steps.using_threads(config):
        with provenance.unchanged(config):
            with clock("load"):
                task, processor = reading.load_task(config)
                roles = reading.load_roles(config, task, processor)
                model = load_model(config.model, task.name, reading.load_options(config))
            inputs = provenance.hash_inputs(config)  # as they were read
        with steps.probing(config, model, roles, folder / JOURNAL) as probe:
            with clock("select"):
                selection = trading.choose(config, model, probe, roles)
                write(folder / "selection.json", selection)
            with clock("profile"):
                profile = measuring.measure(model, probe, selection.drop, selection.damp)
                write(folder / "profile.json", profile)
            measured = remeasuring.remember(probe, selection)
            refuse_shared(probe.samples.values(), (roles[f"{name}-report"] for name in ("id", "target")))
        del probe  # it holds the model, and where that was spread, what of it is not on the CPU
        rows = reading.parity_rows(roles)
        if is_graph(config.model):
            with clock("prune"):
                exports = graph_files.export_pair(config, model, rows, selection, folder)
            del model
        else:
            model = steps.on_cpu(config, model)
            num_layers = 2 * model.num_layers - len(whole_layers(selection.drop))
            with steps.exporting_bar(num_layers * len(config.format)) as progress:
                exporting = _Exporting(
                    config,
                    folder,
                    rows=rows,
                    split=Split(roles["id-select"], reading.report_rows(roles)),
                    selection=selection,
                    measured=measured,
                    clock=clock,
                    progress=progress,
                )
                exports = exporting.original(model)
                del model  # nor need two models be in memory
                exports |= exporting.pruned(task.name)
        with clock("benchmark"):
            report_rows = {name: roles[f"{name}-report"] for name in ("id", "target")}
            graphs = (folder / "original" / "onnx", folder / "pruned" / "onnx")
            compared = benchmark(*graphs, task, report_rows, processor, settings)
            for place, session in fastest_sessions(compared, *graphs).items():
                write(place / SESSION_FILE, session)
            latency, skipped = list(compared.latency), list(compared.skipped)
            for name in config.format[1:]:
                pair = (folder / "original" / name, folder / "pruned" / name)
                timed, left_out = time_exports(*pair, task, report_rows["target"], processor, settings)
                latency += timed
                skipped += left_out
            gap = steps.optimism_gap(selection, compared)
            compared = replace(compared, latency=tuple(latency), skipped=tuple(skipped), optimism_gap=gap)
            write(folder / "benchmark.json", compared)
        environment = provenance.environment()
    _record_parts(config, folder, inputs, rows.fingerprint, exports, compared)
    record = provenance.make_run(config, folder, inputs, clock.seconds, environment)
    report = reporting.make_report(record, selection, profile, compared, exports)
    reporting.write_report(report, folder)
    reports = {name: sha256(folder / name) for name in reporting.FILES}
    write_sealed(folder / provenance.RUN, replace(record, outputs={**record.outputs, **reports}))
    return report


@dataclass(frozen=True)
class _Exporting:
    """What both models of a run are exported with."""

    config: RunConfig
    folder: Path
    rows: Samples
    split: Split
    selection: Selection
    measured: remeasuring.Measured | None
    clock: _Clock
    progress: Any  # tqdm's bar

    def original(self, model: LoadedModel) -> dict[str, Export]:
        """Export the model, and write the checkpoint without layers; returns the exports by their folders."""
        with self.clock("export original"):
            exports = self._export(model, "original", None)
        with self.clock("prune"):
            batches = checkpoints.proof_batches(model, self.rows)
            checkpoints.save_checkpoint(self.folder / "pruned" / "checkpoint", model, self.selection, batches)
        return exports

    def pruned(self, task: str) -> dict[str, Export]:
        """Export the checkpoint without layers; returns the exports by their folders."""
        with self.clock("export pruned"):
            options = replace(reading.load_options(self.config), device="cpu")
            model = load_model(self.folder / "pruned" / "checkpoint", task, options)
            # Files name the checkpoint where it will be, not where it is being built.
            model = replace(model, source=str(self.config.output / "pruned" / "checkpoint"))
            if self.measured is not None:
                remeasuring.refuse_another(model, self.measured)
            exports = self._export(model, "pruned", self.selection)
            for place in exports:  # `benchmark` asks it which rows may be reported
                write(self.folder / place / "selection.json", self.selection)
        return exports

    def _export(self, model: LoadedModel, side: str, chosen: Selection | None) -> dict[str, Export]:
        places = {name: self.folder / side / name for name in self.config.format}
        exports = {}
        for name, export in steps.export_each(self.config, model, self.rows, places, chosen, self.split):
            exports[f"{side}/{name}"] = export
            self.progress.update(model.num_layers)
        return exports


def _record_parts(
    config: RunConfig,
    folder: Path,
    inputs: Mapping[str, str],
    rows: str,
    exports: Mapping[str, Export],
    measured: Benchmark,
) -> None:
    """Write into each folder that may be handed on alone where it came from, and into the card its scores."""
    checkpoint = folder / "pruned" / "checkpoint"
    smaller, known = config, dict(inputs)
    if checkpoint.is_dir():  # nothing is made of an ONNX file but ONNX files
        cards.write_model_card(checkpoint, read(checkpoint / "selection.json", Selection), measured)
        digest = provenance.record_folder(checkpoint, "run", config, inputs, rows, root=folder)
        smaller, known[str(checkpoint)] = replace(config, model=str(checkpoint)), digest
        del known[config.model]
    for place, export in exports.items():
        made = (smaller, known) if place.startswith("pruned/") else (config, inputs)
        provenance.record_folder(folder / place, "run", *made, rows, known=export.files, root=folder)


def demo(config: RunConfig, num_select: int = 1024, num_report: int = 1000) -> Report:
    """Run the whole job on the embedded example, with data drawn from the seed.

    The shift is a coefficient scale of 3: the curves met in production are three times as steep as
    those the model was trained on.

    Args:
        config: Output folder, seed and any other setting; model and samples are filled in.
        num_select: Prompts of each distribution that drive the search.
        num_report: Prompts of each distribution that are only reported.

    Raises:
        TapiocaError: If the output cannot be written.
    """
    with staged(config.output, overwrite=config.overwrite, keep=JOURNAL) as folder:
        paths: dict[str, Any] = {}
        for number, (name, scale) in enumerate((("id", 1.0), ("target", DEMO_COEFFICIENT_SCALE))):
            for offset, (side, count) in enumerate((("", num_select), ("_report", num_report))):
                paths[f"{name}{side}"] = path = folder / "samples" / f"{name}{side.replace('_', '-')}.jsonl"
                seed = (config.seed, 2 * number + offset + 1)  # no training step has such a seed
                write_prompts(path, sample_prompts(count, seed, coefficient_scale=scale))
        formats = tuple(dict.fromkeys((*config.format, "torchscript")))
        paths |= {"model": str(WEIGHTS), "task": "polynomial-regression", "format": formats}
        return _run_in(folder, replace(config, **paths))


def write_prompts(path: Path, prompts: np.ndarray) -> None:
    """Write prompts as samples of the embedded example's task."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for prompt in prompts:
            # A float32 printed with nine digits reads back as itself.
            x, y = ([float(f"{value:.9g}") for value in prompt[i::2]] for i in (0, 1))
            lines.write(json.dumps({"x": x, "y": y}) + "\n")


@dataclass
class _Clock:
    """Seconds a stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 2)
