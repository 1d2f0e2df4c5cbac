"""Runs side by side: what is not comparable is named and never drawn together; the page is inert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import reports
from click.testing import CliRunner, Result
from conftest import complaint
from test_reporting import HOSTILE, LOADING, Page

from tapioca_export.artifacts import (
    Benchmark,
    Flip,
    Pair,
    Prompting,
    Report,
    Run,
    RunComparison,
    read,
    sha256,
    write,
    write_sealed,
)
from tapioca_export.cli import main
from tapioca_export.collating import RESTING, UNKNOWN, collate, compare_runs, compared_run, facts_of
from tapioca_export.reporting import brief_runs_table, render_text
from tapioca_export.reporting.run_figures import speed_figures, trade_figures
from tapioca_export.reporting.runs import render_runs_html, render_runs_markdown
from tapioca_export.treatments import Treatment

MACHINE = {
    "processor": "EPYC",
    "cores": 2,
    "gpus": [],
    "platform": "Linux",
    "versions": {"onnxruntime": "1.27.0"},
}
CONFIG = {
    "id": "id.jsonl",
    "target": "target.jsonl",
    "seed": 0,
    "columns": {},
    "limit": None,
    "max_length": None,
}
INPUTS = {"id.jsonl": "1" * 64, "target.jsonl": "2" * 64, "more.jsonl": "3" * 64, "other.jsonl": "4" * 64}


def a_report(number: int = 0, **changes: Any) -> Report:
    """A report on rows and a machine that are recorded; keywords replace parts of that, or artifacts."""
    record = {"config": CONFIG, "environment": MACHINE, "inputs": INPUTS}
    parts = {name: {**known, **changes.pop(name, {})} for name, known in record.items()}
    measured = changes.pop("benchmark", reports.benchmark())
    measured = replace(measured, load_seconds=Pair(1.0 + number, 0.5))  # no two runs take the same time
    changes = {"exports": {"original/onnx": reports.export(max_length=512)}, **changes}
    return reports.report(run=replace(reports.run(), **parts), benchmark=measured, **changes)


def save(folder: Path, report: Report) -> Path:
    """Write what a run folder holds of a report."""
    write(folder / "report.json", report)
    write_sealed(
        folder / "run.json", replace(report.run, outputs={"report.json": sha256(folder / "report.json")})
    )
    return folder


def beside(*made: Report) -> RunComparison:
    """Put reports side by side as runs a, b, c..."""
    return collate(
        [compared_run(name, Path(name), report) for name, report in zip(ascii_lowercase, made, strict=False)]
    )


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def drawn(found: RunComparison) -> dict[str, list[str]]:
    """Return the runs in each plot."""
    return {
        figure.name: [trace["name"] for trace in figure.spec["data"] if trace["name"] != "A/A noise"]
        for figure in (*trade_figures(found), *speed_figures(found))
    }


# --- what is comparable ---------------------------------------------------------------------


def test_runs_on_the_same_rows_and_machine_are_comparable() -> None:
    found = beside(a_report(), a_report())
    assert found.verdict == "All 2 runs are comparable in target metric, ID metric and speed and memory."
    assert found.differences == ()
    assert found.groups == {quantity: (("a", "b"),) for quantity in ("target", "id", "speed")}


def selected(**changes: Any) -> dict[str, Any]:
    return {"selection": replace(reports.selection(), **changes)}


def measured(**changes: Any) -> dict[str, Any]:
    return {"benchmark": reports.benchmark(**changes)}


F1 = {"id": replace(reports.NO_CHANGE, metric="f1"), "target": reports.GAIN}
OTHERS: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "task": (measured(task="fill-mask"), {"target", "id"}, "another task (fill-mask, not text-"),
    "metric": (measured(accuracy=F1), {"id"}, "in ID metric (another metric (f1, not accuracy))"),
    "objective": (
        measured(objective="worst", targets={"x": reports.GAIN}), {"target"},
        "another metric (accuracy (worst), not accuracy)",
    ),
    "rows": ({"inputs": {"target.jsonl": "9" * 64}}, {"target"}, "in target metric (other report rows)"),
    "report file": ({"config": {"id_report": "more.jsonl"}}, {"id"}, "in ID metric (other report rows)"),
    "split": ({"config": {"seed": 1}}, {"target", "id"}, "in target metric and ID metric (other"),
    "limit": ({"config": {"limit": 9}}, {"target", "id"}, "other report rows"),
    "columns": ({"config": {"columns": {"text": "x"}}}, {"target", "id"}, "other report rows"),
    "leaks": ({"config": {"drop_leaks": True}}, {"target", "id"}, "other report rows"),
    "domains": ({"config": {"target": {"x": "target.jsonl"}}}, {"target"}, "other report rows"),
    "prompts": (selected(prompting=Prompting(chat=True)), {"target", "id"}, "other prompts"),
    "length": (
        {"exports": {"original/onnx": reports.export(max_length=64)}}, {"target", "id"},
        "inputs cut at another length (64, not 512)",
    ),
    "machine": ({"environment": {"cores": 8}}, {"speed"}, "another machine (EPYC, 8 cores, no GPU, Linux"),
    "runtime": (
        {"environment": {"versions": {"onnxruntime": "1.22.0"}}}, {"speed"},
        "in speed and memory (another ONNX Runtime (1.22.0 (onnxruntime), not 1.27.0 (onnxruntime)))",
    ),
    "settings": (measured(latency=(reports.latency(4),)), {"speed"}, "timed at other settings"),
    "threads": (
        measured(latency=(reports.latency(threads=1), reports.latency(8, threads=1))), {"speed"},
        "timed at other settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_differs_is_named_and_drawn_apart(case: str) -> None:
    changes, quantities, words = OTHERS[case]
    found = beside(a_report(), a_report(**changes), a_report())
    assert {part.quantity for part in found.differences} == quantities
    assert {part.run for part in found.differences} == {"b"}
    assert found.verdict.startswith("Held against a: comparable throughout: c; not comparable in ")
    assert words in found.verdict
    for quantity in ("target", "id", "speed"):
        assert found.groups[quantity] == (
            (("a", "c"), ("b",)) if quantity in quantities else (("a", "b", "c"),)
        )
    for name, needed in (("trade", {"target", "id"}), ("speed", {"target", "speed"})):
        together = {f"{name}-1": ["1. a", "2. b", "3. c"]}
        apart = {f"{name}-1": ["1. a", "3. c"], f"{name}-2": ["2. b"]}
        plots = {key: runs for key, runs in drawn(found).items() if key.startswith(name)}
        assert plots == (apart if needed & quantities else together)


def test_a_fact_that_is_not_recorded_is_never_the_same() -> None:
    made = a_report(config={"id": "unhashed.jsonl"})
    found = beside(made, made)
    assert found.groups["id"] == (("a",), ("b",))
    assert found.verdict.endswith("not comparable in ID metric (rows not recorded): b.")
    unknown = a_report(environment={"versions": {"onnxruntime": "not installed"}})
    assert beside(unknown, unknown).groups["speed"] == (("a",), ("b",))
    old = reports.report()
    assert beside(old, old).groups == {q: (("a",), ("b",)) for q in ("target", "id", "speed")}


def test_what_does_not_change_the_report_rows_does_not_set_runs_apart() -> None:
    apart = {"id_report": "more.jsonl", "target_report": "other.jsonl"}
    moved = {"id.jsonl": "8" * 64}  # chooses, and is not reported
    found = beside(
        a_report(config=apart),
        a_report(config={**apart, "seed": 5, "criterion": "loss", "output": "x"}, inputs=moved),
        a_report(config={**apart, "id_report": "renamed.jsonl"}, inputs={"renamed.jsonl": "3" * 64}),
        a_report(config={**apart, "columns": {"group": "dialect"}}),  # what rows are counted to
    )
    assert found.differences == ()


def test_the_seed_draws_report_rows_where_they_are_limited() -> None:
    apart = {"id_report": "more.jsonl", "target_report": "other.jsonl", "limit": 9}
    first, second = (facts_of(a_report(config={**apart, "seed": seed})) for seed in (0, 1))
    assert first["ID report rows"] != second["ID report rows"]


def test_a_role_that_one_run_lacks_is_named() -> None:
    blind = measured(accuracy={"id": reports.NO_CHANGE})
    found = beside(a_report(), a_report(**blind))
    assert "not comparable in target metric (metric not measured): b" in found.verdict
    assert found.groups["target"] == (("a",),)
    assert drawn(found) == {"trade-1": ["1. a"], "speed-1": ["1. a"]}
    assert "(metric accuracy" not in beside(a_report(**blind), a_report()).verdict
    assert "metric not measured there" in beside(a_report(**blind), a_report()).verdict
    both = beside(a_report(**blind), a_report(**blind))
    assert both.verdict.endswith(
        "in ID metric and speed and memory. Measured in none of them: target metric."
    )


def test_another_wheel_of_onnxruntime_is_another_runtime() -> None:
    wheels = {"onnxruntime": "not installed", "onnxruntime-gpu": "1.27.0"}
    gpu = a_report(environment={"versions": wheels})
    assert beside(gpu, gpu).differences == ()
    assert "(1.27.0 (onnxruntime-gpu), not 1.27.0 (onnxruntime))" in beside(a_report(), gpu).verdict


def test_what_neither_run_measured_sets_none_apart() -> None:
    blind = measured(accuracy={"id": reports.NO_CHANGE})
    found = beside(a_report(**blind), a_report(inputs={"target.jsonl": "9" * 64}, **blind))
    assert found.differences == ()


def test_runs_that_are_comparable_with_each_other_alone_are_named() -> None:
    laptop = {"environment": {"cores": 8}}
    found = beside(a_report(), a_report(**laptop), a_report(**laptop))
    assert found.verdict.endswith("): b and c. With each other: b and c in speed and memory.")


def test_tuned_runs_are_comparable_though_threads_were_chosen_otherwise() -> None:
    facts = [
        facts_of(a_report(**measured(latency=(reports.latency(threads=n),), sessions=sessions)))[
            "timed settings"
        ]
        for n, sessions in ((1, {"original": ()}), (2, {"original": ()}), (2, {}))
    ]
    assert facts[0] == facts[1] != facts[2]


def test_every_fact_decides_something() -> None:
    assert set(facts_of(a_report())) == set(RESTING)


# --- numbers --------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_its_run() -> None:
    half = {"pruned/onnx": reports.export(dtype="fp16", treatment=Treatment("O2", "int8"))}
    slow = reports.latency(8, 1.02, noise_floor=(0.9, 1.1))
    found = beside(a_report(), a_report(exports=half, **measured(latency=(reports.latency(), slow))))
    text = render_runs_markdown(found)
    first, second = (
        line for line in text.splitlines() if line.startswith(("| 1. a | bert", "| 2. b | bert"))
    )
    assert first == (
        "| 1. a | bert-tiny | tale | layers 4 and 7 | 10 of 12 | fp32 | accuracy 0.712 → 0.768 | "
        "+0.056 (+0.024 to +0.088) | accuracy 0.914 → 0.906 | -0.008 (-0.022 to +0.006) | "
        "1.16 (1.14 to 1.18) | 0.98 to 1.02 | 438.0 MB → 382.0 MB (12.8 % smaller) | "
        "612.0 MB → 548.0 MB (10.5 % smaller) |"
    )
    assert "| fp16, O2, int8 dynamic |" in second
    assert "| 1.04 (1.02 to 1.06) | 0.90 to 1.10 |" in second
    assert text.count("| 1. a | batch 8, 128 tokens, CPU, 2 threads |") == 1


def test_gains_and_losses_are_drawn_as_better_and_worse_whatever_the_metric() -> None:
    better = reports.accuracy(0.50, 0.40, (-0.15, -0.05), metric="nmse", higher_is_better=False)
    worse = reports.accuracy(0.20, 0.23, (0.01, 0.07), metric="nmse", higher_is_better=False)
    lower = a_report(**measured(accuracy={"target": better, "id": worse}))
    found = beside(lower, lower)
    (trade,), (speeds,) = trade_figures(found), speed_figures(found)
    point, speed, noise = trade.spec["data"][1], speeds.spec["data"][2], speeds.spec["data"][0]
    assert point["name"] == speed["name"] == "2. b"
    assert point["customdata"] == [[pytest.approx(n) for n in (0.01, 0.07, 0.05, 0.15)]]
    assert (point["x"], point["y"]) == ([pytest.approx(0.03)], [pytest.approx(0.1)])
    assert point["error_x"]["array"] == [pytest.approx(0.04)]
    assert point["error_y"]["arrayminus"] == [pytest.approx(0.05)]
    assert speed["x"] == [pytest.approx(1.16)]
    assert speed["customdata"][0][:2] == [pytest.approx(1.14), pytest.approx(1.18)]
    assert noise["x"][:2] == [0.985, 1.016]
    assert noise["y"][:2] == [pytest.approx(0.1)] * 2


def test_little_that_was_measured_still_renders() -> None:
    empty = measured(accuracy={}, latency=(), size_bytes=Pair(0, 0), peak_memory_bytes=Pair(0, 0))
    found = beside(a_report(**empty), a_report(**empty))
    assert found.verdict == (
        "The 2 runs have nothing to compare. Measured in none of them: target metric, ID metric and speed "
        "and memory."
    )
    assert drawn(found) == {}
    assert render_runs_markdown(found).count("\n\nNot measured.\n\n") == 2
    assert "No run has labelled report rows." in render_runs_html(found)
    assert render_text(brief_runs_table(found)).splitlines()[2].split()[3:] == ["n/a"] * 4


# --- files ----------------------------------------------------------------------------------


def test_the_artifact_reads_back_and_has_no_row_of_a_sample(tmp_path: Path) -> None:
    flipped = measured(flips={"target": (Flip("t.jsonl, line 3", "a secret", 0.0, 1.0),)})
    folders = [save(tmp_path / name, a_report(n, **flipped)) for n, name in enumerate("ab")]
    found = compare_runs(folders, tmp_path / "out")
    assert read(tmp_path / "out" / "run_comparison.json", RunComparison) == found
    for path in (tmp_path / "out").iterdir():
        assert "a secret" not in path.read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"run_comparison.{ending}" for ending in ("html", "json", "md")
    ]


def test_hostile_names_are_inert() -> None:
    hostile = a_report(
        selection=replace(reports.selection(HOSTILE), criterion=HOSTILE),
        **measured(
            task=HOSTILE,
            accuracy={"target": replace(reports.GAIN, metric=HOSTILE), "id": reports.NO_CHANGE},
            latency=(reports.latency(provider=HOSTILE),),
        ),
        environment={"processor": HOSTILE},
    )
    found = collate([compared_run("a", Path("a"), a_report()), compared_run(HOSTILE, Path(HOSTILE), hostile)])
    shown, text = Page(render_runs_html(found)), render_runs_markdown(found)
    names = [tag for tag, _ in shown.tags]
    assert names.count("script") == 3
    assert "img" not in names
    assert not any(key.startswith("on") for _, attrs in shown.tags for key in attrs)
    specs = json.dumps(shown.specs())
    assert "<script" not in specs
    assert "<img" not in specs
    assert "<script" not in text
    assert "<img" not in text


def test_the_page_loads_nothing_and_every_plot_has_words() -> None:
    shown = Page(render_runs_html(beside(a_report(), a_report())))
    links = [value for _, attrs in shown.tags for key, value in attrs.items() if key in LOADING]
    assert all(value.startswith("#") for value in links)
    targets = {attrs.get("id") for _, attrs in shown.tags}
    assert {value[1:] for value in links} <= targets
    places = [attrs for _, attrs in shown.tags if "data-figure" in attrs]
    assert [attrs["data-figure"] for attrs in places] == ["trade-1", "speed-1"]
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in places)
    regions = [attrs for _, attrs in shown.tags if attrs.get("role") == "region"]
    assert len(regions) == 4
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)


@pytest.mark.xdist_group("end-to-end")
def test_a_run_and_the_same_timed_again_are_comparable(finished: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "again"))
    measured = read(again / "benchmark.json", Benchmark)
    write(again / "benchmark.json", replace(measured, load_seconds=Pair(1.0, 1.0)))
    record = read(again / "run.json", Run)  # as the other run would have it
    outputs = {**record.outputs, "benchmark.json": sha256(again / "benchmark.json")}
    write_sealed(again / "run.json", replace(record, outputs=outputs))
    assert call("report", again).exit_code == 0
    found = compare_runs([finished, again], tmp_path / "out")
    assert found.verdict.startswith(
        "All 2 runs are comparable in target metric, ID metric and speed and memory."
    )
    assert UNKNOWN not in found.runs[0].facts.values()
    assert sum(len(value) == 64 for value in found.runs[0].facts.values()) == 2


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two run folders of one name in two others, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("new", "old")):
        save(tmp_path / name / "out", a_report(n))
    return tmp_path


def test_the_command_prints_the_line_and_a_row_a_run(pair: Path) -> None:
    result = call("report", "--compare", "new/out", "old/out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("All 2 runs are comparable")
    assert [" ".join(line.split()) for line in lines if line.startswith("2. old/out")] == [
        "2. old/out 10/12 +0.056 [+0.024 to +0.088] -0.008 [-0.022 to +0.006] 1.16 [1.14 to 1.18] 0.872"
    ]
    assert lines[-1] == f"Report: {(pair / 'tapioca-comparison' / 'run_comparison.html').resolve()}"
    assert Path("tapioca-comparison/run_comparison.html").is_file()


def test_json_prints_the_artifact_alone_and_quiet_prints_nothing(pair: Path) -> None:
    result = call("report", "new/out", "old/out", "--compare", "-o", "there", "--json")
    assert result.stdout == Path("there/run_comparison.json").read_text(encoding="utf-8")
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == ["new/out", "old/out"]
    assert call("report", "--compare", "new/out", "old/out", "-o", "there", "--overwrite", "-q").output == ""


def tamper(folder: Path) -> None:
    file = folder / "report.json"
    file.write_text(file.read_text(encoding="utf-8").replace("0.768", "0.868"), encoding="utf-8")


def unseal(folder: Path) -> None:
    file = folder / "run.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")


def copy_run(folder: Path) -> None:
    save(folder, a_report(0))  # as new/out


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "none": (lambda f: None, (), "two run folders or more, and was given 0"),
    "one": (lambda f: None, ("new/out",), "two run folders or more, and was given 1"),
    "twice": (lambda f: None, ("new/out", "new/../new/out"), "Run new/../new/out is named twice"),
    "copy": (copy_run, ("new/out", "old/out"), "Run old/out is a copy of new/out"),
    "no run": (lambda f: None, ("new/out", "old"), "old is not a run folder: it has no run.json"),
    "missing": (lambda f: None, ("new/out", "none"), "none is not a run folder"),
    "unrendered": (lambda f: (f / "report.json").unlink(), ("new/out", "old/out"), "it has no report.json"),
    "changed": (tamper, ("new/out", "old/out"), "old/out/report.json is not what run.json names"),
    "changed record": (unseal, ("new/out", "old/out"), "old/out/run.json is not what was written"),
    "no JSON": (lambda f: (f / "run.json").write_text("{"), ("new/out", "old/out"), "not a run file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_put_side_by_side_is_refused_in_one_line(case: str, pair: Path) -> None:
    spoil, folders, words = REFUSED[case]
    spoil(pair / "old" / "out")
    result = call("report", "--compare", *folders, "-o", "there")
    lines = complaint(result)
    assert (result.exit_code, len(lines), result.stdout) == (1, 2, "")
    assert words in lines[0]
    assert lines[1].startswith("Hint: ")
    assert not Path("there").exists()


def test_an_output_that_holds_a_run_or_something_else_is_refused(pair: Path) -> None:
    before = sha256(pair / "new")
    inside = call("report", "--compare", "new/out", "old/out", "-o", "new", "--overwrite")
    assert (inside.exit_code, "is inside the output folder" in inside.stderr) == (1, True)
    within = call("report", "--compare", "new/out", "old/out", "-o", "old/out/comparison")
    assert (within.exit_code, "is inside the run old/out" in within.stderr) == (1, True)
    full = call("report", "--compare", "new/out", "old/out", "-o", "new")
    assert full.exit_code == 1
    assert sha256(pair / "new") == before
    assert not (pair / "old/out/comparison").exists()


def test_several_runs_without_compare_are_wrong_usage(pair: Path) -> None:
    for arguments in (("new/out", "old/out"), ()):
        result = call("report", *arguments)
        assert (result.exit_code, "--compare" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", [("--output", "there"), ("--overwrite",)])
def test_where_to_write_has_no_say_for_one_run(option: tuple[str, ...], pair: Path) -> None:
    result = call("report", "new/out", *option)
    assert (result.exit_code, f"{option[0]} is for --compare" in result.stderr) == (1, True)
