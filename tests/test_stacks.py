"""Layer stacks are found by what configs count, configs are mended, and the whole model stays whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from conftest import awaken, make_decoder, make_model

from tapioca_export.errors import UnsupportedModelError
from tapioca_export.models import (
    LoadedModel,
    Stack,
    drop_layers,
    find_stacks,
    prunable_stacks,
    skipping,
    stacks,
)
from tapioca_export.models.skipping import stream_of, with_stream
from tapioca_export.tasks import TASKS, Processor

IDS = torch.arange(5, 17).reshape(2, 6)


def loaded(network: Any, stack: Stack) -> LoadedModel:
    processor = Processor("folder", "last-token", 64)
    return LoadedModel(network, TASKS["text-classification"], processor, "folder", (stack,))


def t5(num_layers: int = 3, num_decoder_layers: int = 4) -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=96, d_model=16, d_kv=4, d_ff=16, num_heads=4, decoder_start_token_id=0, pad_token_id=0,
        num_layers=num_layers, num_decoder_layers=num_decoder_layers,
    )  # fmt: skip
    return awaken(transformers.T5ForConditionalGeneration(config))


def clip() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 64, "num_hidden_layers": 2},
        vision_config={**sizes, "image_size": 8, "patch_size": 4, "num_hidden_layers": 3},
    )
    return transformers.CLIPModel(config)


@torch.no_grad()
def logits(network: Any, **inputs: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = network(input_ids=IDS, **inputs, use_cache=False).logits
    return found


# --- finding --------------------------------------------------------------------------------


def test_each_stack_is_found_by_the_number_that_counts_it() -> None:
    assert [(s.name, s.path, s.field) for s in find_stacks(t5())] == [
        ("encoder", "encoder.block", "num_layers"),
        ("decoder", "decoder.block", "num_decoder_layers"),
    ]
    assert {(s.name, s.path, s.config) for s in find_stacks(clip())} == {
        ("text", "text_model.encoder.layers", "text_config"),
        ("vision", "vision_model.encoder.layers", "vision_config"),
    }


def test_a_stack_of_one_layer_is_found() -> None:
    assert prunable_stacks(make_decoder("llama", num_hidden_layers=1))[0].path == "model.layers"


def test_stacks_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_name", lambda config, path: "tower")
    assert [stack.name for stack in find_stacks(t5())] == ["encoder.block", "decoder.block"]


def test_half_an_encoder_decoder_is_not_taken_for_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    build = stacks.build_empty

    def fails_at_five(model_class: Any, config: Any) -> Any:
        if config.num_decoder_layers == 5:
            raise UnsupportedModelError("t5 cannot be built at another depth: five is odd")
        return build(model_class, config)

    monkeypatch.setattr(stacks, "build_empty", fails_at_five)
    assert len(find_stacks(t5())) == 1
    with pytest.raises(UnsupportedModelError, match=r"an encoder and a decoder.*five is odd"):
        prunable_stacks(t5())


def test_why_a_class_refuses_a_depth_is_said() -> None:
    class Even(transformers.LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            if config.num_hidden_layers % 2:
                raise ZeroDivisionError("an odd depth\nand more")
            super().__init__(config)

    network = Even(make_decoder("llama").config)
    with pytest.raises(UnsupportedModelError, match=r"no unique layer stack.*an odd depth$"):
        prunable_stacks(network)[0]
    with pytest.raises(UnsupportedModelError, match="an odd depth"):
        drop_layers(loaded(network, Stack("", "model.layers")), [0])


# --- dropping -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("drop", [[0], [0, 1], [2]])
def test_t5s_relative_positions_move_to_the_new_lowest_layer(name: str, drop: list[int]) -> None:
    network = t5()
    stack = next(stack for stack in find_stacks(network) if stack.name == name)
    model = loaded(network, stack)
    with skipping(model, drop):
        skipped = logits(network, decoder_input_ids=IDS)
    pruned = drop_layers(model, drop).network
    assert torch.equal(logits(pruned, decoder_input_ids=IDS), skipped)
    assert not torch.equal(logits(network, decoder_input_ids=IDS), skipped)


def test_the_model_that_layers_are_dropped_from_stays_whole() -> None:
    network = make_decoder("llama")
    before, model = logits(network), loaded(network, prunable_stacks(network)[0])
    pruned = drop_layers(model, [1, 2])
    assert (model.num_layers, pruned.num_layers) == (4, 2)
    assert (network.config.num_hidden_layers, pruned.network.config.num_hidden_layers) == (4, 2)
    assert torch.equal(logits(network), before)
    assert pruned.layers[1].mlp.up_proj.weight is model.layers[3].mlp.up_proj.weight
    assert drop_layers(model, []) is model


def test_what_is_tied_stays_tied() -> None:
    network = make_decoder("gpt2")
    assert network.lm_head.weight is network.transformer.wte.weight
    pruned = drop_layers(loaded(network, prunable_stacks(network)[0]), [0]).network
    assert pruned.lm_head.weight is pruned.transformer.wte.weight


def test_weights_that_a_config_wrongly_calls_tied_stay_apart(tmp_path: Path) -> None:
    apart = make_decoder("llama", tie_word_embeddings=False)
    apart.config.tie_word_embeddings = False
    apart.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.tie_word_embeddings = True
    network = transformers.LlamaForCausalLM.from_pretrained(tmp_path, config=config).eval()
    assert network.lm_head.weight is not network.model.embed_tokens.weight
    model = loaded(network, prunable_stacks(network)[0])
    with skipping(model, [1]):
        skipped = logits(network)
    pruned = drop_layers(model, [1]).network
    assert torch.equal(logits(pruned), skipped)
    pruned.save_pretrained(tmp_path / "pruned")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    assert torch.allclose(logits(again), skipped, atol=1e-5)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


def test_what_a_network_was_given_besides_its_config_goes_with_it(tmp_path: Path) -> None:
    make_decoder("llama").save_pretrained(tmp_path)
    network = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    network.generation_config.max_new_tokens = 7
    pruned = drop_layers(loaded(network, prunable_stacks(network)[0]), [1]).network
    assert pruned.generation_config.max_new_tokens == 7
    assert pruned._weight_conversions is network._weight_conversions


class Pair(NamedTuple):
    states: torch.Tensor
    weights: str


@pytest.mark.parametrize("output", [(IDS, "kept"), [IDS, "kept"], Pair(IDS, "kept")])
def test_a_layers_other_outputs_are_kept_when_it_is_skipped(output: Any) -> None:
    assert stream_of(output) is IDS
    states, kept = with_stream(output, IDS + 1)
    assert torch.equal(states, IDS + 1)
    assert kept == "kept"
    assert isinstance(with_stream(output, IDS), list) == isinstance(output, list)


# --- configs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "mended"),
    [
        ("layer_types", ["a", "b", "c", "d", "e"], ["a", "c", "e"]),
        ("layer_types", ["a", "b"], ["a", "b"]),  # not one a layer
        ("attention_window", 512, 512),
        ("attention_types", [[["a", "b"], 2], [["c"], 1]], [[["a", "a", "c"], 1]]),
        ("mlp_only_layers", [1, 2, 4], [1, 2]),
        ("global_attn_indexes", [1, -1], [2]),
        ("first_k_dense_replace", 3, 2),
        ("max_window_layers", 28, 3),
        ("deepstack_visual_indexes", [0, 3, 4], [0, 1, 2]),
    ],
)
def test_what_a_config_says_of_single_layers_is_mended(name: str, value: Any, mended: Any) -> None:
    config = SimpleNamespace(num_hidden_layers=5, **{name: value})
    found = stacks.mended_config(config, Stack("", "layers"), [0, 2, 4])
    assert (getattr(found, name), found.num_hidden_layers) == (mended, 3)
    assert (getattr(config, name), config.num_hidden_layers) == (value, 5)


def test_outputs_that_would_become_one_are_refused() -> None:
    config = SimpleNamespace(num_hidden_layers=5, deepstack_visual_indexes=[2, 3])
    with pytest.raises(UnsupportedModelError, match="cannot become one"):
        stacks.mended_config(config, Stack("", "layers"), [0, 2, 4])


def test_a_backbones_feature_maps_follow_its_layers() -> None:
    config = transformers.Dinov2Config(num_hidden_layers=5, out_features=["stem", "stage3", "stage5"])
    found = stacks.mended_config(config, Stack("", "encoder.layer"), [0, 2, 4])
    assert found.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert (found.out_features, found.out_indices) == (["stem", "stage2", "stage3"], [0, 2, 3])
    type(found).from_dict(found.to_dict())  # refuses what does not agree


def test_a_classifier_is_found_whole() -> None:
    assert prunable_stacks(make_model("bert")) == (Stack("", "bert.encoder.layer"),)
