"""The fastest settings of ONNX Runtime's sessions on this machine, searched for by duels.

Settings are changed one by one, for the original and the pruned file alike: what is fastest so far is timed
against the same with one change, all four sessions in turn on the user's batches of every shape, so that
drift of the machine touches all. A change stays where it is shown to be faster. What the search ends with is
opened anew and timed against what it began with, in rounds that took no part in choosing, and is kept only
if it is faster there, and computes the same. Knows nothing about what the settings are used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Any

import numpy as np

from ..artifacts import OrtSession, Ratio, SessionSettings
from ..bars import progress_bar
from ..errors import BenchmarkError
from ..generation import Session
from ..precision import TOLERANCE
from ..sessions import SPINNING
from ..tasks import Inputs
from .runtimes import ExportFolder
from .sessions import CPU, CUDA, CUDA_GRAPH, default_settings
from .statistics import bootstrap_interval
from .timing import BenchmarkSettings, Workload, time_rounds, without_garbage_collection

# Rounds between two looks at a duel, and most of them; and how rare rounds as one-sided as those seen must be
# where both are equal. All of 8 on one side are: 2 in 256.
ROUNDS, MOST_ROUNDS, LEVEL = 8, 40, 0.01


@dataclass(frozen=True)
class Change:
    """One change of settings, by ONNX Runtime's names."""

    options: Mapping[str, bool | int | str] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)
    io_binding: bool | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)

    def of(self, settings: SessionSettings) -> SessionSettings:
        """Return the settings with the change."""
        return replace(
            settings,
            session_options={**settings.session_options, **self.options},
            config_entries={**settings.config_entries, **self.entries},
            io_binding=settings.io_binding if self.io_binding is None else self.io_binding,
            provider_options={**settings.provider_options, **self.provider_options},
        )


def changes(provider: str, num_threads: int) -> tuple[Change, ...]:
    """Return what is tried on a provider, in this order; threads and memory are those of the CPU's.

    Source: ONNX Runtime's documentation, "Thread management" and "Memory consumption" under
        Performance, "I/O Binding", and "Using CUDA Graphs" of the CUDA provider; of graph optimisation
        levels, those below the default.
    """
    levels = tuple(
        Change({"graph_optimization_level": level}) for level in ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC")
    )
    bound = Change(io_binding=True)
    if provider == CUDA:
        return (bound, Change(io_binding=True, provider_options={CUDA_GRAPH: "1"}), *levels)
    if provider != CPU:
        return (bound, *levels)
    fewer = tuple(Change({"intra_op_num_threads": count}) for count in _fewer_threads(num_threads))
    parallel = Change({"execution_mode": "ORT_PARALLEL", "inter_op_num_threads": num_threads})
    of_threads = (*fewer, Change(entries={SPINNING: "0"}), parallel) if num_threads > 1 else ()
    memory = (Change({"enable_cpu_mem_arena": False}), Change({"enable_mem_pattern": False}))
    return (*of_threads, *levels, *memory, bound)


def _fewer_threads(num_threads: int) -> list[int]:
    """Return the powers of two below a number of threads, the largest first."""
    return [1 << power for power in reversed(range((num_threads - 1).bit_length()))]


def tune(
    original: ExportFolder,
    pruned: ExportFolder,
    workloads: Sequence[Workload],
    provider: str,
    settings: BenchmarkSettings,
    budget_seconds: float,
) -> dict[str, OrtSession]:
    """Search for the fastest settings of either file.

    Args:
        original: Export of the original model.
        pruned: Export of the pruned model.
        workloads: Batches by shape; each shape counts the same.
        provider: Execution provider, by short or full name.
        settings: The most threads; warm-up and rounds of the last comparison; the seed.
        budget_seconds: When to end the search; the last comparison comes on top.

    Returns:
        The settings of "original" and "pruned", those that every session is opened with where no others
        were shown to be faster.

    Raises:
        BenchmarkError: If the runtime refuses the provider, a file or a batch.
    """
    plain = default_settings(provider, settings.threads)
    folders = {"original": original, "pruned": pruned}
    best = dict.fromkeys(folders, plain)
    planned = changes(plain.provider, settings.threads)
    tried, deadline = 0, perf_counter() + budget_seconds
    sessions = {name: folder.open(plain) for name, folder in folders.items()}
    with without_garbage_collection():
        for place, change in enumerate(progress_bar(planned, desc=f"Tuning on {plain.provider}")):
            ends = perf_counter() + (deadline - perf_counter()) / (len(planned) - place)
            duel = _Duel(folders, sessions, {name: change.of(best[name]) for name in folders})
            if not duel.fight(workloads, settings, ends, deadline):
                break
            tried += 1
            for name in duel.won():
                best[name], sessions[name] = duel.challengers[name], duel.sessions[_rival(name)]
    del sessions
    confirmed = _confirm(folders, plain, best, workloads, settings)
    return {
        name: replace(confirmed[name], candidates=tried, planned=len(planned), sha256=folder.export.sha256)
        for name, folder in folders.items()
    }


def _rival(name: str) -> str:
    return f"{name}, changed"


class _Duel:
    """What is fastest so far against the same with one change, for each file."""

    def __init__(
        self,
        folders: Mapping[str, ExportFolder],
        sessions: Mapping[str, Session],
        challengers: Mapping[str, SessionSettings],
    ) -> None:
        self.folders, self.challengers = folders, challengers
        self.sessions = dict(sessions)
        self.logs: dict[str, np.ndarray] = {name: np.empty(0) for name in folders}
        for name, folder in folders.items():
            try:
                self.sessions[_rival(name)] = folder.open(challengers[name])
            except BenchmarkError:  # ONNX Runtime may refuse what does not go together
                del self.logs[name]

    def fight(
        self, workloads: Sequence[Workload], settings: BenchmarkSettings, ends: float, deadline: float
    ) -> bool:
        """Time until it is decided or time is up; tell whether there was time for any round.

        Args:
            workloads: Batches by shape.
            settings: Threads and seed.
            ends: When to stop; a few rounds are run even so.
            deadline: When no more may be run.
        """
        started = perf_counter()
        firsts = [work.batches[0] for work in workloads]
        for name in list(self.logs):
            tolerance = _tolerance(self.folders[name])
            difference = _difference(self.sessions[name], self.sessions[_rival(name)], firsts)
            if not difference <= tolerance:  # NaN is not
                del self.logs[name]
        needed = ROUNDS * (perf_counter() - started)
        while self.logs:
            started = perf_counter()
            if started + needed > deadline:
                return any(map(len, self.logs.values()))
            self._run(workloads, replace(settings, warmup=0, iterations=ROUNDS))
            needed = perf_counter() - started
            if self._is_decided() or perf_counter() + needed > ends:
                break
        return True

    def _run(self, workloads: Sequence[Workload], settings: BenchmarkSettings) -> None:
        taking_part = {name: self.sessions[name] for own in self.logs for name in (own, _rival(own))}
        done = len(next(iter(self.logs.values())))
        seconds = [
            time_rounds(taking_part, work, replace(settings, seed=settings.seed + done)) for work in workloads
        ]
        for name in self.logs:
            self.logs[name] = np.append(self.logs[name], _log_ratios(seconds, name, _rival(name)))

    def _is_decided(self) -> bool:
        found = list(self.logs.values())
        return len(found[0]) >= MOST_ROUNDS or all(map(_is_one_sided, found))

    def won(self) -> list[str]:
        """Return the files for which the change is faster."""
        return [
            name
            for name, logs in self.logs.items()
            if len(logs) and _is_one_sided(logs) and _halves_are_faster(logs)
        ]


def _log_ratios(seconds: Sequence[Mapping[str, np.ndarray]], slow: str, fast: str) -> np.ndarray:
    """Return the log of how much faster one session is, (rounds,), the mean over shapes."""
    return np.asarray(np.mean([np.log(work[slow] / work[fast]) for work in seconds], axis=0))


def _ratio(logs: np.ndarray) -> Ratio:
    """Return the median ratio of times, with its interval."""
    low, high = np.exp(bootstrap_interval(logs, np.median))
    return Ratio(float(np.exp(np.median(logs))), (float(low), float(high)))


def _is_one_sided(logs: np.ndarray) -> bool:
    """Tell whether the rounds favour one session, by the exact sign test."""
    from scipy.stats import binomtest

    return float(binomtest(int((logs > 0).sum()), len(logs)).pvalue) < LEVEL


def _halves_are_faster(logs: np.ndarray) -> bool:
    """Tell whether the median of either half of the rounds is above 0.

    That catches drift and bursts, to which tests that take rounds as independent are blind.
    """
    return bool(min(np.median(half) for half in np.array_split(logs, 2)) > 0)


def _difference(one: Session, other: Session, batches: Sequence[Inputs]) -> float:
    """Return the largest difference of any output of two sessions."""
    differences = [0.0]
    for batch in batches:
        first, second = one(batch), other(batch)
        for name, value in first.items():
            both = (np.asarray(output, np.float64) for output in (value, second[name]))
            differences.append(np.abs(np.subtract(*both)).max(initial=0.0))
    return float(np.max(differences))  # NaN stays NaN


def _confirm(
    folders: Mapping[str, ExportFolder],
    plain: SessionSettings,
    best: Mapping[str, SessionSettings],
    workloads: Sequence[Workload],
    settings: BenchmarkSettings,
) -> dict[str, OrtSession]:
    """Time what was found against what the search began with, in sessions of their own."""
    import onnxruntime

    shapes = tuple((work.batch_size, work.sequence_length, work.phase) for work in workloads)
    names = [name for name in folders if best[name] != plain]
    sessions = {name: folders[name].open(plain) for name in names}
    sessions |= {_rival(name): folders[name].open(best[name]) for name in names}
    unseen = replace(settings, seed=settings.seed + MOST_ROUNDS)
    seconds = [time_rounds(sessions, work, unseen) for work in workloads] if names else []
    batches = [batch for work in workloads for batch in work.batches]
    found = {}
    for name, folder in folders.items():
        tolerance = _tolerance(folder)
        made = OrtSession(
            **_settings_of(plain), shapes=shapes, tolerance=tolerance, onnxruntime=onnxruntime.__version__
        )
        if name in names:
            logs = _log_ratios(seconds, name, _rival(name))
            speedup = _ratio(logs)
            made = replace(made, speedup=speedup, rounds=len(logs))
            difference = _difference(sessions[name], sessions[_rival(name)], batches)
            if _is_confirmed(speedup, logs) and difference <= tolerance:
                made = replace(made, **_settings_of(best[name]), tuned=True, max_abs_difference=difference)
        found[name] = made
    return found


def _is_confirmed(speedup: Ratio, logs: np.ndarray) -> bool:
    """Tell whether the interval is above 1, in either half of the rounds too."""
    return speedup.interval[0] > 1 and _halves_are_faster(logs)


def _tolerance(folder: ExportFolder) -> float:
    """Return how far two sessions of a file may be apart, also of one that was held to nothing."""
    return TOLERANCE if folder.export.tolerance is None else folder.export.tolerance


def _settings_of(settings: SessionSettings) -> dict[str, Any]:
    return {item.name: getattr(settings, item.name) for item in fields(SessionSettings)}
