"""A model in another precision, as transformers would have loaded it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import UnsupportedModelError
from ..precision import DTYPES
from .loaded import LoadedModel


def cast(model: LoadedModel, dtype: str) -> LoadedModel:
    """Return a copy of a model in another precision.

    Stock `from_pretrained` makes it, of the weights in memory: what must stay in float32 stays there (the
    frequencies of rotary positions, and weights that a class names, such as T5's `wo`), where a plain
    `.to(dtype)` would round it.

    Args:
        model: A model on the CPU.
        dtype: A name of `DTYPES`.

    Raises:
        UnsupportedModelError: If its weights do not make a model again.
    """
    network = model.network
    copy, info = type(network).from_pretrained(
        None,
        config=network.config,
        state_dict=network.state_dict(),
        dtype=getattr(torch, DTYPES[dtype].name),
        output_loading_info=True,
    )
    if lost := sorted(map(str, (*info["missing_keys"], *info["unexpected_keys"]))):
        raise UnsupportedModelError(
            f"{model.source} cannot be cast to {dtype}: transformers does not take {lost[0]} back.",
            "Use --dtype fp32, and report the family.",
        )
    if copy.can_generate():
        copy.generation_config = network.generation_config
    return replace(model, network=copy.eval())
