"""A model, the shifts it is asked under, and where fresh rows of each come from. Knows nothing of layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tapioca_export.models import LoadedModel
from tapioca_export.samples import Samples, read_samples

ID = "id"


@dataclass(frozen=True)
class Shift:
    """One distribution that the model was not trained on.

    Attributes:
        name: Such as "c=3 x=1".
        levels: How far it is along the axes on which it lies; an axis begins at the training distribution.
        neighbours: Names of the shifts next to it.
    """

    name: str
    levels: Mapping[str, float]
    neighbours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """One trained model under study.

    Attributes:
        name: Such as "8x48-seed0".
        size: What models of one size have in common.
        seed: Of its training.
        model: The network with its task.
        shifts: All that it is asked under, beside the training distribution.
        origins: Where each axis begins: the level of the training distribution.
        references: Names of the shifts on which the dear controls are measured; fixed before any was.
        draw: Gives fresh rows of a shift ("id": of the training distribution) in a role.
        unrelated: Pairs of names that `draw` knows: where layers are chosen, and an unrelated task on which
            they are tried; fixed before this was measured.
        constant_error: What the best answer that is always the same makes of errors.
        training: The last line of the training's log.
        batch_size: Rows of a pass.
    """

    name: str
    size: str
    seed: int
    model: LoadedModel
    shifts: tuple[Shift, ...]
    origins: Mapping[str, float]
    references: tuple[str, ...]
    draw: Callable[[str, str], Samples]
    unrelated: tuple[tuple[str, str], ...] = ()
    constant_error: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 128


def batch_size_on(device: torch.device) -> int:
    """Return how many rows go through at a time: on a CPU what its caches hold, on a GPU all of a file."""
    return 128 if device.type == "cpu" else 512


def as_samples(model: LoadedModel, records: Iterable[Mapping[str, Any]], role: str) -> Samples:
    """Read records as a file of the model's task would be."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return read_samples(path, model.task.rows({}, model.processor), role=role)


def last_line(folder: Path) -> dict[str, Any]:
    """Return the last line of a checkpoint's training log."""
    found: dict[str, Any] = json.loads(
        (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    )
    return found
