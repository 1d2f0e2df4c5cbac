"""How many operators of a graph are fused, and how many products there are.

Knows nothing about who fused them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .norms import DOMAIN, taken_in_by

if TYPE_CHECKING:
    import onnx_ir as ir

# Fused operators that ONNX, or ONNX Runtime, has in ONNX's own domain; and products, which may be packed.
_FUSED = frozenset({
    "Attention", "Gelu", "LayerNormalization", "RMSNormalization", "RotaryEmbedding",
    "SimplifiedLayerNormalization",
})  # fmt: skip
_PRODUCTS = frozenset({"Gemm", "MatMul"})


def fused_operators(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """Count the operators that are fused, and products; a sum is counted as the norm that took it in."""
    names = (
        taken_in_by(node) or node.op_type
        for node in nodes
        if taken_in_by(node) or node.domain == DOMAIN or node.op_type in _FUSED | _PRODUCTS
    )
    return dict(sorted(Counter(names).items()))
