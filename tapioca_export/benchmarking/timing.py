"""Latency of two exported files, measured so that the difference is theirs and not the machine's.

Three sessions are timed in turn, in a new random order every round: the original, a second session
of the same original file (its ratio to the first is what noise looks like here), and the pruned
model. Knows nothing about accuracy, and of a task only how it encodes rows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from ..artifacts import Interval, Latency, Phase, Ratio, SessionSettings, Timing
from ..bars import progress_bar
from ..errors import ConfigError
from ..generation import CacheShapes, Session, first_step, one_token_step
from ..precision import DTYPES, FULL
from ..samples import Samples
from ..tasks import Inputs, Processor, Task
from .runtimes import ONNXRUNTIME, ExportFolder, default_num_threads, settings_on
from .sessions import DEVICES
from .statistics import bootstrap_interval

# With fewer runs than this, the 90th percentile is the second-slowest run or the slowest.
MIN_RUNS_FOR_P90 = 20
NUM_BATCHES = 8
_LENGTH_MULTIPLE = 8
_ENCODE_ROWS = 32


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure, and how often.

    `providers` are ONNX Runtime's, by short or full name; results are scored on the first. Without
    `sequence_lengths`, typical lengths of the samples are used. `num_threads` of None means all
    CPUs this process may use. `warmup` and `iterations` count runs a session and shape. `tune_seconds` is
    what a search for the fastest sessions may take; None searches for none. `redact` leaves out what
    rows hold.
    """

    providers: tuple[str, ...] = ("cpu",)
    batch_sizes: tuple[int, ...] = (1, 8)
    sequence_lengths: tuple[int, ...] = ()
    num_threads: int | None = None
    warmup: int = 5
    iterations: int = 30
    seed: int = 0
    tune_seconds: float | None = None
    redact: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be measured.

        Raises:
            ConfigError: If a value is out of range.
        """
        if not self.providers:
            raise ConfigError("No provider is given.", "Give --provider cpu.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"Batch sizes {self.batch_sizes} are not all at least 1.")
        if self.sequence_lengths and min(self.sequence_lengths) < 2:
            raise ConfigError(f"Sequence lengths {self.sequence_lengths} are not all at least 2.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"--num-threads {self.num_threads} is not at least 1.")
        if self.warmup < 0 or self.iterations < 2:
            raise ConfigError(
                f"--warmup {self.warmup} --iterations {self.iterations}: at least 0 and 2 are "
                "needed, and 20 iterations for a 90th percentile."
            )

    @property
    def threads(self) -> int:
        """The number of threads that every session gets."""
        return self.num_threads or default_num_threads()


# --- what to run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Batches of one shape made of the user's own rows, taken in turn."""

    batch_size: int
    sequence_length: int
    batches: tuple[Inputs, ...]
    phase: Phase = "forward"
    unit: str = "tokens"


def make_workloads(
    task: Task,
    samples: Samples,
    processor: Processor,
    settings: BenchmarkSettings,
    cache: CacheShapes | None = None,
    dtype: str = FULL,
) -> tuple[Workload, ...]:
    """Build batches of exactly the shapes asked for; nothing in them is padding.

    Rows are drawn in a seeded order and used again where there are too few; each is repeated and
    cut to the length, unless all have one length anyway. A model that generates gets each shape twice:
    as prompts to read, and as tokens that are cached (zeros, as no values take longer than others) while
    one more is made. What a decoder is given beside a sequence is as long as the longest row's.

    Args:
        task: Encodes the rows.
        samples: The user's rows.
        processor: What the encoding needs.
        settings: Shapes asked for, and the seed.
        cache: The cache inputs of the larger file; the other's are among them.
        dtype: Their precision.

    Raises:
        ConfigError: If a length is beyond what the model can take.
    """
    lengths, is_fixed = _sequence_lengths(task, samples, processor, settings), bool(processor.fixed_length)
    order = np.random.default_rng(settings.seed).permutation(len(samples))
    order = order[: max(settings.batch_sizes) * NUM_BATCHES]
    rows = [task.encode([samples.rows[i]], processor) for i in order]
    shapes = [(size, length) for length in lengths for size in sorted(set(settings.batch_sizes))]
    works = []
    for size, length in shapes:
        wanted = {name: _shape(task, name, rows, None if is_fixed else length) for name in rows[0]}
        works.append(Workload(size, length, tuple(_batches(task, rows, size, wanted)), unit=task.unit))
    if not cache:
        return tuple(works)
    prefills = [
        replace(work, phase="prefill", batches=tuple(map(first_step, work.batches))) for work in works
    ]
    steps = [
        replace(work, phase="decode", batches=(one_token_step(batch, cache, lengths, DTYPES[dtype].name),))
        for work in works
        for batch in work.batches[:1]
        for lengths in (task.cached_lengths(batch, processor),)
    ]
    return (*prefills, *steps)


def _sequence_lengths(
    task: Task, samples: Samples, processor: Processor, settings: BenchmarkSettings
) -> tuple[int, ...]:
    """Return the lengths asked for, or the samples' median and 95th percentile."""
    if processor.fixed_length is not None:
        if settings.sequence_lengths:
            raise ConfigError(
                f"--sequence-length has no meaning here: every row has {processor.fixed_length} {task.unit}."
            )
        return (processor.fixed_length,)
    if settings.sequence_lengths:
        longest = max(settings.sequence_lengths)
        if longest > processor.max_length:
            raise ConfigError(
                f"--sequence-length {longest} is longer than the model's {processor.max_length}."
            )
        # A prompt is made of (x, y) pairs.
        lengths = {n - n % 2 if task.is_prompt else n for n in settings.sequence_lengths}
        return tuple(sorted(lengths))
    real = np.concatenate(
        [
            task.token_mask(batch.inputs).sum(axis=1)
            for batch in task.batches(samples, processor, _ENCODE_ROWS)
        ]
    )
    if task.is_prompt:
        return (int(real.max()),)
    rounded = np.ceil(np.quantile(real, (0.5, 0.95)) / _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return tuple(sorted({min(int(length), processor.max_length) for length in rounded}))


def _shape(task: Task, name: str, rows: Sequence[Inputs], length: int | None) -> tuple[int, ...]:
    """Return the shape that an input of each row is to have: as long as asked for, else as the largest."""
    shape = np.max([row[name].shape for row in rows], axis=0)
    if length is not None and "sequence" in (axes := task.axes(name)):
        shape[axes.index("sequence")] = length
    return tuple(shape.tolist())


def _batches(
    task: Task, rows: Sequence[Inputs], size: int, shapes: Mapping[str, Sequence[int]]
) -> Iterator[Inputs]:
    """Yield batches of `size` rows of these shapes, no two alike while the rows last.

    What is the same for all rows of a batch is that of its first row.
    """
    num_batches = min(NUM_BATCHES, -(-len(rows) // size))
    for start in range(0, num_batches * size, size):
        chosen = [rows[i % len(rows)] for i in range(start, start + size)]
        yield {
            name: np.concatenate([_fit(row[name], shape) for row in chosen])
            if task.axes(name)[0] == "batch"
            else chosen[0][name]
            for name, shape in shapes.items()
        }


def _fit(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Repeat and cut an array along each axis to a shape."""
    repeats = [-(-size // own) for size, own in zip(shape, values.shape, strict=True)]
    return np.tile(values, repeats)[tuple(map(slice, shape))]


# --- running it -----------------------------------------------------------------------------


def measure_latency(
    original: ExportFolder,
    pruned: ExportFolder,
    workloads: Sequence[Workload],
    provider: str,
    settings: BenchmarkSettings,
    tuned: Mapping[str, SessionSettings] | None = None,
    runtime: str | None = None,
) -> tuple[Latency, ...]:
    """Time both files on every workload; copies to and from the device are part of a run.

    Args:
        original: Export of the original model; opened twice.
        pruned: Export of the pruned model, of the same format.
        workloads: Batches by shape.
        provider: Execution provider, by short or full name.
        settings: Threads, warm-up, rounds and seed.
        tuned: What "original" and "pruned" are opened with (default: what every session is).
        runtime: What runs them (default: what runs the format).

    Raises:
        TapiocaError: If the runtime refuses the provider, a file or a batch.
    """
    runtime = runtime or original.runtime
    plain = settings_on(runtime, provider, settings.threads)
    opened_with = tuned or {"original": plain, "pruned": plain}
    sessions = {
        "original": original.open(opened_with["original"], runtime),
        "original again": original.open(opened_with["original"], runtime),
        "pruned": pruned.open(opened_with["pruned"], runtime),
    }
    where = plain.provider if runtime == ONNXRUNTIME else DEVICES.get(plain.provider, "cpu").upper()
    before, after = (opened_with[name].num_threads for name in ("original", "pruned"))
    rows = []
    for workload in progress_bar(workloads, desc=f"Timing {runtime} on {where}"):
        seconds = time_rounds(sessions, workload, settings)
        speedup = seconds["original"] / seconds["pruned"]
        interval = bootstrap_interval(speedup, np.median, settings.seed)
        row = Latency(
            runtime=runtime,
            provider=where,
            batch_size=workload.batch_size,
            sequence_length=workload.sequence_length,
            threads=after,
            original_threads=None if before == after else before,
            phase=workload.phase,
            original=summarize(seconds["original"], workload),
            pruned=summarize(seconds["pruned"], workload),
            speedup=Ratio(float(np.median(speedup)), interval),
            ideal_speedup=original.num_layers_left / pruned.num_layers_left,
            noise_floor=noise_floor(seconds["original"] / seconds["original again"], settings.seed),
            unit=workload.unit,
        )
        rows.append(row)
    return tuple(rows)


def time_rounds(
    sessions: Mapping[str, Session], workload: Workload, settings: BenchmarkSettings
) -> dict[str, np.ndarray]:
    """Return seconds a round for every session, shape (rounds,).

    In a round all sessions run the same batch, one after another, in a seeded random order, so
    that drift of the machine touches all alike.
    """
    batches = workload.batches
    for session in sessions.values():
        for i in range(settings.warmup):
            session(batches[i % len(batches)])
    generator = np.random.default_rng(settings.seed)
    names = list(sessions)
    seconds = {name: np.empty(settings.iterations) for name in names}
    with without_garbage_collection():
        for i in range(settings.iterations):
            inputs = batches[i % len(batches)]
            for chosen in generator.permutation(len(names)):
                name = names[chosen]
                start = perf_counter()
                sessions[name](inputs)
                seconds[name][i] = perf_counter() - start
    return seconds


def summarize(seconds: np.ndarray, workload: Workload) -> Timing:
    """Summarize the runs of one model at one shape; no percentile without enough runs."""
    p50 = float(np.median(seconds))
    enough = len(seconds) >= MIN_RUNS_FOR_P90
    tokens = {"forward": None, "prefill": workload.sequence_length, "decode": 1}[workload.phase]
    return Timing(
        p50_ms=p50 * 1e3,
        p90_ms=float(np.quantile(seconds, 0.9)) * 1e3 if enough else None,
        runs=len(seconds),
        throughput_per_s=workload.batch_size / p50,
        tokens_per_s=None if tokens is None else tokens * workload.batch_size / p50,
    )


def noise_floor(ratios: np.ndarray, seed: int = 0) -> Interval:
    """Return the speed-ups to treat as noise, from ratios of a file's times to its own, (rounds,).

    The interval is (1/f, f), with the least f >= 1 that covers the 95 % bootstrap interval of the
    median ratio and the median of either half of the rounds. Two sessions of one file have a true
    ratio of 1, so any distance from it, to either side, is noise; the halves catch drift and
    bursts, to which the bootstrap, taking rounds as independent, is blind.
    """
    low, high = bootstrap_interval(ratios, np.median, seed)
    medians = [np.median(half) for half in np.array_split(ratios, 2)]
    factor = float(np.exp(np.abs(np.log([low, high, *medians])).max()))
    return 1 / factor, factor


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running inside somebody's turn."""
    if not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
