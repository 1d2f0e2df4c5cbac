"""Fusions with which ONNX Runtime's CPU kernels are slower than without, undone.

Of what transformers' fusions and ONNX Runtime's own make (`benchmarks/graphs.py`, ours against the peers).
Knows nothing about tasks or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..graphs.flow import Flow
from ..graphs.norms import FUSED, take_apart, take_over

if TYPE_CHECKING:
    import onnx_ir as ir


def part_norms(graph: ir.Graph) -> None:
    """Replace each norm that is fused with a sum by the two, so that a session does not fuse them again.

    `SkipLayerNormalization` is slower than what it is made of. A session makes it of a sum only where both
    addends, (batch, length, width), are known to have one shape, and nothing but the norm reads the sum:
    behind each part of a layer of a post-norm stack, whose stream goes on from the norm. So the length of
    such a stream is made unknown where the stack begins, by a reshape that copies nothing, and the shapes of
    what depends on it are not told. A length that is fixed cannot be hidden: there, a session fuses again.
    """
    parted = take_apart(graph)
    addends = {value for part in parted for value in part.addends}
    hidden: set[ir.Value] = set()
    for part in parted:
        if part.norm.outputs[0] not in addends or not hidden.isdisjoint(part.addends):
            continue
        flow, (one, other) = Flow(graph), part.addends
        stream = one if one in flow.before(other) else other
        hidden |= flow.after([stream]) - {stream}
        if stream.shape is None or not isinstance(stream.shape[1], int):
            _hide_length(graph, stream, part.norm.inputs[1].shape[-1])
    for value in hidden.difference(graph.outputs):
        value.shape = None


def leave_out_sums(graph: ir.Graph) -> None:
    """Let no fused norm write a sum that nothing reads."""
    for node in graph:
        if node.op_type in FUSED and len(node.outputs) > 1:
            last = max(
                n for n, out in enumerate(node.outputs) if not n or out.uses() or out.is_graph_output()
            )
            node.resize_outputs(last + 1)


def _hide_length(graph: ir.Graph, stream: ir.Value, width: int) -> None:
    """Let all that reads a stream, (batch, length, width), read it with a length that no session knows."""
    import onnx_ir as ir

    shape = initializer(graph, f"{stream.name}/shape", np.array([0, -1, width]))
    node = ir.node("Reshape", [stream, shape], name=f"{stream.name}/reshape")
    stream.replace_all_uses_with(node.outputs[0])
    node.replace_input_with(0, stream)
    node.outputs[0].type = stream.type
    if (maker := stream.producer()) is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)


def unpack_products(graph: ir.Graph) -> None:
    """Replace each product by packed weights whose result is split by one product for each part.

    transformers packs them. A split copies all that the product wrote, which takes longer than one call in
    place of several saves, but for the one token at a time of a graph with a cache. Packed products that
    nothing splits (grouped attention reads them whole) stay.
    """
    import onnx_ir as ir

    unpacked: dict[ir.Value, list[ir.Value]] = {}  # layers may share their weights
    for split in [node for node in graph if node.op_type == "Split"]:
        product, sizes = split.inputs[0].producer(), constant(split.inputs[1:])
        if product is None or product.op_type != "MatMul" or sizes is None:
            continue
        packed, weight = product.inputs[1], constant(product.inputs[1:])
        is_last, made = split.attributes.get_int("axis", 0) == -1, product.outputs[0]
        if weight is None or weight.ndim != 2 or not is_last or not all(part.name for part in split.outputs):
            continue
        if made.is_graph_output() or len(made.uses()) != 1:
            continue
        if packed not in unpacked:
            unpacked[packed] = [
                initializer(graph, f"{packed.name}_{index}", part)
                for index, part in enumerate(np.split(weight, np.cumsum(sizes)[:-1], axis=1))
            ]
        for value, output in zip(unpacked[packed], split.outputs, strict=True):
            node = ir.node("MatMul", [product.inputs[0], value], name=f"{output.name}/product")
            graph.insert_before(split, node)
            take_over(output, node.outputs[0])
        graph.remove([split, product], safe=True)


def merge_reshapes(graph: ir.Graph) -> None:
    """Let each reshape of a reshape read what that one reads, where it makes the same of it."""
    for node in graph:
        while (inner := _reshape_before(node)) is not None:
            node.replace_input_with(0, inner.inputs[0])


def _reshape_before(node: ir.Node) -> ir.Node | None:
    """Return the reshape before a reshape, if that one can go."""
    if node.op_type != "Reshape" or (inner := node.inputs[0].producer()) is None:
        return None
    if inner.op_type != "Reshape":
        return None
    # Both hold the same numbers, so only what a target copies of its input's shape may differ.
    target = constant(node.inputs[1:])
    if node.attributes.get_int("allowzero", 0):  # a zero is a size, and copies nothing
        return inner
    if target is None:
        return None
    copied = np.flatnonzero(target == 0)
    return inner if all(_is_kept(inner, axis) for axis in copied.tolist()) else None


def _is_kept(reshape: ir.Node, axis: int) -> bool:
    """Tell whether a reshape leaves an axis as it is."""
    target = constant(reshape.inputs[1:])
    if target is not None and not reshape.attributes.get_int("allowzero", 0) and target[axis] == 0:
        return True
    before, after = reshape.inputs[0].shape, reshape.outputs[0].shape
    if before is None or after is None or axis >= min(len(before), len(after)):
        return False
    size = before[axis]
    return size == after[axis] and (isinstance(size, int) or size.value is not None)


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Put an array among the weights of a graph."""
    import onnx_ir as ir

    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape)
    )
    graph.register_initializer(value)
    return value


def constant(values: Sequence[ir.Value | None]) -> np.ndarray | None:
    """Return the first of the values, if there is one and it is a constant."""
    if not values or values[0] is None or values[0].const_value is None:
        return None
    array: np.ndarray = values[0].const_value.numpy()
    return array
