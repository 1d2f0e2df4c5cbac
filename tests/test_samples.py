"""Rows are read the same from every format, and no row ever stands in two roles."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, text_records, write_jsonl

from tapioca_export.errors import LoadError
from tapioca_export.samples import MIN_ROWS, ROLES, Row, Samples, load_roles, read_samples

AWKWARD = [
    'says "no", twice', "two\nlines", "tab\there", "comma, then", "NA", "007", "null", "café ☕", "'",
    " spaces ", "None", "1e5",
]  # fmt: skip


def read_row(record: Mapping[str, Any], where: str) -> Row:
    """Read a text and its label as they are: what rows mean is the task's business."""
    return Row({"text": record["text"]}, record.get("label"), record["text"].casefold(), where)


def records(num_rows: int = 40, seed: int = 0) -> list[dict[str, str]]:
    return text_records(num_rows, seed)


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as lines:
        delimiter = "," if path.suffix == ".csv" else "\t"
        writer = csv.DictWriter(lines, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_dataset(path: Path, rows: list[dict[str, str]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(path)
    return path


def with_mark(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write with a byte order mark and Windows line ends."""
    write = write_jsonl if path.suffix == ".jsonl" else write_csv
    content = write(path, rows).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + content)
    return path


FORMATS: dict[str, Callable[[Path, Any], Path]] = {
    "rows.ndjson": write_jsonl,
    "rows.json": write_jsonl,
    "rows.csv": write_csv,
    "rows.tsv": write_csv,
    "rows.CSV": lambda path, rows: write_csv(path.with_suffix(".csv"), rows).rename(path),
    "rows.parquet": write_parquet,
    "rows": write_dataset,
}


def contents(samples: Samples) -> list[tuple[Any, Any]]:
    return [(row.features["text"], row.label) for row in samples.rows]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_the_same(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": LABELS[i % 3]} for i, text in enumerate(AWKWARD)]
    expected = read_samples(write_jsonl(tmp_path / "rows.jsonl", rows), read_row, role="id-select")
    actual = read_samples(FORMATS[name](tmp_path / name, rows), read_row, role="id-select")
    assert contents(actual) == contents(expected) == [tuple(row.values()) for row in rows]
    assert actual.fingerprint == expected.fingerprint
    assert actual.hashes == expected.hashes


@pytest.mark.parametrize("name", ["marked.jsonl", "marked.csv"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(name: str, tmp_path: Path) -> None:
    plain = read_samples(write_jsonl(tmp_path / "a.jsonl", records()), read_row, role="id-select")
    marked = read_samples(with_mark(tmp_path / name, records()), read_row, role="id-select")
    assert contents(marked) == contents(plain)


def test_places_are_lines_of_json_and_rows_of_tables(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records(3))
    path.write_text("\n" + path.read_text())
    assert read_samples(path, read_row, role="id-select").rows[0].where == f"{path}, line 2"
    path = write_csv(tmp_path / "a.csv", records(3))
    assert read_samples(path, read_row, role="id-select").rows[0].where == f"{path}, row 1"


# --- split ----------------------------------------------------------------------------------


def split(path: Path, **options: Any) -> dict[str, Samples]:
    return load_roles({"id": path}, read_row, **options)


def texts(samples: Samples) -> set[str]:
    return {row.features["text"] for row in samples.rows}


def test_the_split_parts_the_rows(tmp_path: Path) -> None:
    roles = split(write_jsonl(tmp_path / "a.jsonl", records()))
    assert not texts(roles["id-select"]) & texts(roles["id-report"])
    assert len(roles["id-select"]) + len(roles["id-report"]) == 40


@pytest.mark.parametrize("seed", range(3))
def test_the_split_does_not_depend_on_the_order_of_rows(seed: int, tmp_path: Path) -> None:
    rows = [*records(), *(row | {"label": "other"} for row in records()[:5])]
    expected = split(write_jsonl(tmp_path / "a.jsonl", rows))
    random.Random(seed).shuffle(rows)
    actual = split(write_jsonl(tmp_path / "b.jsonl", rows))
    assert {r: texts(s) for r, s in actual.items()} == {r: texts(s) for r, s in expected.items()}


def test_the_split_depends_on_the_seed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records())
    assert texts(split(path, seed=0)["id-select"]) == texts(split(path, seed=0)["id-select"])
    assert texts(split(path, seed=0)["id-select"]) != texts(split(path, seed=1)["id-select"])


def test_the_split_is_stratified(tmp_path: Path) -> None:
    rows = [{**row, "label": i % 10 and 1} for i, row in enumerate(records(200))]
    roles = split(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [sum(row.label == 0 for row in s.rows) for s in roles.values()] == [10, 10]
    assert [len(samples) for samples in roles.values()] == [100, 100]


def test_odd_strata_favour_no_side(tmp_path: Path) -> None:
    rows = [{**row, "label": i % 6} for i, row in enumerate(records(18))]
    assert [len(s) for s in split(write_jsonl(tmp_path / "a.jsonl", rows)).values()] == [9, 9]


def test_unlabelled_rows_are_halved(tmp_path: Path) -> None:
    rows = text_records(40, 0, labelled=False)
    roles = split(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [len(samples) for samples in roles.values()] == [20, 20]
    assert not roles["id-select"].is_labelled


def test_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    rows = [*records(), *({**row, "text": row["text"].upper()} for row in records())]
    roles = split(write_jsonl(tmp_path / "a.jsonl", rows))
    keys = [{row.key for row in samples.rows} for samples in roles.values()]
    assert not keys[0] & keys[1]
    assert sum(map(len, roles.values())) == 80


def test_one_side_alone_is_the_same_as_with_the_other(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records())
    both = split(path)
    for side in ("select", "report"):
        alone = split(path, sides=(side,))
        assert list(alone) == [f"id-{side}"]
        assert texts(alone[f"id-{side}"]) == texts(both[f"id-{side}"])


def test_a_limit_keeps_the_same_rows_in_file_order(tmp_path: Path) -> None:
    rows = records()
    whole = write_jsonl(tmp_path / "a.jsonl", rows)
    kept = split(whole, limit=20)
    assert all(len(samples) <= 20 for samples in kept.values())
    everything = split(whole)  # what the search saw whole cannot come back in a limited report
    assert not set(texts(kept["id-report"])) & set(texts(everything["id-select"]))
    shuffled = write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    assert {r: texts(s) for r, s in split(shuffled, limit=20).items()} == {
        role: texts(samples) for role, samples in kept.items()
    }
    order = [row["text"] for row in rows]
    places = [order.index(row.features["text"]) for row in kept["id-select"].rows]
    assert places == sorted(places)


@pytest.mark.parametrize("limit", [40, 1000])
def test_a_limit_that_is_not_reached_changes_nothing(limit: int, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records())
    limited, whole = split(path, limit=limit), split(path)
    assert [s.fingerprint for s in limited.values()] == [s.fingerprint for s in whole.values()]


def test_too_few_rows_of_a_role_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records(2 * MIN_ROWS - 2))
    with pytest.raises(LoadError, match=f"7 id-select rows, at least {MIN_ROWS}"):
        split(path)


# --- leaks ----------------------------------------------------------------------------------


def roles_of(folder: Path, **options: Any) -> dict[str, Samples]:
    """Four files, one a role, whose neighbours in the order of `ROLES` share two rows each."""
    rows = records(4 * 12)
    files: dict[str, Path | None] = {}
    for number, role in enumerate(ROLES):
        start = 12 * number
        shared = rows[start - 2 : start] if number else []
        name = role.replace("-select", "")
        files[name] = write_jsonl(folder / f"{role}.jsonl", [*rows[start : start + 12], *shared])
    return load_roles(files, read_row, **options)


def test_leaks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"id-select\.jsonl, line 11 .*target-select\.jsonl, line 13"):
        roles_of(tmp_path)


def test_leaks_are_removed_from_the_later_role(tmp_path: Path) -> None:
    roles = roles_of(tmp_path, drop_leaks=True)
    expected = records(4 * 12)
    for number, role in enumerate(ROLES):
        start = 12 * number
        assert [row.features["text"] for row in roles[role].rows] == [
            row["text"] for row in expected[start : start + 12]
        ]


def test_leaks_are_found_though_only_report_rows_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="two roles"):
        roles_of(tmp_path, sides=("report",))
    alone = roles_of(tmp_path, sides=("report",), drop_leaks=True)
    both = roles_of(tmp_path, drop_leaks=True)
    assert list(alone) == ["id-report", "target-report"]
    assert all(alone[role].fingerprint == both[role].fingerprint for role in alone)


def test_one_file_as_id_and_target_is_a_control_where_nothing_is_reported(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records())
    roles = load_roles({"id": path, "target": path}, read_row, sides=("select",))
    assert roles["id-select"].rows == roles["target-select"].rows
    with pytest.raises(LoadError, match="two roles"):
        load_roles({"id": path, "target": path}, read_row)


# --- what rows have in common ---------------------------------------------------------------


def test_rows_of_one_layout_are_wanted_in_a_file_and_across_files(tmp_path: Path) -> None:
    def read(record: Mapping[str, Any], where: str) -> Row:
        return Row({}, 0, record["text"], where, layout=f"{record['size']} points")

    sizes = {"id": 20, "target": 10}
    paths: dict[str, Path | None] = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{**row, "size": size} for row in records(40, size)])
        for name, size in sizes.items()
    }
    with pytest.raises(LoadError, match=r"target\.jsonl, line \d+ has 10 points, .* has 20 points"):
        load_roles(paths, read)
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [{"text": "a", "size": n} for n in (5, 5, 6)])
    with pytest.raises(LoadError, match=r"line 3 has 6 points, .*line 1 has 5 points"):
        read_samples(mixed, read, role="id-select")


def test_the_fingerprint_changes_with_texts_labels_and_order(tmp_path: Path) -> None:
    rows = records(8)
    variants = [
        rows,
        rows[::-1],
        [{**rows[0], "label": "other"}, *rows[1:]],
        [{**rows[0], "text": "other"}, *rows[1:]],
    ]
    prints = [
        read_samples(write_jsonl(tmp_path / f"{i}.jsonl", v), read_row, role="r").fingerprint
        for i, v in enumerate(variants)
    ]
    assert len(set(prints)) == 4


def test_numbers_in_parquet_and_json_are_the_same(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": None}, {"text": "c", "label": 2}]

    def read(record: Mapping[str, Any], where: str) -> Row:
        return Row({"text": record["text"]}, json.dumps(record["label"]), record["text"], where)

    paths = [write_jsonl(tmp_path / "a.jsonl", rows), write_parquet(tmp_path / "a.parquet", rows)]
    first, second = (contents(read_samples(path, read, role="id-select")) for path in paths)
    assert first == second
