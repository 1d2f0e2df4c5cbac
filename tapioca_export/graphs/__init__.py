"""ONNX graphs: find the layers in a file that anyone wrote, and cut some out.

Knows nothing about PyTorch, tasks or samples. `flow` says what depends on what, `blocks` finds the layers,
`norms` takes fused nodes apart, `cutting` cuts, `files` reads and writes, `proving` proves.
"""

from .cutting import cut, find_layers
from .stage import TOLERANCE, export_of, prune_graph

__all__ = ["TOLERANCE", "cut", "export_of", "find_layers", "prune_graph"]
