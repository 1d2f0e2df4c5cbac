"""Layers cut out of ONNX files: what is left is the model without them, whoever wrote the file."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from conftest import NUM_LAYERS, make_decoder, make_model, make_tokenizer, text_records, write_jsonl
from onnx import TensorProto, helper
from onnx_graphs import WIDTH, Builder, pre_norm
from reports import export as export_record
from transformers import AutoConfig, BertConfig

from tapioca_export import RunConfig, graphs, provenance, pruning, verify
from tapioca_export.artifacts import Damping, Export, read, sha256, write
from tapioca_export.artifacts import files as artifact_files
from tapioca_export.cli import main
from tapioca_export.errors import (
    ExportError,
    ParityError,
    TapiocaError,
    UnsupportedModelError,
    onnxruntime_errors,
)
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.exporting import graphs as exporting_graphs
from tapioca_export.graphs import cut, find_layers, stage
from tapioca_export.graphs import files as graph_files
from tapioca_export.graphs.files import write_graph
from tapioca_export.graphs.opening import Arrays, Piece
from tapioca_export.graphs.pieces import Pieces
from tapioca_export.graphs.proving import prove_outputs
from tapioca_export.models import drop_layers, load_model, mend_config_file
from tapioca_export.reporting.tables import export_table
from tapioca_export.samples import read_samples
from tapioca_export.sessions import session_on_cpu
from tapioca_export.treatments import Treatment

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], dtype=np.int64)


def cut_bytes(model: onnx.ModelProto, drop: Sequence[int]) -> onnx.ModelProto:
    found = onnx_ir.from_proto(model)
    cut(found, find_layers(found.graph), drop)
    return onnx_ir.to_proto(found)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": IDS, **feed})


# --- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "layers"),
    [
        (lambda: pre_norm(["am"] * 4), 4),
        (lambda: pre_norm(["p"] * 3), 3),
        (lambda: pre_norm(["am"] * 5, stem=True), 5),
        (lambda: pre_norm(["am"] * 4, inner=[24, 12, 12, 12]), 4),  # the first layer's MLP is wider
        (lambda: pre_norm(["am"] * 4, inner=[12, 24, 12, 24]), 4),  # every second one is
        (lambda: pre_norm(["am"] * 4, inner=[12, 12, 12, 24]), 4),
        (lambda: pre_norm(["aam"] * 3), 3),  # as with cross-attention
        (lambda: pre_norm(["am"] * 2, embeddings=7), 2),
    ],
)
def test_layers_are_counted_whatever_they_are_made_of(builder: Callable[[], Builder], layers: int) -> None:
    assert len(find_layers(onnx_ir.from_proto(builder().model()).graph)) == layers


@pytest.mark.parametrize("drop", [(0,), (1, 2), (3,), (0, 1, 3)])
@pytest.mark.parametrize("kind", ["am", "p"])
def test_what_is_left_is_the_graph_that_has_only_these_layers(kind: str, drop: tuple[int, ...]) -> None:
    whole = pre_norm([kind] * 4)
    model = whole.model()
    smaller = cut_bytes(model, drop)
    per_layer = len(pre_norm([kind] * 4).weights) - len(pre_norm([kind] * 3).weights)
    kept = [layer for layer in range(4) if layer not in drop]
    first, last = 1, 1 + 4 * per_layer  # the embedding stands before the layers, norm and head behind
    names = [w.name for w in whole.weights[:first]]
    names += [
        w.name for n in kept for w in whole.weights[first + n * per_layer : first + (n + 1) * per_layer]
    ]
    names += [w.name for w in whole.weights[last:]]
    assert [w.name for w in smaller.graph.initializer] == names
    expected = pre_norm([kind] * len(kept))
    for new, name in zip(expected.weights, names, strict=True):
        new.raw_data = next(w.raw_data for w in whole.weights if w.name == name)
    np.testing.assert_array_equal(run(smaller)[0], run(expected.model())[0])
    assert not np.allclose(run(smaller)[0], run(model)[0], atol=1e-3)


def test_cached_keys_go_with_their_layer_and_the_others_move_up() -> None:
    smaller = cut_bytes(pre_norm(["am"] * 4, cached=True).model(), [0, 2])
    assert [value.name for value in smaller.graph.input] == [
        "input_ids", "past_key_values.0.key", "past_key_values.1.key",
    ]  # fmt: skip
    assert [value.name for value in smaller.graph.output] == ["logits", "present.0.key", "present.1.key"]


def test_an_input_with_a_number_in_its_name_is_no_cache() -> None:
    """TorchScript calls inputs so that are not named."""
    builder = pre_norm(["am"] * 3)
    builder.inputs[0].name = builder.nodes[0].input[1] = "input.1"
    smaller = cut_bytes(builder.model(), [0])
    assert [value.name for value in smaller.graph.input] == ["input.1"]


def test_a_length_read_of_a_dropped_cache_is_read_of_another() -> None:
    builder = pre_norm(["am"] * 3, cached=True)
    builder.nodes.append(helper.make_node("Shape", ["past_key_values.0.key"], ["length"], start=1, end=2))
    builder.outputs.append(helper.make_tensor_value_info("length", TensorProto.INT64, [1]))
    smaller = cut_bytes(builder.model(), [0])
    feed = {f"past_key_values.{n}.key": np.ones((2, 3, WIDTH), np.float32) for n in range(2)}
    assert run(smaller, **feed)[-1].tolist() == [3]


@pytest.mark.parametrize("drop", [[2], [1, 2], [0]])
def test_the_last_hidden_state_keeps_its_name(drop: list[int]) -> None:
    builder = pre_norm(["am"] * 3)
    del builder.nodes[-2:]  # norm and head
    builder.nodes[-1].output[0] = "last_hidden_state"
    del builder.outputs[:]
    builder.output("last_hidden_state")
    smaller = cut_bytes(builder.model(), drop)
    assert [value.name for value in smaller.graph.output] == ["last_hidden_state"]
    assert run(smaller)[0].shape == (2, 6, WIDTH)


# --- what cannot be cut -----------------------------------------------------------------------


def two_towers() -> Builder:
    builder = pre_norm(["am"] * 2)
    stream = builder.node("Gather", builder.weight(10, WIDTH), "pixels")
    builder.inputs.append(helper.make_tensor_value_info("pixels", TensorProto.INT64, ["batch", "patches"]))
    for _ in range(3):
        stream = builder.node("Add", stream, builder.attention(builder.norm(stream)))
        stream = builder.node("Add", stream, builder.mlp(builder.norm(stream)))
    builder.nodes[-1].output[0] = "image_embeds"
    builder.output("image_embeds")
    return builder


def no_residual() -> Builder:
    builder = Builder()
    stream = builder.node("Gather", builder.weight(10, WIDTH), "input_ids")
    for _ in range(3):
        stream = builder.mlp(builder.attention(stream))
    builder.output(stream)
    return builder


def last_without_its_norm() -> Builder:
    builder = Builder()
    stream = builder.norm(builder.node("Gather", builder.weight(10, WIDTH), "input_ids"))
    for layer in range(3):
        stream = builder.norm(builder.node("Add", stream, builder.attention(stream)))
        stream = builder.node("Add", stream, builder.mlp(stream))
        stream = builder.norm(stream) if layer < 2 else builder.node("Tanh", stream)
    builder.output(builder.linear(stream))
    return builder


def shown_states() -> Builder:
    builder = pre_norm(["am"] * 3)
    sums = [node.output[0] for node in builder.nodes if node.op_type == "Add"]
    builder.output(sums[1])
    return builder


def gathered_attention() -> Builder:
    builder = pre_norm(["am"] * 3)
    scores = [node.output[0] for node in builder.nodes if node.op_type == "Softmax"]
    builder.output(builder.node("Concat", *scores, axis=0))
    return builder


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (two_towers, "2 chains of blocks (3, 2)"),
        (no_residual, "No chain of residual blocks"),
        (last_without_its_norm, "The last block of the graph ends otherwise than the others"),
        (lambda: pre_norm(["mmam"] * 3), "do not begin with attention"),
        (shown_states, "shows what layer 0 computes"),
        (gathered_attention, "shows what layer 0 computes"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(builder: Callable[[], Builder], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(reason)):
        cut_bytes(builder().model(), [0])


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        ([4], "Layer 4 does not exist"),
        ([0, 1, 2, 3], "All 4"),
        ([-1], "Layer -1 does not exist"),
        ([1, 1], "Layer 1 is named twice"),
    ],
)
def test_layers_that_are_not_there_are_refused(drop: list[int], reason: str) -> None:
    with pytest.raises(TapiocaError, match=reason):
        cut_bytes(pre_norm().model(), drop)


# --- files of exporters -----------------------------------------------------------------------


class Logits(torch.nn.Module):
    """What `torch.onnx.export` takes: tensors in, a tensor out."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask).logits


def scripted(network: torch.nn.Module, path: Path) -> Path:
    """Export by TorchScript, as Optimum does."""
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[0, 5:] = 0
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():  # the old exporter warns of itself and of every branch it takes
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits(network), (torch.randint(3, 100, (2, 8)), mask), str(path), dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
        )  # fmt: skip
    return path


def fused(path: Path, model_type: str) -> Path:
    """Fuse the file as Optimum's O2 does."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions(model_type)
    optimised = optimize_model(
        str(path), model_type, num_heads=4, hidden_size=32, optimization_options=options, opt_level=1
    )
    optimised.save_model_to_file(str(path.with_suffix(".fused.onnx")))
    return path.with_suffix(".fused.onnx")


def pruned(network: torch.nn.Module, drop: Sequence[int], folder: Path) -> torch.nn.Module:
    """Return the network without layers, as the checkpoint's prune makes it."""
    network.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return drop_layers(load_model(folder), drop).network


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test_files_of_torchscript_plain_and_fused(family: str, tmp_path: Path) -> None:
    network = make_model(family)
    network.config.use_cache = False
    files = [scripted(network, tmp_path / "model.onnx")]
    if family in ("bert", "gpt2"):
        files.append(fused(files[0], family))
        fused_nodes = Counter(node.op_type for node in onnx.load(files[1]).graph.node)
        assert fused_nodes["SkipLayerNormalization"] >= 4
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    for drop in ((0,), (1, 3), (0, 1, 2)):
        smaller = pruned(network, drop, tmp_path / "checkpoint")
        with torch.no_grad():
            want = smaller(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(mask)).logits.numpy()
        for file in files:
            model = cut_bytes(onnx.load(file), drop)
            made = {""} | {value.name for value in (*model.graph.input, *model.graph.initializer)}
            for node in model.graph.node:  # ONNX wants what a node reads to stand before it
                assert set(node.input) <= made
                made |= set(node.output)
            np.testing.assert_allclose(run(model, attention_mask=mask)[0], want, atol=1e-5)
    if len(files) > 1:  # what was fused stays fused
        left = Counter(node.op_type for node in cut_bytes(onnx.load(files[1]), (1, 3)).graph.node)
        assert left["SkipLayerNormalization"] == fused_nodes["SkipLayerNormalization"] - 4


# --- the command ------------------------------------------------------------------------------


def cli(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a checkpoint, its export with a cache, and rows."""
    folder = tmp_path_factory.mktemp("decoder")
    make_decoder("llama").save_pretrained(folder / "model")
    make_tokenizer("llama").save_pretrained(folder / "model")
    for name, step in (("rows", 1), ("target", 2)):
        rows = [{"prompt": f"w{n} w{n + step}", "answer": f"w{n} w{n * step}"} for n in range(40)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    common = ("-t", "text-generation", "--id", folder / "rows.jsonl")
    cli("export", "-m", folder / "model", *common, "-o", folder / "export")
    return {
        "model": folder / "model",
        "export": folder / "export",
        "rows": folder / "rows.jsonl",
        "target": folder / "target.jsonl",
    }


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2", "polynomial"])
def test_the_config_beside_a_file_is_that_of_the_pruned_checkpoint(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    mend_config_file(tiny(family), tmp_path, [1, 2], NUM_LAYERS)
    smaller = drop_layers(load_model(tiny(family)), [1, 2]).network.config.to_dict()
    mended = AutoConfig.from_pretrained(tmp_path).to_dict()
    for name in ("num_hidden_layers", "n_layer", "layer_types"):
        assert mended.get(name) == smaller.get(name)
    with pytest.raises(UnsupportedModelError, match=f"tells of {NUM_LAYERS} layers, the graph has 6"):
        mend_config_file(tiny(family), tmp_path, [1], 6)


def exported(tmp_path: Path) -> Path:
    """Write a graph with its weights inside, beside a config and records as an export has them."""
    file = tmp_path / "whole" / "model.onnx"
    BertConfig(num_hidden_layers=4).save_pretrained(file.parent)
    onnx.save(pre_norm().model(), file)
    write(file.with_name("export.json"), export_record(files={"model.onnx": sha256(file)}, drop=()))
    provenance.record_folder(file.parent, "export", RunConfig(model="checkpoint"), {})
    return file


def test_a_file_that_changes_while_it_is_cut_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record would have the hash of another."""
    file, prune_graph = exported(tmp_path), graphs.prune_graph

    def overtaken(*given: Any, **more: Any) -> graphs.Cut:
        found = prune_graph(*given, **more)
        file.touch()
        return found

    monkeypatch.setattr(graphs, "prune_graph", overtaken)
    found = CliRunner().invoke(main, ["prune", str(file), "--drop", "1", "-o", str(tmp_path / "cut")])
    assert found.exit_code == 1
    assert "model.onnx changed while it was read" in found.output
    assert not (tmp_path / "cut").exists()


def test_an_export_with_its_config_is_cut_without_transformers(tmp_path: Path) -> None:
    arguments = ["prune", str(exported(tmp_path)), "--drop", "1", "-o", str(tmp_path / "cut")]
    code = (
        "import sys\nfrom tapioca_export.cli import main\n"
        f"main({arguments}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "[]"
    assert BertConfig.from_pretrained(tmp_path / "cut").num_hidden_layers == 3


@pytest.mark.parametrize("proof", ["logits", "weights"])
def test_a_file_and_what_is_cut_out_of_it_are_parsed_and_hashed_once(
    proof: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, parse = exported(tmp_path), onnx.load_model
    parsed: list[Path] = []
    hashed: list[Path] = []

    def parsing(path: Path, *given: object, **settings: object) -> onnx.ModelProto:
        parsed.append(path)
        return parse(path, *given, **settings)  # type: ignore[arg-type]

    def hashing(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(onnx, "load_model", parsing)
    for module in (provenance, artifact_files, pruning, stage):
        monkeypatch.setattr(module, "sha256", hashing)
    cli("prune", file, "--drop", "1", "--proof", proof, "-o", tmp_path / "cut")
    for paths in (parsed, [path for path in hashed if path.name == file.name]):
        assert len(paths) == len(set(paths)) == 2  # the second is what was written, read back
    assert verify(tmp_path / "cut").passed


def weights(file: Path) -> Counter[bytes]:
    return Counter(w.raw_data for w in onnx.load(file).graph.initializer if len(w.dims) > 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the oldest transformers has no fusions")
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_files_in_the_operators_of_cuda_are_cut(family: str, tmp_path: Path) -> None:
    """In which attention multiplies by itself, and a norm holds the end of the layer before it."""
    make_model(family).save_pretrained(tmp_path / "model")
    make_tokenizer(family).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    rows = write_jsonl(tmp_path / "rows.jsonl", text_records(16, 0, labelled=False))
    samples = read_samples(rows, model.task.rows({}, model.processor), role="parity")
    settings = ExportSettings(dtype="fp16", treatment=Treatment("O4"))
    for name, drop in (("whole", ()), ("smaller", (1, 2))):
        (tmp_path / name).mkdir()
        export_model(drop_layers(model, drop), samples, tmp_path / name, settings)
    whole, smaller = (onnx.load(tmp_path / name / "model.onnx") for name in ("whole", "smaller"))
    cut_file = cut_bytes(whole, (1, 2))
    counts = [Counter(node.op_type for node in model.graph.node) for model in (cut_file, smaller)]
    assert counts[0] == counts[1]
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(*(run(model, attention_mask=mask)[0] for model in (cut_file, smaller)))
    cli("prune", tmp_path / "whole" / "model.onnx", "--drop", "1,2", "-o", tmp_path / "pruned")
    fused = [read(tmp_path / name / "export.json", Export).fusions for name in ("pruned", "smaller")]
    assert fused[0] == fused[1]
    onnx.save(cut_file, tmp_path / "cut.onnx")
    files = (tmp_path / "whole" / "model.onnx", tmp_path / "cut.onnx")
    difference, limit = prove_outputs(*files, [1, 2])
    assert difference <= limit / 3
    for wrong in ([0, 1], [0, 3], [2, 3]):
        with pytest.raises(ParityError, match="differs by"):
            prove_outputs(*files, wrong, 3 * limit)


@pytest.mark.slow
def test_a_cut_file_is_the_export_of_the_pruned_checkpoint(decoder: dict[str, Path], tmp_path: Path) -> None:
    cli("prune", decoder["export"] / "model.onnx", "--drop", "0,2", "-o", tmp_path / "cut")
    cli("prune", "-m", decoder["model"], "-t", "text-generation", "--drop", "0,2", "-o", tmp_path / "pruned")
    cli(
        "export", "-m", tmp_path / "pruned", "-t", "text-generation", "--id", decoder["rows"],
        "-o", tmp_path / "again",
    )  # fmt: skip
    assert weights(tmp_path / "cut" / "model.onnx") == weights(tmp_path / "again" / "model.onnx")
    sessions = [
        onnxruntime.InferenceSession(str(tmp_path / name / "model.onnx")) for name in ("cut", "again")
    ]
    feed = {
        value.name: np.random.default_rng(0).normal(size=(3, 2, 4, 8)).astype(np.float32)
        for value in sessions[1].get_inputs()
        if value.name.startswith("past")
    }
    feed["input_ids"], feed["attention_mask"] = np.full((3, 5), 7), np.ones((3, 9), np.int64)
    if "position_ids" in {value.name for value in sessions[1].get_inputs()}:
        feed["position_ids"] = np.tile(np.arange(4, 9), (3, 1))
    names = [[value.name for value in session.get_outputs()] for session in sessions]
    assert names[0] == names[1]
    for one, other in zip(*(session.run(None, feed) for session in sessions), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("cut", "again")]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"] == 2
    assert (tmp_path / "cut/genai_config.json").read_text() == (
        tmp_path / "again/genai_config.json"
    ).read_text()


@pytest.mark.slow
def test_a_cut_file_is_benchmarked_like_any_export(decoder: dict[str, Path], tmp_path: Path) -> None:
    cli("prune", decoder["export"] / "model.onnx", "--drop", "1", "-o", tmp_path / "cut")
    export = json.loads((tmp_path / "cut" / "export.json").read_text())
    assert export["drop"] == [1]
    assert json.loads((tmp_path / "cut" / "selection.json").read_text())["task"] == "text-generation"
    assert len(export["cache"]) == 6
    assert export["reference"] == "the whole file, run in pieces on made-up inputs"
    assert 0 <= export["max_abs_difference"] <= export["tolerance"]
    output = cli(
        "benchmark", decoder["export"], tmp_path / "cut", "--id", decoder["rows"], "--json",
        "--target", decoder["target"], "-o", tmp_path / "benchmark", "--batch-size", "1",
        "--num-threads", "1", "--iterations", "2", "--warmup", "1",
    )  # fmt: skip
    accuracy = json.loads(output)["accuracy"]
    assert set(accuracy) == {"id", "target"}, output


def external(tmp_path: Path, builder: Builder) -> Path:
    """Write a graph whose weights are in a file beside it."""
    folder = tmp_path / "whole"
    folder.mkdir(exist_ok=True)
    onnx.save(
        builder.model(), folder / "model.onnx", save_as_external_data=True, location="model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    return folder / "model.onnx"


@pytest.mark.parametrize("proof", ["logits", "weights"])
def test_weights_beside_a_file_stay_where_they_are(proof: str, tmp_path: Path) -> None:
    file = external(tmp_path, pre_norm(cached=True))
    output = cli("prune", file, "--drop", "1,2", "--proof", proof, "-o", tmp_path / "cut")
    assert "2 of 4 layers (dropped: 1, 2)" in output
    new, old = tmp_path / "cut" / "model.onnx_data", file.with_name("model.onnx_data")
    assert new.stat().st_ino == old.stat().st_ino
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "model.onnx", "model.onnx_data", "provenance.json", "selection.json",
    ]  # fmt: skip
    expected = cut_bytes(pre_norm(cached=True).model(), [1, 2])
    feed = {f"past_key_values.{n}.key": np.ones((2, 3, WIDTH), np.float32) for n in range(2)}
    session = onnxruntime.InferenceSession(str(tmp_path / "cut" / "model.onnx"))
    for one, other in zip(session.run(None, {"input_ids": IDS, **feed}), run(expected, **feed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_are_copied_are_read_as_the_two_files_that_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cut = external(tmp_path, pre_norm()), tmp_path / "cut"
    monkeypatch.setattr(graph_files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "no")))
    cli("prune", file, "--drop", "1", "-o", cut)
    assert not (cut / "model.onnx_data").samefile(file.with_name("model.onnx_data"))
    assert {check.state for check in verify(cut).files} == {"same"}


@pytest.mark.parametrize("proof", ["logits", "weights"])
def test_linked_weights_are_read_for_the_record_only_where_outputs_are_proven(
    proof: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cut = external(tmp_path, pre_norm()), tmp_path / "cut"
    read_files: list[str] = []

    def hashed(path: Path) -> str:
        read_files.append(path.name)
        return sha256(path)

    for module in (provenance, artifact_files, pruning):
        monkeypatch.setattr(module, "sha256", hashed)
    cli("prune", file, "--drop", "1", "--proof", proof, "-o", cut)
    assert read_files.count("model.onnx_data") == (proof == "logits")  # one file under two names
    found = verify(cut)
    states = {check.path: check.state for check in found.files if check.role == "output"}
    weights = cut / "model.onnx_data"
    is_read = proof == "logits"
    assert states["model.onnx_data"] == ("same" if is_read else "not compared")
    assert found.passed
    assert {check.state for check in found.files if check.role == "input"} == {"same"}
    assert not verify(cut, strict=True).passed or is_read
    weights.unlink()  # a link: the source keeps its weights
    weights.write_bytes(file.with_name("model.onnx_data").read_bytes()[:-1])
    assert ("model.onnx_data", "changed") in [(c.path, c.state) for c in verify(cut).files]


@pytest.mark.slow
def test_large_weights_stand_beside_an_export_and_a_cut_knows_them_by_the_exporters_hash(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting_graphs, "INLINE_WEIGHTS_BYTES", 1000)
    cli("export", "-m", tiny("bert"), "--id", sample_files("bert")["id"], "-o", tmp_path / "whole")
    cut, name = tmp_path / "cut", "model.onnx_data"
    whole = read(tmp_path / "whole" / "export.json", Export)
    assert list(whole.files) == ["model.onnx", name]
    assert whole.size_bytes == sum((tmp_path / "whole" / file).stat().st_size for file in whole.files)
    cli("prune", tmp_path / "whole" / "model.onnx", "--drop", "1", "--proof", "weights", "-o", cut)
    assert read(cut / "export.json", Export).files == {
        file: sha256(cut / file) for file in ("model.onnx", name)
    }
    assert verify(cut).files[0].state == "same"
    assert {c.state for c in verify(cut).files if c.path == name} == {"same"}
    changed = bytearray((cut / name).read_bytes())
    changed[-1] ^= 1
    (cut / name).unlink()
    (cut / name).write_bytes(changed)
    assert {c.state for c in verify(cut).files if c.path == name} == {"changed"}


def test_a_selection_of_the_checkpoint_cuts_its_file(tmp_path: Path) -> None:
    file = external(tmp_path, pre_norm())
    chosen = {
        "kind": "selection", "schema_version": 1, "model": "m", "task": "text-classification",
        "criterion": "tale", "num_layers": 4, "drop": [3], "steps": [], "stop_reason": "done",
    }  # fmt: skip
    (tmp_path / "selection.json").write_text(json.dumps(chosen))
    cli("prune", file, "--selection", tmp_path / "selection.json", "-o", tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "selection.json").read_text())["drop"] == [3]
    (tmp_path / "selection.json").write_text(json.dumps({**chosen, "num_layers": 6}))
    result = CliRunner().invoke(
        main,
        ["prune", str(file), "--selection", str(tmp_path / "selection.json"), "-o", str(tmp_path / "other")],
    )
    assert result.exit_code == 1
    assert "for 6 layers (m)" in result.output
    assert not (tmp_path / "other").exists()


def test_a_cut_file_is_cut_no_more_and_takes_nothing_hidden_along(tmp_path: Path) -> None:
    file = external(tmp_path, pre_norm())
    for name in (".env", "LICENSE"):
        file.with_name(name).write_text("TOKEN=1")
    cli("prune", file, "--drop", "1", "-o", tmp_path / "cut")
    assert (tmp_path / "cut" / "LICENSE").exists()
    assert not (tmp_path / "cut" / ".env").exists()
    again = ["prune", str(tmp_path / "cut" / "model.onnx"), "--drop", "1", "-o", str(tmp_path / "other")]
    result = CliRunner().invoke(main, again)
    assert result.exit_code == 1
    assert "was pruned before (layers 1 are gone or damped)" in result.output
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("proof", "said"), [("logits", "run in pieces"), ("weights", "nothing was run")])
def test_the_record_of_a_cut_export_says_what_was_compared(proof: str, said: str, tmp_path: Path) -> None:
    file = external(tmp_path, pre_norm())
    record = export_record(files={"model.onnx": sha256(file)}, drop=())
    write(file.with_name("export.json"), record)
    cli("prune", file, "--drop", "1", "--proof", proof, "-o", tmp_path / "cut")
    made = read(tmp_path / "cut" / "export.json", Export)
    assert said in str(made.note)
    assert (made.max_abs_difference is None) == (proof == "weights")
    about = dict(row[:2] for row in export_table({"cut": made}).rows)["largest difference"]
    assert (about == "not run") == (proof == "weights")
    for before in (replace(record, drop=(2,)), replace(record, damp=(Damping(2, 0.5),))):
        write(file.with_name("export.json"), before)
        again = CliRunner().invoke(main, ["prune", str(file), "--drop", "1", "-o", str(tmp_path / "other")])
        assert "of a model that was pruned before" in again.output


def test_a_changed_weight_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_another(model: onnx_ir.Model, file: Path, source: Path) -> None:
        weight = next(iter(model.graph.initializers.values()))
        weight.const_value = onnx_ir.tensor(weight.const_value.numpy() + 1e-6, name=weight.name)
        write_graph(model, file, source)

    onnx.save(pre_norm().model(), tmp_path / "model.onnx")
    monkeypatch.setattr(stage, "write_graph", write_another)
    arguments = ["prune", str(tmp_path / "model.onnx"), "--drop", "1", "--proof", "weights"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "cut")])
    assert result.exit_code == 1
    assert "the weight weight_0 is not that of the file it was cut from" in result.output
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["model.onnx.invalid"]


def test_a_wrong_cut_is_found(tmp_path: Path) -> None:
    """The proof runs the source in pieces, and so does not believe what was cut."""
    file = external(tmp_path, pre_norm(cached=True))
    for wrong in ([1], [2]):
        model = onnx_ir.load(file)
        cut(model, find_layers(model.graph), wrong)
        onnx_ir.save(model, file.with_name("cut.onnx"))
        if wrong == [1]:
            assert prove_outputs(file, file.with_name("cut.onnx"), [1], 1e-4)[0] <= 1e-5
        else:
            with pytest.raises(ParityError, match=r"without layers 1: .* differs by"):
                prove_outputs(file, file.with_name("cut.onnx"), [1], 1e-4)


def test_hidden_states_between_dropped_layers_are_proven(tmp_path: Path) -> None:
    """One is of the layers that are left before it, not of all before it."""
    builder = pre_norm(["am"] * 5)
    ends = [node.output[0] for node in builder.nodes if node.op_type == "Add"][1::2]
    for layer in (0, 2):
        builder.output(ends[layer])
    file = external(tmp_path, builder)
    model = onnx_ir.load(file)
    cut(model, find_layers(model.graph), [1, 3])
    onnx_ir.save(model, file.with_name("cut.onnx"))
    assert prove_outputs(file, file.with_name("cut.onnx"), [1, 3], 1e-4)[0] <= 1e-5


def embedded() -> onnx.ModelProto:
    """A graph whose stream is its input: nothing is computed before the first layer."""
    model = pre_norm(["am"] * 4).model()
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    model.graph.node.remove(gather)
    for node in model.graph.node:
        node.input[:] = ["inputs_embeds" if name == gather.output[0] else name for name in node.input]
    del model.graph.input[:]
    stream = helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", WIDTH])
    model.graph.input.append(stream)
    return model


def listing_weights() -> onnx.ModelProto:
    """A graph whose weights are inputs as well, as up to version 3 of the format."""
    model = pre_norm(["am"] * 4).model()
    for weight in model.graph.initializer:
        given = helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        model.graph.input.append(given)
    return model


def branching() -> onnx.ModelProto:
    """A graph whose logits go through an `If` that reads what is computed outside it."""
    model = pre_norm(["am"] * 4).model()
    graph = model.graph
    graph.node[-1].output[0] = "raw"
    branches = []
    for name, op in (("then_branch", "Identity"), ("else_branch", "Neg")):
        inner = helper.make_graph(
            [helper.make_node("If", ["on"], [f"{name}_out"], **{
                side: helper.make_graph(
                    [helper.make_node(op, ["raw"], [f"{name}_{side}"])], side, [],
                    [helper.make_tensor_value_info(f"{name}_{side}", TensorProto.FLOAT, None)],
                )
                for side in ("then_branch", "else_branch")
            })],
            name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )  # fmt: skip
        branches.append((name, inner))
    on = helper.make_node(
        "Constant", [], ["on"], value=helper.make_tensor("on", TensorProto.BOOL, [], [True])
    )
    graph.node.extend([on, helper.make_node("If", ["on"], ["logits"], **dict(branches))])
    return model


@pytest.mark.parametrize("drop", [[0], [1], [0, 2], [3]])
@pytest.mark.parametrize("make", [embedded, listing_weights, branching])
def test_graphs_of_unusual_forms_are_cut_and_proven(
    make: Callable[[], onnx.ModelProto], drop: list[int], tmp_path: Path
) -> None:
    onnx.save(make(), tmp_path / "model.onnx")
    model = onnx_ir.load(tmp_path / "model.onnx")
    cut(model, find_layers(model.graph), drop)
    onnx_ir.save(model, tmp_path / "cut.onnx")
    assert prove_outputs(tmp_path / "model.onnx", tmp_path / "cut.onnx", drop, 1e-4)[0] <= 1e-5


def test_a_file_in_the_cache_of_the_hub_is_cut_and_proven(tmp_path: Path) -> None:
    """There a model's files are links to others of other names."""
    file = external(tmp_path, pre_norm())
    for number, path in enumerate(sorted(file.parent.iterdir())):
        blob = tmp_path / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(blob)
    cli("prune", file, "--drop", "1", "-o", tmp_path / "cut")
    pieces = Pieces(file, 1)  # as `profile` and `select` run it
    stream, beside = pieces.before({"input_ids": IDS})
    for layer in (0, 2, 3):
        stream = pieces.layer(layer, stream, beside)
    (want,) = onnxruntime.InferenceSession(tmp_path / "cut" / "model.onnx").run(None, {"input_ids": IDS})
    np.testing.assert_allclose(pieces.behind(stream, beside)["logits"], want, atol=1e-5)


def test_what_a_session_raises_is_not_logged_as_well(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ("x", "y")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in names)
    shape = onnx.numpy_helper.from_array(np.array([1]), "shape")
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "one", [x], [y], [shape])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "one.onnx")
    session = session_on_cpu(tmp_path / "one.onnx")
    with pytest.raises(onnxruntime_errors()):
        session.run(None, {"x": np.zeros(2, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_reads_one_text_at_a_time_is_proven_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-genai's: `batch_size must be 1 when sequence_length > 1 and past context is given`."""
    run, sizes = Piece.run, []

    def refuse(piece: Piece, inputs: Arrays, stream: np.ndarray | None) -> list[np.ndarray]:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise RuntimeError("batch_size must be 1")
        return run(piece, inputs, stream)

    monkeypatch.setattr(Piece, "run", refuse)
    file = external(tmp_path, pre_norm(cached=True))
    model = onnx_ir.load(file)
    cut(model, find_layers(model.graph), [1])
    onnx_ir.save(model, file.with_name("cut.onnx"))
    most = 1
    assert prove_outputs(file, file.with_name("cut.onnx"), [1], 1e-4)[0] <= 1e-5
    assert sizes == [2, 1, 1]
    most = 0  # what does not run at all is refused as before
    with pytest.raises(ExportError, match="batch_size must be 1"):
        prove_outputs(file, file.with_name("cut.onnx"), [1], 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx", "--drop", "1"], "There is no file"),
        (["{file}", "--drop", "9"], "Layer 9 does not exist: the model has 4 layers"),
        (["{file}", "--drop", "1,1"], "Layer 1 is named twice"),
        (["{foreign}", "--drop", "1"], "genai_config.json beside the graph tells of no decoder"),
        (["NOWHERE.ONNX", "--drop", "1"], "There is no file"),
        (["checkpoint", "--drop", "1"], "a checkpoint is named by --model"),
        (["{file}", "--drop", "encoder:1"], "has no layer encoder:1"),
        (["{file}"], "Give either --drop or --selection"),
        (["{file}", "-m", "model", "--drop", "1"], "Give either an ONNX FILE or --model"),
        (["{text}", "--drop", "1"], "is not an ONNX model"),
        (["{empty}", "--drop", "1"], "is not an ONNX model: it has no graph"),
        (["-m", "model", "--drop", "1", "--atol", "1e-3"], "--atol is for ONNX files"),
        (["{orphan}", "--drop", "1"], "has its weights in 'model.onnx_data', which is not there"),
        (["{thief}", "--drop", "1"], "outside its own folder"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    file = external(tmp_path, pre_norm())
    places = {"file": file, "text": tmp_path / "text.onnx", "orphan": tmp_path / "orphan.onnx"}
    places["thief"] = tmp_path / "thief.onnx"
    places["text"].write_text("no model")
    places["empty"] = tmp_path / "empty.onnx"
    places["empty"].touch()
    places["foreign"] = tmp_path / "foreign" / "model.onnx"
    places["foreign"].parent.mkdir()
    onnx.save(pre_norm().model(), places["foreign"])
    places["foreign"].with_name("genai_config.json").write_text('{"model": {}}')
    places["orphan"].write_bytes(file.read_bytes())
    thief = onnx.load(file, load_external_data=False)
    for weight in thief.graph.initializer:
        weight.external_data[0].value = "../whole/model.onnx_data"
    places["thief"].write_bytes(thief.SerializeToString())
    given = [argument.format(**{name: str(path) for name, path in places.items()}) for argument in arguments]
    result = CliRunner().invoke(main, ["prune", *given, "-o", str(tmp_path / "cut")])
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "cut").exists()
