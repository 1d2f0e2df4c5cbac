"""What trainings of small models have in common: an optimiser with its schedule, checkpoints that are kept.

Knows nothing about any model or its data.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch


class Course(Protocol):
    """Of a recipe, how its weights are moved; warm-up is linear, in steps."""

    steps: int
    learning_rate: float
    warmup: int


class Descent:
    """AdamW with linear warm-up, cosine decay and clipped gradients."""

    def __init__(self, model: torch.nn.Module, course: Course) -> None:
        self.model = model
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: (
                min(1.0, (step + 1) / course.warmup) * 0.5 * (1 + math.cos(math.pi * step / course.steps))
            ),
        )

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights once, down a batch's loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()


def kept(cache: Path, name: str, made_of: Any, train: Callable[[Path], None]) -> Path:
    """Return the folder of a checkpoint, training it where the cache lacks it.

    Args:
        cache: Folder of all of a family's checkpoints.
        name: What the folder's name begins with.
        made_of: All that the weights depend on, as JSON has it; any change trains anew.
        train: Fills a folder.
    """
    folder = cache / f"{name}-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".training-") as aside:
        made = Path(aside) / "checkpoint"
        made.mkdir()
        train(made)
        try:
            made.rename(folder)
        except OSError:
            # Another process may have made the same meanwhile; either will do.
            if not folder.is_dir():
                raise
    return folder
