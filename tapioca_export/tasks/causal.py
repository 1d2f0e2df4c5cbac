"""Tasks of causal language models: choices ranked by likelihood, and answers generated greedily.

Neither needs a token to be generated. A choice is ranked by the probability of its tokens; greedy
generation gives exactly the wanted answer if, and only if, each of its tokens is the most likely one
after those before it, which one forward over the whole answer tells.

The answers to one context are encoded with it once: they stand behind it in one sequence, each at
the positions it would have alone and masked from the others. Families that cannot take such a mask
get one sequence an answer; the probe finds out on the user's own rows.

Shapes: B rows of a batch, S sequences, T tokens, R tokens asked for, K of them at most a row.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import (
    TASKS,
    Batch,
    Inputs,
    Processor,
    ProcessorOptions,
    Readings,
    Scores,
    Task,
    all_rows,
    check_finite,
    no_training_loss,
)
from .tokenizing import load_tokenizer, num_positions, require_text

# Added to the scores of tokens that may not be attended to, as transformers does.
BLIND = float(np.finfo(np.float32).min)


class CausalTask(Task):
    """A context and answers to it. Rows hold token ids: `context`, and `answers`, a tuple of them."""

    optimum_task = "text-generation"
    is_right_or_wrong = True
    higher_is_better = True
    best_value = 1.0
    profiles_while_scoring = False
    text_column: ClassVar[str]
    answer_input: ClassVar[str] = "input_ids"  # the tokens at which answers are read

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer.

        Raises:
            LoadError: If there is no tokenizer, or none that fits the model.
            ConfigError: If the model is no decoder, or `--max-length` is out of its range.
        """
        if not _is_decoder(config):
            raise ConfigError(
                f"Model type {config.model_type} is no decoder, and {self.name} asks for likely tokens.",
                f"Name another -t/--task: {', '.join(TASKS)}.",
            )
        tokenizer = load_tokenizer(folder, config, options, needs_padding=False)
        limit = min(tokenizer.model_max_length, num_positions(config))
        if options.max_length is not None and not 2 <= options.max_length <= limit:
            raise ConfigError(f"--max-length {options.max_length} is outside 2..{limit}, the model's range.")
        return Processor(
            folder=str(folder),
            position="last-token",
            max_length=options.max_length or limit,
            tokenizer=tokenizer,
            unused_tokenizer=copy.deepcopy(tokenizer),
        )

    def make_row(
        self, context: str, answers: Sequence[str], label: Any, where: str, processor: Processor
    ) -> Row:
        """Tokenize a context and its answers.

        Raises:
            LoadError: If an answer has no tokens, or leaves the context no room.
        """
        ids = _ids(processor, context)
        if not ids:
            raise LoadError(f"{where}: the tokenizer finds no token in the text.", "Remove the row.")
        encoded = tuple(_continuation(processor, context, ids, answer) for answer in answers)
        for answer, tokens in zip(answers, encoded, strict=True):
            if not tokens:
                raise LoadError(f"{where}: the tokenizer finds no token in the answer {answer!r}.")
        room = processor.max_length - max(map(len, encoded), default=1)
        if room < 1:
            raise LoadError(
                f"{where}: an answer of {processor.max_length - room} tokens leaves no room for the context "
                f"within {processor.max_length} tokens."
            )
        if len(ids) > room:  # what is nearest to the answer counts most; a first special token stays
            head = ids[:1] if ids[0] in processor.tokenizer.all_special_ids and room > 1 else ()
            ids = (*head, *ids[len(ids) - room + len(head) :])
        key = "\0".join((context, *answers))
        return Row({"context": ids, "answers": encoded}, label, key, where, self.text_column)

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the tokens of each row's longest sequence."""
        more = sum if processor.shares_context else max
        answers = [list(map(len, row.features["answers"])) or [0] for row in rows]
        return [len(row.features["context"]) + more(sizes) for row, sizes in zip(rows, answers, strict=True)]

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode each row's context with its longest answer as one sequence."""
        longest = [max(row.features["answers"], key=len, default=()) for row in rows]
        sequences = [(*row.features["context"], *answer) for row, answer in zip(rows, longest, strict=True)]
        return padded(sequences, processor, padding_side or "right")

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode contexts with all their answers, and ask for the answers' tokens."""
        rows = [samples.rows[i] for i in indices]
        return (_shared if processor.shares_context else _apart)(indices, rows, processor)

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode the contexts alone: their last token is where the answer begins."""
        contexts = [samples.rows[i].features["context"] for i in indices]
        nothing = np.zeros(0, dtype=np.int64)
        ends = np.asarray([len(context) - 1 for context in contexts])
        readings = Readings(nothing, nothing, nothing, nothing, ends)
        return Batch(indices, padded(contexts, processor, "right"), readings)

    def num_answers(self, samples: Samples) -> int:
        """Return the most answers of any row."""
        return max(1, *(len(row.features["answers"]) for row in samples.rows))

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Refuse: rows are encoded with one answer of several, whose loss is not that of the task."""
        raise no_training_loss(self.name)

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random tokens: short, then long texts."""
        generator = np.random.default_rng(0)
        size = len(processor.tokenizer)
        return [
            padded([generator.integers(0, size, n).tolist() for n in lengths], processor, "right")
            for lengths in ((8, 4), (33, 5, 17))
        ]

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the last token of the context."""
        assert batch.readings is not None
        num_tokens = batch.inputs[self.answer_input].shape[1]
        weights = np.zeros((len(batch), 1, num_tokens), dtype=np.float32)
        weights[np.arange(len(batch)), 0, batch.readings.ends] = 1.0
        return weights

    def compared(self, logits: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Return the logits of real tokens, (tokens, V): padding may see nothing at all, which is NaN."""
        real: np.ndarray = logits[inputs["attention_mask"] == 1]
        return real

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return the tokens whose logits are asked for."""
        assert batch.readings is not None
        return batch.readings.read_in(batch.inputs[self.answer_input].shape)

    def evidence(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return (B, K, 2) of logits (S, T, V): each token's log-probability, and whether it is likeliest."""
        assert batch.readings is not None
        return batch.readings.found_in(logits)

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score evidence (N, K, 2).

        Raises:
            SelectionError: If a log-probability is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        pairs = [self.judge(found, samples.rows[i]) for found, i in zip(outputs, rows, strict=True)]
        values, losses = zip(*pairs, strict=True)
        return Scores(np.asarray(values, dtype=np.float64), np.asarray(losses, dtype=np.float64))

    @abstractmethod
    def judge(self, found: np.ndarray, row: Row) -> tuple[float, float]:
        """Return value and loss of one row from what was found of its tokens, (K, 2)."""

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of positions with the same most likely token."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


class MultipleChoice(CausalTask):
    """One right answer of several; the most likely is the model's (sum over tokens, not normalised).

    The metric is accuracy; the loss is the cross-entropy of the choices, whose probabilities are those
    of their tokens, normalised over the choices.
    """

    name = "multiple-choice"
    metric = "accuracy"
    columns = ("context", "choices")
    optional_columns = ("label",)
    text_column = "context and choices"
    has_shared_contexts = True

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a context, two or more choices, and the right one's index or text."""
        context = require_text(record["context"], "context", where)
        choices = record["choices"]
        if not isinstance(choices, (list, tuple)) or len(choices) < 2:
            raise LoadError(
                f"{where}: choices must be a list of at least two texts.",
                'Such as {"context": "2 + 2 =", "choices": ["3", "4"], "label": 1}; CSV cannot hold lists.',
            )
        choices = [require_text(choice, "a choice", where) for choice in choices]
        if len(set(choices)) < len(choices):
            raise LoadError(f"{where}: two choices are the same.", "Give each choice once.")
        label = _choice(record.get("label"), choices, where)
        return self.make_row(context, choices, label, where, processor)

    def judge(self, found: np.ndarray, row: Row) -> tuple[float, float]:
        """Tell whether the right choice is the likeliest, and how unlikely it was, in nats."""
        ends = np.cumsum([len(answer) for answer in row.features["answers"]])
        totals = np.add.reduceat(found[: ends[-1], 0], [0, *ends[:-1]]).astype(np.float64)
        likeliest = totals.max()
        loss = likeliest + np.log(np.exp(totals - likeliest).sum()) - totals[row.label]
        return float(totals.argmax() == row.label), float(loss)


class TextGeneration(CausalTask):
    """An answer that greedy generation has to give token by token.

    The metric is exact match: the first tokens generated are those of the answer, all of them. The
    loss is the mean over the answer's tokens of their negative log-likelihood, in nats.
    """

    name = "text-generation"
    generates = True
    metric = "exact_match"
    columns = ("prompt",)
    optional_columns = ("answer",)
    text_column = "prompt and answer"

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a prompt and the answer wanted."""
        prompt, answer = require_text(record["prompt"], "prompt", where), record.get("answer")
        if answer is None or answer == "":
            return self.make_row(prompt, (), None, where, processor)
        answer = require_text(answer, "answer", where)
        return self.make_row(prompt, (answer,), answer, where, processor)

    def judge(self, found: np.ndarray, row: Row) -> tuple[float, float]:
        """Tell whether each token is the likeliest after those before it."""
        found = found[: len(row.features["answers"][0])]
        return float(found[:, 1].all()), float(-found[:, 0].mean())


TASKS.add(MultipleChoice.name)(MultipleChoice())
TASKS.add(TextGeneration.name)(TextGeneration())


# --- what a checkpoint says -----------------------------------------------------------------


def _is_decoder(config: Any) -> bool:
    """Tell whether tokens see those before them only; encoders have causal classes as well."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        return False
    return config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)


# --- tokens ---------------------------------------------------------------------------------


def _ids(processor: Processor, text: str) -> tuple[int, ...]:
    """Return the tokens of a text with what the tokenizer puts before, but not behind it."""
    encoded = processor.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    own = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    return tuple(encoded["input_ids"][: own[-1] + 1]) if len(own) else ()


def _continuation(processor: Processor, context: str, ids: tuple[int, ...], answer: str) -> tuple[int, ...]:
    """Return the tokens of an answer that follows a context after a space."""
    whole = _ids(processor, f"{context} {answer}")
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    # The tokenizer merges across the border; the context must stay the same for all answers.
    return tuple(processor.tokenizer(f" {answer}", add_special_tokens=False).input_ids)


def _choice(label: Any, choices: Sequence[str], where: str) -> int | None:
    """Return the index of the right choice: a number is an index, a text a choice or its index."""
    if label is None or label == "" or label != label:
        return None
    if isinstance(label, (float, np.floating)) and label.is_integer():
        label = int(label)
    if isinstance(label, str) and label in choices:
        return list(choices).index(label)
    if not isinstance(label, bool) and str(label).isdecimal() and int(label) < len(choices):
        return int(label)
    raise LoadError(
        f"{where}: label {label!r} is none of the {len(choices)} choices.", "Give its index, counted from 0."
    )


def padded(sequences: Sequence[Sequence[int]], processor: Processor, side: str) -> Inputs:
    """Stack sequences of token ids, padded on one side to the longest."""
    longest = max(map(len, sequences))
    # Padding is never attended to, so that any token will do where the tokenizer has none for it.
    ids = np.full((len(sequences), longest), processor.tokenizer.pad_token_id or 0, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
        ids[row, place], mask[row, place] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


def _apart(indices: np.ndarray, rows: Sequence[Row], processor: Processor) -> Batch:
    """Encode each answer in a sequence of its own, behind its context."""
    sequences: list[Sequence[int]] = []
    asked, ends = [], []
    for number, row in enumerate(rows):
        context = row.features["context"]
        ends.append(len(context) - 1)
        for answer in row.features["answers"] or ((),):
            for offset, token in enumerate(answer):
                asked.append((number, len(sequences), len(context) - 1 + offset, token))
            sequences.append((*context, *answer[:-1]))
    return Batch(indices, padded(sequences, processor, "right"), readings(asked, ends))


def _shared(indices: np.ndarray, rows: Sequence[Row], processor: Processor) -> Batch:
    """Encode all answers to a context in its sequence; a last token predicts nothing and is left out."""
    sequences: list[Sequence[int]] = []
    asked, ends = [], []
    for number, row in enumerate(rows):
        context = row.features["context"]
        last = len(context) - 1
        ends.append(last)
        sequence = list(context)
        for answer in row.features["answers"]:
            for offset, token in enumerate(answer):
                asked.append((number, number, last if offset == 0 else len(sequence) + offset - 1, token))
            sequence.extend(answer[:-1])
        sequences.append(sequence)
    inputs = padded(sequences, processor, "right")
    length = inputs["input_ids"].shape[1]
    mask = np.full((len(rows), 1, length, length), BLIND, dtype=np.float32)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    mask[:, :, np.arange(length), np.arange(length)] = 0.0  # padding sees itself: no empty softmax
    for number, row in enumerate(rows):
        start = context_length = len(row.features["context"])
        mask[number, 0, :start, :start] = np.triu(np.full((start, start), BLIND, dtype=np.float32), k=1)
        positions[number, :start] = np.arange(start)
        for answer in row.features["answers"]:
            size = len(answer) - 1
            end = start + size
            mask[number, 0, start:end, :context_length] = 0.0
            mask[number, 0, start:end, start:end] = np.triu(np.full((size, size), BLIND, np.float32), k=1)
            positions[number, start:end] = context_length + np.arange(size)
            start = end
    inputs |= {"attention_mask": mask, "position_ids": positions}
    return Batch(indices, inputs, readings(asked, ends))


def readings(asked: Sequence[tuple[int, int, int, int]], ends: Sequence[int]) -> Readings:
    """Return readings from (row, sequence, position, token)."""
    columns = np.asarray(asked, dtype=np.int64).reshape(-1, 4).T
    return Readings(columns[0], columns[1], columns[2], columns[3], np.asarray(ends))
