"""What makes a checkpoint's inputs of decoded files: an image processor, or a feature extractor.

Its settings are text from whoever wrote it, and what it makes is as large as they say: sizes are looked at
first. Knows nothing about any format of files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import LoadError, first_line
from .base import ProcessorOptions
from .beside import text_beside

SIDE = 1 << 13  # pixels
# The most of what is counted, by its name; and of anything else. Sounds have up to 192,000 values a second.
MOST = {
    "size": SIDE, "height": SIDE, "width": SIDE, "shortest_edge": SIDE, "longest_edge": SIDE,
    "crop_size": SIDE, "pad_size": SIDE,
    "feature_size": 1 << 12, "num_mel_bins": 1 << 12, "n_fft": 1 << 16, "chunk_length": 3600,
}  # fmt: skip
MOST_OF_ANY = 1 << 24


def load_extractor(
    auto_class: str, folder: Path | str, config: Any, options: ProcessorOptions, **backend: Any
) -> Any:
    """Load what makes a checkpoint's inputs of decoded files.

    Args:
        auto_class: Its auto class in transformers.
        folder: A local folder, or a name on the hub.
        config: The model's config.
        options: Safety switches.
        **backend: Which implementation to take, where there are several.

    Raises:
        LoadError: If there is none.
    """
    import transformers

    _refuse_sizes(folder, options)
    try:
        return getattr(transformers, auto_class).from_pretrained(
            str(folder),
            trust_remote_code=options.trust_remote_code,
            local_files_only=options.local_files_only,
            **backend,
        )
    except Exception as error:  # other files, whatever breaks
        raise LoadError(
            f"Nothing that encodes files can be loaded from {folder}: {first_line(error)}",
            "Save it beside the model: preprocessor_config.json.",
        ) from error


def _refuse_sizes(folder: Path | str, options: ProcessorOptions) -> None:
    """Refuse sizes that no model has, before anything as large is made to see what comes out.

    Raises:
        LoadError: Naming the first; or if a file cannot be read.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            settings = json.loads(text_beside(folder, name, options) or "{}")
        except (ValueError, RecursionError):  # which is said when it is loaded
            continue
        for key, value in _numbers(settings):
            if abs(value) > (most := MOST.get(key, MOST_OF_ANY)):
                raise LoadError(
                    f"{name} of {folder} says {key} {value:.6g}, but no model has more than {most:,}.",
                    "Save it again.",
                )


def _numbers(settings: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of settings by the innermost name that they stand under."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _numbers(value, key)
    elif isinstance(settings, list):
        for value in settings:
            yield from _numbers(value, name)
    elif isinstance(settings, int):
        yield name, float(min(max(settings, -(1 << 100)), 1 << 100))
    elif isinstance(settings, float):
        yield name, settings
