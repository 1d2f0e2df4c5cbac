"""Generate with an exported decoder: ONNX Runtime, the tokenizer and NumPy.

python examples/generate.py EXPORT_FOLDER "a prompt" "another prompt, of any length"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer


def generate(folder: Path, prompts: list[str], num_tokens: int = 64) -> list[str]:
    """Continue prompts greedily, until the end of the text or for `num_tokens`."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    end = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    ends = np.ravel(-1 if end is None else end)
    encoded = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="np")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    # (batch, heads, tokens cached, size of a head): nothing is cached yet.
    past = {
        node.name: np.zeros((len(ids), node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    wanted = {node.name for node in session.get_inputs()}
    made = np.empty((len(ids), 0), np.int64)
    while made.shape[1] < num_tokens and not np.isin(made, ends).any(axis=1).all():
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        found = dict(zip(outputs, session.run(outputs, {name: feed[name] for name in wanted}), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        ids = found["logits"][:, -1:].argmax(axis=-1)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        made = np.concatenate([made, ids], axis=1)
    stops = [np.flatnonzero(np.isin([*row, ends[0]], ends))[0] for row in made]
    return [tokenizer.decode(row[:stop]) for row, stop in zip(made, stops, strict=True)]


if __name__ == "__main__":
    for prompt, text in zip(sys.argv[2:], generate(Path(sys.argv[1]), sys.argv[2:]), strict=True):
        print(prompt, "->", text)
