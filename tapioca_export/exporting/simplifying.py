"""What parts of layers that are left out leave in an ONNX graph: zeros that are added to the stream.

Knows nothing about which parts those are.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def leave_out_zeros(program: Any) -> None:
    """Take out of a graph, in place, the zeros that are added to something, and what nothing needs then.

    Only where the sum has the shape of the other addend: zeros may also make something larger.
    """
    from onnx_ir.convenience import replace_all_uses_with
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    outputs = set(map(id, program.graph.outputs))
    for node in program.graph:
        if node.op_type != "Add" or id(node.outputs[0]) in outputs:
            continue
        for zeros, other in (node.inputs, node.inputs[::-1]):
            same_shape = other.shape is not None and other.shape == node.outputs[0].shape
            if same_shape and _is_zero(zeros):
                replace_all_uses_with(node.outputs[0], other)
                break
    RemoveUnusedNodesPass()(program)


def _is_zero(value: Any) -> bool:
    """Tell whether a value is made of zeros only, whatever its shape."""
    if value.const_value is not None:
        return not np.any(value.const_value.numpy())
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    return node.op_type in ("Expand", "Cast") and _is_zero(node.inputs[0])
