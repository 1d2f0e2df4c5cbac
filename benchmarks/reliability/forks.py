"""Commands in processes that are forked from this one, which has imported all that they import.

A process that starts Python and imports PyTorch takes seconds, so that most instants would be of imports. The
processes that a command itself starts are forked from it as well.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

PATIENCE_S = 300.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MODULES = (
    "tapioca_export.pipeline", "tapioca_export.renewing", "tapioca_export.starting", "tapioca_export.prover",
    "tapioca_export.collating", "tapioca_export.gating", "onnxruntime.quantization",
)  # fmt: skip
Injury = Callable[[], None]


@dataclass
class Room:
    """A folder to run in: `here` is where outputs go, `tmp` what TMPDIR names, both empty at first."""

    path: Path
    here: Path = field(init=False)
    tmp: Path = field(init=False)

    def __post_init__(self) -> None:
        """Make the folders."""
        self.here, self.tmp = self.path / "here", self.path / "tmp"
        for folder in (self.here, self.tmp):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass
class Done:
    """How a command ended: its code (negative: the signal), what it printed, how long it ran (s)."""

    code: int
    said: str
    printed: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Return its lines of errors."""
        return [line for line in self.said.splitlines() if line.startswith("Error: ")]

    def crash(self) -> str:
        """Return the last line of a traceback, or how the process died; else nothing."""
        if "Traceback" in self.said or "Exception ignored" in self.said:
            return "traceback: " + self.said.strip().splitlines()[-1]
        return ""


@dataclass
class Running:
    """A command under way."""

    pid: int
    room: Room
    started: float

    def send(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal, if the command is still there; `to_all` as a terminal: to what it started too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if to_all else os.kill(self.pid, number)

    def wait(self) -> Done:
        """Wait for the end, and see that nothing stays that it started."""
        deadline = time.monotonic() + PATIENCE_S
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL, to_all=True)
            time.sleep(0.002)
        seconds = time.monotonic() - self.started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            for _ in range(250):  # a fork that is dying still holds what it has inherited, locks too
                os.killpg(self.pid, 0)
                time.sleep(0.002)
        said, printed = (
            (self.room.path / name).read_text(encoding="utf-8", errors="replace") for name in ("err", "out")
        )
        return Done(os.waitstatus_to_exitcode(ended[1]), said, printed, seconds)


def start(arguments: Sequence[str], room: Room, injury: Injury | None = None) -> Running:
    """Start `tapioca-export` with these arguments in a fork; `injury` is done there first."""
    sys.stdout.flush()
    # What arrives before the command could take it waits: no user's process is a fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        return Running(pid, room, time.monotonic())
    code = 70
    try:
        os.setpgid(0, 0)
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(room.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.environ["TMPDIR"] = tempfile.tempdir = str(room.tmp)
        os.chdir(room.here)
        code = _run(arguments, injury)
    finally:
        os._exit(code)


def _run(arguments: Sequence[str], injury: Injury | None) -> int:
    from tapioca_export.__main__ import start as start_command
    from tapioca_export.stopping import stopped_by_signals

    sys.argv = ["tapioca-export", *arguments]
    tqdm.set_lock(RLock())  # or forks share one, and who is killed with it in hand keeps it
    try:
        with stopped_by_signals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            if injury is not None:
                injury()
            start_command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    return 0


def run(arguments: Sequence[str], room: Room, injury: Injury | None = None) -> Done:
    """Run a command to its end."""
    return start(arguments, room, injury).wait()


def start_fresh(arguments: Sequence[str], room: Room) -> Running:
    """Start a command as users do, in a process that starts Python and imports everything."""
    environment = {**os.environ, "TMPDIR": str(room.tmp)}
    with (room.path / "out").open("w") as out, (room.path / "err").open("w") as err:
        command = [sys.executable, "-m", "tapioca_export", *arguments]
        process = subprocess.Popen(
            command, cwd=room.here, env=environment, stdout=out, stderr=err, process_group=0
        )
    process.returncode = 0  # it is waited for here, not by its destructor
    return Running(process.pid, room, time.monotonic())


# --- what commands start themselves ---------------------------------------------------------


def prepare(world: Path, formats: tuple[str, ...]) -> None:
    """Import what commands import, by one export here, and let forks of this process fork what they start."""
    import tapioca_export as library

    # Commands heed Ctrl-C and a hang-up, also where this process is in the background or under nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in MODULES:
        importlib.import_module(name)
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import pytest
    from quickening import collect_less, quicken

    from tapioca_export.benchmarking import child, memory
    from tapioca_export.models import proof

    quicken(pytest.MonkeyPatch())
    proof._run_fresh = lambda job: _fork(proof._reload, job)  # type: ignore[attr-defined]

    def measured(command: list[str], input: bytes = b"", **_: Any) -> subprocess.CompletedProcess[bytes]:
        import json

        return _fork(lambda: print(json.dumps(child.main(command[3:])), flush=True), input)

    memory.subprocess = SimpleNamespace(run=measured)  # type: ignore[assignment]
    memory.NUM_CHILDREN = 1
    given = library.RunConfig(str(world / "model"), id=world / "id.jsonl", format=formats, num_threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        library.export(replace(given, output=Path(scratch) / "out"))
    collect_less()


def _fork(function: Callable[[], object], given: bytes) -> subprocess.CompletedProcess[bytes]:
    """Call a function in a fork, as `subprocess.run` runs a program; like that, kill it when interrupted."""
    streams = [os.memfd_create(name) for name in ("in", "out", "err")]
    os.write(streams[0], given)
    os.lseek(streams[0], 0, os.SEEK_SET)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            function()
            code = 0
        except SystemExit as end:
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    said = []
    for stream in streams[1:]:
        os.lseek(stream, 0, os.SEEK_SET)
        with os.fdopen(stream, "rb") as file:
            said.append(file.read())
    os.close(streams[0])
    return subprocess.CompletedProcess([function.__name__], os.waitstatus_to_exitcode(status), *said)
