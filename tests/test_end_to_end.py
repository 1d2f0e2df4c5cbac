"""The whole job through the command line: on tiny models, and on the embedded example."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import LABELS, text_records, write_jsonl

import tapioca_export
from tapioca_export import RunConfig, schema, verify
from tapioca_export.artifacts import (
    Benchmark,
    Export,
    OrtSession,
    Profile,
    Report,
    Run,
    Selection,
    read,
    sha256,
)
from tapioca_export.cli import main
from tapioca_export.models import load_model
from tapioca_export.reading import load_roles, load_task

pytestmark = pytest.mark.xdist_group("end-to-end")

Tiny = Callable[[str], Path]
FAST = ["--iterations", "5", "--warmup", "1", "--num-threads", "1"]
LAYOUT = [
    "benchmark.json", "original/onnx/config.json", "original/onnx/export.json", "original/onnx/model.onnx",
    "profile.json", "pruned/checkpoint/README.md", "pruned/checkpoint/config.json",
    "pruned/checkpoint/model.safetensors", "pruned/onnx/config.json", "pruned/onnx/export.json",
    "pruned/onnx/model.onnx", "report.html", "report.json", "report.md", "run.json", "search.jsonl",
    "selection.json",
]  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_samples(folder: Path, *, labelled: bool = True) -> dict[str, Path]:
    return {
        name: write_jsonl(folder / f"{name}.jsonl", text_records(80, seed, labelled=labelled))
        for seed, name in ((11, "id"), (12, "target"))
    }


def test_a_run_folder_holds_what_the_contract_names(finished: Path) -> None:
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert set(LAYOUT) <= files
    assert {"pruned/torchscript/model.pt", "pruned/pt2/model.pt2"} <= files
    assert {"original/onnx/ort_session.json", "pruned/onnx/ort_session.json"} <= files
    assert not any("ort_session" in name and "onnx" not in name for name in files)
    assert not any(name.endswith(("partial", ".invalid")) for name in files)


def test_of_two_models_one_is_in_memory_at_a_time(finished: Path, held_when_loading: list[bool]) -> None:
    assert held_when_loading == [False, False]


def test_progress_counts_the_layers_of_all_files(finished: Path, bars_of_files: list[Any]) -> None:
    (bar,) = bars_of_files
    assert bar.n == bar.total == 3 * (4 + 2)  # in three formats, whole and without two layers


def test_no_exported_file_tells_where_it_was_made(finished: Path) -> None:
    place = str(Path(transformers.__file__).parent.parent).encode()
    for folder in ("original", "pruned"):
        for file in (path for path in (finished / folder).rglob("*") if path.is_file()):
            held = [file.read_bytes()]
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    held += [archive.read(name) for name in archive.namelist()]
            assert not any(place in part for part in held), file


def test_the_pruned_checkpoint_loads_with_stock_transformers(finished: Path) -> None:
    network = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "pruned/checkpoint")
    assert network.config.num_hidden_layers == len(network.bert.encoder.layer) == 2
    assert transformers.AutoTokenizer.from_pretrained(finished / "pruned/checkpoint")("w1").input_ids


@pytest.mark.parametrize("place", ["original/onnx", "pruned/onnx", "pruned/checkpoint"])
def test_the_tokenizer_that_goes_out_is_the_one_that_came(finished: Path, tiny: Tiny, place: str) -> None:
    load = transformers.AutoTokenizer.from_pretrained
    texts = ["w1 w2", "w5 w6 w7 w8", "w9 " * 100]
    assert load(finished / place)(texts[:2], padding=True) == load(tiny("bert"))(texts[:2], padding=True)
    assert load(finished / place)(texts).input_ids == load(tiny("bert"))(texts).input_ids
    named = json.loads((finished / place / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert named in vars(transformers)
    assert named != "TokenizersBackend", "which transformers before 5 does not know"
    state = json.loads((finished / place / "tokenizer.json").read_text())
    assert (state["padding"], state["truncation"]) == (None, None)


def test_the_accuracy_reported_is_that_of_the_exported_files(finished: Path, tiny: Tiny) -> None:
    config = read(finished / "run.json", Run).config
    config = RunConfig(model=config["model"], id=Path(config["id"]), target=Path(config["target"]))
    task, processor = load_task(config)
    rows = load_roles(config, task, processor)["target-report"]
    for which, field in (("original", "original"), ("pruned", "pruned")):
        session = onnxruntime.InferenceSession(finished / which / "onnx/model.onnx")
        logits = [session.run(None, task.encode([row], processor))[0][0] for row in rows.rows]
        measured = read(finished / "benchmark.json", Benchmark).accuracy["target"]
        assert getattr(measured, field) == pytest.approx(task.score(np.stack(logits), rows).values.mean())
        assert measured.n == len(rows) == 40


def test_the_search_took_no_part_in_the_report(finished: Path) -> None:
    config = read(finished / "run.json", Run).config
    config = RunConfig(model=config["model"], id=Path(config["id"]), target=Path(config["target"]))
    roles = load_roles(config, *load_task(config))
    assert read(finished / "selection.json", Selection).num_samples == len(roles["target-select"]) == 40
    keys = {name: {row.key for row in samples.rows} for name, samples in roles.items()}
    assert not keys["target-select"] & keys["target-report"]


def test_profiles_before_and_after_stand_on_the_same_axes(finished: Path) -> None:
    profile = read(finished / "profile.json", Profile)
    selection = read(finished / "selection.json", Selection)
    assert profile.drop == selection.drop
    assert len(profile.id.norms) == len(profile.pruned_target.norms) == 5
    for layer in range(4):
        dropped = layer in profile.drop
        assert (profile.pruned_target.influences[layer] is None) == dropped
        if dropped:
            assert profile.pruned_target.norms[layer + 1] == profile.pruned_target.norms[layer]
    low, high = np.asarray(profile.id.norms_band).T
    assert (low <= profile.id.norms).all()
    assert (profile.id.norms <= high).all()


def test_run_json_hashes_inputs_and_outputs(finished: Path) -> None:
    run = read(finished / "run.json", Run)
    for name, digest in run.outputs.items():
        assert sha256(finished / name) == digest
    assert sha256(Path(run.config["target"])) in run.inputs.values()


def test_the_export_says_which_layers_are_gone(finished: Path) -> None:
    selection = read(finished / "selection.json", Selection)
    export = read(finished / "pruned/onnx/export.json", Export)
    assert (export.drop, export.num_layers) == (selection.drop, 4)
    assert read(finished / "original/onnx/export.json", Export).drop == ()
    assert export.size_bytes < read(finished / "original/onnx/export.json", Export).size_bytes


def test_the_benchmark_sets_the_measured_beside_the_ideal_speedup(finished: Path) -> None:
    rows = read(finished / "benchmark.json", Benchmark).latency
    for row in rows:
        assert row.ideal_speedup == pytest.approx(4 / 2)
        assert row.speedup.interval[0] <= row.speedup.median <= row.speedup.interval[1]
    settings = {
        runtime: [row.setting for row in rows if row.runtime == runtime]
        for runtime in ("onnxruntime", "torchscript", "pt2")
    }
    assert sum(map(len, settings.values())) == len(rows)
    assert settings["onnxruntime"] == settings["torchscript"] == settings["pt2"]
    assert "torchscript" in (finished / "report.md").read_text(encoding="utf-8")


def test_a_run_that_tunes_leaves_the_settings_it_timed_with(finished: Path) -> None:
    measured = read(finished / "benchmark.json", Benchmark)
    for name in ("original", "pruned"):
        found = read(finished / name / "onnx/ort_session.json", OrtSession)
        assert (found,) == measured.sessions[name]
        assert found.sha256 == sha256(finished / name / "onnx/model.onnx")
        assert found.num_threads == 1


@pytest.mark.slow
def test_folders_are_tuned_and_programs_timed_on_their_own(finished: Path, tmp_path: Path) -> None:
    config = read(finished / "run.json", Run).config
    data = ["--id", config["id"], "--target", config["target"]]
    for name in ("original", "pruned"):
        shutil.copytree(finished / name / "onnx", tmp_path / name)
        (tmp_path / name / "ort_session.json").unlink()
    pair = [tmp_path / name for name in ("original", "pruned")]
    result = invoke("benchmark", *pair, *data, "-o", tmp_path / "b", "--tune", "--tune-seconds", 1, *FAST)
    assert result.exit_code == 0, result.output
    assert "Sessions were tuned on CPU" in result.stdout
    for folder in pair:
        assert read(folder / "ort_session.json", OrtSession).planned > 0
    programs = [finished / name / "pt2" for name in ("original", "pruned")]
    result = invoke("benchmark", *programs, *data, "-o", tmp_path / "p", "--trust-remote-code", *FAST)
    assert result.exit_code == 0, result.output
    assert "1 thread, pt2: " in result.stdout
    accuracy = read(tmp_path / "p/benchmark.json", Benchmark).accuracy
    assert accuracy == read(finished / "benchmark.json", Benchmark).accuracy


def test_report_renders_a_run_folder_again(finished: Path) -> None:
    assert invoke("report", finished).exit_code == 0
    for name, digest in read(finished / "run.json", Run).outputs.items():
        assert sha256(finished / name) == digest


def test_check_gates_on_interval_bounds(finished: Path) -> None:
    passed = invoke("check", finished, "--max-size-ratio", 0.99)
    missed = invoke("check", finished, "--min-target-gain", 0.9)
    assert (passed.exit_code, missed.exit_code) == (0, 3)
    assert "|" in missed.stdout


@pytest.mark.slow
def test_every_stage_runs_on_its_own_and_agrees_with_the_run(
    finished: Path, tmp_path: Path, tiny: Tiny
) -> None:
    config = read(finished / "run.json", Run).config
    data = ["--id", config["id"], "--target", config["target"]]
    model = ["-m", tiny("bert"), "--num-threads", 1]
    steps = [
        ("profile", *model, *data, "-o", tmp_path / "profile", "--drop", "1"),
        ("select", *model, *data, "-o", tmp_path / "select", "--epsilon", 1, "--pick", 2),
        ("prune", *model, "-o", tmp_path / "checkpoint", "--selection", tmp_path / "select/selection.json"),
        ("export", *model, *data, "-o", tmp_path / "full"),
        ("export", "-m", tmp_path / "checkpoint", *data, "-o", tmp_path / "small", "--num-threads", 1),
        ("benchmark", tmp_path / "full", tmp_path / "small", *data, "-o", tmp_path / "bench", *FAST),
    ]
    for step in steps:
        result = invoke(*step, "--json")
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)
    selection = read(tmp_path / "select/selection.json", Selection)
    assert selection.drop == read(finished / "selection.json", Selection).drop
    alone = read(tmp_path / "bench/benchmark.json", Benchmark)
    assert alone.accuracy == read(finished / "benchmark.json", Benchmark).accuracy
    assert alone.drop == selection.drop
    for small in (tmp_path / "small", finished / "pruned/onnx"):
        other = invoke("benchmark", tmp_path / "full", small, *data, "-o", tmp_path / "other", "--seed", 1)
        assert other.exit_code == 1  # rows that drove the search would be reported
        assert "Use --seed 0" in other.stderr


@pytest.mark.slow
def test_unlabelled_targets_run_through_with_tapioca(tiny: Tiny, tmp_path: Path) -> None:
    files = write_samples(tmp_path, labelled=False)
    result = invoke(
        "run", "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], "-o", tmp_path / "out",
        "--criterion", "tapioca", *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "out/benchmark.json", Benchmark).accuracy == {}
    assert read(tmp_path / "out/selection.json", Selection).baseline_metric is None


@pytest.mark.parametrize("labelled", [True, False])
def test_identical_samples_give_tapioca_nothing_to_drop(tiny: Tiny, tmp_path: Path, labelled: bool) -> None:
    path = write_jsonl(tmp_path / "same.jsonl", text_records(80, 5, labelled=labelled))
    result = invoke(
        "select", "-m", tiny("llama"), "--id", path, "--target", path, "-o", tmp_path / "out",
        "--criterion", "tapioca", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["drop"] == []


@pytest.mark.parametrize("option", ["--junit", "--metrics", "--summary"])
@pytest.mark.parametrize("name", ["report.json", "run.json", "pruned/onnx/model.onnx", ".", ""])
def test_a_gate_writes_over_no_file_of_the_run(finished: Path, option: str, name: str) -> None:
    place = finished / name if name else ""
    before = sha256(finished)
    result = invoke("check", finished, "--min-target-gain", -1, f"{option}={place}")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {place or '.'} is a ")
    assert sha256(finished) == before


def test_a_checkpoint_pruned_before_is_not_pruned_again(finished: Path, tmp_path: Path) -> None:
    result = invoke("prune", "-m", finished / "pruned/checkpoint", "--drop", "0", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "was pruned before" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_an_input_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    files = write_samples(tmp_path)
    data = ["--id", files["id"], "--target", files["target"]]
    result = invoke("select", "-m", tiny("bert"), *data, "-o", tmp_path, "--overwrite")
    assert result.exit_code == 1
    assert "is inside the output folder" in result.stderr
    assert files["id"].exists()
    assert invoke("prune", "-m", tiny("bert"), "--drop", 1, "-o", tiny("bert"), "--overwrite").exit_code == 1


def test_dropping_nothing_writes_the_same_weights_and_logits(tiny: Tiny, tmp_path: Path) -> None:
    files = write_samples(tmp_path)
    config = RunConfig(model=str(tiny("bert")), output=tmp_path / "out", num_threads=1)
    nothing = Selection(str(tiny("bert")), "text-classification", "tale", 4, (), (), "nothing helped")
    tapioca_export.prune(config, nothing)
    before, after = load_model(tiny("bert")), load_model(tmp_path / "out")
    weights = after.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.network.state_dict().items())
    rows = load_roles(
        RunConfig(model=str(tiny("bert")), id=files["id"], target=files["target"]),
        before.task,
        before.processor,
    )
    batch = before.task.encode(rows["id-report"].rows, before.processor)
    assert np.array_equal(before.logits(batch), after.logits(batch))


def test_a_family_that_shares_its_layers_is_refused_with_the_reason(tmp_path: Path) -> None:
    from conftest import make_tokenizer

    config = transformers.AlbertConfig(
        vocab_size=128, hidden_size=32, embedding_size=16, num_attention_heads=4, intermediate_size=64,
        num_hidden_layers=4, max_position_embeddings=64, num_labels=len(LABELS),
    )  # fmt: skip
    transformers.AlbertForSequenceClassification(config).save_pretrained(tmp_path / "m")
    make_tokenizer("albert").save_pretrained(tmp_path / "m")
    result = invoke("prune", "-m", tmp_path / "m", "--drop", "1", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "share one set of weights" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_layer_that_the_architecture_cannot_lose_is_refused_and_never_chosen(
    tiny: Tiny, tmp_path: Path
) -> None:
    files = write_samples(tmp_path)
    result = invoke("prune", "-m", tiny("modernbert"), "--drop", "0", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "modernbert cannot do without layers 0" in result.stderr
    assert "attn_norm" in result.stderr
    result = invoke(
        "select", "-m", tiny("modernbert"), "--id", files["id"], "--target", files["target"],
        "-o", tmp_path / "s", "--epsilon", 1, "--pick", "final", "--json",
    )  # fmt: skip
    assert 0 not in json.loads(result.stdout)["drop"]
    assert len(json.loads(result.stdout)["drop"]) == 3


@pytest.mark.slow
def test_the_demo_reports_fresh_rows_and_never_those_it_searched_on(tmp_path: Path) -> None:
    config = RunConfig(
        output=tmp_path / "out", max_drop_layers=1, num_threads=1, iterations=5, warmup=1, batch_size=(1,)
    )
    report = tapioca_export.demo(config, num_select=48, num_report=64)
    assert read(tmp_path / "out/report.json", Report) == report
    rows = {
        name: set((tmp_path / "out/samples" / f"{name}.jsonl").read_text().splitlines())
        for name in ("id", "id-report", "target", "target-report")
    }
    assert sum(map(len, rows.values())) == len(set().union(*rows.values())) == 2 * (48 + 64)
    assert report.run.config["target"] == "samples/target.jsonl"
    assert report.benchmark.accuracy["target"].n == 64
    assert report.selection.num_layers == 12
    low, _ = report.benchmark.accuracy["target"].gain_interval
    assert ("lowers the target" in report.verdict) == (low > 0)
    assert str(tmp_path) not in json.dumps(report.run.outputs)
    documents = [json.loads(file.read_text()) for file in (tmp_path / "out").rglob("*.json")]
    for document in documents:
        if "kind" in document:
            jsonschema.validate(document, schema(document["kind"]))
    assert verify(tmp_path / "out", strict=True, trust_remote_code=True).passed
