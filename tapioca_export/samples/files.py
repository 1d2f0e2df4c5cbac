"""Sample files -> records: JSON Lines, CSV, TSV, Parquet, folders; each record with its place in words.

Knows nothing about what a record means.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import ConfigError, LoadError, first_line, reason

# Bytes. No row that a model is asked about is as long, and one line must not fill the memory.
LONGEST_LINE = 1 << 24
# Of Parquet: rows read at once, and what more than so many rows a byte, or bytes a byte, cannot be honest.
ROWS_AT_ONCE = 256
MOST_ROWS_A_BYTE, MOST_UNPACKED, LARGE_BYTES = 8, 1000, 1 << 28
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
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_bounded(stream, path), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise LoadError(f"{path} has two columns of one name: {twice[0]}.", "Rename one.")
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


def _bounded(stream: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a text.

    Raises:
        LoadError: If one is too long.
    """
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), ""), start=1):
        if len(line) > LONGEST_LINE:
            raise LoadError(
                f"{path}, line {number} is longer than {LONGEST_LINE:,} characters.", "Write a row a line."
            )
        yield line


def _parquet(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read Parquet, some rows at a time; a place is a row, counted from 1."""
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if reason := _overblown(file.metadata, path.stat().st_size):
                raise LoadError(f"{path} {reason}.", "Write it again, without what repeats.")
            if twice := [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]:
                raise LoadError(f"{path} has two columns of one name: {twice[0]}.", "Rename one.")
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for record in batch.to_pylist():
                    number += 1
                    yield record, f"{path}, row {number}"
    except (OSError, LoadError):
        raise
    except Exception as error:  # Arrow, and Python's dates and time zones, raise what they please
        raise LoadError(
            f"{path} cannot be read as Parquet: {first_line(error)}", "Write it again."
        ) from error


def _overblown(metadata: Any, size: int) -> str | None:
    """Tell what a Parquet file says of itself that no file of its size holds honestly."""
    if metadata.num_rows > MOST_ROWS_A_BYTE * size:
        return f"says that {size:,} bytes are {metadata.num_rows:,} rows"
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if unpacked > max(LARGE_BYTES, MOST_UNPACKED * size):
        return f"says that {size:,} bytes unpack to {unpacked:,}"
    return None


def _saved_dataset(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Read a folder written by `Dataset.save_to_disk`; a place is a row, counted from 1."""
    from datasets import Audio, ClassLabel, Dataset, Image, load_from_disk

    _refuse_elsewhere(path)
    try:
        data = load_from_disk(str(path))
    except Exception as error:  # whatever a file of it breaks
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
    number = 0
    try:
        for name, kind in list(data.features.items()):  # files are decoded by the task, when it encodes them
            if isinstance(kind, (Audio, Image)):
                data = data.cast_column(name, type(kind)(decode=False))
        for number, record in enumerate(data, start=1):
            for name, kind in named.items():
                if record[name] is not None and record[name] >= 0:  # -1 stands for no label
                    record[name] = kind.int2str(record[name])
            yield record, f"{path}, row {number}"
    except Exception as error:  # types that do not fit what is there, and labels without a name
        raise LoadError(
            f"{path} cannot be read behind row {number}: {first_line(error)}.",
            "Write it again with Dataset.save_to_disk.",
        ) from error


def _refuse_elsewhere(folder: Path) -> None:
    """Refuse a saved dataset whose rows are not in files of its own folder.

    Raises:
        LoadError: If its list of files cannot be read, or names one elsewhere.
    """
    for state in (folder / "state.json", *folder.glob("*/state.json")):  # of several splits, each has one
        try:
            listed = json.loads(state.read_text(encoding="utf-8"))["_data_files"] if state.is_file() else []
            names = [entry["filename"] for entry in listed]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LoadError(
                f"{state} names no files of rows: {first_line(error)}.", "Write it with Dataset.save_to_disk."
            ) from error
        for name in names:
            if not isinstance(name, str) or "\0" in name or not _is_within(state, name):
                raise LoadError(f"{state} names {name!r}, outside its own folder.", "Put the file there.")


def _is_within(state: Path, name: str) -> bool:
    """Tell whether a name leads to a file of the folder, through links as well."""
    return (state.parent / name).resolve().is_relative_to(state.parent.resolve())


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
