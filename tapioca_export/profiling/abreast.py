"""Several candidates of one small batch, run as rows of one larger batch: found out to be right on rows.

Above the layers that they drop, candidates have nothing in common but the work: the next one joins
where its own layer is passed over, with the stream that was recorded there, and layers see the rows of
all that have joined. The head then reads each candidate's states in a forward of its own, through which no
layer runs; so nothing has to be repeated but what layers are given beside the stream. Knows nothing
about families: that the answers stay the same is proven.

Shapes: S sequences of a batch, T tokens, H hidden size, k candidates that have joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..models import EndOfForward, LoadedModel, StandIn
from ..tasks import Batch
from .narrowing import last_layer, narrowed


def groups(
    num_layers: int, base: Sequence[int], layers: Sequence[int], shape: tuple[int, int], most_tokens: int
) -> Iterator[tuple[int, ...]]:
    """Divide candidates into those that run abreast, in the order of their layers.

    A group's candidates have the same last layer, the one that is narrowed, and no more than so many tokens
    between them, padding included. Where S = T (the `shape` of the batch), each goes alone: what a
    layer is given belongs to the sequences if it begins with as many, and here that might be tokens.
    """
    size, length = shape
    most = 1 if size == length else max(1, most_tokens // (size * length))
    group: list[int] = []
    for layer in sorted(layers):
        is_other = group and last_layer(num_layers, (*base, layer)) != last_layer(
            num_layers, (*base, group[0])
        )
        if len(group) == most or is_other:
            yield tuple(group)
            group = []
        group.append(layer)
    if group:
        yield tuple(group)


def states_abreast(
    model: LoadedModel,
    places: Sequence[StandIn],
    batch: Batch,
    skipped: Sequence[int],
    layers: Sequence[int],
    streams: Sequence[torch.Tensor],
    read: np.ndarray | None,
) -> list[torch.Tensor]:
    """Return what the last layer returns without `skipped` and each of `layers`, (S, T, H) each.

    Args:
        model: The network, of one stack, whose layers return tensors.
        places: Stand-ins at its layers' places.
        batch: S sequences.
        skipped: Layers that every candidate lacks.
        layers: One more for each candidate, in their order, with one last layer for all.
        streams: The stream (S, T, H) that enters each layer up to the last of `layers` without `skipped`.
        read: Tokens (S, T) that the head reads, to which the last layer is narrowed (None: not).
    """
    size = streams[0].shape[0]

    def end(_: torch.Tensor, output: torch.Tensor) -> None:
        raise EndOfForward(output)

    for index, place in enumerate(places):
        joined = sum(layer < index for layer in layers)
        place.answer = streams[index + 1] if index < layers[0] else None
        place.skips, place.ends = index in skipped or index == layers[0], False
        place.see = end if index == len(places) - 1 else None
        if joined:
            place.runs = _joining(place, size, joined, streams[index] if index in layers else None)
    last = places[last_layer(len(places), (*skipped, layers[0]))].layer
    tokens = None if read is None else np.tile(read, (len(layers), 1))
    try:
        with narrowed(last, tokens):
            model.read(batch)
        raise AssertionError("a forward that does not reach the last layer")
    except EndOfForward as found:
        return list(found.stream.split(size))
    finally:
        for place in places:
            place.runs = place.see = place.answer = None


def _joining(
    place: StandIn, size: int, joined: int, stream: torch.Tensor | None
) -> Callable[..., torch.Tensor]:
    """Return what runs a layer on the candidates that have joined, and lets one more join behind it."""

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        args, kwargs = _repeated((args, kwargs), size, joined)
        output: torch.Tensor = place.layer(*args, **kwargs)
        return output if stream is None else torch.cat([output, stream])

    return run


def _repeated(value: Any, size: int, times: int) -> Any:
    """Repeat what belongs to the sequences of a batch for every candidate."""
    if isinstance(value, torch.Tensor):
        is_by_sequence = value.dim() > 0 and value.shape[0] == size and times > 1
        return value.repeat(times, *[1] * (value.dim() - 1)) if is_by_sequence else value
    if isinstance(value, dict):
        return {name: _repeated(one, size, times) for name, one in value.items()}
    # Named tuples are left to the layer, which takes them apart by their names.
    return (
        type(value)(_repeated(one, size, times) for one in value) if type(value) in (tuple, list) else value
    )
