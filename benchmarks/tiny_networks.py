"""Tiny random networks of any model type of transformers, and a batch for each.

A size is made small by its name in a config; few types need more to be said of them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import transformers
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

# The first auto class that knows a type is built.
CLASSES = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM",
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "MASKED_LM", "",
)  # fmt: skip
MOST_WEIGHTS = 40_000_000
CAUSAL_CLASSES = frozenset(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
DEPTH, VOCABULARY, ROWS, TOKENS = 4, 128, 2, 13


class NotTriedError(Exception):
    """The type cannot be tried here, for reasons that are not this project's."""


# --- small configs --------------------------------------------------------------------------

# What a size is made, by its name in a config. Windows are shorter than the inputs: what was local
# and is not any more, or the other way round, shows.
SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (
            32,
            "hidden_size d_model n_embd dim embed_dim encoder_hidden_size decoder_hidden_size "
            "projection_dim embedding_size hidden_dims word_embed_proj_dim n_embed hidden_channels emb_dim "
            "d_embed encoder_hidden_dim attention_hidden_size codebook_dim dim_model out_hidden_size "
            "lru_width perceiver_hidden_dim text_embed_dim hidden_size_per_layer_input image_size",
        ),
        (
            4,
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "attention_heads num_encoder_attention_heads num_decoder_attention_heads num_experts "
            "num_local_experts n_routed_experts moe_num_experts sliding_window local_attention "
            "attention_chunk_size rotary_dim",
        ),
        (
            2,
            "num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_topk "
            "moe_k router_top_k top_k_experts",
        ),
        (
            64,
            "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner hidden_dim "
            "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size mlp_hidden_size "
            "expert_ffn_hidden_size ffn_hidden_size feed_forward_size intermediate_size_mlp "
            "encoder_intermediate_size dense_intermediate_size moe_shared_expert_intermediate_size "
            "dim_feedforward prefix_dim share_expert_dim",
        ),
        (
            8,
            "head_dim d_kv attention_head_size attention_head_dim qk_nope_head_dim qk_rope_head_dim "
            "v_head_dim mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim "
            "global_head_dim key_length patch_size",
        ),
        (
            16,
            "q_lora_rank kv_lora_rank mamba_d_state ssm_state_size state_size index_head_dim num_mel_bins "
            "input_feat_per_channel",
        ),
        (
            66,
            "max_position_embeddings n_positions max_target_positions max_source_positions n_ctx "
            "max_seq_len max_sequence_length",
        ),
        (VOCABULARY, "vocab_size text_vocab_size vocab_size_per_layer_input"),
        (
            DEPTH,
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth "
            "num_encoder_layers num_decoder_layers encoder_num_layers decoder_num_layers "
            "encoder_num_hidden_layers decoder_num_hidden_layers num_transformer_layers",
        ),
        (1, "n_group topk_group"),
        (0, "num_nextn_predict_layers num_kv_shared_layers"),
    )
    for name in names.split()
}
# Sizes that stay away where a config leaves them out: naming them would switch something on.
SWITCHES = ("intermediate_size_mlp", "sliding_window", "attention_chunk_size", "n_inner",
            "num_kv_shared_layers", "num_nextn_predict_layers", "rotary_dim")  # fmt: skip
NUMBERS_OF_LAYERS = {
    "cross_attention_layers", "deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes",
    "window_block_indices",
}  # fmt: skip
TOKEN_IDS = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
# What else a type needs to be small, or to have layers of all its kinds.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], DEPTH // 2]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "longformer": {"attention_window": [4] * DEPTH},
    "led": {"attention_window": [4] * DEPTH},
}


def small_config(model_type: str) -> Any:
    """Return a small config of a model type.

    Raises:
        Exception: Whatever its class raises at these sizes.
    """
    config_class = transformers.CONFIG_MAPPING[model_type]
    return config_class(**{**_sizes(config_class), **OTHERS.get(model_type, {})})


def _sizes(config_class: Any) -> dict[str, Any]:
    """Return the small sizes of a config class, and those of the configs inside it."""
    default = _default(config_class)
    names = {*vars(default), *inspect.signature(config_class.__init__).parameters}
    names |= set(getattr(config_class, "__dataclass_fields__", {}))
    sizes: dict[str, Any] = {}
    other_names = {name for name, real in getattr(config_class, "attribute_map", {}).items() if name != real}
    for name in names - other_names:
        value = vars(default).get(name)
        if name in TOKEN_IDS and value is not None:
            sizes[name] = TOKEN_IDS[name]
        elif name in SIZES and isinstance(value, (list, tuple)):
            if name in ("image_size", "patch_size"):
                sizes[name] = type(value)([SIZES[name]] * len(value))
        elif name in SIZES and not (value is None and name in SWITCHES):
            sizes[name] = SIZES[name]
    for name in NUMBERS_OF_LAYERS & names:
        if vars(default).get(name):
            sizes[name] = [1, 3]
    heads = vars(default).get("num_attention_heads")
    if heads and heads == vars(default).get("num_key_value_heads"):  # latent attention shares no heads
        sizes["num_key_value_heads"] = SIZES["num_attention_heads"]
    if "mrope_section" in (getattr(config_class, "ignore_keys_at_rope_validation", None) or ()):
        rope = vars(default).get("rope_parameters") or {}
        turned = int(SIZES["head_dim"] * rope.get("partial_rotary_factor", 1) / 2)
        sizes["rope_parameters"] = {**rope, "mrope_section": [turned - turned // 2, turned // 2, 0]}
    for name, inner in (getattr(config_class, "sub_configs", None) or {}).items():
        value = vars(default).get(name)
        if value is not None:
            named = inner is transformers.AutoConfig
            inner = type(value) if named else inner
            sizes[name] = {**_sizes(inner), **({"model_type": inner.model_type} if named else {})}
    depths = {vars(default).get(name) for name in sizes if SIZES.get(name) == DEPTH}
    for name, value in vars(default).items():  # lists with one entry a layer, written out in the class
        is_open = name not in sizes and not name.startswith("_")
        if is_open and isinstance(value, (list, tuple)) and DEPTH < len(value) in depths:
            sizes[name] = list(value)[:DEPTH]
    return sizes


def _default(config_class: Any) -> Any:
    try:
        return config_class()
    except Exception:  # some have no defaults
        return type("Nothing", (), {})()


# --- networks -------------------------------------------------------------------------------


def model_class(model_type: str) -> Any:
    """Return the class to try, of the first auto class that knows the type; None if there is none."""
    for name in CLASSES:
        names = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES")
        if model_type in names:
            found = names[model_type]
            return getattr(transformers, found if isinstance(found, str) else found[0], None)
    return None


def build(model_type: str) -> Any:
    """Build a tiny random network whose layers all matter.

    Raises:
        NotTriedError: If it cannot be built here.
    """
    chosen = model_class(model_type)
    if chosen is None:
        raise NotTriedError("no auto class of a task")
    try:
        config = small_config(model_type)
        if "is_decoder" in vars(config) and chosen.__name__ in CAUSAL_CLASSES:
            config.is_decoder = True
        with torch.device("meta"), no_init_weights():
            size = sum(parameter.numel() for parameter in chosen(config).parameters())
        if size > MOST_WEIGHTS:
            raise NotTriedError(f"no small config: {size / 1e6:.0f} million weights")
        torch.manual_seed(0)
        network = chosen(config)
    except NotTriedError:
        raise
    except Exception as error:  # whatever a class raises at sizes it was not made for
        raise NotTriedError(f"no small config: {one_line(error)}") from error
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.12)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if network.can_generate():
        network.generation_config.decoder_start_token_id = TOKEN_IDS["decoder_start_token_id"]
    return network.eval()


def inputs_of(network: Any) -> dict[str, torch.Tensor]:
    """Return a batch for a network.

    Raises:
        NotTriedError: If what it takes is none of texts, images and sounds.
    """
    generator = torch.Generator().manual_seed(0)
    config, taken = network.config, set(inspect.signature(network.forward).parameters)

    def ids() -> torch.Tensor:
        size = min(vars(config.get_text_config()).get("vocab_size") or VOCABULARY, VOCABULARY)
        return torch.randint(5, size - 1, (ROWS, TOKENS), generator=generator)

    def pixels() -> torch.Tensor:
        vision = vars(config).get("vision_config") or config
        side = vars(vision).get("image_size") or SIZES["image_size"]
        side = side if isinstance(side, int) else side[0]
        return torch.randn(ROWS, vars(vision).get("num_channels") or 3, side, side, generator=generator)

    main = network.main_input_name
    if main == "input_ids":
        batch = {"input_ids": ids()}
        # Two encoders side by side take both; what turns images into tokens would want them among the ids.
        if "pixel_values" in taken and not network.can_generate():
            batch["pixel_values"] = pixels()
    elif main == "pixel_values":
        batch = {"pixel_values": pixels()}
    elif main == "input_features":
        bins = vars(config).get("num_mel_bins") or SIZES["num_mel_bins"]
        frames = 2 * (vars(config).get("max_source_positions") or 33)
        batch = {"input_features": torch.randn(ROWS, bins, frames, generator=generator)}
    elif main == "input_values":
        batch = {"input_values": torch.randn(ROWS, 3000, generator=generator)}
    else:
        raise NotTriedError(f"takes {main}, which is none of texts, images and sounds")
    if "decoder_input_ids" in taken and config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids()
    return batch


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the start of what it says, without what differs between runs."""
    text = re.sub(r"0x[0-9a-f]+", "...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:90]}".rstrip(": ")
