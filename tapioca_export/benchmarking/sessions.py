"""ONNX Runtime's sessions: one file, opened with settings -> a function from inputs to outputs.

Knows nothing about export folders, tasks or timing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import SessionSettings
from ..errors import BenchmarkError, first_line, onnxruntime_errors
from ..generation import Session, with_positions
from ..precision import NUMPY_TYPES
from ..sessions import ERRORS_ONLY
from ..tasks import Inputs
from ..telemetry import import_onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SHORT_NAMES = {"cpu": CPU, "cuda": CUDA}
# The option of CUDA's provider that records the kernels of a run and sends them off as one from then on.
CUDA_GRAPH = "enable_cuda_graph"
# Where a provider computes, by PyTorch's and ONNX Runtime's name, where that is not the CPU.
DEVICES = {CUDA: "cuda", "TensorrtExecutionProvider": "cuda"}


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime."""
    onnxruntime = import_onnxruntime()
    return tuple(onnxruntime.get_available_providers())


def resolve_provider(name: str) -> str:
    """Return ONNX Runtime's full name of a provider (`cpu`, `cuda` or already a full name).

    Raises:
        BenchmarkError: If the installed ONNX Runtime does not have it.
    """
    provider = _SHORT_NAMES.get(name.lower(), name)
    available = available_providers()
    if provider in available:
        return provider
    if provider == CUDA:
        hint = "Install onnxruntime-gpu (tapioca-export doctor says what is missing), or use --provider cpu."
    else:
        hint = "Use cpu, cuda, or one of the available names in full."
    asked = name if name == provider else f"{name} ({provider})"
    raise BenchmarkError(
        f"Provider {asked} is not in this build of onnxruntime (available: {', '.join(available)}).",
        hint,
    )


def default_settings(provider: str, num_threads: int) -> SessionSettings:
    """Return what every session is opened with unless something faster is known.

    Args:
        provider: `cpu`, `cuda` or a provider's full name.
        num_threads: Threads of one operator; operators run one after another.

    Raises:
        BenchmarkError: If the installed ONNX Runtime does not have the provider.
    """
    return SessionSettings(
        providers=(resolve_provider(provider),),
        session_options={
            "intra_op_num_threads": num_threads,
            "inter_op_num_threads": 1,
            "execution_mode": "ORT_SEQUENTIAL",
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "enable_cpu_mem_arena": True,
            "enable_mem_pattern": True,
        },
        # Idle pools spin for a while after a run; sessions timed in turn would steal each other's CPUs.
        config_entries={"session.force_spinning_stop": "1"},
    )


def session_options(settings: SessionSettings) -> Any:
    """Return ONNX Runtime's own object of these settings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    for name, value in settings.session_options.items():
        # A text is the name of a member of the attribute's enumeration.
        setattr(options, name, getattr(type(getattr(options, name)), str(value), value))
    for key, entry in settings.config_entries.items():
        options.add_session_config_entry(key, entry)
    return options


def open_session(file: Path | bytes, settings: SessionSettings) -> Session:
    """Open one file, or a graph in memory, on the provider asked for and no other.

    Returns:
        A function from inputs to outputs, by name. It feeds what the file asks for, in its number types,
        and ignores other inputs.

    Raises:
        BenchmarkError: If the provider is replaced by another, or the file is refused.
    """
    onnxruntime = import_onnxruntime()
    provider, name = settings.provider, "a graph" if isinstance(file, bytes) else str(file)
    if provider in DEVICES:
        # Finds CUDA and cuDNN in pip packages. It reports to stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else name,
            session_options(settings),
            providers=[(provider, dict(settings.provider_options)), *settings.providers[1:]],
            enable_fallback=0,
        )
    except onnxruntime_errors() as error:
        raise BenchmarkError(f"ONNX Runtime cannot open {name} on {provider}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise BenchmarkError(
            f"{provider} was asked for, but ONNX Runtime fell back to {used} "
            f"(available: {', '.join(available_providers())}).",
            "The provider's libraries or its device are missing: run tapioca-export doctor, "
            "or use --provider cpu.",
        )
    outputs = [node.name for node in session.get_outputs()]
    device = DEVICES.get(provider, "cpu")
    if settings.provider_options.get(CUDA_GRAPH) == "1":
        return _fed(session, name, _Captured(session, outputs, device))
    if settings.io_binding:
        return _fed(session, name, _bound(session, outputs, device))
    return _fed(session, name, lambda feed: session.run(outputs, feed))


def _bound(session: Any, outputs: list[str], device: str) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Return what runs a session on inputs bound to where it computes, its outputs taken from there."""

    def run(feed: Mapping[str, np.ndarray]) -> Any:
        binding, _ = _bind(session, feed, outputs, device)
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()

    return run


def _bind(
    session: Any, feed: Mapping[str, np.ndarray], outputs: Sequence[str], device: str
) -> tuple[Any, dict[str, Any]]:
    """Return what binds a session's inputs and outputs to tensors of a device, and the inputs' tensors."""
    import onnxruntime

    binding, inputs = session.io_binding(), {}
    for name, value in feed.items():
        array = np.asarray(value, order="C")
        inputs[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, inputs[name])
    for name in outputs:
        binding.bind_output(name, device)
    return binding, inputs


class _Captured:
    """Runs a session on tensors that stay in place, so that CUDA replays what it recorded of a shape.

    Every shape has its graph and its tensors: a run copies inputs into them and outputs out of them.

    Source: ONNX Runtime's documentation, "CUDA Execution Provider", "Using CUDA Graphs".
    """

    def __init__(self, session: Any, outputs: Sequence[str], device: str) -> None:
        self.session, self.outputs, self.device = session, outputs, device
        self.graphs: dict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any], Any]] = {}

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Any:
        """Run one batch; the shapes' first run is recorded."""
        shapes = tuple(value.shape for value in feed.values())
        if shapes not in self.graphs:
            self.graphs[shapes] = self._prepare(feed)
        binding, inputs, options = self.graphs[shapes]
        for name, value in feed.items():
            inputs[name].update_inplace(np.asarray(value, order="C"))
        self.session.run_with_iobinding(binding, options)
        return binding.copy_outputs_to_cpu()

    def _prepare(self, feed: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, Any], Any]:
        """Bind tensors for inputs, and for outputs those that a run without recording brings forth."""
        binding, inputs = _bind(self.session, feed, self.outputs, self.device)
        self.session.run_with_iobinding(binding, _graph_number(-1))  # recorded are those from 0 up
        for name, value in zip(self.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding, inputs, _graph_number(len(self.graphs) + 1)


def _graph_number(number: int) -> Any:
    """Return the options of runs that CUDA takes for one graph."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _fed(session: Any, file: str, call: Callable[[Mapping[str, np.ndarray]], Any]) -> Session:
    """Return the function that feeds one session."""
    types = {node.name: node.type for node in session.get_inputs()}
    if unknown := sorted(set(types.values()) - NUMPY_TYPES.keys()):
        raise BenchmarkError(f"{file} takes {unknown[0]}, which NumPy does not have.", "Export it in fp16.")
    dtypes = {name: NUMPY_TYPES[kind] for name, kind in types.items()}
    outputs = [node.name for node in session.get_outputs()]
    errors = onnxruntime_errors()

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        inputs = with_positions(inputs, dtypes)
        missing = dtypes.keys() - inputs.keys()
        if missing:
            raise BenchmarkError(
                f"{file} needs input {', '.join(sorted(missing))}; "
                f"the task gives {', '.join(sorted(inputs))}."
            )
        feed: dict[str, np.ndarray] = {
            name: np.asarray(inputs[name], dtype=dtype) for name, dtype in dtypes.items()
        }
        try:
            return dict(zip(outputs, call(feed), strict=True))
        except errors as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            raise BenchmarkError(
                f"ONNX Runtime cannot run {file} on {shapes}: {first_line(error)}"
            ) from error

    return run
