"""Fresh processes that start at once: forked from one that has imported the libraries and done nothing else.

A process that starts Python and imports PyTorch and transformers takes seconds for it, every time.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tapioca_export.benchmarking import memory
from tapioca_export.models import proof

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tapioca_export.models.proof", "transformers.generation", "transformers.models.auto.modeling_auto"]
)


def fork_proofs(patch: pytest.MonkeyPatch) -> None:
    """Fork the process of each proof, rather than start it."""
    patch.setattr(proof, "_run_fresh", lambda job: run_forked(proof._reload, stdin=job))


def fork_measures(patch: pytest.MonkeyPatch) -> None:
    """Measure memory and load time once, in a fork."""
    patch.setattr(memory, "NUM_CHILDREN", 1)
    patch.setattr(memory, "subprocess", SimpleNamespace(run=run_module, DEVNULL=subprocess.DEVNULL))


def run_forked(
    function: Callable[..., object], *arguments: object, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a function of a module in a fresh process, as `subprocess.run` runs a program."""
    with tempfile.TemporaryDirectory(prefix="tapioca-fork-") as scratch:
        streams = [f"{scratch}/out", f"{scratch}/err"]
        child = FORKS.Process(target=_run, args=(function, arguments, stdin, streams, dict(os.environ)))
        child.start()
        child.join()
        said = [Path(stream).read_text(encoding="utf-8") for stream in streams]
    return subprocess.CompletedProcess([function.__name__], child.exitcode, *said)


def run_script(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a fresh process."""
    return run_forked(_run_script, str(path), arguments)


def run_module(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ...` as `subprocess.run` does, but forked; it sees this process's environment."""
    return run_forked(_run_module, *command[2:])


def _run_module(name: str, *arguments: str) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__")


def _run_script(path: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


def _run(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    stdin: str,
    streams: list[str],
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = io.StringIO(stdin)
    for number, stream in enumerate(streams, start=1):
        with open(stream, "w") as file:
            os.dup2(file.fileno(), number)
    function(*arguments)
