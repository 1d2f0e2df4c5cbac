"""Text classification: one label a text, or a pair of texts.

Shapes: N samples, B rows of a batch, T tokens, C classes.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import (
    TASKS,
    Batch,
    Inputs,
    Position,
    Processor,
    ProcessorOptions,
    Scores,
    Task,
    all_rows,
    check_finite,
)
from .tokenizing import load_tokenizer, num_positions, require_text

ROWS_AT_ONCE = 1000


class TextClassification(Task):
    """One label a text, or a pair of texts; the metric is accuracy, the loss cross-entropy."""

    name = "text-classification"
    optimum_task = "text-classification"
    metric = "accuracy"
    higher_is_better = True
    columns = ("text",)
    optional_columns = ("text_pair", "label")
    is_right_or_wrong = True
    best_value = 1.0

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer; the answer's position follows from the kind of head.

        Raises:
            LoadError: If there is no tokenizer, or none that can pad or that fits the model.
            ConfigError: If the head is not a single-label classifier.
        """
        problem = config.problem_type
        if config.num_labels < 2 or problem not in (None, "single_label_classification"):
            raise ConfigError(
                f"The model has {config.num_labels} label(s), problem type {problem!r}; "
                "text-classification needs one of several labels a text."
            )
        tokenizer = load_tokenizer(folder, config, options)
        limit = min(tokenizer.model_max_length, num_positions(config))
        least = tokenizer.num_special_tokens_to_add(pair=False) + 1
        if options.max_length is not None and not least <= options.max_length <= limit:
            raise ConfigError(
                f"--max-length {options.max_length} is outside {least}..{limit}, the model's range."
            )
        return Processor(
            folder=str(folder),
            position=_head_position(config),
            max_length=options.max_length or limit,
            tokenizer=tokenizer,
            unused_tokenizer=copy.deepcopy(tokenizer),
            id2label={int(i): str(label) for i, label in config.id2label.items()},
        )

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read text, optional second text and optional label (a name or an id)."""
        names = [name for name in ("text", "text_pair") if name in record]
        features = {name: require_text(record[name], name, where) for name in names}
        label = _label(record.get("label"), where, processor.id2label)
        key = "\0".join(map(_content, features.values()))
        return Row(features, label, key, where, layout=" and ".join(names))

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples of one class: no accuracy on them means anything.

        Raises:
            LoadError: If all rows have the same label.
        """
        if samples.is_labelled and len(set(samples.labels.tolist())) < 2:
            raise LoadError(
                f"{samples.source}: all {len(samples)} {samples.role} rows have the same label.",
                "Give samples of at least two classes.",
            )

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Tokenize, truncate and pad.

        Raises:
            LoadError: If only some rows have a second text, or a text has no tokens.
        """
        encoded = _tokenized(rows, processor, padding=True, padding_side=padding_side, return_tensors="np")
        inputs = {name: np.asarray(value, dtype=np.int64) for name, value in encoded.items()}
        num_tokens = self.token_mask(inputs).sum(axis=1)
        if not num_tokens.all():
            raise LoadError(
                f"{rows[int(num_tokens.argmin())].where}: the tokenizer finds no token in the text.",
                "Remove the row.",
            )
        return inputs

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the number of tokens of each row."""
        # A tokenizer says a lot about each row; only so many are held at once.
        parts = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
        return [len(ids) for part in parts for ids in _tokenized(part, processor)["input_ids"]]

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random words of the tokenizer's vocabulary: short, then long texts."""
        generator = np.random.default_rng(0)
        tokenizer = processor.tokenizer
        batches = []
        for lengths in ((8, 4), (33, 5, 17)):
            words = (generator.integers(0, len(tokenizer), size) for size in lengths)
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in words]
            texts = [text.strip() or "a b c" for text in texts]
            batches.append(self.encode([Row({"text": t}, None, "", "") for t in texts], processor))
        return batches

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read where the head reads: first real token, last real token, or mean of real tokens."""
        mask: np.ndarray = self.token_mask(batch.inputs).astype(np.float32)
        num_rows, num_tokens = mask.shape
        if processor.position == "mean":
            return np.expand_dims(mask / mask.sum(axis=1, keepdims=True), axis=1)
        weights = np.zeros((num_rows, 1, num_tokens), dtype=np.float32)
        first = mask.argmax(axis=1)
        last = num_tokens - 1 - mask[:, ::-1].argmax(axis=1)
        chosen = first if processor.position == "first-token" else last
        weights[np.arange(num_rows), 0, chosen] = 1.0
        return weights

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Right or wrong, and cross-entropy in nats.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        labels = samples.labels[rows]
        right = outputs.argmax(axis=-1) == labels
        losses = -log_softmax(outputs.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]
        return Scores(right.astype(np.float64), losses)

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same arg max."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


TASKS.add(TextClassification.name)(TextClassification())


# --- rows -----------------------------------------------------------------------------------


def _tokenized(rows: Sequence[Row], processor: Processor, **padding: Any) -> Any:
    """Tokenize and truncate.

    Raises:
        LoadError: If only some rows have a second text.
    """
    if len({tuple(row.features) for row in rows}) > 1:
        raise LoadError(
            f"{rows[0].where} and {rows[-1].where}: one has a text_pair, the other has none.",
            "Give all rows a text_pair, or none.",
        )
    has_pairs = "text_pair" in rows[0].features
    return processor.tokenizer(
        [row.features["text"] for row in rows],
        [row.features["text_pair"] for row in rows] if has_pairs else None,
        truncation=True,
        max_length=processor.max_length,
        **padding,
    )


def _content(text: str) -> str:
    """Return what makes two texts the same: no case, spacing, punctuation or composition."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC") or text


def _label(label: Any, where: str, id2label: Mapping[int, str]) -> int | None:
    """Return the label's id: names and ids are both accepted.

    Where names are numbers other than their ids (stars 1 to 5 are labels 0 to 4, say), numbers are
    names and ids are refused: read one row at a time, a 1 could be either.

    Raises:
        LoadError: If the model does not know the label.
    """
    if label is None or label == "" or label != label:  # NaN marks a missing value
        return None
    if isinstance(label, (float, np.floating)) and label.is_integer():
        label = int(label)
    name = str(label).strip()
    if isinstance(label, (str, int, np.integer, np.bool_)):
        for known_id, known_name in id2label.items():
            if name == known_name.strip():
                return known_id
        names_are_numbers = any(n.isdecimal() and int(n) != i for i, n in id2label.items())
        if name.isdecimal() and not names_are_numbers and int(name) in id2label:
            return int(name)
    known = ", ".join(f"{i}={name}" for i, name in list(id2label.items())[:10])
    more = ", ..." if len(id2label) > 10 else ""
    raise LoadError(f"{where}: label {label!r} is unknown to the model.", f"It knows: {known}{more}.")


# --- what a checkpoint says -----------------------------------------------------------------


def _head_position(config: Any) -> Position:
    """Tell where a sequence-classification head of this model type reads the answer.

    Encoders (types with a masked-language-model class) read the first token unless they pool;
    decoders read the last real token.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.is_encoder_decoder:  # at the end of the decoder's copy of the text
        return "last-token"
    if getattr(config, "classifier_pooling", None) == "mean":
        return "mean"
    return "first-token" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last-token"
