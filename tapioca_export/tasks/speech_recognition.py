"""Speech recognition by connectionist temporal classification (CTC): a token a frame, or a blank.

Shapes: N samples, B rows of a batch, F frames, V tokens, L tokens of the longest text.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .audio_classification import RecordingTask
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
from .files import require
from .labels import is_missing
from .scoring import Scores
from .tokenizing import load_tokenizer, require_text


class TranscriptTask(RecordingTask):
    """What is said in a recording; the metric is the word error rate of all rows together.

    Words are counted by jiwer as its defaults have it: runs of spaces count as one, and nothing else is
    evened out; case and punctuation count. A row's value is its errors by the mean number of words of
    the role's texts, so that the mean over rows is the errors of all by the words of all.
    """

    name = "automatic-speech-recognition"
    optimum_task = "automatic-speech-recognition"
    metric = "wer"
    higher_is_better = False
    is_right_or_wrong = False
    best_value = 0.0
    optional_columns: ClassVar[tuple[str, ...]] = ("text",)

    def read_label(self, record: Mapping[str, Any], where: str, processor: Processor) -> str | None:
        """Read what is said."""
        text = record.get("text")
        return None if is_missing(text) else require_text(text, "text", where)

    def values(self, said: Sequence[str], samples: Samples, rows: np.ndarray) -> np.ndarray:
        """Return each row's share of the word error rate, (B,), of what was found to be said."""
        import jiwer

        found = [jiwer.process_words(samples.rows[i].label, text) for i, text in zip(rows, said, strict=True)]
        errors = [one.substitutions + one.deletions + one.insertions for one in found]
        shares: np.ndarray = np.asarray(errors) / np.mean([row.features["words"] for row in samples.rows])
        return shares

    @abstractmethod
    def said(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> list[str]:
        """Return the text of each recording, of what `score` takes."""

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the texts."""
        return list(self.said(outputs, samples, rows))

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Refuse: the models' own losses are no mean over rows."""
        raise no_training_loss(self.name)


class SpeechRecognition(TranscriptTask):
    """The likeliest token of each frame, read as the tokenizer does: repeated ones count once, blanks not.

    The loss is that of CTC: the negative log-probability of all paths that spell the text, in nats by
    the number of its tokens.
    """

    model_class = "AutoModelForCTC"

    def for_model(self, config: Any) -> Task:
        """Return this, or, of an encoder-decoder, the task whose answers are generated."""
        from .speech_generation import SpeechGeneration

        return SpeechGeneration() if config.is_encoder_decoder else self

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the feature extractor and the tokenizer.

        Raises:
            LoadError: If one is not there, or does not fit the model.
            ConfigError: If the model does not name a token for each stretch of a waveform, or jiwer is
                not installed.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

        require("jiwer", "jiwer", "audio", self.name)
        known = config.model_type in MODEL_FOR_CTC_MAPPING_NAMES
        processor = self.load_recordings(folder, config, options) if known else None
        if processor is None or processor.fixed_length is not None:
            raise ConfigError(
                f"Model type {config.model_type} names no token for each stretch of a waveform, "
                f"as {self.name} needs."
            )
        processor = replace(processor, position="mean")
        tokenizer = load_tokenizer(folder, config, options)
        if tokenizer.pad_token_id != config.pad_token_id:
            raise LoadError(
                f"The blank of {folder} is token {config.pad_token_id}, that of its tokenizer "
                f"{tokenizer.pad_token_id}.",
                "Save the tokenizer that the model was trained with.",
            )
        return replace(processor, tokenizer=tokenizer, unused_tokenizer=copy.deepcopy(tokenizer))

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a recording and, optionally, what is said in it.

        Raises:
            LoadError: If the text has a character that the model does not know, or is too long for the
                recording.
        """
        from jiwer.transformations import wer_default

        row, tokenizer = super().read_row(record, where, processor), processor.tokenizer
        if row.label is None:
            return row
        tokens = tuple(tokenizer(row.label)["input_ids"])
        if tokenizer.unk_token_id in tokens:
            unknown = sorted({c for c in row.label if tokenizer.unk_token_id in tokenizer(c)["input_ids"]})
            raise LoadError(
                f"{where}: the model cannot write {''.join(unknown)!r} of the text {row.label!r}.",
                f"It writes: {''.join(sorted(token for token in tokenizer.get_vocab() if len(token) == 1))}",
            )
        frames = self.lengths([row], processor)[0]
        least = len(tokens) + sum(one == other for one, other in pairwise(tokens))
        if frames < least:
            raise LoadError(
                f"{where}: the text has {len(tokens)} tokens, for which the model needs {least} frames; the "
                f"recording has {frames}.",
                "Remove the row, or raise --max-length if the recording is cut.",
            )
        more = {"tokens": tokens, "frames": frames, "words": len(wer_default([row.label])[0])}
        return replace(row, features={**row.features, **more, "tokenizer": tokenizer})

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score logits (B, F, V) of at least as many frames as each recording has.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        features = [samples.rows[i].features for i in rows]
        losses = ctc_losses(
            log_softmax(outputs.astype(np.float64), axis=-1),
            [row["frames"] for row in features],
            [row["tokens"] for row in features],
            features[0]["tokenizer"].pad_token_id,
        )
        return Scores(self.values(self.said(outputs, samples, rows), samples, rows), losses)

    def said(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> list[str]:
        """Return the text of each recording, of logits (B, F, V)."""
        features = [samples.rows[i].features for i in rows]
        return [
            row["tokenizer"].decode(found[: row["frames"]].argmax(axis=-1).tolist())
            for found, row in zip(outputs, features, strict=True)
        ]

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of frames with the same likeliest token."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


TASKS.add(SpeechRecognition.name)(SpeechRecognition())


def ctc_losses(
    log_probabilities: np.ndarray, frames: Sequence[int], texts: Sequence[Sequence[int]], blank: int
) -> np.ndarray:
    """Return the negative log-probability of each text (B,), in nats by its number of tokens.

    Source: the forward variables of Graves et al. 2006 ("Connectionist Temporal Classification",
    section 4.1), in logarithms: between any two tokens, and around them, may stand blanks.

    Args:
        log_probabilities: Of each token at each frame, (B, F, V).
        frames: Real frames of each row.
        texts: Tokens of each row, one or more.
        blank: The token that stands for none.
    """
    lengths = np.asarray([len(text) for text in texts])
    states = np.full((len(texts), 2 * lengths.max() + 1), blank)
    for row, text in zip(states, texts, strict=True):
        row[1 : 2 * len(text) : 2] = text
    each = np.arange(len(texts))
    # A blank may be left out, but between two tokens that are the same.
    may_jump = np.zeros(states.shape, dtype=bool)
    may_jump[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    nothing = np.full((len(texts), 2), -np.inf)
    reached = np.full(states.shape, -np.inf)
    reached[:, :2] = log_probabilities[each[:, None], 0, states[:, :2]]
    for frame in range(1, max(frames)):
        before = np.concatenate([nothing, reached], axis=1)
        jumped = np.where(may_jump, before[:, :-2], -np.inf)
        moved = np.logaddexp(np.logaddexp(reached, before[:, 1:-1]), jumped)
        moved += log_probabilities[each[:, None], frame, states]
        reached = np.where(frame < np.asarray(frames)[:, None], moved, reached)
    ends = np.logaddexp(reached[each, 2 * lengths], reached[each, 2 * lengths - 1])
    losses: np.ndarray = -ends / lengths
    return losses
