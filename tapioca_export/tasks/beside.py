"""Files that stand beside a checkpoint, in its folder or on the hub."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoadError, reason
from .base import ProcessorOptions


def text_beside(folder: Path | str, name: str, options: ProcessorOptions) -> str | None:
    """Return the text of a file beside a checkpoint, None where there is none.

    Raises:
        LoadError: If it cannot be read, or is no text.
    """
    from transformers.utils import cached_file

    path = cached_file(
        str(folder),
        name,
        local_files_only=options.local_files_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LoadError(f"Cannot read {path}: {reason(error)}.", "Save the model again.") from error
