"""Norms that ONNX Runtime fused with the sum before them: taken apart to cut between, and put together again.

A fused node holds the end of one layer and, before attention, the norm that begins the next; only apart
can one go and the other stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"
# The fused operators, the norm in each, and how many inputs that norm takes beside the sum.
FUSED = {
    "SkipLayerNormalization": ("LayerNormalization", 2),
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", 1),
}
EPSILON = 1e-12  # ONNX Runtime's, where a fused node says none
# Which output of a fused node is the sum.
SUM = 3
# What is known of nodes that were taken apart: a norm's fused operator, where a sum's bias is added.
_OPERATOR, _BIASED = "tapioca_export.operator", "tapioca_export.biased"
_TAKEN_IN = "tapioca_export.taken_in"  # a sum's fused operator


@dataclass(frozen=True)
class Parted:
    """What a fused norm was taken apart into: the sum, and the norm of it; `addends` lack a fused bias."""

    total: ir.Node
    norm: ir.Node
    addends: tuple[ir.Value, ir.Value]


def take_apart(graph: ir.Graph) -> list[Parted]:
    """Replace each fused norm by the sum, and the norm of it; return what was made, in order."""
    import onnx_ir as ir

    parted = []
    for node in list(graph):
        if node.op_type not in FUSED or node.domain != DOMAIN:
            continue
        norm_operator, count = FUSED[node.op_type]
        stream, branch, *rest = (*node.inputs, None, None)[:5]
        scales, bias = [scale for scale in rest[:count] if scale is not None], rest[count]
        name = node.name or node.outputs[0].name
        added = [] if bias is None else [ir.node("Add", [branch, bias], name=f"{name}/bias")]
        total = ir.node("Add", [stream, added[0].outputs[0] if added else branch], name=f"{name}/sum")
        total.meta[_BIASED], total.meta[_TAKEN_IN] = added, node.op_type
        epsilon = node.attributes.get_float("epsilon", EPSILON)
        for made in (*added, total):
            made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        norm = ir.node(
            norm_operator,
            [total.outputs[0], *scales],
            {"axis": -1, "epsilon": epsilon},
            name=f"{name}/norm",
        )
        norm.meta[_OPERATOR] = node.op_type
        graph.insert_before(node, [*added, total, norm])
        for place, new in ((0, norm.outputs[0]), (SUM, total.outputs[0])):
            if place < len(node.outputs):
                take_over(node.outputs[place], new)
        graph.remove(node, safe=True)
        parted.append(Parted(total, norm, (stream, branch)))
    return parted


def taken_in_by(node: ir.Node) -> str | None:
    """Return the fused operator that a sum was a part of, None for any other node."""
    operator: str | None = node.meta.get(_TAKEN_IN)
    return operator


def put_together(graph: ir.Graph) -> None:
    """Fuse each norm that was taken apart with the sum before it, where there is one."""
    import onnx_ir as ir

    for norm in list(graph):
        if _OPERATOR not in norm.meta:
            continue
        total = norm.inputs[0].producer()
        if total is None or _BIASED not in total.meta or total.graph is not graph:
            continue
        _, count = FUSED[norm.meta[_OPERATOR]]
        stream, branch = total.inputs
        inputs = [stream, branch, *norm.inputs[1:]]
        for biased in total.meta[_BIASED]:
            inputs[1] = biased.inputs[0]
            inputs += [None] * (2 + count - len(inputs)) + [biased.inputs[1]]
        summed = total.outputs[0]
        is_read = summed.is_graph_output() or any(user is not norm for user, _ in summed.uses())
        fused = ir.node(
            norm.meta[_OPERATOR],
            inputs,
            {"epsilon": norm.attributes.get_float("epsilon", EPSILON)},
            domain=DOMAIN,
            num_outputs=SUM + 1 if is_read else 1,
            name=norm.name.removesuffix("/norm"),
        )
        for value in fused.outputs:
            value.name = ""
        graph.insert_before(norm, fused)
        take_over(norm.outputs[0], fused.outputs[0])
        graph.remove(norm, safe=True)
        if is_read:
            take_over(summed, fused.outputs[SUM])
        graph.remove([total, *total.meta[_BIASED]], safe=True)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Put one value in another's place, under its name."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
