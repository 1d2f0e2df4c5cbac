"""What a run does after its search, tried on few layers: the time it takes, and whether the model exports.

Files of one layer and of a few are made, proven, scored and timed by what a run does that with. The seconds
of more layers, and of more rows, are read off a line through both; a run goes on to its own numbers by the
very same functions, so this is an estimate of the machine, not of the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import checkpoints, measuring, reading, steps
from .artifacts import Bounds, scratch
from .benchmarking import (
    Workload,
    default_settings,
    make_workloads,
    measure_latency,
    measure_memory_and_load,
    resolve_provider,
    score_exported,
)
from .benchmarking.runtimes import ExportFolder, read_export_folder, runtimes_on
from .benchmarking.sessions import CPU
from .benchmarking.stage import shared_cache, timed_on
from .config import RunConfig
from .costing import model_bytes
from .models import LoadedModel, drop_layers, droppable_layers, load_model, save_pruned
from .samples import Samples, Split

# Layers that stay in each stack, rows of a role that are profiled and scored, runs of each shape.
FEW_LAYERS, FEW_ROWS, NUM_RUNS = (1, 4), (24, 96), 5
# What few layers lose by treatment says nothing of the model.
ANY_LOSS = 1e9
Roles = Mapping[str, Samples]


@dataclass(frozen=True)
class Line:
    """Seconds of two sizes, and what others are taken to take: in proportion where the two are one."""

    sizes: tuple[float, float]
    seconds: tuple[float, float]

    def at(self, size: float) -> float:
        """Return the seconds of a size; no size takes less than a smaller one."""
        (low, high), (less, more) = self.sizes, self.seconds
        if high <= low:
            return more * size / high
        slope = max(more - less, 0.0) / (high - low)
        return max(more + slope * (size - high), 0.0)


def seconds_after_search(
    config: RunConfig, model: LoadedModel, roles: Roles, deepest: int
) -> dict[str, Bounds]:
    """Return the seconds of each stage behind the search, named as in `run.json`.

    Args:
        config: Of the run.
        model: The whole model.
        roles: Samples by role, select and report.
        deepest: The most layers that may go; the most seconds are those of none gone.

    Raises:
        TapiocaError: If a profile, a file of few layers or a checkpoint cannot be made, or is not equal.
    """
    found = {"profile": _profile(config, model, roles)}
    config = replace(config, max_drop=ANY_LOSS)
    network = steps.on_cpu(config, model)
    small, large = (_gone(network, droppable_layers(network), count) for count in FEW_LAYERS)
    layers = (network.num_layers - deepest, network.num_layers)
    with scratch(config.output) as folder:
        trial = _Trial(config, network, (_without(network, small), _without(network, large)), roles, folder)
        first, files = trial.export()
        timing, again = trial.benchmark(), trial.scored_when_written
        least, most = (
            sum(line.at(count) for line in files.values()) + again * timing.scored.at(count)
            for count in layers
        )
        found["export original"] = Bounds(most + first, most + first)
        pruning, loading = trial.prune(small)
        # The weights of the other layers are written as well, and read by another process.
        found["prune"] = Bounds(pruning + 2 * loading, pruning + 2 * loading)
        found["export pruned"] = Bounds(least + loading, most + loading)
        whole = timing.of_original(layers[1])
        found["benchmark"] = Bounds(*(whole + timing.of_pruned(count) for count in layers))
    return found


def _profile(config: RunConfig, model: LoadedModel, roles: Roles) -> Bounds:
    """Tell what the profiles take; those of the pruned model as long as those of the original."""
    near = replace(config, engine="local", num_workers=1, ray_address=None)
    names = ("id-select", "target-select")
    sizes: list[int] = []
    found: list[float] = []
    for count in (FEW_ROWS[0], *FEW_ROWS):  # the first of a process is no measure
        few = {name: _spread(roles[name], count) for name in names}
        with steps.probing(near, model, few) as probe:
            found.append(_seconds(partial(measuring.measure, model, probe, ())))
        sizes.append(sum(map(len, few.values())))
    once = Line((sizes[1], sizes[2]), (found[1], found[2])).at(sum(len(roles[name]) for name in names))
    return Bounds(once, 2 * once)


@dataclass(frozen=True)
class _Benchmark:
    """Seconds of what is done with one file, over its layers, and of what is done once."""

    tuned: float
    runs: int
    scored: Line
    timed: Line
    opened: Line

    def of_original(self, layers: int) -> float:
        """Return the seconds of the original, which is timed twice, and of what is done once."""
        return self.of_pruned(layers) + self.runs * self.timed.at(layers) + self.tuned

    def of_pruned(self, layers: int) -> float:
        """Return the seconds of the pruned file."""
        return self.scored.at(layers) + self.runs * self.timed.at(layers) + self.opened.at(layers)


@dataclass(frozen=True)
class _Trial:
    """A model, one of one layer a stack and one of a few, and a folder for what is made of them."""

    config: RunConfig
    whole: LoadedModel
    few: tuple[LoadedModel, LoadedModel]
    roles: Roles
    folder: Path

    @property
    def sizes(self) -> tuple[float, float]:
        """Layers of both."""
        small, large = (model.num_layers for model in self.few)
        return small, large

    @property
    def scored_when_written(self) -> float:
        """How often all report rows are scored when a file is written: before and after it is treated."""
        return 2.0 if self.config.treatment else 0.0

    def export(self) -> tuple[float, dict[str, Line]]:
        """Export both in every format; return what the first export takes beside, and lines by format."""
        rows, small = reading.parity_rows(self._spread_roles()), self.few[0]
        cold = self._export(small, rows, "first")
        found = [self._export(model, rows, name) for model, name in zip(self.few, "ab", strict=True)]
        lines = {name: Line(self.sizes, (found[0][name], found[1][name])) for name in self.config.format}
        return max(sum(cold.values()) - sum(found[0].values()), 0.0), lines

    def _spread_roles(self) -> Roles:
        """Return few rows of each role: a treated file is scored on all that may be reported."""
        return {role: _spread(rows, FEW_ROWS[1]) for role, rows in self.roles.items()}

    def _export(self, model: LoadedModel, rows: Samples, name: str) -> dict[str, float]:
        places = {format_: self.folder / name / format_ for format_ in self.config.format}
        clock, found = time.perf_counter(), {}
        split = Split(self.roles["id-select"], reading.report_rows(self._spread_roles()))
        for format_, _ in steps.export_each(self.config, model, rows, places, None, split):
            found[format_] = time.perf_counter() - clock
            clock = time.perf_counter()
        return found

    def prune(self, drop: Sequence[int]) -> tuple[float, float]:
        """Write and prove a checkpoint without layers; return its seconds, and those of reading the model."""
        batches = checkpoints.proof_batches(self.whole, reading.parity_rows(self.roles))
        place = self.folder / "checkpoint"
        place.mkdir()
        written = _seconds(partial(save_pruned, self.whole, drop, place, batches))
        options = replace(reading.load_options(self.config), device="cpu")
        read = _seconds(partial(load_model, str(place), self.whole.task.name, options))
        return written, read * model_bytes(self.whole) / model_bytes(self.few[0])

    def benchmark(self) -> _Benchmark:
        """Score, time and open both files."""
        folders = [read_export_folder(self.folder / name / "onnx") for name in "ab"]
        scored = [sum(self._score(folder, role) for role in ("id", "target")) for folder in folders]
        timed = [0.0, 0.0]
        for format_ in self.config.format:
            for place, seconds in enumerate(self._time(format_)):
                timed[place] += seconds
        settings = steps.benchmark_settings(self.config)
        plain, works = default_settings(CPU, settings.threads), self._workloads(folders)
        largest = max(works, key=lambda work: work.batch_size * work.sequence_length).batches[0]
        opened = [_seconds(partial(measure_memory_and_load, own.path, plain, largest)) for own in folders]
        return _Benchmark(
            tuned=settings.tune_seconds or 0.0,
            runs=settings.warmup + settings.iterations,
            scored=Line(self.sizes, (scored[0], scored[1])),
            timed=Line(self.sizes, (timed[0], timed[1])),
            opened=Line(self.sizes, (opened[0], opened[1])),
        )

    def _score(self, folder: ExportFolder, role: str) -> float:
        """Return the seconds that all report rows of a role take."""
        rows, task = self.roles[f"{role}-report"], self.few[0].task
        if not rows.is_labelled:
            return 0.0
        settings, processor = steps.benchmark_settings(self.config), self.few[0].processor
        parts = [_spread(rows, count) for count in FEW_ROWS]
        less, more = (
            _seconds(partial(score_exported, folder.path, task, part, processor, settings)) for part in parts
        )
        return Line((len(parts[0]), len(parts[1])), (less, more)).at(len(rows))

    def _time(self, format_: str) -> tuple[float, float]:
        """Return the seconds that one run of every shape takes, of one layer a stack and of a few."""
        # Warmed up as in a run: what PyTorch compiles at first is no measure of all runs.
        settings = replace(steps.benchmark_settings(self.config), iterations=NUM_RUNS)
        small, large = (read_export_folder(self.folder / name / format_) for name in "ab")
        works = self._workloads([small, large])
        providers = [resolve_provider(name) for name in self.config.provider] if format_ == "onnx" else [CPU]
        rows = [
            row
            for provider in timed_on(large.runtime, providers)
            for runtime in runtimes_on(large.runtime, provider)
            for row in measure_latency(large, small, works, provider, settings, runtime=runtime)
        ]
        less, more = (sum(getattr(row, side).p50_ms for row in rows) / 1e3 for side in ("pruned", "original"))
        return less, more

    def _workloads(self, folders: Sequence[ExportFolder]) -> tuple[Workload, ...]:
        small, large = (folder.export for folder in folders)
        model, settings = self.few[0], steps.benchmark_settings(self.config)
        cache = shared_cache(large.cache, small.cache)
        return make_workloads(
            model.task, self.roles["target-report"], model.processor, settings, cache, large.dtype
        )


def _gone(model: LoadedModel, droppable: Collection[int], count: int) -> tuple[int, ...]:
    """Return what has to go for few layers to stay in each stack, of those that can."""
    return tuple(n for part in model.numbering.ranges for n in part[count:] if n in droppable)


def _without(model: LoadedModel, drop: Sequence[int]) -> LoadedModel:
    """Return a model without layers; it says so where it is named."""
    few = drop_layers(model, drop)
    return replace(few, source=f"{model.source} with {few.num_layers} of {model.num_layers} layers")


def _spread(samples: Samples, count: int) -> Samples:
    """Return rows from all over a role, as of one domain."""
    step = max(1, len(samples) // count)
    return replace(samples, rows=samples.rows[::step][:count], named=None)


def _seconds(work: Callable[[], object]) -> float:
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock
