"""Attention and MLP of a layer, one without the other: found, skipped, searched, written as zeros."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from conftest import LABELS, NUM_LAYERS, awaken, make_tokenizer
from safetensors.torch import load_file
from test_laws import drop_by_hand, load_rows, some_batches

from tapioca_export import RunConfig, prune, select
from tapioca_export.artifacts import Selection, read
from tapioca_export.cli import main
from tapioca_export.commands import intervene
from tapioca_export.errors import ConfigError, UnsupportedModelError
from tapioca_export.models import LoadedModel, LoadOptions, load_model, skipping
from tapioca_export.models.proof import save_pruned
from tapioca_export.models.rewriting import UnmappedNamesError
from tapioca_export.numbering import PARTS, Numbering, layer_of, layers_text, num_left, part_of
from tapioca_export.planning import plan
from tapioca_export.profiling import Probe
from tapioca_export.profiling.narrowing import _stays_the_same
from tapioca_export.samples import Samples
from tapioca_export.selection import CRITERIA, SelectionSettings, select_layers
from tapioca_export.selection.rounds import OF_WHOLE_LAYERS

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]

HALVES = LoadOptions(granularity="sublayer")
_SIZES = {
    "vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_BERT = ("attention.output.dense", "output.dense")
_LLAMA = ("self_attn.o_proj", "mlp.down_proj")
# The last projections of attention and MLP, as one finds them by reading the families' code.
ENDS = {
    "bert": _BERT,
    "distilbert": ("attention.out_lin", "ffn.lin2"),
    "modernbert": ("attn.Wo", "mlp.Wo"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "polynomial": ("attn.c_proj", "mlp.c_proj"),
    # What is added to the stream comes from both at once, is normalized, or is added inside.
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": _LLAMA,
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "mixtral": ("self_attn.o_proj", "mlp.experts"),
}
EXTRA: dict[str, dict[str, Any]] = {
    "gpt_neox": _SIZES,
    "falcon": {**_SIZES, "bias": True, "parallel_attn": True, "multi_query": True},
    "gemma2": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "bloom": {**_SIZES, "n_head": 4},
    "mixtral": {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 4},
}
SETS = (("1.attention",), ("2.mlp",), ("0.attention", "2.mlp", "3"), ("1.mlp", "3.attention"))
FEW = ("bert", "llama", "gemma2", "bloom")


def halved(family: str, tiny: Tiny, folder: Path) -> LoadedModel:
    """Load a classifier of a family, with its branches known."""
    if family not in EXTRA:
        return load_model(tiny(family), options=HALVES)
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, id2label=dict(enumerate(LABELS)), **EXTRA[family])
        awaken(transformers.AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
        make_tokenizer(family).save_pretrained(folder)
    return load_model(folder, options=HALVES)


@pytest.fixture(scope="module")
def models(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    found: dict[str, LoadedModel] = {}

    def model(family: str) -> LoadedModel:
        if family not in found:
            found[family] = halved(family, tiny, tmp_path_factory.mktemp("models") / family)
        return found[family]

    return model


@pytest.fixture
def rows(sample_files: Files) -> Callable[[LoadedModel], Samples]:
    def read_rows(model: LoadedModel) -> Samples:
        family = "polynomial" if model.processor.tokenizer is None else "text"
        return load_rows(model, sample_files(family)["id"])

    return read_rows


def without_by_hand(model: LoadedModel, family: str, names: Sequence[str]) -> LoadedModel:
    """Return a deep copy with zeros in the ends of what is gone, and without layers of which all is."""
    other = copy.deepcopy(model)
    for name in (name for name in names if "." in name):
        layer = other.layers[int(name.partition(".")[0])]
        end = layer.get_submodule(ENDS[family][PARTS.index(part_of(name))])
        for weight in end.parameters():
            weight.data.zero_()
    return drop_by_hand(other, tuple(int(name) for name in names if "." not in name))


# --- what is found --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENDS)
def test_the_branches_of_every_family_are_found(family: str, models: Callable[[str], LoadedModel]) -> None:
    model = models(family)
    assert len(model.branches) == NUM_LAYERS
    for branches in model.branches:
        assert tuple(branches) == PARTS
        assert tuple(branches[part].ends for part in PARTS) == tuple((end,) for end in ENDS[family])
        assert not set(branches["attention"].weights) & set(branches["mlp"].weights)


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("names", SETS, ids=",".join)
def test_skipping_branches_equals_zeros_in_their_last_projections_to_the_bit(
    family: str,
    names: Sequence[str],
    models: Callable[[str], LoadedModel],
    rows: Callable[[LoadedModel], Samples],
) -> None:
    model = models(family)
    by_hand = without_by_hand(model, family, names)
    for batch in some_batches(model, rows(model))[-2:]:
        with skipping(model, model.units.indices(names)):
            skipped = model.logits(batch)
        assert np.array_equal(skipped, by_hand.logits(batch))
        assert np.abs(skipped - model.logits(batch)).max() > 1e-3


@pytest.mark.parametrize("family", FEW)
def test_a_layer_without_both_branches_is_a_layer_less(
    family: str, models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model = models(family)
    batch = some_batches(model, rows(model))[-1]
    with skipping(model, model.units.indices(["1.attention", "1.mlp"])):
        skipped = model.logits(batch)
    assert np.array_equal(skipped, drop_by_hand(model, (1,)).logits(batch))


FIRST = {
    "bert": ("attention.self.query", "intermediate.dense"),
    "llama": ("self_attn.q_proj", "mlp.up_proj"),
    "bloom": ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
}


@pytest.mark.parametrize("family", FIRST)
def test_a_silent_branch_computes_nothing_and_the_layer_is_left_as_it_was(
    family: str, models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model = models(family)
    outermost = {path.partition(".")[0] for path in FIRST[family]}
    assert family == "bert" or outermost <= {path for b in model.branches[1].values() for path in b.stand_ins}
    layer, batch, calls = model.layers[1], some_batches(model, rows(model))[0], []
    modules = dict(layer.named_modules())
    hooks = [
        layer.get_submodule(path).register_forward_hook(lambda module, *_: calls.append(module))
        for path in FIRST[family]
    ]
    with skipping(model, model.units.indices(["1.attention"])):
        model.logits(batch)
    assert calls == [layer.get_submodule(FIRST[family][1])]
    assert dict(layer.named_modules()) == modules
    for hook in hooks:
        hook.remove()


REFUSED = {
    "mamba": ({**_SIZES, "state_size": 8}, "text-generation", "has no MLP beside mixer.out_proj"),
    "t5": (
        {"vocab_size": 128, "d_model": 32, "d_ff": 64, "num_heads": 4, "d_kv": 8, "num_layers": 2,
         "decoder_start_token_id": 0},
        "text2text-generation",
        "layer decoder:0 has cross attention as a third part",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", REFUSED)
def test_layers_that_are_not_attention_and_mlp_are_refused_with_the_reason(
    family: str, tmp_path: Path
) -> None:
    settings, task, reason = REFUSED[family]
    config = transformers.AutoConfig.for_model(family, **settings)
    make = transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
    make.from_config(config).save_pretrained(tmp_path)
    make_tokenizer(family).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(tmp_path, task, HALVES)
    load_model(tmp_path, task)  # whole layers may go


def test_attention_whose_biases_other_layers_use_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_ff=64, num_heads=4, d_kv=8, num_layers=2, num_labels=3
    )
    awaken(transformers.T5ForTokenClassification(config)).save_pretrained(tmp_path)
    make_tokenizer("t5").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="hands more to the layers above"):
        load_model(tmp_path, "token-classification", HALVES)


# --- what is counted ------------------------------------------------------------------------


def test_units_have_names_and_mean_layers() -> None:
    units = Numbering({"encoder": 2, "decoder": 3}, PARTS)
    assert units.num_units == 10
    assert units.names([0, 3, 4, 9]) == (
        "encoder:0.attention",
        "encoder:1.mlp",
        "decoder:0.attention",
        "decoder:2.mlp",
    )
    assert [units.index(name) for name in units.names(range(10))] == list(range(10))
    assert units.indices(["decoder:1", "encoder:0.mlp"]) == (6, 7, 1)
    assert units.split([6, 7, 1]) == ((3,), {0: ("mlp",)})
    assert units.left_of([0, 1, 4, 9]) == {1: ("attention",), 3: ("mlp",)}
    assert units.boundaries == Numbering({"encoder": 2, "decoder": 3}).boundaries
    assert units.unprotected(1, 0) == (2, 3, 6, 7, 8, 9)
    assert units.most(range(10)) == 8
    with pytest.raises(ConfigError, match="All 2 layers of the encoder"):
        units.indices(["encoder:0", "encoder:1"])
    with pytest.raises(ConfigError, match="has no part 'head'"):
        units.index("encoder:0.head")
    with pytest.raises(ConfigError, match="named twice"):
        units.indices(["encoder:0", "encoder:0.mlp"])
    with pytest.raises(ConfigError, match="layers are taken whole here"):
        Numbering({"": 3}).index("1.mlp")


def test_a_stack_may_have_dots_in_its_name() -> None:
    units = Numbering({"vision.blocks": 2, "text.blocks": 2}, PARTS)
    names = units.names(range(8))
    assert [units.index(name) for name in names] == list(range(8))
    assert (part_of("text.blocks:1"), part_of("text.blocks:1.mlp")) == ("", "mlp")
    assert layer_of("text.blocks:1") == layer_of("text.blocks:1.mlp") == "text.blocks:1"
    assert (
        layers_text(["text.blocks:1", "text.blocks:0.mlp"])
        == "layer text.blocks:1 and the MLP of layer text.blocks:0"
    )
    blocks = Numbering({"vision.blocks": 2, "text.blocks": 2})
    assert blocks.indices(["text.blocks:1"]) == (3,)


def test_words_and_counts_tell_halves_from_layers() -> None:
    names = ("1.attention", 3, "2.mlp", "4.attention", "4.mlp", "0.attention")
    assert layers_text(names) == "layers 3 and 4, the attention of layers 1 and 0 and the MLP of layer 2"
    assert num_left(8, names) == 4.5
    assert (layers_text([4]), layers_text([4, 7]), num_left(8, [4, 7])) == ("layer 4", "layers 4 and 7", 6)


# --- what is measured -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("dropped", [(), ("2.attention",), ("3",)])
def test_replayed_scores_equal_plain_ones(
    family: str,
    dropped: Sequence[str],
    models: Callable[[str], LoadedModel],
    rows: Callable[[LoadedModel], Samples],
) -> None:
    model, samples = models(family), rows(models(family))
    base = model.units.indices(dropped)
    units = [unit for unit in range(model.units.num_units) if unit not in base]
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=7)
    found = probe.metrics(base, units)
    for unit in units:
        values, losses = [], []
        for batch in model.task.batches(samples, probe.processor, 7):
            with skipping(model, [*base, unit]):
                scores = model.task.score(model.answers(batch), samples, batch.indices)
            values += scores.values.tolist()
            losses += scores.losses.tolist()
        assert found[unit].metric == pytest.approx(np.mean(values), abs=1e-6)
        assert found[unit].loss == pytest.approx(np.mean(losses), rel=1e-4, abs=1e-5)


def test_replayed_candidates_equal_skipped_ones_to_the_bit(
    models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples = models("llama"), rows(models("llama"))
    base = model.units.indices(["2.attention"])
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=7)
    for batch, unit, trace in probe._passes(samples, base, (0, 1, 3, 6)):
        with skipping(model, base if unit is None else (*base, unit)):
            assert np.array_equal(trace.answers, model.logits(batch.inputs))


def test_a_layer_is_tried_as_the_last_without_any_above(
    models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples, ran = models("modernbert"), rows(models("modernbert")), []
    batch = model.task.batch(samples, np.arange(8), model.processor)
    read = model.task.read_tokens(batch, model.processor)
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in model.layers[1:]]
    assert read is not None
    assert _stays_the_same(model, batch, samples, read, 0)
    assert not ran
    for hook in hooks:
        hook.remove()


def test_a_search_counts_branches_that_run(
    models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples = models("llama"), rows(models("llama"))
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=64)
    probe.metric(model.units.indices(["0", "2.mlp"]))
    assert probe.ledger.layer_forwards == len(samples) * (2 * NUM_LAYERS - 3)


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {*OF_WHOLE_LAYERS, "fixed"}))
def test_criteria_with_a_meaning_for_branches_rank_them(
    criterion: str, models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples = models("llama"), rows(models("llama"))
    settings = SelectionSettings(
        criterion=criterion, max_drop_layers=2, epsilon=None, pick="final", parts=PARTS
    )
    probe = Probe(model, {"id": samples, "target": samples})
    found = select_layers(probe, settings, model="m", task=model.task, num_samples=len(samples))
    tried = found.steps[0].candidates if found.steps else found.rejected
    assert found.num_layers == NUM_LAYERS
    every = set(model.units.names(range(2 * NUM_LAYERS)))
    # A target that is ID ends the first two before they try any; a shortlist is some.
    expected = {"realignment": 0, "tapioca": 0, "tapioca+tale": settings.shortlist}.get(criterion, len(every))
    assert len({c.layer for c in tried} & every) == len(tried) == expected
    assert all(part_of(name) in PARTS for name in found.drop)


@pytest.mark.parametrize("criterion", OF_WHOLE_LAYERS)
def test_criteria_without_one_are_refused(criterion: str) -> None:
    with pytest.raises(ConfigError, match="between the parts of one there is none to read"):
        SelectionSettings(criterion=criterion, parts=PARTS)


def test_a_part_that_adds_nothing_turns_nothing(
    models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples = models("llama"), rows(models("llama"))
    weight = model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.zero_()
    try:
        turns = Probe(model, {"target": samples}).turns(range(2 * NUM_LAYERS), 16)
    finally:
        weight.data.copy_(kept)
    by_name = dict(zip(model.units.names(range(2 * NUM_LAYERS)), turns.values(), strict=True))
    assert by_name.pop("1.mlp") == pytest.approx(0, abs=1e-9)
    assert min(by_name.values()) > 1e-6


def test_branches_are_weighed_by_their_own_weights(
    models: Callable[[str], LoadedModel], rows: Callable[[LoadedModel], Samples]
) -> None:
    model, samples = models("gpt2"), rows(models("gpt2"))
    found = Probe(model, {"id": samples, "target": samples}).magnitudes()
    layer = model.layers[1]
    for unit, parts in ((2, (layer.ln_1, layer.attn)), (3, (layer.ln_2, layer.mlp))):
        weights = [w for part in parts for name, w in part.named_parameters() if "bias" not in name]
        assert found[unit] == pytest.approx(sum(float(w.detach().abs().sum()) for w in weights), rel=1e-5)


# --- what is written ------------------------------------------------------------------------


def test_a_checkpoint_without_branches_has_zeros_for_them_and_says_so(
    tiny: Tiny, tmp_path: Path, sample_files: Files
) -> None:
    drop = ("0.attention", "2.mlp", 3)
    config = RunConfig(
        model=str(tiny("llama")), drop=drop, id=sample_files("llama")["id"], output=tmp_path / "out"
    )
    selection = prune(config)  # raises unless a fresh process agrees to the bit
    assert selection.drop == ("0.attention", "2.mlp", "3.attention", "3.mlp")
    assert read(config.output / "selection.json", Selection) == selection
    card = (config.output / "README.md").read_text(encoding="utf-8")
    assert "the attention of layer 0 and the MLP of layer 2 this checkpoint carries zeros" in card
    assert "no smaller for it" in card
    assert "no retraining: 3 of 4 (counted from 0); 3 are left" in card
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny("llama"), config.output))
    zeros = {f"model.layers.{end}.weight" for end in ("0.self_attn.o_proj", "2.mlp.down_proj")}
    assert {name for name, tensor in after.items() if not tensor.any()} == zeros
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if name not in zeros)
    assert before.keys() - after.keys() == {name for name in before if name.startswith("model.layers.3.")}


def test_zeros_are_written_from_memory_too_and_the_network_keeps_its_weights(
    tiny: Tiny, tmp_path: Path, sample_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UnmappedNamesError("Names cannot be told apart.")

    monkeypatch.setattr("tapioca_export.models.proof.write_pruned", refuse)
    model = load_model(tiny("bert"), options=HALVES)
    batches = some_batches(model, load_rows(model, sample_files("bert")["id"]))[:1]
    weights = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    assert "saved from memory" in str(save_pruned(model, model.units.indices(["1.mlp"]), tmp_path, batches))
    assert not load_file(tmp_path / "model.safetensors")["bert.encoder.layer.1.output.dense.weight"].any()
    assert all(torch.equal(weights[name], weight) for name, weight in model.network.state_dict().items())


def test_a_proof_by_bytes_is_refused_where_there_would_be_zeros(tiny: Tiny, tmp_path: Path) -> None:
    config = RunConfig(model=str(tiny("bert")), drop=("1.mlp",), output=tmp_path / "out")
    with pytest.raises(ConfigError, match="has zeros instead"):
        prune(config, proof="weights")
    drop = ("1.attention", "1.mlp")
    chosen = Selection(str(tiny("bert")), "text-classification", "tale", NUM_LAYERS, drop, (), "found")
    assert prune(replace(config, drop=()), chosen, "weights").proof == "weights"
    assert load_model(config.output).num_layers == NUM_LAYERS - 1


# --- doors ----------------------------------------------------------------------------------


def test_the_command_line_takes_parts_of_layers_and_refuses_what_is_none(tiny: Tiny, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "-o", str(tmp_path / "out")])
        assert result.exit_code != 0
        return result.output

    model = tiny("bert")
    assert "has no part 'head'" in run("prune", "-m", model, "--drop", "1.head")
    assert "Layer 4 does not exist" in run("prune", "-m", model, "--drop", "4.mlp")
    assert "named twice" in run("prune", "-m", model, "--drop", "1,1.mlp")
    assert "give layer numbers" in run("prune", "-m", model, "--drop", "x.mlp")
    assert "Did you mean 'sublayer'" in run("select", "-m", model, "--granularity", "sublayers")


@pytest.mark.parametrize(
    "arguments",
    [
        ("select", "--granularity", "sublayer", "--criterion", "damp"),
        ("select", "--granularity", "sublayer", "--alphas", "0.5"),
        ("prune", "--drop", "1.mlp", "--scale", "2:0.5"),
        ("prune", "--scale", "1.mlp:0.5"),
        ("intervene", "--layers", "1.mlp"),
        ("intervene", "--layers", "1.mlp", "--scaling", "branches"),
    ],
)
def test_only_whole_layers_are_damped_and_scaled(
    tiny: Tiny, sample_files: Files, tmp_path: Path, arguments: Sequence[str]
) -> None:
    files, (command, *rest) = sample_files("bert"), arguments
    given = [command, "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], *rest]
    result = CliRunner().invoke(main, [*map(str, given), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert re.search("hole layers are (damped|scaled), not attention or MLP alone", result.output)
    assert not (tmp_path / "out").exists()


def test_a_selection_of_sublayers_is_not_scaled_and_no_onnx_file_is_cut_by_it(tmp_path: Path) -> None:
    chosen = Selection("m", "text-classification", "tale", NUM_LAYERS, ("1.mlp",), (), "found")
    with pytest.raises(ConfigError, match="Whole layers are scaled"):
        intervene(RunConfig(model="m", output=tmp_path / "out"), selection=chosen)
    with pytest.raises(ConfigError, match=r"has no layer 1\.mlp"):
        prune(RunConfig(model="m.onnx", output=tmp_path / "out"), chosen)


def test_a_search_of_sublayers_is_journaled_by_their_names_and_resumes(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    files = sample_files("bert")
    config = RunConfig(
        model=str(tiny("bert")), id=files["id"], target=files["target"], output=tmp_path / "out",
        max_drop_layers=1, epsilon=None, pick="final", granularity="sublayer",
    )  # fmt: skip
    first = select(config)
    lines = [json.loads(line) for line in (config.output / "search.jsonl").read_text().splitlines()]
    assert lines[0]["fingerprint"]["search"]["granularity"] == "sublayer"
    tried = {line["layer"] for line in lines if line.get("kind") == "candidate"}
    assert tried == set(Numbering({"": NUM_LAYERS}, PARTS).names(range(2 * NUM_LAYERS)))
    assert first.drop[0] in tried

    (tmp_path / ".again.tapioca-partial").mkdir()
    kept = "\n".join(map(json.dumps, lines[: len(lines) // 2])) + "\n"
    (tmp_path / ".again.tapioca-partial/search.jsonl").write_text(kept)
    again = select(replace(config, output=tmp_path / "again"))
    assert replace(again, cost=None) == replace(first, cost=None)
    with pytest.raises(ConfigError, match="whole layers"):
        plan(replace(config, output=tmp_path / "plan"))


def test_whole_layers_are_journaled_and_recorded_as_ever(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    files = sample_files("bert")
    config = RunConfig(
        model=str(tiny("bert")), id=files["id"], target=files["target"], output=tmp_path / "out",
        max_drop_layers=1, epsilon=None, pick="final",
    )  # fmt: skip
    select(config)
    header = json.loads((config.output / "search.jsonl").read_text().splitlines()[0])
    assert "granularity" not in json.dumps(header)
    recorded = json.loads((config.output / "selection.json").read_text())
    assert isinstance(recorded["drop"][0], int)
    assert "granularity" not in recorded
