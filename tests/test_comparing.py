"""Criteria against each other: equal depth, rows that no search saw, and what each search cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import NUM_LAYERS, complaint, text_records, write_jsonl
from test_laws import drop_by_hand

import tapioca_export
from tapioca_export import RunConfig, artifacts, comparing, reading, steps
from tapioca_export.artifacts import Comparison, Selection, read
from tapioca_export.cli import main
from tapioca_export.models import LoadedModel
from tapioca_export.samples import Samples

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
CRITERIA = (
    "tale", "tapioca", "tapioca+tale", "realignment", "block-influence", "angular-distance", "loss", "taylor",
    "magnitude", "random", "last",
)  # fmt: skip
DEPTH = 2


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def arguments(tiny: Tiny, sample_files: Files) -> list[object]:
    """A search on the tiny polynomial model, on which every set of layers has a metric of its own."""
    files = sample_files("polynomial")
    return ["select", "-m", tiny("polynomial"), "--id", files["id"], "--target", files["target"]]


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """All nine criteria at depth two, in one run: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    asked = ["--compare", ",".join(CRITERIA), "--max-drop-layers", DEPTH, "--full-scores"]
    result = call(*arguments, "-o", folder, *asked)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture(scope="module")
def comparison(finished: tuple[Path, Result]) -> Comparison:
    return read(finished[0] / "comparison.json", Comparison)


@pytest.fixture(scope="module")
def loaded(arguments: list[object]) -> tuple[LoadedModel, dict[str, Samples]]:
    """The model and its rows by role, loaded apart from any comparison."""
    config = RunConfig(model=str(arguments[2]), id=arguments[4], target=arguments[6])
    return reading.load_with_roles(config, ("select", "report"))


# --- laws -----------------------------------------------------------------------------------


def test_every_criterion_drops_the_depth_asked_for_or_says_why(comparison: Comparison) -> None:
    assert sorted(row.criterion for row in comparison.criteria) == sorted(CRITERIA)
    for row in comparison.criteria:
        assert row.depth == len(row.drop)
        if row.criterion not in ("tapioca", "realignment"):  # which end by themselves
            assert row.depth == DEPTH
        reason = "2 layers dropped, the most that was asked for"
        assert (row.stop_reason == reason) == (row.depth == DEPTH)


@pytest.mark.parametrize("role", ["target", "id"])
def test_report_metrics_are_those_of_the_model_without_the_layers(
    role: str, comparison: Comparison, loaded: tuple[LoadedModel, dict[str, Samples]]
) -> None:
    model, roles = loaded
    rows = roles[f"{role}-report"]
    inputs = model.task.encode(rows.rows, model.processor)
    for row in comparison.criteria:
        accuracy = getattr(row, role)
        original, pruned = (
            model.task.score(drop_by_hand(model, drop).logits(inputs), rows).values for drop in ((), row.drop)
        )
        assert accuracy.n == len(rows)
        assert accuracy.original == pytest.approx(original.mean(), rel=1e-5)
        assert accuracy.pruned == pytest.approx(pruned.mean(), rel=1e-5)
        assert (accuracy.gained, accuracy.lost) == (np.sum(pruned < original), np.sum(pruned > original))
        assert accuracy.interval[0] <= accuracy.difference <= accuracy.interval[1]


def test_the_original_is_the_same_in_all_rows(comparison: Comparison) -> None:
    for role in ("target", "id"):
        accuracies = [getattr(row, role) for row in comparison.criteria]
        assert len({(a.n, a.original, a.original_interval) for a in accuracies}) == 1


def test_the_best_on_the_target_comes_first(comparison: Comparison) -> None:
    gains = [row.target.gain for row in comparison.criteria]
    assert gains == sorted(gains, reverse=True)
    assert len(set(gains)) > 3, "too few sets differ for the order to be tested"


def test_each_cost_is_of_one_search_and_ranking_costs_less_than_trying(comparison: Comparison) -> None:
    costs = {row.criterion: row.cost for row in comparison.criteria}
    for cost in costs.values():
        assert min(cost.evaluations, cost.layer_forwards, cost.plain_layer_forwards) > 0
        assert cost.seconds > 0
    for criterion in ("random", "last", "magnitude"):
        assert costs[criterion].layer_forwards < costs["tale"].layer_forwards


def test_each_selection_is_that_of_its_criterion_alone(
    finished: tuple[Path, Result], arguments: list[object], tmp_path: Path
) -> None:
    folder = finished[0]
    alone = ["--max-drop-layers", DEPTH, "--full-scores", "--pick", "final", "--epsilon", 1e9]
    for criterion in ("loss", "random"):
        call(*arguments, "-o", tmp_path / criterion, *alone, "--criterion", criterion)
        one = read(tmp_path / criterion / "selection.json", Selection)
        other = read(folder / f"selection-{criterion}.json", Selection)
        assert (other.floor, other.epsilon) == (None, None)
        assert one.cost.layer_forwards == other.cost.layer_forwards
        assert replace(other, floor=one.floor, epsilon=one.epsilon, cost=one.cost) == one


def test_the_comparison_agrees_with_the_selections_beside_it(
    finished: tuple[Path, Result], comparison: Comparison
) -> None:
    folder = finished[0]
    for row in comparison.criteria:
        selection = read(folder / f"selection-{row.criterion}.json", Selection)
        found = (selection.criterion, selection.drop, selection.stop_reason, selection.cost)
        assert found == (row.criterion, row.drop, row.stop_reason, row.cost)
    names = {f"{kind}-{name}" for name in CRITERIA for kind in ("selection", "search")}
    assert {path.stem for path in folder.iterdir()} == {"comparison", *names}


def test_identical_sets_are_scored_once_and_have_identical_rows(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[int, ...]] = []
    score = comparing._scores
    monkeypatch.setattr(comparing, "_scores", lambda probe, drop: scored.append(drop) or score(probe, drop))
    asked = [
        "--compare",
        "tale,random,last",
        "--max-drop-layers",
        DEPTH,
        "--protect-first",
        NUM_LAYERS - DEPTH,
    ]
    assert call(*arguments, "-o", tmp_path / "out", *asked).exit_code == 0
    rows = read(tmp_path / "out" / "comparison.json", Comparison).criteria
    assert {row.drop for row in rows} == {(2, 3)}
    assert len({(row.target, row.id) for row in rows}) == 1
    assert scored == [(), (2, 3)] * 2  # on target rows, and on ID rows


def test_a_criterion_that_ends_early_is_reported_where_it_ended(tiny: Tiny, tmp_path: Path) -> None:
    # Texts of one kind: the target deviates from ID no more than chance has it.
    files = {n: write_jsonl(tmp_path / f"{n}.jsonl", text_records(64, s)) for s, n in enumerate(("id", "t"))}
    model = ["-m", tiny("bert"), "--id", files["id"], "--target", files["t"], "-o", tmp_path / "out"]
    result = call("select", *model, "--compare", "tapioca,last", "--max-drop-layers", 2)
    assert result.exit_code == 0, result.output
    rows = {row.criterion: row for row in read(tmp_path / "out" / "comparison.json", Comparison).criteria}
    assert (rows["tapioca"].depth, rows["last"].depth) == (0, 2)
    assert rows["tapioca"].target.difference == 0
    assert f"tapioca dropped 0 of 2 layers: {rows['tapioca'].stop_reason}." in result.stdout


def test_a_killed_comparison_resumes(
    arguments: list[object], finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = steps.choose

    def killed(config: RunConfig, *rest: object) -> Selection:
        if config.criterion == "random":
            raise KeyboardInterrupt
        return choose(config, *rest)

    asked = ["-o", tmp_path / "out", "--max-drop-layers", DEPTH, "--full-scores", "--compare"]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "choose", killed)
        assert call(*arguments, *asked, "last,loss,random").exit_code != 0
    aside = tmp_path / ".out.tapioca-partial"
    assert {path.name for path in aside.iterdir()} == {"search-last.jsonl", "search-loss.jsonl"}
    before = (aside / "search-loss.jsonl").read_bytes()

    assert call(*arguments, *asked, "loss,random").exit_code == 0
    assert (tmp_path / "out" / "search-loss.jsonl").read_bytes() == before
    assert not (tmp_path / "out" / "search-last.jsonl").exists(), "a journal of another comparison"
    again, whole = (read(f / "selection-loss.json", Selection) for f in (tmp_path / "out", finished[0]))
    assert replace(again, cost=replace(again.cost, seconds=whole.cost.seconds)) == whole


# --- doors ----------------------------------------------------------------------------------


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, comparison: Comparison, tmp_path: Path) -> list[object]:
    """What reaches the library, in place of comparing."""
    calls: list[object] = []
    monkeypatch.setattr(tapioca_export, "compare", lambda *given: calls.append(given) or comparison)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_row_is_the_original_or_a_criterion(finished: tuple[Path, Result], comparison: Comparison) -> None:
    title, _, head, *rows = finished[1].stdout.splitlines()
    assert title.startswith("nmse (lower is better) on 32 target and 32 ID report rows, 2 of 4 layers")
    assert head.split()[:2] == ["criterion", "target"]
    assert head.split()[-3:] == ["forwards", "seconds", "dropped"]
    names = [row.criterion for row in comparison.criteria]
    assert [row.split()[0] for row in rows[: len(names) + 1]] == ["original", *names]
    best = comparison.criteria[0]
    assert f" {best.cost.layer_forwards:,} " in rows[1]
    assert rows[1].endswith("  " + ",".join(map(str, best.drop)))
    assert max(map(len, [title, head, *rows])) <= 110


def test_json_prints_the_artifact_and_quiet_prints_nothing(
    received: list[object], comparison: Comparison
) -> None:
    asked = ["select", "-m", "m", "--compare", "tale,last"]
    result = call(*asked, "--json")
    assert (result.stdout, complaint(result)) == (artifacts.to_json(comparison), [])
    assert json.loads(result.stdout)["kind"] == "comparison"
    assert call(*asked, "-q").output == ""


@pytest.mark.parametrize("text", ['compare = ["tale", "last"]', 'compare = "tale, last"'])
def test_a_configuration_file_names_criteria_as_a_list_or_a_text(text: str, received: list[object]) -> None:
    Path("c.toml").write_text(f"{text}\nepsilon = 0.5\n")
    assert call("select", "-m", "m", "--compare", "tale,last", "--epsilon", 0.5).exit_code == 1
    assert call("select", "-m", "m", "-c", "c.toml").exit_code == 0
    assert received == [(RunConfig(model="m", epsilon=0.5), ("tale", "last"))]


def refused(result: Result, *words: str) -> None:
    lines = complaint(result)
    assert result.exit_code == 1, result.output
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[1].startswith("Hint: ")
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


BAD: dict[tuple[str, ...], tuple[str, ...]] = {
    ("tale,last",): ("equal depth", "--max-drop-layers was not given"),
    ("tale,last", "--max-drop-layers", "0"): ("--max-drop-layers is 0",),
    ("tale,last", "--max-drop-layers", "4"): ("--max-drop-layers 4", "3 of 4 layers"),
    ("tale,last", "--max-drop-layers", "2", "--protect-last", "3"): ("--max-drop-layers 2", "1 of 4 layers"),
    ("tale,lats", "--max-drop-layers", "2"): ("criterion 'lats'", "Did you mean 'last'?"),
    ("tale,fixed", "--max-drop-layers", "2"): ("fixed",),
    ("tale,last,tale", "--max-drop-layers", "2"): ("tale twice",),
    ("tale", "--max-drop-layers", "2"): ("two criteria", "was given 1"),
    ("", "--max-drop-layers", "2"): ("two criteria", "was given 0"),
    ("tale,last", "--max-drop-layers", "2", "--search", "beam"): ("--search beam", "greedy or racing"),
    ("tale,last", "--max-drop-layers", "2", "--search", "beem"): ("Did you mean 'beam'?",),
    ("tale,last", "--max-drop-layers", "2", "--drop", "1"): ("--criterion fixed",),
    ("tale,last", "--max-drop-layers", "2", "--criterion", "loss"): ("--criterion has no say",),
    ("tale,last", "--max-drop-layers", "2", "--pick", "1"): ("--pick has no say",),
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_what_cannot_be_compared_is_refused(
    options: tuple[str, ...], arguments: list[object], tmp_path: Path
) -> None:
    refused(call(*arguments, "-o", tmp_path / "out", "--compare", *options), *BAD[options])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("unlabelled", "role"), [("target", "target-select"), ("id", "id-report")])
def test_rows_that_are_scored_need_labels(unlabelled: str, role: str, tiny: Tiny, tmp_path: Path) -> None:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(64, seed, labelled=name != unlabelled))
        for seed, name in enumerate(("id", "target"))
    }
    asked = ["--compare", "magnitude,last", "--max-drop-layers", 2, "-o", tmp_path / "out"]
    result = call("select", "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], *asked)
    refused(result, f"The {role} rows", f"{unlabelled}.jsonl", "no labels")


def test_the_library_takes_criteria_and_returns_the_artifact(arguments: list[object], tmp_path: Path) -> None:
    files = {"id": arguments[4], "target": arguments[6]}
    config = RunConfig(model=str(arguments[2]), output=tmp_path / "out", max_drop_layers=1, **files)
    result = tapioca_export.compare(config, ("last", "random"))
    assert read(tmp_path / "out" / "comparison.json", Comparison) == result
    assert {row.depth for row in result.criteria} == {1}
