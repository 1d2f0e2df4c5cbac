"""Masked language models: the word that a text has left out.

Shapes: N samples, B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LoadError
from ..samples import Row, Samples
from .asking import Readings
from .base import (
    TASKS,
    Batch,
    Inputs,
    Processor,
    ProcessorOptions,
    all_rows,
    check_finite,
)
from .labels import is_missing
from .scoring import Scores
from .tokenizing import content_of, require_text
from .tokens import TokenTask, model_inputs, tokenized


class FillMask(TokenTask):
    """The word at a text's one mask token; the metric is accuracy, the loss its negative log-likelihood.

    A row is right where the answer's token is the likeliest of the vocabulary. Only the mask's place
    goes through the output embedding.
    """

    name = "fill-mask"
    optimum_task = "fill-mask"
    metric = "accuracy"
    higher_is_better = True
    columns = ("text",)
    optional_columns = ("answer",)
    is_right_or_wrong = True
    best_value = 1.0
    position = "mask-token"

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer.

        Raises:
            LoadError: If there is no tokenizer, or none that pads, masks and fits the model.
            ConfigError: If `--max-length` is out of the model's range.
        """
        processor = super().load_processor(folder, config, options)
        if processor.tokenizer.mask_token_id is None:
            raise LoadError(
                f"The tokenizer of {folder} has no mask token.",
                "Set tokenizer.mask_token to the one that the model was trained with, and save it.",
            )
        return processor

    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return the text behind a mask."""
        return {"text": f"{processor.tokenizer.mask_token} {text}"}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a text with one mask token, and the word that stands for it.

        Raises:
            LoadError: If there is not one mask, it is cut off, or the answer is more than one token.
        """
        text = require_text(record["text"], "text", where)
        tokenizer = processor.tokenizer
        if (count := text.count(tokenizer.mask_token)) != 1:
            raise LoadError(
                f"{where}: text has {count} mask tokens, not one.", f"The model's is {tokenizer.mask_token}."
            )
        tokens = model_inputs(tokenized(processor, where, text), processor)
        places = [
            place for place, token in enumerate(tokens["input_ids"]) if token == tokenizer.mask_token_id
        ]
        if len(places) != 1:
            raise LoadError(
                f"{where}: the mask is not among the first {processor.max_length} tokens of the text.",
                "Shorten the text before it, or raise --max-length.",
            )
        features: dict[str, Any] = {"tokens": tokens, "place": int(places[0])}
        answer = record.get("answer")
        if is_missing(answer):
            answer = None
        else:
            answer = require_text(answer, "answer", where)
            features["answer"] = _answer_id(text, answer, tokens["input_ids"], where, processor)
        return Row(features, answer, content_of(text), where, "text and answer")

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode these rows as one batch, and ask for the answer at each mask."""
        rows = [samples.rows[i] for i in indices]
        places = np.asarray([row.features["place"] for row in rows], dtype=np.int64)
        tokens = np.asarray([row.features.get("answer", 0) for row in rows], dtype=np.int64)
        numbers = np.arange(len(rows))
        return Batch(
            indices, self.encode(rows, processor), Readings(numbers, numbers, places, tokens, places)
        )

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the mask token."""
        assert batch.readings is not None
        read = batch.readings.read_in(batch.inputs["input_ids"].shape)
        return np.expand_dims(read.astype(np.float32), axis=1)

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Return which tokens are the masks."""
        assert batch.readings is not None
        return batch.readings.read_in(batch.inputs["input_ids"].shape)

    def evidence(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return (B, 1, 2) of logits (B, T, V): the answer's log-probability, and whether it is likeliest."""
        assert batch.readings is not None
        return batch.readings.found_in(logits)

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Return the answers' ids at the masks, -100 elsewhere."""
        assert batch.readings is not None
        labels = np.full(batch.inputs["input_ids"].shape, -100, dtype=np.int64)
        labels[batch.readings.sequences, batch.readings.positions] = batch.readings.tokens
        return {"labels": labels}

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score evidence (N, 1, 2).

        Raises:
            SelectionError: If a log-probability is not finite.
        """
        check_finite(outputs, samples, all_rows(samples, rows))
        found = outputs[:, 0].astype(np.float64)
        return Scores(found[:, 1], -found[:, 0])


TASKS.add(FillMask.name)(FillMask())


def _answer_id(text: str, answer: str, ids: Sequence[int], where: str, processor: Processor) -> int:
    """Return the token that stands for the answer where the mask is, or alone.

    Raises:
        LoadError: If it is several tokens, or one that the tokenizer does not know.
    """
    tokenizer = processor.tokenizer
    # What a token is called depends on the space before it: the text with the answer in place tells.
    whole = tokenized(processor, where, text.replace(tokenizer.mask_token, answer))["input_ids"]
    new = [one for one, old in zip(whole, ids, strict=False) if one != old]
    if len(whole) != len(ids) or len(new) != 1:
        new = list(tokenizer(answer, add_special_tokens=False, verbose=False).input_ids)
    if len(new) != 1 or new[0] == tokenizer.unk_token_id:
        found = "unknown to the tokenizer" if tokenizer.unk_token_id in new else f"{len(new)} tokens"
        raise LoadError(
            f"{where}: the answer {answer!r} is {found}, not one token.",
            "Remove the row: a mask stands for one token.",
        )
    return int(new[0])
