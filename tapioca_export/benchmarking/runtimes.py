"""Runtimes: an export folder -> a function from inputs to outputs.

Knows nothing about tasks, samples or timing. To add a runtime, register a function in `RUNTIMES`;
the first line of its docstring is its help text.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Export, read
from ..errors import BenchmarkError, first_line, onnxruntime_errors
from ..generation import Session, as_one, with_positions
from ..numbering import num_left
from ..precision import NUMPY_TYPES
from ..registry import Table
from ..tasks import Inputs

Runtime = Callable[[Path, str, int], Session]
RUNTIMES: Table[Runtime] = Table("runtime")

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_SHORT_NAMES = {"cpu": CPU, "cuda": CUDA}


@dataclass(frozen=True)
class ExportFolder:
    """A folder with ONNX files, and what its `export.json` says."""

    path: Path
    export: Export

    @property
    def num_layers_left(self) -> float:
        """Layers of this file's own network; one without attention or MLP counts as half of one."""
        return num_left(self.export.num_layers, self.export.drop)


def read_export_folder(path: Path) -> ExportFolder:
    """Check that a folder holds a usable export, before anything is opened.

    Raises:
        BenchmarkError: If a file is missing, failed its parity check, or is not ONNX.
        LoadError: If `export.json` is malformed.
    """
    path = Path(path)
    # A failed parity check leaves the file under this name, as evidence only.
    if failed := sorted(path.glob("*.invalid")):
        raise BenchmarkError(
            f"{path} holds {failed[0].name}: the export failed its parity check.",
            "Export the checkpoint again; a file that computes something else is not measured.",
        )
    _require(path, ["export.json"])
    folder = ExportFolder(path, read(path / "export.json", Export))
    if folder.export.format != "onnx" or folder.num_layers_left <= 0:
        raise BenchmarkError(
            f"{path / 'export.json'} describes format {folder.export.format!r} with "
            f"{folder.num_layers_left:g} layers left; an ONNX file with at least one is needed."
        )
    _require(path, folder.export.files)
    return folder


def _require(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise BenchmarkError(
                f"{folder} is not an ONNX export folder: it has no {name}.",
                "Make one with: tapioca-export export CHECKPOINT --format onnx -o FOLDER",
            )


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime."""
    import onnxruntime

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
        hint = "Install onnxruntime-gpu in place of onnxruntime, or use --provider cpu."
    else:
        hint = "Use cpu, cuda, or one of the available names in full."
    asked = name if name == provider else f"{name} ({provider})"
    raise BenchmarkError(
        f"Provider {asked} is not in this build of onnxruntime (available: {', '.join(available)}).",
        hint,
    )


def default_num_threads() -> int:
    """Return the number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@RUNTIMES.add("onnxruntime")
def open_with_onnxruntime(folder: Path, provider: str, num_threads: int) -> Session:
    """ONNX Runtime, one session a file, on the provider asked for and no other.

    Args:
        folder: Export folder; the files that `export.json` names are opened.
        provider: `cpu`, `cuda` or a provider's full name.
        num_threads: Threads of one operator; operators run one after another.

    Returns:
        A function from inputs to outputs, by name. It feeds what the files ask for, in their number
        types, and ignores other inputs; a cache that is not given is empty.

    Raises:
        BenchmarkError: If the provider is missing or replaced by another, or a file is refused.
    """
    import onnxruntime

    asked = resolve_provider(provider)
    if asked == CUDA:
        # Finds CUDA and cuDNN in pip packages. It reports to stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    # Without the check of the whole artifact, whose library would be measured with the file in `child`.
    export = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    graphs = [name for name in export["files"] if name.endswith(".onnx")]
    return as_one([_open(folder / name, asked, num_threads) for name in graphs], export.get("cache", {}))


def _open(file: Path, provider: str, num_threads: int) -> Session:
    """Open one file.

    Raises:
        BenchmarkError: If the provider is replaced by another, or the file is refused.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            str(file), _session_options(num_threads), providers=[provider], enable_fallback=0
        )
    except onnxruntime_errors() as error:
        raise BenchmarkError(f"ONNX Runtime cannot open {file} on {provider}: {first_line(error)}") from error
    used = session.get_providers()[0]
    if used != provider:
        raise BenchmarkError(
            f"{provider} was asked for, but ONNX Runtime fell back to {used} "
            f"(available: {', '.join(available_providers())}).",
            "The provider's libraries or its device are missing: run tapioca-export doctor, "
            "or use --provider cpu.",
        )
    return _runner(session, file)


def _session_options(num_threads: int) -> Any:
    """Fix the threads, and keep a session from disturbing the one that is timed after it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # Idle pools spin for a while after a run; sessions timed in turn would steal each other's CPUs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _runner(session: Any, file: Path) -> Session:
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
            return dict(zip(outputs, session.run(outputs, feed), strict=True))
        except errors as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            raise BenchmarkError(
                f"ONNX Runtime cannot run {file} on {shapes}: {first_line(error)}"
            ) from error

    return run
