"""`genai_config.json`: what onnxruntime-genai wants to know of a decoder with its cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..artifacts import write_text
from ..generation import PAST, POSITIONS, PRESENT
from ..models import LoadedModel
from .formats import Written


def write_genai_config(folder: Path, model: LoadedModel, written: Written) -> None:
    """Describe an exported decoder to onnxruntime-genai, which runs the model types that it knows.

    Nothing is written where it has no words: for several files, or layers that cache several shapes.

    Args:
        folder: Where the file is.
        model: What was exported.
        written: Its files, inputs and outputs.
    """
    shapes = set(written.cache.values())
    if len(written.files) > 1 or len(shapes) > 1:
        return
    config, ((heads, head_size),) = model.network.config, shapes
    names = ["input_ids", "attention_mask", *([POSITIONS] if POSITIONS in written.inputs else [])]
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": written.files[0],
        "head_size": head_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": len(written.cache) // 2,  # to it, a layer is what has a cache
        "num_key_value_heads": heads,
        "inputs": {
            **{name: name for name in names},
            "past_key_names": f"{PAST}.%d.key",
            "past_value_names": f"{PAST}.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": f"{PRESENT}.%d.key",
            "present_value_names": f"{PRESENT}.%d.value",
        },
    }
    longest = getattr(config, "max_position_embeddings", None) or model.processor.max_length
    tokens = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    described = {
        "model": {
            "type": config.model_type,
            "vocab_size": config.vocab_size,
            "context_length": longest,
            **{name: token for name, token in tokens.items() if token is not None},
            "decoder": decoder,
        },
        # The graph gives back what it was given with more behind it; it does not write in place.
        "search": {"max_length": longest, "past_present_share_buffer": False},
    }
    write_text(folder / "genai_config.json", json.dumps(described, indent=1) + "\n")
