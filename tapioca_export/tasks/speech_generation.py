"""Speech recognition by an encoder that hears and a decoder that writes, such as Whisper.

Two things are asked of a row: how likely its text is, which one forward tells, and what the model writes
by itself, greedily, token by token. Tokens that a checkpoint's `generate` would rule out are not ruled out.

Shapes: B rows of a batch, K tokens of the longest text, M bands and F frames of a spectrogram.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .audio_classification import RecordingTask
from .base import Batch, Inputs, Processor, ProcessorOptions, all_rows, check_finite
from .causal import padded
from .continuing import Continuation, written_texts
from .files import require
from .scoring import Scores
from .speech_recognition import TranscriptTask
from .text2text_generation import Text2TextGeneration
from .tokenizing import ends_of, load_generation_config, load_tokenizer

# An answer is cut at twice as many tokens as the row's text has, and so many more: a model that never ends
# is wrong long before.
MORE_TOKENS = 8


class SpeechGeneration(Text2TextGeneration, TranscriptTask):
    """What the decoder writes, greedily.

    The loss is the mean over the text's tokens of their negative log-likelihood, in nats, each after those
    before it.
    """

    name = TranscriptTask.name
    optimum_task = TranscriptTask.optimum_task
    model_class = "AutoModelForSpeechSeq2Seq"
    metric = TranscriptTask.metric
    higher_is_better = TranscriptTask.higher_is_better
    is_right_or_wrong = TranscriptTask.is_right_or_wrong
    best_value = TranscriptTask.best_value
    columns = ("audio",)
    optional_columns = ("text",)
    unit = TranscriptTask.unit
    padding = "max_length"
    padding_sides = ("none",)

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the feature extractor, the tokenizer, and what `generate` begins with.

        Raises:
            LoadError: If one is not there, or does not fit the model.
            ConfigError: If the model hears something else than spectrograms of one length, or does not
                say what its decoder begins with; or jiwer is not installed.
        """
        require("jiwer", "jiwer", "audio", self.name)
        processor = RecordingTask.load_recordings(self, folder, config, options)
        most = getattr(config, "max_target_positions", None)
        if processor.fixed_length is None or most is None:
            raise ConfigError(
                f"Model type {config.model_type} does not hear spectrograms of one length, as {self.name} by "
                "an encoder and a decoder needs."
            )
        tokenizer = load_tokenizer(folder, config, options, needs_padding=False)
        generation = load_generation_config(folder, config, options, starts=True)
        start = generation.decoder_start_token_id
        # What the tokenizer puts before a text (its language, say) is not the model's to find.
        before = [token for token in _before(tokenizer) if token != start]
        return replace(
            processor,
            position="answer-start",
            tokenizer=tokenizer,
            unused_tokenizer=copy.deepcopy(tokenizer),
            generation_config=generation,
            prompt=(start, *before),
            max_answer=int(most),
        )

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a recording and, optionally, what is said in it.

        Raises:
            LoadError: If the text is longer than the decoder has room for.
        """
        from jiwer.transformations import wer_default

        row, tokenizer = TranscriptTask.read_row(self, record, where, processor), processor.tokenizer
        if row.label is None:
            return replace(row, features={**row.features, "answers": ()})
        ends = ends_of(processor.generation_config)
        tokens = (*tokenizer(row.label, add_special_tokens=False)["input_ids"], ends[0])
        room = (processor.max_answer or 0) - len(processor.prompt)
        if len(tokens) > room:
            raise LoadError(f"{where}: the text has {len(tokens)} tokens, the model has room for {room}.")
        words = len(wer_default([row.label])[0])
        more = {"answers": (tokens,), "words": words, "tokenizer": tokenizer}
        return replace(row, features={**row.features, **more})

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode recordings, and texts without their last token, which predicts nothing."""
        answers = [answer for row in rows for answer in (row.features["answers"] or ((),))]
        return {**RecordingTask.encode(self, rows, processor), **self._begun(answers, processor)}

    def _begun(self, answers: Sequence[Sequence[int]], processor: Processor) -> Inputs:
        begun = [(*processor.prompt, *answer[:-1]) for answer in answers]
        return {self.answer_input: padded(begun, processor, "right")["input_ids"]}

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Ask for the texts' tokens, and for what is written without them."""
        batch = super().batch(samples, indices, processor)
        if not samples.is_labelled:
            return batch
        lengths = np.asarray([len(samples.rows[i].features["answers"][0]) for i in indices])
        room = (processor.max_answer or 0) - len(processor.prompt)
        limits = np.minimum(2 * lengths + MORE_TOKENS, room)
        prompts = (processor.prompt,) * len(batch)
        ends = ends_of(processor.generation_config)
        return replace(batch, continuation=Continuation(prompts, ends, limits))

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode recordings, and of texts only what all of them begin with."""
        rows = [replace_answers(samples.rows[i]) for i in indices]
        whole = Samples(samples.role, tuple(rows), samples.source, samples.sha256)
        found = super().batch(whole, np.arange(len(rows)), processor)
        return replace(found, indices=indices)

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the frames of each row, all of one length, and the tokens of its text."""
        heard = processor.fixed_length or 0
        return [heard + sum(map(len, row.features["answers"])) for row in rows]

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return noise and random tokens."""
        generator = np.random.default_rng(0)
        heard = RecordingTask.examples(self, processor)
        size, lengths = len(processor.tokenizer), ((4, 3), (5, 9, 7))
        texts = [[generator.integers(0, size, n).tolist() for n in part] for part in lengths]
        return [{**h, **self._begun(text, processor)} for h, text in zip(heard, texts, strict=True)]

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return None: what is written token by token is read at every place."""
        return None

    def cached_lengths(self, inputs: Inputs, processor: Processor) -> tuple[int, int]:
        """Return the states of the encoder, which hears every second frame, and the tokens of a text."""
        return (processor.fixed_length or 0) // 2, inputs[self.answer_input].shape[1]

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes that may differ: spectrograms have one length."""
        return ("batch", "decoder_sequence") if name == self.answer_input else ("batch",)

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score log-probabilities of the texts' tokens, and tokens written, (B, 2, ...).

        Raises:
            SelectionError: If a log-probability is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        lengths = np.asarray([len(samples.rows[i].features["answers"][0]) for i in rows])
        losses = -outputs[:, 0].astype(np.float64).sum(axis=1) / lengths
        return Scores(self.values(self.said(outputs, samples, rows), samples, rows), losses)

    def said(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> list[str]:
        """Return the text of each recording, of tokens written, (B, 2, ...)."""
        return written_texts(outputs, samples, rows)


def replace_answers(row: Row) -> Row:
    """Return a row without its text."""
    return replace(row, features={**row.features, "answers": ()})


def _before(tokenizer: Any) -> list[int]:
    """Return the special tokens that a tokenizer puts before a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    own = np.flatnonzero(np.asarray(encoded["special_tokens_mask"]) == 0)
    return list(encoded["input_ids"][: own[0]]) if len(own) else []
