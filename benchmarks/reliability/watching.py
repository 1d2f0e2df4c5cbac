"""One reading under watch: what came of it, and whether it kept within its time, memory and folder.

Python reports files that it opens, processes and connections to an audit hook; a file that a library opens by
itself is reported by the system, for one file that nobody has any business to open. Hooks cannot be taken
off again, so whoever watches should be a process of its own. Linux only.

Knows nothing about what is read.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from tapioca_export.errors import TapiocaError

SECONDS, BYTES = 5.0, 500_000_000
# A message is a line: the command line breaks none, and quotes no more than this of what it found.
LONGEST_MESSAGE = 2000
# Where Python itself and its libraries live, and what they ask of the system.
OWN = tuple(
    str(Path(place).resolve())
    for place in {sys.prefix, sys.base_prefix, *filter(None, sys.path), str(Path(__file__).parents[2])}
)
SYSTEM = ("/dev/null", "/dev/urandom", "/proc/", "/sys/", "/usr/share/zoneinfo/", "/usr/lib/", "/lib/")
READS = {"open", "os.listdir", "os.scandir"}
WRITES = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "tempfile.mkstemp",
    "tempfile.mkdtemp",
}  # fmt: skip
NEVER = {
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "pickle.find_class", "webbrowser.open",
}  # fmt: skip
_OPENED, _READ, _NONBLOCKING = 0x20, 0x01, 0o4000  # of <sys/inotify.h>


class OutOfTimeError(BaseException):
    """A reading took too long; no `except Exception` holds it up."""


@dataclass(frozen=True)
class Outcome:
    """What came of a reading.

    Attributes:
        ended: "read", "refused" with one line, or "broken": a promise was.
        what: Of what is broken: the exception or the promise, and the place in the code.
        detail: The message.
    """

    ended: str
    what: str = ""
    detail: str = ""


@dataclass
class Watch:
    """Watches readings in one folder.

    Attributes:
        folder: What may be read.
        outside: A file beside the folder, which nothing may open.
        writes: Whether what is read may be written as well, as a journal is.
    """

    folder: Path
    outside: Path
    writes: bool = False
    _seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set the clock, and the system's eye on the file outside."""
        self._own = (str(self.folder.resolve()), *OWN)
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._peak = os.open("/proc/self/clear_refs", os.O_WRONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        self._outside = libc.inotify_init1(_NONBLOCKING)
        if libc.inotify_add_watch(self._outside, str(self.outside).encode(), _OPENED | _READ) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(self.outside))
        signal.signal(signal.SIGALRM, _out_of_time)
        if not _HOOKED:
            sys.addaudithook(_audit)
            _HOOKED.append(True)

    def run(self, read: Callable[[Path], object], file: Path, seconds: float | None = None) -> Outcome:
        """Read a file, within `seconds` (default: SECONDS; 0: however long it takes)."""
        self._seen.clear()
        os.write(self._peak, b"5")  # the peak begins anew: proc(5), clear_refs
        before = self._bytes(b"VmRSS")
        limit = SECONDS if seconds is None else seconds
        outcome = self._ended(read, file, limit)
        taken = self._bytes(b"VmHWM") - before
        try:
            os.read(self._outside, 1 << 16)
            self._seen.append("a library opened the file outside")
        except BlockingIOError:
            pass
        if outcome.ended != "broken" and self._seen:
            return Outcome("broken", self._seen[0].split(" ", 2)[0] + " outside", "; ".join(self._seen)[:500])
        if outcome.ended != "broken" and taken > BYTES:
            return Outcome("broken", "memory", f"{taken / 1e6:.0f} MB were taken")
        return outcome

    def _ended(self, read: Callable[[Path], object], file: Path, seconds: float) -> Outcome:
        try:
            with self._watched(seconds):
                read(file)
        except TapiocaError as error:
            return _one_line(error.message)
        except click.UsageError as error:
            return _one_line(error.format_message())
        except OutOfTimeError as error:
            return Outcome("broken", f"time: {_place(error)}", f"more than {seconds:g} s")
        except BaseException as error:  # whatever it is, it would be a traceback; panics of Rust, too
            what = f"{type(error).__name__}: {_place(error)}"
            return Outcome("broken", what, str(error)[:300] or type(error).__name__)
        return Outcome("read")

    @contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _WATCHING.append(self)
        try:
            yield
        finally:
            _WATCHING.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what may not be done."""
        if event in NEVER:
            self._seen.append(f"{event} {arguments!r}"[:300])
        elif event in READS or event in WRITES:
            writes = event in WRITES or (event == "open" and _is_written(*arguments[1:3]))
            for path in arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
                if not isinstance(path, (str, bytes, os.PathLike)):
                    continue
                named = os.path.join(_folder_of(event, arguments), os.fsdecode(path))
                if not self._may(named, writes):
                    self._seen.append(f"{event} {named!r}"[:300])

    def _may(self, path: str, writes: bool) -> bool:
        real = os.path.realpath(path) if "\0" not in path else path
        if writes:
            return real == "/dev/null" or (self.writes and _is_in(real, self._own[0]))
        return real.startswith(SYSTEM) or any(_is_in(real, own) for own in self._own)

    def _bytes(self, name: bytes) -> int:
        text = os.pread(self._status, 1 << 14, 0)
        return int(text.split(name + b":")[1].split(None, 1)[0]) * 1024


# Whether the hook is set, which is forever; and whom it tells.
_HOOKED: list[bool] = []
_WATCHING: list[Watch] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHING:
        _WATCHING[0].see(event, arguments)


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTimeError


def _folder_of(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the folder from which a path starts, where it is given by its descriptor."""
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    return os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_written(mode: str | None, flags: int) -> bool:
    return bool((mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _one_line(message: str) -> Outcome:
    if not message.strip():
        return Outcome("broken", "no message")
    return Outcome("refused", "", message[:LONGEST_MESSAGE])


def _place(error: BaseException) -> str:
    """Return the innermost place in the product, else anywhere."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "tapioca_export" in frame.filename]
    (frame,) = (own or frames)[-1:]
    return f"{Path(frame.filename).name}, {frame.name}"
