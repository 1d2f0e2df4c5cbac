"""ONNX graphs: find the layers in a file that anyone wrote, and cut some out.

Knows nothing about PyTorch, tasks or samples. `flow` says what depends on what, `blocks` finds the layers,
`norms` takes fused nodes apart, `cutting` cuts, `files` reads and writes, `proving` proves by running,
`belonging` by names, `pieces` runs layer by layer.
"""

from .cutting import cut, find_layers
from .files import (
    copy_graph,
    genai_config,
    is_graph,
    named_sizes,
    put_weights_beside,
    read_graph,
    refuse_misdescribed,
    weight_paths,
)
from .pieces import Pieces
from .stage import EXPORT, Cut, export_of, prune_graph

__all__ = [
    "EXPORT",
    "Cut",
    "Pieces",
    "copy_graph",
    "cut",
    "export_of",
    "find_layers",
    "genai_config",
    "is_graph",
    "named_sizes",
    "prune_graph",
    "put_weights_beside",
    "read_graph",
    "refuse_misdescribed",
    "weight_paths",
]
