"""Images held against texts: the one of a row's candidate labels that fits its image best.

A text tower reads the candidates, a vision tower the images; all rows of a batch have the same
candidates, so that each is read once a batch.

Shapes: B rows of a batch, C candidate labels, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import TASKS, Batch, Inputs, Processor, ProcessorOptions, no_training_loss
from .image_classification import ImageClassification
from .labels import is_missing, listed
from .tokenizing import load_tokenizer, num_positions, random_texts, require_text

TEMPLATE = "This is a photo of {}."  # the default of transformers' pipeline
# Model types whose vision tower is read at its class token; the others' at all patches.
READ_THE_CLASS_TOKEN = ("clip",)
# Model types whose texts are all padded to the longest there may be, and the padding read.
PAD_TO_THE_END = ("siglip",)


class ZeroShotImageClassification(ImageClassification):
    """The candidate label whose text fits an image best; accuracy, and cross-entropy over the candidates.

    For profiles, the vision tower is read where the model reads it, and the text tower at the mean over
    all real tokens of a row's candidates: rows with the same candidates share these states.
    """

    name = "zero-shot-image-classification"
    optimum_task = "zero-shot-image-classification"
    columns = ("image", "candidate_labels")
    optional_columns = ("label", "hypothesis_template")
    outputs = ("logits_per_image",)
    answer_stack = "vision"
    shared_stacks = ("text",)

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the image processor and the tokenizer.

        Raises:
            LoadError: If one is not there, or does not fit the model.
            ConfigError: If the model has no text tower, or images come out in several sizes.
        """
        texts = getattr(config, "text_config", None)
        if texts is None:
            raise ConfigError(f"Model type {config.model_type} reads no texts, as {self.name} needs.")
        processor = self.load_images(folder, config, options)
        tokenizer = load_tokenizer(folder, texts, options)
        unused = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = min(tokenizer.model_max_length, num_positions(texts))
        return replace(
            processor,
            position="first-token" if config.model_type in READ_THE_CLASS_TOKEN else "mean",
            tokenizer=tokenizer,
            unused_tokenizer=unused,
            pads_freely=config.model_type not in PAD_TO_THE_END,
        )

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read an image, the labels to choose from, and, optionally, the right one's name and a template.

        Raises:
            LoadError: If there are not two labels, the right one is none of them, or a template has no
                place for a label.
        """
        row = super().read_row(record, where, processor)
        template = record.get("hypothesis_template")
        template = TEMPLATE if is_missing(template) else require_text(template, "hypothesis_template", where)
        if "{}" not in template:
            raise LoadError(
                f"{where}: hypothesis_template {template!r} has no place for a label.",
                f"Write {{}} there, such as {TEMPLATE!r}.",
            )
        texts = tuple(template.replace("{}", name) for name in _candidates(record, where))
        # An image that is held against other texts is another row.
        return replace(row, features={**row.features, "texts": texts}, key="\0".join((row.key, *texts)))

    def read_label(self, record: Mapping[str, Any], where: str, processor: Processor) -> int | None:
        """Return the place of the right label among the candidates."""
        label, candidates = record.get("label"), _candidates(record, where)
        if is_missing(label):
            return None
        if label not in candidates:
            raise LoadError(
                f"{where}: label {label!r} is none of the candidate labels.",
                f"They are: {', '.join(candidates)}.",
            )
        return candidates.index(label)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the texts that fit best."""
        likeliest = zip(outputs.argmax(axis=-1), rows, strict=True)
        return [samples.rows[row].features["texts"][place] for place, row in likeliest]

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Decode, resize and normalise images; tokenize all texts that any of the rows names, each once."""
        texts = dict.fromkeys(text for row in rows for text in row.features["texts"])
        return {**super().encode(rows, processor), **_tokenized(list(texts), processor)}

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return noise and random texts: two images and three texts, then three and two."""
        few, more = super().examples(processor)
        short, long = random_texts(processor)
        texts = ([*short, "a"], long[:2])
        return [{**images, **_tokenized(t, processor)} for images, t in zip((few, more), texts, strict=True)]

    def group(self, row: Row, processor: Processor) -> Hashable:
        """Batch rows of the same candidates, whose texts are then read once."""
        texts: tuple[str, ...] = row.features["texts"]
        return texts

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes that may differ: texts are as many as there are candidates, not rows."""
        return super().axes(name) if name == "pixel_values" else ("num_labels", "sequence")

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Refuse: the models' own loss takes each image for the only one that fits its text."""
        raise no_training_loss(self.name)


TASKS.add(ZeroShotImageClassification.name)(ZeroShotImageClassification())


def _candidates(record: Mapping[str, Any], where: str) -> list[str]:
    """Return the labels to choose from, sorted: their order has no say in an answer.

    Raises:
        LoadError: If they are not two texts or more, each another one.
    """
    value = record["candidate_labels"]
    names = [] if is_missing(value) else listed(value, where)
    names = [require_text(name, "a candidate label", where) for name in names]
    if len(set(names)) < max(2, len(names)):
        raise LoadError(
            f"{where}: candidate_labels {value!r} are not two texts or more, each another one.",
            'Such as ["cat", "dog"].',
        )
    return sorted(names)


def _tokenized(texts: list[str], processor: Processor) -> Inputs:
    padding = "longest" if processor.pads_freely else "max_length"
    found = processor.tokenizer(texts, padding=padding, truncation=True, return_tensors="np")
    # What stands beside these is for other models.
    return {n: found[n].astype(np.int64) for n in ("input_ids", "attention_mask") if n in found}
