"""Tasks whose answers stand at tokens of a text, and what they have in common.

Rows hold the text's tokens, `features["tokens"]`: what the tokenizer says of each (T numbers), by the
name of the model's input. Batches are padded on the right, so that a token's place in its row is its
place in the batch. Knows nothing about labels or metrics.

Shapes: B rows of a batch, T tokens, V what the model says of a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import LoadError
from ..samples import Row
from .base import Batch, Inputs, Position, Processor, ProcessorOptions, Task
from .tokenizing import load_processor, random_texts, weights_at


class TokenTask(Task):
    """A task whose rows are encoded token by token."""

    position: ClassVar[Position] = "mean"

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer.

        Raises:
            LoadError: If there is no tokenizer, or none that can pad, that fits the model, or that tells
                which token stands where in the text.
            ConfigError: If `--max-length` is out of the model's range.
        """
        processor = load_processor(folder, config, options, self.position)
        if not processor.tokenizer.is_fast:
            raise LoadError(
                f"The tokenizer of {folder} does not tell where in the text its tokens stand.",
                "Save a fast tokenizer (tokenizer.json) beside the model.",
            )
        return processor

    @abstractmethod
    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return a record without labels that holds the text."""

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Pad the rows' tokens to the longest, on the right unless asked otherwise."""
        return padded([row.features["tokens"] for row in rows], processor, padding_side)

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the number of tokens of each row."""
        return [len(row.features["tokens"]["input_ids"]) for row in rows]

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random words of the tokenizer's vocabulary: short, then long texts."""
        return [
            self.encode([self.read_row(self.example(t, processor), "", processor) for t in texts], processor)
            for texts in random_texts(processor)
        ]

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the mean of real tokens, or the one token that all of them end in."""
        return weights_at(processor.position, self.token_mask(batch.inputs))

    def compared(self, logits: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Return what the model says of real tokens, (tokens, V)."""
        real: np.ndarray = logits[inputs["attention_mask"] == 1]
        return real

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of tokens with the same arg max."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


def tokenized(processor: Processor, where: str, *texts: Any, **options: Any) -> Any:
    """Return the tokenizer's encoding of one text, or of a pair, cut to the longest that the model takes.

    Raises:
        LoadError: If there is no token in it.
    """
    encoded = processor.tokenizer(
        *texts, max_length=processor.max_length, return_attention_mask=True, **{"truncation": True, **options}
    )
    if not any(part is not None for part in encoded.sequence_ids()):
        raise LoadError(f"{where}: the tokenizer finds no token in the text.", "Remove the row.")
    return encoded


def model_inputs(encoded: Any, processor: Processor) -> dict[str, list[int]]:
    """Return what of an encoding the model takes, token by token."""
    names = {*processor.tokenizer.model_input_names, "attention_mask"}
    return {name: list(values) for name, values in encoded.items() if name in names}


def padded(
    tokens: Sequence[Mapping[str, Sequence[int]]], processor: Processor, side: str | None = None
) -> Inputs:
    """Stack the tokens of several texts, padded on one side (default: right) to the longest."""
    stacked = processor.tokenizer.pad(
        [dict(part) for part in tokens], padding=True, padding_side=side or "right", return_tensors="np"
    )
    return {name: np.asarray(values, dtype=np.int64) for name, values in stacked.items()}
