"""Output folders that are whole or absent at every instant, whatever ends the work.

At any time one process fills a folder. Of one that was killed, what is left stands beside the output, in a
folder of a name of its own, and the next command that writes there goes on from it or clears it away.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from ..errors import OutputError, ParityError, TapiocaError, reason
from ..exhaustion import exhausted
from ..stopping import unstopped
from .locks import is_inode, locked, not_written

# Ends the name of a folder that is being filled, and that of one that changes places with the output; nobody
# else has such folders.
PARTIAL, FINISHED = ".tapioca-partial", ".tapioca-finished"
# Ends that of a folder for what is tried and thrown away.
TRIAL = f".trial{PARTIAL}"
JOURNALS = "search*.jsonl"
# A folder in the one that is being filled: gone, if somebody takes away what is there, in whatever order.
MARK = ".filling"
# Of Linux: names are relative to the working directory; two of them change places.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staged(output: Path, *, overwrite: bool, keep: str | None = None) -> Iterator[Path]:
    """Give a folder beside `output` to fill, then move it into place whole.

    At every instant `output` is what it was before, or another folder with the same files; where the file
    system gives a file one name only, they are copied. When the block raises,
    what it wrote is thrown away, but for two things: the files that match the pattern `keep`, from
    which the same command resumes; and, after a failed parity check, the evidence, which moves to
    `output` unless something is there already.

    Raises:
        OutputError: If `output` holds something and may not be replaced, or cannot be written; if another
            process fills it, or the folder is taken away while it is filled.
        OutOfMemoryError: In place of what libraries raise where memory runs out.
    """
    output = output.resolve()  # a link stays a link
    check_output(output, overwrite=overwrite)
    aside = output.with_name(f".{output.name}{PARTIAL}")
    with not_written(aside):
        aside.mkdir(parents=True, exist_ok=True)
    with locked(aside, output) as inode:
        _refuse_to_lose(aside, keep, overwrite)
        try:
            with unstopped(), not_written(aside):
                _clear(aside, keep)
                (aside / MARK).mkdir()
            with unstopped(), not_written(_finished(output)):
                if os.path.lexists(_finished(output)):
                    shutil.rmtree(_finished(output))
            yield aside
            _refuse_vanished(aside, inode)
            check_output(output, overwrite=overwrite)  # hours later, something else may be there
            with unstopped(), not_written(output):
                _put(aside, output, inode)
        except BaseException as error:  # whatever ended the work, Ctrl-C too: nothing half-written stays
            with unstopped(), not_written(aside):
                found = _reason(error, aside, inode)
                if is_inode(aside, inode):
                    _end(aside, output, keep, inode, isinstance(error, ParityError))
                else:
                    _clear_orphan(aside)
            if found is None:
                raise
            raise found from error


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Give an empty folder on the disk of an output that is not written yet; it is gone at the end.

    Of a process that was killed it stays, until the next one for the same output.

    Raises:
        OutputError: If it cannot be written, another process has it, or the disk is full.
    """
    output = output.resolve()
    place = next((folder for folder in output.parents if folder.is_dir()), output)
    # Outputs of one name may have their first folder in common.
    aside = place / f".{sha256(os.fsencode(output)).hexdigest()[:16]}{TRIAL}"
    with not_written(aside):
        aside.mkdir(exist_ok=True)
    with locked(aside, output) as inode:
        try:
            with unstopped(), not_written(aside):
                _clear(aside, None)
            yield aside
        except Exception as error:  # what libraries make of a full disk, or of a folder that is gone
            if (found := _reason_of_the_disk(error, aside)) is None:
                raise
            raise found from error
        finally:
            with unstopped():
                if is_inode(aside, inode):
                    shutil.rmtree(aside, ignore_errors=True)


def _refuse_vanished(aside: Path, inode: int) -> None:
    """Refuse to go on with a folder that is no longer the one that was filled.

    Raises:
        OutputError: If it is gone, or what was in it is, or another one is there.
    """
    if not is_inode(aside, inode) or not (aside / MARK).is_dir():
        raise _vanished(aside)


def _vanished(aside: Path) -> OutputError:
    return OutputError(f"{aside} was taken away while it was being filled.", "Give the same command again.")


def _finished(output: Path) -> Path:
    return output.with_name(f".{output.name}{FINISHED}")


def _reason(error: BaseException, aside: Path, inode: int) -> TapiocaError | None:
    """Return what a user is told in place of an error of the system or of another library, if anything."""
    if not isinstance(error, Exception) or isinstance(error, ParityError):
        return None
    try:
        _refuse_vanished(aside, inode)
    except OutputError as vanished:
        return vanished
    return _reason_of_the_disk(error, aside)


def _reason_of_the_disk(error: Exception, aside: Path) -> TapiocaError | None:
    """Return what a user is told where a folder could not be written."""
    if (found := exhausted(error, aside)) is not None:
        return found
    where = getattr(error, "filename", None)
    if isinstance(error, OSError) and where and Path(os.fsdecode(where)).is_relative_to(aside):
        return OutputError(f"Cannot write {where}: {reason(error)}.", "Name another --output.")
    return None


def _end(aside: Path, output: Path, keep: str | None, inode: int, is_evidence: bool) -> None:
    """Throw away what was written, but for journals; evidence moves to an output that holds nothing."""
    if is_evidence and not (output.exists() and any(output.iterdir())):
        with suppress(OutputError, OSError):  # what failed is said, whether or not it can be looked at
            _put(aside, output, inode)
            return
    shutil.rmtree(_finished(output), ignore_errors=True)
    _clear(aside, keep)
    if aside.is_dir() and not any(aside.iterdir()):
        aside.rmdir()


def _clear_orphan(aside: Path) -> None:
    """Throw away what was written after the folder was taken away, unless another process writes there."""
    with suppress(OutputError), locked(aside, aside):  # or there is nothing, or it is theirs
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_to_lose(folder: Path, keep: str | None, overwrite: bool) -> None:
    """Refuse to clear away the journal of an interrupted search of another command.

    Raises:
        OutputError: If there is one, and it may not be replaced.
    """
    others = _journals(folder, JOURNALS) - _journals(folder, keep)
    if others and not overwrite:
        raise OutputError(
            f"{folder} holds an interrupted search of another command ({min(others).name}).",
            "Finish it with the same command, name another --output, or discard it with --overwrite.",
        )


def _journals(folder: Path, pattern: str | None) -> set[Path]:
    """Return the files that match and hold more than a header."""
    matching = [path for path in folder.glob(pattern) if path.is_file()] if pattern else []
    return {path for path in matching if path.read_bytes().count(b"\n") >= 2}


def _clear(folder: Path, keep: str | None) -> None:
    """Remove all in a folder but the journals to keep; what is gone already is no error."""
    journals = _journals(folder, keep)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in journals:
            path.unlink(missing_ok=True)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        OutputError: If it is a file, holds something without `overwrite`, or is not writable.
    """
    with not_written(output):  # it may not even be looked at
        is_there, is_folder = output.exists(), output.is_dir()
        is_empty = not is_folder or not any(output.iterdir())
        parent = output.absolute().parent
        while not parent.exists():
            parent = parent.parent
    if is_there and not is_folder:
        raise OutputError(f"Output {output} is a file.", "Name a folder that does not exist yet.")
    if not is_empty and not overwrite:
        raise OutputError(f"Output folder {output} is not empty.", "Name another, or add --overwrite.")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"Cannot write in {parent}.", "Name another folder with --output.")


def refuse_inside(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output folder that holds an input: replacing it would lose the input.

    Raises:
        OutputError: Naming the input.
    """
    for path in inputs if output.is_dir() else ():
        if path.exists() and path.resolve().is_relative_to(output.resolve()):
            raise OutputError(
                f"Input {path} is inside the output folder {output}.", "Name another folder with --output."
            )


def _put(aside: Path, output: Path, inode: int) -> None:
    """Put what was filled into place; what was there is there until the last moment.

    Whoever takes away what is at `aside` goes on, file by file, wherever that folder is moved: what is put
    into place is another folder, with the same files, which was never there.

    Raises:
        OutputError: If something was taken away.
    """
    finished = _finished(output)
    finished.mkdir()
    filled = sorted(aside.rglob("*"))  # a folder comes before what is in it
    for path in filled:
        copy = finished / path.relative_to(aside)
        try:
            copy.mkdir() if path.is_dir() and not path.is_symlink() else _link(path, copy)
        except FileNotFoundError as error:
            raise _vanished(aside) from error
    if sorted(aside.rglob("*")) != filled:
        raise _vanished(aside)
    _refuse_vanished(aside, inode)
    (finished / MARK).rmdir()
    if not output.is_dir() or not any(output.iterdir()):
        os.replace(finished, output)
    else:
        with locked(output, output):
            _exchange(finished, output)
    shutil.rmtree(finished, ignore_errors=True)
    if is_inode(aside, inode):  # or somebody took it away, and the next process has begun
        shutil.rmtree(aside, ignore_errors=True)


def _link(path: Path, copy: Path) -> None:
    """Give a file another name, or copy it where the file system knows one name only."""
    try:
        os.link(path, copy)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, copy, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: at once where the system can, else one after the other."""
    rename = (
        getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    )
    names = os.fsencode(one), os.fsencode(other)
    if rename and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    previous = one.with_name(f"{one.name}-previous")
    os.replace(other, previous)
    os.replace(one, other)
    os.replace(previous, one)
