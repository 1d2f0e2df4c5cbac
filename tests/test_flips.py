"""Rows whose result changed: which are named, what is shown of them, and that what they hold is inert."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
from click.testing import CliRunner
from conftest import NUM_LAYERS

from tapioca_export.artifacts import MOST_FLIPS, Benchmark, Flip, Prompting, read, write
from tapioca_export.benchmarking.flipping import changed_rows, flips_of, num_still_wrong
from tapioca_export.cli import main
from tapioca_export.reporting import render_html
from tapioca_export.reporting.flips import flip_table
from tapioca_export.reporting.wording import findings
from tapioca_export.samples import Row, Samples
from tapioca_export.samples.rows import SHOWN, shown
from tapioca_export.tasks import TASKS, Scores
from tapioca_export.tasks.feature_extraction import PAIRS
from tapioca_export.tasks.token_classification import WordTagging
from tapioca_export.tasks.writing import WrittenAnswer

HOSTILE = "<script>alert(1)</script> \u202e \u05d0\u05d1\u05d2 </td> " + "x" * 1_000_000


def rows(number: int) -> Samples:
    made = tuple(Row({}, 1, str(n), f"rows.jsonl, row {n}", shown=f"text: {n}") for n in range(number))
    return Samples("target-report", made, "rows.jsonl", "")


def found(
    before: list[float], after: list[float], task: str = "text-classification", *, redact: bool = False
) -> tuple[Flip, ...]:
    one, other = np.asarray(before), np.asarray(after)
    changed = changed_rows(one, other, TASKS[task].higher_is_better)
    said = [["red", *[None] * len(before)], ["a\nvery " + "long " * 100, *[None] * len(before)]]
    return flips_of(changed, one, other, rows(len(before)), said, redact=redact)


def test_rows_that_became_worse_come_first_and_the_same_are_left_out() -> None:
    flips = found([1, 0, 1, 0, 1], [1, 1, 0, 0, 0])
    assert [flip.where for flip in flips] == [f"rows.jsonl, row {n}" for n in (2, 4, 1)]
    assert [(flip.original, flip.pruned) for flip in flips] == [(1, 0), (1, 0), (0, 1)]
    assert [flip.sample for flip in flips] == ["text: 2", "text: 4", "text: 1"]
    for flip in found([1, 0], [0, 1], redact=True):
        assert (flip.sample, flip.original_answer, flip.pruned_answer) == (None, None, None)


def test_answers_stand_beside_the_rows_that_they_are_known_of_and_are_short() -> None:
    known, unknown = found([1, 0], [0, 1])
    assert (unknown.original_answer, unknown.pruned_answer) == (None, None)
    assert known.original_answer == "red"
    assert known.pruned_answer is not None
    assert known.pruned_answer.startswith("a very long long")
    assert len(known.pruned_answer) == SHOWN


def test_where_less_is_better_the_largest_rise_comes_first_and_then_the_largest_fall() -> None:
    flips = found([0.5, 0.1, 0.3, 0.2, 0.9], [0.6, 0.4, 0.1, 0.2, 0.1], "polynomial-regression")
    assert [flip.where[-1] for flip in flips] == ["1", "0", "4", "2"]


def test_no_more_than_so_many_rows_a_direction_are_named() -> None:
    flips = found([1.0] * 120 + [0.0] * 120, [0.0] * 120 + [1.0] * 120)
    assert len(flips) == 2 * MOST_FLIPS
    assert [flip.pruned for flip in flips] == [0.0] * MOST_FLIPS + [1.0] * MOST_FLIPS


@pytest.mark.parametrize(
    ("worse", "better", "counts", "caption"),
    [
        (3, 2, (2, 3), "All rows whose result changed"),
        (50, 50, (50, 50), "All rows whose result changed"),
        (49, 0, (None, None), "All rows whose result changed"),
        (51, 2, (2, 51), "Rows whose result changed most: the 50 of 51 target rows that became worse"),
        (
            60, 130, (130, 60),
            "Rows whose result changed most: the 50 of 60 target rows that became worse; "
            "the 50 of 130 target rows that became better",
        ),
        (
            1, 60, (None, None),
            "Rows whose result changed most: the 50 of more target rows that became better",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_table_says_how_many_rows_it_does_not_show(
    worse: int, better: int, counts: tuple[int | None, int | None], caption: str, higher_is_better: bool
) -> None:
    before, after = [1.0] * worse + [0.0] * better, [0.0] * worse + [1.0] * better
    if not higher_is_better:
        before, after = after, before
    task = "text-classification" if higher_is_better else "polynomial-regression"
    accuracy = replace(reports.GAIN, higher_is_better=higher_is_better, gained=counts[0], lost=counts[1])
    flips = {"target": found(before, after, task)}
    benchmark = replace(reports.report().benchmark, accuracy={"target": accuracy}, flips=flips)
    assert flip_table(benchmark).caption == caption


CLASSES = TASKS["text-classification"]


def scored(values: list[float]) -> Scores:
    return Scores(np.asarray(values), np.zeros(len(values)))


def test_rows_that_go_from_one_wrong_answer_to_another_are_counted() -> None:
    both = scored([0, 0, 0, 1, 1]), scored([0, 0, 1, 0, 1])
    said = ["red", "red", "red", "blue", "blue"], ["green", "red", "blue", "red", "blue"]
    assert num_still_wrong(CLASSES, both, said) == 1
    assert num_still_wrong(CLASSES, both, (said[0], ["red", *said[1][1:]])) == 0
    unknown = (said[0], [None, *said[1][1:]])
    assert num_still_wrong(CLASSES, both, unknown) is None, "no count of rows that are not all known"
    assert num_still_wrong(CLASSES, both, (said[0], [*said[1][:4], None])) == 1, "of a row that is right"
    assert num_still_wrong(TASKS["polynomial-regression"], both, said) is None


def test_of_texts_that_are_written_the_answer_in_them_is_compared() -> None:
    task = WrittenAnswer(Prompting(max_new_tokens=9, extract=r"\d+"))
    both = (Scores(np.array([[0, 0], [0, 1], [0, 0]]), np.zeros(3)),) * 2
    said = ["so it is 3", "no idea", "it is 4"], ["I think 3", "none", "it is 5"]
    assert num_still_wrong(task, both, said) == 1


def test_the_sentence_about_a_role_names_rows_that_are_still_wrong() -> None:
    def said(still_wrong: int | None) -> str:
        report = reports.report()
        accuracy = {"target": replace(reports.GAIN, still_wrong=still_wrong)}
        benchmark = replace(report.benchmark, accuracy=accuracy)
        return " ".join(findings(report.selection, report.profile, benchmark, {}))

    more = "41 became better and 13 worse, 7 more went from one wrong answer to another."
    assert more in said(7)
    assert said(0) == said(None)
    assert "another" not in said(0)


def test_rows_of_entities_are_worth_their_own_f1_and_ranks_are_worth_nothing_alone() -> None:
    counts = np.array([[1, 2, 2], [0, 0, 0], [0, 1, 0], [3, 3, 3]])  # right, found, wanted
    assert TASKS["token-classification"].row_values(counts) == pytest.approx([0.5, 1.0, 0.0, 1.0])
    assert WordTagging().row_values(np.array([0.5, 1.0])) == pytest.approx([0.5, 1.0])
    assert PAIRS.row_values(np.ones((3, 2))) is None


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a\nb\tc ", "label": 2}, "text: a b c; label: 2"),
        ({"text": "x" * 300}, f"text: {'x' * (SHOWN - 1)}…"),
        ({"x": list(range(9)), "y": (1.5, "a")}, "x: [0, 1, 2, 3, 4, 5, 6, 7, …]; y: [1.5, a]"),
        ({"image": {"bytes": b"\0" * 100}}, "image: (dict)"),
        ({"audio": b"\0"}, "audio: (bytes)"),
    ],
)
def test_of_each_column_the_beginning_is_shown(record: dict[str, Any], text: str) -> None:
    assert shown(record) == text


def test_what_rows_hold_is_inert_and_short_in_the_report() -> None:
    sample = shown({"text": HOSTILE})
    assert sample.startswith(
        "text: <script>alert(1)</script> \\u202e \u05d0\u05d1\u05d2 </td>"
    )  # turns nothing
    flips = {"target": (Flip("<img src=x>, row 1", sample, 1.0, 0.0), Flip("row 2", None, 0.0, 1.0))}
    report = reports.report()
    report = replace(report, benchmark=replace(report.benchmark, flips=flips))
    plain = render_html(reports.report())
    page = render_html(report)
    assert page.count("<script") == plain.count("<script")
    assert "<img src=x>" not in page
    assert html.escape("<script>alert(1)</script>") in page
    assert len(page) - len(plain) < 5_000
    (worse, better) = flip_table(report.benchmark).rows
    assert worse[2] == "worse: 1.000 → 0.000"
    assert better[2:] == ("better: 0.000 → 1.000", "(left out)")
    answered = replace(flips["target"][0], original_answer="<b>", pruned_answer="cat")
    told = replace(report.benchmark, flips={"target": (answered, flips["target"][1])})
    assert flip_table(told).columns == ("report rows", "place", "result", "answer", "sample")
    assert [row[3] for row in flip_table(told).rows] == ["<b> → cat", "-"]
    assert "<b> → cat" not in render_html(replace(report, benchmark=told))


@pytest.fixture(scope="module")
def pair(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder with the exports of a model, and of the model without a layer."""
    folder = tmp_path_factory.mktemp("pair")
    chosen = replace(reports.selection(), drop=(1,), num_layers=NUM_LAYERS, seed=0, metric=None)
    write(folder / "pruned.json", chosen)
    call("export", "-m", tiny("polynomial"), "--id", sample_files("polynomial")["id"], "-o", folder / "out",
         "--variants", folder / "pruned.json")  # fmt: skip
    return folder / "out"


def call(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("redact", [False, True])
def test_a_benchmark_names_its_flips(
    pair: Path, sample_files: Callable[[str], dict[str, Path]], tmp_path: Path, redact: bool
) -> None:
    """Rows and counts agree, and sample texts are there or nowhere."""
    files = sample_files("polynomial")
    call("benchmark", pair / "original", pair / "pruned", "--id", files["id"], "--target", files["target"],
         "-o", tmp_path / "out", "--iterations", 2, *(["--redact"] if redact else []))  # fmt: skip
    measured = read(tmp_path / "out" / "benchmark.json", Benchmark)
    for role, flips in measured.flips.items():
        accuracy = measured.accuracy[role]
        gained = sum(flip.pruned < flip.original for flip in flips)
        assert (gained, len(flips) - gained) == (accuracy.gained, accuracy.lost)
        assert flips[0].pruned - flips[0].original == max(flip.pruned - flip.original for flip in flips)
        for flip in flips:
            assert flip.where.startswith(f"{files[role].name}, line ")
            assert flip.sample is None if redact else str(flip.sample).startswith("x: [")
    assert ("x: [" in (tmp_path / "out" / "benchmark.json").read_text()) is not redact
