"""Sizes that a config claims, held against what the headers of its weights say, before any memory is taken.

A config is text from whoever wrote it, and a network is built as large as it says. Weights cannot lie so:
a file holds what its header counts. Knows names of sizes, and nothing of families.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import LoadError
from .shards import Weights

# How many of something that has weights of its own: no more than there are tensors.
_COUNTS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
}  # fmt: skip
# Rows of a table, which a model of images may lack though its config counts them.
_ROWS = {"vocab_size", "type_vocab_size"}
# Axes of weights: no longer than the largest tensor has values.
_AXES = {
    "hidden_size", "d_model", "n_embd", "dim", "embedding_size", "intermediate_size", "d_ff", "n_inner",
    "hidden_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim",
}  # fmt: skip
# What is no larger costs nothing, and what else is wrong with it is said better later.
SMALL_COUNT, SMALL_AXIS, SMALL_TABLE = 100, 1024, 1 << 20
# transformers names each label as soon as it reads a config. Classifiers know some ten thousands at most.
MOST_LABELS = 1_000_000
# No size of a model has as many digits, and whatever is counted with it overflows. What is only ever
# compared with may: tokenizers say "no limit" so, and some configs repeat it; and so may a seed.
MOST = 1 << 40
UNLIMITED = ("length", "_len", "seed")


def refuse_numbers(raw: Mapping[str, Any], source: object) -> None:
    """Refuse a config whose numbers no model has, before anything is made of it.

    Args:
        raw: What `config.json` says.
        source: Where it is, for the message.

    Raises:
        LoadError: Naming the number.
    """
    for name, value in _integers(raw):
        most = MOST_LABELS if name == "num_labels" else MOST
        if abs(value) > most and not any(word in name for word in UNLIMITED):
            raise _absurd(source, name, value, f"no model has more than {most:,}")


def refuse_sizes(raw: Mapping[str, Any], weights: Weights, source: object) -> None:
    """Refuse a config that claims more than the weights hold.

    Args:
        raw: What `config.json` says.
        weights: The checkpoint's.
        source: Where it is, for the message.

    Raises:
        LoadError: Naming the number.
    """
    largest = max((math.prod(stored.shape) for stored in weights.tensors.values()), default=0)
    for name, value in _integers(raw):
        if name in _COUNTS and value > max(len(weights.tensors), SMALL_COUNT):
            raise _absurd(source, name, value, f"its weights are {len(weights.tensors):,} tensors")
        small = SMALL_TABLE if name in _ROWS else SMALL_AXIS
        if name in _AXES | _ROWS and value > max(largest, small):
            raise _absurd(source, name, value, f"its largest tensor has {largest:,} values")


def _integers(raw: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Yield every whole number of a config with its name, in configs inside it too."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _integers(value, str(key))
    elif isinstance(raw, list):
        for value in raw:
            yield from _integers(value, name)
    elif isinstance(raw, int):
        yield name, raw


def _absurd(source: object, name: str, value: int, found: str) -> LoadError:
    number = f"{value:,}" if abs(value) < MOST else f"a number of {value.bit_length()} bits"
    return LoadError(
        f"The config of {source} says {name} {number}, but {found}.", "Fetch the checkpoint again."
    )
