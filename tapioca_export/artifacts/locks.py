"""Who may write where: one process at a time, and a refusal by the system is an error of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, reason


@contextmanager
def not_written(path: Path) -> Iterator[None]:
    """Let what the system refuses be said of a path that the user knows.

    Raises:
        OutputError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {reason(error)}.", "Make room, or name another.") from error


@contextmanager
def locked(held: Path, output: Path) -> Iterator[int]:
    """Hold a file or folder for this process, and give its inode; the system lets go when the process dies.

    Raises:
        OutputError: If another process holds it, which is then writing the output.
    """
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder
        yield os.stat(held).st_ino
        return
    with not_written(output):
        descriptor = os.open(held, os.O_RDONLY)
    try:
        inode = os.fstat(descriptor).st_ino
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have moved it into place meanwhile.
            is_ours = is_inode(held, inode)
        except BlockingIOError:
            is_ours = False
        except OSError as error:  # a file system without locks, say
            raise OutputError(f"Cannot lock {held}: {reason(error)}.", "Name another --output.") from error
        if not is_ours:
            raise OutputError(
                f"Another process is writing {output}.", "Wait for it to end, or name another --output."
            )
        yield inode
    finally:
        os.close(descriptor)


def is_inode(path: Path, inode: int) -> bool:
    """Tell whether a path leads where it led."""
    try:
        return os.stat(path).st_ino == inode
    except FileNotFoundError:
        return False
