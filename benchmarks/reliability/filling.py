"""Disks of every size that is too small, under outputs and under temporary files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .forks import Done, Room, run
from .killing import judged
from .subjects import Subject
from .wholeness import Reference, Tree, furnished, put_old, tree

PAGE, LARGE = 4096, 1 << 28  # bytes
LINE = re.compile(r"Error: Cannot write .+: No space left on device\.$")


@contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Give a folder that is a file system of its own, in memory.

    Raises:
        CalledProcessError: If this process may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes},mode=1777", "tmpfs", str(folder)],
        check=True,
        capture_output=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def why_not(scratch: Path) -> str:
    """Return why no disk can be made here, or nothing."""
    try:
        with disk(scratch / "tried", PAGE):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        return said.decode(errors="replace").strip() or str(error)


def filled(
    subject: Subject, wanted: Reference, world: Path, rooms: Path, points: int
) -> Iterator[dict[str, Any]]:
    """Run a command on disks with so much room, from none to what its output takes, then more until it fits.

    An old output is there, so that there is something to lose.
    """
    pages = 1 if subject.amends else max(1, wanted.num_bytes // PAGE)
    for free_pages in sorted({number * pages // points for number in range(points)}):
        yield _on_disk(subject, wanted, world, rooms, free_pages * PAGE)
    while pages * PAGE < LARGE // 2:
        case = _on_disk(subject, wanted, world, rooms, pages * PAGE)
        yield case
        if case["code"] == 0:
            break
        pages += 1 + pages // (3 if subject.amends else 8)


def _on_disk(subject: Subject, wanted: Reference, world: Path, rooms: Path, num_bytes: int) -> dict[str, Any]:
    """Run a command where so much room is left."""
    with disk(rooms / "small", LARGE) as small:
        room = Room(small / "room")
        output = room.here / subject.output
        put_old(subject, world, output, old=True)
        _leave(small, num_bytes)
        before = tree(output)
        room.path = rooms / "said"  # what it says is not on the disk that is full
        room.path.mkdir(exist_ok=True)
        done = run(subject.replacing().command(world, subject.output), room)
        case = {"command": subject.name, "free_bytes": num_bytes, "where": "output"}
        return case | _judged(subject, wanted, room, before, done)


def _judged(subject: Subject, wanted: Reference, room: Room, before: Tree, done: Done) -> dict[str, Any]:
    """Return what is wrong with a command that had too little room, and what it said."""
    case = judged(subject, wanted, room, before, done, (1,))
    case["said"] = done.errors[0] if done.errors else ""
    if done.code == 1 and not (len(done.errors) == 1 and LINE.match(done.errors[0])):
        case["problem"] = case["problem"] or f"it says: {done.said.strip()[-300:]}"
    return case


def _leave(disk_there: Path, num_bytes: int) -> None:
    """Make a disk so small that so much room is left."""
    size = shutil.disk_usage(disk_there).used + num_bytes
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk_there)], check=True, capture_output=True)


def filled_temporary(
    subject: Subject, wanted: Reference, world: Path, rooms: Path
) -> Iterator[dict[str, Any]]:
    """Run a command with no room where TMPDIR says; it needs none, or says that it does."""
    with disk(rooms / "small", PAGE) as small:
        (small / "ballast").write_bytes(b"x" * PAGE)
        room, output = furnished(subject, world, rooms / "temporary", old=True)
        before = tree(output)
        room.tmp = small
        done = run(subject.replacing().command(world, subject.output), room)
        (small / "ballast").unlink()
        case = {"command": subject.name, "free_bytes": 0, "where": "TMPDIR"}
        yield case | _judged(subject, wanted, room, before, done)
