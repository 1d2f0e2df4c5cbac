"""On CUDA the same layers are chosen as on the CPU, and files compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ALL_FAMILIES
from test_generation import DROPPED, make_model, make_rows
from test_laws import drop_by_hand, load_rows, some_batches

from tapioca_export.artifacts import Benchmark, Export, OrtSession, Selection, read
from tapioca_export.benchmarking import default_settings
from tapioca_export.benchmarking.sessions import CUDA, CUDA_GRAPH, available_providers, open_session
from tapioca_export.cli import main
from tapioca_export.errors import BenchmarkError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.generation import one_token_step
from tapioca_export.models import LoadedModel, LoadOptions, load_model, skipping
from tapioca_export.profiling import Probe
from tapioca_export.selection import SelectionSettings, select_layers

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
on_graphs = pytest.mark.skipif(CUDA not in available_providers(), reason="there is no onnxruntime-gpu")

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
# Float32 sums in another order; the networks' outputs are about 1.
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.fixture(params=ALL_FAMILIES)
def pair(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[LoadedModel, LoadedModel]:
    """Return a model on the CPU and on the device."""
    folder = tiny(request.param)
    return load_model(folder), load_model(folder, options=LoadOptions(device=DEVICE))


def rows_of(model: LoadedModel, sample_files: Files, name: str) -> Any:
    family = "polynomial" if model.processor.tokenizer is None else "text"
    return load_rows(model, sample_files(family)[name])


def test_a_network_computes_the_same(pair: tuple[LoadedModel, LoadedModel], sample_files: Files) -> None:
    cpu, device = pair
    assert device.device.type == DEVICE
    for batch in some_batches(cpu, rows_of(cpu, sample_files, "id")):
        np.testing.assert_allclose(device.logits(batch), cpu.logits(batch), **CLOSE)


@pytest.mark.parametrize("layers", [(1,), (0, 2), (3,)])
def test_skipping_equals_dropping_to_the_bit(
    pair: tuple[LoadedModel, LoadedModel], sample_files: Files, layers: tuple[int, ...]
) -> None:
    model = pair[1]
    by_hand = drop_by_hand(model, layers)
    for batch in some_batches(model, rows_of(model, sample_files, "id")):
        with skipping(model, layers):
            skipped = model.logits(batch)
        assert np.array_equal(skipped, by_hand.logits(batch))


def test_a_search_scores_and_chooses_the_same(
    pair: tuple[LoadedModel, LoadedModel], sample_files: Files
) -> None:
    found = []
    for model in pair:
        samples = {name: rows_of(model, sample_files, name) for name in ("id", "target")}
        settings = SelectionSettings(epsilon=1.0, max_drop_layers=2, full_scores=True)
        found.append(
            select_layers(
                Probe(model, samples), settings, model=model.source, task=model.task, num_samples=64
            )
        )
    cpu, device = found
    assert device.drop == cpu.drop
    assert [step.layer for step in device.steps] == [step.layer for step in cpu.steps]
    for one, other in zip(device.steps, cpu.steps, strict=True):
        for mine, its in zip(one.candidates, other.candidates, strict=True):
            assert mine.metric == pytest.approx(its.metric, rel=1e-3, abs=1e-6)


def test_replay_and_races_change_no_score_on_the_device(
    pair: tuple[LoadedModel, LoadedModel], sample_files: Files
) -> None:
    model = pair[1]
    samples = {name: rows_of(model, sample_files, name) for name in ("id", "target")}
    probe = Probe(model, samples)
    replayed = probe.metrics((), range(len(model.layers)))
    for layer, score in replayed.items():
        fresh = Probe(model, samples).metric((layer,))
        assert score.metric == pytest.approx(fresh.metric, rel=1e-6)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_profiles_and_interventions_are_those_of_the_cpu(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    files = sample_files("text")
    found = []
    for device in ("cpu", DEVICE):
        common = ("-m", tiny("llama"), "--id", files["id"], "--target", files["target"], "--device", device)
        commands = (("profile",), ("intervene", "--layers", 1, "--draws", 3))
        out = tmp_path / f"on-{device}"
        found.append(
            [json.loads(invoke(*command, *common, "--json", "-o", out / command[0])) for command in commands]
        )
    assert_close(*found)


def assert_close(one: Any, other: Any, name: str = "") -> None:
    """Compare what is in two JSON documents; times and the device's name are no results."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys()
        for key in one.keys() - {"seconds", "cost", "created", "environment"}:
            assert_close(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for place, (mine, its) in enumerate(zip(one, other, strict=True)):
            assert_close(mine, its, f"{name}[{place}]")
    elif isinstance(one, float) and other is not None:
        assert one == pytest.approx(other, rel=2e-2, abs=2e-3), name
    elif not isinstance(one, str):
        assert one == other, name


def test_layers_are_spread_with_equal_scores(tiny: Tiny, sample_files: Files) -> None:
    plain, spread = (
        load_model(tiny("llama"), options=LoadOptions(device=device)) for device in (DEVICE, "auto")
    )
    for batch in some_batches(plain, rows_of(plain, sample_files, "id")):
        assert np.array_equal(plain.logits(batch), spread.logits(batch))


# --- exported files -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny: Tiny, sample_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on CUDA from beginning to end, with every format."""
    files, output = sample_files("text"), tmp_path_factory.mktemp("cuda") / "run"
    invoke(
        "run", "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], "-o", output,
        "--device", DEVICE, "--provider", "cuda", "--epsilon", 1, "--pick", 2, "--format", "torchscript",
        "--format", "pt2", "--tune", "--tune-seconds", 20, "--iterations", 5, "--warmup", 2,
    )  # fmt: skip
    return output


@on_graphs
def test_a_run_is_timed_on_cuda_in_every_runtime(folder: Path) -> None:
    measured = read(folder / "benchmark.json", Benchmark)
    timed = {(row.runtime, row.provider) for row in measured.latency}
    assert timed == {
        ("onnxruntime", "CPUExecutionProvider"), ("onnxruntime", CUDA), ("torchscript", "CPU"),
        ("torchscript", "CUDA"), ("pt2", "CPU"), ("pt2", "CUDA"), ("torch.compile", "CUDA"),
    }  # fmt: skip
    assert {session.provider for session in measured.sessions["pruned"]} == {"CPUExecutionProvider", CUDA}
    assert {row.runtime for row in measured.served} == {"onnxruntime"}
    assert not [words for words in measured.skipped if "CUDA" in words]


@on_graphs
def test_accuracy_on_cuda_is_that_on_the_cpu(folder: Path, sample_files: Files) -> None:
    files, found = sample_files("text"), []
    for provider in ("cpu", "cuda"):
        printed = invoke(
            "benchmark", folder / "original/onnx", folder / "pruned/onnx", "--id", files["id"], "--target",
            files["target"], "--provider", provider, "--iterations", 2, "--json", "-o",
            folder.parent / f"on-{provider}",
        )  # fmt: skip
        found.append(json.loads(printed)["accuracy"]["target"])
    cpu, cuda = found
    # CUDA multiplies in TF32, as ONNX Runtime has it by default: near ties of random networks may flip.
    for name in ("original", "pruned"):
        assert cuda[name] == pytest.approx(cpu[name], abs=2 / cpu["n"] + 1e-9)


@on_graphs
def test_settings_that_were_found_on_cuda_open_again(folder: Path) -> None:
    for name in ("original", "pruned"):
        export = read(folder / name / "onnx/export.json", Export)
        session = read(folder / name / "onnx/ort_session.json", OrtSession)
        assert session.planned == 4 or session.provider != CUDA
        run = open_session(folder / name / "onnx" / "model.onnx", session)
        batch = {key: np.ones((2, 9), dtype=np.int64) for key in export.inputs}
        plain = open_session(folder / name / "onnx" / "model.onnx", default_settings("cpu", 1))
        np.testing.assert_allclose(run(batch)["logits"], plain(batch)["logits"], atol=1e-2)


@on_graphs
@pytest.mark.parametrize("tf32", ["0", "1"])
@pytest.mark.parametrize("way", ["plain", "bound", "graph"])
def test_every_way_of_running_a_file_computes_the_same(folder: Path, way: str, tf32: str) -> None:
    settings = replace(
        default_settings("cuda", 1),
        io_binding=way != "plain",
        provider_options={"use_tf32": tf32} | ({CUDA_GRAPH: "1"} if way == "graph" else {}),
    )
    file = folder / "pruned/onnx/model.onnx"
    session, reference = open_session(file, settings), open_session(file, default_settings("cpu", 1))
    names = read(folder / "pruned/onnx/export.json", Export).inputs
    generator = np.random.default_rng(0)
    for shape in ((1, 7), (3, 12), (1, 7), (2, 30), (3, 12)):
        batch = {name: np.ones(shape, dtype=np.int64) for name in names}
        batch["input_ids"] = generator.integers(4, 90, size=shape)
        for _ in range(3):
            found = session(batch)["logits"]
            expected = reference(batch)["logits"]
            np.testing.assert_allclose(found, expected, atol=1e-4 if tf32 == "0" else 2e-2)


@on_graphs
def test_a_file_that_cannot_be_a_graph_of_kernels_is_refused_and_runs_without(tmp_path: Path) -> None:
    model = make_model("llama")
    export = export_model(model, make_rows(model), tmp_path, ExportSettings(), DROPPED)
    plain = replace(default_settings("cuda", 1), provider_options={"use_tf32": "0"})
    graph = replace(plain, provider_options={**plain.provider_options, CUDA_GRAPH: "1"})
    with pytest.raises(BenchmarkError, match="graph capture"):  # of a cache's shapes the CPU takes care
        open_session(tmp_path / "model.onnx", graph)
    run, reference = (
        open_session(tmp_path / "model.onnx", own) for own in (plain, default_settings("cpu", 1))
    )
    generator = np.random.default_rng(0)
    for length in (3, 5, 3):
        ids = generator.integers(4, 90, (2, length))
        step = one_token_step({"input_ids": ids, "attention_mask": np.ones_like(ids)}, export.cache)
        cached = {name: generator.normal(size=step[name].shape) for name in export.cache}
        found, expected = run({**step, **cached}), reference({**step, **cached})
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_doctor_says_that_cuda_starts() -> None:
    said = invoke("doctor")
    assert ("CUDAExecutionProvider starts." in said) == (CUDA in available_providers())


def test_a_plan_of_a_search_on_cuda_knows_its_memory(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    files = sample_files("text")
    common = ("-m", tiny("llama"), "--id", files["id"], "--target", files["target"], "--device", DEVICE)
    plan = json.loads(invoke("select", *common, "-o", tmp_path / "out", "--dry-run", "--json"))
    assert plan["device"].startswith(DEVICE)
    assert 0 < plan["peak_memory_bytes"] < torch.cuda.mem_get_info()[1]
    invoke("select", *common, "-o", tmp_path / "out")
    selection = read(tmp_path / "out" / "selection.json", Selection)
    assert selection.cost.layer_forwards <= plan["layer_forwards"]["most"]


# --- benchmarks -----------------------------------------------------------------------------


def test_training_by_a_graph_of_kernels_goes_down_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    from benchmarks.polynomial.train import Recipe
    from benchmarks.training import Descent

    recipe = Recipe(layers=2, width=32, heads=2, steps=20, warmup=5, points=8)
    losses = []
    for device in ("cpu", DEVICE):
        descent = Descent(recipe.network().to(device).train(), recipe)
        prompts = (recipe.prompts(16, step) for step in range(recipe.steps))
        losses.append([float(descent.step({"values": p, "labels": p[:, 1::2]})) for p in prompts])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)  # products in TF32
