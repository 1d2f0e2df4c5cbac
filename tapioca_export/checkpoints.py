"""A pruned checkpoint: written, proven, and with its model card and selection beside it.

Knows which layers go, and nothing of why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import cards
from .artifacts import LayerName, Selection, write
from .errors import UnsupportedModelError
from .exporting import parity_batches
from .models import Damped, LoadedModel, damping_weights, save_pruned, write_pruned
from .numbering import lone_parts, whole_layers
from .samples import Samples
from .tasks import Inputs

logger = logging.getLogger(__name__)


def proof_batches(model: LoadedModel, rows: Samples | None) -> list[Inputs]:
    """Return what a checkpoint's logits are compared on: the user's rows, or else made-up ones."""
    given = [batch for _, batch in parity_batches(model, rows)] if rows else []
    return given or list(model.task.examples(model.processor))


def save_checkpoint(
    folder: Path, model: LoadedModel, selection: Selection, batches: Sequence[Inputs] | None
) -> tuple[Selection, dict[str, str]]:
    """Write a checkpoint without the dropped layers, the damped ones folded, with selection and model card.

    Args:
        folder: Where to.
        model: The whole model; an outline will do if there are no batches.
        selection: Which layers go.
        batches: What logits are compared on; None to compare names, shapes and bytes alone.

    Returns:
        The selection, which says now how the checkpoint was proven, and the SHA-256 of such files as were
        hashed when they were written, by their names.

    Raises:
        UnsupportedModelError: If the checkpoint is not the model without these layers, or a layer cannot
            be damped.
    """
    logger.info("Writing the pruned checkpoint, and proving it")
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    if batches is None:
        drop = model.numbering.indices(whole_layers(selection.drop))
        _refuse_others(selection, model.numbering.names(drop))
        digests = write_pruned(model, drop, folder)
        selection = replace(selection, proof="weights", note=None)
    else:
        drop, damped = changed_layers(model, selection)
        scales = {model.numbering.name(layer): change.alpha for layer, change in damped.items()}
        _refuse_others(selection, model.units.names(drop), scales)
        notes = (
            save_pruned(model, drop, folder, batches, damped),
            cards.note_of_zeros(selection.drop),
        )
        selection = replace(selection, proof="logits", note=" ".join(filter(None, notes)) or None)
    write(folder / "selection.json", selection)
    cards.write_model_card(folder, selection)
    return selection, digests


def _refuse_others(
    selection: Selection, drop: Sequence[LayerName], scales: Mapping[LayerName, float] | None = None
) -> None:
    """Refuse to write a checkpoint without, or with damped, other layers than the selection names.

    The proof compares with the same layers skipped: it would not tell.

    Raises:
        UnsupportedModelError: Naming both.
    """
    asked, done = (
        (set(whole_layers(names)), {part: set(own) for part, own in lone_parts(names).items()}, dict(damp))
        for names, damp in ((selection.drop, selection.scales), (drop, scales or {}))
    )
    if asked != done:
        raise UnsupportedModelError(
            f"Layers {', '.join(map(str, (*drop, *(scales or {}))))} would be dropped or damped, and "
            f"{', '.join(map(str, (*selection.drop, *selection.scales)))} were named.",
            "Report this: layers are counted wrongly.",
        )


def changed_layers(model: LoadedModel, selection: Selection) -> tuple[tuple[int, ...], dict[int, Damped]]:
    """Return the units that a selection drops, and the layers that it damps, as the model counts them.

    Raises:
        UnsupportedModelError: If a layer cannot be damped.
    """
    scales = {model.numbering.index(part.layer): part.scale for part in selection.damp}
    weights = damping_weights(model, sorted(scales)) if scales else {}
    damped = {layer: Damped(scale, weights[layer]) for layer, scale in scales.items()}
    return tuple(model.units.indices(selection.drop)), damped
