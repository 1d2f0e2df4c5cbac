"""Write graphs as others make them: Optimum at each level, onnxslim, onnxsim and onnxruntime-genai's builder.

    python tests/consumers/make_graphs.py FOLDER          # all but the builder's
    python tests/consumers/make_graphs.py FOLDER genai    # the builder's, of the checkpoints that are there

The first runs in the environment of `check_exports.py`, as Optimum's ONNX part pins an older transformers;
the builder wants a newer one. Of each tiny random model, FOLDER holds the checkpoint in `models/`, and a
folder with `model.onnx` and its config for each maker. Optimum's O4 needs CUDA.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

COMMON = {"vocab_size": 96, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": {**BERT, "max_position_embeddings": 130},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "llama": {**BERT, "hidden_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128},
}
DECODERS = ("gpt2", "llama")
LEVELS = (None, "O1", "O2", "O3")
PRECISIONS = ("fp32", "int4")


def checkpoint(folder: Path, family: str) -> Path:
    """Save a tiny random model with a tokenizer of words."""
    torch.manual_seed(0)
    auto_class = AutoModelForCausalLM if family in DECODERS else AutoModelForSequenceClassification
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
    auto_class.from_config(config).save_pretrained(folder)
    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, "[UNK]": 3, **{f"w{n}": n for n in range(4, 96)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def of_optimum(folder: Path) -> None:
    """Write what Optimum exports, and its plain files simplified."""
    import onnxsim
    import onnxslim
    from optimum.exporters.onnx import main_export

    shutil.rmtree(folder, ignore_errors=True)
    for family in FAMILIES:
        source = checkpoint(folder / "models" / family, family)
        task = "text-generation-with-past" if family in DECODERS else "text-classification"
        for level in LEVELS:
            name = f"{family} Optimum {level or 'plain'}"
            main_export(str(source), folder / name, task=task, optimize=level, do_validation=False)
        plain = folder / f"{family} Optimum plain"
        for maker, simplified in (
            ("onnxslim", onnxslim.slim(str(plain / "model.onnx"))),
            ("onnxsim", onnxsim.simplify(onnx.load(plain / "model.onnx"))[0]),
        ):
            (target := folder / f"{family} {maker}").mkdir()
            onnx.save(simplified, target / "model.onnx")
            shutil.copy(plain / "config.json", target)


def of_genai(folder: Path) -> None:
    """Write what onnxruntime-genai builds."""
    source = folder / "models" / "llama"
    for precision in PRECISIONS:
        target = folder / f"llama genai {precision}"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
        subprocess.run([*command, "-p", precision, "-e", "cpu", "-c", folder / "cache"], check=True)
        shutil.copy(source / "config.json", target)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    (of_genai if sys.argv[2:] == ["genai"] else of_optimum)(Path(sys.argv[1]))
