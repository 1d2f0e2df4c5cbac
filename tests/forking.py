"""Fresh processes that start at once: forked from one that has imported the libraries and done nothing else.

A process that starts Python and imports PyTorch and transformers takes seconds for it, every time.
"""

from __future__ import annotations

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
    patch.setattr(memory, "subprocess", SimpleNamespace(run=run_module))


def run_forked(
    function: Callable[..., object], *arguments: object, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a function of a module in a fresh process, as `subprocess.run` runs a program."""
    with tempfile.TemporaryDirectory(prefix="tapioca-fork-") as scratch:
        streams = [f"{scratch}/in", f"{scratch}/out", f"{scratch}/err"]
        Path(streams[0]).write_bytes(stdin)
        child = FORKS.Process(target=_run, args=(function, arguments, streams, dict(os.environ)))
        child.start()
        child.join()
        said = [Path(stream).read_bytes() for stream in streams[1:]]
    return subprocess.CompletedProcess([function.__name__], child.exitcode, *said)


def run_script(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a fresh process; what it says is text."""
    done = run_forked(_run_script, str(path), arguments)
    said = (stream.decode() for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, *said)


def run_module(command: list[str], input: bytes = b"", **_: object) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m MODULE ...` as `subprocess.run` does, but forked; it sees this process's environment."""
    return run_forked(_run_module, *command[2:], stdin=input)


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
    streams: list[str],
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        with open(stream, "w" if number else "r") as file:
            os.dup2(file.fileno(), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has closed the one that was
    function(*arguments)
