"""One right answer of several, by an encoder whose head gives each of them one number.

Shapes: N samples, B rows of a batch, C choices, T tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LoadError
from ..samples import Row, Samples
from .base import Batch, Inputs, Processor, ProcessorOptions, Task, all_rows, check_finite
from .changing import square
from .choices import read_choices
from .scoring import Scores
from .tokenizing import content_of, load_processor, random_texts, require_text, weights_at


class EncoderMultipleChoice(Task):
    """One right answer of several; each is read together with the context, as a pair of texts.

    The metric is accuracy, the loss the cross-entropy of the choices. Rows of a batch have equally many
    choices; where they do not (when a file is proven), the last choice of a row is repeated, and what
    the model says of it there is left out. Profiles are of the context with its first choice.
    """

    name = "multiple-choice"
    optimum_task = "multiple-choice"
    metric = "accuracy"
    higher_is_better = True
    is_right_or_wrong = True
    best_value = 1.0
    columns = ("context", "choices")
    optional_columns = ("label",)
    profiles_while_scoring = False

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer.

        Raises:
            LoadError: If there is no tokenizer, or none that fits the model.
            ConfigError: If `--max-length` is out of the model's range.
        """
        return load_processor(folder, config, options, "first-token")

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a context, two or more choices, and the right one's index or text.

        Raises:
            LoadError: If a choice leaves the context no room.
        """
        context = require_text(record["context"], "context", where)
        choices, label = read_choices(record, where)
        longest = max(
            len(processor.tokenizer(choice, add_special_tokens=False).input_ids) for choice in choices
        )
        if longest + processor.tokenizer.num_special_tokens_to_add(pair=True) >= processor.max_length:
            raise LoadError(
                f"{where}: a choice of {longest} tokens leaves no room for the context "
                f"within {processor.max_length} tokens."
            )
        key = "\0".join(map(content_of, (context, *choices)))
        return Row({"context": context, "choices": tuple(choices)}, label, key, where, "context and choices")

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode pairs of context and choice, (B, C, T); a context that is too long loses its end."""
        return self._encoded(rows, max(len(row.features["choices"]) for row in rows), processor, padding_side)

    def _encoded(
        self, rows: Sequence[Row], num_choices: int, processor: Processor, padding_side: str | None = None
    ) -> Inputs:
        contexts, choices = [], []
        for row in rows:
            own = row.features["choices"]
            contexts += [row.features["context"]] * num_choices
            choices += [own[min(i, len(own) - 1)] for i in range(num_choices)]
        found = processor.tokenizer(
            contexts, choices, truncation="only_first", max_length=processor.max_length, padding=True,
            padding_side=padding_side, return_tensors="np", verbose=False,
        )  # fmt: skip
        return {
            name: values.reshape(len(rows), num_choices, -1).astype(np.int64)
            for name, values in found.items()
        }

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode each context with its first choice, (B, 1, T)."""
        return Batch(indices, self._encoded([samples.rows[i] for i in indices], 1, processor))

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the tokens of each row's longest pair."""
        texts = [max(row.features["choices"], key=len) for row in rows]
        pairs = processor.tokenizer(
            [row.features["context"] for row in rows], texts, truncation="only_first",
            max_length=processor.max_length, verbose=False,
        )  # fmt: skip
        return list(map(len, pairs.input_ids))

    def group(self, row: Row, processor: Processor) -> Hashable:
        """Batch rows of equally many choices."""
        return len(row.features["choices"])

    def num_answers(self, samples: Samples) -> int:
        """Return the most choices of any row."""
        return max(1, *(len(row.features["choices"]) for row in samples.rows))

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random words: short, then long texts."""
        batches = []
        for texts in random_texts(processor):
            rows = [Row({"context": text, "choices": (text, "a b", "c")}, None, "", "") for text in texts]
            batches.append(self.encode(rows, processor))
        return batches

    def token_mask(self, inputs: Inputs) -> np.ndarray:
        """Return 1 where any choice has a real token, (B, T)."""
        mask: np.ndarray = inputs["attention_mask"].max(axis=1)
        return mask

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return the first token of every pair, (B C, T)."""
        mask = batch.inputs["attention_mask"]
        read: np.ndarray = (mask.cumsum(axis=-1) == 1) & (mask == 1)
        return read.reshape(-1, mask.shape[-1])

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the first token of each row's only pair."""
        return weights_at(processor.position, batch.inputs["attention_mask"][:, 0])

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return the squared change of the logit of the one choice that is profiled, without rivals."""
        return square(before, after)

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes of an input: rows of other batches have fewer or more choices."""
        return ("batch", "choice", "sequence")

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score logits (N, C): right or wrong, and cross-entropy in nats.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        labels, logits = samples.labels[rows], _of_own_choices(outputs, samples, rows)
        losses = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
        return Scores((logits.argmax(axis=-1) == labels).astype(np.float64), losses)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the choices."""
        chosen = zip(_of_own_choices(outputs, samples, rows).argmax(axis=-1), rows, strict=True)
        return [samples.rows[row].features["choices"][choice] for choice, row in chosen]

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same choice."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


def _of_own_choices(outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> np.ndarray:
    """Return logits (N, C) that are no row's where it has fewer choices than others."""
    counts = np.asarray([len(samples.rows[i].features["choices"]) for i in rows])
    return np.where(np.arange(outputs.shape[1]) < counts[:, None], outputs.astype(np.float64), -np.inf)
