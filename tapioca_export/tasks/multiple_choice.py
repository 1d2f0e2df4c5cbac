"""One right answer of several, ranked by how likely a decoder finds them.

Shapes: B rows of a batch, K tokens asked for at most a row, C choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..samples import Row, Samples
from .base import TASKS, Processor, Task
from .causal import CausalTask
from .choices import read_choices
from .encoder_choices import EncoderMultipleChoice
from .prompting import require_prompt


class MultipleChoice(CausalTask):
    """One right answer of several; the most likely is the model's (sum over tokens, not normalised).

    The metric is accuracy; the loss is the cross-entropy of the choices, whose probabilities are those
    of their tokens, normalised over the choices.
    """

    name = "multiple-choice"
    metric = "accuracy"
    columns = ("context", "choices")
    optional_columns = ("label",)
    prompt_column = "context"
    text_column = "context and choices"
    has_shared_contexts = True

    def for_model(self, config: Any) -> Task:
        """Return the task that reads the model's head, where it has one that gives a number a choice."""
        architecture = (config.architectures or [""])[0]
        return ENCODER if architecture.endswith("ForMultipleChoice") else self

    def metrics(self) -> Mapping[str, Task]:
        """Return accuracy by likelihood, and by likelihood a character."""
        return {self.metric: self, NORMALISED.metric: NORMALISED}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a context, two or more choices, and the right one's index or text."""
        context = require_prompt(record["context"], "context", where)
        choices, label = read_choices(record, where)
        return self.make_row(context, choices, label, where, processor)

    def judge(self, found: np.ndarray, row: Row) -> tuple[float, float]:
        """Tell whether the right choice is the likeliest, and how unlikely it was, in nats."""
        totals = self.totals(found, row)
        likeliest = totals.max()
        loss = likeliest + np.log(np.exp(totals - likeliest).sum()) - totals[row.label]
        return float(totals.argmax() == row.label), float(loss)

    def totals(self, found: np.ndarray, row: Row) -> np.ndarray:
        """Return how likely each choice is, (C,), of what was found of its tokens, (K, 2)."""
        ends = np.cumsum([len(answer) for answer in row.features["answers"]])
        totals = np.add.reduceat(found[: ends[-1], 0], [0, *ends[:-1]]).astype(np.float64)
        return np.asarray(totals / self.sizes(row))

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the choices."""
        asked = [samples.rows[row] for row in rows]
        chosen = [self.totals(found, row).argmax() for found, row in zip(outputs, asked, strict=True)]
        return [row.features["texts"][choice] for choice, row in zip(chosen, asked, strict=True)]

    def sizes(self, row: Row) -> np.ndarray:
        """Return what each choice's log-likelihood is divided by, (C,)."""
        return np.ones(len(row.features["answers"]))


class NormalisedMultipleChoice(MultipleChoice):
    """One right answer of several; the model's is the most likely for its length.

    A choice's log-likelihood is divided by its length in characters (Unicode code points of the choice as
    it is given, without the space before it), as `acc_norm` of lm-evaluation-harness does. The loss is
    the cross-entropy of the choices by these quotients.
    """

    metric = "accuracy_norm"

    def sizes(self, row: Row) -> np.ndarray:
        """Return the characters of each choice, (C,)."""
        return np.asarray([len(text) for text in row.features["texts"]], dtype=np.float64)


ENCODER = EncoderMultipleChoice()
NORMALISED = NormalisedMultipleChoice()
TASKS.add(MultipleChoice.name)(MultipleChoice())
