"""What a config says of itself, held against the types that tasks and stages take it for.

A config is text from whoever wrote it, and transformers checks what its own classes read. Knows nothing about
sizes (sizes.py) and nothing about families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LoadError

SHOWN = 60  # characters of a value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, (list, tuple)) and all(map(_is_whole, value)))


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)


def _are_labels(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_whole, value))


# By name, what a value has to be where it is given, and that in words.
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architectures": (_are_texts, "a list of names"),
    "id2label": (_are_labels, "a table of labels by number"),
    "pad_token_id": (_is_whole, "a whole number"),
    "bos_token_id": (_are_whole, "a whole number"),
    "eos_token_id": (_are_whole, "a whole number, or a list of some"),
    "decoder_start_token_id": (_are_whole, "a whole number"),
    "vocab_size": (_is_whole, "a whole number"),
    "max_position_embeddings": (_is_whole, "a whole number"),
}


def refuse_types(config: Any, source: object) -> None:
    """Refuse a config whose values are of types that nothing can be made of.

    Args:
        config: As transformers read it.
        source: Where it is, for the message.

    Raises:
        LoadError: Naming the first.
    """
    for name, (fits, what) in TYPES.items():
        value = getattr(config, name, None)
        if value is not None and not fits(value):
            text = repr(value)
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise LoadError(
                f"The config of {source} says {name} {shown}, which is not {what}.", "Mend config.json."
            )
