"""Runtimes: an export folder -> a function from inputs to outputs.

Knows nothing about tasks, samples or timing. To add a runtime, register a function in `RUNTIMES`;
the first line of its docstring is its help text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts import Export, SessionSettings, read
from ..errors import BenchmarkError
from ..external import read_proto
from ..generation import Session, as_one
from ..numbering import num_left
from ..programs import open_program
from ..registry import Table
from .sessions import CPU, CUDA, DEVICES, available_providers, default_settings, open_session

# Opens a folder with these settings; of a runtime that is PyTorch, only the threads and the device count.
Runtime = Callable[[Path, SessionSettings], Session]
RUNTIMES: Table[Runtime] = Table("runtime")
ONNXRUNTIME, COMPILED = "onnxruntime", "torch.compile"
# What runs a format; other formats have the name of what runs them.
_RUNTIME_OF = {"onnx": ONNXRUNTIME}


@dataclass(frozen=True)
class ExportFolder:
    """A folder with exported files, and what its `export.json` says."""

    path: Path
    export: Export

    @property
    def num_layers_left(self) -> float:
        """Layers of this file's own network; one without attention or MLP counts as half of one."""
        return num_left(self.export.num_layers, self.export.drop)

    @property
    def runtime(self) -> str:
        """The name of what runs it."""
        return runtime_of(self.export.format)

    def open(self, settings: SessionSettings, runtime: str | None = None) -> Session:
        """Open its files, with its own runtime or another of PyTorch's.

        Raises:
            TapiocaError: If the runtime refuses them, or the provider.
        """
        return RUNTIMES[runtime or self.runtime](self.path, settings)


def runtime_of(format_: str) -> str:
    """Return the name of what runs files of a format."""
    return _RUNTIME_OF.get(format_, format_)


def read_export_folder(path: Path) -> ExportFolder:
    """Check that a folder holds a usable export, before anything is opened.

    Raises:
        BenchmarkError: If a file is missing, failed its parity check, or is of a format that nothing runs.
        LoadError: If `export.json` or a graph is malformed, or weights beside a graph are missing.
        UnsupportedModelError: If a graph has its weights elsewhere.
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
    if folder.runtime not in RUNTIMES or folder.num_layers_left <= 0:
        raise BenchmarkError(
            f"{path / 'export.json'} describes format {folder.export.format!r} with "
            f"{folder.num_layers_left:g} layers left; a file with at least one is needed, run by "
            f"{', '.join(RUNTIMES)}."
        )
    _require(path, folder.export.files)
    for name in folder.export.files:
        if name.endswith(".onnx"):
            read_proto(path / name)
    return folder


def _require(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise BenchmarkError(
                f"{folder} is not an export folder: it has no {name}.",
                "Make one with: tapioca-export export CHECKPOINT --format onnx -o FOLDER",
            )


def default_num_threads() -> int:
    """Return the number of CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def described(folder: Path) -> dict[str, Any]:
    """Read `export.json` without checking it whole: that takes a library, which `child` would measure."""
    found: dict[str, Any] = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return found


@RUNTIMES.add(ONNXRUNTIME)
def open_with_onnxruntime(folder: Path, settings: SessionSettings) -> Session:
    """ONNX Runtime, one session a file, on the provider asked for and no other.

    Args:
        folder: Export folder; the files that `export.json` names are opened.
        settings: What every session is opened with.

    Returns:
        A function from inputs to outputs, by name. It feeds what the files ask for, in their number
        types, and ignores other inputs; a cache that is not given is empty.

    Raises:
        BenchmarkError: If the provider is missing or replaced by another, or a file is refused.
    """
    export = described(folder)
    graphs = [name for name in export["files"] if name.endswith(".onnx")]
    sessions = [open_session(folder / name, settings) for name in graphs]
    return as_one(sessions, export.get("cache", {}))


def providers_of(runtime: str) -> tuple[str, ...]:
    """Return where a runtime can compute here, by ONNX Runtime's names."""
    if runtime == ONNXRUNTIME:
        return available_providers()
    import torch

    return (CPU, CUDA) if torch.cuda.is_available() else (CPU,)


def settings_on(runtime: str, provider: str, num_threads: int) -> SessionSettings:
    """Return what sessions are opened with unless something faster is known.

    Raises:
        BenchmarkError: If the installed ONNX Runtime does not have the provider, and is to use it.
    """
    if runtime == ONNXRUNTIME:
        return default_settings(provider, num_threads)
    return replace(default_settings(CPU, num_threads), providers=(provider,))


def runtimes_on(runtime: str, provider: str) -> tuple[str, ...]:
    """Return what times files of a runtime on a provider: on CUDA, `torch.compile` beside torch.export's."""
    return (runtime, COMPILED) if runtime == "pt2" and provider == CUDA else (runtime,)


@RUNTIMES.add("torchscript")
def open_with_torchscript(folder: Path, settings: SessionSettings) -> Session:
    """PyTorch's TorchScript interpreter; a file is code, and is trusted.

    Raises:
        LoadError: If PyTorch refuses the file.
    """
    return _open_program(folder, settings)


@RUNTIMES.add("pt2")
def open_with_torch_export(folder: Path, settings: SessionSettings) -> Session:
    """PyTorch, a torch.export file operator by operator; a file is code, and is trusted.

    Raises:
        LoadError: If PyTorch refuses the file.
    """
    return _open_program(folder, settings)


@RUNTIMES.add(COMPILED)
def open_compiled(folder: Path, settings: SessionSettings) -> Session:
    """PyTorch, a torch.export file compiled for every shape (timed on CUDA); a file is code, and is trusted.

    Raises:
        LoadError: If PyTorch refuses the file.
    """
    return _open_program(folder, settings, compiled=True)


def _open_program(folder: Path, settings: SessionSettings, *, compiled: bool = False) -> Session:
    import torch

    torch.set_num_threads(settings.num_threads)  # of the process: PyTorch's sessions share them
    export = described(folder)
    (name,) = export["files"]
    device = DEVICES.get(settings.provider, "cpu")
    return open_program(
        folder / name, export["format"], export["inputs"], export["outputs"], device, compiled
    )
