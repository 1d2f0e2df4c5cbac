"""Attention and the product for query, key and value before it as one operator, for CUDA.

Knows nothing about tasks or samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..graphs.norms import DOMAIN, take_over
from .unfusing import constant, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

# Of a `MultiHeadAttention`'s inputs query, key and value are the first; which one is added to scores.
_READ, _ADDED = 3, 5


def take_in_products(graph: ir.Graph) -> None:
    """Replace each `MultiHeadAttention` of one packed product by an `Attention`, which multiplies by itself.

    Query, key and value have to be the three parts of one product, with a constant added to each or not.
    Other attention (with a cache, rotated, of another stream) stays.
    """
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == DOMAIN]:
        given = (*node.inputs, *[None] * (_ADDED + 1))
        others = [*given[_READ:_ADDED], *given[_ADDED + 1 :]]
        if any(value is not None for value in others) or any(value.uses() for value in node.outputs[1:]):
            continue
        parts = [_part(value) for value in given[:_READ]]
        splits = {split for split, _, _ in parts}
        split = next(iter(splits))
        if len(splits) > 1 or split is None or [index for _, index, _ in parts] != [0, 1, 2]:
            continue
        product, sizes = split.inputs[0].producer(), constant(split.inputs[1:])
        is_last = split.attributes.get_int("axis", 0) == -1
        if product is None or product.op_type != "MatMul" or sizes is None or not is_last:
            continue
        if constant(product.inputs[1:]) is None or sizes[0] != sizes[1]:
            continue
        biases, shift = [bias for _, _, bias in parts], None
        if any(bias is not None for bias in biases):
            dtype = next(bias for bias in biases if bias is not None).dtype
            each = [
                np.broadcast_to(np.zeros(1, dtype) if bias is None else bias, size)
                for bias, size in zip(biases, sizes, strict=True)
            ]
            shift = initializer(graph, f"{product.outputs[0].name}/bias", np.concatenate(each))
        attention = ir.Node(
            DOMAIN,
            "Attention",
            [*product.inputs, shift, None, None, given[_ADDED]],
            [*node.attributes.values(), ir.AttrInt64s("qkv_hidden_sizes", sizes.tolist())],
            name=f"{node.outputs[0].name}/attention",
        )
        graph.insert_before(node, attention)
        take_over(node.outputs[0], attention.outputs[0])
        graph.remove(node, safe=True)


def zero_whole_rows(graph: ir.Graph) -> None:
    """Zero what attention makes of rows without any key as (B, T, H), as it comes, not split into heads."""
    import onnx_ir as ir

    whole: dict[ir.Value, ir.Value] = {}  # layers share what says which rows those are
    for node in [node for node in graph if node.op_type == "Where"]:
        is_empty, zero, split = node.inputs
        heads, users = split.producer(), [user for user, _ in node.outputs[0].uses()]
        if heads is None or heads.op_type != "Reshape" or len(users) != 1 or users[0].op_type != "Reshape":
            continue
        made, merged = heads.inputs[0], users[0].outputs[0]
        attention, shape, target = made.producer(), is_empty.shape, merged.shape
        if attention is None or attention.op_type not in ("Attention", "MultiHeadAttention"):
            continue
        if shape is None or target is None or len(shape) != 4 or len(target) != 3:
            continue
        if list(shape[2:]) != [1, 1] or list(shape[:2]) != list(target[:2]) or zero.shape != ():
            continue
        if is_empty not in whole:
            axes = initializer(graph, f"{is_empty.name}/axes", np.array([-1]))
            squeezed = ir.node("Squeeze", [is_empty, axes], name=f"{is_empty.name}/squeeze")
            graph.insert_before(node, squeezed)
            whole[is_empty] = squeezed.outputs[0]
        zeroed = ir.node("Where", [whole[is_empty], zero, made], name=f"{merged.name}/where")
        graph.insert_before(node, zeroed)
        take_over(merged, zeroed.outputs[0])
        graph.remove([users[0], node], safe=True)


def _part(value: ir.Value | None) -> tuple[ir.Node | None, int, np.ndarray | None]:
    """Return the split that a value is a part of, which part, and what is added to it."""
    import onnx_ir as ir

    node, bias = None if value is None else value.producer(), None
    if node is not None and node.op_type == "Reshape" and _keeps_shape(node):
        value = node.inputs[0]
        node = value.producer()
    if node is not None and node.op_type == "Add":
        added = [constant([one]) for one in node.inputs]
        place = 0 if added[0] is not None else 1
        bias, value = added[place], node.inputs[1 - place]
        if bias is None or bias.ndim != 1:
            return None, 0, None
        node = value.producer()
    if not isinstance(node, ir.Node) or node.op_type != "Split":
        return None, 0, None
    return node, list(node.outputs).index(value), bias


def _keeps_shape(reshape: ir.Node) -> bool:
    """Tell whether a reshape makes (B, T, H) of (B, T, H)."""
    target, shape = constant(reshape.inputs[1:]), reshape.inputs[0].shape
    return (
        target is not None
        and shape is not None
        and len(shape) == len(target) == 3
        and not target[:2].any()
        and not reshape.attributes.get_int("allowzero", 0)
    )
