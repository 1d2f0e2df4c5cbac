"""Extractive question answering: the span of a context that answers a question.

Shapes: N samples, B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import LoadError
from ..samples import Row, Samples
from .base import TASKS, Batch, Inputs, Processor, Task, all_rows, check_finite
from .changing import divergence
from .labels import is_missing, listed
from .scoring import Scores
from .tokenizing import content_of, require_text
from .tokens import TokenTask, model_inputs, tokenized

# The longest answer that is looked for, in tokens, as in transformers' own evaluation of SQuAD.
MAX_ANSWER_TOKENS = 30
# What padding is said to be the answer with, where logits are compared.
NEVER = float(np.finfo(np.float32).min)


class QuestionAnswering(TokenTask):
    """The span of a context that answers a question, or that there is none; the metric is SQuAD's F1.

    It is the mean over rows of the F1 of words, the best over the row's answers, as torchmetrics computes
    it (lower case, without punctuation and articles); `exact_match` counts the rows whose answer is one of
    theirs to the letter, after the same. The answer is the span of context tokens, at most 30
    of them, whose start and end have the highest sum of logits. Where rows of the samples have no answer,
    the model may say so: it does where the sum at the first token is higher; that is right for a row
    without an answer, and wrong for another.

    Contexts that are too long lose their end. An answer that is cut off counts as any other: the model
    can hardly give it. The loss is the mean of the cross-entropies of start and end, in nats, at the
    first of a row's answers; at the first token where there is none, or where it is cut off. Padding is
    no part of it.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250; without answers: 2018, arXiv:1806.03822.
    """

    name = "question-answering"
    optimum_task = "question-answering"
    metric = "squad_f1"
    higher_is_better = True
    columns = ("question", "context")
    optional_columns = ("answers",)
    is_right_or_wrong = False
    outputs = ("start_logits", "end_logits")
    best_value = 1.0

    def metrics(self) -> Mapping[str, Task]:
        """Return the F1 of words, and exact match."""
        return {self.metric: self, EXACT.metric: EXACT}

    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return a question of one word about all of the text."""
        return {"question": text.split()[0], "context": text}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a question, a context, and the answers: texts, or texts and where they start.

        Raises:
            LoadError: If an answer is not where it is said to be, or the question leaves no room.
        """
        question = require_text(record["question"], "question", where)
        context = require_text(record["context"], "context", where)
        answers = _answers(record.get("answers"), context, where)
        tokenizer = processor.tokenizer
        special = tokenizer.num_special_tokens_to_add(pair=True)
        num_asked = len(tokenizer(question, add_special_tokens=False, verbose=False).input_ids)
        if num_asked + special >= processor.max_length:
            raise LoadError(
                f"{where}: a question of {num_asked} tokens leaves no room for the context within "
                f"{processor.max_length} tokens.",
                "Remove the row, or raise --max-length.",
            )
        encoded = tokenized(
            processor, where, question, context, truncation="only_second", return_offsets_mapping=True
        )
        parts = np.asarray([-1 if part is None else part for part in encoded.sequence_ids()])
        inside = np.flatnonzero(parts == 1)
        if len(inside) == 0:
            raise LoadError(f"{where}: the tokenizer finds no token in the context.", "Remove the row.")
        offsets = np.asarray(encoded["offset_mapping"])[inside]  # (tokens of the context, 2), in characters
        features = {
            "tokens": model_inputs(encoded, processor),
            "context": context,
            "offsets": offsets,
            "begins": int(inside[0]),
            "span": _span(answers, offsets, int(inside[0])),
        }
        label = None if answers is None else tuple(text for text, _ in answers)
        key = "\0".join(map(content_of, (question, context)))
        return Row(features, label, key, where, "question and context")

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples without any answer: that there is none is all that could be right.

        Raises:
            LoadError: If no row has an answer.
        """
        if samples.is_labelled and not any(row.label for row in samples.rows):
            raise LoadError(
                f"{samples.source}: none of {len(samples)} {samples.role} rows has an answer.",
                "Give samples some of which have one.",
            )

    def joined(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits of being the start, and the end, of the answer: (B, T, 2)."""
        return np.stack(outputs, axis=-1)

    def compared(self, logits: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Return the logits (B, T, 2) with padding out of the question."""
        return np.where(inputs["attention_mask"][..., None] == 1, logits, np.float32(NEVER))

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return the divergence of where the answer starts and ends, (B, T, 2), mean of the two."""
        one, other = (self.compared(logits, batch.inputs) for logits in (before, after))
        return np.asarray(divergence(one, other, axis=1).mean(axis=-1))

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same likeliest start and end."""
        return float((expected.argmax(axis=1) == actual.argmax(axis=1)).all(axis=-1).mean())

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Return the first and the last token of each row's answer."""
        spans = np.asarray([samples.rows[i].features["span"] for i in batch.indices], dtype=np.int64)
        return {"start_positions": spans[:, 0], "end_positions": spans[:, 1]}

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score logits (N, T, 2) of rows padded on the right.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        answers = self._spans(outputs, samples, rows)
        values, losses = np.empty(len(rows)), np.empty(len(rows))
        for number, row in enumerate(samples.rows[i] for i in rows):
            logits = _real(outputs[number], row)
            values[number] = self.value(answers[number], row.label)
            start, end = row.features["span"]
            likelihoods = log_softmax(logits, axis=0)
            losses[number] = -(likelihoods[start, 0] + likelihoods[end, 1]) / 2
        return Scores(values, losses)

    def value(self, found: str, answers: tuple[str, ...]) -> float:
        """Return what an answer is worth, "" for none, where these are right, or none is."""
        return squad_value("f1", found, answers)

    def _spans(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> list[str]:
        """Return the answer to each of the rows, "" for none."""
        may_decline = any(not row.label for row in samples.rows)
        asked = zip(outputs, (samples.rows[i] for i in rows), strict=True)
        return [answer_in(_real(logits, row), row, may_decline) for logits, row in asked]

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the spans."""
        return [span or "(no answer)" for span in self._spans(outputs, samples, rows)]


class ExactQuestionAnswering(QuestionAnswering):
    """The same, and an answer is right or wrong."""

    metric = "exact_match"
    is_right_or_wrong = True

    def value(self, found: str, answers: tuple[str, ...]) -> float:
        """Return 1 if the answer is one of those that are right."""
        return squad_value("exact_match", found, answers)


EXACT = ExactQuestionAnswering()


def _real(logits: np.ndarray, row: Row) -> np.ndarray:
    """Return the logits of a row's own tokens, without padding."""
    return logits[: len(row.features["tokens"]["input_ids"])].astype(np.float64)


def answer_in(logits: np.ndarray, row: Row, may_decline: bool) -> str:
    """Return the answer that the logits (T, 2) give, "" for none."""
    offsets, begins = row.features["offsets"], row.features["begins"]
    starts, ends = logits[begins : begins + len(offsets)].T
    sums = starts[:, None] + ends[None, :]
    places = np.arange(len(offsets))
    length = places[None, :] - places[:, None] + 1
    sums[(length < 1) | (length > MAX_ANSWER_TOKENS)] = -np.inf
    start, end = np.unravel_index(sums.argmax(), sums.shape)
    if may_decline and logits[0].sum() > sums[start, end]:
        return ""
    context: str = row.features["context"]
    return context[offsets[start][0] : offsets[end][1]].strip()


@lru_cache(maxsize=100_000)
def squad_value(metric: str, found: str, answers: tuple[str, ...]) -> float:
    """Return what an answer is worth; most rows are answered alike by most candidates of a search.

    Args:
        metric: "f1" or "exact_match".
        found: The answer, "" for none.
        answers: Those that are right, none where there is no answer.
    """
    from torchmetrics.functional.text import squad

    texts = list(answers or ("",))
    truth = {"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": ""}
    return float(squad([{"prediction_text": found, "id": ""}], [truth])[metric]) / 100


TASKS.add(QuestionAnswering.name)(QuestionAnswering())


# --- rows -----------------------------------------------------------------------------------


def _answers(answers: Any, context: str, where: str) -> tuple[tuple[str, int], ...] | None:
    """Return each answer with the character where it starts; the first place where none is named.

    Raises:
        LoadError: If the context does not have it there.
    """
    if is_missing(answers):
        return None
    starts: list[Any] | None = None
    if isinstance(answers, Mapping):
        if not {"text", "answer_start"} <= set(answers):
            raise LoadError(
                f"{where}: answers holds {', '.join(map(str, answers))}, not text and answer_start.",
                'Such as {"text": ["Rome"], "answer_start": [12]}, or a list of texts.',
            )
        starts, answers = listed(answers["answer_start"], where), answers["text"]
    texts = [require_text(text, "an answer", where) for text in listed(answers, where)]
    starts = [context.find(text) for text in texts] if starts is None else starts
    if len(starts) != len(texts):
        raise LoadError(f"{where}: {len(texts)} answers and {len(starts)} places where they start.")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(start, int) or start < 0 or not context.startswith(text, start):
            at = f" at character {start}" if start != -1 else ""
            raise LoadError(
                f"{where}: the context does not have the answer {text!r}{at}.",
                "An answer is a part of the context, to the letter.",
            )
    return tuple(zip(texts, starts, strict=True))


def _span(answers: tuple[tuple[str, int], ...] | None, offsets: np.ndarray, begins: int) -> tuple[int, int]:
    """Return the first and last token of the first answer; the first of all where it is not to be seen."""
    if not answers:
        return 0, 0
    text, start = answers[0]
    touched = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
    if len(touched) == 0 or offsets[-1, 1] < start + len(text):
        return 0, 0
    return begins + int(touched[0]), begins + int(touched[-1])
