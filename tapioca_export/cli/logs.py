"""What the library logs, as lines on stderr: what it is at, and with `-v` what it finds on the way."""

from __future__ import annotations

import logging
import sys
import time

from ..stopping import unstopped

LOGGER = logging.getLogger("tapioca_export")


def one_line(text: str) -> str:
    """Return a text without line breaks, and what a terminal would obey as Python would write it."""
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def show_logs(level: int) -> None:
    """Show what the library logs at this level or above."""
    LOGGER.setLevel(level)
    for handler in [handler for handler in LOGGER.handlers if isinstance(handler, _LineHandler)]:
        LOGGER.removeHandler(handler)  # of a command before, in the same process
    LOGGER.addHandler(_LineHandler())


def is_verbose() -> bool:
    """Tell whether everything is shown."""
    return LOGGER.isEnabledFor(logging.DEBUG)


class _LineHandler(logging.Handler):
    """Writes a line with the time since the command began, above a bar if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.time()

    def format(self, record: logging.LogRecord) -> str:
        """Return `[1:02] what is done`, or `[1:02:03]` after an hour."""
        minutes, seconds = divmod(int(record.created - self.started), 60)
        hours, minutes = divmod(minutes, 60)
        elapsed = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        mark = "Warning: " if record.levelno >= logging.WARNING else ""
        return f"[{elapsed}] {mark}{one_line(record.getMessage())}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; what goes wrong is logging's to handle, as always."""
        from tqdm import tqdm

        try:
            with unstopped():  # a signal would leave tqdm's lock half taken
                tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
