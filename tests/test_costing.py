"""What a plan counts is what a search takes, and a dry run leaves nothing behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import (
    FAMILIES,
    THREE_FAMILIES,
    make_decoder,
    make_tokenizer,
    save_model,
    text_records,
    write_jsonl,
)
from torch import nn

from tapioca_export import artifacts, commands, costing, planning, reading, steps
from tapioca_export.cli import main
from tapioca_export.config import RunConfig
from tapioca_export.costing import Calibration, Item, calibrating, predicting, run_bytes
from tapioca_export.costing.rehearsing import Rehearsal
from tapioca_export.errors import ConfigError, SelectionError, TapiocaError
from tapioca_export.models import load_model
from tapioca_export.profiling import filling
from tapioca_export.profiling.replaying import Replayer, Work
from tapioca_export.reporting import render_plan
from tapioca_export.reporting.planning import TIMES, scaled
from tapioca_export.samples import read_samples
from tapioca_export.selection import CRITERIA, SEARCHES

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NO_FLOOR = {"epsilon": None, "pick": "final"}


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts do not depend on it."""
    monkeypatch.setattr(calibrating, "NUM_SECONDS", 0.0)


@pytest.fixture
def config(tiny: Tiny, sample_files: Files, tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a configuration of a search in small batches, some of them not full."""

    def make(family: str, **settings: Any) -> RunConfig:
        chosen = {"eval_batch_size": 6, "output": tmp_path / "out", **NO_FLOOR, **settings}
        return RunConfig(model=str(tiny(family)), **sample_files(family), **chosen)

    return make


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def searched(config: RunConfig) -> tuple[artifacts.Plan, artifacts.Cost]:
    plan, selection = planning.plan(config), commands.select(config)
    assert selection.cost is not None
    return plan, selection.cost


def assert_exact(plan: artifacts.Plan, cost: artifacts.Cost) -> None:
    for name in ("evaluations", "layer_forwards", "layer_tokens"):
        bounds = getattr(plan, name)
        assert bounds.least == bounds.most == getattr(cost, name), name


def assert_within(plan: artifacts.Plan, cost: artifacts.Cost) -> None:
    assert plan.layer_forwards.least <= cost.layer_forwards <= plan.layer_forwards.most
    assert plan.evaluations.least <= cost.evaluations <= plan.evaluations.most


# --- counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", THREE_FAMILIES)
@pytest.mark.parametrize("rounds", [1, 3])
def test_full_scores_take_exactly_what_was_planned(config: Any, family: str, rounds: int) -> None:
    plan, cost = searched(config(family, full_scores=True, max_drop_layers=rounds))
    assert plan.rounds == rounds
    assert_exact(plan, cost)


@pytest.mark.parametrize("family", THREE_FAMILIES)
@pytest.mark.parametrize(("first", "last"), [(1, 0), (0, 1), (1, 1)])
def test_protected_layers_are_planned_for(config: Any, family: str, first: int, last: int) -> None:
    assert_exact(*searched(config(family, full_scores=True, protect_first=first, protect_last=last)))


def test_layers_held_by_the_architecture_are_planned_for(config: Any) -> None:
    plan, cost = searched(config("modernbert", full_scores=True))
    assert plan.rounds == 3
    assert_exact(plan, cost)


@pytest.mark.parametrize("family", THREE_FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"criterion": "loss"},
        {"tie_break": "loss"},
        {"search": "racing"},
        {"search": "beam", "width": 2},
        {"criterion": "tapioca+tale", "shortlist": 2},
        {"criterion": "tapioca"},
        {"criterion": "realignment"},
    ],
    ids=str,
)
def test_a_search_led_by_its_numbers_stays_between_least_and_most(
    config: Any, family: str, settings: dict[str, Any]
) -> None:
    plan, cost = searched(config(family, **settings))
    assert_within(plan, cost)
    assert plan.layer_forwards.least < plan.layer_forwards.most or plan.search == "beam"


@pytest.mark.parametrize(
    "settings",
    [
        {"search": "exhaustive"},
        {"criterion": "block-influence"},
        {"criterion": "random"},
        {"criterion": "magnitude"},
        {"criterion": "angular-distance", "max_drop_layers": 2},
        {"criterion": "taylor", "max_drop_layers": 2},
        {"criterion": "fixed", "drop": (2, 0)},
    ],
    ids=str,
)
def test_a_search_not_led_by_its_numbers_takes_exactly_what_was_planned(
    config: Any, settings: dict[str, Any]
) -> None:
    assert_exact(*searched(config("bert", **settings)))


def test_answers_that_share_a_context_are_planned_for(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path / "model")
    make_tokenizer("llama").save_pretrained(tmp_path / "model")
    files = {}
    for seed, name in enumerate(("id", "target")):
        rows = [
            {"context": row["text"], "choices": [f"w{n} w{n + 1}" for n in range(2 + number % 3)], "label": 0}
            for number, row in enumerate(text_records(40, seed, labelled=False))
        ]
        files[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    settings = {"task": "multiple-choice", "full_scores": True, "eval_batch_size": 8, "max_drop_layers": 2}
    config = RunConfig(
        model=str(tmp_path / "model"), **files, **settings, **NO_FLOOR, output=tmp_path / "out"
    )
    assert_exact(*searched(config))


def test_a_shortlist_is_planned_by_few_rows_of_many(tiny: Tiny, tmp_path: Path) -> None:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(160, seed))
        for seed, name in enumerate(("id", "target"))
    }
    settings = {"criterion": "tapioca+tale", "full_scores": True, "max_drop_layers": 1, "eval_batch_size": 16}
    config = RunConfig(model=str(tiny("bert")), **files, **settings, **NO_FLOOR, output=tmp_path / "out")
    assert_exact(*searched(config))


@pytest.mark.slow
def test_every_criterion_and_every_search_can_be_planned(config: Any) -> None:
    for name in set(CRITERIA) - {"damp"}:  # it is refused: which layers stay is not known before
        drop = (1,) if name == "fixed" else ()
        assert planning.plan(config("bert", criterion=name, drop=drop, max_drop_layers=1)).rounds == 1
    for name in SEARCHES:
        assert planning.plan(config("bert", search=name, max_drop_layers=1)).search == name


def test_a_budget_of_candidates_is_planned_for_and_one_of_seconds_left_out(config: Any) -> None:
    whole = planning.plan(config("bert"))
    cut = planning.plan(config("bert", budget_evaluations=1))
    assert cut.layer_forwards.most < whole.layer_forwards.most
    hurried = planning.plan(config("bert", budget_seconds=1e-9))
    assert hurried.layer_forwards == whole.layer_forwards


# --- more of it costs more ------------------------------------------------------------------


def test_more_rows_and_longer_rows_cost_more(tiny: Tiny, tmp_path: Path) -> None:
    def plan(num_rows: int, num_words: int) -> artifacts.Plan:
        files = {}
        for seed, name in enumerate(("id", "target")):
            rows = text_records(num_rows, seed)
            for row in rows:
                row["text"] = " ".join(
                    [*row["text"].split()[:1], *[f"w{seed}"] * num_words, row["text"][-8:]]
                )
            files[name] = write_jsonl(tmp_path / f"{name}-{num_rows}-{num_words}.jsonl", rows)
        config = RunConfig(model=str(tiny("bert")), **files, **NO_FLOOR, output=tmp_path / "out")
        return planning.plan(replace(config, full_scores=True, drop_leaks=True, eval_batch_size=8))

    few, many, long = plan(48, 5), plan(144, 5), plan(48, 40)
    assert many.layer_forwards.most > few.layer_forwards.most
    assert many.flops.most > few.flops.most
    assert long.layer_forwards == few.layer_forwards
    assert long.layer_tokens.most > few.layer_tokens.most
    assert long.flops.most > few.flops.most
    assert long.trace_bytes > few.trace_bytes


def test_workers_divide_the_time_and_not_the_work() -> None:
    item = Item(rows=8, sequences=8, tokens=10, starts=1, layers=4, heads=1)
    calibration = Calibration((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.0, 0.0), (2.0, 0.0, 0.0), row=0.125)
    assert calibration.time(item) == 1 + 1 + 4 + 2
    assert calibration.time(replace(item, narrowed=1)) == 1 + 1 + 3 + 0.5 + 2
    # What goes along with others in a forward takes its tokens' time, and no overhead.
    whole = Calibration((1.0, 0.25, 0.0), (1.0, 0.5, 0.0), (0.5, 0.0, 0.0), (2.0, 0.0, 0.0), row=0.125)
    two = replace(item, starts=2, layers=8, heads=2)
    assert whole.time(replace(two, along=(1, 4, 1))) == whole.time(two) - 1 - 4 - 2


@pytest.mark.parametrize("family", [*THREE_FAMILIES, "deberta-v2"])
def test_a_plan_knows_which_candidates_share_a_forward(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    of_tuples = family == "deberta-v2"  # its layers return them, and are run once more to be passed by
    if of_tuples:
        monkeypatch.setitem(FAMILIES, family, FAMILIES["bert"])
    model = load_model(save_model(tmp_path, family) if of_tuples else tiny(family))
    reader = model.task.rows({}, model.processor)
    files = sample_files("bert" if of_tuples else family)
    rows = read_samples(files["target"], reader, role="target")
    rehearsal, replayer = Rehearsal(model, {"id": rows, "target": rows}), Replayer(model, rows)
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, *_: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    hooks = [module.register_forward_pre_hook(count) for module in (model.network, *model.layers)]
    (sequences, tokens), *_ = rehearsal.shapes.of(few := np.arange(6))
    assert rehearsal.skip_costs == (int(of_tuples),) * model.num_layers  # found out by a forward, once
    for most_tokens in (0, 2 * sequences * tokens, 10**6):
        rehearsal.most_tokens = replayer.most_tokens = most_tokens
        for work in (
            Work((), (0, 1, 2, 3), few, together=True),
            Work((2,), (0, 1, 3), few, together=True),
            Work((), (0, 1, 2, 3), few),
            Work((), (), few),
        ):
            calls.clear()
            found, item = replayer(work), rehearsal.work(rehearsal.shapes.of(few), work)
            assert item.starts - item.along[0] == calls.pop(model.network)
            assert item.layers - item.along[1] == sum(calls.values())
            assert item.through == (found.layer_forwards, found.layer_tokens)
    for hook in hooks:
        hook.remove()


def test_operations_are_those_of_the_matrix_products(tiny: Tiny, sample_files: Files) -> None:
    """A layer of BERT, 32 wide and 64 in between: four square products, two of the feed-forward part."""
    model = load_model(tiny("bert"))
    reader = model.task.rows({}, model.processor)
    rows = read_samples(sample_files("bert")["target"], reader, role="target")
    flops = costing.count_flops(model, rows, model.processor)
    item = Item(0, sequences=1, tokens=20, starts=0, layers=1, heads=0)
    expected = 20 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 20 * 20 * 32
    assert flops.count(item) == pytest.approx(expected, rel=1e-6)


# --- the command ----------------------------------------------------------------------------


def arguments(tiny: Tiny, sample_files: Files, output: Path) -> list[object]:
    files = sample_files("bert")
    return [
        "select", "--model", tiny("bert"), "--id", files["id"], "--target", files["target"], "--output",
        output, "--dry-run",
    ]  # fmt: skip


def test_a_dry_run_prints_least_and_most_and_writes_nothing(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    result = call(*arguments(tiny, sample_files, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    for word in (
        "layer forwards",
        "operations",
        "time of the search, estimated",
        "peak memory",
        " .. ",
        "It fits",
    ):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_artifact_and_nothing_else(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    result = call(*arguments(tiny, sample_files, tmp_path / "out"), "--json")
    fields = json.loads(result.stdout)
    assert fields["kind"] == "plan"
    assert fields["layer_forwards"]["least"] < fields["layer_forwards"]["most"]
    assert 0 < fields["seconds"]["least"] <= fields["seconds"]["most"]
    assert 0 < fields["model_bytes"] < fields["peak_memory_bytes"]
    (tmp_path / "plan.json").write_text(result.stdout, encoding="utf-8")
    plan = artifacts.read(tmp_path / "plan.json", artifacts.Plan)
    assert json.loads(artifacts.to_json(plan)) == fields
    assert render_plan(plan)
    assert call(*arguments(tiny, sample_files, tmp_path / "out"), "--quiet").stdout == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "tael"},
        {"search": "greddy"},
        {"pick": "99"},
        {"pick": "3", "max_drop_layers": 1},
        {"protect_first": 4},
        {"search": "beam", "criterion": "random"},
        {"search": "racing", "full_scores": True},
        {"criterion": "angular-distance", "max_drop_layers": 4},
        {"id": None},
        {"device": "nonesuch"},
        {"max_length": 9999},
        {"output": Path(__file__)},
    ],
    ids=str,
)
def test_bad_input_is_refused_as_select_refuses_it(config: Any, settings: dict[str, Any]) -> None:
    bad = replace(config("bert"), **settings)
    with pytest.raises(TapiocaError) as planned:
        planning.plan(bad)
    with pytest.raises(TapiocaError) as refused:
        commands.select(bad)
    assert str(planned.value) == str(refused.value)
    assert type(planned.value) is type(refused.value)


def test_a_search_too_large_is_refused_before_it_is_begun(tmp_path: Path, sample_files: Files) -> None:
    model = save_model(tmp_path / "deep", "bert", num_hidden_layers=13)
    files = sample_files("bert")
    with pytest.raises(ConfigError, match="exhaustive would score"):
        planning.plan(RunConfig(model=str(model), **files, search="exhaustive", output=tmp_path / "out"))


def test_unlabelled_rows_are_planned_for_where_the_criterion_needs_no_labels(
    tiny: Tiny, tmp_path: Path
) -> None:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(40, seed, labelled=False))
        for seed, name in enumerate(("id", "target"))
    }
    config = RunConfig(model=str(tiny("bert")), **files, output=tmp_path / "out", pick="final")
    with pytest.raises(SelectionError, match="needs labels"):
        planning.plan(replace(config, max_drop_layers=1))
    assert_within(*searched(replace(config, criterion="tapioca")))
    other = replace(config, output=tmp_path / "other")
    nothing = planning.plan(replace(other, criterion="random", max_drop_layers=1))
    assert nothing.layer_forwards == artifacts.Bounds(0, 0)


def test_a_dry_run_plans_one_search(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    result = call(*arguments(tiny, sample_files, tmp_path / "out"), "--compare", "tale,random")
    assert result.exit_code == 1
    assert "--dry-run has no say in --compare" in result.stderr


@pytest.fixture
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what tells the time of a run: `test_trying.py` is on that."""
    monkeypatch.setattr(planning.trying, "seconds_after_search", lambda *_: {})


def test_a_run_is_planned_with_the_disk_it_takes(
    tiny: Tiny, sample_files: Files, tmp_path: Path, finished: Path, nothing_tried: None
) -> None:
    _, *rest = arguments(tiny, sample_files, tmp_path / "out")
    result = call("run", *rest, "--format", "torchscript", "--format", "pt2", "--json")
    assert result.exit_code == 0, result.output
    fields = json.loads(result.stdout)
    assert fields["command"] == "run"
    assert list(tmp_path.iterdir()) == []
    written = sum(file.stat().st_size for file in finished.rglob("*") if file.is_file())
    assert fields["disk_bytes"]["least"] < written < fields["disk_bytes"]["most"]
    assert "disk, estimated" in call("run", *rest).stdout


def test_a_plan_says_with_which_settings(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_tried: None
) -> None:
    """Those of a config file too, and of them those alone that were asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('epsilon = 0.5\noptimize = "O1"\nformat = ["onnx", "pt2"]\n')
    _, *rest = arguments(tiny, sample_files, tmp_path / "out")
    given = ("run", *rest, "-c", "plan.toml", "--columns", "text=text")
    result = call(*given)
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Settings: "))
    for said in (
        "epsilon 0.5",
        "optimize O1",
        "format onnx,pt2",
        "columns text=text",
        f"output {tmp_path / 'out'}",
    ):
        assert f"{said}," in line or f"{said};" in line
    assert "pick" not in line
    config = json.loads(call(*given, "--json").stdout)["config"]
    assert (config["epsilon"], config["pick"], config["format"]) == (0.5, "best", ["onnx", "pt2"])
    assert "Selecting" not in result.stderr  # nothing is


def test_what_a_run_writes_is_counted_in_weights(tiny: Tiny) -> None:
    model = load_model(tiny("bert"))
    whole = sum(weight.numel() for weight in model.network.parameters())
    layer = sum(weight.numel() for weight in model.layers[0].parameters())
    stored = (tiny("bert") / "model.safetensors").stat().st_size
    for formats, width, quantize, narrow in (
        (["onnx"], 4, None, 4), (["onnx", "pt2"], 4, None, 8), (["onnx", "pt2"], 4, "int8", 5),
        (["onnx"], 2, "int4", 0.5),
    ):  # fmt: skip
        found = run_bytes(model, formats, width, quantize, most_dropped=2)
        left = whole - 2 * layer
        assert found.least == pytest.approx(narrow * (whole + left) + stored * left / whole, abs=1)
        assert found.most == pytest.approx(width * len(formats) * 2 * whole + stored + 40e6, abs=1)


def test_a_journal_takes_the_disk_that_was_planned(config: Any) -> None:
    chosen = config("bert")
    planned = planning.plan(chosen).disk_bytes
    commands.select(chosen)
    assert planned.least < (chosen.output / "search.jsonl").stat().st_size < planned.most


# --- words ----------------------------------------------------------------------------------


def test_numbers_are_shown_in_their_largest_unit() -> None:
    assert [scaled(n, TIMES) for n in (0.25, 90, 7200, 200_000)] == ["0.25 s", "1.5 min", "2 h", "2.31 days"]


@pytest.mark.parametrize(
    ("peak", "available", "device", "workers", "said"),
    [
        (2**30, 4 * 2**30, "cpu", 1, "room for 3 workers"),
        (2**30, 4 * 2**30, "cpu", 4, "does not fit"),
        (2**30, 4 * 2**30, "cuda", 8, "one worker a GPU"),
        (8 * 2**30, 4 * 2**30, "cuda", 1, "--device auto"),
        (2**30, 0, "cpu", 1, "not known"),
    ],
)
def test_the_advice_follows_from_the_memory(
    peak: int, available: int, device: str, workers: int, said: str
) -> None:
    assert said in costing.advise(peak, available, device, workers)


# --- batches --------------------------------------------------------------------------------


def test_a_plan_is_made_on_the_batches_that_workers_will_get(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "THREAD_TOKENS", 16)
    monkeypatch.setattr(steps, "_engine", lambda config, model, rows: nullcontext(None))  # no Ray is needed
    planned: list[list[list[int]]] = []

    def calibrate(*arguments: Any) -> Calibration:
        planned.append([batch.tolist() for batch in arguments[3]])
        return calibrating.calibrate(*arguments)

    monkeypatch.setattr(predicting, "calibrate", calibrate)
    asked = config("bert", eval_batch_size=32, engine="ray", num_workers=2, num_threads=4)
    planning.plan(asked)
    model = load_model(asked.model)
    roles = reading.load_roles(asked, model.task, model.processor)
    with steps.using_threads(asked), steps.probing(asked, model, roles) as probe:
        rows = roles["target-select"]
        batches = probe.length_sorted(rows)
    assert planned == [[batch.tolist() for batch in batches]]
    lengths = np.asarray(model.task.lengths(rows.rows, model.processor))
    tokens = [len(batch) * lengths[batch].max() for batch in batches if len(batch) > 1]
    assert 16 < max(tokens) <= 2 * 16  # four threads are two a worker


def test_a_calibration_gives_back_what_each_batch_took(
    tiny: Tiny, sample_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["id"], model.task.rows({}, model.processor), role="id-select")
    lengths = model.task.lengths(rows.rows, model.processor)
    batches = model.task.length_sorted(rows, model.processor, 8)
    given: list[int] = []
    timed: list[np.ndarray] = []
    run = calibrating._parts
    monkeypatch.setattr(calibrating, "give_back_free_memory", lambda: given.append(len(timed)))
    monkeypatch.setattr(calibrating, "_parts", lambda r, rows, m: timed.append(rows) or run(r, rows, m))
    calibrating.calibrate(model, rows, model.processor, batches)
    assert given == list(range(1, len(timed) + 1))
    sizes = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert max(len(batch) * max(lengths[row] for row in batch) for batch in timed) == max(sizes)


# --- docs/scale.md, docs/gpu.md ---------------------------------------------------------------


def test_the_tables_of_gpu_are_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    text = gpu.PAGE.read_text(encoding="utf-8")
    results = json.loads(gpu.RESULTS.read_text(encoding="utf-8"))
    printed = gpu.tables(results)
    assert set(printed) == {"latency", "peers", "search"}
    for part, table in printed.items():
        assert text.split(gpu.BEGIN.format(part))[1].split(gpu.END)[0].strip() == table
    rows = results["peers"]["rows"]
    assert [(row["batch_size"], len(row["refused"])) for row in rows] == [
        (1, 0),
        (1, 2),
        (8, 0),
        (8, 2),
        (32, 0),
        (32, 2),
    ]
    assert all(found["interval"][0] > 1.1 for row in rows for found in row["times_as_fast"].values())
    assert all(map(gpu.is_no_slower, rows))
    assert not gpu.is_no_slower({**rows[0], "off": {"plain": 0.0, "O4": 0.03}})
    assert not gpu.is_no_slower({**rows[0], "off": {"plain": 0.0, "O4": float("nan")}})
    assert not gpu.is_no_slower({**rows[0], "times_as_fast": {}, "refused": {"O4": "no kernel"}})
    assert not gpu.is_no_slower({**rows[0], "times_as_fast": {"Optimum": {"interval": [0.9, 0.99]}}})
    assert all(map(gpu.is_right, results["search"]["rows"]))
    off = results["search"]["rows"][0]
    assert not gpu.is_right({**off, "predicted_seconds": off["seconds"] * 1.3})
    assert not gpu.is_right({**off, "predicted_peak_bytes": off["peak_bytes"] * 0.85})
    assert not gpu.is_right({**off, "predicted_layer_forwards": off["layer_forwards"] + 1})
    sys.modules.pop("gpu", None)


@pytest.mark.slow
def test_the_tables_of_scale_are_what_its_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale

    text = (BENCHMARKS.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    written = text.split(scale.BEGIN)[1].split(scale.END)[0].strip()
    assert written == scale.tables()
    sys.modules.pop("scale", None)
