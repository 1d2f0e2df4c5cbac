"""Sessions of ONNX Runtime on the CPU, as everything opens them but what is timed.

Knows nothing about who wrote a graph, nor what is fed to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .external import read_proto
from .telemetry import import_onnxruntime

# What ONNX Runtime logs. On the CPU all that it refuses is raised as well, and would be told twice.
ERRORS_ONLY, FATAL_ONLY = 3, 4
SPINNING = "session.intra_op.allow_spinning"


def session_on_cpu(
    graph: Path | bytes,
    num_threads: int = 0,
    config_entries: Mapping[str, str] | None = None,
    *,
    is_checked: bool = False,
    is_literal: bool = False,
) -> Any:
    """Open a graph.

    Args:
        graph: A file, or a model in memory.
        num_threads: Of each operator; 0: as many as there are cores.
        config_entries: ONNX Runtime's own, by name.
        is_checked: Whether `read_proto` has taken the file as it is; it is not parsed for that again.
        is_literal: Whether the graph is run as it is written, and nothing in it fused or folded.

    Raises:
        TapiocaError: If a file is no ONNX model, or has its weights elsewhere than beside it.
        Exception: One of `onnxruntime_errors`, if ONNX Runtime refuses the graph.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = num_threads
    if is_literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in (config_entries or {}).items():
        options.add_session_config_entry(name, value)
    if isinstance(graph, Path) and not is_checked:
        read_proto(graph)
    model = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
