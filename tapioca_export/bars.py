"""Progress on stderr: bars on a terminal, a line now and then in a log, nothing where nobody wants to look.

Knows nothing about what is counted.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

# Set by `--quiet`: an environment variable, as tqdm itself has it.
DISABLED = "TQDM_DISABLE"
SECONDS_A_LINE = 30.0
# What does not fit is cut off on the right: the time left comes first.
_BAR = "{desc}: {percentage:3.0f}% [{elapsed}<{remaining}] {n_fmt}/{total_fmt} |{bar}|"
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s ({percentage:.0f} %) in {elapsed}, {remaining} left"

logger = logging.getLogger(__name__)


def is_terminal(stream: Any) -> bool:
    """Tell whether somebody looks at a stream; one that cannot say is no terminal."""
    return bool(getattr(stream, "isatty", lambda: False)())


def progress_bar(*arguments: Any, desc: str, **options: Any) -> Any:
    """Return tqdm's bar of a stage: drawn on a terminal, logged every 30 seconds where stderr is none.

    A terminal that cannot go back in a line (`TERM=dumb`) counts as none. `TQDM_DISABLE` turns both off.
    """
    from tqdm import tqdm

    disable = bool(os.environ.get(DISABLED))
    if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
        return tqdm(*arguments, desc=desc, disable=disable, bar_format=_BAR, **options)
    # A bar in a bar would move the cursor: here all are at place 0.
    # With one as the least number of steps, tqdm's thread has no part in it, nor in the locks of logging.
    options |= {"file": _LogStream(), "position": 0, "leave": False, "bar_format": _LINE, "miniters": 1}
    return tqdm(*arguments, desc=desc, disable=disable, **options)


class _LogStream:
    """A stream of what tqdm shows, most of it left out."""

    def __init__(self) -> None:
        self.next = time.monotonic() + SECONDS_A_LINE

    def write(self, text: str) -> None:
        """Log the line, if it is time for one."""
        if (line := text.strip()) and time.monotonic() >= self.next:
            self.next = time.monotonic() + SECONDS_A_LINE
            logger.info("%s", line)

    def flush(self) -> None:
        """Do nothing: a line was logged, or was not."""
