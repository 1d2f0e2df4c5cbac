"""By hand: by how much what a head says of rows changes without a layer, one row a forward, no padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from tapioca_export.models import LoadedModel, skipping
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples
from tapioca_export.tasks import Inputs
from tapioca_export.tensors import to_tensors

# What the network returns with and without a layer, and the row's inputs, to a number.
Compare = Callable[[Any, Any, Inputs], float]
NUM_ROWS = 5


def kl(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the divergence of classes (..., K)."""
    before, after = (softmax(np.asarray(part, np.float64), axis=-1) for part in (one, other))
    return np.asarray(entropy(before, after, axis=-1))


def of_classes(one: Any, other: Any, inputs: Inputs) -> float:
    """Compare logits (1, K), or the mean over all tokens of (1, T, K)."""
    return float(kl(one.logits[0], other.logits[0]).mean())


def of_next_token(one: Any, other: Any, inputs: Inputs) -> float:
    """Compare what follows the last token."""
    return float(kl(one.logits[0, -1], other.logits[0, -1]))


def of_numbers(one: Any, other: Any, inputs: Inputs) -> float:
    """Compare numbers."""
    return float(np.square(np.asarray(one.logits[0]) - np.asarray(other.logits[0])).mean())


def assert_changes(model: LoadedModel, rows: Samples, compare: Compare, layers: tuple[int, ...]) -> None:
    """Hold the probe, which pads and replays, against single rows and whole forwards."""
    few = sorted(sorted(range(len(rows)), key=lambda i: rows.hashes[i])[:NUM_ROWS])
    expected = dict.fromkeys(layers, 0.0)
    for index in few:
        inputs = model.task.profile_batch(rows, np.asarray([index]), model.processor).inputs
        with torch.no_grad():
            intact = model.network(**to_tensors(inputs, model.device))
            for layer in layers:
                with skipping(model, (layer,)):
                    expected[layer] += compare(
                        intact, model.network(**to_tensors(inputs, model.device)), inputs
                    )
    for batch_size in (2, NUM_ROWS):
        probe = Probe(model, {"id": rows, "target": rows}, batch_size=batch_size)
        probe.division = None
        found = probe.output_changes(layers, NUM_ROWS)
        for layer in layers:
            assert found[layer] > 0
            assert found[layer] == pytest.approx(expected[layer] / NUM_ROWS, rel=2e-3, abs=1e-7)
