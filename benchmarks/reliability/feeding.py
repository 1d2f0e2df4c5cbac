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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from . import covering
from .crashes import CRASHES
from .readers import READERS, Reader
from .spoiling import OUTSIDE
from .watching import Outcome, Watch

STUCK = 30  # seconds; then the process is ended
# In the folder that a process works in: what it found, what it printed, the file that was read last, and
# the folder with valid files.
RESULT, SAID, LAST, INSIDE = "found.json", "said", "last", "inside"
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
    """A reader's file among valid ones, in a folder that is watched.

    Args:
        reader: Reads it.
        scratch: A folder with a copy of the valid files.
        said: Where to say at which line a reader is stuck.
    """

    def __init__(self, reader: Reader, scratch: Path, said: TextIO) -> None:
        outside = scratch / "outside.bin"
        if not outside.is_file():
            outside.write_bytes(bytes(1 << 16))
        self.reader, self.said, self.last = reader, said, scratch / LAST
        self.file = scratch / INSIDE / reader.file
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.watch = Watch(scratch / INSIDE, outside, reader.writes)
        self.replaced = OUTSIDE.encode(), str(outside).encode()

    def try_valid(self, valid: Path, found: Found) -> None:
        """Read valid files first, once without a clock: imports are no part of any measurement.

        A clock that cuts an import short would leave the module broken for the rest of the process.
        """
        for content in valid_contents(self.reader, valid):
            self.feed(content, seconds=0)
            outcome = self.feed(content)
            if outcome.ended != "read":
                found.keep("a valid file is not read", outcome.detail, content)

    def feed(self, content: bytes, seconds: float | None = None) -> Outcome:
        """Put a file there and read it, within some seconds (0: until the process counts as stuck)."""
        content = content.replace(*self.replaced)
        self.last.write_bytes(content)
        self.file.write_bytes(content)
        faulthandler.dump_traceback_later(STUCK, exit=True, file=self.said)
        try:
            return self.watch.run(self.reader.read, self.file, seconds)
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


def feed(wanted: Mapping[str, int], valid: Path, number: int = 0, seconds: float = 60.0) -> dict[str, Found]:
    """Feed readers in a process of their own: first what has broken each before, then generated files.

    Args:
        wanted: Generated files for each of some `READERS`.
        valid: The folder of valid files.
        number: Which files are generated.
        seconds: When to stop early, for each.

    Returns:
        What came of each; of those behind one that took the process with it, nothing.
    """
    with tempfile.TemporaryDirectory(prefix="tapioca-fuzz-") as scratch:
        place = Path(scratch).resolve()
        child = PROCESSES.Process(target=_fed, args=(wanted, valid, place, number, seconds))
        child.start()
        child.join(len(wanted) * seconds + 4 * STUCK)
        if child.is_alive():
            child.kill()
            child.join()
        return _found(place, child.exitcode)


def feed_guided(name: str, valid: Path, seconds: int) -> Found:
    """Feed a reader in a process of its own, with files that coverage guides; atheris has to be installed."""
    with tempfile.TemporaryDirectory(prefix="tapioca-fuzz-") as scratch:
        place = Path(scratch).resolve()
        command = [sys.executable, "-m", covering.__name__, name, str(valid), str(place), str(seconds)]
        with (place / SAID).open("w") as said:
            done = subprocess.run(command, stdout=said, stderr=said, check=False, timeout=seconds + 8 * STUCK)
        return _found(place, done.returncode).get(name, Found())


def _found(place: Path, exit_code: int | None) -> dict[str, Found]:
    """Return what a process wrote down, and that it did not end well if it did not."""
    result, said, last = place / RESULT, place / SAID, place / LAST
    plain = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    found = {name: Found(**values) for name, values in plain.items()}
    if exit_code != 0:
        text = said.read_text(errors="replace") if said.is_file() else ""
        how = "stuck" if "Timeout (" in text else f"ended with {exit_code}"
        name = list(found)[-1] if found else "the harness"
        content = last.read_bytes() if last.is_file() else b""
        found.setdefault(name, Found()).keep(f"the process {how}", text[-500:], content)
    return found


def _fed(wanted: Mapping[str, int], valid: Path, scratch: Path, number: int, seconds: float) -> None:
    """Do it; a function of the module, so that another process finds it."""
    with (scratch / SAID).open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(said)
        warnings.simplefilter("ignore")
        quiet()
        inside = scratch / INSIDE
        shutil.copytree(valid, inside)
        results: dict[str, Found] = {}
        for name, executions in wanted.items():
            results[name] = found = Found()
            write(scratch, results)  # so that it is known whom the process was lost with
            begun = time.process_time()
            try:
                _feed_one(name, valid, scratch, executions, number, seconds, found, said)
            except Exception:
                found.keep("the harness", traceback.format_exc()[-500:], b"")
            found.seconds = round(time.process_time() - begun, 2)
            write(scratch, results)
            shutil.copytree(valid, inside, dirs_exist_ok=True)  # what was written is whole again


def _feed_one(
    name: str,
    valid: Path,
    scratch: Path,
    executions: int,
    number: int,
    seconds: float,
    found: Found,
    said: TextIO,
) -> None:
    plate = Plate(READERS[name], scratch, said)
    plate.try_valid(valid, found)
    for crash, (reader, content) in CRASHES.items():
        if reader == name:
            outcome = plate.feed(content)
            found.known[crash] = outcome.ended
            found.add(outcome, content)
    generated(plate, valid, executions, number, found, time.monotonic() + seconds)


def write(folder: Path, results: Mapping[str, Found]) -> None:
    """Write down what came of readers so far."""
    text = json.dumps({name: asdict(found) for name, found in results.items()})
    (folder / RESULT).write_text(text, encoding="utf-8")


def quiet() -> None:
    """Silence libraries as the command line does; one thread."""
    import logging

    import torch

    from tapioca_export.cli.commands import _prepare_libraries

    _prepare_libraries()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
