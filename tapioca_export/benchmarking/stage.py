"""The stage: two export folders and the report rows -> `Benchmark`.

Knows which measurement comes when and what to leave out; how each is done is its siblings' part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..artifacts import Accuracy, Benchmark, Flip, Groups, Latency, OrtSession, Pair
from ..errors import TapiocaError
from ..generation import CacheShapes, Evaluation, cache_bytes
from ..precision import DTYPES
from ..samples import Samples
from ..tasks import Processor, Task
from .flipping import changed_rows, flips_of, num_still_wrong
from .grouping import compare_groups
from .memory import measure_memory_and_load
from .pairing import compare_fusions, open_pair
from .runtimes import ONNXRUNTIME, ExportFolder, providers_of, runtimes_on
from .scoring import Scoring
from .sessions import CPU, CUDA, default_settings, resolve_provider
from .statistics import compare
from .timing import BenchmarkSettings, Workload, make_workloads, measure_latency
from .tuning import tune

SESSION_FILE = "ort_session.json"
NO_STEPS = "Single tokens were not timed: layers cache keys and values of several shapes."
_DEFAULTS = BenchmarkSettings()

logger = logging.getLogger(__name__)


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
    made of the target's rows, since that is what production sends. Memory is the CPU's. With a budget for
    tuning, latency, memory and load time are those of the fastest settings found for each file. Files that
    PyTorch runs are code: they are trusted here.

    Args:
        original: Export folder of the original model.
        pruned: Export folder of the pruned model.
        task: The task of both.
        samples: Report rows by "id" and "target"; a role without labels is not scored.
        processor: What encodes the rows.
        settings: What to measure, and how often.

    Raises:
        BenchmarkError: If the folders do not belong together, are not usable exports, or a
            provider that was asked for cannot be used; if a layer is fused in one and not in the other; or
            if results are not what the files answer.
    """
    sizes = (f"{len(rows)} {name}" for name, rows in samples.items())
    logger.info("Benchmarking on %s rows", " and ".join(sizes))
    before, after = open_pair(original, pruned, task, settings)
    providers = tuple(dict.fromkeys(map(resolve_provider, settings.providers)))
    rows = samples.get("target") or samples["id"]
    cache = shared_cache(before.export.cache, after.export.cache)
    workloads = make_workloads(task, rows, processor, settings, cache, before.export.dtype)
    scored = _score(before, after, task, samples, processor, settings)
    domains = rows.domains
    latency, tuned, skipped = _latency(before, after, workloads, providers, settings)
    largest = max(workloads, key=lambda work: work.batch_size * work.sequence_length).batches[0]
    plain = default_settings(CPU, settings.threads)
    memory = [
        measure_memory_and_load(folder.path, tuned.get(CPU, {}).get(name, plain), largest)
        for name, folder in (("original", before), ("pruned", after))
    ]
    if (uncompared := compare_fusions(before, after)) is not None:
        skipped = (*skipped, uncompared)
    skipped = (*skipped, *scored.left_out)
    num_bytes = DTYPES[before.export.dtype].num_bytes
    caches = Pair(*(cache_bytes(folder.export.cache, num_bytes) for folder in (before, after)))
    return Benchmark(
        task=task.name,
        accuracy=scored.accuracy,
        latency=latency,
        size_bytes=Pair(before.export.size_bytes, after.export.size_bytes),
        peak_memory_bytes=Pair(*(peak_bytes for peak_bytes, _ in memory)),
        load_seconds=Pair(*(seconds for _, seconds in memory)),
        drop=after.export.drop,
        damp=after.export.damp,
        cache_bytes_per_token=caches if before.export.cache else None,
        objective=domains.objective if domains.are_named else None,
        targets=scored.targets,
        groups=scored.groups,
        flips=scored.flips,
        sessions=_fastest_first(tuned, latency),
        skipped=skipped if cache or not after.export.cache else (*skipped, NO_STEPS),
    )


def shared_cache(original: CacheShapes, pruned: CacheShapes) -> CacheShapes:
    """Return the cache inputs that both files can be given; none where layers, numbered anew, differ."""
    return original if pruned.items() <= original.items() else {}


def time_exports(
    original: Path,
    pruned: Path,
    task: Task,
    samples: Samples,
    processor: Processor,
    settings: BenchmarkSettings = _DEFAULTS,
) -> tuple[tuple[Latency, ...], tuple[str, ...]]:
    """Compare the latency of two files for PyTorch, on the CPU and on CUDA, if there is, and nothing else.

    Returns:
        The rows, and in words what was not timed.

    Raises:
        BenchmarkError: If the folders do not belong together, or are not usable exports.
    """
    settings = replace(settings, providers=("cpu",), tune_seconds=None)
    before, after = open_pair(original, pruned, task, settings)
    cache = shared_cache(before.export.cache, after.export.cache)
    workloads = make_workloads(task, samples, processor, settings, cache, before.export.dtype)
    rows, _, skipped = _latency(before, after, workloads, (CPU,), settings)
    return rows, skipped


def fastest_sessions(measured: Benchmark, original: Path, pruned: Path) -> dict[Path, OrtSession]:
    """Return by export folder what it was fastest with, where that was searched for."""
    folders = {"original": original, "pruned": pruned}
    return {folders[name]: sessions[0] for name, sessions in measured.sessions.items() if sessions}


@dataclass
class _Scored:
    """What was found of the task's results, and in words what of them was left out."""

    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    targets: dict[str, Accuracy] = field(default_factory=dict)
    groups: dict[str, Groups] = field(default_factory=dict)
    flips: dict[str, tuple[Flip, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def _score(
    before: ExportFolder,
    after: ExportFolder,
    task: Task,
    samples: Mapping[str, Samples],
    processor: Processor,
    settings: BenchmarkSettings,
) -> _Scored:
    """Compare on the rows of every labelled role, named domain and group; name the rows that flip."""
    found = _Scored()
    for role, rows in samples.items():
        if not rows.is_labelled:
            continue
        scoring, folders = Scoring(Evaluation(task, rows, processor), settings), (before.path, after.path)
        (one, other), said = zip(*(scoring.answered(folder) for folder in folders), strict=True)
        scoring.prove(folders, (one, other))
        still_wrong = num_still_wrong(task, (one, other), said)
        found.accuracy[role] = replace(compare(task, one, other, rows.domains), still_wrong=still_wrong)
        worth = [task.row_values(scores.values) for scores in (one, other)]
        found.flips[role] = ()
        if worth[0] is not None and worth[1] is not None:
            changed = changed_rows(worth[0], worth[1], task.higher_is_better)
            found.flips[role] = flips_of(changed, worth[0], worth[1], rows, said, redact=settings.redact)
        if rows.domains.are_named:
            parts = zip(one.split(rows.domains), other.split(rows.domains), strict=True)
            words = [rows.domains.split(np.asarray(part, dtype=object)) for part in said]
            each = [
                replace(compare(task, *pair), still_wrong=num_still_wrong(task, pair, own))
                for pair, own in zip(parts, zip(*words, strict=True), strict=True)
            ]
            found.targets = dict(zip(rows.domains.names, each, strict=True))
        groups, left_out = compare_groups(task, one, other, rows, redact=settings.redact)
        if groups is not None:
            found.groups[role] = groups
        found.left_out += left_out
    return found


Tuned = Mapping[str, Mapping[str, OrtSession]]


def timed_on(runtime: str, providers: Sequence[str]) -> tuple[str, ...]:
    """Return where files of a runtime are timed: on CUDA too, where there is one and nobody named another."""
    asked = tuple(dict.fromkeys((CPU, *providers)))
    tries_cuda = tuple(providers) == (CPU,) and CUDA in providers_of(runtime)
    return (*asked, CUDA) if tries_cuda else asked


def _latency(
    before: ExportFolder,
    after: ExportFolder,
    workloads: Sequence[Workload],
    providers: Sequence[str],
    settings: BenchmarkSettings,
) -> tuple[tuple[Latency, ...], Tuned, tuple[str, ...]]:
    """Measure on every provider; return rows, settings by provider, and in words what was left out."""
    available, asked = providers_of(before.runtime), (CPU, *providers)
    # Nobody asked for CUDA by name, so that its absence is worth a sentence, not an error.
    tries_cuda = tuple(providers) == (CPU,)
    rows: list[Latency] = []
    tuned: dict[str, Mapping[str, OrtSession]] = {}
    timed = timed_on(before.runtime, providers)
    for provider in timed:
        try:
            runtime = before.runtime
            if settings.tune_seconds is not None:
                share = settings.tune_seconds / len(timed)
                tuned[provider] = tune(before, after, workloads, provider, settings, share)
            for runtime in runtimes_on(before.runtime, provider):
                opened_with = tuned.get(provider)
                rows += measure_latency(before, after, workloads, provider, settings, opened_with, runtime)
        except TapiocaError as error:
            if provider in asked:
                raise
            tuned.pop(provider, None)  # of sessions that were not timed nothing is known
            reason = error.message.rstrip(".")
            if runtime == ONNXRUNTIME:
                return tuple(rows), tuned, (f"{CUDA}: {reason}; GPU latency was not measured.",)
            return tuple(rows), tuned, (f"{runtime} on CUDA: {reason}; it was not timed there.",)
    if tries_cuda and CUDA not in available and before.runtime == ONNXRUNTIME:
        reason = f"not in this build of onnxruntime (available: {', '.join(available)})"
        return tuple(rows), tuned, (f"{CUDA}: {reason}; GPU latency was not measured.",)
    return tuple(rows), tuned, ()


def _fastest_first(tuned: Tuned, rows: Sequence[Latency]) -> dict[str, tuple[OrtSession, ...]]:
    """Return the settings of either file, those of the provider first that took it the least time."""

    def seconds(name: str, provider: str) -> float:
        mine = (row for row in rows if row.provider == provider)
        return float(np.mean([np.log(getattr(row, name).p50_ms) for row in mine]))

    by_time = {name: sorted(tuned, key=lambda own: seconds(name, own)) for name in ("original", "pruned")}
    return {name: tuple(tuned[own][name] for own in order) for name, order in by_time.items() if order}
