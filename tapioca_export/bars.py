"""Progress bars: on stderr, and silent where nobody looks or wants to.

Knows nothing about what is counted.
"""

from __future__ import annotations

import os
from typing import Any

# Set by `--quiet`: an environment variable, as tqdm itself has it.
DISABLED = "TQDM_DISABLE"


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """Return tqdm's bar, which shows only where stderr is a terminal and `TQDM_DISABLE` is not set."""
    from tqdm import tqdm

    return tqdm(*arguments, disable=bool(os.environ.get(DISABLED)) or None, **options)
