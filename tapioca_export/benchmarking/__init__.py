"""Benchmark: two export folders, original and pruned, compared as users will meet them.

`runtimes` opens an exported file, `sessions` ONNX Runtime's, `scoring` has per-sample results, `statistics`
compares them, `flipping` names the rows that changed,
`timing` measures interleaved latency, `tuning` searches for the fastest settings, `memory` starts a child
process for memory and load time (`child` is what runs there), `stage` puts them together. Knows nothing
about networks: what is measured is the file.
To add a runtime, register one function in `RUNTIMES`.
"""

from __future__ import annotations

from .gpu import missing_for_gpu
from .memory import measure_memory_and_load
from .runtimes import RUNTIMES, Runtime
from .scoring import score_exported
from .sessions import default_settings, resolve_provider
from .stage import SESSION_FILE, benchmark, fastest_sessions, time_exports
from .statistics import compare
from .timing import BenchmarkSettings, Workload, make_workloads, measure_latency

__all__ = [
    "RUNTIMES",
    "SESSION_FILE",
    "BenchmarkSettings",
    "Runtime",
    "Workload",
    "benchmark",
    "compare",
    "default_settings",
    "fastest_sessions",
    "make_workloads",
    "measure_latency",
    "measure_memory_and_load",
    "missing_for_gpu",
    "resolve_provider",
    "score_exported",
    "time_exports",
]
