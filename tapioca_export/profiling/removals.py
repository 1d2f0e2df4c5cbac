"""How a pass without a layer differs from the intact one, where answers are read: state and output.

Shapes: B rows of a batch, P answer positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch.nn.functional import cosine_similarity

from ..errors import NotFiniteError
from ..models import LoadedModel
from ..samples import Samples
from ..tasks import Batch, Processor
from .gathering import head_states
from .replaying import Trace

# The intact pass and one without a layer, row by row (B,).
Compare = Callable[[LoadedModel, Processor, Batch, Trace, Trace], np.ndarray]


def turned(model: LoadedModel, processor: Processor, batch: Batch, intact: Trace, trace: Trace) -> np.ndarray:
    """Return 1 - cosine of the states (B, P, H) that the head reads, mean over P."""
    both = (intact.boundaries, trace.boundaries)
    one, other = (head_states(model, processor, batch, states) for states in both)
    turns = 1 - cosine_similarity(one.double(), other.double(), dim=-1)  # (B, P)
    return np.asarray(turns.mean(dim=-1).cpu())


def said_otherwise(
    model: LoadedModel, processor: Processor, batch: Batch, intact: Trace, trace: Trace
) -> np.ndarray:
    """Return by how much the output changes, as the task says (`Task.output_changes`)."""
    assert intact.answers is not None
    assert trace.answers is not None
    return model.task.output_changes(intact.answers, trace.answers, batch, processor)


def refuse_undefined(found: np.ndarray, samples: Samples, batch: Batch, layer: object) -> None:
    """Refuse numbers (B,) that are none: among ranks, one would make all undefined.

    Raises:
        NotFiniteError: If there is one; it names the layer and the row.
    """
    if (undefined := np.isnan(found)).any():
        where = samples.rows[int(batch.indices[undefined.argmax()])].where
        raise NotFiniteError(f"What the head reads and says without layer {layer} is", where)
