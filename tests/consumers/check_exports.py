"""Use exported models as their users do: with Optimum, and with onnxruntime-genai.

    python tests/consumers/check_exports.py FOLDER

Runs in an environment of its own, as Optimum's ONNX part pins an older transformers. Prints a table;
exit code 1 where tokens differ from those of PyTorch, or answers of a classifier from those of the benchmark,
or where what is known to fail has come to work.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai
import torch
import transformers
from optimum.onnxruntime import (
    ORTModelForCausalLM,
    ORTModelForSeq2SeqLM,
    ORTModelForSequenceClassification,
    ORTModelForSpeechSeq2Seq,
)
from transformers import AutoTokenizer, GenerationConfig, pipeline

# What a library cannot run, whoever exported it.
GROUPED = "makes an empty cache with as many key-value heads as heads, each of hidden size / heads"
UNKNOWN = "does not know the model type"
OPTIMUM_CANNOT = dict.fromkeys(("falcon-grouped", "gemma2", "olmo2", "phi3", "qwen3"), GROUPED)
UNKNOWN_TYPES = ("bloom", "falcon", "falcon-grouped", "gpt_neox", "olmo2", "opt")
GENAI_CANNOT = {
    **dict.fromkeys(UNKNOWN_TYPES, UNKNOWN),
    **dict.fromkeys(("bart", "t5", "whisper"), "no genai_config.json is written for encoder-decoders"),
    "gpt2": "wants keys and values of a layer in one tensor",
}


def with_optimum(folder: Path, expected: dict[str, np.ndarray]) -> np.ndarray:
    """Generate the whole batch; texts are padded on the left."""
    inputs = {name: torch.tensor(value) for name, value in expected.items() if name != "tokens"}
    auto_class = ORTModelForSpeechSeq2Seq if "input_features" in inputs else ORTModelForSeq2SeqLM
    if "decoder_input_ids" not in inputs:
        auto_class = ORTModelForCausalLM
    num_tokens = expected["tokens"].shape[1]
    asked = {"max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
    if auto_class is not ORTModelForCausalLM:
        asked["decoder_start_token_id"] = int(inputs["decoder_input_ids"][0, 0])
    if auto_class is ORTModelForSpeechSeq2Seq:
        asked["no_timestamps_token_id"] = 10  # wanted, as every published Whisper has one
    model = auto_class.from_pretrained(folder, use_io_binding=False)
    model.generation_config = GenerationConfig(**asked)  # what ends a text is none of them
    return model.generate(**inputs, generation_config=GenerationConfig(**asked))[:, -num_tokens:].numpy()


def with_genai(folder: Path, expected: dict[str, np.ndarray]) -> np.ndarray:
    """Generate row by row, without padding; what follows the end of a text is taken as expected."""
    model = onnxruntime_genai.Model(str(folder))
    num_tokens, rows = expected["tokens"].shape[1], []
    columns = (expected[name] for name in ("input_ids", "attention_mask", "tokens"))
    for ids, mask, tokens in zip(*columns, strict=True):
        prompt = ids[mask == 1].astype(np.int32)
        length = len(prompt) + num_tokens
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        found = generator.get_sequence(0)[len(prompt) :]
        rows.append([*found, *tokens[len(found) :]])
    return np.asarray(rows)


def outcome(generate: Callable[..., np.ndarray], folder: Path) -> str:
    """Return "equal", or what went wrong in one line."""
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    try:
        found = generate(folder, expected)
    except Exception as error:  # both libraries raise errors without a common base
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    wrong = int((found != expected["tokens"]).sum())
    return f"{wrong} of {found.size} tokens differ" if wrong else "equal"


def classified(place: Path) -> str:
    """Return "equal", or by how much the accuracy of Optimum's pipeline is another than was recorded."""
    recorded, exported = json.loads((place / "recorded.json").read_text()), place / "run/pruned/onnx"
    model = ORTModelForSequenceClassification.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer)
    answers = [ask(row["text"], truncation=True, max_length=128)[0]["label"] for row in recorded["rows"]]
    right = [answer == row["label"] for answer, row in zip(answers, recorded["rows"], strict=True)]
    if len(set(answers)) == 1:
        return "all rows have one label, which shows nothing"
    if abs(np.mean(right) - recorded["accuracy"]) > 1e-12:
        return f"accuracy is {np.mean(right):.4f}, the benchmark recorded {recorded['accuracy']:.4f}"
    wrong = [line for line, value in recorded["flips"].items() if right[int(line) - 1] != value]
    return f"row {wrong[0]} is answered otherwise" if wrong else "equal"


def main(folder: Path) -> int:
    """Check every export below the folder."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    consumers = {"optimum": (with_optimum, OPTIMUM_CANNOT), "genai": (with_genai, GENAI_CANNOT)}
    failed = False
    for place in sorted(path.parent for path in folder.glob("*/expected.npz")):
        for name, (generate, cannot) in consumers.items():
            found, reason = outcome(generate, place), cannot.get(place.name)
            failed |= (found == "equal") == (reason is not None)
            known = f" (known: {reason})" if reason and found != "equal" else ""
            print(f"{place.name:15s} {name:8s} {found[:120]}{known}", flush=True)
    for place in sorted(path.parent for path in folder.glob("*/recorded.json")):
        found = classified(place)
        failed |= found != "equal"
        print(f"{place.name:15s} optimum  {found}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
