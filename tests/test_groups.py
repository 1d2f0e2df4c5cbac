"""Rows that say what they are counted to are compared group by group, and the worst group is in sight."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import text_records, write_jsonl
from reports import GAIN, HARM, NO_CHANGE
from reports import benchmark as a_benchmark
from reports import report as a_report
from test_benchmarking import CLASSIFICATION, QUICK, TEXT, make_text_export, text_samples

from tapioca_export.artifacts import Benchmark, Groups, read, to_json, write
from tapioca_export.benchmarking import benchmark
from tapioca_export.benchmarking.grouping import LEAST_ROWS, MOST_GROUPS, compare_groups
from tapioca_export.benchmarking.statistics import compare
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.gating.expressions import failing, fields_of
from tapioca_export.reporting import findings, render_html, render_markdown
from tapioca_export.samples import Samples, group_of, read_samples
from tapioca_export.tasks import Scores

Files = Callable[[str], dict[str, Path]]


def grouped(names: list[str | None], **sizes: Any) -> Samples:
    rows = text_samples(len(names)).rows
    return Samples(
        "target-report", tuple(replace(r, group=n) for r, n in zip(rows, names, strict=True)), "", ""
    )


def scores(right: list[int]) -> Scores:
    values = np.asarray(right, dtype=np.float64)
    return Scores(values, 1 - values)


def test_each_group_is_compared_on_its_own_rows_wherever_they_stand() -> None:
    generator = np.random.default_rng(0)
    names = [("b", "a", None)[n] for n in generator.integers(0, 3, 90)]
    one, other = (scores(generator.integers(0, 2, 90).tolist()) for _ in range(2))
    found, left_out = compare_groups(CLASSIFICATION, one, other, grouped(names))
    assert found is not None
    assert (list(found.each), left_out) == (["a", "b"], ())
    for name, accuracy in found.each.items():
        rows = [n for n, own in enumerate(names) if own == name]
        parts = [Scores(part.values[rows], part.losses[rows]) for part in (one, other)]
        assert accuracy == compare(CLASSIFICATION, *parts)
    assert found.worst.n == sum(name is not None for name in names)


def test_the_worst_group_may_be_another_one_for_either_model() -> None:
    names = ["a"] * 20 + ["b"] * 40
    before, after = (
        scores([1] * 8 + [0] * 12 + [1] * 30 + [0] * 10),
        scores([1] * 18 + [0] * 2 + [1] * 20 + [0] * 20),
    )
    found, _ = compare_groups(CLASSIFICATION, before, after, grouped(names))
    assert found is not None
    assert (found.worst.original, found.worst.pruned) == (0.4, 0.5)  # of a, and of b
    assert found.worst.interval[0] <= found.worst.difference <= found.worst.interval[1]


def test_small_groups_and_too_many_are_named_and_not_compared() -> None:
    names = ["a"] * LEAST_ROWS + ["few"] * (LEAST_ROWS - 1)
    same = scores([1] * len(names))
    found, left_out = compare_groups(CLASSIFICATION, same, same, grouped(names))
    assert found is not None
    assert list(found.each) == ["a"]
    assert left_out == ("groups of fewer than 10 target-report rows: few.",)
    many = [str(n % (MOST_GROUPS + 1)) for n in range(2000)]
    found, left_out = compare_groups(CLASSIFICATION, scores([1] * 2000), scores([1] * 2000), grouped(many))
    assert found is None
    assert "has 101 values" in left_out[0]
    assert compare_groups(CLASSIFICATION, same, same, grouped([None] * len(names))) == (None, ())


def test_a_benchmark_has_groups_of_roles_that_have_some(tmp_path: Path) -> None:
    rows = grouped([("x", "y")[n % 2] for n in range(40)])
    folders = make_text_export(tmp_path / "original"), make_text_export(tmp_path / "pruned", (1,))
    found = benchmark(
        *folders, CLASSIFICATION, {"id": text_samples(20), "target": rows}, TEXT, replace(QUICK, iterations=2)
    )
    assert list(found.groups) == ["target"]
    assert {name: part.n for name, part in found.groups["target"].each.items()} == {"x": 20, "y": 20}
    assert "target, worst group" in found.rows
    write(tmp_path / "benchmark.json", found)
    assert json.loads(to_json(read(tmp_path / "benchmark.json", Benchmark))) == json.loads(to_json(found))


def test_a_group_is_read_from_its_column_or_another(tmp_path: Path, sample_files: Files) -> None:
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
    with pytest.raises(LoadError, match="no column 'nothing'"):
        read_samples(path, CLASSIFICATION.rows({"group": "nothing"}, TEXT_OF_TINY), role="id")


TEXT_OF_TINY = replace(TEXT, id2label={0: "negative", 1: "neutral", 2: "positive"})


def test_names_of_groups_are_texts_or_numbers() -> None:
    told = {"a": "a", 3: "3", True: "True", "": None, None: None, float("nan"): None}
    assert [group_of(value, "row 1") for value in told] == list(told.values())
    assert group_of(["a"], "row 1", is_asked_for=False) is None
    with pytest.raises(LoadError, match=r"row 1: group is list"):
        group_of(["a"], "row 1")


GROUPED = a_benchmark(
    groups={"target": Groups(HARM, {"<b>news</b>": replace(HARM, p_value=0.001), "sport": NO_CHANGE})}
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
    with pytest.raises(ConfigError, match="worst_group"):
        failing("worst_group.id.gain.low < 0", fields)


@pytest.mark.slow
def test_a_run_with_groups_shows_them(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    files = []
    for seed, name in enumerate(("id", "target")):
        records = [
            {**record, "group": ("even", "odd")[n % 2]} for n, record in enumerate(text_records(80, seed))
        ]
        files += [f"--{name}", str(write_jsonl(tmp_path / f"{name}.jsonl", records))]
    given = ["run", "--model", str(tiny("bert")), *files, "-o", str(tmp_path / "run"), "--iterations", "2"]
    result = CliRunner().invoke(main, [*given, "--epsilon", "1", "--pick", "1"])
    assert result.exit_code == 0, result.output
    assert "target, worst group" in result.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["benchmark"]["groups"]) == {"id", "target"}
    assert set(report["benchmark"]["groups"]["target"]["each"]) == {"even", "odd"}
