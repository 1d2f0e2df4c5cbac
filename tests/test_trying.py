"""What a run would take is read off files of few layers, made and timed by what a run does that with."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import save_model, text_records, write_jsonl
from test_several_stacks import make

from tapioca_export import artifacts, costing, planning, reading, steps, stopping, trying
from tapioca_export.artifacts import Bounds, scratch
from tapioca_export.cli import main
from tapioca_export.config import RunConfig
from tapioca_export.costing import calibrating
from tapioca_export.errors import ExportError, OutputError
from tapioca_export.models import LoadedModel, droppable_layers, load_model
from tapioca_export.reporting import render_plan
from tapioca_export.trying import Line

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts do not depend on it."""
    monkeypatch.setattr(calibrating, "NUM_SECONDS", 0.0)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def asked(tiny: Tiny, sample_files: Files, output: Path) -> list[object]:
    files = sample_files("bert")
    return [
        "run", "--model", tiny("bert"), "--id", files["id"], "--target", files["target"], "--output",
        output, "--dry-run", "--max-drop-layers", 2,
    ]  # fmt: skip


def test_a_line_goes_through_both_sizes_and_never_falls() -> None:
    line = Line((1, 4), (10.0, 16.0))
    assert [line.at(size) for size in (1, 4, 12)] == [10, 16, 32]
    assert Line((1, 4), (16.0, 10.0)).at(12) == 10  # noise: a larger one takes no less
    assert Line((2, 2), (3.0, 4.0)).at(6) == 12
    assert Line((4, 8), (0.0, 8.0)).at(1) == 0


@pytest.mark.slow
def test_a_plan_of_a_run_times_its_stages_by_their_names(
    tiny: Tiny, sample_files: Files, tmp_path: Path, finished: Path
) -> None:
    result = call(*asked(tiny, sample_files, tmp_path / "out"), "--format", "torchscript", "--json")
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(result.stdout)
    assert plan["stages"].keys() == json.loads((finished / "run.json").read_text())["seconds"].keys()
    assert all(0 < part["least"] <= part["most"] for part in plan["stages"].values())
    assert plan["stages"]["select"] == plan["seconds"]
    assert "untold" not in plan
    assert plan["run_peak_memory_bytes"] > plan["model_bytes"]
    tried = [line for line in result.stderr.splitlines() if "of 4 layers as" in line]
    assert [line.split(" with ")[1].split(",")[0] for line in tried] == [
        f"{count} of 4 layers as {format_}" for count in (1, 1, 4) for format_ in ("onnx", "torchscript")
    ]
    (tmp_path / "plan.json").write_text(result.stdout, encoding="utf-8")
    text = render_plan(artifacts.read(tmp_path / "plan.json", artifacts.Plan))
    (line,) = (line for line in text.splitlines() if "time of the run" in line)
    assert "peak memory of the run" in text
    assert "The search: It fits" in text
    assert all(name in line for name in ("load", "profile", "export original", "prune", "benchmark"))


def test_a_search_alone_is_planned_without_an_export(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    _, *rest = asked(tiny, sample_files, tmp_path / "out")
    result = call("select", *rest, "--json")
    assert result.exit_code == 0, result.output
    assert "stages" not in json.loads(result.stdout)
    assert "Exporting" not in result.stderr


@pytest.fixture
def on_a_clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let exports, checkpoints and benchmarks take what is told here, by a clock of their own.

    A layer takes 3 seconds to export and any file 2, the first of a process 7 more. A layer takes 0.1 to run
    a shape, and 0.01 to score a row; a file takes 4 to open for rows, and 5 and half a second a layer in
    other processes.
    """
    now: dict[str, Any] = {"is": 0.0, "exports": 0, "timed": []}

    def export_each(config: Any, model: Any, rows: Any, places: Mapping[str, Path], *_: Any) -> Iterator[Any]:
        for name in places:
            now["is"] += 2 + 3 * model.num_layers + (0 if now["exports"] else 7)
            now["exports"] += 1
            places[name].mkdir(parents=True)
            (places[name] / "layers").write_text(str(model.num_layers))
            yield name, None

    def read_folder(path: Path) -> Any:
        count = int((path / "layers").read_text())
        export = SimpleNamespace(num_layers=count, cache={}, dtype="fp32")
        return SimpleNamespace(path=path, export=export, runtime="onnxruntime")

    def score(path: Path, task: Any, rows: Any, *_: Any) -> None:
        now["is"] += 4 + 0.01 * len(rows) * int((path / "layers").read_text())

    def measure_memory(path: Path, *_: Any) -> None:
        now["is"] += 5 + 0.5 * int((path / "layers").read_text())

    def measure_latency(
        before: Any, after: Any, works: Any, provider: str, settings: Any, **_: Any
    ) -> list[Any]:
        now["timed"].append(provider)
        assert settings.warmup == 2  # as in the run
        sides = {
            side: SimpleNamespace(p50_ms=100.0 * folder.export.num_layers)
            for side, folder in (("original", before), ("pruned", after))
        }
        return [SimpleNamespace(**sides) for _ in works]

    def save(*_: Any) -> None:
        now["is"] += 11

    def load(*_: Any) -> None:
        now["is"] += 0.25

    def measure(model: Any, probe: Any, drop: Any) -> None:
        now["is"] += 1 + 0.25 * sum(map(len, probe.samples.values()))

    monkeypatch.setattr(trying.time, "perf_counter", lambda: now["is"])
    monkeypatch.setattr(steps, "export_each", export_each)
    monkeypatch.setattr(trying.measuring, "measure", measure)
    for name, fake in {
        "read_export_folder": read_folder, "score_exported": score, "save_pruned": save, "load_model": load,
        "measure_memory_and_load": measure_memory, "measure_latency": measure_latency,
    }.items():  # fmt: skip
        monkeypatch.setattr(trying, name, fake)
    return now


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    return save_model(tmp_path / "deep", "bert", num_hidden_layers=9)


def tried(
    deep: Path, files: Mapping[str, Path], tmp_path: Path, **settings: Any
) -> tuple[dict[str, Bounds], dict[str, int]]:
    config = RunConfig(
        model=str(deep), **files, batch_size=(1, 2, 4), sequence_length=(8,), warmup=2, iterations=8,
        output=tmp_path / "new" / "out", **settings,
    )  # fmt: skip
    model, roles = reading.load_with_roles(config, ("select", "report"))
    counts = {
        side: sum(len(roles[f"{name}-{side}"]) for name in ("id", "target")) for side in ("select", "report")
    }
    return trying.seconds_after_search(config, model, roles, deepest=3), counts


def benchmark_seconds(rows: int, formats: int, providers: int, roles: int = 2) -> list[float]:
    """With six layers left and with nine: three shapes, ten runs of each, the original twice."""

    def file(layers: int, times: int) -> float:
        timed = formats * providers * 3 * 10 * times * 0.1 * layers
        return roles * 4 + 0.01 * rows * layers + timed + 5 + 0.5 * layers

    return [file(9, 2) + file(layers, 1) for layers in (6, 9)]


def near(least: float, most: float | None = None) -> Bounds:
    return Bounds(pytest.approx(least), pytest.approx(least if most is None else most))


def test_stages_are_read_off_two_sizes(
    deep: Path, sample_files: Files, tmp_path: Path, on_a_clock: dict[str, Any]
) -> None:
    found, rows = tried(deep, sample_files("bert"), tmp_path, format=("onnx", "pt2"))
    once = 1 + 0.25 * rows["select"]
    assert found["profile"] == near(once, 2 * once)
    whole, left = 2 * (2 + 3 * 9), 2 * (2 + 3 * 6)  # in two formats
    assert found["export original"] == near(whole + 7)
    pieces = [costing.model_bytes(load_model(folder)) for folder in (deep, one_layer(tmp_path))]
    reading_all = 0.25 * pieces[0] / pieces[1]
    assert found["prune"] == near(11 + 2 * reading_all)
    assert found["export pruned"] == near(left + reading_all, whole + reading_all)
    assert found["benchmark"] == near(*benchmark_seconds(rows["report"], formats=2, providers=1))
    assert set(tmp_path.iterdir()) == {deep, tmp_path / "one"}


def one_layer(tmp_path: Path) -> Path:
    return save_model(tmp_path / "one", "bert", num_hidden_layers=1)


def test_tuning_providers_and_treatment_take_their_time(
    deep: Path,
    sample_files: Files,
    tmp_path: Path,
    on_a_clock: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = sample_files("bert")
    plain, rows = tried(deep, files, tmp_path)
    tuned, _ = tried(deep, files, tmp_path, tune=True, tune_seconds=30.0)
    assert tuned["benchmark"].most - plain["benchmark"].most == pytest.approx(30)
    on_a_clock["timed"].clear()
    monkeypatch.setattr(trying, "timed_on", lambda runtime, providers: ("one", "other"))
    two, _ = tried(deep, files, tmp_path)
    assert on_a_clock["timed"] == ["one", "other"]
    assert two["benchmark"] == near(*benchmark_seconds(rows["report"], formats=1, providers=2))
    # What is treated is scored before and after, on report rows.
    int8, _ = tried(deep, files, tmp_path, quantize="int8")
    scoring = 8 + 0.01 * rows["report"] * 9
    assert int8["export original"].most - plain["export original"].most == pytest.approx(2 * scoring - 7)


def test_rows_without_labels_are_not_scored(
    deep: Path, sample_files: Files, tmp_path: Path, on_a_clock: dict[str, Any]
) -> None:
    files = sample_files("bert")
    bare = write_jsonl(tmp_path / "bare.jsonl", text_records(64, 5, labelled=False))
    found, rows = tried(deep, {**files, "target": bare}, tmp_path)
    assert found["benchmark"] == near(*benchmark_seconds(rows["report"] // 2, 1, 1, roles=1))


def test_what_cannot_be_exported_is_known_before_the_search(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ExportError("An operator is missing.", "Use another.")

    monkeypatch.setattr(steps, "export_each", refuse)
    plan = planning.plan(
        RunConfig(model=str(tiny("bert")), **sample_files("bert"), output=tmp_path / "out"), "run"
    )
    assert plan.stages.keys() == {"load", "select"}
    assert plan.untold is not None
    assert "An operator is missing." in plan.untold
    assert "Use another." in plan.untold
    text = render_plan(plan)
    assert plan.untold in text
    assert "time of the run" not in text
    assert "time of the search" in text


def test_a_stop_amid_a_trial_ends_the_command(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of C may make an error of it, and the export one of ours."""

    # As it was, once this is over: for some seconds a stop wins over every error.
    monkeypatch.setattr(stopping._STOPPING, "_stopped_at", -stopping.PATIENCE_S)

    def stop(*_: Any) -> Any:
        monkeypatch.setattr(stopping._STOPPING, "_is_said", True)
        try:
            stopping._STOPPING(signal.SIGTERM, None)
        except SystemExit:
            raise ExportError("The exporter failed.") from None

    monkeypatch.setattr(steps, "export_each", stop)
    config = RunConfig(model=str(tiny("bert")), **sample_files("bert"), output=tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        planning.plan(config, "run")
    assert ended.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_planned_without_what_follows_its_search(
    sample_files: Files, tmp_path: Path, finished: Path
) -> None:
    config = RunConfig(
        model=str(finished / "original/onnx/model.onnx"), **sample_files("bert"), output=tmp_path / "out"
    )
    plan = planning.plan(config, "run")
    assert "not exported anew" in (plan.untold or "")


def test_each_stack_keeps_few_layers_and_what_cannot_go(tiny: Tiny, tmp_path: Path) -> None:
    def gone(model: LoadedModel, count: int) -> tuple[int, ...]:
        return trying._gone(model, droppable_layers(model), count)

    assert gone(load_model(tiny("bert")), 1) == (1, 2, 3)
    assert gone(load_model(tiny("bert")), 4) == ()
    assert 0 not in gone(load_model(tiny("modernbert")), 0)
    two, _ = make("t5")
    first, second = two.numbering.ranges
    assert gone(two, 1) == (*first[1:], *second[1:])


def test_a_trial_leaves_nothing_and_clears_away_what_a_killed_one_left(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with scratch(output) as aside:
        pass
    aside.mkdir()
    (aside / "rest").touch()
    with scratch(output) as folder:
        assert (folder, list(folder.iterdir())) == (aside, [])
        (folder / "file").touch()
        with scratch(tmp_path / "other" / "out") as another:  # of the same name
            assert another != folder
        with pytest.raises(OutputError, match="Another process"), scratch(output):
            pass
    assert list(tmp_path.iterdir()) == []
    for error, told in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "full"), OutputError)):
        with pytest.raises(told), scratch(output):
            raise error
        assert list(tmp_path.iterdir()) == []
    with scratch(output) as folder:
        folder.rmdir()  # somebody else's doing
    assert list(tmp_path.iterdir()) == []


def test_runs_took_what_was_predicted_and_a_bad_prediction_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    import cost

    rows = json.loads((folder / "run_cost.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == len(cost.SIZES)
    assert all(map(cost.run_is_right, rows))
    for row in rows:
        for name in ("predicted", "seconds"):
            total = {"predicted": "predicted_seconds"}.get(name, name)
            assert row[total] == pytest.approx(sum(stage[name] for stage in row["stages"].values()))
        for factor in (0.7, 1.3):
            assert not cost.run_is_right({**row, "predicted_seconds": factor * row["seconds"]})
    sys.modules.pop("cost", None)
