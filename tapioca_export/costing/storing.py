"""Bytes on disk: what a search leaves there, and what a whole run does.

Weights are counted; beside them stand graphs without weights, tokenizers and reports, which are small and
taken to be no more than a fixed amount. Knows nothing about how files are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..artifacts import Bounds
from ..models import GraphNetwork, LoadedModel

# Of one row's value and loss in a journal, as JSON writes them.
ROW_BYTES = (6, 64)
# Graphs without weights, tokenizers, cards and reports of one run.
BESIDE_WEIGHTS = (0, 40_000_000)
# Bytes of a weight in a file that --quantize has made, at least.
QUANTIZED = {"int8": 1.0, "int4": 0.5}


def search_bytes(evaluations: Bounds, num_rows: int) -> Bounds:
    """Return the bytes of a search's journal."""
    least, most = ROW_BYTES
    return Bounds(int(least * evaluations.least * num_rows), int(most * evaluations.most * num_rows))


def run_bytes(
    model: LoadedModel, formats: Sequence[str], width: int, quantize: str | None, most_dropped: int
) -> Bounds:
    """Return the bytes of what a run writes beside the search: exports of both models, and the checkpoint.

    Args:
        model: The whole model.
        formats: What it is exported to.
        width: Bytes of a weight in an exported file.
        quantize: How ONNX files are quantised, if they are.
        most_dropped: Layers that may go.
    """
    least, most = BESIDE_WEIGHTS
    if isinstance(model.network, GraphNetwork):
        size = model.network.pieces.size_bytes
        return Bounds(size + least, 2 * size + most)
    weights = {id(weight): weight.numel() for weight in model.network.parameters()}
    of_layers = sorted(sum(weight.numel() for weight in layer.parameters()) for layer in model.layers)
    whole = sum(weights.values())
    left = whole - sum(of_layers[len(of_layers) - most_dropped :])
    narrow = QUANTIZED.get(quantize or "", width)
    narrowest = sum(min(width, narrow) if name == "onnx" else width for name in formats)
    widest = width * len(formats)
    stored = _stored_width(model, whole)
    return Bounds(
        int(narrowest * (whole + left) + stored * left) + least,
        int(widest * 2 * whole + stored * whole) + most,
    )


def _stored_width(model: LoadedModel, num_weights: int) -> float:
    """Return the bytes of a weight in the checkpoint's files; of one on the hub, in memory."""
    files = list(Path(model.source).glob("*.safetensors"))
    if files:
        return sum(file.stat().st_size for file in files) / num_weights
    return float(model.network.dtype.itemsize)
