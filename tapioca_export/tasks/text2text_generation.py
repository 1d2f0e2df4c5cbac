"""Answers that an encoder-decoder writes to a text: translations, summaries, extracted facts.

As with causal models, no token need be generated: greedy generation gives exactly the wanted answer if,
and only if, each of its tokens, the one that ends it included, is the likeliest after those before it.
The encoder reads the text, and one forward of the decoder the whole answer.
Greedy is the likeliest token, whatever else a checkpoint tells `generate` (beams, n-grams that may not
repeat).

Shapes: B rows of a batch, T tokens of texts or of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import TASKS, Batch, Inputs, Processor, ProcessorOptions, Task
from .causal import padded, readings
from .text_generation import TextGeneration
from .tokenizing import ends_of, load_generation_config, load_processor, require_text


class Text2TextGeneration(TextGeneration):
    """An answer that greedy generation has to give to a text, token by token, and then to end.

    The metric is exact match; the loss is the mean over the answer's tokens of their negative
    log-likelihood, in nats. Rows hold the tokens of the text and of the answer, each with the special
    tokens that the tokenizer puts there.
    """

    name = "text2text-generation"
    optimum_task = "text2text-generation"
    columns = ("text",)
    optional_columns = ("answer",)
    text_column = "text and answer"
    answer_input = "decoder_input_ids"
    has_prompts = False

    def metrics(self) -> Mapping[str, Task]:
        """Return exact match alone."""
        return {self.metric: self}

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer, and what `generate` begins with.

        Raises:
            LoadError: If there is no tokenizer, or none that fits the model.
            ConfigError: If the model is no encoder-decoder for texts, does not say what its decoder begins
                with, or `--max-length` is out of its range.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

        if config.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
            raise ConfigError(
                f"Model type {config.model_type} is no encoder-decoder for texts, as {self.name} needs.",
                f"Name another -t/--task: {', '.join(TASKS)}.",
            )
        processor = load_processor(folder, config, options, "answer-start", least=2)
        generation = load_generation_config(folder, config, options, starts=True)
        if generation.decoder_start_token_id is None:
            raise ConfigError(
                f"{folder} does not say which token its decoder begins with.",
                "Set decoder_start_token_id in its generation_config.json.",
            )
        forced = [generation.forced_bos_token_id] if generation.forced_bos_token_id is not None else []
        begins = (generation.decoder_start_token_id, *forced)
        return replace(processor, generation_config=generation, prompt=begins)

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a text and the answer wanted.

        Raises:
            LoadError: If the answer is longer than the model can write.
        """
        text, answer = require_text(record["text"], "text", where), record.get("answer")
        encoded = processor.tokenizer(text, truncation=True, max_length=processor.max_length)
        if not encoded["input_ids"]:
            raise LoadError(f"{where}: the tokenizer finds no token in the text.", "Remove the row.")
        tokens: tuple[tuple[int, ...], ...] = ()
        if answer is None or answer == "":
            answer = None
        else:
            answer = require_text(answer, "answer", where)
            tokens = (_answer_tokens(processor, answer),)
            if len(processor.prompt) + len(tokens[0]) > processor.max_length:
                raise LoadError(
                    f"{where}: the answer has {len(tokens[0])} tokens; {processor.max_length} are the most, "
                    f"with the {len(processor.prompt)} that it begins with."
                )
        key = "\0".join(filter(None, (text, answer)))
        features = {"context": tuple(encoded["input_ids"]), "answers": tokens}
        return Row(features, answer, key, where, self.text_column)

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode texts, and answers without their last token, which predicts nothing."""
        answers = [answer for row in rows for answer in (row.features["answers"] or ((),))]
        return self._encoded(rows, answers, processor, padding_side)

    def _encoded(
        self,
        rows: Sequence[Row],
        answers: Sequence[Sequence[int]],
        processor: Processor,
        padding_side: str | None = None,
    ) -> Inputs:
        texts = [row.features["context"] for row in rows]
        begun = [(*processor.prompt, *answer[:-1]) for answer in answers]
        # Behind an answer no token of it sees the padding, so that the decoder needs no mask.
        decoder = padded(begun, processor, "right")["input_ids"]
        return {**padded(texts, processor, padding_side or "right"), self.answer_input: decoder}

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode texts with their answers, and ask for the answers' tokens."""
        rows = [samples.rows[i] for i in indices]
        start = len(processor.prompt) - 1
        asked = [
            (number, number, start + offset, token)
            for number, row in enumerate(rows)
            for answer in row.features["answers"]
            for offset, token in enumerate(answer)
        ]
        return Batch(indices, self.encode(rows, processor), readings(asked, [start] * len(rows)))

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode texts, and of answers only what all of them begin with."""
        rows = [samples.rows[i] for i in indices]
        ends = [len(processor.prompt) - 1] * len(rows)
        inputs = self._encoded(rows, [()] * len(rows), processor)
        return Batch(indices, inputs, readings([], ends))

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the tokens of each row's text and answer."""
        return [
            len(row.features["context"]) + sum(map(len, row.features["answers"])) + len(processor.prompt)
            for row in rows
        ]

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random tokens: short, then long texts and answers."""
        generator = np.random.default_rng(0)
        size = len(processor.tokenizer)
        batches = []
        for lengths in (((8, 5), (4, 3)), ((33, 4), (5, 17), (17, 9))):
            pairs = [[generator.integers(0, size, n).tolist() for n in pair] for pair in lengths]
            rows = [Row({"context": text, "answers": (answer,)}, None, "", "") for text, answer in pairs]
            batches.append(self.encode(rows, processor))
        return batches

    def compared(self, logits: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Return all logits: behind an answer, padding is a token like any other."""
        return logits

    def state_mask(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Return 1 for every token of the decoder: what is profiled has no padding there."""
        return np.ones_like(batch.inputs[self.answer_input])

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes of an input: texts and answers differ in length."""
        return ("batch", "decoder_sequence" if name == self.answer_input else "sequence")


TASKS.add(Text2TextGeneration.name)(Text2TextGeneration())


def _answer_tokens(processor: Processor, answer: str) -> tuple[int, ...]:
    """Return the tokens that are to be generated: without what is forced, with what ends them."""
    tokens = tuple(processor.tokenizer(text_target=answer)["input_ids"])
    forced = processor.prompt[1:]
    if forced and tokens[:1] == forced:
        tokens = tokens[1:]
    ends = ends_of(processor.generation_config)
    return tokens if tokens[-1:] and tokens[-1] in ends else (*tokens, ends[0])
