"""Files that libraries of C++ write to, some of which end the process where a disk is full."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast


@contextmanager
def stream_into(file: Path) -> Iterator[IO[bytes]]:
    """Give a stream into a new file; what stopped it is raised at the end, not amid the writer's work.

    PyTorch's writer of archives finishes them in a destructor, which may raise nothing.

    Raises:
        OSError: If the file cannot be written.
    """
    with file.open("wb", buffering=0) as raw, _Patient(raw) as stream:
        try:
            yield cast(IO[bytes], stream)
        finally:
            if stream.error is not None:
                raise stream.error


class _Patient(io.RawIOBase):
    """Takes all that is written, and keeps the first error of the file behind it."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__()
        self.raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go nowhere: PyTorch goes back to the beginning when all is written."""
        return 0

    def write(self, data: Any) -> int:
        """Write all of it; after an error, nothing."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += self.raw.write(view[done:])
        except OSError as error:
            self.error = error
        return len(view)
