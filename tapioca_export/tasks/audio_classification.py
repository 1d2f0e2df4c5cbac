"""Recordings: how they are decoded, cut and padded; and audio classification, one label a recording.

Knows nothing about networks: of their convolutions it knows by how much they shorten a row.

Shapes: B rows of a batch, S time steps (values of a waveform, or frames of a spectrogram), T positions
of the stream.
"""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError, first_line
from ..samples import Row
from .base import TASKS, Batch, Inputs, Processor, ProcessorOptions
from .classifying import check_head, label_names
from .extracting import load_extractor
from .files import FileClassification, FileTask, Source, head_position, require

# Most models take a recording of any length; without --max-length it is cut here.
LONGEST_SECONDS = 30
# Outside, what a head of a file says is no sampling rate.
SAMPLING_RATES = (1_000, 384_000)
# Model types whose answers are the same whatever a row is padded to, if they are told and if what they
# normalise is a time step by itself. Others mix padding into what stands before it.
PAD_FREELY = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")


class RecordingTask(FileTask):
    """A recording a row."""

    column = "audio"
    columns = ("audio",)
    padding_sides = ("right",)
    unit = "time steps"
    padding: ClassVar[bool | str] = True  # what the feature extractor is told of it

    def load_recordings(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the feature extractor; lengths are in values of the waveform that it takes.

        Raises:
            LoadError: If there is none, or none that fits the model.
            ConfigError: If `--max-length` is too short, spectrograms come out in several lengths, or
                soundfile is not installed.
        """
        require("soundfile", "soundfile", "audio", self.name)
        extractor = load_extractor("AutoFeatureExtractor", folder, config, options)
        layers = (getattr(config, "conv_kernel", None) or (), getattr(config, "conv_stride", None) or ())
        processor = Processor(
            folder=str(folder),
            position=head_position(config),
            max_length=options.max_length or LONGEST_SECONDS * _rate(extractor, folder),
            extractor=extractor,
            convolutions=tuple(zip(*layers, strict=True)),
        )
        least = _least(processor)
        if processor.max_length < least:
            raise ConfigError(
                f"--max-length {processor.max_length} is too short: the model needs {least} values."
            )
        long, short = (_tried(processor, least + size, self.padding) for size in (2000, 1000))
        if (shape := next(iter(long.values())).shape) == next(iter(short.values())).shape:
            return replace(processor, fixed_length=max(shape[1:]))  # mel bands are fewer than frames
        if len(shape) > 2:
            raise ConfigError(
                f"The feature extractor of {folder} gives spectrograms of several lengths; "
                f"{self.name} takes waveforms, or spectrograms of one length."
            )
        is_told = "attention_mask" in long
        pads_freely = is_told and config.model_type in PAD_FREELY and config.feat_extract_norm == "layer"
        return replace(processor, pads_freely=pads_freely)

    def look(self, source: Source, processor: Processor) -> Mapping[str, Any]:
        """Tell from a file's head how many time steps a recording has, resampled and cut."""
        rate = processor.extractor.sampling_rate
        with _opened(source) as file:
            if not SAMPLING_RATES[0] <= file.samplerate <= SAMPLING_RATES[1]:
                raise ValueError(f"its sampling rate is {file.samplerate} Hz")
            size = min(processor.max_length, -(-file.frames * rate // file.samplerate))
        least = _least(processor)
        if size < least:
            raise ValueError(f"it has {size} values at {rate} Hz, the model needs at least {least}")
        return {"size": size, "rate": rate}

    def decode(self, features: Mapping[str, Any]) -> Any:
        """Return the waveform, (size,) float32: channels averaged, resampled, cut."""
        from scipy.signal import resample_poly

        size, rate = features["size"], features["rate"]
        with _opened(features["audio"]) as file:
            # One second more than is kept, as resampling looks ahead.
            frames = -(-size * file.samplerate // rate) + file.samplerate
            wave = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            if file.samplerate != rate:
                common = math.gcd(rate, file.samplerate)
                wave = resample_poly(wave, rate // common, file.samplerate // common)
        if len(wave) < size:
            raise ValueError("it ends before its head says")
        if not np.isfinite(wave).all():
            raise ValueError("it holds a value that is not finite")
        return wave[:size].astype(np.float32)

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Decode, normalise and pad on the right, where alone the models expect it.

        Raises:
            LoadError: If a file cannot be decoded.
        """
        waves = [self.decoded(row) for row in rows]
        try:
            return encoded(waves, processor, self.padding)
        except Exception as error:  # a feature extractor asks of waves what it pleases
            shortest = min(rows, key=lambda row: int(row.features["size"]))
            raise LoadError(
                f"{shortest.where}: the feature extractor refuses a recording of "
                f"{shortest.features['size']} values, or one beside it: {first_line(error)}.",
                "Remove recordings that are too short.",
            ) from error

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the positions that each row has in the residual stream."""
        if processor.fixed_length is not None:
            return [processor.fixed_length] * len(rows)
        return [_positions(row.features["size"], processor) for row in rows]

    def group(self, row: Row, processor: Processor) -> Hashable:
        """Batch recordings of one length where padding changes answers."""
        return None if processor.pads_freely else int(row.features["size"])

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return noise: short, then long recordings."""
        generator, least = np.random.default_rng(0), max(100, _least(processor))
        return [
            encoded(
                [generator.normal(size=n * least).astype(np.float32) for n in sizes], processor, self.padding
            )
            for sizes in ((4, 3), (9, 5, 7))
        ]

    def state_mask(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Return 1 for positions that stem from real time steps, shape (B, T)."""
        whole = super().state_mask(batch, processor)
        if processor.fixed_length is not None:
            return whole
        steps = self.token_mask(batch.inputs)
        # Some models make fewer positions yet of what leaves their convolutions.
        most = _positions(steps.shape[1], processor)
        sizes = [_positions(int(size), processor) for size in steps.sum(axis=1)]
        real = [-(-size * whole.shape[1] // most) for size in sizes]
        return (np.arange(whole.shape[1]) < np.asarray(real)[:, None]).astype(np.int64)


class AudioClassification(RecordingTask, FileClassification):
    """One label a recording; the metric is accuracy, the loss cross-entropy."""

    name = "audio-classification"
    optimum_task = "audio-classification"

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the feature extractor; lengths are in values of the waveform that it takes.

        Raises:
            LoadError: If there is none, or none that fits the model.
            ConfigError: If the head is not a single-label classifier, or the rest does not fit.
        """
        check_head(config, self.name, "a recording")
        return replace(self.load_recordings(folder, config, options), id2label=label_names(config))


TASKS.add(AudioClassification.name)(AudioClassification())


def _opened(source: Source) -> Any:
    import soundfile

    return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)


def _rate(extractor: Any, folder: Path | str) -> int:
    """Return the sampling rate that a feature extractor takes, in Hz.

    Raises:
        LoadError: If it names none.
    """
    rate = getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int) or not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        raise LoadError(f"The feature extractor of {folder} names no sampling rate: {rate!r}.")
    return rate


def _positions(size: int, processor: Processor) -> int:
    """Return how many values the convolutions leave of a row."""
    for kernel, stride in processor.convolutions:
        size = (size - kernel) // stride + 1
    return size


def _least(processor: Processor) -> int:
    """Return the fewest values of which the convolutions leave two (one position has no neighbour)."""
    size = 2
    for kernel, stride in reversed(processor.convolutions):
        size = (size - 1) * stride + kernel
    return size


def encoded(waves: Sequence[np.ndarray], processor: Processor, padding: bool | str) -> Inputs:
    """Turn waveforms into a model's inputs."""
    rate = processor.extractor.sampling_rate
    found = processor.extractor(list(waves), sampling_rate=rate, padding=padding, return_tensors="np")
    return {
        name: np.asarray(value, dtype=np.float32 if np.asarray(value).dtype.kind == "f" else np.int64)
        for name, value in found.items()
    }


def _tried(processor: Processor, size: int, padding: bool | str) -> Inputs:
    """Encode noise of one length.

    Raises:
        ConfigError: If the feature extractor cannot.
    """
    wave = np.random.default_rng(0).normal(size=size).astype(np.float32)
    try:
        return encoded([wave], processor, padding)
    except Exception as error:  # a feature extractor asks of waves what it pleases
        raise ConfigError(
            f"The feature extractor of {processor.folder} does not encode waveforms: {first_line(error)}"
        ) from error
