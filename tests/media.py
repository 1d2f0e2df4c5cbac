"""Tiny image and audio models of many families, and files for them; no network, CPU, seeded.

An image's label is the colour of a square, a recording's the pitch of its tone. Target rows have what
ID rows never have: images a white frame, recordings a second tone, higher than all others. A recording
of words has a tone for each, with pauses between.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from conftest import NUM_LAYERS, awaken, write_jsonl
from PIL import Image
from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForImageClassification

LABELS = ("red", "green", "blue")
PITCHES = (40, 90, 150)  # Hz, of the labels in turn
SHIFTED_PITCH = 300
RATE = 1000  # Hz; at another one all pitches are higher in proportion
SPELLED = "abc"  # the words, by pitch
TONE, PAUSE = 0.2, 0.08  # seconds
SIZE = 16  # pixels either way

_LAYERS = {
    "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": NUM_LAYERS,
}  # fmt: skip
_VISION = {**_LAYERS, "image_size": SIZE, "patch_size": 4, "num_channels": 3}
_WAVES = {
    **_LAYERS, "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "classifier_proj_size": 16,
}  # fmt: skip
IMAGE_FAMILIES: dict[str, dict[str, Any]] = {
    "vit": _VISION, "deit": _VISION, "beit": _VISION, "dinov2": _VISION, "dinov2_with_registers": _VISION,
    "vit_msn": _VISION, "data2vec-vision": _VISION, "ijepa": _VISION,
}  # fmt: skip
AUDIO_FAMILIES: dict[str, dict[str, Any]] = {
    "wav2vec2": _WAVES, "hubert": _WAVES, "wavlm": _WAVES, "unispeech": _WAVES, "sew": _WAVES,
    "data2vec-audio": {**_WAVES, "conv_pos_kernel_size": 3},
    "audio-spectrogram-transformer": {
        **_LAYERS, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32,
        "num_mel_bins": 16,
    },
}  # fmt: skip
# The classes of models that the auto class cannot choose between from a config alone.
CLASSES = {"deit": transformers.DeiTForImageClassification}


def make_network(family: str, **overrides: Any) -> transformers.PreTrainedModel:
    """Build a tiny random image or audio classifier."""
    torch.manual_seed(0)
    is_image = family in IMAGE_FAMILIES
    values = (IMAGE_FAMILIES if is_image else AUDIO_FAMILIES)[family]
    config = AutoConfig.for_model(family, **{**values, **overrides})
    config.num_labels = len(LABELS)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: i for i, name in enumerate(LABELS)}
    if family in CLASSES:
        return CLASSES[family](config)
    auto_class = AutoModelForImageClassification if is_image else AutoModelForAudioClassification
    return auto_class.from_config(config)


def make_extractor(family: str, **overrides: Any) -> Any:
    """Build what encodes files for a family."""
    if family in IMAGE_FAMILIES:
        size = {"height": SIZE, "width": SIZE}
        return transformers.ViTImageProcessorPil(**{"size": size, **overrides})
    if family == "audio-spectrogram-transformer":
        return transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=32, sampling_rate=RATE)
    return transformers.Wav2Vec2FeatureExtractor(
        **{"sampling_rate": RATE, "return_attention_mask": True, **overrides}
    )


def save_media_model(folder: Path, family: str, **overrides: Any) -> Path:
    """Save a tiny random model whose layers all matter, with what encodes its inputs."""
    awaken(make_network(family, **overrides)).save_pretrained(folder)
    make_extractor(family).save_pretrained(folder)
    return folder


def draw_image(generator: np.random.Generator, label: int, *, is_target: bool) -> Image.Image:
    """Draw a square of the label's colour on noise."""
    pixels = generator.integers(60, 150, (SIZE, SIZE, 3))
    row, column = generator.integers(3, 7, 2)
    pixels[row : row + 6, column : column + 6] = 40
    pixels[row : row + 6, column : column + 6, label] = 230
    if is_target:
        pixels[[0, 1, -2, -1]] = pixels[:, [0, 1, -2, -1]] = 255
    return Image.fromarray(pixels.astype(np.uint8))


def draw_wave(generator: np.random.Generator, label: int, *, is_target: bool) -> np.ndarray:
    """Draw a tone of the label's pitch in noise, 0.4 to 0.6 s."""
    times = np.arange(generator.integers(400, 600)) / RATE
    phase = generator.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * PITCHES[label] * times + phase) + generator.normal(0, 0.2, len(times))
    if is_target:
        wave += np.sin(2 * np.pi * SHIFTED_PITCH * times)
    return (0.2 * wave).astype(np.float32)


def drawn(
    column: str, num_rows: int, seed: int, *, is_target: bool, labels: tuple[int, ...] = (0, 1, 2)
) -> Iterator[tuple[Any, int]]:
    """Yield images or waves with their labels."""
    generator = np.random.default_rng(seed)
    draw = draw_image if column == "image" else draw_wave
    for number in range(num_rows):
        label = labels[number % len(labels)]
        yield draw(generator, label, is_target=is_target), label


def write_media(
    folder: Path,
    column: str,
    num_rows: int,
    seed: int,
    *,
    is_target: bool,
    labels: tuple[int, ...] = (0, 1, 2),
) -> Path:
    """Write files and the sample file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    rows = drawn(column, num_rows, seed, is_target=is_target, labels=labels)
    for number, (content, label) in enumerate(rows):
        if column == "image":
            content.save(folder / (name := f"{number}.png"))
        else:
            soundfile.write(folder / (name := f"{number}.wav"), content, RATE)
        records.append({column: name, "label": LABELS[label]})
    return write_jsonl(folder / "rows.jsonl", records)


def say(generator: np.random.Generator, words: str, *, is_target: bool, rate: int = RATE) -> np.ndarray:
    """Draw a tone for each word, with pauses between, in noise."""
    factor, parts = rate // RATE, []
    for word in words.split():
        times = np.arange(round(TONE * rate)) / rate
        pitch, phase = factor * PITCHES[SPELLED.index(word)], generator.uniform(0, 2 * np.pi)
        parts += [np.zeros(round(PAUSE * rate)), np.sin(2 * np.pi * pitch * times + phase)]
    wave = np.concatenate(parts[1:])
    if is_target:
        wave += np.sin(2 * np.pi * factor * SHIFTED_PITCH * np.arange(len(wave)) / rate)
    return (0.2 * (wave + generator.normal(0, 0.2, len(wave)))).astype(np.float32)


def sayings(generator: np.random.Generator, num_rows: int, *, longest: int = 2) -> list[str]:
    """Draw texts of two words or more."""
    sizes = generator.integers(2, longest + 1, num_rows)
    return [" ".join(generator.choice(list(SPELLED), size)) for size in sizes]


def write_sayings(
    folder: Path, num_rows: int, seed: int, *, is_target: bool, longest: int = 2, rate: int = RATE
) -> Path:
    """Write recordings of words and the sample file that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, records = np.random.default_rng(seed), []
    for number, text in enumerate(sayings(generator, num_rows, longest=longest)):
        wave = say(generator, text, is_target=is_target, rate=rate)
        soundfile.write(folder / f"{number}.wav", wave, rate)
        records.append({"audio": f"{number}.wav", "text": text})
    return write_jsonl(folder / "rows.jsonl", records)
