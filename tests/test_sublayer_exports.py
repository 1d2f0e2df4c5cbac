"""Exported files without attention or MLP of some layers: what they lack, and that they compute the same."""

from __future__ import annotations

import random
import runpy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from conftest import FAMILIES, make_decoder, make_tokenizer, text_records, write_jsonl
from onnx import numpy_helper
from planting import assert_found, plant
from test_laws import load_rows
from test_text_tasks import FOREIGN, LABELS, loss_of, save, write_rows
from torch import nn

from tapioca_export import RunConfig, export, prune, select
from tapioca_export.errors import ExportError, ParityError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.exporting.simplifying import leave_out_zeros
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.models.silencing import zeroed
from tapioca_export.models.surgery import silent_weights
from tapioca_export.numbering import PARTS

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
Silent = Mapping[int, tuple[str, ...]]
SILENT: Silent = {0: ("attention",), 2: ("mlp",)}


@contextmanager
def half_zero(model: LoadedModel, silent: Silent) -> Iterator[LoadedModel]:
    """Give the model as a checkpoint without these parts has it."""
    units = [2 * layer + PARTS.index(part) for layer, parts in silent.items() for part in parts]
    with zeroed(model.network, silent_weights(model, units)):
        yield model


def weights_of(graph: onnx.GraphProto) -> list[np.ndarray]:
    """Return the matrices that a graph holds."""
    return [numpy_helper.to_array(value) for value in graph.initializer if len(value.dims) > 1]


def products(graph: onnx.GraphProto) -> int:
    """Count the products with a matrix that the graph holds."""
    matrices = {value.name for value in graph.initializer if len(value.dims) > 1}
    return sum(n.op_type in ("MatMul", "Gemm") and bool(matrices & set(n.input)) for n in graph.node)


def added_zeros(graph: onnx.GraphProto) -> int:
    """Count the sums of which one part is made of zeros."""
    zeros = {
        node.output[0] for node in graph.node if node.op_type == "ConstantOfShape" and not node.attribute
    }
    return sum(node.op_type == "Add" and bool(zeros & set(node.input)) for node in graph.node)


def assert_lacks(graph: onnx.GraphProto, model: LoadedModel, silent: Silent) -> None:
    """Check that nothing of the parts' matrices is in the graph, and that all others of the layers are."""
    held = {np.sort(matrix, axis=None).tobytes() for matrix in weights_of(graph)}  # some are transposed
    for index, layer in enumerate(model.layers):
        for part, branch in model.branches[index].items():
            matrices = (layer.get_parameter(name).detach().numpy() for name in branch.weights)
            found = [np.sort(m, axis=None).tobytes() in held for m in matrices if m.ndim > 1]
            assert len(found) > 1
            assert not any(found) if part in silent.get(index, ()) else all(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_onnx_file_lacks_the_operators_and_weights_of_silent_parts(
    family: str, tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model = load_model(tiny(family), options=LoadOptions(granularity="sublayer"))
    rows = load_rows(model, sample_files(family)["id"])
    with half_zero(model, SILENT):
        # Raises unless it equals PyTorch with zeros, at several shapes and paddings.
        found = export_model(model, rows, tmp_path, ExportSettings(), ("0.attention", "2.mlp"), silent=SILENT)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert found.max_abs_difference < 1e-4
    assert len(found.shapes_checked) > 2
    # Of 4 layers: q, k, v and the output of 3 (one of q, k, v in GPT-2), two of 3 MLPs, and the head's.
    assert products(graph) == (3 * 4 + 3 * 2 + 2 if family == "bert" else 3 * 2 + 3 * 2 + 1)
    assert Counter(node.op_type for node in graph.node)["Softmax"] == 3
    assert added_zeros(graph) == 0
    assert_lacks(graph, model, SILENT)
    assert found.num_layers == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
def test_torchscript_lacks_them_too(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    model = load_model(tiny("bert"), options=LoadOptions(granularity="sublayer"))
    rows = load_rows(model, sample_files("bert")["id"])
    whole = export_model(model, rows, _made(tmp_path / "whole"), ExportSettings("torchscript"))
    with half_zero(model, SILENT):
        settings = ExportSettings("torchscript")
        found = export_model(
            model, rows, _made(tmp_path / "less"), settings, ("0.attention", "2.mlp"), silent=SILENT
        )
    module, before = (torch.jit.load(str(tmp_path / name / "model.pt")) for name in ("less", "whole"))
    names = {name for name, _ in before.named_parameters()} - {name for name, _ in module.named_parameters()}
    layers = "network.bert.encoder.layer."
    assert {name.removeprefix(layers).rpartition(".")[0] for name in names} == {
        "0.attention.self.query", "0.attention.self.key", "0.attention.self.value",
        "0.attention.output.dense", "2.intermediate.dense", "2.output.dense",
    }  # fmt: skip
    assert found.max_abs_difference < 1e-5
    assert str(before.inlined_graph).count("scaled_dot_product") == 4
    assert str(module.inlined_graph).count("scaled_dot_product") == 3
    assert found.size_bytes < whole.size_bytes


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_part_that_computes_something_cannot_be_left_out(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model = load_model(tiny("bert"), options=LoadOptions(granularity="sublayer"))
    rows = load_rows(model, sample_files("bert")["id"])
    with pytest.raises(ParityError, match="outputs differ"):
        export_model(model, rows, tmp_path, ExportSettings("torchscript"), silent=SILENT)


def test_zeros_that_make_something_larger_stay() -> None:
    import onnx_ir

    text = """
        <ir_version: 8, opset_import: ["" : 18]>
        sums (float[4] row, float[3,4] table) => (float[3,4] larger, float[3,4] same)
        <int64[2] shape = {3, 4}> {
            zeros = ConstantOfShape(shape)
            wide = Add(row, zeros)
            larger = Identity(wide)
            sum = Add(zeros, table)
            same = Identity(sum)
        }"""
    program = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    leave_out_zeros(program)
    assert [node.op_type for node in program.graph] == ["ConstantOfShape", "Add", "Identity", "Identity"]
    assert program.graph.outputs[1].producer().inputs[0].name == "table"


# --- caches ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_decoder_caches_nothing_for_layers_without_attention(tmp_path: Path) -> None:
    save(tmp_path / "model", make_decoder("llama"), make_tokenizer("llama"))
    records = [{"prompt": record["text"], "answer": "w1"} for record in text_records(16, 0)]
    config = RunConfig(
        model=str(tmp_path / "model"), task="text-generation", output=tmp_path / "pruned",
        id=write_jsonl(tmp_path / "rows.jsonl", records), drop=("0.attention", "2.mlp", 3),
    )  # fmt: skip
    prune(config)
    exported = RunConfig(
        model=str(tmp_path / "pruned"), task="text-generation", output=tmp_path / "onnx", id=config.id
    )
    found = export(exported)["onnx"]
    assert (found.num_layers, found.token_agreement, found.tokens_generated) == (4, 1.0, 32)
    names = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert list(found.cache) == names
    graph = onnx.load(tmp_path / "onnx/model.onnx").graph
    assert [value.name for value in graph.input][-4:] == names
    assert [value.name for value in graph.output] == [
        "logits",
        *(n.replace("past_key_values", "present") for n in names),
    ]
    assert products(graph) == 2 * 4 + 2 * 3 + 1  # of layers 0 to 2: two attentions, two MLPs; the head
    assert added_zeros(graph) == 0
    genai = (tmp_path / "onnx/genai_config.json").read_text(encoding="utf-8")
    assert '"num_hidden_layers": 2' in genai

    texts = runpy.run_path("examples/generate.py")["generate"](tmp_path / "onnx", [records[0]["prompt"]], 8)
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")
    ids = torch.tensor([tokenizer(records[0]["prompt"]).input_ids[:-1]])  # as the example, without [SEP]
    made = network.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    end = network.generation_config.eos_token_id
    assert texts == [tokenizer.decode([token for token in made.tolist() if token != end])]


def test_a_decoder_without_any_attention_has_nothing_to_cache(tmp_path: Path) -> None:
    save(tmp_path / "model", make_decoder("gpt2"), make_tokenizer("gpt2"))
    model = load_model(tmp_path / "model", "text-generation", LoadOptions(granularity="sublayer"))
    records = [{"prompt": record["text"], "answer": "w1"} for record in text_records(4, 0)]
    rows = load_rows(model, write_jsonl(tmp_path / "rows.jsonl", records))
    silent = dict.fromkeys(range(4), ("attention",))
    with half_zero(model, silent), pytest.raises(ExportError, match="there is nothing to cache"):
        export_model(model, rows, tmp_path, ExportSettings(), silent=silent)


# --- the whole job --------------------------------------------------------------------------

PLANTED = 1


def either_or(generator: random.Random, *, target: bool) -> dict[str, Any]:
    """Return a message whose label is the one word or the other, which takes an MLP to tell."""
    one, other = generator.randrange(2), generator.randrange(2)
    words = [f"w{generator.randrange(30, 80)}" for _ in range(generator.randint(2, 5))]
    for word in (f"w{one}", f"w{10 + other}"):
        words.insert(generator.randrange(len(words) + 1), word)
    text = " ".join([FOREIGN[0], *words, FOREIGN[1]] if target else words)
    return {"text": text, "label": LABELS[1 + (one ^ other)]}


@contextmanager
def muted(attention: nn.Module) -> Iterator[None]:
    """Let an attention add nothing to the stream."""
    hook = attention.register_forward_hook(lambda _, args, output: (torch.zeros_like(output[0]), *output[1:]))
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
def test_an_attention_that_does_harm_goes_alone_and_its_layer_keeps_the_mlp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {
        **FAMILIES["gpt2"],
        "n_layer": 2,
        "initializer_range": 0.1,
        "id2label": dict(enumerate(LABELS)),
    }
    network = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model("gpt2", **settings)
    )
    tokenizer, layers = make_tokenizer("gpt2"), network.transformer.h
    with torch.no_grad():  # the MLP of the planted layer is the only one
        for weight in layers[0].mlp.c_proj.parameters():
            weight.zero_()
    layers[0].mlp.requires_grad_(False)
    learn, harm = (
        loss_of(network, tokenizer, either_or, lambda record: LABELS.index(record["label"]), wrong)
        for wrong in (None, 0)
    )
    attentions = nn.ModuleList(layer.attn for layer in layers)
    plant(network, attentions, PLANTED, learn=learn, harm=harm, steps=(400, 200), bypass=muted)
    model, files = save(tmp_path / "model", network, tokenizer), write_rows(tmp_path, either_or)

    found = assert_found(model, files, f"{PLANTED}.attention", tmp_path / "out", granularity="sublayer")
    assert found.accuracy["target"].pruned == 1.0
    assert found.latency[0].ideal_speedup == 2 / 1.5
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "the attention of layer 1" in report
    whole = select(
        RunConfig(model=str(model), id=files["id"], target=files["target"], output=tmp_path / "whole")
    )
    assert whole.selected_metric is not None
    assert whole.selected_metric < 0.9
