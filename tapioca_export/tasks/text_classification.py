"""Text classification: what a head says of a text, or of a pair of texts.

A config says of its head whether a text has one label, any number of them, or numbers instead: each
kind is a task of its own behind one name, with its own labels and metric.

Shapes: N samples, B rows of a batch, T tokens, C classes, K numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LoadError
from ..samples import Row, Samples
from .base import (
    TASKS,
    Batch,
    Inputs,
    Position,
    Processor,
    ProcessorOptions,
    Task,
    all_rows,
    check_finite,
)
from .changing import divergence_of_labels, square
from .classifying import SingleLabel
from .labels import label_id, label_set, numbers
from .scoring import Scores
from .tokenizing import content_of, load_processor, random_texts, require_text, weights_at

ROWS_AT_ONCE = 1000


class TextClassification(SingleLabel):
    """One label a text, or a pair of texts; other heads: several labels, or numbers.

    The metric is accuracy, the loss cross-entropy.
    """

    name = "text-classification"
    optimum_task = "text-classification"
    columns = ("text",)
    optional_columns = ("text_pair", "label")

    def for_model(self, config: Any) -> Task:
        """Return the task that fits the head, by the rules of transformers."""
        problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
        if problem == "regression":
            return TextRegression()
        return MultiLabelClassification() if problem == "multi_label_classification" else self

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer; the answer's position follows from the kind of head.

        Raises:
            LoadError: If there is no tokenizer, or none that can pad or that fits the model.
            ConfigError: If `--max-length` is out of the model's range.
        """
        return load_processor(folder, config, options, _head_position(config))

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read text, optional second text and optional label."""
        names = [name for name in ("text", "text_pair") if name in record]
        features = {name: require_text(record[name], name, where) for name in names}
        label = self.read_label(record.get("label"), where, processor)
        key = "\0".join(map(content_of, features.values()))
        return Row(features, label, key, where, layout=" and ".join(names))

    def read_label(self, label: Any, where: str, processor: Processor) -> Any:
        """Return what a row is scored against: the id of a label that is given by name or id."""
        return label_id(label, where, processor.id2label)

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
        texts = random_texts(processor)
        return [self.encode([Row({"text": t}, None, "", "") for t in batch], processor) for batch in texts]

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read where the head reads: first real token, last real token, or mean of real tokens."""
        return weights_at(processor.position, self.token_mask(batch.inputs))


class MultiLabelClassification(TextClassification):
    """Any number of labels a text: those whose logit is above 0, which is a probability above one half.

    The metric is the mean over rows of each row's F1 of labels, as scikit-learn averages over samples;
    a row without labels for which none is predicted counts 1 (`zero_division=1`). The loss is binary
    cross-entropy, averaged over labels, in nats.
    """

    metric = "samples_f1"
    is_right_or_wrong = False

    def read_label(self, label: Any, where: str, processor: Processor) -> Any:
        """Return a 1 for each label of the model that is in the list of names or ids, 0 for others (C)."""
        return label_set(label, where, processor.id2label)

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Return the labels (B, C) as the numbers that binary cross-entropy takes."""
        return {"labels": samples.labels[batch.indices].astype(np.float32)}

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """F1 of each row's labels, and binary cross-entropy.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from sklearn.metrics import f1_score

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        labels, logits = samples.labels[rows], outputs.astype(np.float64)
        # F1 a column is F1 a row of what is turned over. scikit-learn takes one column for another kind
        # of problem: a column that nobody looks at keeps it from that.
        truth, found = (np.pad(table.T, ((0, 0), (0, 1))) for table in (labels, (logits > 0).astype(int)))
        values = f1_score(truth, found, average=None, zero_division=1.0)[:-1]
        losses = np.logaddexp(0.0, logits) - labels * logits
        return Scores(np.asarray(values, dtype=np.float64), losses.mean(axis=1))

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return the divergence, mean over labels."""
        return divergence_of_labels(before, after)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the names of each row's labels."""
        names = [processor.id2label[label] for label in sorted(processor.id2label)]
        return [
            ", ".join(name for name, logit in zip(names, logits, strict=True) if logit > 0) or "(none)"
            for logits in outputs
        ]

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same set of labels."""
        return float(((expected > 0) == (actual > 0)).all(axis=-1).mean())


class TextRegression(TextClassification):
    """A number a text, or several.

    The metric is the normalised mean squared error: each number's squared error divided by its
    variance over the samples, averaged over numbers. 0 is perfect, 1 is what the best constant
    answer gets; it is 1 - R2. The loss is the squared error itself, averaged over numbers.
    """

    metric = "nmse"
    higher_is_better = False
    is_right_or_wrong = False
    best_value = 0.0

    def read_label(self, label: Any, where: str, processor: Processor) -> Any:
        """Return the numbers (K): a number, or a list of as many as the head has outputs."""
        return numbers(label, len(processor.id2label), where)

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples of which one of the numbers never varies: nothing can be normalised by it.

        Raises:
            LoadError: If a number is the same in all rows.
        """
        if samples.is_labelled and not np.ptp(samples.labels, axis=0).all():
            raise LoadError(
                f"{samples.source}: all {len(samples)} {samples.role} rows have the same number as label.",
                "Give samples whose labels differ.",
            )

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Return the numbers (B, K) in the network's precision."""
        return {"labels": samples.labels[batch.indices].astype(np.float32)}

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Squared error, and the same relative to the variance of the labels of all rows.

        Raises:
            SelectionError: If a prediction is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        errors = np.square(outputs.astype(np.float64) - samples.labels[rows])  # (N, K)
        return Scores((errors / samples.labels.var(axis=0)).mean(axis=1), errors.mean(axis=1))

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return the squared change, mean over numbers as they are: the one of largest scale counts most."""
        return square(before, after)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the numbers."""
        return [", ".join(f"{number:.4g}" for number in numbers) for numbers in outputs]

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return 1.0: a regression has no labels to agree on."""
        return 1.0


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
