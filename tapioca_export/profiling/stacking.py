"""Several candidates in one forward: a small batch takes hardly less time than one of some times its size.

The batch is repeated, once for each candidate of a stack, and a candidate's copy joins the stream at the
layer that the candidate lacks, with what entered it in the recorded pass. So layers see each sequence as
often as if candidates had forwards of their own, in fewer calls (or less often: alone, a dropped layer is
run where its answer is more than the stream). Knows nothing about families: that the answers stay the
same is proven on rows.

Shapes: S sequences of a batch, T tokens, C candidates of a stack, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..models import INTACT, Change, Join, LoadedModel, StandIn
from ..tasks import Batch


def stacks_of(layers: Sequence[int], last: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield candidates that go through one forward, in the order of layers.

    Args:
        layers: What each candidate drops.
        last: The last layer that is left. Who drops it ends one below, and goes alone.
        most: Most candidates of a stack.
    """
    others = sorted({*layers} - {last})
    # As even as can be: of seven in stacks of six, one would be left over.
    num_stacks = -(-len(others) // max(1, most))
    for number in range(num_stacks):
        start, end = (len(others) * place // num_stacks for place in (number, number + 1))
        yield tuple(others[start:end])
    if last in layers:
        yield (last,)


@torch.no_grad()
def answers_of_stack(
    model: LoadedModel,
    places: Sequence[StandIn],
    batch: Batch,
    changes: Mapping[int, Change],
    layers: Sequence[int],
    outputs: Sequence[object],
) -> list[np.ndarray]:
    """Return what the task scores of each candidate, as `LoadedModel.answers` would alone.

    Args:
        model: A network of one stack of layers.
        places: The stand-ins in it, as they were when the pass was recorded.
        batch: The rows; nothing is to be generated.
        changes: What all candidates have in common.
        layers: What each of the C candidates drops, in ascending order.
        outputs: What layers returned in the recorded pass, below the highest of `layers` at least.
    """
    (size,) = {len(places[layer].entered) for layer in layers}
    for index, place in enumerate(places):
        place.answer, place.see, place.ends = None, None, False
        place.become(changes.get(index, INTACT))
        place.join = Join(
            size,
            len(layers),
            num_below=sum(layer < index for layer in layers),
            stream=place.entered if index in layers else None,
            output=outputs[index] if index < len(outputs) else None,
        )
    try:
        answers, _ = model.read(repeated(batch, len(layers)))
    finally:
        for place in places:
            place.join = None
    return np.split(answers, len(layers))


def repeated(batch: Batch, times: int) -> Batch:
    """Return copies of a batch, one behind the other."""
    size = len(next(iter(batch.inputs.values())))
    return replace(
        batch,
        indices=np.tile(batch.indices, times),
        inputs={name: np.concatenate([values] * times) for name, values in batch.inputs.items()},
        readings=batch.readings and batch.readings.repeated(times, size),
    )
