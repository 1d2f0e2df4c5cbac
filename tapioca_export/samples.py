"""Sample files -> rows in four roles, with no row in two of them.

Roles: id-select and target-select drive the choice of layers; id-report and target-report are only
ever reported. Knows nothing about tokenizers, models or metrics: what a row means is the task's
business, which hands in a function that reads one.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .artifacts import sha256
from .domains import UNNAMED, Domains
from .errors import ConfigError, LoadError, first_line

# What marks a folder written by datasets; any other holds a folder of files for each label.
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
ROLES = ("id-select", "target-select", "id-report", "target-report")
# Fewer rows give intervals that say nothing.
MIN_ROWS = 8
Side = Literal["select", "report"]
_SIDES: tuple[Side, ...] = ("select", "report")


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
    `layout` in words what all rows of a run must have in common ("text and text_pair").
    """

    features: Mapping[str, Any]
    label: Any
    key: str
    where: str
    layout: str = ""


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
        return tuple(_hash(row.key) for row in self.rows)

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
    rows = tuple(read_row(record, Place(where, folder)) for record, where in read_records(path))
    if not rows:
        raise LoadError(f"Sample file {path} holds no rows.", "Write one sample a line.")
    _check_layout(rows)
    unlabelled = [row.where for row in rows if row.label is None]
    if 0 < len(unlabelled) < len(rows):
        raise LoadError(
            f"{unlabelled[0]} has no label, other rows of the file have one.",
            "Label all rows, or none.",
        )
    return Samples(role, rows, str(path), sha256(path))


def load_roles(
    files: Mapping[str, Path | Mapping[str, Path] | None],
    read_row: ReadRow,
    *,
    sides: Sequence[Side] = ("select", "report"),
    seed: int = 0,
    limit: int | None = None,
    drop_leaks: bool = False,
    objective: str = "mean",
    weights: Mapping[str, float] | None = None,
) -> dict[str, Samples]:
    """Read the sample files and deal the rows out to the roles.

    A distribution with one file is split in half by a seeded hash of each row's content, stratified
    by label, so that equal rows never part; with a report file, the files are the roles. Of a target
    with named domains each is dealt out so on its own, and a row that is in two of them is in two roles.

    Args:
        files: Paths by "id", "target", "id-report", "target-report"; None where not given, a path for
            each name where domains are named.
        read_row: Turns one record and its place into a row.
        sides: The sides wanted; the split is the same whichever are asked for.
        seed: Seed of the hash.
        limit: At most this many rows a role, chosen by the same hash after the split.
        drop_leaks: Remove rows that stand in two roles instead of refusing them. A row stays in the
            first of its roles in the order of `ROLES`, so that report rows go before select rows.
        objective: How the numbers of named domains become one, as in `Domains`.
        weights: What each of them counts for, with objective "weights".

    Raises:
        LoadError: If a file cannot be read, files do not fit each other, a role has too few rows,
            or a row is in two roles.
    """
    roles: dict[tuple[str, str], Samples] = {}
    for name in ("id", "target"):
        given, report_files = (_by_domain(files.get(key)) for key in (name, f"{name}-report"))
        for domain in sorted(given):
            role, report_role = (f"{name}-{side}{f' ({domain})' if domain else ''}" for side in _SIDES)
            samples = read_samples(given[domain], read_row, role=role)
            if domain in report_files:
                select, report = samples, read_samples(report_files[domain], read_row, role=report_role)
            else:
                select, report = _split(samples, seed)
            roles[f"{name}-select", domain] = _limited(select, seed, limit)
            roles[f"{name}-report", domain] = _limited(replace(report, role=report_role), seed, limit)
    _check_layout([row for samples in roles.values() for row in samples.rows[:1]])
    if "report" not in sides:
        roles = {key: samples for key, samples in roles.items() if key[0].endswith("select")}
    # Where rows are reported, those that drove the choice count, though they be not asked for.
    roles = _without_leaks(roles, drop_leaks)
    roles = {key: samples for key, samples in roles.items() if key[0].rpartition("-")[2] in sides}
    for samples in roles.values():
        if len(samples) < MIN_ROWS:
            raise LoadError(
                f"{samples.source} gives {len(samples)} {samples.role} rows, at least {MIN_ROWS} are needed.",
                "Give more rows, or a separate report file.",
            )
    found: dict[str, dict[str, Samples]] = {}
    for (name, domain), samples in roles.items():
        found.setdefault(name, {})[domain] = samples
    return {name: _joined(name, domains, objective, weights) for name, domains in found.items()}


def _by_domain(files: Path | Mapping[str, Path] | None) -> Mapping[str, Path]:
    """Return the file of each domain; one file is that of a domain without a name."""
    if files is None:
        return {}
    return files if isinstance(files, Mapping) else {UNNAMED: files}


def _joined(
    role: str, domains: Mapping[str, Samples], objective: str, weights: Mapping[str, float] | None
) -> Samples:
    """Return the rows of all domains of a role as one set.

    Raises:
        LoadError: If some domains have labels and others have none.
    """
    if UNNAMED in domains:
        return domains[UNNAMED]
    labelled = {samples.is_labelled: samples for samples in domains.values()}
    if len(labelled) > 1:
        raise LoadError(
            f"{labelled[False].source} has no labels, {labelled[True].source} has labels.",
            "Label the rows of all target domains, or of none.",
        )
    sizes = {name: len(samples) for name, samples in domains.items()}
    return Samples(
        role,
        tuple(row for samples in domains.values() for row in samples.rows),
        ", ".join(samples.source for samples in domains.values()),
        "\n".join(samples.sha256 for samples in domains.values()),
        Domains.of(sizes, objective, weights),
    )


def _check_layout(rows: Sequence[Row]) -> None:
    """Refuse rows that cannot be encoded together."""
    for row in rows:
        if row.layout != rows[0].layout:
            raise LoadError(
                f"{row.where} has {row.layout}, {rows[0].where} has {rows[0].layout}.",
                "All rows of all files must be alike.",
            )


def _without_leaks(
    roles: dict[tuple[str, str], Samples], drop_leaks: bool
) -> dict[tuple[str, str], Samples]:
    """Refuse, or remove from the later role, rows that stand in two roles."""
    first_seen: dict[str, tuple[str, str]] = {}
    clean: dict[tuple[str, str], Samples] = {}
    contents = [{row.key for row in samples.rows} for samples in roles.values()]
    # The same file given twice, where nothing is reported, is a control: no shift, nothing to drop.
    if [name for name, _ in roles] == ["id-select", "target-select"] and contents[0] == contents[1]:
        return roles
    for key in sorted(roles, key=lambda key: (ROLES.index(key[0]), key[1])):
        role, kept = roles[key].role, []
        for row in roles[key].rows:
            other, where = first_seen.setdefault(row.key, (role, row.where))
            if other == role:
                kept.append(row)
            elif not drop_leaks:
                raise LoadError(
                    f"The same row is in two roles: {where} ({other}) and {row.where} ({role}).",
                    f"{_why_apart(other, role)} Remove it, or add --drop-leaks.",
                )
        clean[key] = replace(roles[key], rows=tuple(kept))
    return clean


def _why_apart(one: str, other: str) -> str:
    """Say why a row may not be in two roles."""
    if one.split(" ")[0] == other.split(" ")[0]:
        return "A row belongs to one domain."
    return "A row that helped to choose cannot be reported."


def _split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Halve the samples by a seeded hash of their content, label by label."""
    # Equal rows with unequal labels belong to one stratum, whichever of them comes first.
    labels: dict[str, str] = {}
    for row in samples.rows:
        # A text is an answer, not a class: each would be a stratum of its own.
        label = str(row.label) if np.isscalar(row.label) and not isinstance(row.label, str) else ""
        labels[row.key] = min(label, labels.get(row.key, label))
    strata: dict[str, list[str]] = {}
    for key, label in labels.items():
        strata.setdefault(label, []).append(key)
    chosen: set[str] = set()
    for number, stratum in enumerate(sorted(strata)):
        keys = sorted(strata[stratum], key=lambda key: (_hash(key, seed), key))
        # An odd row out goes to either side in turn.
        chosen.update(keys[: (len(keys) + number % 2) // 2])
    select = tuple(row for row in samples.rows if row.key in chosen)
    report = tuple(row for row in samples.rows if row.key not in chosen)
    return replace(samples, rows=select), replace(samples, rows=report)


def _limited(samples: Samples, seed: int, limit: int | None) -> Samples:
    """Keep at most `limit` rows, in file order."""
    if limit is None or len(samples) <= limit:
        return samples
    order = sorted(range(len(samples)), key=lambda i: (_hash(samples.rows[i].key, seed), i))
    return replace(samples, rows=tuple(samples.rows[i] for i in sorted(order[:limit])))


def _hash(key: str, seed: int = 0) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest(), "big")


# --- files ----------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each record of a file with its place ("reviews.csv, row 7").

    Raises:
        LoadError: If the file cannot be read, or is not what its ending says.
    """
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            is_saved = any((path / name).is_file() for name in SAVED)
            yield from _saved_dataset(path) if is_saved else _label_folders(path)
        elif suffix in (".jsonl", ".ndjson", ".json"):
            yield from _json_lines(path)
        elif suffix in (".csv", ".tsv"):
            yield from _table(path, "," if suffix == ".csv" else "\t")
        elif suffix == ".parquet":
            yield from _parquet(path)
        else:
            raise LoadError(
                f"Sample file {path} has an unknown ending {suffix!r}.",
                "Known: .jsonl, .csv, .tsv, .parquet, a folder saved by datasets, a folder of files a label.",
            )
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not UTF-8: {error.reason}.", "Save the file as UTF-8.") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise LoadError(f"Cannot read {path}: {reason}.", "Check the path and its rights.") from error


def _json_lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read JSON Lines; a place is a line, counted from 1."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or first_line(error)
                raise LoadError(
                    f"{where} is not valid JSON: {reason}.", "Write one object a line, in UTF-8."
                ) from error
            if not text.strip():
                continue
            if not isinstance(record, dict):
                raise LoadError(f"{where} is not a JSON object.", "Write one object a line.")
            yield record, where


def _table(path: Path, delimiter: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read CSV or TSV; a place is a row, counted from 1 without the header.

    All values are texts: "NA" and "007" are answers a user may well have written.
    """
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise LoadError(f"{path} has two columns of one name: {', '.join(header)}.")
            number = 0
            for values in reader:
                if not values:  # a blank line
                    continue
                number += 1
                if len(values) != len(header):
                    raise LoadError(
                        f"{path}, line {reader.line_num} has {len(values)} fields, "
                        f"the header has {len(header)}.",
                        "Quote texts that hold the separator or a line break.",
                    )
                if any("\0" in value for value in values):
                    raise LoadError(
                        f"{path}, line {reader.line_num} holds a NUL byte.", "Save the file as UTF-8."
                    )
                yield dict(zip(header, values, strict=True)), f"{path}, row {number}"
        except csv.Error as error:
            raise LoadError(
                f"{path}, line {reader.line_num} is malformed: {error}.",
                "Quote texts that hold quotes, separators or line breaks; or write JSON Lines.",
            ) from error


def _parquet(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read Parquet; a place is a row, counted from 1."""
    import pyarrow
    from pyarrow import parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise LoadError(
            f"{path} cannot be read as Parquet: {first_line(error)}", "Write it again."
        ) from error
    for number, record in enumerate(records, start=1):
        yield record, f"{path}, row {number}"


def _saved_dataset(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read a folder written by `Dataset.save_to_disk`; a place is a row, counted from 1."""
    from datasets import Audio, ClassLabel, Dataset, Image, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{path} is not a folder saved by datasets.", "Write it with Dataset.save_to_disk."
        ) from error
    if not isinstance(data, Dataset):
        raise ConfigError(
            f"{path} holds several splits: {', '.join(data)}.",
            f"Name one: {path / next(iter(data))}.",
        )
    # Ids of such a column count in the data's own order of names, which need not be the model's.
    named = {name: kind for name, kind in data.features.items() if isinstance(kind, ClassLabel)}
    for name, kind in list(data.features.items()):  # files are decoded by the task, when it encodes them
        if isinstance(kind, (Audio, Image)):
            data = data.cast_column(name, type(kind)(decode=False))
    for number, record in enumerate(data, start=1):
        for name, kind in named.items():
            if record[name] is not None and record[name] >= 0:  # -1 stands for no label
                record[name] = kind.int2str(record[name])
        yield record, f"{path}, row {number}"


def _label_folders(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read FOLDER/label/file, a record a file; a task finds the file in the column that it reads.

    Raises:
        LoadError: If there is no such file.
    """
    labels = sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")
    files = [(file, label) for label in labels for file in sorted(label.iterdir())]
    files = [(file, label) for file, label in files if file.is_file() and file.name[0] != "."]
    if not files:
        raise LoadError(
            f"{path} is not a folder saved by datasets, nor one that holds a folder of files a label.",
            "Write it with Dataset.save_to_disk, or put each file into a folder named after its label.",
        )
    for file, label in files:
        content = str(file.absolute())
        yield {"image": content, "audio": content, "label": label.name}, str(file)
