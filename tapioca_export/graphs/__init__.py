"""ONNX graphs: find the layers in a file that anyone wrote, and cut some out.

Knows nothing about PyTorch, tasks or samples. `flow` says what depends on what, `blocks` finds the layers,
`norms` takes fused nodes apart, `cutting` cuts, `files` reads and writes, `proving` proves.
"""

from .cutting import cut, find_layers
from .stage import TOLERANCE, prune_graph

__all__ = ["TOLERANCE", "cut", "find_layers", "prune_graph"]
