"""What a config says of its layers, mended as transformers would, which is not imported for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, BertConfig, GPT2Config

from tapioca_export.config_layers import mended_text
from tapioca_export.errors import UnsupportedModelError
from tapioca_export.models import mend_config_file

# What they say of single layers: nothing, lists, numbers of layers, numbers from the bottom.
KINDS = (
    "bert", "cohere2", "deberta-v2", "distilbert", "ernie", "exaone4", "gemma2", "gemma3_text", "gpt2",
    "gpt_oss", "llama", "mistral", "mixtral", "modernbert", "olmo3", "opt", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "smollm3", "vit", "wav2vec2", "xlm-roberta",
)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in CONFIG_MAPPING])
def test_a_config_is_mended_without_transformers_as_transformers_would_to_the_byte(
    kind: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    depth = config.num_hidden_layers
    mend_config_file(tmp_path / "whole", tmp_path / "cut", [1, 2], depth)
    text, written = ((tmp_path / name / "config.json").read_text() for name in ("whole", "cut"))
    assert mended_text(text, [i for i in range(depth) if i not in (1, 2)], depth) == written


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("qwen2", "layer_types"),
        ("qwen3_moe", "mlp_only_layers"),
        ("gpt_neo", "attention_layers"),
        ("jamba", ""),
        ("somebodys", ""),
    ],
)
def test_what_a_class_would_say_of_layers_is_left_to_transformers(kind: str, left_out: str) -> None:
    """Left out of the file, or said by no file: it is made of the number of layers."""
    config = AutoConfig.for_model(kind) if kind in CONFIG_MAPPING else BertConfig()
    depth, said = config.num_hidden_layers, {**json.loads(config.to_json_string()), "model_type": kind}
    if left_out:
        assert mended_text(as_text(said), range(1, depth), depth)
        assert mended_text(as_text({**said, left_out: None}), range(1, depth), depth) is None
        del said[left_out]
    assert mended_text(as_text(said), range(1, depth), depth) is None


def test_a_number_may_be_null_and_may_not_be_left_out() -> None:
    said = json.loads(AutoConfig.for_model("llama").to_json_string())
    depth = said["num_hidden_layers"]
    assert mended_text(as_text({**said, "head_dim": None}), range(1, depth), depth)
    del said["head_dim"]
    assert mended_text(as_text(said), range(1, depth), depth) is None


def as_text(said: dict[str, object]) -> str:
    return json.dumps(said, indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    "said",
    [
        {"model_type": "minicpm3"},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": None},
        {"n_layers": 4},
        {"is_encoder_decoder": True},
        {"text_config": {"model_type": "bert"}},
        {"auto_map": {"AutoConfig": "mine.Config"}},
        {"stage_names": ["stem", "stage1"]},
        {"scale_attn_by_inverse_layer_idx": True},
        {"one_a_layer": [1, 2, 3, 4]},
    ],
)
def test_what_only_transformers_can_tell_of_a_config_is_left_to_it(
    said: dict[str, object], tmp_path: Path
) -> None:
    BertConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert mended_text(text, [0, 3], 4) == text.replace('layers": 4', 'layers": 2')
    assert mended_text(as_text({**json.loads(text), **said}), [0, 3], 4) is None


def test_what_another_version_wrote_stays_as_it_is(tmp_path: Path) -> None:
    BertConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said |= {"transformers_version": "4.0.0", "torch_dtype": "float32", "is_anything": [1]}
    found = mended_text(json.dumps(said), [0, 3], 4)
    assert found is not None
    assert json.loads(found) == {**said, "num_hidden_layers": 2}


def test_a_config_that_scales_by_the_index_of_a_layer_is_refused(tmp_path: Path) -> None:
    """With fewer layers it would tell of another network than the graph that is left."""
    GPT2Config(scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path / "whole")
    with pytest.raises(UnsupportedModelError, match="scaled by the layer's index"):
        mend_config_file(tmp_path / "whole", tmp_path, [1], 12)
