"""Graphs that are optimised and quantised: what they compute, what they lose, which layers are fused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import NUM_LAYERS, text_records, write_jsonl
from test_generation import make_model, make_rows
from test_text2text import network_of, rows_of, save, write_rows
from test_treated_tasks import of_a_decoder

from tapioca_export import RunConfig, reading
from tapioca_export import export as run_export
from tapioca_export.artifacts import Benchmark, Export, Fusions, read
from tapioca_export.benchmarking import BenchmarkSettings
from tapioca_export.benchmarking.pairing import compare_fusions, open_pair
from tapioca_export.benchmarking.runtimes import read_export_folder
from tapioca_export.cli import main
from tapioca_export.errors import BenchmarkError, ConfigError, ExportError, ParityError, UnknownNameError
from tapioca_export.exporting import (
    FORMATS,
    ExportSettings,
    Written,
    export_model,
    graphs,
    optimizing,
    quantizing,
    treating,
)
from tapioca_export.exporting.attending import take_in_products, zero_whole_rows
from tapioca_export.exporting.fusing import fusions, layered
from tapioca_export.exporting.optimizing import optimize
from tapioca_export.exporting.quantizing import quantize
from tapioca_export.graphs.norms import take_apart
from tapioca_export.models import LoadedModel, drop_layers, load_model
from tapioca_export.samples import Samples, Split, read_samples
from tapioca_export.treatments import Treatment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.reliability.mutations import altering  # noqa: E402

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
Bert = tuple[LoadedModel, Samples, Path]
HAS_FUSIONS = sys.version_info >= (3, 11)  # transformers 5.23 needs it
fusing = pytest.mark.skipif(not HAS_FUSIONS, reason="the oldest transformers has no fusions")


def told_by(model: LoadedModel, rows: Samples) -> Samples:
    """Label rows by what the model says of them, so that in float32 it is always right.

    Its classes are made about as frequent as each other first, and many rows doubtful.
    """
    said = np.concatenate([model.logits(model.task.encode([row], model.processor)) for row in rows.rows])
    with torch.no_grad():
        model.network.classifier.bias -= torch.tensor(said.mean(axis=0))
    labels = (said - said.mean(axis=0)).argmax(axis=1)
    pairs = zip(rows.rows, labels.tolist(), strict=True)
    return replace(rows, rows=tuple(replace(row, label=label) for row, label in pairs))


@pytest.fixture(scope="module")
def bert(tiny: Tiny, sample_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Bert:
    """Return a classifier, rows that it is right about, and its plain export."""
    model, folder = load_model(tiny("bert")), tmp_path_factory.mktemp("bert")
    path = sample_files("bert")["target"]
    rows = told_by(model, read_samples(path, model.task.rows({}, model.processor), role="parity"))
    export_model(model, rows, folder, ExportSettings())
    return model, rows, folder


@pytest.fixture
def traced(bert: Bert, monkeypatch: pytest.MonkeyPatch) -> Bert:
    """Return the classifier and its rows; exports begin with a copy of its plain file."""
    export = read(bert[2] / "export.json", Export)

    def write(model: LoadedModel, example: object, folder: Path, dialect: object) -> Written:
        shutil.copy(bert[2] / "model.onnx", folder / "model.onnx")
        return Written(export.exporter, export.opset, export.inputs, export.outputs, ("model.onnx",))

    monkeypatch.setitem(FORMATS._entries, "onnx", replace(FORMATS["onnx"], write=write))
    return bert


@pytest.fixture
def plain(bert: Bert, tmp_path: Path) -> Path:
    """Return a copy of the plain file, to be treated."""
    return Path(shutil.copy(bert[2] / "model.onnx", tmp_path / "model.onnx"))


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)


def feeds(number: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    sizes = [int(generator.integers(3, 40)) for _ in range(number)]
    return [
        {
            "input_ids": generator.integers(4, 96, (1, size)),
            "attention_mask": np.ones((1, size), np.int64),
        }
        for size in sizes
    ]


def outputs(file: Path, number: int = 4) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds(number)]


def difference(one: Path, other: Path) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(outputs(one), outputs(other), strict=True))


def rewritten(
    graph: onnx.GraphProto, change: Callable[[onnx_ir.Graph], object], feed: Mapping[str, np.ndarray]
) -> tuple[Counter[str], list[np.ndarray], list[np.ndarray]]:
    """Change a graph; return the operators that it has then, and what it computes before and behind that."""
    domains = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    whole = onnx.helper.make_model(graph, opset_imports=domains, ir_version=10)
    model = onnx_ir.from_proto(whole)
    change(model.graph)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    changed = onnx_ir.to_proto(model)
    before, after = (
        onnxruntime.InferenceSession(some.SerializeToString()).run(None, feed) for some in (whole, changed)
    )
    return Counter(node.op_type for node in changed.graph.node), before, after


# --- optimised ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O1", pytest.param("O2", marks=fusing)])
def test_a_level_without_approximations_computes_the_same(bert: Bert, plain: Path, level: str) -> None:
    assert optimize(plain, level, "fp32")
    assert difference(plain, bert[2] / "model.onnx") < 1e-5
    assert [path.name for path in plain.parent.iterdir()] == ["model.onnx"]
    assert plain.stat().st_size < (bert[2] / "model.onnx").stat().st_size
    domains = {node.domain for node in onnx.load(plain).graph.node}
    assert domains == ({""} if level == "O1" else {"", "com.microsoft"})


@fusing
def test_o2_fuses_every_layer_and_leaves_norms_apart_from_sums(plain: Path) -> None:
    before = operators(plain)
    optimize(plain, "O2", "fp32")
    found = operators(plain)
    assert found["BiasGelu"] == found["FusedMatMul"] == NUM_LAYERS
    assert before["MatMul"] - found["MatMul"] == NUM_LAYERS  # the scores
    assert before["Reshape"] - found["Reshape"] == NUM_LAYERS - 1
    assert found["LayerNormalization"] == before["LayerNormalization"]
    # A session does not fuse them again.
    optimized = plain.with_name("session.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    assert "SkipLayerNormalization" not in operators(optimized)


def test_a_sum_that_is_fused_with_a_norm_and_a_bias_is_parted_and_equal() -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=8).astype(np.float32) for name in ("scale", "shift", "bias")}
    inputs = [onnx.helper.make_tensor_value_info(name, 1, [2, 3, 8]) for name in ("stream", "branch")]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, [2, 3, 8]) for name in ("normed", "total")]
    names = ["stream", "branch", "scale", "shift", "bias"]
    node = onnx.helper.make_node(
        "SkipLayerNormalization", names, ["normed", "", "", "total"], domain="com.microsoft", epsilon=1e-3
    )
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph([node], "norm", inputs, outputs, tensors)
    feed = {name: generator.normal(size=(2, 3, 8)).astype(np.float32) for name in ("stream", "branch")}
    found, before, after = rewritten(graph, take_apart, feed)
    assert found == {"Add": 2, "LayerNormalization": 1}
    np.testing.assert_allclose(after, before, atol=1e-5)


@fusing
def test_o3_approximates_gelu_and_says_so(bert: Bert, plain: Path) -> None:
    assert not optimize(plain, "O3", "fp32")
    assert operators(plain)["FastGelu"] == NUM_LAYERS
    assert not operators(plain).keys() & {"Gelu", "BiasGelu"}
    assert 1e-6 < difference(plain, bert[2] / "model.onnx") < 1e-2


@fusing
def test_o4_is_in_the_operators_of_cuda_and_computes_the_same(bert: Bert, plain: Path) -> None:
    before = layered(plain)
    assert not optimize(plain, "O4", "fp16")  # GELU by tanh
    found = operators(plain)
    assert found["Attention"] == found["FastGelu"] == found["Where"] == NUM_LAYERS
    assert found["SkipLayerNormalization"] == 2 * NUM_LAYERS
    assert found["LayerNormalization"] == 1  # of the embeddings
    assert not found.keys() & {"MultiHeadAttention", "Reshape", "Softmax", "Split"}
    assert found["MatMul"] + found["Gemm"] == 3 * NUM_LAYERS + 2
    fused = fusions(before, layered(plain))
    assert fused.unfused == ()
    assert fused.total["SkipLayerNormalization"] == 2 * NUM_LAYERS
    assert fused.layers == ({**fused.layers[0]},) * NUM_LAYERS
    assert fused.layers[0]["LayerNormalization"] == fused.layers[0]["SkipLayerNormalization"] == 2
    assert all(
        len(node.output) == 1
        for node in onnx.load(plain).graph.node
        if node.op_type == "SkipLayerNormalization"
    )
    assert 1e-6 < difference(plain, bert[2] / "model.onnx") < 1e-2


@fusing
def test_padding_and_rows_of_nothing_else_are_the_same_by_o4(bert: Bert, plain: Path) -> None:
    optimize(plain, "O4", "fp16")
    feed = {key: np.repeat(value, 4, axis=0) for key, value in feeds(1)[0].items()}
    feed["attention_mask"][1, 3:] = 0  # padded behind, before, and nothing but padding
    feed["attention_mask"][2, :-3] = 0
    feed["attention_mask"][3] = 0
    found = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for file in (plain, bert[2] / "model.onnx")
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)
    assert np.abs(found[1][3] - found[1][0]).max() > 0.1


def taken_in(
    biased: Mapping[str, int], *, sizes: Sequence[int] = (8, 8, 12), also_read: str = ""
) -> Counter[str]:
    """Return the operators of attention that took in one packed product, after it has computed the same.

    `biased` has the sizes of what is added to parts of the product.
    """
    names, generator = ("query", "key", "value", "rest")[: len(sizes)], np.random.default_rng(0)
    tensors = {"packed": generator.normal(size=(8, sum(sizes))), "sizes": np.array(sizes)}
    nodes = [
        onnx.helper.make_node("MatMul", ["stream", "packed"], ["product"]),
        onnx.helper.make_node("Split", ["product", "sizes"], [f"{name}_0" for name in names], axis=-1),
    ]
    given = [f"{name}_{int(name in biased)}" for name in names[:3]]
    for name, size in biased.items():
        tensors[f"{name}_bias"] = generator.normal(size=size)
        nodes.append(onnx.helper.make_node("Add", [f"{name}_bias", f"{name}_0"], [f"{name}_1"]))
    nodes.append(
        onnx.helper.make_node("MultiHeadAttention", given, ["out"], domain="com.microsoft", num_heads=4)
    )
    weights = [
        onnx.numpy_helper.from_array(array if name == "sizes" else array.astype(np.float32), name)
        for name, array in tensors.items()
    ]
    name, _, copy = also_read.partition(" ")  # a value of the graph, or what a copy of it is called
    if copy:
        nodes.append(onnx.helper.make_node("Identity", [name], [copy]))
    ends = {"stream": 8, "out": sizes[2]} | ({copy or name: None} if also_read else {})
    values = [onnx.helper.make_tensor_value_info(name, 1, [2, 5, size]) for name, size in ends.items()]
    graph = onnx.helper.make_graph(nodes, "attention", values[:1], values[1:], weights)
    feed = {"stream": generator.normal(size=(2, 5, 8)).astype(np.float32)}
    found, before, after = rewritten(graph, take_in_products, feed)
    np.testing.assert_allclose(after[0], before[0], atol=1e-5)
    return found


@pytest.mark.parametrize(
    "biased",
    [
        {},
        {"query": 8, "key": 8, "value": 12},
        {"query": 8, "value": 12},
        {"key": 8},
        {"query": 1, "value": 1},
    ],
)
def test_one_operator_multiplies_for_query_key_and_value(biased: dict[str, int]) -> None:
    """Whatever of the three has something added to it, as in Whisper, and with another width of the value."""
    assert taken_in(biased) == {"Attention": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"also_read": "product"}, {"also_read": "key_0"}, {"also_read": "key_1"},  # as what is cached
        {"also_read": "product copy"}, {"also_read": "query_0 copy"}, {"also_read": "key_1 copy"},
        {"sizes": (8, 8, 12, 4)}, {"sizes": (8, 8, 8, 8)},  # another product is packed with them
    ],
)  # fmt: skip
def test_products_that_something_else_reads_stay(options: dict[str, Any]) -> None:
    found = taken_in({"key": 8}, **options)
    assert (found["MultiHeadAttention"], found["Attention"], found["MatMul"]) == (1, 0, 1)


@pytest.mark.parametrize(("merged", "is_moved"), [((2, 4, 8), True), ((4, 2, 8), False), ((2, 8, 4), False)])
def test_rows_are_zeroed_whole_only_where_they_are_put_together_as_they_came(
    merged: tuple[int, ...], is_moved: bool
) -> None:
    """Windows of images are cut anew behind attention."""
    make = onnx.helper.make_node
    nodes = [
        make("MultiHeadAttention", ["x", "x", "x"], ["made"], domain="com.microsoft", num_heads=2),
        make("Reshape", ["made", "heads"], ["split"]),
        make("Where", ["empty", "zero", "split"], ["zeroed"]),
        make("Reshape", ["zeroed", "merged"], ["out"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array([2, 4, 2, 4]), "heads"),
        onnx.numpy_helper.from_array(np.array(merged), "merged"),
        onnx.numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info("x", 1, [2, 4, 8]),
        onnx.helper.make_tensor_value_info("empty", 9, [2, 4, 1, 1]),
    ]
    outputs = [onnx.helper.make_tensor_value_info("out", 1, merged)]
    graph = onnx.helper.make_graph(nodes, "rows", inputs, outputs, weights)
    generator = np.random.default_rng(0)
    feed = {
        "x": generator.normal(size=(2, 4, 8)).astype(np.float32),
        "empty": generator.integers(0, 2, (2, 4, 1, 1)) == 1,
    }
    found, before, after = rewritten(graph, zero_whole_rows, feed)
    assert (found["Reshape"] == 0) is is_moved
    np.testing.assert_array_equal(after[0], before[0])
    assert 0 < (after[0] == 0).mean() < 1


@fusing
def test_a_norm_that_did_not_take_in_its_sum_is_named(plain: Path) -> None:
    before = layered(plain)
    optimize(plain, "O4", "fp16")
    model = onnx_ir.load(plain)
    others = [node for node in model.graph if node.op_type == "SkipLayerNormalization"]
    others.pop(3)
    for node in others:
        node.op_type = "kept"
    take_apart(model.graph)
    for node in others:
        node.op_type = "SkipLayerNormalization"
    onnx_ir.save(model, plain)
    (found,) = fusions(before, layered(plain)).unfused
    assert "layer 1 of the file lacks 1 SkipLayerNormalization" in found


@fusing
def test_quantised_weights_are_in_products_by_o4_too(plain: Path) -> None:
    optimize(plain, "O4", "fp16", for_quantizer=True)
    quantize(plain, "int4")
    found = operators(plain)
    assert found["Attention"] == found["MatMul"] == 0
    assert found["MultiHeadAttention"] == NUM_LAYERS
    assert found["MatMulNBits"] >= 4 * NUM_LAYERS


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("sequence + past", "past + sequence"), ("a*(b + d + c)", "a*(b + d + c)"), ("batch", "batch"),
        (None, None), (7, 7),
    ],
)  # fmt: skip
def test_only_plain_sums_are_spelt_in_order(written: Any, read: Any) -> None:
    value = onnx_ir.Value(name="x", shape=onnx_ir.Shape([written, "b + a"]))
    node = onnx_ir.Node("", "Identity", [onnx_ir.Value(name="y")], outputs=[value])
    optimizing._spell_alike(onnx_ir.Graph([], [value], nodes=[node]))
    assert [getattr(dim, "value", dim) for dim in value.shape] == [read, "a + b"]


@fusing
@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "gpt2", "mistral"])
def test_every_layer_of_a_decoder_is_fused_by_o4(case: str, tmp_path: Path) -> None:
    """Of which the exporter spells the lengths of cached keys in two ways."""
    task, model, rows = of_a_decoder("text-generation", case, tmp_path)
    settings = {"task": task, "id": rows, "max_drop": 1000.0, "num_threads": 1}
    made = run_export(RunConfig(model=str(model), output=tmp_path / "out", optimize="O4", **settings))["onnx"]
    (fused,) = made.fusions.values()
    assert fused.total["MultiHeadAttention"] == len(fused.layers) == NUM_LAYERS
    # The sum that ends a layer goes with the norm of the next one.
    (skip,) = (name for name in fused.total if name.startswith("Skip"))
    assert fused.layers == ({**fused.layers[0]},) * NUM_LAYERS
    assert fused.layers[0][skip] == 1
    assert fused.unfused == ()


@fusing
@pytest.mark.slow
def test_o3_is_exact_where_there_is_no_gelu_to_approximate(tmp_path: Path) -> None:
    model = make_model("llama")
    settings = ExportSettings(treatment=Treatment("O3"))
    export = export_model(model, make_rows(model), tmp_path, settings)
    assert export.tolerance == 1e-4 >= export.max_abs_difference
    assert (export.token_agreement, export.loss.drop) == (1.0, 0)
    (fused,) = export.fusions.values()
    assert fused.layers == ({**fused.layers[0]},) * 2  # of four, two were dropped
    assert fused.layers[0]["RotaryEmbedding"] == 2
    assert fused.layers[0]["SimplifiedLayerNormalization"] == 2
    assert "SkipSimplifiedLayerNormalization" not in fused.total
    assert export.inputs[3:] == tuple(export.cache)
    assert fused.unfused == ()
    # One token at a time: a packed product saves more calls than its split costs.
    assert operators(tmp_path / "model.onnx")["Split"] == 2 * 2  # query, key and value; gate and up


@fusing
@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt2", "opt", "qwen3", "gemma2", "bloom", "falcon-grouped"])
def test_optimised_decoders_generate_the_tokens_of_pytorch(case: str, tmp_path: Path) -> None:
    model = make_model(case)
    export = export_model(model, make_rows(model), tmp_path, ExportSettings(treatment=Treatment("O2")))
    assert (export.token_agreement, export.loss.drop) == (1.0, 0)
    assert len(export.fusions["model.onnx"].layers) == 2


@fusing
@pytest.mark.parametrize("case", ["llama", "bloom"])  # with positions as inputs, and without
def test_what_a_quantised_decoder_loses_is_measured(case: str, tmp_path: Path) -> None:
    model = make_model(case)
    rows = make_rows(model)
    settings = ExportSettings(treatment=Treatment(None, "int8"), max_drop=1.0)
    export = export_model(model, rows, tmp_path, settings)
    assert (export.loss.metric, export.loss.rows) == ("exact_match", len(rows))


@fusing
@pytest.mark.slow
def test_an_encoder_decoder_is_treated_in_all_its_graphs(tmp_path: Path) -> None:
    model = load_model(save(network_of("bart"), tmp_path / "model"))
    rows = rows_of(model, write_rows(tmp_path / "rows.jsonl", "id"))
    (folder := tmp_path / "export").mkdir()
    settings = ExportSettings(treatment=Treatment("O2", "int8"), max_drop=1.0)
    export = export_model(model, rows, folder, settings)
    assert export.loss is not None
    assert set(export.fusions) == set(export.files)
    assert len(export.fusions["encoder_model.onnx"].layers) == 3
    for name in export.files:
        assert operators(folder / name)["MatMulInteger"]
    again = replace(settings, treatment=Treatment(None, "int8", calibration_samples=4))
    with pytest.raises(ExportError, match="comes from the encoder"):
        export_model(model, rows, folder, again, split=Split(rows))


@fusing
@pytest.mark.slow
def test_half_precision_is_fused_too_and_keeps_its_type(bert: Bert, tmp_path: Path) -> None:
    model, rows, _ = bert
    # Many of these rows are nearly ties, which half precision may turn: one of 64 is more than the default.
    settings = ExportSettings(dtype="fp16", treatment=Treatment("O4"), max_drop=2 / len(rows))
    export = export_model(model, rows, tmp_path, settings)
    assert export.loss is not None
    assert export.loss.float32 == 1.0
    found = operators(tmp_path / "model.onnx")
    assert found["FastGelu"] == found["Attention"] == NUM_LAYERS
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT not in {w.data_type for w in weights if np.prod(w.dims) > 64}


def test_weights_beside_a_graph_stay_beside_it_or_go(
    plain: Path, bert: Bert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "INLINE_WEIGHTS_BYTES", 100_000)
    optimize(plain, "O1", "fp32")
    assert {path.name for path in plain.parent.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert difference(plain, bert[2] / "model.onnx") < 1e-5
    quantize(plain, "int8")  # the embeddings too: all fits into the graph
    assert {path.name for path in plain.parent.iterdir()} == {"model.onnx"}
    assert difference(plain, bert[2] / "model.onnx") < 0.2


def test_without_the_library_that_fuses_one_line_says_what_to_do(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.exporters.onnxruntime_fusions", None)
    with pytest.raises(ExportError, match=r"transformers 5\.23"):
        optimize(plain, "O2", "fp32")


# --- quantised ------------------------------------------------------------------------------

QUANTIZED = {
    "int8": ({}, "MatMulInteger", 0.6),
    "int8 per channel": ({"per_channel": True}, "MatMulInteger", 0.6),
    "int8 static": ({"calibration": feeds(8)}, "QuantizeLinear", 0.65),
    "int8 static per channel": ({"calibration": feeds(8), "per_channel": True}, "QuantizeLinear", 0.7),
    "int4": ({}, "MatMulNBits", 0.6),
}


@pytest.mark.parametrize("level", ["O1", pytest.param("O2", marks=fusing)])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_product_with_weights_is_quantised(bert: Bert, plain: Path, kind: str, level: str) -> None:
    options, operator, size = QUANTIZED[kind]
    optimize(plain, level, "fp32")
    model = onnx_ir.load(plain)
    products = [
        node
        for node in model.graph
        if "Gemm" in node.op_type or (node.op_type == "MatMul" and node.inputs[1].is_initializer())
    ]
    # One activation may go into several products.
    sources = {node.inputs[0] for node in products}
    expected = len(sources) if operator == "QuantizeLinear" else len(products)
    expected -= sum(node.op_type == "FusedGemm" for node in products)
    before = plain.stat().st_size
    quantize(plain, kind.split()[0], **options)
    assert operators(plain)[operator] == expected
    assert plain.stat().st_size < size * before
    assert 1e-4 < difference(plain, bert[2] / "model.onnx") < 0.5
    kinds = {w.dims[0] for w in onnx.load(plain).graph.initializer if "scale" in w.name and len(w.dims) == 1}
    assert any(size > 1 for size in kinds) == ("per channel" in kind)


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        (altering.block_scales_swapped, 4), (altering.block_scale_doubled, 4), (altering.halves_swapped, 4),
        (altering.scales_swapped, 8), (altering.scale_doubled, 8), (altering.zero_point_off, 8),
    ],
)  # fmt: skip
def test_a_weight_that_is_not_what_it_was_is_refused(
    plain: Path, change: altering.Change, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_in_blocks" if bits == 4 else "_dynamically"
    write = getattr(quantizing, name)

    def spoilt(source: Path, target: Path, *rest: object) -> None:
        write(source, target, *rest)
        altering.change_graph(target, change)

    monkeypatch.setattr(quantizing, name, spoilt)
    with pytest.raises(ParityError, match=rf"in {bits} bits is off by .* steps"):
        quantize(plain, f"int{bits}")


def test_weights_in_constant_nodes_are_quantised_too(plain: Path) -> None:
    moved, file = onnx_ir.load(plain), plain.with_name("moved.onnx")
    for weight in list(moved.graph.initializers.values()):
        if len(weight.shape) == 2:
            node = onnx_ir.node("Constant", [], {"value": weight.const_value})
            moved.graph.insert_before(moved.graph[0], node)
            weight.replace_all_uses_with(node.outputs[0])
            del moved.graph.initializers[weight.name]
    onnx_ir.save(moved, file)
    for path in (plain, file):
        quantize(path, "int8")
    assert operators(file)["MatMulInteger"] == operators(plain)["MatMulInteger"] > NUM_LAYERS
    assert difference(file, plain) == 0


def test_a_quantised_file_records_what_it_loses(traced: Bert, tmp_path: Path) -> None:
    model, rows, _ = traced
    settings = ExportSettings(treatment=Treatment(None, "int8", per_channel=True), max_drop=0.2)
    export = export_model(model, rows, tmp_path, settings)
    assert export.tolerance is None
    assert export.max_abs_difference > 1e-4
    loss = export.loss
    assert loss is not None
    assert (loss.metric, loss.rows, loss.float32, loss.max_drop) == ("accuracy", len(rows), 1.0, 0.2)
    assert loss.drop == pytest.approx(1.0 - loss.treated)
    labels = np.asarray([row.label for row in rows.rows])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = {value.name for value in session.get_inputs()}
    said = [
        session.run(None, {k: v for k, v in model.task.encode([row], model.processor).items() if k in names})
        for row in rows.rows
    ]
    right = np.mean([logits[0].argmax() == label for logits, label in zip(said, labels, strict=True)])
    assert loss.treated == pytest.approx(right, abs=2 / len(rows))  # ranges are those of a batch
    assert read(tmp_path / "export.json", Export) == export


def test_what_is_lost_is_measured_on_report_rows_or_on_all_but_those_that_calibrate(
    traced: Bert, tmp_path: Path
) -> None:
    model, rows, _ = traced
    few, rest, some = (replace(rows, rows=part) for part in (rows.rows[:8], rows.rows[8:], rows.rows[4:20]))
    static = Treatment("O1", "int8", calibration_samples=8)
    for treatment, split, number in (
        (static, Split(few), len(rest)),
        (static, Split(few, some), 12),  # of the 16, four calibrate
        (Treatment("O1"), Split(rest, few), len(few)),
        (Treatment("O1"), Split(), len(rows)),
    ):
        settings = ExportSettings(treatment=treatment, max_drop=1.0)
        loss = export_model(model, rows, tmp_path, settings, split=split).loss
        assert (loss.rows, loss.float32) == (number, 1.0)
        assert treatment == static or loss.drop == 0


def test_a_metric_that_is_of_no_use_refuses_only_what_is_proven_by_nothing_else(
    traced: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the error of numbers relative to their variance, where all are the same."""
    model, rows, _ = traced
    monkeypatch.setattr(type(model.task), "aggregate", lambda *_: float("inf"))
    assert export_model(model, rows, tmp_path, ExportSettings(treatment=Treatment("O1"))).loss is None
    with pytest.raises(ParityError, match="inf in float32: nan worse"):
        export_model(model, rows, tmp_path, ExportSettings(treatment=Treatment("O1", "int8")))


@fusing
def test_nothing_is_written_in_float32_where_there_is_nothing_to_score(
    bert: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, _ = bert
    blind = replace(rows, rows=tuple(replace(row, label=None) for row in rows.rows))
    monkeypatch.setattr(treating, "_float32", lambda *_: pytest.fail("it was written"))
    settings = ExportSettings(dtype="fp16", treatment=Treatment("O2"))
    assert export_model(model, blind, tmp_path, settings).loss is None


def test_a_file_that_loses_too_much_is_refused_with_the_numbers(traced: Bert, tmp_path: Path) -> None:
    model, rows, _ = traced
    settings = ExportSettings(treatment=Treatment(None, "int4"), max_drop=0.001)
    with pytest.raises(ParityError, match=r"accuracy is 0\.\d+ on 64 rows, 1 in float32: 0\.\d+ worse"):
        export_model(model, rows, tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.invalid"]


def test_without_labels_most_labels_must_be_those_of_float32(traced: Bert, tmp_path: Path) -> None:
    model, rows, _ = traced
    blind = replace(rows, rows=tuple(replace(row, label=None) for row in rows.rows))
    settings = ExportSettings(treatment=Treatment(None, "int4"), max_drop=1.0)
    with pytest.raises(ParityError, match="no tolerance"):
        export_model(model, blind, tmp_path, settings)
    export = export_model(model, blind, tmp_path, replace(settings, treatment=Treatment(None, "int8", True)))
    assert export.loss is None
    assert export.label_agreement >= 0.9


def test_a_tolerance_that_is_asked_for_holds_for_quantised_files_too(traced: Bert, tmp_path: Path) -> None:
    model, rows, _ = traced
    settings = ExportSettings(tolerance=1e-4, treatment=Treatment(None, "int8"), max_drop=1.0)
    with pytest.raises(ParityError, match=r"tolerance 0\.0001"):
        export_model(model, rows, tmp_path, settings)


def test_a_graph_that_was_wrong_before_it_was_treated_is_refused(traced: Bert, tmp_path: Path) -> None:
    """Nothing else would show it: a quantised file is held to no tolerance."""
    model, rows, _ = traced
    settings = ExportSettings(treatment=Treatment(None, "int8"), max_drop=1.0)
    with pytest.raises(ParityError, match=r"tolerance 0\.0001"):
        export_model(drop_layers(model, (1,)), rows, tmp_path, settings)


def test_static_ranges_are_those_of_the_calibration_rows(plain: Path) -> None:
    """Of activations that are all twice as large, the scales are twice as large."""
    scales = []
    for number in (1, 8):
        file = Path(shutil.copy(plain, plain.with_name(f"{number}.onnx")))
        quantize(file, "int8", calibration=feeds(number))
        graph = onnx.load(file).graph
        scales.append(
            [
                float(onnx.numpy_helper.to_array(w).max())
                for w in graph.initializer
                if w.name.endswith("_scale") and not w.dims and "weight" not in w.name
            ]
        )
    narrow, wide = map(np.asarray, scales)
    assert len(narrow) == len(wide) > NUM_LAYERS
    assert (wide >= narrow - 1e-9).all()  # more rows can only widen a range
    assert (wide > narrow + 1e-9).any()


# --- fused alike ----------------------------------------------------------------------------


def unfuse(file: Path, layer: int) -> None:
    """Write the GELU of a layer as what it was before it was fused."""
    model = onnx_ir.load(file)
    node = [node for node in model.graph if node.op_type == "BiasGelu"][layer]
    total = onnx_ir.node("Add", list(node.inputs), name="alone")
    gelu = onnx_ir.node("Gelu", [total.outputs[0]], name="unfused")
    model.graph.insert_before(node, [total, gelu])
    node.outputs[0].replace_all_uses_with(gelu.outputs[0])
    model.graph.remove(node, safe=True)
    onnx_ir.save(model, file)


@fusing
def test_a_layer_that_stayed_unfused_is_named_with_pattern_and_node(plain: Path) -> None:
    before = layered(plain)
    optimize(plain, "O2", "fp32")
    assert fusions(before, layered(plain)).unfused == ()
    unfuse(plain, 2)
    (named,) = fusions(before, layered(plain)).unfused
    assert named.startswith("layer 2 of the file lacks 1 BiasGelu, which layer 0 has")
    assert "Gelu (unfused)" in named
    assert "Add (alone)" in named


@fusing
def test_layers_that_were_unlike_before_need_not_be_alike(plain: Path) -> None:
    unfuse_before = layered(plain)
    optimize(plain, "O2", "fp32")
    unfuse(plain, 2)
    other = replace(unfuse_before, layers=(*unfuse_before.layers[:2], (), *unfuse_before.layers[3:]))
    assert fusions(other, layered(plain)).unfused == ()


def folder_with(folder: Path, source: Path, layers: list[dict[str, int]], drop: tuple[int, ...]) -> Path:
    """Copy an export, and say of it what is fused in its layers."""
    shutil.copytree(source, folder)
    export = read(folder / "export.json", Export)
    record = replace(export, drop=drop, fusions={"model.onnx": Fusions({}, tuple(layers))})
    from tapioca_export.artifacts import write

    write(folder / "export.json", record)
    return folder


def test_layers_of_two_files_are_compared_by_their_place_in_the_original(bert: Bert, tmp_path: Path) -> None:
    kinds = [{"Gelu": 1}, {"Gelu": 2}, {"Gelu": 3}, {"Gelu": 4}]
    whole = read_export_folder(folder_with(tmp_path / "whole", bert[2], kinds, ()))
    for drop in ((0,), (1, 2), (3,)):
        kept = [kind for index, kind in enumerate(kinds) if index not in drop]
        name = "-".join(map(str, drop))
        pruned = read_export_folder(folder_with(tmp_path / name, bert[2], kept, drop))
        assert compare_fusions(whole, pruned) is None
    behind = read_export_folder(
        folder_with(tmp_path / "behind", bert[2], [{"Gelu": 1}, {"Gelu": 3}, {"Gelu": 3}], (1,))
    )
    with pytest.raises(BenchmarkError, match=r"Layer 3 is not fused alike.*behind lacks 1 Gelu"):
        compare_fusions(whole, behind)


@fusing
@pytest.mark.slow
def test_layers_are_cut_out_of_optimised_files(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    exported = invoke(
        "export", "-m", tiny("bert"), "--id", sample_files("bert")["id"], "--optimize", "O2", "-o", whole
    )
    assert exported.exit_code == 0, exported.output
    pruned = invoke("prune", whole / "model.onnx", "--drop", "1,2", "-o", cut)
    assert pruned.exit_code == 0, pruned.output
    model = drop_layers(load_model(tiny("bert")), [1, 2])
    inputs = model.task.examples(model.processor)[0]
    session = onnxruntime.InferenceSession(cut / "model.onnx")
    feed = {value.name: inputs[value.name] for value in session.get_inputs()}
    np.testing.assert_allclose(session.run(["logits"], feed)[0], model.logits(inputs), atol=1e-4)
    record, before = (read(folder / "export.json", Export) for folder in (cut, whole))
    kept = [before.fusions["model.onnx"].layers[layer] for layer in (0, 3)]
    assert list(record.fusions["model.onnx"].layers) == kept
    assert any(kept)
    seen = layered(cut / "model.onnx")
    assert record.fusions["model.onnx"] == fusions(seen, seen)
    assert (record.treatment, record.loss) == (before.treatment, None)


def test_where_layers_cannot_be_told_the_benchmark_says_so(bert: Bert, tmp_path: Path) -> None:
    whole = read_export_folder(folder_with(tmp_path / "whole", bert[2], [], ()))
    assert "was not compared" in str(compare_fusions(whole, whole))
    plain = read_export_folder(bert[2])
    assert compare_fusions(plain, plain) is None  # nothing was fused
    # A file that layers were cut out of afterwards has the record of the whole one.
    cut = read_export_folder(folder_with(tmp_path / "cut", bert[2], [{}] * NUM_LAYERS, (1,)))
    whole = read_export_folder(folder_with(tmp_path / "full", bert[2], [{}] * NUM_LAYERS, ()))
    assert "was not compared" in str(compare_fusions(whole, cut))


def test_files_that_were_treated_otherwise_are_not_compared(bert: Bert, tmp_path: Path) -> None:
    model, _, folder = bert
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "export.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, "treatment": {"quantize": "int8"}}), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"\(none\).*\(int8 dynamic\)"):
        open_pair(folder, tmp_path / "other", model.task, BenchmarkSettings())


# --- the command line -----------------------------------------------------------------------


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


BAD = {
    "level": (("--optimize", "O5"), "Unknown level of --optimize 'O5'"),
    "kind": (("--quantize", "int3"), "Unknown kind of --quantize 'int3'"),
    "per channel": (("--per-channel", "--quantize", "int4"), "--per-channel is for --quantize int8"),
    "calibration": (("--calibration-samples", 4), "--calibration-samples is for --quantize int8"),
    "O4": (("--optimize", "O4", "--dtype", "bf16"), "O4 is float16"),
    "half int8": (("--quantize", "int8", "--dtype", "fp16"), "int8 activations"),
    "half O1": (("--optimize", "O1", "--dtype", "fp16"), "O1 is ONNX Runtime's own"),
    "max drop": (("--quantize", "int8", "--max-drop", -0.1), "--max-drop -0.1 must be"),
    "format": (("--optimize", "O1", "--format", "torchscript"), "are for ONNX files, not for torchscript"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_one_clear_line(
    case: str, tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    options, message = BAD[case]
    rows = sample_files("bert")["id"]
    result = invoke("export", "-m", tiny("bert"), "--id", rows, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert result.output.count("Error:") == 1
    assert not (tmp_path / "out").exists()


def test_too_few_rows_to_calibrate_on_are_refused(traced: Bert, tmp_path: Path) -> None:
    model, rows, _ = traced
    settings = ExportSettings(treatment=Treatment(None, "int8", calibration_samples=65))
    with pytest.raises(ExportError, match="there are 64 ID rows"):
        export_model(model, rows, tmp_path, settings, split=Split(rows))


def test_a_file_is_calibrated_on_as_many_rows_as_asked_one_at_a_time(
    traced: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, _ = traced
    given: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr(treating, "quantize", lambda *_, calibration, **__: given.extend(calibration))
    settings = ExportSettings(treatment=Treatment(None, "int8", calibration_samples=5), max_drop=1.0)
    id_rows = replace(rows, rows=rows.rows[:9])
    export_model(model, rows, tmp_path, settings, split=Split(id_rows))
    encoded = [model.task.encode([row], model.processor)["input_ids"].tolist() for row in id_rows.rows]
    assert len({encoded.index(feed["input_ids"].tolist()) for feed in given}) == len(given) == 5
    assert all(feed.keys() == {"input_ids", "attention_mask"} for feed in given)


def test_calibration_rows_are_id_rows(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    options = ("--target", sample_files("bert")["target"], "--quantize", "int8", "--calibration-samples", 4)
    result = invoke("export", "-m", tiny("bert"), "-o", tmp_path / "out", *options)
    assert (result.exit_code, "Add --id" in result.output) == (1, True)


def test_no_row_that_is_reported_is_calibrated_on(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    files = sample_files("bert")
    config = RunConfig(
        model=str(tiny("bert")), id=files["id"], target=files["target"], quantize="int8",
        calibration_samples=4, seed=3,
    )  # fmt: skip
    task, processor = reading.load_task(config)
    found = reading.calibration_rows(config, task, processor)
    assert found is not None
    roles = reading.load_roles(config, task, processor)
    assert [row.where for row in found.rows] == [row.where for row in roles["id-select"].rows]


def test_o4_writes_half_precision() -> None:
    assert RunConfig(optimize="O4").dtype == "fp16"
    assert RunConfig(optimize="O3").dtype == "fp32"
    with pytest.raises(UnknownNameError):
        RunConfig(optimize="o2")
    with pytest.raises(ConfigError):
        Treatment("O4").check_dtype("fp32")


@fusing
@pytest.mark.slow
def test_a_run_treats_both_models_alike_and_benchmarks_them(tiny: Tiny, tmp_path: Path) -> None:
    for seed, name in enumerate(("id", "target")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(96, seed))
    result = invoke(
        "run", "-m", tiny("bert"), "--id", tmp_path / "id.jsonl", "--target", tmp_path / "target.jsonl",
        "-o", tmp_path / "run", "--drop", "1", "--criterion", "fixed", "--optimize", "O2", "--quantize",
        "int8", "--calibration-samples", 8, "--max-drop", 0.5, "--iterations", 3, "--format", "torchscript",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    exports = [
        read(tmp_path / "run" / part / "onnx" / "export.json", Export) for part in ("original", "pruned")
    ]
    assert {export.treatment for export in exports} == {Treatment("O2", "int8", False, 8)}
    assert [len(export.fusions["model.onnx"].layers) for export in exports] == [NUM_LAYERS, NUM_LAYERS - 1]
    other = read(tmp_path / "run" / "pruned" / "torchscript" / "export.json", Export)
    assert not other.treatment
    measured = read(tmp_path / "run" / "benchmark.json", Benchmark)
    assert not [line for line in measured.skipped if "fused" in line]
    reported = sum(accuracy.n for accuracy in measured.accuracy.values())
    assert {export.loss.rows for export in exports} == {reported}  # and no row that chose
    assert reported < 2 * 96
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "O2, int8 static" in report
    assert "labelled rows" in report


@fusing
@pytest.mark.slow
def test_the_benchmark_of_graphs_writes_what_its_tables_say(tmp_path: Path) -> None:
    output = Path(shutil.copy(ROOT / "benchmarks" / "graphs.json", tmp_path))
    kept = json.loads(output.read_text(encoding="utf-8"))["rows"]
    command = [sys.executable, "benchmarks/graphs.py", "--smoke", "--size", "MiniLM", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {"commit", "environment", "rows"} <= found.keys()
    assert found["rows"][: len(kept)] == kept  # what was not measured stays, with its commit
    rows = found["rows"][len(kept) :]
    assert [(row["batch_size"], row["kept"], row["layers"]) for row in rows] == [(1, 3, 4), (8, 3, 4)]
    for row in rows:
        assert row["commit"] == found["commit"]
        assert row["ideal"] == pytest.approx(4 / 3)
        assert set(row["share"]) == {
            "plain", "O1", "O2", "O3", "int8", "O2 int8", "O3 int8", "O2 int8 static", "O2 int4",
        }  # fmt: skip
        assert row["against"]["int8"].keys() == {"ours", "int8", "transformer optimiser int8"}
        assert row["bytes"]["pruned O2 int8"] < row["bytes"]["pruned O2"] < row["bytes"]["original O2"]
        assert f"{row['speedup']['O2']['median']:.2f}x, {row['share']['O2']:.0%}" in done.stdout
