"""Rows that say what they are counted to are compared group by group, and the worst group is in sight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import text_records, write_jsonl
from reports import GAIN, HARM, NO_CHANGE
from reports import benchmark as a_benchmark
from reports import report as a_report
from test_benchmarking import CLASSIFICATION, QUICK, TEXT, make_text_export, text_samples

from tapioca_export.artifacts import Benchmark, Groups, read, to_json, write
from tapioca_export.benchmarking import benchmark, score_exported
from tapioca_export.benchmarking.grouping import LEAST_ROWS, MOST_GROUPS, compare_groups
from tapioca_export.benchmarking.statistics import compare
from tapioca_export.cli import main
from tapioca_export.errors import LoadError
from tapioca_export.gating.expressions import failing, fields_of
from tapioca_export.reporting import findings, render_html, render_markdown
from tapioca_export.samples import Row, Samples, group_of, read_samples
from tapioca_export.tasks import TASKS, Scores


def grouped(names: Sequence[str | None]) -> Samples:
    rows = text_samples(len(names)).rows
    return Samples(
        "target-report", tuple(replace(r, group=n) for r, n in zip(rows, names, strict=True)), "", ""
    )


def scores(right: list[int]) -> Scores:
    values = np.asarray(right, dtype=np.float64)
    return Scores(values, 1 - values)


def test_each_group_is_compared_on_its_own_rows_wherever_they_stand() -> None:
    generator = np.random.default_rng(0)
    names = [("b", "a", None)[n] for n in generator.integers(0, 3, 180)]
    one, other = (scores(generator.integers(0, 2, 180).tolist()) for _ in range(2))
    found, left_out = compare_groups(CLASSIFICATION, one, other, grouped(names))
    assert found is not None
    assert (list(found.each), left_out) == (["a", "b"], ())
    for name, accuracy in found.each.items():
        rows = [n for n, own in enumerate(names) if own == name]
        parts = [Scores(part.values[rows], part.losses[rows]) for part in (one, other)]
        assert accuracy == compare(CLASSIFICATION, *parts)
    assert found.worst.n == sum(name is not None for name in names)


def test_the_worst_group_may_be_another_one_for_either_model() -> None:
    """Rows of groups stand among those of others, and of a group too small to be compared."""
    names = ["few", *["a", "b", "b"] * 40, "few"]
    right = {"a": (16, 36), "b": (60, 40), "few": (0, 0)}  # of 40, 80 and 2
    columns: list[list[int]] = [[], []]
    seen = dict.fromkeys(right, 0)
    for name in names:
        for column, most in zip(columns, right[name], strict=True):
            column.append(int(seen[name] < most))
        seen[name] += 1
    found, _ = compare_groups(CLASSIFICATION, *map(scores, columns), grouped(names))
    assert found is not None
    assert (found.worst.original, found.worst.pruned) == (0.4, 0.5)  # of a, and of b
    assert found.worst.interval[0] <= found.worst.difference <= found.worst.interval[1]
    assert found.worst.n == 120


def test_small_groups_and_too_many_are_named_and_not_compared() -> None:
    small = [f"few{n}" for n in range(7) for _ in range(LEAST_ROWS - 1)]
    names = ["a"] * LEAST_ROWS + small
    same = scores([1] * len(names))
    found, left_out = compare_groups(CLASSIFICATION, same, same, grouped(names))
    assert found is not None
    assert list(found.each) == ["a"]
    told = "groups of the target-report rows with fewer than 30: few0, few1, few2, few3, few4, 2 more."
    assert left_out == (told,)
    found, left_out = compare_groups(CLASSIFICATION, same, same, grouped(names), redact=True)
    assert found is not None
    assert found.each == {}
    assert left_out == ("groups of the target-report rows with fewer than 30: 7 of them.",)
    for more in (0, 1):
        many = [str(n % (MOST_GROUPS + more)) for n in range(40 * MOST_GROUPS)]
        every = scores([1] * len(many))
        found, left_out = compare_groups(CLASSIFICATION, every, every, grouped(many))
        assert (found is None) == bool(more)
    assert "has 101 values" in left_out[0]
    assert compare_groups(CLASSIFICATION, same, same, grouped([None] * len(names))) == (None, ())


def test_a_group_of_which_the_metric_says_nothing_is_not_the_worst() -> None:
    """F1 is 0 where there are no entities, before and after: all that falls would hide behind it."""
    task = TASKS["token-classification"]
    tags = {"some": ("B-PER", "O"), "none": ("O", "O")}
    rows = tuple(
        Row({"words": ("w", "w")}, tags[name], f"{name}{n}", f"row {n}", group=name)
        for name in tags
        for n in range(LEAST_ROWS)
    )
    samples = Samples("target-report", rows, "", "")
    with pytest.raises(LoadError):
        task.check_labels(replace(samples, rows=rows[LEAST_ROWS:]))
    counts = np.zeros((len(rows), 3))
    counts[:LEAST_ROWS] = 1  # found, predicted and present
    before, after = counts.copy(), counts.copy()
    after[:LEAST_ROWS, 0] = 0
    losses = np.zeros(len(rows))
    found, left_out = compare_groups(task, Scores(before, losses), Scores(after, losses), samples)
    assert found is not None
    assert list(found.each) == ["some"]
    assert found.worst.difference < 0
    assert "of which f1 cannot be told: none." in left_out[0]


def test_a_benchmark_has_groups_of_roles_that_have_some(tmp_path: Path) -> None:
    names = [("x", "y")[n % 2] for n in range(80)]
    rows, others = grouped([*names, "few"]), replace(grouped([*names, "rare"]), role="id-report")
    folders = make_text_export(tmp_path / "original"), make_text_export(tmp_path / "pruned", (1,))
    settings = replace(QUICK, iterations=2)
    found = benchmark(*folders, CLASSIFICATION, {"id": others, "target": rows}, TEXT, settings)
    assert list(found.groups) == ["id", "target"]
    one, other = (score_exported(folder, CLASSIFICATION, rows, TEXT, settings) for folder in folders)
    assert one.losses.tolist() != other.losses.tolist()
    expected, _ = compare_groups(CLASSIFICATION, one, other, rows)
    assert found.groups["target"] == expected
    assert found.groups["target"] != compare_groups(CLASSIFICATION, other, one, rows)[0]
    assert [words for words in found.skipped if "with fewer" in words] == [
        f"groups of the {role}-report rows with fewer than 30: {name}."
        for role, name in (("id", "rare"), ("target", "few"))
    ]
    assert "target, worst group" in found.rows
    write(tmp_path / "benchmark.json", found)
    assert json.loads(to_json(read(tmp_path / "benchmark.json", Benchmark))) == json.loads(to_json(found))
    redacted = benchmark(*folders, CLASSIFICATION, {"target": rows}, TEXT, replace(settings, redact=True))
    assert redacted.groups["target"] == replace(expected, each={})
    alone = benchmark(*folders, CLASSIFICATION, {"target": text_samples(20)}, TEXT, settings)
    assert alone.groups == {}


def test_a_group_is_read_from_its_column_or_another(tmp_path: Path) -> None:
    records = [{**record, "domain": f"d{n % 2}"} for n, record in enumerate(text_records(6, 0))]
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    plain, named = ({}, {"group": "domain"})
    read_with = [read_samples(path, CLASSIFICATION.rows(c, TEXT_OF_TINY), role="id") for c in (plain, named)]
    assert [row.group for row in read_with[0].rows] == [None] * 6
    assert [row.group for row in read_with[1].rows] == ["d0", "d1"] * 3
    # What a row is counted to does not make it another row.
    assert read_with[0].fingerprint == read_with[1].fingerprint
    lists = write_jsonl(tmp_path / "lists.jsonl", [{**record, "group": [1]} for record in records])
    assert read_samples(lists, CLASSIFICATION.rows({}, TEXT_OF_TINY), role="id").rows[0].group is None
    with pytest.raises(LoadError, match="group is list"):
        read_samples(lists, CLASSIFICATION.rows({"group": "group"}, TEXT_OF_TINY), role="id")
    # What is the label already is no group as well.
    labels = write_jsonl(
        tmp_path / "labels.jsonl", [{"text": r["text"], "group": r["label"]} for r in records]
    )
    rows = read_samples(labels, CLASSIFICATION.rows({"label": "group"}, TEXT_OF_TINY), role="id").rows
    assert {row.group for row in rows} == {None}
    with pytest.raises(LoadError, match="no column 'nothing'"):
        read_samples(path, CLASSIFICATION.rows({"group": "nothing"}, TEXT_OF_TINY), role="id")


TEXT_OF_TINY = replace(TEXT, id2label={0: "negative", 1: "neutral", 2: "positive"})


def test_names_of_groups_are_texts_or_numbers() -> None:
    told = {"a ": "a", 3: "3", 4.0: "4", 0.5: "0.5", True: "True", " ": None, None: None, float("nan"): None}
    assert [group_of(value, "row 1") for value in told] == list(told.values())
    assert group_of("a\x1b[31m\u202eb", "row 1") == "a␛[31m\\u202eb"
    assert group_of(["a"], "row 1", is_asked_for=False) is None
    with pytest.raises(LoadError, match=r"row 1: group is list"):
        group_of(["a"], "row 1")


GROUPED = a_benchmark(
    groups={
        "id": Groups(NO_CHANGE, {"sport": NO_CHANGE}),
        "target": Groups(HARM, {"<b>news</b>": replace(HARM, p_value=0.001), "sport": NO_CHANGE}),
    }
)


def test_a_report_shows_groups_and_says_which_fall() -> None:
    report = a_report(benchmark=GROUPED)
    html, text = render_html(report), render_markdown(report)
    assert "Group by group" in html
    assert "&lt;b&gt;news&lt;/b&gt;" in html
    assert "<b>news</b>" not in html
    assert "Groups" in text
    said = " ".join(report.findings)
    assert "Target, worst group: " in said
    assert "ID, worst group: " in said
    assert "It harms 1 of 2 groups of the target rows (<b>news</b>)" in said
    # Of many groups, one falls by chance: each is judged at its share.
    part = replace(HARM, p_value=0.02)
    shares = {
        count: a_report(benchmark=a_benchmark(groups={"target": Groups(HARM, {"a": part} | others)})).findings
        for count, others in ((2, {"b": GAIN}), (3, {"b": GAIN, "c": GAIN}))
    }
    assert "It harms" in " ".join(shares[2])
    assert "It harms" not in " ".join(shares[3])
    assert findings(report.selection, report.profile, GROUPED, report.exports)


def test_a_gate_can_ask_for_the_worst_group() -> None:
    fields = fields_of(a_report(benchmark=GROUPED))
    assert not failing("worst_group.target.gain.low < 0", fields).passed
    assert failing("worst_group.target.gain.low < -1", fields).passed
    assert failing("benchmark.groups.target.each.sport.difference > 0.5", fields).passed
    assert not failing('groups.target["<b>news</b>"].gain.low < 0', fields).passed
    assert failing("groups.target.sport.gain.low < -1", fields).passed
    assert failing("worst_group.id.gain.low < -1", fields).passed
    fields = fields_of(a_report(benchmark=a_benchmark()))
    assert not failing("worst_group.id.gain.low < 0", fields).passed  # not measured does not pass
    odd = Groups(HARM, {"median": HARM, "interval": GAIN})
    assert fields_of(a_report(benchmark=a_benchmark(groups={"target": odd})))


@pytest.mark.slow
def test_a_run_with_groups_shows_them(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    files = []
    for seed, name in enumerate(("id", "target")):
        records = [
            {**record, "group": ("even", "odd")[n % 2]} for n, record in enumerate(text_records(160, seed))
        ]
        files += [f"--{name}", str(write_jsonl(tmp_path / f"{name}.jsonl", records))]
    given = ["run", "--model", str(tiny("bert")), *files, "-o", str(tmp_path / "run"), "--iterations", "2"]
    result = CliRunner().invoke(main, [*given, "--epsilon", "1", "--pick", "1"])
    assert result.exit_code == 0, result.output
    assert "target, worst group" in result.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["benchmark"]["groups"]) == {"id", "target"}
    assert set(report["benchmark"]["groups"]["target"]["each"]) == {"even", "odd"}
