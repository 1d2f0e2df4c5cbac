"""Feed a reader, in a process of its own, and tell what came of it.

A library may take the process with it, or be stuck where no signal reaches: then the file that it was given
last is what did it, and the next process goes on with other files.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from . import covering
from .crashes import CRASHES
from .mutations import OUTSIDE
from .readers import READERS, Reader
from .watching import Outcome, Watch

STUCK = 30  # seconds; then the process is ended
RESULT = "found.json"
KEPT = 2000  # bytes of a file that broke a reader
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass
class Found:
    """What came of feeding a reader.

    Attributes:
        executions: Files read.
        read: Those that were read to the end.
        refused: Those that were refused with one line.
        seconds: Of processors, with what a process takes to start.
        broken: By what is broken, the shortest file that does it.
        known: What came of each file that once broke the reader, by its name.
    """

    executions: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def add(self, outcome: Outcome, content: bytes) -> None:
        """Count one reading."""
        self.executions += 1
        self.read += outcome.ended == "read"
        self.refused += outcome.ended == "refused"
        if outcome.ended == "broken":
            self.keep(outcome.what, outcome.detail, content)

    def keep(self, what: str, detail: str, content: bytes) -> None:
        """Keep the shortest file of those that break the same."""
        known = self.broken.get(what)
        if known is None or len(content) < known["bytes"]:
            shown = content[:KEPT].decode("latin-1")
            self.broken[what] = {"detail": detail, "bytes": len(content), "file": shown}

    def write(self, folder: Path) -> None:
        """Write it down."""
        self.seconds = round(time.process_time(), 2)
        (folder / RESULT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def join(self, other: Found) -> None:
        """Add what another process found."""
        self.executions += other.executions
        self.read += other.read
        self.refused += other.refused
        self.seconds += other.seconds
        self.known |= other.known
        for what, case in other.broken.items():
            self.keep(what, case["detail"], case["file"].encode("latin-1"))


class Plate:
    """A reader's file in a folder of its own, which is watched."""

    def __init__(self, reader: Reader, valid: Path, scratch: Path, said: TextIO) -> None:
        self.folder = scratch / "inside"
        shutil.copytree(valid, self.folder)
        outside = scratch / "outside.bin"
        outside.write_bytes(bytes(1 << 16))
        self.reader, self.file, self.last, self.said = reader, self.folder / reader.file, scratch / "last", said
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.watch = Watch(self.folder, outside, reader.writes)
        self.replaced = OUTSIDE.encode(), str(outside).encode()

    def feed(self, content: bytes) -> Outcome:
        """Put a file there and read it."""
        content = content.replace(*self.replaced)
        self.last.write_bytes(content)
        self.file.write_bytes(content)
        faulthandler.dump_traceback_later(STUCK, exit=True, file=self.said)
        try:
            return self.watch.run(self.reader.read, self.file)
        finally:
            faulthandler.cancel_dump_traceback_later()


def valid_contents(reader: Reader, valid: Path) -> list[bytes]:
    """Return what spoilt files are made of."""
    file = valid / reader.file
    return [*([file.read_bytes()] if file.is_file() else []), *(text.encode() for text in reader.more)]


def generated(plate: Plate, valid: Path, executions: int, number: int, found: Found, until: float) -> None:
    """Feed generated files, always the same of a number."""

    @seed(number)
    @settings(
        max_examples=executions, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(plate.reader.mutants(valid_contents(plate.reader, valid)))
    def feed(content: bytes) -> None:
        if time.monotonic() < until:
            found.add(plate.feed(content), content)

    feed()


def feed(name: str, valid: Path, executions: int, number: int = 0, seconds: float = 60.0) -> Found:
    """Feed a reader in a process of its own: first what has broken it before, then generated files.

    Args:
        name: Of `READERS`.
        valid: The folder of valid files.
        executions: Generated files.
        number: Which they are.
        seconds: When to stop early.
    """
    with tempfile.TemporaryDirectory(prefix="tapioca-fuzz-") as scratch:
        place = Path(scratch).resolve()
        child = PROCESSES.Process(target=_fed, args=(name, valid, place, executions, number, seconds))
        child.start()
        child.join(seconds + 4 * STUCK)
        if child.is_alive():
            child.kill()
            child.join()
        return _found(place, child.exitcode)


def feed_guided(name: str, valid: Path, seconds: int) -> Found:
    """Feed a reader in a process of its own, with files that coverage guides; atheris has to be installed."""
    with tempfile.TemporaryDirectory(prefix="tapioca-fuzz-") as scratch:
        place = Path(scratch).resolve()
        command = [sys.executable, "-m", covering.__name__, name, str(valid), str(place), str(seconds)]
        with (place / "said").open("w") as said:
            done = subprocess.run(command, stdout=said, stderr=said, check=False, timeout=seconds + 8 * STUCK)
        return _found(place, done.returncode)


def _found(place: Path, exit_code: int | None) -> Found:
    """Return what a process wrote down, and that it did not end well if it did not."""
    result, said, last = place / RESULT, place / "said", place / "last"
    found = Found(**json.loads(result.read_text(encoding="utf-8"))) if result.is_file() else Found()
    if exit_code != 0:
        text = said.read_text(errors="replace") if said.is_file() else ""
        how = "stuck" if "Timeout (" in text else f"ended with {exit_code}"
        found.keep(f"the process {how}", text[-500:], last.read_bytes() if last.is_file() else b"")
    return found


def _fed(name: str, valid: Path, scratch: Path, executions: int, number: int, seconds: float) -> None:
    """Do it; a function of the module, so that another process finds it."""
    with (scratch / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(said)
        faulthandler.dump_traceback_later(3 * STUCK, exit=True, file=said)
        warnings.simplefilter("ignore")
        found = Found()
        try:
            quiet()
            plate = Plate(READERS[name], valid, scratch, said)
            for content in valid_contents(plate.reader, valid):
                plate.feed(content)  # imports are no part of any measurement
                outcome = plate.feed(content)
                if outcome.ended != "read":  # then what is made of it would not get far
                    found.keep("a valid file is not read", outcome.detail, content)
            for crash, (reader, content) in CRASHES.items():
                if reader == name:
                    outcome = plate.feed(content)
                    found.known[crash] = outcome.ended
                    found.add(outcome, content)
            generated(plate, valid, executions, number, found, time.monotonic() + seconds)
        except Exception:
            found.keep("harness", traceback.format_exc()[-500:], b"")
        found.write(scratch)


def quiet() -> None:
    """Silence libraries as the command line does; one thread."""
    import logging

    import torch

    from tapioca_export.cli.commands import _prepare_libraries

    _prepare_libraries()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
