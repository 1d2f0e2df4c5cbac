"""Attention and the product for query, key and value before it as one operator, for CUDA.

Knows nothing about tasks or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..graphs.norms import DOMAIN, take_over
from .unfusing import constant, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

# A `MultiHeadAttention` reads query, key and value first; where it reads what is added to the scores.
NUM_READ, ADDED = 3, 5


def take_in_products(graph: ir.Graph) -> None:
    """Replace each `MultiHeadAttention` of one packed product by an `Attention`, which multiplies by itself.

    Query, key and value have to be the three parts of one product, with a constant added to each or not, and
    nothing else may read them. Other attention (with a cache, rotated, of another stream) stays.
    """
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type == "MultiHeadAttention" and node.domain == DOMAIN]:
        given = (*node.inputs, *[None] * (ADDED + 1))
        others = [*given[NUM_READ:ADDED], *given[ADDED + 1 :]]
        is_read = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        if is_read or any(value is not None for value in others):
            continue
        found = _product([_part(value) for value in given[:NUM_READ]])
        if found is None:
            continue
        product, sizes, biases = found
        name, shift = node.outputs[0].name, None
        if any(bias is not None for bias in biases):
            dtype = next(bias for bias in biases if bias is not None).dtype
            each = [
                np.broadcast_to(np.zeros(1, dtype) if bias is None else bias, size)
                for bias, size in zip(biases, sizes, strict=True)
            ]
            shift = initializer(graph, f"{name}/bias", np.concatenate(each))
        attention = ir.Node(
            DOMAIN,
            "Attention",
            [*product.inputs, shift, None, None, given[ADDED]],
            [*node.attributes.values(), ir.AttrInt64s("qkv_hidden_sizes", sizes)],
            name=f"{name}/attention",
        )
        graph.insert_before(node, attention)
        take_over(node.outputs[0], attention.outputs[0])
        graph.remove(node, safe=True)


@dataclass(frozen=True)
class _Part:
    """Query, key or value: which part of a split it is, and what is added to it."""

    split: ir.Node
    index: int
    bias: np.ndarray | None


def _part(value: ir.Value | None) -> _Part | None:
    """Follow a value back to the split that it is a part of, if nothing else reads it on the way."""
    node, bias = _maker(value), None
    if node is not None and node.op_type == "Reshape" and _keeps_shape(node):
        value = node.inputs[0]
        node = _maker(value)
    if node is not None and node.op_type == "Add":
        added = [constant([one]) for one in node.inputs]
        place = 0 if added[0] is not None else 1
        bias, value = added[place], node.inputs[1 - place]
        node = _maker(value) if bias is not None and bias.ndim == 1 else None
    if node is None or node.op_type != "Split":
        return None
    return _Part(node, list(node.outputs).index(value), bias)


def _maker(value: ir.Value | None) -> ir.Node | None:
    """Return the node that makes a value, if one node reads that and nothing else does."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return value.producer()


def _product(parts: Sequence[_Part | None]) -> tuple[ir.Node, list[int], list[np.ndarray | None]] | None:
    """Return the product whose three parts these are in order, their widths, and what is added to each."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.split for part in known}) > 1:
        return None
    split = known[0].split
    product, sizes = _maker(split.inputs[0]), constant(split.inputs[1:])
    if product is None or product.op_type != "MatMul" or sizes is None or len(sizes) != len(parts):
        return None
    weight = constant(product.inputs[1:])
    is_packed = weight is not None and weight.ndim == 2 and split.attributes.get_int("axis", 0) == -1
    if not is_packed or [part.index for part in known] != [0, 1, 2] or sizes[0] != sizes[1]:
        return None
    return product, sizes.tolist(), [part.bias for part in known]


def _keeps_shape(reshape: ir.Node) -> bool:
    """Tell whether a reshape makes (B, T, H) of (B, T, H)."""
    target, before, after = constant(reshape.inputs[1:]), reshape.inputs[0].shape, reshape.outputs[0].shape
    if before is None or len(before) != 3:
        return False
    if after is not None and len(after) == 3 and _are_same(before, after):
        return True
    is_copied = target is not None and len(target) == 3 and not target[:2].any()
    return is_copied and not reshape.attributes.get_int("allowzero", 0)


def _are_same(one: Sequence[int | ir.SymbolicDim], other: Sequence[int | ir.SymbolicDim]) -> bool:
    """Tell whether sizes are the same; two that are not known may differ."""
    return all(
        a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(one, other, strict=True)
    )


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
        is_whole = attention is not None and attention.op_type in ("Attention", "MultiHeadAttention")
        if not is_whole or node.outputs[0].is_graph_output() or zero.shape != ():
            continue
        if shape is None or target is None or len(shape) != 4 or len(target) != 3:
            continue
        # Attention makes (B, T, H) of (B, T, H), and both reshapes leave the first two as they are.
        stream = attention.inputs[0].shape
        is_told = stream is not None and len(stream) == 3 and _are_same(stream[:2], shape[:2])
        if not is_told or not _are_same(shape[:2], target[:2]) or list(shape[2:]) != [1, 1]:
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
