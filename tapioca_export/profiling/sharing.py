"""Whether a model may read all answers to one context in one sequence: found out on the user's rows.

Knows nothing about families: some ignore a mask of their own kind, some look no further than a
window, some place tokens otherwise. Equal numbers on short and long rows are the proof.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..models import LoadedModel
from ..samples import Samples
from ..tasks import Processor

NUM_ROWS = 8
TOLERANCE = 1e-4  # absolute and relative, on log-probabilities in float32


def shares_context(model: LoadedModel, samples: Samples) -> Processor:
    """Return the model's processor, sharing contexts if that changes no number.

    Compares each answer token's log-probability in a shared sequence with the one it has in a
    sequence of its own, on the longest row, the shortest, and rows in between.
    """
    task, apart = model.task, model.processor
    if not task.has_shared_contexts or not samples.is_labelled:
        return apart
    shared = replace(apart, shares_context=True)
    order = np.concatenate(task.length_sorted(samples, shared, len(samples)))
    rows = np.unique(order[np.linspace(0, len(order) - 1, NUM_ROWS).astype(int)])
    try:
        one = model.answers(task.batch(samples, rows, shared))
    # What a model does with a mask or positions that it does not know is its own affair.
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return apart
    other = model.answers(task.batch(samples, rows, apart))
    is_equal = np.allclose(one[..., 0], other[..., 0], rtol=TOLERANCE, atol=TOLERANCE)
    return shared if is_equal else apart
