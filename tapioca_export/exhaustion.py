"""What a machine ran out of, room on a disk or memory, whichever library found it out.

Knows nothing about what was being done.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import OutOfMemoryError, OutputError, TapiocaError

BLOCK = 1 << 16  # bytes; a disk with less is full
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Of safetensors (Rust), ONNX Runtime (C++) and processes of our own, of which only the last line is known.
_SAYS_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|StorageFull")
# PyTorch's writers do not say why they fail; onnx's does not say that it does, and what it wrote is not read.
_SAYS_NOT_WRITTEN = re.compile(
    r"PytorchStreamWriter failed|file write failed|iostream error|unexpected pos|DecodeError"
)
# Of PyTorch on CPU and GPU, NumPy, ONNX Runtime, Python, C++, the system and protobuf, in this order.
_SAYS_NO_MEMORY = re.compile(
    r"can't allocate memory|out of memory|Unable to allocate|Failed to allocate|MemoryError|bad_alloc"
    r"|Cannot allocate memory|Failed to serialize proto"
)


def exhausted(error: BaseException, place: Path | None = None, needed: int = BLOCK) -> TapiocaError | None:
    """Return what a user is told where a machine ran out of something, else None.

    Args:
        error: Any error; those that it was raised from are looked at too.
        place: Where something was being written, if it was.
        needed: Bytes that had to fit; a writer that gives no reason is believed where fewer are free.
    """
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or _errno(cause) == errno.ENOMEM or _says(cause, _SAYS_NO_MEMORY):
            return OutOfMemoryError(
                f"Memory ran out: {_brief(cause)}.",
                "Use a machine with more, a smaller --eval-batch-size or --batch-size, or fewer workers.",
            )
    for cause in _causes(error):
        is_full = _says(cause, _SAYS_NOT_WRITTEN) and place is not None and _is_full(place, needed)
        if _errno(cause) in NO_ROOM or _says(cause, _SAYS_NO_ROOM) or is_full:
            where = getattr(cause, "filename", None) or place or "a file"
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else None
            return OutputError(
                f"Cannot write {where}: {reason or 'No space left on device'}.",
                "Make room, or name another --output; what is temporary goes where TMPDIR says.",
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _says(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, Exception) and pattern.search(f"{type(error).__name__}: {error}") is not None


def _is_full(place: Path, needed: int) -> bool:
    """Tell whether the disk of a folder, or of what is left of its path, has less than so many bytes free."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free < needed


def _brief(error: BaseException) -> str:
    """Return what is worth reading of a library's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if _SAYS_NO_MEMORY.search(line)), lines[0] if lines else "")
    if "serialize proto" in found:
        return f"{found.rstrip('.')}, or a graph takes over 2 GB without its weights"
    found = re.sub(r"^\[enforce fail at [^\]]*\]\s*(data\.?|err == 0\.?)?\s*", "", found)
    return found.rstrip(".") or "an allocation failed"
