"""What trainings of small models have in common: steps down a loss, checkpoints that are kept.

Knows nothing about any model or its data.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class Course(Protocol):
    """Of a recipe, how its weights are moved; warm-up is linear, in steps."""

    steps: int
    learning_rate: float
    warmup: int


Batch = Mapping[str, torch.Tensor]


class Descent:
    """AdamW with linear warm-up, cosine decay and clipped gradients.

    Args:
        model: A network of transformers, which returns its loss; on CUDA its batches have to be of one shape.
        course: How it is trained.
        **options: What its `forward` takes beside a batch.
    """

    def __init__(self, model: torch.nn.Module, course: Course, **options: Any) -> None:
        self._lose = lambda batch: model(**batch, **options).loss
        self.model = model
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: (
                min(1.0, (step + 1) / course.warmup) * 0.5 * (1 + math.cos(math.pi * step / course.steps))
            ),
        )
        self._captured: Captured | None = None

    def step(self, batch: Batch) -> torch.Tensor:
        """Move the weights once, down a batch's loss, and return that."""
        if next(self.model.parameters()).is_cuda:
            self._captured = self._captured or Captured(self.model, self._lose, batch)
            loss = self._captured(batch)
        else:
            self.optimiser.zero_grad()
            loss = self._lose(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return loss.detach()


class Captured:
    """The loss of a batch and its gradients, as one CUDA graph.

    A network as small as these takes a GPU less time than Python takes to launch its kernels.
    """

    def __init__(self, model: torch.nn.Module, lose: Callable[[Batch], torch.Tensor], batch: Batch) -> None:
        torch.backends.cuda.matmul.allow_tf32 = True  # of this process, which trains
        device = next(model.parameters()).device
        self._batch = {name: value.to(device, copy=True) for name, value in batch.items()}
        # What libraries set up on first use cannot be captured: some runs before, on another stream, do that.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                lose(self._batch).backward()
        torch.cuda.current_stream().wait_stream(stream)
        # Gradients that begin inside the graph are written anew by every replay; others would be added to.
        model.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = lose(self._batch)
            self._loss.backward()

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Compute the loss of a batch, and leave its gradients where the optimiser finds them."""
        for name, value in batch.items():
            self._batch[name].copy_(value)
        self._graph.replay()
        return self._loss


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
