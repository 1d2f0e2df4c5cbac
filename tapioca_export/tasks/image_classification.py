"""Image classification: one label an image.

Knows nothing about networks: of patches it knows how many an image is cut into.

Shapes: B rows of a batch, C channels, H height and W width in pixels, T positions of the stream.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError, first_line
from ..samples import Row
from .base import TASKS, Inputs, Processor, ProcessorOptions
from .classifying import check_head, label_names
from .extracting import load_extractor
from .files import FileClassification, Source, head_position, require

# Never EPS: Pillow reads it by running Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Model types that place patches of any number without being told to.
TAKE_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class ImageClassification(FileClassification):
    """One label an image; the metric is accuracy, the loss cross-entropy."""

    name = "image-classification"
    optimum_task = "image-classification"
    columns: ClassVar[tuple[str, ...]] = ("image",)
    column = "image"
    padding_sides = ("none",)
    unit = "patches"

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the image processor, the one that computes with Pillow: no other library changes a pixel.

        Raises:
            LoadError: If there is none, or none that fits the model.
            ConfigError: If the head is not a single-label classifier, images come out in several sizes,
                `--max-length` is given, or Pillow is not installed.
        """
        check_head(config, self.name, "an image")
        return replace(self.load_images(folder, config, options), id2label=label_names(config))

    def load_images(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the image processor alone, whatever the head is."""
        require("PIL.Image", "Pillow", "vision", self.name)
        extractor = load_extractor("AutoImageProcessor", folder, config, options, backend="pil")
        processor = Processor(
            folder=str(folder),
            position=head_position(config),
            max_length=1,
            extractor=extractor,
        )
        height, width = _size(processor)
        inner = getattr(config, "vision_config", config)
        wanted = _pair(getattr(inner, "image_size", None) or (height, width))
        if (height, width) != wanted and config.model_type not in TAKE_ANY_SIZE:
            raise LoadError(
                f"The image processor of {folder} gives {height} x {width} pixels, "
                f"the model takes {wanted[0]} x {wanted[1]}.",
                "Save the image processor that the model was trained with.",
            )
        patch = _pair(getattr(inner, "patch_size", None) or (height, width))
        num_patches = max(1, height // patch[0]) * max(1, width // patch[1])
        if options.max_length not in (None, num_patches):
            raise ConfigError("--max-length has no meaning for images: all have one size.", "Leave it out.")
        return replace(processor, max_length=num_patches, fixed_length=num_patches)

    def look(self, source: Source, processor: Processor) -> Mapping[str, Any]:
        """Tell from a file's head that it is an image of a size that can be decoded."""
        with _opened(source):
            return {}

    def decode(self, features: Mapping[str, Any]) -> Any:
        """Return an image in RGB, upright; of an animation, the first frame."""
        from PIL import ImageOps

        with _opened(features["image"]) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Decode, resize and normalise.

        Raises:
            LoadError: If a file cannot be decoded.
        """
        return _encoded([self.decoded(row) for row in rows], processor)

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the number of patches, the same for each row."""
        return [processor.max_length] * len(rows)

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return noise: two images, then three."""
        generator = np.random.default_rng(0)
        return [_encoded(_noise(generator, number), processor) for number in (2, 3)]

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the only axis that may differ."""
        return ("batch",)


TASKS.add(ImageClassification.name)(ImageClassification())


def _opened(source: Source) -> Any:
    """Open an image; its pixels are decoded later.

    Raises:
        ValueError: If it is in no format that is read, too large, or its pixels have more than 8 bits.
    """
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # A small file may hold more pixels than there is memory for.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    if image.mode[0] in "IF":  # Pillow would cut them off, to white
        image.close()
        raise ValueError(f"its pixels (mode {image.mode}) have more than 8 bits a channel; convert it")
    return image


def _encoded(images: Sequence[Any], processor: Processor) -> Inputs:
    found = processor.extractor(images=list(images), return_tensors="np")
    return {
        name: np.asarray(value, dtype=np.float32 if np.asarray(value).dtype.kind == "f" else np.int64)
        for name, value in found.items()
    }


def _noise(generator: np.random.Generator, number: int) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(number)]


def _size(processor: Processor) -> tuple[int, int]:
    """Return height and width of all images that an image processor gives.

    Raises:
        ConfigError: If it gives images of several sizes, or something else than images.
    """
    from PIL import Image

    shapes = []
    try:
        for size in ((48, 64), (64, 48), (300, 200)):
            shapes.append(_encoded([Image.new("RGB", size)], processor)["pixel_values"].shape)
    except Exception as error:  # an image processor asks of images what it pleases
        raise ConfigError(
            f"The image processor of {processor.folder} does not encode plain images: {first_line(error)}"
        ) from error
    if len(set(shapes)) > 1 or len(shapes[0]) != 4:
        raise ConfigError(
            f"The image processor of {processor.folder} gives images of several sizes; a batch needs one.",
            "Set do_resize, and a height and a width, in preprocessor_config.json.",
        )
    return int(shapes[0][2]), int(shapes[0][3])


def _pair(size: Any) -> tuple[int, int]:
    """Return a size of one or two numbers as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)
