"""Artifacts on disk: JSON, and files that are whole or absent at every instant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import LoadError, first_line, reason
from ..stopping import unstopped
from .locks import is_inode, locked, not_written
from .records import SCHEMA_VERSION, SPARSE

T = TypeVar("T")
# Stands in a record for its own SHA-256 while that is taken.
UNSEALED = "0" * 64
BLOCK = 1 << 18  # bytes that are read at a time to be hashed
_ADAPTERS: dict[Any, Any] = {}


def _adapter(cls: Any) -> Any:
    """Return pydantic's reader and writer of a dataclass, made once."""
    from pydantic import TypeAdapter

    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


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
    write_text(path, sealed(record))


def sealed(record: Any) -> str:
    """Return a record as JSON that holds the SHA-256 of itself, with zeros in that place."""
    text = to_json(replace(record, sha256=UNSEALED))
    return to_json(replace(record, sha256=hash_text(text)))


def is_sealed(path: Path, digest: str) -> bool:
    """Tell whether a record is, to the byte, what was written with this digest in it."""
    unsealed = path.read_bytes().replace(digest.encode(), UNSEALED.encode(), 1)
    return hashlib.sha256(unsealed).hexdigest() == digest


def write_text(path: Path, text: str) -> None:
    """Write text aside and move it into place.

    Raises:
        OutputError: If the folder cannot be written, or another process is writing the file.
    """
    write_together({path: text})


def write_together(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: all aside, and only then each into place, the last one last.

    Raises:
        OutputError: If one cannot be written, or another process is writing it; all are then as they were.
    """
    with ExitStack() as written:
        asides = {path: written.enter_context(_aside(path, text)) for path, text in texts.items()}
        with unstopped():
            for path, aside in asides.items():
                with not_written(path):
                    os.replace(aside, path)


@contextmanager
def _aside(path: Path, text: str) -> Iterator[Path]:
    """Give a file with the text, beside where it will be, that no other process writes; it does not stay."""
    aside = path.with_name(path.name + ".partial")
    with not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
    with locked(aside, path) as inode:
        try:
            with not_written(path):
                aside.write_text(text, encoding="utf-8")
            yield aside
        finally:
            if is_inode(aside, inode):
                aside.unlink()


def append_text(path: Path, text: str) -> None:
    """Add text to a file that others write to as well.

    Raises:
        OutputError: If it cannot be written.
    """
    with not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


def read(path: Path, cls: type[T]) -> T:
    """Read an artifact and check its type.

    Raises:
        LoadError: If the file is missing, is not JSON, or is an artifact of another kind or a newer version.
    """
    from pydantic import ValidationError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"Cannot read {path}: {reason(error)}.") from error
    try:
        artifact: T = _adapter(cls).validate_json(text)
        _refuse_newer(path, artifact)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LoadError(f"{path} is not a {cls.__name__.lower()} file: {where}: {first['msg']}.") from error
    return artifact


def _refuse_newer(path: Path, artifact: Any) -> None:
    """Refuse an artifact whose keys may mean something else than they do here.

    Raises:
        LoadError: Naming its version.
    """
    version = getattr(artifact, "schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise LoadError(
            f"{path} has schema version {version}, and {SCHEMA_VERSION} is the newest that is known here.",
            "Read it with the tapioca-export that wrote it, or a newer one.",
        )


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn whatever fails on the values of files that were read into one error: a type tells but the half.

    Each value of an artifact is of its type, and yet there may be an interval too few, or a layer that none
    of its numbers is of. Only for what was read: in numbers of this process's own, that is our bug.

    Raises:
        LoadError: If something does.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise LoadError(
            f"The numbers in {path} do not fit together: {type(error).__name__}, {first_line(error)}.",
            "Run the job again; no command wrote this.",
        ) from error


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


def hash_text(text: str) -> str:
    """Return the SHA-256 of the file that a text will be."""
    return hashlib.sha256(text.encode()).hexdigest()


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
