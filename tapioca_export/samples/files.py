"""Sample files -> records: JSON Lines, CSV, TSV, Parquet, folders; each record with its place in words.

Knows nothing about what a record means.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LoadError, first_line, reason

# Bytes. No row that a model is asked about is as long, and one line must not fill the memory.
LONGEST_LINE = 1 << 24
GZIP = b"\x1f\x8b"
# What marks a folder written by datasets; any other holds a folder of files for each label.
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


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
        raise LoadError(f"Cannot read {path}: {reason(error)}.", "Check the path and its rights.") from error


def _json_lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read JSON Lines; a place is a line, counted from 1."""
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
            where = f"{path}, line {number}"
            if number == 1 and line.startswith(GZIP):
                raise LoadError(f"{path} is compressed with gzip.", "Unpack it.")
            if len(line) > LONGEST_LINE:
                raise LoadError(
                    f"{where} is longer than {LONGEST_LINE >> 20} MiB.", "Write one object a line, of a row."
                )
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
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last of dates past 9999
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
