"""Whether a model may read all answers to one context in one sequence: found out on the user's rows.

Knows nothing about families: some ignore a mask of their own kind, some look no further than a
window, some place tokens otherwise. Equal numbers on short and long rows are the proof.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import UnsupportedModelError
from ..models import FAILURES, LoadedModel
from ..samples import Samples
from ..tasks import Processor

NUM_ROWS = 8
TOLERANCE = 1e-4  # absolute and relative, on log-probabilities in float32


def shares_context(model: LoadedModel, samples: Samples) -> Processor:
    """Return the model's processor, sharing contexts if that changes no number.

    Compares each answer token's log-probability in a shared sequence with the one it has in a
    sequence of its own: on rows of all lengths, the longest and the shortest, shared and apart.
    """
    task, apart = model.task, model.processor
    if not task.has_shared_contexts or not samples.is_labelled:
        return apart
    shared = replace(apart, shares_context=True)
    # A row that is long apart may be short shared, and look farther than a window of attention.
    orders = [task.length_sorted(samples, processor, len(samples))[0] for processor in (shared, apart)]
    places = np.linspace(0, len(samples) - 1, NUM_ROWS).astype(int)
    rows = np.unique([order[places] for order in orders])
    try:
        one = model.answers(task.batch(samples, rows, shared))
    # What a model does with a mask or positions that it does not know is its own affair.
    except (UnsupportedModelError, *FAILURES):
        return apart
    other = model.answers(task.batch(samples, rows, apart))
    is_equal = np.allclose(one[..., 0], other[..., 0], rtol=TOLERANCE, atol=TOLERANCE)
    return shared if is_equal else apart
