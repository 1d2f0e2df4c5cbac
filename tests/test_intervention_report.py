"""`intervene` from the command line, its verdict in words, and its plots in the report of a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reports
from click.testing import CliRunner, Result
from conftest import NUM_LAYERS, complaint, text_records, write_jsonl
from test_reporting import HOSTILE, Page

import tapioca_export
from tapioca_export import Doses, artifacts
from tapioca_export.artifacts import Intervention, Report, Run, Selection, read, sha256
from tapioca_export.cli import main
from tapioca_export.config import RunConfig
from tapioca_export.provenance import hash_model
from tapioca_export.reporting import dose_table, intervention_verdict, render_html, render_markdown

Tiny = Callable[[str], Path]
FIGURES = ["dose-metric", "dose-deviation", "dose-layers", "random-metric", "random-deviation"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    lines = complaint(result)
    assert result.exit_code == 1, result.output
    assert len(lines) == 2, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


@pytest.fixture(scope="module")
def arguments(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A tiny classifier of four layers, with labelled rows."""
    folder = tmp_path_factory.mktemp("rows")
    files = {
        name: write_jsonl(folder / f"{name}.jsonl", text_records(64, n)) for n, name in enumerate(["i", "t"])
    }
    return ["intervene", "-m", tiny("bert"), "--id", files["i"], "--target", files["t"]]


@pytest.fixture
def run_folder(tmp_path: Path, arguments: list[object]) -> Path:
    """A run folder whose selection dropped layers 0 and 2 of the tiny classifier."""
    folder = tmp_path / "run"
    selection = replace(reports.selection(), model=str(arguments[2]), num_layers=NUM_LAYERS, drop=(0, 2))
    made = replace(reports.run(), inputs={str(arguments[2]): hash_model(str(arguments[2]))})
    parts = {"run": made, "selection": selection, "profile": reports.profile()}
    for name, part in {**parts, "benchmark": reports.benchmark()}.items():
        artifacts.write(folder / f"{name}.json", part)
    return folder


# --- from the command line ------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("finished") / "out"
    result = call(*arguments, "--layers", "3,1", "--alphas", "0.5,1.5", "--draws", 5, "-o", output)
    assert result.exit_code == 0, result.output
    return output, result


def test_the_artifact_holds_both_distributions_at_every_alpha(finished: tuple[Path, Result]) -> None:
    assert [path.name for path in finished[0].iterdir()] == ["intervention.json"]
    raw = json.loads((finished[0] / "intervention.json").read_text(encoding="utf-8"))
    assert (raw["kind"], raw["schema_version"]) == ("intervention", 1)
    assert (raw["layers"], raw["alphas"]) == ([1, 3], [0, 0.5, 1, 1.5])
    for role in ("id", "target"):
        assert [dose["alpha"] for dose in raw[role]] == raw["alphas"]
        for dose in raw[role]:
            for name in ("metric", "loss", "norm_deviation", "distance_deviation"):
                low, high = dose[f"{name}_interval"]
                assert low - 1e-6 <= dose[name] <= high + 1e-6  # norms behind a norm: rounding
    assert [alone["layer"] for alone in raw["by_layer"]] == [1, 3]
    assert [drawn["layers"] for drawn in raw["random"]["sets"]] == [[0, 2]]
    assert raw["id"][2]["norm_deviation"] == raw["id"][2]["difference"] == 0
    assert (raw["num_id"], raw["num_target"]) == tuple(raw["dropped"][role]["n"] for role in ("id", "target"))
    assert raw["layer_forwards"] > 0


def test_the_metric_at_0_is_that_of_the_pruned_model(
    finished: tuple[Path, Result], arguments: list[object]
) -> None:
    from test_laws import drop_by_hand

    from tapioca_export import reading

    found = read(finished[0] / "intervention.json", Intervention)
    config = RunConfig(model=str(arguments[2]), id=arguments[4], target=arguments[6])
    model, roles = reading.load_with_roles(config, ("report",))
    for role in ("id", "target"):
        rows = roles[f"{role}-report"]
        inputs = model.task.encode(rows.rows, model.processor)
        for dose, drop in ((getattr(found, role)[0], (1, 3)), (getattr(found, role)[2], ())):
            scores = model.task.score(drop_by_hand(model, drop).logits(inputs), rows)
            assert dose.metric == pytest.approx(scores.values.mean())
            assert dose.loss == pytest.approx(scores.losses.mean(), rel=1e-5)
        alone = getattr(found.by_layer[1], role)[0]
        values = model.task.score(drop_by_hand(model, (3,)).logits(inputs), rows).values
        assert alone.metric == pytest.approx(values.mean())


def test_a_table_of_alphas_and_the_verdict_are_printed(finished: tuple[Path, Result]) -> None:
    output, result = finished
    found = read(output / "intervention.json", Intervention)
    title, _, head, *lines = result.stdout.splitlines()
    assert title.startswith("Layers 1 and 3 scaled by alpha")
    assert head.split()[:3] == ["alpha", "target", "accuracy"]
    assert [line.split()[0] for line in lines[:4]] == ["0", "0.5", "1", "1.5"]
    assert tuple(lines[5:]) == found.verdict == intervention_verdict(found)
    assert max(map(len, [head, *lines[:4]])) <= 140


def test_the_same_seed_gives_the_same_artifact(
    finished: tuple[Path, Result], arguments: list[object], tmp_path: Path
) -> None:
    asked = ["--layers", "1,3", "--alphas", "1.5,0.5,0", "--draws", 5, "-o", tmp_path / "out", "--json"]
    result = call(*arguments, *asked)
    assert (result.exit_code, complaint(result)) == (0, [])
    assert result.stdout == (tmp_path / "out/intervention.json").read_text(encoding="utf-8")
    one, other = (read(f / "intervention.json", Intervention) for f in (tmp_path / "out", finished[0]))
    assert replace(one, seconds=other.seconds) == other


@pytest.mark.parametrize("unlabelled", [("i", "t"), ("t",), ("i",)])
def test_rows_without_labels_give_the_geometry_only(
    unlabelled: tuple[str, ...], tiny: Tiny, tmp_path: Path
) -> None:
    for number, name in enumerate(("i", "t")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(64, number, labelled=name not in unlabelled))
    rows = ["--id", tmp_path / "i.jsonl", "--target", tmp_path / "t.jsonl", "-o", tmp_path / "out"]
    result = call("intervene", "-m", tiny("bert"), *rows, "--layers", 1, "--alphas", 0.5)
    assert result.exit_code == 0, result.output
    found = read(tmp_path / "out/intervention.json", Intervention)
    for name, doses in (("i", found.id), ("t", found.target)):
        assert {dose.metric is None for dose in doses} == {name in unlabelled}
        assert all(dose.norm_deviation_interval[1] > 0 for dose in doses if dose.alpha != 1)
    has_target = "t" not in unlabelled
    assert has_target == (found.metric_trend is not None) == (found.random.metric is not None)
    assert has_target == ("target" in found.dropped) == (found.norms.judgement is not None)
    assert ("i" in unlabelled) == (found.flatness is None)
    assert found.random.deviation is not None
    assert ("only their geometry" in result.stdout) == bool(unlabelled)


BAD: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("either --layers or --selection",),
    ("--layers", "4"): ("Layer 4 does not exist: the model has 4 layers",),
    ("--layers", "1,1"): ("Layer 1 is named twice",),
    ("--layers", "0,1,2,3"): ("All 4 layers would be dropped",),
    ("--layers", "1", "--alphas", "-0.5"): ("--alphas -0.5 must be a number from 0 up",),
    ("--layers", "1", "--alphas", "nan"): ("--alphas nan",),
    ("--layers", "1", "--draws", "-1"): ("--draws -1 must be at least 0",),
    ("--layers", "1", "--epsilon", "0"): ("--epsilon 0.0 must be a number above 0",),
    ("--selection", "nowhere.json"): ("Cannot read nowhere.json",),
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    options: tuple[str, ...], arguments: list[object], tmp_path: Path
) -> None:
    refused(call(*arguments, "-o", tmp_path / "out", *options), *BAD[options])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["1;2", "", "half"])
def test_alphas_that_are_no_numbers_are_wrong_usage(text: str, arguments: list[object]) -> None:
    result = call(*arguments, "--layers", 1, "--alphas", text)
    assert result.exit_code == 2
    assert "numbers separated by commas" in result.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drop": ()}, ("drops no layer",)),
        ({"seed": 3}, ("--seed 3", "would be reported")),
        ({"num_layers": 12}, ("The selection is for 12 layers", "has 4 layers")),
        ({"stacks": {"encoder": 2, "decoder": 2}, "drop": ("encoder:1",)}, ("encoder 2, decoder 2",)),
    ],
)
def test_a_selection_of_another_model_or_of_other_rows_is_refused(
    changes: dict[str, Any], words: tuple[str, ...], arguments: list[object], run_folder: Path
) -> None:
    path = run_folder / "selection.json"
    artifacts.write(path, replace(read(path, Selection), **changes))
    refused(call(*arguments, "-o", run_folder.parent / "out", "--selection", path), *words)


@pytest.mark.parametrize("text", ["layers = [1, 2]\nalphas = [0.5]", 'layers = "1,2"\nalphas = "0.5"'])
def test_a_configuration_file_is_the_same_as_flags(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(
        tapioca_export, "intervene", lambda *given: calls.append(given) or reports.intervention()
    )
    path = tmp_path / "c.toml"
    path.write_text(f"{text}\ndraws = 7\nepsilon = 0.2\nseed = 3\n")
    flags = ["--layers", "1,2", "--alphas", "0.5", "--draws", 7, "--epsilon", 0.2, "--seed", 3]
    assert call("intervene", "-m", "m", *flags).exit_code == 0
    assert call("intervene", "-m", "m", "-c", path).exit_code == 0
    config, doses = RunConfig(model="m", seed=3), Doses((0.5,), 7, 0.2)
    assert calls == [(config, (1, 2), None, doses)] * 2


def test_protected_layers_are_in_no_random_set(arguments: list[object], tmp_path: Path) -> None:
    asked = ["--layers", 3, "--alphas", 1, "-o", tmp_path / "out", "--protect-first", 1]
    assert call(*arguments, *asked).exit_code == 0
    found = read(tmp_path / "out/intervention.json", Intervention)
    assert [drawn.layers for drawn in found.random.sets] == [(1,), (2,)]


# --- in a run folder ------------------------------------------------------------------------


def test_a_run_folder_gives_the_layers_and_gets_the_plots(arguments: list[object], run_folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in run_folder.iterdir() if path.name != "run.json"}
    result = call(*arguments, "-o", run_folder, "--alphas", 0.5, "--draws", 3)
    assert result.exit_code == 0, result.output
    assert {name: (run_folder / name).read_bytes() for name in before} == before
    assert read(run_folder / "intervention.json", Intervention).layers == (0, 2)
    report = read(run_folder / "report.json", Report)
    assert report.intervention == read(run_folder / "intervention.json", Intervention)
    assert "Dose-response" in (run_folder / "report.html").read_text(encoding="utf-8")
    outputs = read(run_folder / "run.json", Run).outputs
    for name in ("intervention.json", "report.html", "report.md", "report.json"):
        assert outputs[name] == sha256(run_folder / name)
    assert outputs["pruned/onnx"] == reports.run().outputs["pruned/onnx"]


def test_an_intervention_on_another_model_is_no_part_of_a_run(
    arguments: list[object], run_folder: Path
) -> None:
    other = replace(reports.run(), inputs={"another": "0" * 64})
    artifacts.write(run_folder / "run.json", other)
    refused(call(*arguments, "-o", run_folder, "--layers", 1), "is the run of another model")
    assert not (run_folder / "intervention.json").exists()


def test_an_intervention_is_replaced_only_when_asked(arguments: list[object], run_folder: Path) -> None:
    (run_folder / "intervention.json").write_text("{}")
    refused(call(*arguments, "-o", run_folder), "intervention.json is there already", "--overwrite")
    assert (run_folder / "intervention.json").read_text() == "{}"
    asked = ["-o", run_folder, "--overwrite", "--layers", 1, "--alphas", 1, "--draws", 0]
    assert call(*arguments, *asked).exit_code == 0
    assert read(run_folder / "intervention.json", Intervention).layers == (1,)
    assert (run_folder / "profile.json").is_file()


def test_a_report_rendered_again_is_the_same(run_folder: Path) -> None:
    artifacts.write(run_folder / "intervention.json", reports.intervention())
    tapioca_export.report(run_folder)
    once = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    tapioca_export.report(run_folder)
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == once


# --- words and plots ------------------------------------------------------------------------


def verdict(**changes: Any) -> str:
    return "\n".join(intervention_verdict(reports.intervention(**changes)))


def test_the_verdict_says_each_finding_with_its_numbers() -> None:
    lines = intervention_verdict(reports.intervention())
    assert lines[0].startswith("Dropping layers 4 and 7 of 12 improves the target: accuracy 0.712 to 0.768")
    assert "distinguishable from random layers (+0.056 selected; median -0.210 and best -0.020" in lines[1]
    assert "of the 20 other sets of 2 layers drawn; 0 as good; p = 0.048; over the strongest" in lines[1]
    assert "monotone, rising as alpha goes from 1 to 0, for the better (dropping" in lines[2]
    assert "Spearman with alpha -1.000, -1.000 to -0.500" in lines[2]
    assert lines[3].startswith(
        "ID: flat within +-0.050 for alpha from 0 to 1 (largest change of accuracy +0.002"
    )
    assert "dropping gains more" in lines[4]
    assert "monotone, falling as alpha goes from 1 to 0" in lines[5]
    assert "noise floor 0.03;" in lines[5]
    assert len(lines) == 7


def test_undecided_and_not_are_said() -> None:
    found = reports.intervention()
    ranked = replace(found.random.metric, judgement="not distinguishable", num_as_good=9, p_value=0.5)
    text = verdict(
        random=replace(found.random, metric=ranked, num_possible=20),
        metric_trend=replace(found.metric_trend, judgement="not monotone"),
        deviation_trend=replace(found.deviation_trend, judgement="undecided"),
        flatness=replace(found.flatness, judgement="not flat"),
        norms=replace(found.norms, judgement="undecided"),
    )
    for words in (
        "not distinguishable from random layers", "20 other sets of 2 layers there are; 9 as good",
        "not monotone in alpha", "undecided whether it is monotone", "ID: not flat",
        "undecided whether dropping gains more",
    ):  # fmt: skip
        assert words in text
    few = replace(found.random, metric=replace(ranked, judgement="undecided"))
    assert "undecided, too few other layers to tell by rank" in verdict(random=few)
    none = replace(found.random, sets=(), metric=None, deviation=None, num_possible=0)
    assert "Random layers: undecided, there is no other set of 2 that could go" in verdict(random=none)
    assert "Random layers: none were drawn" in verdict(random=replace(none, num_possible=3))


@pytest.mark.parametrize(
    ("higher_is_better", "judgement", "words"),
    [
        (True, "falls", "rising as alpha goes from 1 to 0, for the better"),
        (True, "rises", "falling as alpha goes from 1 to 0, for the worse"),
        (False, "falls", "rising as alpha goes from 1 to 0, for the worse"),
        (False, "rises", "falling as alpha goes from 1 to 0, for the better"),
    ],
)  # fmt: skip
def test_a_trend_is_better_or_worse_by_the_metric(higher_is_better: bool, judgement: str, words: str) -> None:
    trend = replace(reports.intervention().metric_trend, judgement=judgement)
    assert words in verdict(higher_is_better=higher_is_better, metric_trend=trend)


def test_the_report_shows_the_plots_and_every_number() -> None:
    page = Page(render_html(reports.report(intervention=reports.intervention())))
    specs = page.specs()
    assert set(FIGURES) <= set(specs)
    places = [attributes.get("data-figure") for _, attributes in page.tags]
    assert set(FIGURES) <= set(places)
    lines = {trace.get("name"): trace for trace in specs["dose-metric"]["data"]}
    assert lines["target"]["x"] == list(reports.ALPHAS)
    assert lines["target"]["y"] == pytest.approx([0.056, 0.028, 0.0, -0.028])
    assert lines["target, random layers"]["y"] == pytest.approx([-0.02 * n for n in range(1, 21)])
    assert lines["target, norms of ID"]["x"] == [1.0]
    drawn = specs["random-metric"]["data"]
    assert [len(trace["x"]) for trace in drawn] == [20, 1]
    named = {trace["name"] for trace in specs["dose-layers"]["data"] if "name" in trace}
    assert named == {"layer 4", "layer 7"}


def test_an_error_is_drawn_the_way_it_changes() -> None:
    found = reports.intervention(higher_is_better=False)
    specs = Page(render_html(reports.report(intervention=found))).specs()
    (others,) = [t for t in specs["dose-metric"]["data"] if t.get("name") == "target, random layers"]
    assert others["y"] == pytest.approx([0.02 * n for n in range(1, 21)])  # gains, turned into changes


def test_a_report_without_an_intervention_has_no_such_section() -> None:
    made = reports.report()
    assert "Dose-response" not in render_html(made)
    assert "Dose-response" not in render_markdown(made)


def test_markdown_has_the_verdict_and_the_tables() -> None:
    text = render_markdown(reports.report(intervention=reports.intervention()))
    assert "## Dose-response" in text
    assert "- ID: flat within +-0.050" in text
    assert "| 0 | 0.768 (0.728 to 0.808) | +0.056 (+0.026 to +0.086) |" in text
    assert "| selected: 4, 7 | +0.056 | +0.150 |" in text


def test_one_layer_without_labels_or_random_sets_still_renders() -> None:
    bare = reports.doses(0.1, labelled=False)
    found = reports.intervention(
        layers=(HOSTILE,), id=bare, target=bare, by_layer=(), dropped={}, metric_trend=None, flatness=None
    )
    found = replace(
        found,
        random=replace(found.random, sets=(), metric=None, deviation=None),
        norms=replace(found.norms, target=bare[2], excess=None, excess_interval=None, judgement=None),
    )
    found = replace(found, verdict=intervention_verdict(found))
    page = Page(render_html(reports.report(intervention=found)))
    assert [name for name in page.specs() if name in FIGURES] == ["dose-deviation"]
    assert "alert(1)" not in "".join(page.scripts[1:])
    assert dose_table(found).columns == ("alpha", "target norms", "distances", "ID norms", "distances")
    assert len(dose_table(found).rows[0]) == 5


def test_doses_are_put_in_order_and_have_both_ends() -> None:
    assert Doses(alphas=(1.5, 0.5, 0.5)).alphas == (0.0, 0.5, 1.0, 1.5)
