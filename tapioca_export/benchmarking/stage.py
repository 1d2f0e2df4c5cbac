"""The stage: two export folders and the report rows -> `Benchmark`.

Knows which measurement comes when and what to leave out; how each is done is its siblings' part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..artifacts import Accuracy, Benchmark, Latency, Pair
from ..bars import progress_bar
from ..errors import BenchmarkError
from ..generation import CacheShapes, cache_bytes, generate
from ..precision import DTYPES
from ..samples import Samples
from ..tasks import Processor, Scores, Task
from .memory import measure_memory_and_load
from .runtimes import (
    CPU,
    CUDA,
    RUNTIMES,
    ExportFolder,
    available_providers,
    read_export_folder,
    resolve_provider,
)
from .statistics import compare
from .timing import RUNTIME, BenchmarkSettings, Workload, make_workloads, measure_latency

SCORING_BATCH_SIZE = 32  # sequences: a row takes one an answer
NO_STEPS = "Single tokens were not timed: layers cache keys and values of several shapes."
_DEFAULTS = BenchmarkSettings()


def benchmark(
    original: Path,
    pruned: Path,
    task: Task,
    samples: Mapping[str, Samples],
    processor: Processor,
    settings: BenchmarkSettings = _DEFAULTS,
) -> Benchmark:
    """Compare two exported files: accuracy, latency, size, memory and load time.

    Results are scored on the first provider of the settings. Latency is measured on the CPU
    always, on the providers asked for, and by default on CUDA where there is one; its batches are
    made of the target's rows, since that is what production sends. Memory is the CPU's.

    Args:
        original: Export folder of the original model.
        pruned: Export folder of the pruned model.
        task: The task of both.
        samples: Report rows by "id" and "target"; a role without labels is not scored.
        processor: What encodes the rows.
        settings: What to measure, and how often.

    Raises:
        BenchmarkError: If the folders do not belong together, are not usable exports, or a
            provider that was asked for cannot be used.
    """
    before, after = _open_pair(original, pruned, task)
    providers = tuple(dict.fromkeys(map(resolve_provider, settings.providers)))
    rows = samples.get("target") or samples["id"]
    cache = shared_cache(before.export.cache, after.export.cache)
    workloads = make_workloads(task, rows, processor, settings, cache, before.export.dtype)
    accuracy, targets = _accuracy(before, after, task, samples, processor, settings)
    domains = rows.domains
    latency, skipped = _latency(before, after, workloads, providers, settings)
    largest = max(workloads, key=lambda work: work.batch_size * work.sequence_length).batches[0]
    memory = [
        measure_memory_and_load(folder.path, CPU, settings.threads, largest) for folder in (before, after)
    ]
    num_bytes = DTYPES[before.export.dtype].num_bytes
    caches = Pair(*(cache_bytes(folder.export.cache, num_bytes) for folder in (before, after)))
    return Benchmark(
        task=task.name,
        accuracy=accuracy,
        latency=latency,
        size_bytes=Pair(before.export.size_bytes, after.export.size_bytes),
        peak_memory_bytes=Pair(*(peak_bytes for peak_bytes, _ in memory)),
        load_seconds=Pair(*(seconds for _, seconds in memory)),
        drop=after.export.drop,
        damp=after.export.damp,
        cache_bytes_per_token=caches if before.export.cache else None,
        objective=domains.objective if domains.are_named else None,
        targets=targets,
        skipped=skipped if cache or not after.export.cache else (*skipped, NO_STEPS),
    )


def shared_cache(original: CacheShapes, pruned: CacheShapes) -> CacheShapes:
    """Return the cache inputs that both files can be given; none where layers, numbered anew, differ."""
    return original if pruned.items() <= original.items() else {}


def score_exported(
    folder: Path,
    task: Task,
    samples: Samples,
    processor: Processor,
    settings: BenchmarkSettings = _DEFAULTS,
) -> Scores:
    """Score an exported file on all rows of labelled samples, on the first provider.

    Raises:
        BenchmarkError: If the runtime refuses the provider, the file or a batch.
    """
    session = RUNTIMES[RUNTIME](folder, settings.providers[0], settings.threads)
    num_rows = max(1, SCORING_BATCH_SIZE // task.num_answers(samples))
    cache = read_export_folder(folder).export.cache
    parts = []
    with progress_bar(total=len(samples), desc=f"Scoring {samples.role}") as progress:
        for batch in task.batches(samples, processor, num_rows):
            found = session(batch.inputs)
            logits = task.joined([np.asarray(found[name], np.float32) for name in task.outputs])
            num_sequences = len(next(iter(batch.inputs.values())))
            if len(logits) != num_sequences:
                raise BenchmarkError(
                    f"{folder} gives {len(logits)} rows for a batch of {num_sequences}.",
                    "Export with a dynamic batch axis.",
                )
            answers = task.evidence(logits, batch)
            if (wanted := batch.continuation) is not None:
                prompts, most = wanted.inputs(batch.inputs), int(wanted.limits.max())
                answers = wanted.joined(answers, generate(session, prompts, cache, most, wanted.ends))
            parts.append((batch.indices, task.score_by_domain(answers, samples, batch.indices)))
            progress.update(len(batch))
    return Scores.joined(parts)


def _open_pair(original: Path, pruned: Path, task: Task) -> tuple[ExportFolder, ExportFolder]:
    """Check that two folders are usable and about the same task."""
    before, after = read_export_folder(original), read_export_folder(pruned)
    for folder in (before, after):
        if folder.export.task != task.name:
            raise BenchmarkError(
                f"{folder.path} was exported for task {folder.export.task}, not {task.name}.",
                f"Both {before.path} and {after.path} must be of the task that is measured.",
            )
    if before.export.dtype != after.export.dtype:
        raise BenchmarkError(
            f"{before.path} was exported in {before.export.dtype}, {after.path} in {after.export.dtype}.",
            "Export both with the same --dtype: the layers' part could not be told from the precision's.",
        )
    if (before.export.metric, before.export.prompting) != (after.export.metric, after.export.prompting):
        raise BenchmarkError(
            f"{before.path} and {after.path} were exported with different metrics or prompts "
            f"({before.export.metric}, {after.export.metric}).",
            "Export both with the same --metric, prompts and rule for answers.",
        )
    return before, after


def _accuracy(
    before: ExportFolder,
    after: ExportFolder,
    task: Task,
    samples: Mapping[str, Samples],
    processor: Processor,
    settings: BenchmarkSettings,
) -> tuple[dict[str, Accuracy], dict[str, Accuracy]]:
    """Compare on the rows of every labelled role, and of every named domain of the target."""
    accuracy, targets = {}, {}
    for role, rows in samples.items():
        if not rows.is_labelled:
            continue
        one, other = (
            score_exported(folder.path, task, rows, processor, settings) for folder in (before, after)
        )
        accuracy[role] = compare(task, one, other, rows.domains)
        if rows.domains.are_named:
            parts = zip(one.split(rows.domains), other.split(rows.domains), strict=True)
            found = [compare(task, *pair) for pair in parts]
            targets = dict(zip(rows.domains.names, found, strict=True))
    return accuracy, targets


def _latency(
    before: ExportFolder,
    after: ExportFolder,
    workloads: Sequence[Workload],
    providers: Sequence[str],
    settings: BenchmarkSettings,
) -> tuple[tuple[Latency, ...], tuple[str, ...]]:
    """Measure on every provider; return the rows, and in words what was left out."""
    rows: list[Latency] = []
    for provider in dict.fromkeys((CPU, *providers)):
        rows.extend(measure_latency(before, after, workloads, provider, settings))
    if tuple(providers) != (CPU,):
        return tuple(rows), ()
    # Nobody asked for CUDA by name, so that its absence is worth a sentence, not an error.
    available = available_providers()
    if CUDA not in available:
        reason = f"not in this build of onnxruntime (available: {', '.join(available)})"
        return tuple(rows), (f"{CUDA}: {reason}; GPU latency was not measured.",)
    try:
        rows.extend(measure_latency(before, after, workloads, CUDA, settings))
    except BenchmarkError as error:
        reason = error.message.rstrip(".")
        return tuple(rows), (f"{CUDA}: {reason}; GPU latency was not measured.",)
    return tuple(rows), ()
