"""Rows of samples, and how a file of them is read.

What a row means is the task's business, which hands in a function that reads one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import sha256
from ..config import UNNAMED
from ..domains import Domains
from ..errors import LoadError
from ..showing import visible
from .files import read_records

# Characters of a column that are shown, and items of a list.
SHOWN, SHOWN_ITEMS = 200, 8


class Place(str):
    """Where a record stands, in words ("reviews.csv, row 7"); `folder` is where its relative paths start."""

    folder: Path

    def __new__(cls, where: str, folder: Path = Path()) -> Place:
        """Make the words, and keep the folder beside them."""
        place = super().__new__(cls, where)
        place.folder = folder
        return place


@dataclass(frozen=True)
class Row:
    """One sample.

    `features` is what the task encodes, `label` what it scores against (None: unlabelled), `key`
    the normalised content that makes two rows the same, `where` the place to name in a message,
    `layout` in words what all rows of a run must have in common ("text and text_pair"), `shown` the
    beginning of each of its columns, for a reader. `group` is what the user counts it to, if anything.
    """

    features: Mapping[str, Any]
    label: Any
    key: str
    where: str
    layout: str = ""
    shown: str = ""
    group: str | None = None


@dataclass(frozen=True)
class Samples:
    """Rows of one role, in file order; of a target with `named` domains, one domain after another."""

    role: str
    rows: tuple[Row, ...]
    source: str
    sha256: str
    named: Domains | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    @property
    def is_labelled(self) -> bool:
        """Tell whether every row has a label (files with some labels are refused)."""
        return bool(self.rows) and self.rows[0].label is not None

    @cached_property
    def hashes(self) -> tuple[int, ...]:
        """A 64-bit number a row that depends on its content only."""
        return tuple(row_hash(row.key) for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """A hash of contents and labels, in order."""
        text = "\n".join(f"{row.key}\0{row.label}" for row in self.rows)
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels stacked along axis 0."""
        return np.asarray([row.label for row in self.rows])

    @cached_property
    def domains(self) -> Domains:
        """Where the rows of each domain stand; all rows are one domain where none is named."""
        return self.named or Domains.of({UNNAMED: len(self)})

    @cached_property
    def by_domain(self) -> tuple[Samples, ...]:
        """The rows of each domain apart."""
        if self.named is None:
            return (self,)
        return tuple(
            replace(self, role=f"{self.role} ({name})", rows=self.rows[part], named=None)
            for name, part in zip(self.domains.names, self.domains.parts, strict=True)
        )

    def lowest(self, num_samples: int) -> Samples:
        """Return the samples of lowest hash, in their own order."""
        order = sorted(range(len(self)), key=lambda i: (self.hashes[i], i))
        return replace(self, rows=tuple(self.rows[i] for i in sorted(order[:num_samples])))

    def domains_of(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Samples, np.ndarray]]:
        """Yield each domain that has any of the rows: their places, the domain, and their indices in it."""
        for place, domain in zip(self.domains.parts, self.by_domain, strict=True):
            inside = np.flatnonzero((rows >= place.start) & (rows < place.stop))
            if len(inside):
                yield inside, domain, rows[inside] - place.start


# The column of any task that says what a row is counted to.
GROUP = "group"


def group_of(value: Any, where: str, is_asked_for: bool = True) -> str | None:
    """Return the name of a row's group; None where the record has none.

    A column that only happens to have this name, and holds something else, names no groups.

    Raises:
        LoadError: If the column was asked for, and holds no text, number or truth value.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, int, float)):
        # In a table, a column of integers with gaps holds floats.
        whole = isinstance(value, float) and value.is_integer()
        return beginning(int(value) if whole else value) or None
    if not is_asked_for:
        return None
    raise LoadError(
        f"{where}: {GROUP} is {type(value).__name__}, not the name of a group.",
        f"Write a text or a number, or name another column with --columns {GROUP}=...",
    )


ReadRow = Callable[[Mapping[str, Any], str], Row]


def check_exists(path: Path) -> None:
    """Refuse a path that leads nowhere.

    Raises:
        LoadError: If nothing is there.
    """
    if not os.path.exists(path):  # Path.exists raises where a name is too long
        raise LoadError(f"Sample file {path} does not exist.", "Check the path.")


def read_samples(path: Path, read_row: ReadRow, *, role: str) -> Samples:
    """Read a whole file.

    Args:
        path: JSON Lines, CSV, TSV or Parquet, a folder written by `datasets`, or a folder that holds a
            folder of files for each label.
        read_row: Turns one record and its place into a row.
        role: The role to give the samples.

    Raises:
        LoadError: If the file is missing, malformed or empty, or its rows are not alike.
    """
    path = Path(path)
    check_exists(path)
    folder = path if path.is_dir() else path.parent
    rows = tuple(
        replace(read_row(record, Place(where, folder)), shown=shown(record))
        for record, where in read_records(path)
    )
    if not rows:
        raise LoadError(f"Sample file {path} holds no rows.", "Write one sample a line.")
    check_layout(rows)
    unlabelled = [row.where for row in rows if row.label is None]
    if 0 < len(unlabelled) < len(rows):
        raise LoadError(
            f"{unlabelled[0]} has no label, other rows of the file have one.",
            "Label all rows, or none.",
        )
    return Samples(role, rows, str(path), sha256(path))


def shown(record: Mapping[str, Any]) -> str:
    """Return what a reader is shown of a record: the beginning of each column, on one line."""
    return "; ".join(f"{name}: {beginning(value)}" for name, value in record.items())


def beginning(value: Any) -> str:
    """Return a value in one line of at most `SHOWN` characters; of no text, number or list, its kind."""
    if isinstance(value, (list, tuple)):
        items = [*map(str, value[:SHOWN_ITEMS]), *(["…"] if len(value) > SHOWN_ITEMS else [])]
        value = f"[{', '.join(items)}]"
    elif not isinstance(value, (str, int, float, bool, type(None))):
        return f"({type(value).__name__})"
    text = visible(" ".join(str(value)[: 4 * SHOWN].split()))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def check_layout(rows: Sequence[Row]) -> None:
    """Refuse rows that cannot be encoded together."""
    for row in rows:
        if row.layout != rows[0].layout:
            raise LoadError(
                f"{row.where} has {row.layout}, {rows[0].where} has {rows[0].layout}.",
                "All rows of all files must be alike.",
            )


def row_hash(key: str, seed: int = 0) -> int:
    """Return a 64-bit number that depends on a row's content and the seed."""
    return int.from_bytes(blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest(), "big")
