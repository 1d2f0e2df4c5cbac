"""ONNX graphs made wrong: each function here changes one thing in a graph, in place.

Knows nothing about who wrote the graph, nor who is to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

Change = Callable[[Any], None]


def change_graph(path: Path, change: Change) -> None:
    """Change a graph in its file."""
    model = onnx_ir.load(path)
    onnx_ir.external_data.load_to_model(model)
    change(model.graph)
    onnx_ir.save(model, path)


def _value(graph: Any, name: str) -> Any:
    return next(value for value in graph.inputs if value.name == name)


def _instead(graph: Any, value: Any, *nodes: Any) -> None:
    """Let all that read a value read what the last of some nodes makes of it."""
    users = [(node, place) for node, place in value.uses() if node not in nodes]
    first = next(iter(graph))
    graph.insert_before(first, list(nodes))
    for node, place in users:
        node.replace_input_with(place, nodes[-1].outputs[0])
    graph.sort()


def _constant(graph: Any, array: np.ndarray, name: str) -> Any:
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    value.dtype, value.shape = onnx_ir.DataType.from_numpy(array.dtype), onnx_ir.Shape(array.shape)
    graph.initializers[name] = value
    return value


def no_mask(graph: Any) -> None:
    """All tokens are seen, padding too."""
    mask = _value(graph, "attention_mask")
    shape = onnx_ir.node("Shape", [mask])
    ones = onnx_ir.node(
        "ConstantOfShape", [shape.outputs[0]], {"value": onnx_ir.tensor(np.ones(1, np.int64), name="one")}
    )
    _instead(graph, mask, shape, ones)


def shifted(name: str) -> Change:
    """Return what adds one to an input of integers."""

    def change(graph: Any) -> None:
        value = _value(graph, name)
        one = _constant(graph, np.asarray(1, np.int64), "one_more")
        _instead(graph, value, onnx_ir.node("Add", [value, one]))

    return change


def past_ignored(graph: Any) -> None:
    """The first layer's cached values count as zeros."""
    value = _value(graph, "past_key_values.0.value")
    zero = _constant(graph, np.asarray(0, np.float32), "nothing")
    _instead(graph, value, onnx_ir.node("Mul", [value, zero]))


def _rename_swapped(values: Any, one: str, other: str) -> None:
    found = {value.name: value for value in values}
    first, second = found[one], found[other]
    first.name, second.name = "swapped", one
    first.name = other


def caches_swapped(graph: Any) -> None:
    """Two layers take each other's cached keys and values."""
    for kind in ("key", "value"):
        _rename_swapped(graph.inputs, f"past_key_values.0.{kind}", f"past_key_values.1.{kind}")


def keys_for_values(graph: Any) -> None:
    """A layer gives its keys as values, and its values as keys."""
    _rename_swapped(graph.outputs, "present.0.key", "present.0.value")


def attribute(operators: tuple[str, ...], name: str, value: float) -> Change:
    """Return what gives an attribute of the first operator of a kind another value."""

    def change(graph: Any) -> None:
        node = next(node for node in graph if node.op_type in operators)
        node.attributes[name] = onnx_ir.AttrFloat32(name, value)

    return change


def operator(old: str, new: str) -> Change:
    """Return what replaces the first operator of a kind."""

    def change(graph: Any) -> None:
        node = next(node for node in graph if node.op_type == old)
        made = onnx_ir.node(new, list(node.inputs))
        graph.insert_before(node, made)
        node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)

    return change


def _matrices(graph: Any) -> list[Any]:
    def is_square(value: Any) -> bool:
        return len(value.shape) == 2 and len(set(value.shape)) == 1 and value.dtype == onnx_ir.DataType.FLOAT

    return [value for value in graph.initializers.values() if is_square(value) and value.uses()]


def _put(value: Any, array: np.ndarray) -> None:
    value.const_value = onnx_ir.tensor(np.ascontiguousarray(array), name=value.name)


def transposed(graph: Any) -> None:
    """One square matrix is transposed."""
    value = _matrices(graph)[0]
    _put(value, value.const_value.numpy().T)


def matrices_swapped(graph: Any) -> None:
    """Two square matrices are in each other's place."""
    one, other = _matrices(graph)[:2]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def rounded(graph: Any) -> None:
    """Every weight went through float16, and the file still says float32."""
    for value in graph.initializers.values():
        if value.dtype == onnx_ir.DataType.FLOAT:
            _put(value, value.const_value.numpy().astype(np.float16).astype(np.float32))


def flipped(graph: Any) -> None:
    """One bit of one weight is another."""
    value = _matrices(graph)[0]
    bits = value.const_value.numpy().copy()
    bits.reshape(-1).view(np.int32)[5] ^= 1 << 23
    _put(value, bits)


def transposed_half(graph: Any) -> None:
    """One square matrix in float16 is transposed."""
    value = next(
        v for v in graph.initializers.values()
        if len(v.shape) == 2 and len(set(v.shape)) == 1 and v.dtype == onnx_ir.DataType.FLOAT16 and v.uses()
    )  # fmt: skip
    _put(value, value.const_value.numpy().T)


def classes_permuted(graph: Any) -> None:
    """The logits of two classes are in each other's place."""
    value = graph.outputs[0]
    order = _constant(graph, np.asarray([1, 0, 2]), "order")
    moved = onnx_ir.node("Gather", [value, order], {"axis": 1})
    graph.append(moved)
    new = moved.outputs[0]
    new.dtype, new.shape, name = value.dtype, value.shape, value.name
    value.name, new.name = "before_it", name
    graph.outputs[0] = new


def first_row(graph: Any) -> None:
    """Every row of a batch gets the answer of the first."""
    value = graph.outputs[0]
    place = _constant(graph, np.asarray([0]), "first")
    one = onnx_ir.node("Gather", [value, place], {"axis": 0})
    shape = onnx_ir.node("Shape", [value])
    all_ = onnx_ir.node("Expand", [one.outputs[0], shape.outputs[0]])
    graph.extend([one, shape, all_])
    new = all_.outputs[0]
    new.dtype, new.shape, name = value.dtype, value.shape, value.name
    value.name, new.name = "before_it", name
    graph.outputs[0] = new


# --- quantised graphs -----------------------------------------------------------------------


def _scales(graph: Any) -> list[Any]:
    return [v for n, v in sorted(graph.initializers.items()) if n.endswith("_scale") and v.uses()]


def scales_swapped(graph: Any) -> None:
    """The scales of two matrices are in each other's place."""
    found = sorted(_scales(graph), key=lambda value: float(value.const_value.numpy().reshape(-1)[0]))
    one, other = found[0], found[-1]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def neighbours_scales_swapped(graph: Any) -> None:
    """The scales of two matrices that hardly differ are in each other's place."""
    found = [v for v in _scales(graph) if v.const_value.numpy().size == 1]
    ordered = sorted(found, key=lambda value: float(value.const_value.numpy().reshape(-1)[0]))
    middle = len(ordered) // 2
    one, other = ordered[middle : middle + 2]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def scale_doubled(graph: Any) -> None:
    """One matrix is twice as large."""
    value = _scales(graph)[0]
    _put(value, value.const_value.numpy() * 2)


def _block_scales(graph: Any) -> list[Any]:
    return [v for n, v in sorted(graph.initializers.items()) if n.endswith("_scales") and v.uses()]


def block_scales_swapped(graph: Any) -> None:
    """Of one matrix in 4 bits, two blocks have each other's scales."""
    value = _block_scales(graph)[0]
    scales = value.const_value.numpy().copy()
    flat = scales.reshape(-1)
    flat[[0, -1]] = flat[[-1, 0]]
    _put(value, scales)


def block_scale_doubled(graph: Any) -> None:
    """Of one matrix in 4 bits, one block is twice as large."""
    value = _block_scales(graph)[0]
    scales = value.const_value.numpy().copy()
    scales.reshape(-1)[0] *= 2
    _put(value, scales)


def halves_swapped(graph: Any) -> None:
    """Of one matrix, the two weights in each byte are in each other's place."""
    value = next(v for n, v in sorted(graph.initializers.items()) if n.endswith("_Q4") and v.uses())
    packed = value.const_value.numpy()
    _put(value, (packed >> 4) | (packed << 4))


def zero_point_off(graph: Any) -> None:
    """One matrix has a zero point that is off by eight."""
    value = next(v for n, v in sorted(graph.initializers.items()) if n.endswith("_zero_point") and v.uses())
    _put(value, (value.const_value.numpy() + 8).astype(value.const_value.numpy().dtype))
