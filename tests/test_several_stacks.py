"""Models with several stacks: whatever holds for one stack holds for each of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import awaken

from tapioca_export.artifacts import Curves, Deviation, Journal, LayerProfile, Numbering, Profile
from tapioca_export.errors import ConfigError, UnsupportedModelError
from tapioca_export.models import (
    LoadedModel,
    drop_layers,
    droppable_layers,
    in_order,
    prunable_stacks,
    skipping,
    stand_ins,
)
from tapioca_export.models.surgery import refuse_dependent_layers
from tapioca_export.profiling.accumulating import mean_deviation
from tapioca_export.profiling.replaying import passes
from tapioca_export.reporting import figures
from tapioca_export.selection import CRITERIA, Round, SelectionSettings
from tapioca_export.tasks import TASKS, Batch, Inputs

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "vocab_size": 96, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 3,
    "num_decoder_layers": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "vocab_size": 96, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, **TOKENS,
}  # fmt: skip
WHISPER = {
    **BART, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 20,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
CLIP_SIZES = {"intermediate_size": 16, "num_attention_heads": 2}
CLIP = {
    "text_config": {**CLIP_SIZES, "hidden_size": 16, "vocab_size": 96, "num_hidden_layers": 2, **TOKENS},
    "vision_config": {**CLIP_SIZES, "hidden_size": 24, "image_size": 8, "patch_size": 4,
                      "num_hidden_layers": 3},
    "projection_dim": 8,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "t5": ("AutoModelForSeq2SeqLM", T5),
    "umt5": ("AutoModelForSeq2SeqLM", T5),
    "bart": ("AutoModelForSeq2SeqLM", BART),
    "m2m_100": ("AutoModelForSeq2SeqLM", BART),
    "whisper": ("AutoModelForSpeechSeq2Seq", WHISPER),
    "clip": ("AutoModelForZeroShotImageClassification", CLIP),
}


def make(family: str) -> tuple[LoadedModel, Inputs]:
    """Build a tiny random model with several stacks, all of whose layers matter, and two rows of inputs."""
    torch.manual_seed(0)
    auto, settings = FAMILIES[family]
    network = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(family, **settings))
    awaken(network)
    generator = np.random.default_rng(0)
    ids, answer = (generator.integers(3, 96, (2, length)) for length in (9, 5))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    output = "logits"
    if family == "whisper":
        inputs = {"input_features": generator.normal(size=(2, 8, 24)).astype(np.float32)}
    if family == "clip":
        ids[:, -1] = 2  # where the text is read
        inputs["pixel_values"] = generator.normal(size=(2, 3, 8, 8)).astype(np.float32)
        output = "logits_per_image"
    else:
        inputs["decoder_input_ids"] = answer
    task: Any = SimpleNamespace(outputs=(output,), joined=lambda outputs: outputs[0])
    model = LoadedModel(network, task, None, family, prunable_stacks(network))  # type: ignore[arg-type]
    stacks = in_order(network, model.stacks, lambda: model.logits(inputs))
    return LoadedModel(network, task, None, family, stacks), inputs  # type: ignore[arg-type]


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest) -> tuple[LoadedModel, Inputs]:
    return make(request.param)


# --- laws -----------------------------------------------------------------------------------


def test_stacks_stand_in_the_order_in_which_they_run() -> None:
    assert [(stack.name, stack.path) for stack in make("t5")[0].stacks] == [
        ("encoder", "encoder.block"),
        ("decoder", "decoder.block"),
    ]
    clip = make("clip")[0]
    assert dict(clip.numbering.depths) == {"vision": 3, "text": 2}
    backwards = in_order(clip.network, clip.stacks[::-1], lambda: clip.logits(make("clip")[1]))
    assert backwards == clip.stacks


def test_every_layer_matters_so_that_the_laws_can_fail(made: tuple[LoadedModel, Inputs]) -> None:
    model, inputs = made
    plain = model.logits(inputs)
    assert len(droppable_layers(model)) == model.num_layers == 5
    refuse_dependent_layers(model)
    for layer in range(model.num_layers):
        with skipping(model, [layer]):
            assert np.abs(model.logits(inputs) - plain).max() > 1e-4


@pytest.mark.parametrize("dropped", [(), (0,), (3,)])
def test_replayed_candidates_of_every_stack_equal_full_forwards_to_the_bit(
    made: tuple[LoadedModel, Inputs], dropped: tuple[int, ...]
) -> None:
    model, inputs = made
    layers = model.numbering.left(range(model.num_layers), dropped)
    with stand_ins(model) as places:
        found = {
            key: (trace.answers, len(trace.boundaries))
            for key, trace in passes(model, places, Batch(np.arange(2), inputs), dropped, layers, whole=True)
        }
    assert set(found) == {None, *layers}
    for key, (answers, num_boundaries) in found.items():
        left_out = dropped if key is None else (*dropped, key)
        assert np.array_equal(answers, drop_layers(model, left_out).logits(inputs))
        assert num_boundaries == model.num_layers + 2


def test_the_layers_of_a_stack_below_are_replayed_and_not_run() -> None:
    model, inputs = make("bart")
    first = model.numbering.ranges[1].start
    with stand_ins(model) as places:
        for key, _ in passes(model, places, Batch(np.arange(2), inputs), (), [first]):
            if key is None:
                recorded = [place.num_forwards for place in places]
    assert recorded == [2, 2, 0, 0, 0]
    assert [place.num_forwards for place in places] == [2, 2, 0, 2, 2]


def test_dropping_equals_skipping_in_any_two_stacks(made: tuple[LoadedModel, Inputs]) -> None:
    model, inputs = made
    whole = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    for layers in combinations(range(model.num_layers), 2):
        try:
            model.numbering.checked(layers)
        except ConfigError:
            continue
        with skipping(model, layers):
            skipped = model.logits(inputs)
        pruned = drop_layers(model, layers)
        assert np.array_equal(pruned.logits(inputs), skipped)
        assert pruned.num_layers == 3
    assert all(torch.equal(whole[name], tensor) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize("layers", [(0,), (1, 3), (2,)])
def test_a_pruned_model_reloads_and_generates_with_a_cache_as_without(
    made: tuple[LoadedModel, Inputs], layers: tuple[int, ...], tmp_path: Path
) -> None:
    model, inputs = made
    pruned = drop_layers(model, layers)
    pruned.network.save_pretrained(tmp_path)
    again, info = type(model.network).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    reloaded = LoadedModel(again.eval(), model.task, model.processor, model.source, model.stacks)
    assert np.array_equal(reloaded.logits(inputs), pruned.logits(inputs))
    if not again.can_generate():
        return
    first = {k: torch.from_numpy(v) for k, v in inputs.items() if k in ("input_ids", "input_features")}
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cached, uncached = (again.generate(**first, **options, use_cache=cache) for cache in (True, False))
    assert torch.equal(cached, uncached)
    assert cached.shape[1] >= 5


def test_the_cache_of_a_t5_with_the_shallower_encoder_has_room_for_its_decoder(tmp_path: Path) -> None:
    model = make("t5")[0]
    pruned = drop_layers(model, [0, 1]).network
    pruned.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.num_layers, config.num_decoder_layers) == (1, 2)
    assert config.get_text_config(decoder=True).num_hidden_layers == 2
    assert "decoder_layers" not in model.network.config.to_dict()


def test_stacks_that_no_input_gets_to_are_left_out() -> None:
    model, inputs = make("clip")
    text = {name: torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask")}
    (only,) = in_order(model.network, model.stacks, lambda: model.network.text_model(**text))
    assert (only.name, only.path) == ("", "text_model.encoder.layers")


def test_stacks_whose_layers_run_in_turn_are_refused() -> None:
    model = make("clip")[0]
    images, texts = model.layers_of(model.stacks[0]), model.layers_of(model.stacks[1])

    def in_turn() -> None:
        states = [torch.zeros(1, 3, 24), torch.zeros(1, 3, 16)]
        for image, text in zip(images, texts, strict=False):
            image(states[0], None)
            text(states[1], None)

    with pytest.raises(UnsupportedModelError, match=r"one after the other \(vision and text\)"):
        in_order(model.network, model.stacks, in_turn)


# --- names ----------------------------------------------------------------------------------

BOTH = Numbering({"encoder": 3, "decoder": 2})
ONE = Numbering({"": 4})


def test_a_layers_name_says_where_it_is() -> None:
    assert BOTH.names(range(5)) == ("encoder:0", "encoder:1", "encoder:2", "decoder:0", "decoder:1")
    assert BOTH.indices(BOTH.names([4, 0])) == (4, 0)
    assert BOTH.boundaries == (range(4), range(4, 7))
    assert BOTH.boundary_names[3:5] == ("encoder:3", "decoder:0")
    assert ONE.names([2, 3]) == ONE.indices([2, 3]) == (2, 3)
    assert (BOTH.stacks, ONE.stacks) == ({"encoder": 3, "decoder": 2}, {})


@pytest.mark.parametrize(
    ("numbering", "names", "message", "hint"),
    [
        (BOTH, [1], "stacks, encoder (3 layers) and decoder (2 layers)", "encoder:1 or decoder:1"),
        (BOTH, ["vision:0"], "none called vision", "encoder:0 or decoder:0"),
        (BOTH, ["decoder:2"], "the decoder has 2 layers", "decoder:0 to decoder:1"),
        (BOTH, ["decoder:-1"], "decoder:-1 does not exist", "decoder:0 to decoder:1"),
        (BOTH, ["encoder:1", "encoder:1"], "encoder:1 is named twice", None),
        (BOTH, ["decoder:0", "encoder:1", "decoder:1"], "All 2 layers of the decoder", "at least one"),
        (ONE, ["encoder:1"], "the model has one stack, of 4 layers", "Write 1."),
        (ONE, [4], "Layer 4 does not exist: the model has 4 layers", "0 to 3"),
        (ONE, [0, 1, 2, 3], "All 4 layers would", "at least one"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_with_those_there_are(
    numbering: Numbering, names: list[Any], message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError) as refused:
        numbering.indices(names)
    assert message in refused.value.message
    assert hint is None or hint in (refused.value.hint or "")


def test_one_layer_stays_in_every_stack() -> None:
    assert BOTH.unprotected(1, 0) == (1, 2, 4)
    assert BOTH.unprotected(1, 1) == (1,)
    assert BOTH.left(range(5), [3]) == (0, 1, 2)
    assert BOTH.left(range(5), [0, 1]) == (3, 4)
    assert (BOTH.most(range(5)), BOTH.most([0, 3, 4])) == (3, 2)
    sets = [
        layers
        for size in range(5)
        for layers in combinations(range(5), size)
        if not {3, 4} <= set(layers) and not {0, 1, 2} <= set(layers)
    ]
    assert BOTH.num_sets(range(5)) == [sum(len(layers) == size for layers in sets) for size in range(4)]


def test_the_mean_deviation_is_over_each_stacks_own_boundaries() -> None:
    numbers = [float(10**n) for n in range(7)]
    kept = [1, 100, 1000, 1e4, 1e6]  # behind layers 0 and 3 (decoder:0) is nothing of their own
    assert mean_deviation(numbers, numbers, [0, 3], BOTH) == pytest.approx(np.mean(kept))
    # The last boundary of a stack counts whether or not its last layer is there.
    assert mean_deviation(numbers, numbers, [2, 4], BOTH) == pytest.approx(np.mean(numbers))


def test_a_journal_names_layers_and_reads_them_back(tmp_path: Path) -> None:
    line = {
        "sets": [[0, 4]], "rows": [0], "values": [[1.0]], "losses": [[0.5]], "layer_forwards": 1,
        "layer_tokens": 2,
    }  # fmt: skip
    journal = Journal(tmp_path / "search.jsonl", {}, 1, numbering=BOTH)
    journal.add_rows(line, 1)
    journal.note({"kind": "candidate", "dropped": [0], "layer": 4, "against": 3})
    text = (tmp_path / "search.jsonl").read_text()
    assert '[["encoder:0", "decoder:1"]]' in text
    assert '"layer": "decoder:1", "against": "decoder:0"' in text
    again = Journal(tmp_path / "search.jsonl", {}, 1, numbering=BOTH)
    assert again.rows([0, 4], 1)[0].tolist() == [1.0]
    again.note({"kind": "candidate", "dropped": [0], "layer": 4, "against": 3})
    assert (tmp_path / "search.jsonl").read_text() == text


def test_the_default_reads_the_mean_over_the_real_tokens_of_each_row() -> None:
    task = TASKS["text-classification"]
    mask = np.asarray([[1, 1, 0], [1, 1, 1]])
    batch = Batch(np.arange(2), {"attention_mask": mask})
    weights = task.readout_of("encoder", batch, (2, 3))
    np.testing.assert_allclose(weights[0], [[0.5, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(weights[1], [[0, 0, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(task.readout_of("vision", batch, (2, 5)).sum(axis=(1, 2)), 1, rtol=1e-6)
    shared = task.readout_of("text", batch, (4, 3))  # four texts that are no rows: all rows read all of them
    np.testing.assert_allclose(shared, np.full((2, 4, 3), 1 / 12), rtol=1e-6)


def test_a_block_of_layers_lies_in_one_stack_and_is_not_all_of_it() -> None:
    turns = {1: (0.5,) * 5, 2: (0.5, 0.4, 0.0, 0.1)}  # from encoder:2 into the decoder; all of the decoder
    probe: Any = SimpleNamespace(num_layers=5, angular_distances=lambda size: turns[size])
    settings = SelectionSettings(max_drop_layers=2, stacks=BOTH.stacks)
    candidates = CRITERIA["angular-distance"](Round(probe, (), (0, 1, 2, 3, 4), settings)).candidates
    assert [candidate.layer for candidate in candidates if candidate.score > 1] == [1, 2]


def test_plots_and_tables_keep_stacks_apart() -> None:
    norms = tuple(float(n + 1) for n in range(7))
    part = LayerProfile(norms, norms, (0.1,) * 5, ((0.5, 9.0),) * 7, ((0.5, 9.0),) * 7, 8, 64)
    floor = Curves(norms, norms, 1.0)
    profile = Profile(
        model="m", task="t", position="mean", layers=BOTH.names(range(5)), id=part, target=part,
        deviation=Deviation(norms, norms, 1.0, floor), drop=("decoder:0",), stacks=BOTH.stacks,
    )  # fmt: skip
    drawn = (
        (figures.profile_figure(profile, "norms", "Norms", "norm"), [[0, 1, 2, 3], [4, 5, 6]], 4.5),
        (figures.deviation_figure(profile, "norms", "Deviation"), [[0, 1, 2, 3], [4, 5, 6]], 4.5),
        (figures.influence_figure(profile), [[0, 1, 2], [3, 4]], 3.0),
    )
    for figure, pieces, middle in drawn:
        lines = [trace for trace in figure.spec["data"] if "fillcolor" not in trace]
        assert [trace["x"] for trace in lines[:2]] == pieces
        assert [trace["showlegend"] for trace in lines[:2]] == [True, False]
        for trace in figure.spec["data"]:
            assert any(set(trace["x"]) == set(piece) for piece in pieces)
        (shape,) = figure.spec["layout"]["shapes"]
        assert (shape["x0"] + shape["x1"]) / 2 == middle
    assert drawn[0][0].spec["layout"]["xaxis"]["ticktext"][3:5] == ["encoder:3", "decoder:0"]
    assert drawn[0][0].data is not None
    assert [row[0] for row in drawn[0][0].data.rows] == list(BOTH.boundary_names)
    assert drawn[2][0].data is not None
    assert [row[0] for row in drawn[2][0].data.rows] == list(BOTH.names(range(5)))
