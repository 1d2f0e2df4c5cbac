"""The checkpoint is the model that was measured: some of the search's rows, scored once more by it.

A search skips layers in memory, most of them without running those below. Bit for bit, the checkpoint is the
model with layers skipped; here it is held against the numbers that the layers were chosen by.

Knows nothing about how a search measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .artifacts import Selection
from .errors import UnsupportedModelError
from .models import LoadedModel
from .profiling import Probe
from .samples import Samples

# Losses on another device, or in batches of other rows, differ by rounding; a tie may fall to the other side.
TOLERANCE, LEAST_AGREEMENT = 1e-3, 0.9


@dataclass(frozen=True)
class Measured:
    """What a search found of one batch of its rows, with the layers that it chose gone.

    `rows` are indices (B,) of the samples, `losses` (B,) theirs.
    """

    samples: Samples
    rows: np.ndarray
    losses: np.ndarray


def remember(probe: Probe, selection: Selection) -> Measured | None:
    """Return what is known of a batch of average length; None where none was scored without these layers."""
    chosen = probe.choices.chosen(selection.drop, selection.scales)
    losses = probe.known(chosen)[1]
    samples = probe.samples[probe.select_on]
    batches = probe.length_sorted(samples)
    known = [batch for batch in batches if np.isfinite(losses[batch]).all()]
    if not known:
        return None
    batch = known[len(known) // 2]  # they are sorted by length
    return Measured(samples, batch, losses[batch])


def refuse_another(model: LoadedModel, measured: Measured) -> None:
    """Refuse a checkpoint that does not give the losses that its layers were chosen by.

    Args:
        model: The checkpoint, loaded.
        measured: What the search found.

    Raises:
        UnsupportedModelError: Saying on how many rows it differs.
    """
    batch = model.task.batch(measured.samples, measured.rows, model.processor)
    scores = model.task.score_by_domain(model.answers(batch), measured.samples, measured.rows)
    agree = np.isclose(scores.losses, measured.losses, rtol=TOLERANCE, atol=TOLERANCE)
    if agree.mean() < LEAST_AGREEMENT:
        worst = int(np.abs(scores.losses - measured.losses).argmax())
        raise UnsupportedModelError(
            f"The checkpoint is not the model that the search measured: on {int((~agree).sum())} of "
            f"{len(agree)} rows its loss is another, at {measured.samples.rows[measured.rows[worst]].where} "
            f"{scores.losses[worst]:.4g} and not {measured.losses[worst]:.4g}.",
            "Report this with the command; the selection does not hold for the checkpoint.",
        )
