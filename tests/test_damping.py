"""Damped layers: folded weights are branches scaled as they are added, in memory, in files and in exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import (
    DECODERS,
    FAMILIES,
    NUM_LAYERS,
    awaken,
    complaint,
    make_decoder,
    make_tokenizer,
    text_records,
    write_jsonl,
)
from safetensors.torch import load_file
from test_several_stacks import make as make_stacks
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tapioca_export.artifacts import (
    Benchmark,
    Candidate,
    Choices,
    Damping,
    Export,
    Intervention,
    Numbering,
    Profile,
    Report,
    Selection,
    read,
)
from tapioca_export.cards import write_model_card
from tapioca_export.cli import main
from tapioca_export.errors import UnsupportedModelError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import (
    Damped,
    LoadedModel,
    Scaled,
    changing,
    damping_weights,
    drop_layers,
    load_model,
)
from tapioca_export.models.proof import save_pruned
from tapioca_export.profiling import Changes, Probe
from tapioca_export.samples import Samples, read_samples
from tapioca_export.selection import SelectionSettings
from tapioca_export.selection.search import _allowed
from tapioca_export.selection.searches import best_of

TOLERANCE = 1e-4
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
MORE: dict[str, dict[str, Any]] = {
    "falcon": {
        "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "qwen3_moe": {**DECODERS["llama"], **MOE},
}  # fmt: skip
PARALLEL = ("gpt_neox", "falcon")
EVERY = ("gpt2", "llama", "qwen2", "gemma2", "gpt_neox", "falcon", "opt", "bloom", "qwen3_moe")


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny random decoder with a tokenizer."""
    if family in MORE:
        torch.manual_seed(0)
        network = awaken(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **MORE[family])))
    else:
        network = make_decoder(family)
    with torch.no_grad():  # norms and biases that are ones and zeros would hide what becomes of them
        for weight in network.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    network.to(dtype).save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in folders:
            folders[family] = save(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return get


def damped(model: LoadedModel, scales: Mapping[int, float]) -> dict[int, Damped]:
    weights = damping_weights(model, sorted(scales))
    return {layer: Damped(scale, weights[layer]) for layer, scale in scales.items()}


def logits(model: LoadedModel, changes: Mapping[int, Any] | None = None) -> np.ndarray:
    with changing(model, changes or {}):
        return model.logits(model.task.examples(model.processor)[-1])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- what damping is ------------------------------------------------------------------------

# The modules of a layer whose outputs are what its branches add: written down here to check what is found.
ENDS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "qwen3_moe": ("self_attn.o_proj", "mlp.experts"),
}


@contextmanager
def scaled_by_hooks(model: LoadedModel, family: str, scales: Mapping[int, float]) -> Iterator[None]:
    """Multiply the outputs of the modules at the branches' ends with hooks of PyTorch's own."""
    with ExitStack() as hooks:
        for layer, scale in scales.items():
            for name in ENDS[family]:

                def hook(_: Any, __: Any, output: torch.Tensor, scale: float = scale) -> torch.Tensor:
                    return output * scale

                module = model.layers[layer].get_submodule(name)
                hooks.callback(module.register_forward_hook(hook).remove)
        yield


@pytest.mark.parametrize("family", EVERY)
def test_folded_weights_are_branches_that_are_scaled(family: str, checkpoint: Callable[[str], Path]) -> None:
    model = load_model(checkpoint(family))
    plain = logits(model)
    for scale in (0.5, 0.3, 1.5):
        scales = {1: scale, 2: scale}
        found = logits(model, damped(model, scales))
        at_additions = logits(model, {layer: Damped(scale) for layer in scales})
        with scaled_by_hooks(model, family, scales):
            by_hooks = logits(model)
        assert np.abs(found - plain).max() > 100 * TOLERANCE
        for expected in (at_additions, by_hooks):
            np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
        if scale == 0.5 and family != "gemma2":  # a factor of two changes no digit of any number
            assert np.array_equal(found, at_additions)
            assert np.array_equal(found, by_hooks)
        whole = logits(model, {layer: Scaled(scale) for layer in scales})
        is_whole = np.abs(found - whole).max() < TOLERANCE
        assert is_whole == (family in PARALLEL)  # elsewhere the second branch reads what the first has left
    assert np.array_equal(logits(model), plain)


@pytest.mark.parametrize("family", ["t5", "m2m_100", "whisper", "clip"])
def test_layers_of_several_stacks_are_damped_each_by_its_own_weights(family: str) -> None:
    model, inputs = make_stacks(family)
    vars(model.task)["examples"] = lambda processor: [inputs]
    plain = model.logits(inputs)
    for layer in range(model.num_layers):
        found = logits(model, damped(model, {layer: 0.3}))
        np.testing.assert_allclose(found, logits(model, {layer: Damped(0.3)}), rtol=TOLERANCE, atol=TOLERANCE)
        assert np.abs(found - plain).max() > TOLERANCE
        assert np.array_equal(logits(model, damped(model, {layer: 0.5})), logits(model, {layer: Damped(0.5)}))


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon"])
def test_alpha_0_drops_and_alpha_1_leaves_to_the_bit(family: str, checkpoint: Callable[[str], Path]) -> None:
    model = load_model(checkpoint(family))
    assert np.array_equal(logits(model, damped(model, {1: 0.0})), logits(drop_layers(model, [1])))
    assert np.array_equal(logits(model, damped(model, {1: 1.0})), logits(model))


def test_the_offset_of_a_norm_that_stores_its_weight_less_one_is_found(
    checkpoint: Callable[[str], Path],
) -> None:
    weights = damping_weights(load_model(checkpoint("gemma2")), [0])[0]
    assert weights == {"post_attention_layernorm.weight": 1.0, "post_feedforward_layernorm.weight": 1.0}
    assert set(damping_weights(load_model(checkpoint("llama")), [0])[0].values()) == {0.0}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_norm_behind_the_sum_is_refused_with_the_reason(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match="norm stands behind the sum"):
        damping_weights(load_model(tiny(family)), [0])
    result = invoke("prune", "-m", tiny(family), "--scale", "2:0.5", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "Layer 2" in result.output
    assert len(complaint(result)) == 2
    assert not (tmp_path / "out").exists()


# --- what is kept ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3_moe"])
def test_a_damped_checkpoint_is_the_model_that_was_measured(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(checkpoint(family))
    scales = {2: 0.3, 3: 0.5}
    result = invoke(
        "prune", "-m", checkpoint(family), "--drop", "0", "--scale", "2:0.3,3:0.5", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert "Damped: 2 times 0.3, 3 times 0.5." in result.output
    smaller = drop_layers(model, [0])
    expected = logits(smaller, damped(smaller, {layer - 1: scale for layer, scale in scales.items()}))
    assert np.array_equal(logits(load_model(tmp_path / "out")), expected)
    chosen = read(tmp_path / "out/selection.json", Selection)
    assert (chosen.drop, chosen.damp) == ((0,), (Damping(2, 0.3), Damping(3, 0.5)))
    assert "2 (times 0.3), 3 (times 0.5)" in (tmp_path / "out/README.md").read_text()
    again = invoke("prune", "-m", tmp_path / "out", "--drop", "1", "-o", tmp_path / "again")
    assert "was pruned before" in again.output
    replayed = invoke(
        "prune", "-m", checkpoint(family), "--selection", tmp_path / "out/selection.json",
        "-o", tmp_path / "again",
    )  # fmt: skip
    assert replayed.exit_code == 0, replayed.output
    one, other = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_weights_keep_their_type_where_it_holds_the_result(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", torch.bfloat16)
    model = load_model(folder)
    (tmp_path / "out").mkdir()
    batches = model.task.examples(model.processor)
    save_pruned(model, [], tmp_path / "out", batches, damped(model, {1: 0.5, 2: 0.3}))
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    folded = {f"model.layers.{n}.{name}.weight" for n in (1, 2) for name in ENDS["llama"]}
    for name, weight in after.items():
        scale = 0.3 if ".2." in name else 0.5
        if name in folded:
            assert weight.dtype == (torch.bfloat16 if scale == 0.5 else torch.float32)
            assert torch.equal(weight.float(), before[name].float() * scale)
        else:
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, before[name])
    assert len([path for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors"]) == 1


def test_a_scale_of_1_copies_and_a_scale_of_0_drops(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoint("llama")
    for scale in (0, 1):
        result = invoke("prune", "-m", source, "--scale", f"1:{scale}", "-o", tmp_path / f"s{scale}")
        assert result.exit_code == 0, result.output
    assert (tmp_path / "s1/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    invoke("prune", "-m", source, "--drop", "1", "-o", tmp_path / "d")
    assert (tmp_path / "s0/model.safetensors").read_bytes() == (tmp_path / "d/model.safetensors").read_bytes()
    assert (tmp_path / "s0/selection.json").read_bytes() == (tmp_path / "d/selection.json").read_bytes()
    assert "damp" not in (tmp_path / "d/selection.json").read_text()


def test_weights_that_do_not_scale_a_branch_fail_the_proof(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(checkpoint("llama"))
    wrong = {1: Damped(0.5, {"self_attn.o_proj.weight": 0.0, "mlp.gate_proj.weight": 0.0})}
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedModelError, match="folded weights move logits"):
        save_pruned(model, [], tmp_path / "out", model.task.examples(model.processor), wrong)


def test_the_model_card_says_that_layers_are_damped_and_none_is_gone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    selection = Selection(
        "m", "text-generation", "fixed", 4, (), steps=(), stop_reason="named", damp=(Damping(1, 0.5),)
    )
    write_model_card(tmp_path, selection)
    card = (tmp_path / "README.md").read_text()
    assert "# m, layers damped\n" in card
    assert "with these layers skipped or damped." in card


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scale", "9:0.5"], "Layer 9 does not exist"),
        (["--scale", "1:-0.5"], "--scale 1:-0.5 must be a number from 0 up"),
        (["--scale", "1:half"], "give layers and factors such as 4:0.5"),
        (["--scale", "1:0.5,1:0.2"], "named twice"),
        (["--scale", "1:0.5", "--drop", "1"], "Layer 1 is to be dropped and damped"),
        (["--scale", "0:0,1:0,2:0", "--drop", "3"], "All 4 layers would be dropped"),
        (["--scale", "1:0.5", "--proof", "weights"], "--proof weights loads no weights"),
    ],
)
def test_scales_that_mean_nothing_are_refused(
    options: list[str], said: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    result = invoke("prune", "-m", checkpoint("llama"), *options, "-o", tmp_path / "out")
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_export_of_a_damped_checkpoint_equals_pytorch(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    invoke("prune", "-m", checkpoint("llama"), "--scale", "1:0.3", "-o", tmp_path / "damped")
    model = load_model(tmp_path / "damped")
    records = [{"prompt": "w1 w2 w3", "answer": "w4"}, {"prompt": "w5", "answer": "w6 w7"}]
    rows = write_jsonl(tmp_path / "rows.jsonl", records)
    samples = read_samples(rows, model.task.rows({}, model.processor), role="target-select")
    (tmp_path / "onnx").mkdir()
    export = export_model(model, samples, tmp_path / "onnx", ExportSettings(), damp=(Damping(1, 0.3),))
    assert export.max_abs_difference <= TOLERANCE
    assert export.label_agreement == 1.0
    assert read(tmp_path / "onnx/export.json", Export).damp == (Damping(1, 0.3),)
    cut = invoke("prune", tmp_path / "onnx/model.onnx", "--scale", "1:0.5", "-o", tmp_path / "cut")
    assert "cut, not damped" in cut.output
    again = invoke("prune", "-m", tmp_path / "damped", "--drop", "2", "-o", tmp_path / "again")
    assert "was pruned before (layers 1 are damped)" in again.output


# --- choices --------------------------------------------------------------------------------


def test_choices_are_counted_by_layer_and_then_by_scale() -> None:
    choices = Choices(Numbering({"encoder": 2, "decoder": 3}), (0.0, 0.25, 0.5))
    names = choices.names(range(15))
    assert names[:6] == (
        "encoder:0", "encoder:0:0.25", "encoder:0:0.5", "encoder:1", "encoder:1:0.25", "encoder:1:0.5",
    )  # fmt: skip
    assert tuple(map(choices.index, names)) == tuple(range(15))
    assert choices.chosen(("decoder:1",), {"encoder:1": 0.5}) == (9, 5)
    assert choices.dropped((9, 5, 0)) == [0, 3]


def test_choices_of_scale_0_alone_are_layers() -> None:
    for depths in ({"": 4}, {"encoder": 2, "decoder": 3}):
        layers = Numbering(depths)
        choices, every = Choices(layers), tuple(range(layers.num_layers))
        for allowed in (every, every[1:], every[:-2]):
            assert choices.most(allowed) == layers.most(allowed)
            assert choices.num_sets(allowed) == layers.num_sets(allowed)
            for dropped in ((), (0,), (0, 2)):
                assert choices.left(allowed, dropped) == layers.left(allowed, dropped)
        assert choices.names(every) == layers.names(every)


def test_layers_that_cannot_go_may_be_damped_and_ties_go_to_the_lowest_layer() -> None:
    choices = Choices(Numbering({"": 3}), (0.0, 0.5))
    settings = SelectionSettings("damp", held=(0,), protect_last=1, scales=choices.scales)
    assert choices.names(_allowed(choices, settings)) == ("0:0.5", 1, "1:0.5")
    tied = [Candidate(choice, 1.0) for choice in (4, 3, 2)]
    assert choices.name(best_of(tied, "index").layer) == 1


def test_a_layer_is_changed_once_and_one_stays() -> None:
    choices = Choices(Numbering({"": 2}), (0.0, 0.5))
    assert choices.left(range(4), ()) == (0, 1, 2, 3)
    assert choices.left(range(4), (0,)) == (3,)  # the last layer cannot go, but be damped
    assert choices.left(range(4), (1,)) == (2, 3)
    assert choices.num_sets(range(4)) == [1, 4, 3]


# --- the search -----------------------------------------------------------------------------

OVERDONE = 1
SCALE = 0.5


def save_overdone(folder: Path) -> Path:
    """Save a Llama that tells numbers, and whose layer OVERDONE adds twice what the target wants."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **FAMILIES["llama"], num_labels=1)
    network = awaken(AutoModelForSequenceClassification.from_config(config))
    network.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def overdone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Return a model and its rows: right on ID as it is, on the target with the layer's branches halved."""
    folder = tmp_path_factory.mktemp("overdone")
    model = load_model(save_overdone(folder / "model"))
    files = {}
    for seed, (name, scales) in enumerate((("id", {}), ("target", {OVERDONE: SCALE}))):
        records = text_records(80, seed, labelled=False)
        path = write_jsonl(folder / f"{name}.jsonl", [{**row, "label": 0.0} for row in records])
        rows = read_samples(path, model.task.rows({}, model.processor), role="id-select")
        for batch in model.task.batches(rows, model.processor, 16):
            with changing(model, damped(model, scales)):
                for row, value in zip(batch.indices, model.logits(batch.inputs)[:, 0], strict=True):
                    records[row]["label"] = float(value)
        files[name] = write_jsonl(path, records)
    return folder / "model", files


def select(overdone: tuple[Path, dict[str, Path]], output: Path, *options: object) -> Result:
    model, files = overdone
    given = ["-m", model, "--id", files["id"], "--target", files["target"], "--criterion", "damp"]
    return invoke("select", *given, *options, "-o", output)


def test_the_layer_that_is_overdone_is_found_and_kept(
    overdone: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    result = select(overdone, tmp_path / "chosen", "--max-drop-layers", 2)
    assert result.exit_code == 0, result.output
    assert f"Damp: {OVERDONE} times {SCALE}" in result.output
    found = read(tmp_path / "chosen/selection.json", Selection)
    assert (found.drop, found.damp) == ((), (Damping(OVERDONE, SCALE),))
    assert found.selected_metric == pytest.approx(0, abs=1e-9)
    assert (found.steps[0].layer, found.steps[0].scale) == (OVERDONE, SCALE)
    tried = {(c.layer, c.scale) for c in found.steps[0].candidates}
    assert tried == {(layer, scale) for layer in range(NUM_LAYERS) for scale in (0.0, 0.25, 0.5, 0.75)}
    journal = (tmp_path / "chosen/search.jsonl").read_text()
    assert f'"layer": "{OVERDONE}:{SCALE}"' in journal
    kept = invoke(
        "prune", "-m", overdone[0], "--selection", tmp_path / "chosen/selection.json", "-o", tmp_path / "kept"
    )
    assert kept.exit_code == 0, kept.output
    model = load_model(overdone[0])
    expected = logits(model, damped(model, {OVERDONE: SCALE}))
    assert np.array_equal(logits(load_model(tmp_path / "kept")), expected)


@pytest.mark.slow
def test_the_layer_that_is_overdone_is_found_and_kept_end_to_end(
    overdone: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    model, files = overdone
    result = invoke(
        "run", "-m", model, "--id", files["id"], "--target", files["target"], "-o", tmp_path / "out",
        "--criterion", "damp", "--max-drop-layers", 1, "--iterations", 3, "--warmup", 1, "--num-threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    damp = (Damping(OVERDONE, SCALE),)
    named = f"amping layer {OVERDONE} (times {SCALE})"
    for artifact, kind in (
        ("selection.json", Selection), ("profile.json", Profile), ("benchmark.json", Benchmark),
        ("pruned/checkpoint/selection.json", Selection), ("pruned/onnx/export.json", Export),
    ):  # fmt: skip
        found: Any = read(tmp_path / "out" / artifact, kind)
        assert (found.drop, found.damp) == ((), damp), artifact
    assert read(tmp_path / "out/original/onnx/export.json", Export).damp == ()
    target = read(tmp_path / "out/benchmark.json", Benchmark).accuracy["target"]
    assert target.original > 0.01
    assert target.pruned == pytest.approx(0, abs=1e-6)
    assert read(tmp_path / "out/report.json", Report).verdict.startswith(f"D{named} of {NUM_LAYERS} lowers")
    assert f"D{named}" in (tmp_path / "out/report.md").read_text()
    assert f"{OVERDONE}:{SCALE}" in (tmp_path / "out/report.html").read_text()
    swept = invoke(
        "intervene", "-m", model, "--id", files["id"], "--target", files["target"], "-o", tmp_path / "out",
        "--alphas", "0.5", "--scaling", "branches", "--draws", 0,
    )  # fmt: skip
    assert swept.exit_code == 0, swept.output
    assert f"The branches of layer {OVERDONE} scaled by alpha" in swept.output
    doses = read(tmp_path / "out/intervention.json", Intervention)
    assert (doses.scaling, doses.layers) == ("branches", (OVERDONE,))
    assert {dose.alpha: dose.metric for dose in doses.target}[SCALE] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("search", ["racing", "beam", "exhaustive"])
def test_every_search_goes_over_scales(
    search: str, overdone: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    options = ["--alphas", "0.5", "--max-drop-layers", 2, "--search", search]
    assert select(overdone, tmp_path / search, *options).exit_code == 0
    found = read(tmp_path / f"{search}/selection.json", Selection)
    assert Damping(OVERDONE, SCALE) in found.damp


def test_of_scale_0_alone_damp_is_tale(overdone: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    found = []
    for name, options in (("damp", ["--alphas", "0"]), ("tale", ["--criterion", "tale"])):
        result = select(
            overdone, tmp_path / name, *options, "--max-drop-layers", 1, "--pick", 1, "--epsilon", 1
        )
        assert result.exit_code == 0, result.output
        found.append(read(tmp_path / name / "selection.json", Selection))
    assert found[0].drop == found[1].drop != ()
    assert found[0].damp == ()
    assert found[0].steps == found[1].steps


def test_replayed_candidates_score_as_full_forwards_do(overdone: tuple[Path, dict[str, Path]]) -> None:
    model = load_model(overdone[0])
    rows = read_samples(overdone[1]["target"], model.task.rows({}, model.processor), role="target-select")
    probe = Probe(model, {"id": rows, "target": rows})
    probe.changes = Changes(model, (0.0, 0.3))
    base, choices = (probe.choices.of(0, 0.3),), probe.choices
    layers = [choices.of(layer, scale) for layer in (1, 3) for scale in (0.0, 0.3)]
    scored = probe.scores(base, layers, np.arange(len(rows)))
    for choice in layers:
        scales = {0: 0.3, choices.unit(choice): choices.scale(choice)}
        with changing(model, damped(model, scales)):
            expected = all_values(model, rows)
        np.testing.assert_allclose(scored[choice][0], expected, atol=1e-5)


def all_values(model: LoadedModel, rows: Samples) -> np.ndarray:
    values = np.zeros(len(rows))
    for batch in model.task.batches(rows, model.processor, len(rows)):
        scores = model.task.score(model.answers(batch), rows, batch.indices)
        values[batch.indices] = scores.values.mean(axis=tuple(range(1, scores.values.ndim)))
    return values


def test_a_search_over_scales_goes_on_where_it_was_killed(
    overdone: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    options = ["--max-drop-layers", 1, "--full-scores"]
    assert select(overdone, tmp_path / "whole", *options).exit_code == 0
    lines = (tmp_path / "whole/search.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / ".cut.tapioca-partial").mkdir()
    (tmp_path / ".cut.tapioca-partial/search.jsonl").write_text("".join(lines[: len(lines) // 2]))
    resumed = select(overdone, tmp_path / "cut", *options)
    assert resumed.exit_code == 0, resumed.output
    whole, cut = (json.loads((tmp_path / f"{name}/selection.json").read_text()) for name in ("whole", "cut"))
    for found in (whole, cut):
        found["cost"].pop("seconds")
    assert whole == cut
    assert (tmp_path / "cut/search.jsonl").read_text() == "".join(lines)
    (tmp_path / ".other.tapioca-partial").mkdir()
    (tmp_path / ".other.tapioca-partial/search.jsonl").write_text("".join(lines))
    other = select(overdone, tmp_path / "other", *options, "--alphas", "0,0.1")
    assert other.exit_code == 1
    assert "alphas" in other.output


def test_rows_without_labels_and_norms_behind_sums_are_refused(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    bare = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(30, seed, labelled=False))
        for seed, name in enumerate(("id", "target"))
    }
    for model, files, said in (
        ("gpt2", bare, "Criterion damp needs labels"),
        ("bert", sample_files("bert"), "cannot be damped"),
    ):
        result = select((tiny(model), files), tmp_path / "out")
        assert result.exit_code == 1
        assert said in result.output
        assert len(complaint(result)) == 2
        assert not (tmp_path / "out").exists()


def test_what_damp_cannot_do_is_said(overdone: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    dry = select(overdone, tmp_path / "out", "--dry-run")
    assert "is not predicted" in dry.output
    model, files = overdone
    compared = invoke(
        "select", "-m", model, "--id", files["id"], "--target", files["target"], "-o", tmp_path / "out",
        "--compare", "damp,tale", "--max-drop-layers", 1,
    )  # fmt: skip
    assert "Criterion damp keeps what it damps" in compared.output
    wrong = select(overdone, tmp_path / "out", "--alphas", "-1")
    assert "must be a number from 0 up" in wrong.output
    assert {dry.exit_code, compared.exit_code, wrong.exit_code} == {1}
    assert not (tmp_path / "out").exists()
