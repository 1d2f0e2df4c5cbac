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
    """Continue prompts greedily: to the end of the text or the context, or by `num_tokens`."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    wanted, outputs = ([node.name for node in part] for part in (session.get_inputs(), session.get_outputs()))
    end = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    ends = np.ravel(-1 if end is None else end)
    longest = json.loads((folder / "export.json").read_text())["max_length"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(prompt, return_special_tokens_mask=True) for prompt in prompts]
    # Without what a tokenizer puts behind a text; of a prompt that is too long, the end counts.
    sizes = [np.append(np.flatnonzero(np.equal(row.special_tokens_mask, 0)), -1).max() + 1 for row in encoded]
    rows = [row.input_ids[:size][-longest:] for row, size in zip(encoded, sizes, strict=True)]
    width = max(map(len, rows))
    ids = np.array([[0] * (width - len(row)) + row for row in rows], np.int64)  # any token will do as padding
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int64)
    # (batch, heads, tokens cached, size of a head): nothing is cached yet.
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    past = {
        node.name: np.zeros((len(ids), node.shape[1], 0, node.shape[3]), dtypes[node.type])
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    if not past or not mask.any(axis=1).all():
        sys.exit(
            "A prompt has no tokens." if past else f"{folder} is not an export of a text-generation task."
        )
    made = np.empty((len(ids), 0), np.int64)
    while made.shape[1] < num_tokens and mask.shape[1] <= longest:
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        found = dict(zip(outputs, session.run(outputs, {name: feed[name] for name in wanted}), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        ids = found["logits"][:, -1:].argmax(axis=-1)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        made = np.concatenate([made, ids], axis=1)
        if np.isin(made, ends).any(axis=1).all():
            break
    stops = [np.flatnonzero(np.isin([*row, ends[0]], ends))[0] for row in made]
    return [tokenizer.decode(row[:stop]) for row, stop in zip(made, stops, strict=True)]


if __name__ == "__main__":
    for prompt, text in zip(sys.argv[2:], generate(Path(sys.argv[1]), sys.argv[2:]), strict=True):
        print(prompt, "->", text)
