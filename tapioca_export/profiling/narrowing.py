"""The last layer's feed-forward part, computed only where the head reads: found out to be right on rows.

What stands behind a layer's attention works token by token, and above the last layer only the tokens
that the head reads count. Modules behind the attention are given these tokens alone; their outputs at
the others are left 0. Knows nothing about families: that the answers stay the same is proven.

Shapes: S sequences, T tokens, n of them read, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import NotFiniteError, UnsupportedModelError
from ..models import DROPPED, FAILURES, LoadedModel, changing
from ..samples import Samples
from ..tasks import Batch, Processor, Scores

NUM_ROWS = 8
TOLERANCE = 1e-4  # absolute and relative, on logits and log-probabilities in float32


@contextmanager
def narrowed(layer: nn.Module, read: np.ndarray | None) -> Iterator[None]:
    """Compute what stands behind the layer's attention only at the tokens `read`, (S, T) booleans."""
    if read is None or read.all():
        yield
        return
    with ExitStack() as hooks:
        for name, module in layer.named_children():
            has_weights = any(parameter.dim() > 1 for parameter in module.parameters())
            if has_weights and "att" not in name.lower():
                _narrow(module, torch.from_numpy(read), hooks)
        yield


def _narrow(module: nn.Module, read: torch.Tensor, hooks: ExitStack) -> None:
    """Give a module only the tokens that are read, and put its outputs back in their places."""

    def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value[read.to(value.device)][None]
            if isinstance(value, torch.Tensor) and value.shape[:2] == read.shape
            else value
            for value in arguments
        )

    def scatter(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        whole = output.new_zeros(*read.shape, output.shape[-1])
        whole[read.to(output.device)] = output[0]
        return whole

    for hook in (module.register_forward_pre_hook(gather), module.register_forward_hook(scatter)):
        hooks.callback(hook.remove)


def can_narrow(model: LoadedModel, samples: Samples, processor: Processor) -> bool:
    """Tell whether answers stay the same when the last layer is narrowed, on rows of all lengths.

    Any layer of the stack that the head reads, the last, may come to be the last one, so one of every
    kind is tried in that place.
    """
    task = model.task
    batch = task.batch(samples, rows_of_all_lengths(model, samples, processor), processor)
    read = task.read_tokens(batch, processor)
    if read is None:
        return False
    layers = model.layers
    kinds = {_kind(layers[index]): index for index in model.numbering.ranges[-1]}
    return all(_stays_the_same(model, batch, samples, read, index) for index in kinds.values())


def rows_of_all_lengths(
    model: LoadedModel, samples: Samples, processor: Processor, num_rows: int = NUM_ROWS
) -> np.ndarray:
    """Return the indices of some rows, the shortest and the longest among them."""
    order = np.concatenate(model.task.length_sorted(samples, processor, len(samples)))
    return np.unique(order[np.linspace(0, len(order) - 1, num_rows).astype(int)])


def is_same(one: Scores, other: Scores) -> bool:
    """Tell whether values and losses are the same, but for rounding."""
    pairs = ((one.values, other.values), (one.losses, other.losses))
    return all(np.allclose(*pair, rtol=TOLERANCE, atol=TOLERANCE) for pair in pairs)


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """Return what tells layers apart that may treat tokens differently."""
    return (type(layer), *((name, type(child)) for name, child in layer.named_children()))


def _stays_the_same(model: LoadedModel, batch: Batch, samples: Samples, read: np.ndarray, last: int) -> bool:
    """Compare values and losses with the layer `last` the last one, narrowed and not."""
    layer = model.layers[last]
    with changing(model, dict.fromkeys(range(last + 1, model.num_layers), DROPPED)):
        try:
            with narrowed(layer, read):
                found = model.answers(batch)
        # What a module makes of fewer tokens than its layer has is its own affair.
        except (UnsupportedModelError, *FAILURES):
            return False
        expected = model.answers(batch)
    try:
        return is_same(*(model.task.score(outputs, samples, batch.indices) for outputs in (found, expected)))
    except NotFiniteError:  # whoever scores the rows says behind which layer it begins
        return False


def last_layer(num_layers: int, skipped: Sequence[int]) -> int:
    """Return the index of the last layer that is not skipped."""
    return max(set(range(num_layers)) - set(skipped))
