"""Tiny models and rows that the mutants' commands read, each made once a process."""

from __future__ import annotations

import functools
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import (  # noqa: E402
    DECODERS,
    awaken,
    make_decoder,
    make_model,
    make_tokenizer,
    text_records,
    write_jsonl,
)

_HOME = tempfile.TemporaryDirectory(prefix="tapioca-mutants-")
HOME = Path(_HOME.name)
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 3,
    "num_decoder_layers": 3, "decoder_start_token_id": 0, **TOKENS,
}  # fmt: skip
# Layers of two kinds: short convolutions, and attention.
LFM2 = {
    **DECODERS["llama"], "conv_L_cache": 3, "block_multiple_of": 8,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}  # fmt: skip
# Windows are shorter than the rows, and every second layer has none.
WINDOWED = {"gemma2": {"sliding_window": 4}}


def network_of(family: str) -> Any:
    """Build a tiny random network all of whose weights matter: norms and biases are no ones and zeros."""
    torch.manual_seed(0)
    if family == "t5":
        config = transformers.AutoConfig.for_model("t5", **T5)
        network = awaken(transformers.AutoModelForSeq2SeqLM.from_config(config))
    elif family == "lfm2":
        config = transformers.AutoConfig.for_model("lfm2", **LFM2)
        network = awaken(transformers.AutoModelForCausalLM.from_config(config))
    elif family in ("bert", "modernbert"):
        network = make_model(family)
    elif family == "tied":
        network = make_decoder("llama", tie_word_embeddings=True)
    elif family == "scaled":
        network = make_decoder(
            "llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        )
    else:
        network = make_decoder(family, **WINDOWED.get(family, {}))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return network


@functools.cache
def checkpoint(family: str, dtype: str = "float32", shard: str = "1GB") -> Path:
    """Return the folder of a tiny model; do not write in it."""
    folder = HOME / f"{family}-{dtype}-{shard}"
    network_of(family).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    make_tokenizer("llama" if family == "qwen2" else family).save_pretrained(folder)
    return folder


@functools.cache
def prompts(num_rows: int = 24, seed: int = 0) -> Path:
    """Return a file of prompts of several lengths with answers."""
    generator = random.Random(seed)
    found = []
    for number in range(num_rows):
        words = [f"w{generator.randrange(90)}" for _ in range(generator.randint(1, 12))]
        found.append({"prompt": " ".join([*words, f"w{number}"]), "answer": f"w{generator.randrange(90)}"})
    return write_jsonl(HOME / f"prompts-{num_rows}-{seed}.jsonl", found)


@functools.cache
def rows(name: str, num_rows: int = 24, seed: int = 0, *, labelled: bool = True) -> Path:
    """Return a file of random texts with labels."""
    path = HOME / f"{name}-{num_rows}-{seed}-{labelled}.jsonl"
    return write_jsonl(path, text_records(num_rows, seed, labelled=labelled))
