"""Laws of what is undone in fused graphs: the same numbers, and a session that leaves it undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tapioca_export.exporting.unfusing import merge_reshapes, part_norms, unpack_products

BATCH, LENGTH, WIDTH = 2, 3, 8
Nodes = Sequence[onnx.NodeProto]


def node(kind: str, inputs: Sequence[str], *outputs: str, domain: str = "", **more: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, domain=domain, **more)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    drawn = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(drawn, name)


def sizes(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def write(
    path: Path, nodes: Nodes, tensors: Sequence[onnx.TensorProto], between: dict[str, list[str | int]]
) -> onnx_ir.Model:
    """Write a graph of (batch, length, 8) numbers x to y, and return it."""
    shape = ["batch", "length", WIDTH]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    known = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in between.items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors, value_info=known)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return onnx_ir.load(path)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def outputs(path: Path, seen: Path | None = None) -> np.ndarray:
    """Run a file; its session's own graph is written to `seen`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if seen is not None:
        options.optimized_model_filepath = str(seen)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def undone(path: Path, model: onnx_ir.Model, *steps: object) -> Path:
    for step in steps:
        step(model.graph)  # type: ignore[operator]
    RemoveUnusedNodesPass()(model)
    onnx_ir.save(model, target := path.with_name("undone.onnx"))
    np.testing.assert_allclose(outputs(target), outputs(path), atol=1e-5)
    return target


# --- norms ----------------------------------------------------------------------------------


def stack(*, is_post_norm: bool, num_layers: int = 3) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return layers of a product each, every sum fused with the norm of it or of the next layer."""
    nodes, tensors = [], [weight("scale", WIDTH), weight("shift", WIDTH)]
    stream = read = "x"
    for index in range(num_layers):
        tensors.append(weight(f"weight{index}", WIDTH, WIDTH))
        nodes.append(node("MatMul", [read, f"weight{index}"], f"branch{index}"))
        names = [f"branch{index}", stream, "scale", "shift"]
        made = [f"norm{index}", "", "", f"sum{index}"]
        nodes.append(node("SkipLayerNormalization", names, *made, domain="com.microsoft"))
        stream, read = (f"norm{index}" if is_post_norm else f"sum{index}"), f"norm{index}"
    return [*nodes, node("Tanh", [read], "y")], tensors


@pytest.mark.parametrize("is_post_norm", [True, False])
def test_a_session_leaves_norms_apart_from_sums(is_post_norm: bool, tmp_path: Path) -> None:
    nodes, tensors = stack(is_post_norm=is_post_norm)
    known: dict[str, list[str | int]] = {
        f"{name}{index}": ["batch", "length", WIDTH] for name in ("norm", "branch") for index in range(3)
    }
    model = write(tmp_path / "fused.onnx", nodes, tensors, known)
    target = undone(tmp_path / "fused.onnx", model, part_norms)
    outputs(target, seen := tmp_path / "session.onnx")
    found = operators(seen)
    if is_post_norm:
        assert "SkipLayerNormalization" not in found
        assert found["LayerNormalization"] == 3
        assert found["Reshape"] == 1  # at the beginning, and copies nothing
    else:
        # Sums that the stream goes on from are read twice: no session fuses them, and nothing is hidden.
        assert found["LayerNormalization"] >= 1
        assert "Reshape" not in found


def test_a_length_that_is_fixed_is_not_hidden_in_vain(tmp_path: Path) -> None:
    nodes, tensors = stack(is_post_norm=True)
    model = write(tmp_path / "fused.onnx", nodes, tensors, {})
    model.graph.inputs[0].shape = onnx_ir.Shape(["batch", LENGTH, WIDTH])
    part_norms(model.graph)
    assert "Reshape" not in {made.op_type for made in model.graph}
    assert sum(made.op_type == "LayerNormalization" for made in model.graph) == 3


def test_norms_that_are_only_added_apart_would_be_fused_again(tmp_path: Path) -> None:
    """What `part_norms` hides the length for: if this fails, it need not any more."""
    nodes, tensors = stack(is_post_norm=True)
    apart = []
    for made in nodes:
        if made.op_type == "SkipLayerNormalization":
            branch, stream, *rest = made.input
            apart.append(node("Add", [stream, branch], made.output[3]))
            apart.append(node("LayerNormalization", [made.output[3], *rest], made.output[0]))
        else:
            apart.append(made)
    write(tmp_path / "apart.onnx", apart, tensors, {})
    outputs(tmp_path / "apart.onnx", seen := tmp_path / "session.onnx")
    assert operators(seen)["SkipLayerNormalization"] == 3


# --- products -------------------------------------------------------------------------------


def test_packed_products_are_unpacked_where_they_are_split(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "packed"], "product"),
        node("Split", ["product", "sizes"], "a", "b", "c", axis=-1),
        node("Sum", ["a", "b", "c"], "y"),
    ]
    tensors = [weight("packed", WIDTH, 3 * WIDTH), sizes("sizes", WIDTH, WIDTH, WIDTH)]
    model = write(tmp_path / "packed.onnx", nodes, tensors, {})
    target = undone(tmp_path / "packed.onnx", model, unpack_products)
    assert operators(target) == {"MatMul": 3, "Sum": 1}
    assert {tuple(t.dims) for t in onnx.load(target).graph.initializer} == {(WIDTH, WIDTH)}


def test_products_that_share_packed_weights_share_what_is_unpacked(tmp_path: Path) -> None:
    nodes = []
    for stream, made in (("x", "m"), ("m", "y")):
        nodes += [
            node("MatMul", [stream, "packed"], f"{made}_product"),
            node("Split", [f"{made}_product", "sizes"], f"{made}_a", f"{made}_b", axis=-1),
            node("Mul", [f"{made}_a", f"{made}_b"], made),
        ]
    tensors = [weight("packed", WIDTH, 2 * WIDTH), sizes("sizes", WIDTH, WIDTH)]
    model = write(tmp_path / "shared.onnx", nodes, tensors, {})
    target = undone(tmp_path / "shared.onnx", model, unpack_products)
    assert operators(target) == {"MatMul": 4, "Mul": 2}
    assert len(onnx.load(target).graph.initializer) == 2


@pytest.mark.parametrize("reason", ["read twice", "another axis", "no weight"])
def test_other_splits_stay(reason: str, tmp_path: Path) -> None:
    axis = 1 if reason == "another axis" else -1
    first = node("MatMul", ["x", "weight"], "product")
    if reason == "no weight":
        first = node("Tanh", ["x"], "product")
    last = node("Sum", ["a", "b"], "sum")
    if reason == "another axis":
        last = node("Concat", ["b", "a"], "sum", axis=1)
    nodes = [first, node("Split", ["product", "sizes"], "a", "b", axis=axis), last]
    if reason == "read twice":
        nodes.append(node("Concat", ["sum", "sum"], "twice", axis=-1))
        nodes += [node("Add", ["twice", "product"], "z"), node("Slice", ["z", "0", "8", "2"], "y")]
    elif reason == "another axis":
        nodes.append(node("Tanh", ["sum"], "y"))
    else:
        nodes.append(node("Concat", ["sum", "sum"], "y", axis=-1))
    half = 1 if reason == "another axis" else WIDTH // 2 if reason == "no weight" else WIDTH
    other = LENGTH - 1 if reason == "another axis" else half
    wide = WIDTH if reason == "another axis" else 2 * WIDTH
    tensors = [weight("weight", WIDTH, wide), sizes("sizes", half, other)]
    tensors += [sizes("0", 0), sizes("8", WIDTH), sizes("2", 2)]
    model = write(tmp_path / "split.onnx", nodes, tensors, {})
    target = undone(tmp_path / "split.onnx", model, unpack_products)
    assert operators(target) == operators(tmp_path / "split.onnx")


# --- reshapes -------------------------------------------------------------------------------


def reshaped(
    *targets: tuple[int, ...], allowzero: int = 0
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    names = ["x", *(f"shape{index}" for index in range(1, len(targets))), "y"]
    nodes = [
        node("Reshape", [names[index], f"target{index}"], names[index + 1], allowzero=allowzero)
        for index in range(len(targets))
    ]
    return nodes, [sizes(f"target{index}", *target) for index, target in enumerate(targets)]


@pytest.mark.parametrize(
    ("targets", "num_left"),
    [
        ([(0, 0, 2, 4), (0, 0, -1)], 1),  # into heads and back
        ([(0, 0, 2, 4), (0, 0, -1), (0, 0, 4, 2), (0, 0, -1)], 1),
        ([(-1, WIDTH), (BATCH, LENGTH, WIDTH)], 1),  # nothing is copied
        ([(LENGTH, BATCH, WIDTH), (0, 0, WIDTH)], 2),  # what is copied is not what came in
    ],
)
def test_reshapes_of_reshapes_are_one(targets: list[tuple[int, ...]], num_left: int, tmp_path: Path) -> None:
    nodes, tensors = reshaped(*targets)
    model = write(tmp_path / "reshapes.onnx", nodes, tensors, {})
    target = undone(tmp_path / "reshapes.onnx", model, merge_reshapes)
    assert operators(target) == {"Reshape": num_left}


def test_an_axis_is_kept_where_both_shapes_say_so(tmp_path: Path) -> None:
    """As in what PyTorch writes: the first target is computed, and copies nothing."""
    head = [
        node("Shape", ["x"], "batch", start=0, end=1),
        node("Shape", ["x"], "length", start=1, end=2),
        node("Concat", ["batch", "length", "two", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "heads", allowzero=1),
        node("Reshape", ["heads", "flat"], "y"),
    ]
    tensors = [sizes("two", 2), sizes("rest", -1), sizes("flat", 0, 0, -1)]
    for between, num_left in (({"heads": ["batch", "length", 2, 4]}, 1), ({"heads": ["b", "l", 2, 4]}, 2)):
        model = write(tmp_path / "computed.onnx", head, tensors, between)
        target = undone(tmp_path / "computed.onnx", model, merge_reshapes)
        assert operators(target)["Reshape"] == num_left
