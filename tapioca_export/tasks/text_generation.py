"""Texts that a causal language model goes on with: answers generated greedily, and how likely texts are.

No token needs to be generated. Greedy generation gives exactly the wanted answer if, and only if,
each of its tokens is the most likely one after those before it, which one forward over the whole
answer tells.

Shapes: N samples, K tokens asked for at most a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..artifacts import Prompting
from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import TASKS, Processor, Task, all_rows, check_finite
from .causal import CausalTask, token_ids
from .prompting import require_prompt
from .scoring import Scores
from .tokenizing import require_text


class TextGeneration(CausalTask):
    """An answer that greedy generation has to give token by token.

    The metric is exact match: the first tokens generated are those of the answer, all of them. The
    loss is the mean over the answer's tokens of their negative log-likelihood, in nats.
    """

    name = "text-generation"
    generates = True
    metric = "exact_match"
    columns: ClassVar[tuple[str, ...]] = ("prompt",)
    optional_columns: ClassVar[tuple[str, ...]] = ("answer",)
    prompt_column = "prompt"
    text_column = "prompt and answer"

    def metrics(self) -> Mapping[str, Task]:
        """Return exact match, and the perplexity's logarithm."""
        return {self.metric: self, PERPLEXITY.metric: PERPLEXITY, "perplexity": PERPLEXITY}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a prompt and the answer wanted."""
        prompt, answer = require_prompt(record["prompt"], "prompt", where), record.get("answer")
        if answer is None or answer == "":
            return self.make_row(prompt, (), None, where, processor)
        answer = require_text(answer, "answer", where)
        return self.make_row(prompt, (answer,), answer, where, processor)

    def judge(self, found: np.ndarray, row: Row) -> tuple[float, float]:
        """Tell whether each token is the likeliest after those before it."""
        found = found[: len(row.features["answers"][0])]
        return float(found[:, 1].all()), float(-found[:, 0].mean())


class Perplexity(TextGeneration):
    """Texts, or answers to prompts, that should be likely.

    Perplexity is exp of the mean negative log-likelihood of a token. Of all rows together it is no mean
    over rows, but its logarithm is, in nats: with n_i tokens in row i of N, whose negative
    log-likelihoods add up to l_i, a row's value is l_i N / (n_1 + ... + n_N). So the metric is
    `log_perplexity`, and its exp the perplexity of all tokens, each counted once. The loss is the same.

    Of a text every token but the first is scored (a tokenizer that writes a token before the text has the
    text scored whole), of an answer every token. Texts are cut behind `--max-length`.
    """

    metric = "log_perplexity"
    higher_is_better = False
    is_right_or_wrong = False
    best_value = 0.0
    columns: ClassVar[tuple[str, ...]] = ()
    optional_columns: ClassVar[tuple[str, ...]] = ("text", "prompt", "answer")
    whole_text = "text"

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a prompt and its answer, or else a text.

        Raises:
            LoadError: If there is neither, or a text of one token.
            ConfigError: If a text is to have something before it.
        """
        if record.get("prompt") not in (None, ""):
            return super().read_row(record, where, processor)
        if "text" not in record:
            raise LoadError(
                f"{where} has neither text nor prompt.", "Name the column with --columns text=..."
            )
        if processor.prompting != Prompting():
            raise ConfigError(
                f"{where} is a text, which needs no prompt.",
                "Leave out --chat-template and --few-shot, or give rows with prompt and answer.",
            )
        text = require_text(record["text"], "text", where)
        ids = token_ids(processor, text)[: processor.max_length]
        if len(ids) < 2:
            raise LoadError(f"{where}: the text has one token, which follows none.", "Remove the row.")
        features = {"context": ids[:1], "answers": (ids[1:],)}
        return Row(features, text, text, where, self.whole_text)

    def profiled(self, row: Row) -> Sequence[int]:
        """Return a text up to its last token but one, which predicts the last; or a context."""
        (answer,) = row.features["answers"] if row.layout == self.whole_text else ((),)
        return (*row.features["context"], *answer[:-1])

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score evidence (N, K, 2): each row's share of the mean over all tokens of the samples.

        Raises:
            SelectionError: If a log-probability is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        sizes = np.asarray([sum(map(len, row.features["answers"])) for row in samples.rows])
        losses = -outputs[..., 0].sum(axis=1, dtype=np.float64) / sizes.mean()
        return Scores(losses, losses)


PERPLEXITY = Perplexity()
TASKS.add(TextGeneration.name)(TextGeneration())
