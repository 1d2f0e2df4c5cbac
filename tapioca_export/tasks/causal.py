"""What tasks of causal language models have in common: how likely each token of an answer is.

The answers to one context are encoded with it once: they stand behind it in one sequence, each at
the positions it would have alone and masked from the others. Families that cannot take such a mask
get one sequence an answer; the probe finds out on the user's own rows.

Shapes: B rows of a batch, S sequences, T tokens, R tokens asked for, K of them at most a row.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .asking import Readings
from .base import (
    TASKS,
    Batch,
    Inputs,
    Processor,
    ProcessorOptions,
    Task,
    all_rows,
    check_finite,
    no_training_loss,
)
from .prompting import Prompt, check_chat, context_of, key_of, with_prompt
from .scoring import Scores
from .tokenizing import load_processor

# Added to the scores of tokens that may not be attended to, as transformers does.
BLIND = float(np.finfo(np.float32).min)


class CausalTask(Task):
    """A prompt and answers to it.

    Rows hold both as texts, `prompt` and `texts`, and as token ids, `context` and `answers`. The context
    is the prompt with all that stands before it.
    """

    optimum_task = "text-generation"
    is_right_or_wrong = True
    higher_is_better = True
    best_value = 1.0
    profiles_while_scoring = False
    has_prompts = True
    prompt_column: ClassVar[str]
    text_column: ClassVar[str]
    answer_input: ClassVar[str] = "input_ids"  # the tokens at which answers are read

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer.

        Raises:
            LoadError: If there is no tokenizer, or none that fits the model.
            ConfigError: If the model is no decoder, `--max-length` is out of its range, or there is no
                chat template where one is asked for.
        """
        if not _is_decoder(config):
            raise ConfigError(
                f"Model type {config.model_type} is no decoder, and {self.name} asks for likely tokens.",
                f"Name another -t/--task: {', '.join(TASKS)}.",
            )
        processor = load_processor(folder, config, options, "last-token", least=2, needs_padding=False)
        if options.prompting.chat:
            check_chat(processor.tokenizer, folder)
        return replace(processor, prompting=options.prompting)

    def rows(
        self, columns: Mapping[str, str], processor: Processor
    ) -> Callable[[Mapping[str, Any], str], Row]:
        """Return the function that reads a record, and makes its prompt as the user wants it.

        Raises:
            ConfigError: If `columns` names something that the task does not read.
            LoadError: If a solved example is not solved.
        """
        prompting, column = processor.prompting, columns.get(self.prompt_column, self.prompt_column)

        def reader(processor: Processor) -> Callable[[Mapping[str, Any], str], Row]:
            read = super(CausalTask, self).rows(columns, processor)
            return lambda record, where: read(with_prompt(record, column, prompting, where), where)

        read, solved = reader(processor), []
        for number, shot in enumerate(prompting.shots, start=1):
            where = f"Solved example {number} of --few-shot"
            row = read(json.loads(shot), where)
            if row.label is None or not row.features["texts"]:
                raise LoadError(f"{where} has no answer: {shot}", "Label all rows of its file.")
            solved.append(row)
        return reader(replace(processor, solved=tuple(solved)))

    def make_row(
        self, prompt: Prompt, answers: Sequence[str], label: Any, where: str, processor: Processor
    ) -> Row:
        """Tokenize a prompt with what stands before it, and its answers.

        A context that is too long loses its beginning; but no conversation and no solved example is cut.

        Raises:
            LoadError: If an answer has no tokens or leaves the context no room, the context may not be
                cut, or the row is itself one of the solved examples.
        """
        key = "\0".join((key_of(prompt), *answers))
        if any(key == row.key for row in processor.solved):
            raise LoadError(
                f"{where} is also a solved example of --few-shot, which tells the model the answer.",
                "Take solved examples from a file of their own.",
            )
        context = context_of(prompt, processor, where)
        ids = token_ids(processor, context)
        if not ids:
            raise LoadError(f"{where}: the tokenizer finds no token in the text.", "Remove the row.")
        encoded = tuple(_continuation(processor, context, ids, answer) for answer in answers)
        for answer, tokens in zip(answers, encoded, strict=True):
            if not tokens:
                raise LoadError(f"{where}: the tokenizer finds no token in the answer {answer!r}.")
        longest = max(processor.prompting.max_new_tokens or 1, *map(len, encoded), 1)
        room = processor.max_length - longest
        if room < 1:
            raise LoadError(
                f"{where}: an answer of {longest} tokens leaves no room for the context "
                f"within {processor.max_length} tokens."
            )
        if len(ids) > room and (processor.prompting.chat or processor.solved):
            raise LoadError(
                f"{where}: the prompt with {len(processor.solved)} solved examples has {len(ids)} tokens, "
                f"of {processor.max_length} the answer leaves {room}.",
                "Lower --num-fewshot, or remove the row.",
            )
        if len(ids) > room:  # what is nearest to the answer counts most; a first special token stays
            head = ids[:1] if ids[0] in processor.tokenizer.all_special_ids and room > 1 else ()
            ids = (*head, *ids[len(ids) - room + len(head) :])
        features = {"context": ids, "answers": encoded, "prompt": prompt, "texts": tuple(answers)}
        return Row(features, label, key, where, self.text_column)

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
        """Encode what comes before the answers: its last token is where they begin."""
        contexts = [self.profiled(samples.rows[i]) for i in indices]
        nothing = np.zeros(0, dtype=np.int64)
        ends = np.asarray([len(context) - 1 for context in contexts])
        readings = Readings(nothing, nothing, nothing, nothing, ends)
        return Batch(indices, padded(contexts, processor, "right"), readings)

    def profiled(self, row: Row) -> Sequence[int]:
        """Return the tokens whose last one's states are profiled."""
        context: Sequence[int] = row.features["context"]
        return context

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


def token_ids(processor: Processor, text: str) -> tuple[int, ...]:
    """Return the tokens of a text with what the tokenizer puts before, but not behind it.

    A chat template writes all special tokens itself.
    """
    if processor.prompting.chat:
        return tuple(processor.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    encoded = processor.tokenizer(text, return_special_tokens_mask=True, verbose=False)
    own = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    return tuple(encoded["input_ids"][: own[-1] + 1]) if len(own) else ()


def _continuation(processor: Processor, context: str, ids: tuple[int, ...], answer: str) -> tuple[int, ...]:
    """Return the tokens of an answer that follows a context after a space; in a conversation at once."""
    answer = answer if processor.prompting.chat else f" {answer}"
    whole = token_ids(processor, context + answer)
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    # The tokenizer merges across the border; the context must stay the same for all answers.
    return tuple(processor.tokenizer(answer, add_special_tokens=False).input_ids)


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
