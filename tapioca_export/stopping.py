"""Ctrl-C and its like: they end the work wherever it stands, in one line, and never amid cleaning up.

What they raise is `SystemExit`: libraries that catch `Exception` let it pass, folders that are being filled
are cleared on its way, and Python ends without a traceback. Knows nothing about commands.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Timer, current_thread, main_thread
from time import monotonic
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
# So long a second Ctrl-C changes nothing: the first is cleaning up. Later, something has swallowed it.
PATIENCE_S = 5.0
# So long after it came in a destructor, a signal comes again.
AGAIN_S = 0.01


class _Stopping:
    """The handler of the signals."""

    def __init__(self) -> None:
        self.held = 0
        self.hook = sys.__unraisablehook__
        self._waiting: int | None = None
        self._stopped_at = -PATIENCE_S
        self._is_said = False
        self._code = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Stop, unless that is under way; while it is held back, remember."""
        if self.held:
            self._waiting = number
        elif monotonic() - self._stopped_at >= PATIENCE_S:
            self._stopped_at = monotonic()
            if not self._is_said:
                self._say(f"Stopped by {signal.Signals(number).name}; what was there is whole.")
            self._is_said, self._code = False, 128 + number
            raise SystemExit(self._code)

    @staticmethod
    def _say(what: str) -> None:
        stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
        clear = "\r\x1b[K" if os.isatty(stderr) else ""  # a bar may be there
        os.write(stderr, f"{clear}Error: {what}\nHint: Give the same command again.\n".encode())

    def arrive_again(self, ignored: sys.UnraisableHookArgs) -> None:
        """Stop a moment later where Python lets nothing through: it came amid an object's destructor."""
        code = getattr(ignored.exc_value, "code", None)
        if ignored.exc_type is not SystemExit or not isinstance(code, int) or code <= 128:
            self.hook(ignored)
            return
        self._stopped_at, self._is_said = -PATIENCE_S, True
        # To the process, so that it wakes the main thread; Windows would end it there and then.
        again = signal.raise_signal if os.name == "nt" else partial(os.kill, os.getpid())
        Timer(AGAIN_S, again, (code - 128,)).start()

    def code(self) -> int | None:
        """Return the exit code of a stop that is under way."""
        return self._code if monotonic() - self._stopped_at < PATIENCE_S else None

    def release(self) -> None:
        """Let a signal that was held back arrive."""
        self.held -= 1
        if not self.held and self._waiting is not None:
            number, self._waiting = self._waiting, None
            signal.raise_signal(number)  # in the main thread, whichever this is


_STOPPING = _Stopping()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let signals stop the block with exit code 128 and their number; those that are ignored stay so.

    Afterwards they end the process at once: nothing is left to clean up, and Python says much when it is
    interrupted while it ends.
    """
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _STOPPING)
    before = sys.unraisablehook
    _STOPPING.hook, sys.unraisablehook = before, _STOPPING.arrive_again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stopping_over_errors() -> Iterator[None]:
    """Let a stop that is under way win over what a library of C or Rust made of it."""
    try:
        yield
    except Exception:
        code = _STOPPING.code()
        if code is None:
            raise
        raise SystemExit(code) from None


@contextmanager
def unstopped() -> Iterator[None]:
    """Hold back signals that would stop the block; they arrive at its end, and in the main thread alone."""
    if current_thread() is not main_thread():
        yield
        return
    _STOPPING.held += 1
    try:
        yield
    finally:
        _STOPPING.release()
