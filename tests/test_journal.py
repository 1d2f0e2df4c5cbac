"""The journal of a search: what was measured is never measured again, and never mistaken for another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapioca_export.artifacts import Journal
from tapioca_export.errors import OutputError

FINGERPRINT = {"model": "a", "samples": {"target-select": "b"}}
FOUND = {
    "sets": [[1], [2]], "rows": [0, 3], "values": [[1.0, 0.0], [0.0, 1.0]],
    "losses": [[0.1, 1 / 3], [2.5, 1e-17]], "layer_forwards": 7, "layer_tokens": 70,
}  # fmt: skip


def opened(folder: Path, fingerprint: Any = None, **options: Any) -> Journal:
    return Journal(folder / "search.jsonl", fingerprint or FINGERPRINT, 5, **options)


def filled(folder: Path) -> Journal:
    journal = opened(folder)
    journal.add_rows(FOUND, 5)
    journal.add_deviations({"sets": [[1]], "deviations": [0.25], "layer_forwards": 3, "layer_tokens": 30})
    return journal


def test_what_was_recorded_reads_back_to_the_bit(tmp_path: Path) -> None:
    journal, again = filled(tmp_path), opened(tmp_path)
    for dropped in ((1,), (2,), (4,)):
        for one, other in zip(journal.rows(dropped, 5), again.rows(dropped, 5), strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.flatnonzero(np.isfinite(again.rows((2,), 5)[1])).tolist() == [0, 3]
    assert again.deviation((1,)) == 0.25
    assert again.deviation((2,)) is None
    assert (again.layer_forwards, again.layer_tokens, again.num_evaluations) == (10, 100, 2)


def test_a_line_is_on_disk_before_it_counts(tmp_path: Path) -> None:
    filled(tmp_path)
    lines = (tmp_path / "search.jsonl").read_text().splitlines()
    assert [json.loads(line).get("kind") for line in lines] == ["search", None, None]


@pytest.mark.parametrize("num_bytes", [1, 20, 200])
def test_a_journal_cut_anywhere_loses_its_last_line_only(tmp_path: Path, num_bytes: int) -> None:
    filled(tmp_path)
    path = tmp_path / "search.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: -min(num_bytes, len(whole.splitlines()[-1]))])
    again = opened(tmp_path)
    assert again.deviation((1,)) is None
    assert again.rows((1,), 5)[0][0] == 1.0
    again.add_deviations({"sets": [[4]], "deviations": [0.5], "layer_forwards": 0, "layer_tokens": 0})
    assert opened(tmp_path).deviation((4,)) == 0.5


def test_a_note_is_written_once_however_often_the_search_comes_by(tmp_path: Path) -> None:
    for _ in range(2):
        opened(tmp_path).note({"kind": "candidate", "layer": 3})
    assert (tmp_path / "search.jsonl").read_text().count('"candidate"') == 1


@pytest.mark.parametrize(
    ("fingerprint", "reason"),
    [
        ({**FINGERPRINT, "model": "other"}, "model was a and is other"),
        ({**FINGERPRINT, "samples": {"target-select": "c"}}, "samples was"),
    ],
)
def test_a_journal_of_another_search_is_refused_with_the_reason(
    tmp_path: Path, fingerprint: dict[str, Any], reason: str
) -> None:
    filled(tmp_path)
    before = (tmp_path / "search.jsonl").read_bytes()
    with pytest.raises(OutputError, match=reason) as caught:
        opened(tmp_path, fingerprint)
    assert "--overwrite" in str(caught.value)
    assert (tmp_path / "search.jsonl").read_bytes() == before


def test_a_journal_of_another_search_is_discarded_when_asked(tmp_path: Path) -> None:
    filled(tmp_path)
    assert opened(tmp_path, {"model": "other"}, discard=True).num_evaluations == 0
    assert opened(tmp_path, {"model": "other"}).num_evaluations == 0


def test_discarding_keeps_a_journal_of_the_same_search(tmp_path: Path) -> None:
    filled(tmp_path)
    assert opened(tmp_path, discard=True).num_evaluations == 2


def test_a_file_that_is_no_journal_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_text('{"text": "mine"}\n')
    with pytest.raises(OutputError, match="no journal"):
        opened(tmp_path)
    assert (tmp_path / "search.jsonl").read_text() == '{"text": "mine"}\n'
