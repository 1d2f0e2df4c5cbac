"""Artifacts on disk: JSON, and files and folders that are whole or absent at every instant."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import LoadError, OutputError, ParityError
from .records import SPARSE

T = TypeVar("T")
# Ends the name of a folder that is being filled; nobody else has such folders.
PARTIAL = ".tapioca-partial"
JOURNALS = "search*.jsonl"
# Stands in a record for its own SHA-256 while that is taken.
UNSEALED = "0" * 64
BLOCK = 1 << 18  # bytes that are read at a time to be hashed


def _adapter(cls: Any) -> Any:
    """Return pydantic's reader and writer of a dataclass."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_json(artifact: Any) -> str:
    """Return the artifact as indented JSON, `kind` and `schema_version` first."""
    fields = json.loads(_adapter(type(artifact)).dump_json(artifact))
    _leave_out(artifact, fields)
    head = {key: fields.pop(key) for key in ("kind", "schema_version") if key in fields}
    return json.dumps({**head, **fields}, indent=1, ensure_ascii=False) + "\n"


def _leave_out(artifact: Any, fields: Any) -> None:
    """Remove what is marked as sparse and holds its default, of a dataclass turned into plain values."""
    if isinstance(artifact, Mapping):
        for name, value in artifact.items():
            _leave_out(value, fields[name])
    elif isinstance(artifact, tuple):
        for value, plain in zip(artifact, fields, strict=True):
            _leave_out(value, plain)
    elif is_dataclass(artifact):
        for item in dataclass_fields(artifact):
            value = getattr(artifact, item.name)
            made = item.default if item.default_factory is MISSING else item.default_factory()
            if item.metadata == SPARSE and value == made:
                del fields[item.name]
            else:
                _leave_out(value, fields[item.name])


def write(path: Path, artifact: Any) -> None:
    """Write the artifact; the file is whole or absent at every instant."""
    write_text(path, to_json(artifact))


def write_sealed(path: Path, record: Any) -> None:
    """Write a record that holds the SHA-256 of its own text, with zeros in that place."""
    text = to_json(replace(record, sha256=UNSEALED))
    write(path, replace(record, sha256=hashlib.sha256(text.encode()).hexdigest()))


def is_sealed(path: Path, digest: str) -> bool:
    """Tell whether a record is, to the byte, what was written with this digest in it."""
    unsealed = path.read_bytes().replace(digest.encode(), UNSEALED.encode(), 1)
    return hashlib.sha256(unsealed).hexdigest() == digest


def write_text(path: Path, text: str) -> None:
    """Write text aside and move it into place.

    Raises:
        OutputError: If the folder cannot be written.
    """
    aside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error


def append_text(path: Path, text: str) -> None:
    """Add text to a file that others write to as well.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}.") from error


def read(path: Path, cls: type[T]) -> T:
    """Read an artifact and check its type.

    Raises:
        LoadError: If the file is missing, is not JSON, or is an artifact of another kind.
    """
    from pydantic import ValidationError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        artifact: T = _adapter(cls).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LoadError(f"{path} is not a {cls.__name__.lower()} file: {where}: {first['msg']}.") from error
    return artifact


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names of a folder's files and their SHA-256s."""
    if path.is_dir():
        return combined(hashes(path))
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))  # new memory for each block would cost more than its hash
    with path.open("rb", buffering=0) as stream:
        while length := stream.readinto(buffer):
            digest.update(buffer[:length])
    return digest.hexdigest()


def hashes(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder, by its path in it; files are read at the same time.

    Args:
        folder: The folder.
        known: Those that need not be taken again.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    taken = {name: digest for name, digest in (known or {}).items() if name in names}
    rest = [name for name in names if name not in taken]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
        taken |= zip(rest, pool.map(lambda name: sha256(folder / name), rest), strict=True)
    return {name: taken[name] for name in names}


def combined(files: Mapping[str, str]) -> str:
    """Return one hash of files, each by its path and SHA-256."""
    text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def staged(output: Path, *, overwrite: bool, keep: str | None = None) -> Iterator[Path]:
    """Give a folder beside `output` to fill, then move it into place whole.

    At every instant `output` is what it was before, or the finished folder. When the block raises,
    what it wrote is thrown away, but for two things: the files that match the pattern `keep`, from
    which the same command resumes; and, after a failed parity check, the evidence, which moves to
    `output` unless something is there already.

    Raises:
        OutputError: If `output` holds something and may not be replaced, or cannot be written.
    """
    output = output.resolve()  # a link stays a link
    check_output(output, overwrite=overwrite)
    aside = output.with_name(f".{output.name}{PARTIAL}")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _locked(aside, output):
            _refuse_to_lose(aside, keep, overwrite)
            _clear(aside, keep)
            aside.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write {aside}: {error.strerror}.", "Name another --output.") from error
    with _locked(aside, output):
        try:
            yield aside
        except ParityError:
            if output.exists() and any(output.iterdir()):
                _clear(aside, keep)
            else:
                _replace(aside, output)
            raise
        except BaseException:  # whatever ended the work, Ctrl-C too: nothing half-written stays
            _clear(aside, keep)
            raise
        check_output(output, overwrite=overwrite)  # hours later, something else may be there
        _replace(aside, output)


@contextmanager
def _locked(aside: Path, output: Path) -> Iterator[None]:
    """Hold the folder that is being filled for this process; the system lets go when the process dies.

    Raises:
        OutputError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows cannot lock a folder
        yield
        return
    folder = os.open(aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have moved it into place meanwhile.
            is_ours = os.fstat(folder).st_ino == os.stat(aside).st_ino
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError as error:  # a file system without locks, say
            raise OutputError(f"Cannot lock {aside}: {error.strerror}.", "Name another --output.") from error
        if not is_ours:
            raise OutputError(
                f"Another process is writing {output}.", "Wait for it to end, or name another --output."
            )
        yield
    finally:
        os.close(folder)


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
    """Remove a folder, or all in it but the journals to keep."""
    journals = _journals(folder, keep)
    if not journals:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in journals:
            path.unlink()


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        OutputError: If it is a file, holds something without `overwrite`, or is not writable.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"Output {output} is a file.", "Name a folder that does not exist yet.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputError(f"Output folder {output} is not empty.", "Name another, or add --overwrite.")
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
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


def _replace(aside: Path, output: Path) -> None:
    """Move a finished folder into place; the one it replaces is there until the last moment."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as old:
        if output.exists():
            os.replace(output, Path(old) / "previous")
        os.replace(aside, output)
