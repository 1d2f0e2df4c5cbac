"""Answers as a model writes them, and what of a text is the answer.

A model is given the prompt and writes until it ends or `--max-new-tokens` are there. Of what it wrote,
`--extract` finds the answer: the first match of a regular expression, or the last. Where it matches
nothing, the answer is invalid: it is wrong, and counted apart, since a layer that is dropped may mend the
form of answers and nothing else.

The rule is that of lm-evaluation-harness's filter `regex`: with groups in the expression, the answer is the
first of them that matched something, else the whole match. The label goes through the same rule, and is
taken as it is where nothing matches. Both are compared without the white space around them; case,
punctuation and all else count.

Shapes: N samples, B rows of a batch, K tokens asked for at most a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Prompting
from ..errors import ConfigError
from ..samples import Row, Samples
from .base import Batch, Processor, ProcessorOptions, Task, all_rows, check_finite
from .continuing import Continuation, written_texts
from .scoring import Scores
from .text2text_generation import Text2TextGeneration
from .text_generation import TextGeneration
from .tokenizing import ends_of, load_generation_config


def answering(task: Task, prompting: Prompting) -> Task:
    """Return the task with answers that are written, where that is asked for.

    Raises:
        ConfigError: If it has none to write.
    """
    if prompting.max_new_tokens is None:
        return task
    kinds: dict[type[Task], type[WrittenAnswer]] = {
        TextGeneration: WrittenAnswer, Text2TextGeneration: WrittenAnswerToText,
    }  # fmt: skip
    if (kind := kinds.get(type(task))) is None:
        raise ConfigError(
            f"--max-new-tokens: {task.name} with metric {task.metric} has no answers that could be written.",
            "Leave it out, or use -t text-generation --metric exact_match.",
        )
    return kind(prompting)


def extracted(text: str, prompting: Prompting) -> str | None:
    """Return the answer that the rule finds in a text; None where it finds none."""
    if prompting.extract is None:
        return text.strip()
    matches = list(re.finditer(prompting.extract, text))
    if not matches:
        return None
    match = matches[-1 if prompting.extract_last else 0]
    found = (group.strip() for group in (match.groups() or (match[0],)) if group)
    return next(filter(None, found), None)


class WrittenAnswer(TextGeneration):
    """An answer that is written greedily, and right if the rule finds the label's in it.

    A row's values are whether it is right, and whether it is invalid. The loss is what it is without the
    rule: the mean over the label's tokens of their negative log-likelihood, in nats.

    Args:
        prompting: Says how long answers get, and what of them counts.
    """

    def __init__(self, prompting: Prompting) -> None:
        self.prompting = prompting

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer, and what ends an answer."""
        processor = super().load_processor(folder, config, options)
        if processor.generation_config is not None:
            return processor
        return replace(processor, generation_config=load_generation_config(folder, config, options))

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a prompt and the answer wanted."""
        row = super().read_row(record, where, processor)
        if row.label is None:
            return row
        wanted = extracted(row.label, self.prompting)
        more = {"wanted": row.label.strip() if wanted is None else wanted, "tokenizer": processor.tokenizer}
        return replace(row, features={**row.features, **more})

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Ask for the labels' tokens, and for what is written without them."""
        batch = super().batch(samples, indices, processor)
        if not samples.is_labelled:
            return batch
        prompts = tuple(self.begun(samples.rows[i], processor) for i in indices)
        limits = np.full(len(indices), self.prompting.max_new_tokens)
        ends = ends_of(processor.generation_config)
        return replace(batch, continuation=Continuation(prompts, ends, limits))

    def begun(self, row: Row, processor: Processor) -> tuple[int, ...]:
        """Return the tokens that a row's answer is written behind."""
        return tuple(row.features["context"])

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return None: what is written token by token is read at every place."""
        return None

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score log-probabilities of the labels' tokens, and tokens written, (N, 2, K).

        Raises:
            SelectionError: If a log-probability is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        values = np.empty((len(rows), 2))
        for number, (text, index) in enumerate(zip(written_texts(outputs, samples, rows), rows, strict=True)):
            answer = extracted(text, self.prompting)
            values[number] = answer == samples.rows[index].features["wanted"], answer is None
        lengths = np.asarray([len(samples.rows[index].features["answers"][0]) for index in rows])
        return Scores(values, -outputs[:, 0].astype(np.float64).sum(axis=1) / lengths)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the texts."""
        return list(written_texts(outputs, samples, rows))

    def judged(self, answer: str) -> str | None:
        """Return what the rule finds in a text."""
        return extracted(answer, self.prompting)

    def aggregate(self, values: np.ndarray) -> np.ndarray:
        """Return the share of right answers."""
        return super().aggregate(values[..., 0])

    def num_invalid(self, values: np.ndarray) -> int | None:
        """Count the answers in which the rule found nothing."""
        return None if self.prompting.extract is None else int(values[:, 1].sum())


class WrittenAnswerToText(WrittenAnswer, Text2TextGeneration):
    """The same of an encoder-decoder, which reads a text and writes its answer behind a start."""

    def begun(self, row: Row, processor: Processor) -> tuple[int, ...]:
        """Return what all answers begin with."""
        return processor.prompt
