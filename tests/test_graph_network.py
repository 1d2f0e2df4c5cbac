"""ONNX files run layer by layer: what is measured on them, and chosen, is what it is on the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from conftest import NUM_LAYERS, make_decoder, make_model, make_tokenizer, write_jsonl
from onnx import TensorProto, helper
from onnx_graphs import WIDTH, Builder, pre_norm

from tapioca_export import verify
from tapioca_export.artifacts import Export, Profile, Selection, read
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, TapiocaError, UnsupportedModelError
from tapioca_export.exporting import adopting
from tapioca_export.graphs import Cut, Pieces, cut, find_layers
from tapioca_export.models import LoadOptions, droppable_layers, load_model, skipping
from tapioca_export.profiling import Probe
from tapioca_export.provenance import hash_model
from tapioca_export.samples import read_samples

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], dtype=np.int64)


def saved(builder: Builder, folder: Path) -> Path:
    onnx.save(builder.model(), folder / "model.onnx")
    return folder / "model.onnx"


def through(pieces: Pieces, skip: Sequence[int] = (), **feed: np.ndarray) -> dict[str, np.ndarray]:
    stream, beside = pieces.before({"input_ids": IDS, **feed})
    for layer in range(pieces.num_layers):
        if layer not in skip:
            stream = pieces.layer(layer, stream, beside)
    return pieces.behind(stream, beside)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"input_ids": IDS, **feed})[0]
    return found


def without(model: onnx.ModelProto, drop: Sequence[int]) -> onnx.ModelProto:
    found = onnx_ir.from_proto(model)
    cut(found, find_layers(found.graph), drop)
    return onnx_ir.to_proto(found)


# --- pieces -----------------------------------------------------------------------------------


def reads_a_shape(inside: bool) -> Builder:
    """Build a graph whose head reads the shape of the stream behind layer 0, or of something in layer 0."""
    builder = pre_norm(["am"] * 3)
    kind = "Softmax" if inside else "Add"
    value = [node.output[0] for node in builder.nodes if node.op_type == kind][0 if inside else 1]
    norm = [node for node in builder.nodes if node.op_type == "LayerNormalization"][-1]
    stream, norm.input[0] = norm.input[0], "reshaped"
    reshape = [helper.make_node("Shape", [value], ["shape"], end=2 if inside else 3)]
    shape = "shape"
    if inside:
        builder.weights.append(helper.make_tensor("width", TensorProto.INT64, [1], [WIDTH]))
        reshape.append(helper.make_node("Concat", ["shape", "width"], ["whole"], axis=0))
        shape = "whole"
    reshape.append(helper.make_node("Reshape", [stream, shape], ["reshaped"]))
    place = builder.nodes.index(norm)
    builder.nodes[place:place] = reshape
    return builder


def shown_states() -> Builder:
    builder = pre_norm(["am"] * 3)
    builder.output([node.output[0] for node in builder.nodes if node.op_type == "Add"][1])
    return builder


@pytest.mark.parametrize(
    "builder",
    [
        lambda: pre_norm(["am"] * 4),
        lambda: pre_norm(["p"] * 3),
        lambda: pre_norm(["am"] * 3, stem=True),
        lambda: pre_norm(["am"] * 3, inner=[24, 12, 12]),
        lambda: reads_a_shape(inside=False),
        shown_states,
    ],
)
def test_pieces_compute_what_the_graph_does_and_without_layers_what_the_cut_one_does(
    builder: Callable[[], Builder], tmp_path: Path
) -> None:
    model = builder().model()
    pieces = Pieces(saved(builder(), tmp_path), 1)
    assert pieces.num_layers == len(find_layers(onnx_ir.from_proto(model).graph))
    for drop in ((), (1,), (2,), (1, 2)):
        found = through(pieces, drop)["logits"]
        np.testing.assert_allclose(found, run(without(model, drop)), rtol=1e-5, atol=1e-5)
    assert not np.allclose(through(pieces, (1,))["logits"], run(model), atol=1e-3)


def test_a_layer_reads_its_own_cache(tmp_path: Path) -> None:
    builder = pre_norm(["am"] * 3, cached=True)
    pieces = Pieces(saved(builder, tmp_path), 1)
    assert pieces.outputs == ("logits",)  # what layers cache is theirs
    random = np.random.default_rng(0)
    past = {
        f"past_key_values.{n}.key": random.normal(size=(2, 4, WIDTH)).astype(np.float32) for n in range(3)
    }
    found = through(pieces, **past)["logits"]
    np.testing.assert_allclose(found, run(builder.model(), **past), rtol=1e-5, atol=1e-5)
    others = {**past, "past_key_values.1.key": past["past_key_values.0.key"]}
    assert not np.allclose(through(pieces, **others)["logits"], found, atol=1e-3)


def test_what_no_input_has_a_say_in_is_computed_where_it_is_read(tmp_path: Path) -> None:
    """Else what is made of a weight would be handed from piece to piece."""
    builder = pre_norm()
    product = next(node for node in builder.nodes if node.op_type == "MatMul")
    made = helper.make_node("Transpose", [product.input[1]], ["turned"], perm=[1, 0])
    product.input[1] = "turned"
    builder.nodes.insert(0, made)
    pieces = Pieces(saved(builder, tmp_path), 1)
    assert pieces.before({"input_ids": IDS})[1] == {}
    np.testing.assert_allclose(through(pieces)["logits"], run(builder.model()), rtol=1e-5, atol=1e-5)


def test_layers_that_an_output_shows_stay(tmp_path: Path) -> None:
    assert Pieces(saved(shown_states(), tmp_path), 1).droppable == (1, 2)


def test_what_one_layer_makes_and_another_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is read by another"):
        Pieces(saved(reads_a_shape(inside=True), tmp_path), 1)


def test_weights_stay_in_their_file_and_count_for_the_hash(tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        model = pre_norm().model()
        for weight in model.graph.initializer:
            array = onnx.numpy_helper.to_array(weight) * (1 + seed)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        expected = run(model)
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, size_threshold=0, location="w")
        pieces = Pieces(folder / "model.onnx", 1)
        np.testing.assert_allclose(through(pieces)["logits"], expected, rtol=1e-5, atol=1e-5)
        assert pieces.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
        hashes.append(hash_model(str(folder / "model.onnx")))
    graphs = [(tmp_path / str(seed) / "model.onnx").read_bytes() for seed in (0, 1)]
    assert graphs[0] == graphs[1]
    assert hashes[0] != hashes[1]


# --- files of exporters -----------------------------------------------------------------------


def cli(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, sample_files: Callable[[str], dict[str, Path]]
) -> Callable[[str], dict[str, Path]]:
    """Return a checkpoint, the graph exported of it, and samples, by family; do not write in them."""
    found: dict[str, dict[str, Path]] = {}

    def of(family: str) -> dict[str, Path]:
        if family in found:
            return found[family]
        folder = tmp_path_factory.mktemp(family)
        if family == "llama":  # with a cache
            network, samples = make_decoder(family), {}
            for name, step in (("id", 1), ("target", 2)):
                rows = [{"prompt": f"w{n} w{n + step}", "answer": f"w{n} w{n * step}"} for n in range(40)]
                samples[name] = write_jsonl(folder / f"{name}.jsonl", rows)
        else:
            network, samples = make_model(family), sample_files(family)
        network.save_pretrained(folder / "checkpoint")
        make_tokenizer(family).save_pretrained(folder / "checkpoint")
        cli("export", "-m", folder / "checkpoint", "--id", samples["id"], "-o", folder / "export")
        graph = folder / "export" / "model.onnx"
        found[family] = {"checkpoint": folder / "checkpoint", "graph": graph, **samples}
        return found[family]

    return of


def rows_of(paths: dict[str, Path]) -> tuple[object, ...]:
    return ("--id", paths["id"], "--target", paths["target"], "--num-threads", 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_file_is_measured_as_its_checkpoint(
    family: str, files: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    paths = files(family)
    graph, network = (load_model(paths[name]) for name in ("graph", "checkpoint"))
    inputs = network.task.examples(network.processor)[0]
    for drop in ((), (0,), (1, 3)):
        with skipping(graph, drop), skipping(network, drop):
            one, other = (m.task.compared(m.logits(inputs), inputs) for m in (graph, network))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    rows = [read_samples(paths["target"], m.task.rows({}, m.processor), role="t") for m in (graph, network)]
    layers = range(network.num_layers)
    one, other = (
        Probe(m, {"target": own}).turns(layers, 32) for m, own in zip((graph, network), rows, strict=True)
    )
    assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    for name in ("graph", "checkpoint"):
        cli("profile", "-m", paths[name], *rows_of(paths), "--drop", "1", "-o", tmp_path / name)
        cli("select", "-m", paths[name], *rows_of(paths), "--max-drop-layers", "2", "--pick", "final", "-o",
            tmp_path / f"{name}-select")  # fmt: skip
    profiles = [read(tmp_path / name / "profile.json", Profile) for name in ("graph", "checkpoint")]
    for role in ("id", "target", "pruned_target"):
        one, other = (getattr(profile, role) for profile in profiles)
        np.testing.assert_allclose(one.norms, other.norms, rtol=1e-4)
        np.testing.assert_allclose(one.distances, other.distances, rtol=1e-4)
        np.testing.assert_allclose(one.norms_band, other.norms_band, rtol=1e-4)
        assert [n for n in one.influences if n is not None] == pytest.approx(
            [n for n in other.influences if n is not None], abs=1e-5
        )
    one, other = (
        read(tmp_path / f"{name}-select" / "selection.json", Selection) for name in ("graph", "checkpoint")
    )
    assert one.drop == other.drop
    assert one.drop
    assert [step.layer for step in one.steps] == [step.layer for step in other.steps]
    assert [step.metric for step in one.steps] == pytest.approx([step.metric for step in other.steps])


@pytest.mark.slow
def test_the_whole_job_on_a_file(files: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    paths = files("bert")
    cli("run", "-m", paths["graph"], *rows_of(paths), "--max-drop-layers", "1", "--pick", "final", "-o",
        tmp_path / "run", "--iterations", "2", "--sequence-length", "8")  # fmt: skip
    selection = read(tmp_path / "run" / "selection.json", Selection)
    assert len(selection.drop) == 1
    original, pruned = (tmp_path / "run" / name / "onnx" for name in ("original", "pruned"))
    assert (original / "model.onnx").read_bytes() == paths["graph"].read_bytes()
    records = [read(folder / "export.json", Export) for folder in (original, pruned)]
    assert [record.drop for record in records] == [(), selection.drop]
    for record in records:
        assert record.max_abs_difference is not None
        assert record.max_abs_difference <= record.tolerance
        assert record.rows_checked > 8
        assert record.reference == "the given file run layer by layer"
    cli("prune", paths["graph"], "--selection", tmp_path / "run" / "selection.json", "-o", tmp_path / "cut")
    assert (tmp_path / "cut" / "model.onnx").read_bytes() == (pruned / "model.onnx").read_bytes()
    assert "agrees with the given file run layer by layer" in (tmp_path / "run" / "report.md").read_text()
    verified = verify(tmp_path / "run", strict=True)
    assert verified.passed, verified.verdict
    assert [(check.folder, check.state) for check in verified.proofs] == [
        ("original/onnx", "holds"), ("pruned/onnx", "holds"),
    ]  # fmt: skip
    benchmark = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert benchmark["drop"] == list(selection.drop)
    assert benchmark["accuracy"].keys() == {"id", "target"}
    cli("init", "-m", paths["graph"], *rows_of(paths), tmp_path / "mine.toml")
    assert f'model = "{paths["graph"]}"' in (tmp_path / "mine.toml").read_text()
    # The pair can be measured again, as any other.
    cli("benchmark", original, pruned, *rows_of(paths), "--iterations", "2", "--sequence-length", "8", "-o",
        tmp_path / "again")  # fmt: skip


@pytest.mark.slow
def test_a_wrong_cut_is_found_on_the_users_rows(
    files: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cut file lacks another layer than was asked for."""
    from tapioca_export import graph_files

    paths, prune = files("bert"), graph_files.graphs.prune_graph

    def another(source: Path, drop: Sequence[int], folder: Path, **settings: object) -> Cut:
        settings["selection"] = None
        return prune(source, [(layer + 1) % NUM_LAYERS for layer in drop], folder, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(graph_files.graphs, "prune_graph", another)
    said = cli("run", "-m", paths["graph"], *rows_of(paths), "--max-drop-layers", "1", "--pick", "final",
               "-o", tmp_path / "run", "--iterations", "2", code=1)  # fmt: skip
    assert "outputs differ by" in said
    assert (tmp_path / "run" / "pruned" / "onnx" / "model.onnx.invalid").is_file()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_file_cannot_do_is_said(files: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    paths, output = files("bert"), ("-o", tmp_path / "out")
    graph = ("-m", paths["graph"], *rows_of(paths))
    for criterion in ("magnitude", "taylor", "damp"):
        said = cli("select", *graph, "--criterion", criterion, *output, code=1)
        assert "needs the weights of each layer" in said
    assert "whole layers are dropped" in cli("select", *graph, "--granularity", "sublayer", *output, code=1)
    assert "is exported already" in cli("export", *graph, *output, code=1)
    assert "stays ONNX" in cli("run", *graph, "--format", "torchscript", *output, code=1)
    assert "stays ONNX" in cli("run", *graph, "--dtype", "fp16", *output, code=1)
    assert "There is no file" in cli("select", "-m", tmp_path / "no.onnx", *rows_of(paths), *output, code=1)
    bare = tmp_path / "model.onnx"
    bare.write_bytes(paths["graph"].read_bytes())
    assert "no config.json beside" in cli("select", "-m", bare, *rows_of(paths), *output, code=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="run on the CPU"):
        load_model(paths["graph"], options=LoadOptions(device="cuda"))
    assert droppable_layers(load_model(paths["graph"])) == tuple(range(NUM_LAYERS))


@pytest.mark.slow
def test_other_inputs_and_outputs_than_the_tasks_are_refused(
    files: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    source = files("bert")["graph"]
    for file in source.parent.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())

    def changed(change: Callable[[onnx.ModelProto], None]) -> str:
        model = onnx.load(source)
        change(model)
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(TapiocaError) as caught:
            load_model(tmp_path / "model.onnx")
        return caught.value.message

    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16

    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "scores"
        model.graph.node.append(helper.make_node("Identity", ["logits"], ["scores"]))

    def more(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1]))

    assert "of one sequence size only" in changed(fix)
    assert "has no output logits (scores)" in changed(rename)
    assert "wants the input pixels" in changed(more)


def test_a_cache_of_unknown_size_is_refused_and_one_for_genai_is_not(tmp_path: Path) -> None:
    builder = pre_norm(["am"] * 2)
    sizes = ["batch", 2, "past_sequence", "kv_cache_dim"]
    builder.inputs.append(helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, sizes))
    graph = onnx_ir.from_proto(builder.model())
    with pytest.raises(UnsupportedModelError, match=r"past_key_values.0.key does not say how many heads"):
        adopting._cache_of(graph, tmp_path)
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"head_size": 16}}}))
    assert adopting._cache_of(graph, tmp_path) == {"past_key_values.0.key": (2, 16)}


@pytest.mark.slow
def test_a_mask_of_another_shape_is_no_mask(files: Callable[[str], dict[str, Path]]) -> None:
    """Contexts are shared by a mask of four axes where a network takes it; graphs say that they do not."""
    model = load_model(files("bert")["graph"])
    batch = model.task.examples(model.processor)[0]
    square = np.ones((*batch["attention_mask"].shape[:1], 1, 4, 4), np.int64)
    with pytest.raises(UnsupportedModelError, match="attention_mask has 4 axes, not 2"):
        model.logits({**batch, "attention_mask": square})
    assert replace(model, silent={}).network.dtype == torch.float32
