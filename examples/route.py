"""Classify texts, each with the variant of its domain, over the weights that all variants share.

    tapioca-export export -m MODEL --id id.jsonl --variants selection-airline.json,selection-bank.json -o out
    python examples/route.py out < lines    # lines of a domain, a tab and a text

A domain without a variant gets the whole model. Needs onnxruntime and transformers, and not PyTorch.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

root = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(root / "original")
labels = json.loads((root / "original" / "config.json").read_text())["id2label"]
sessions = {
    folder.name: onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for folder in sorted(root.iterdir())
}
for line in sys.stdin:
    domain, text = line.rstrip("\n").split("\t", 1)
    session = sessions.get(domain, sessions["original"])
    encoded = tokenizer(text, return_tensors="np", truncation=True)
    feed = {value.name: encoded[value.name] for value in session.get_inputs()}
    (logits,) = session.run(["logits"], feed)
    chances = np.exp(logits[0] - logits[0].max())
    print(labels[str(chances.argmax())], f"{chances.max() / chances.sum():.4f}", sep="\t")
