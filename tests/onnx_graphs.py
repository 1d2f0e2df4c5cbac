"""Small transformers as ONNX graphs, made by hand: what an exporter would write, and what none should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8


class Builder:
    """Adds nodes to a graph, with random weights; every value is (B, S, H) unless said otherwise."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
        self.outputs: list[onnx.ValueInfoProto] = []

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.weights)}"
        array = self.random.normal(0, 0.5, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: object) -> str:
        names = [f"value_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names[0]

    def linear(self, value: str, size: int = WIDTH, inner: int = WIDTH) -> str:
        return self.node("MatMul", value, self.weight(inner, size))

    def norm(self, value: str) -> str:
        return self.node("LayerNormalization", value, self.weight(WIDTH), self.weight(WIDTH), axis=-1)

    def attention(self, value: str, cached: int | None = None) -> str:
        keys, values = self.linear(value), self.linear(value)
        if cached is not None:
            past = f"past_key_values.{cached}.key"
            self.inputs.append(
                helper.make_tensor_value_info(past, TensorProto.FLOAT, ["batch", "past_sequence", WIDTH])
            )
            keys = self.node("Concat", past, keys, axis=1)
            values = self.node("Add", keys, self.weight(WIDTH))
            self.nodes[-2].output[0] = f"present.{cached}.key"
            self.nodes[-1].input[0] = keys = f"present.{cached}.key"
            self.output(keys)
        scores = self.node("MatMul", self.linear(value), self.node("Transpose", keys, perm=[0, 2, 1]))
        return self.linear(self.node("MatMul", self.node("Softmax", scores, axis=-1), values))

    def mlp(self, value: str, inner: int = 12) -> str:
        return self.linear(self.node("Relu", self.linear(value, inner)), WIDTH, inner)

    def output(self, name: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, None]))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "transformer", self.inputs, self.outputs, self.weights)
        domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=domains)
        model.ir_version = 10
        return model


def pre_norm(
    kinds: Sequence[str] = ("am",) * 4,
    *,
    inner: Sequence[int] = (),
    cached: bool = False,
    stem: bool = False,
    embeddings: int = 1,
) -> Builder:
    """Build a pre-norm transformer: a string a layer, a letter a sublayer (a: attention, m: MLP, p: both).

    Args:
        kinds: The layers.
        inner: Widths of the layers' MLPs.
        cached: Attention takes and gives keys.
        stem: A residual convolution stands before the layers, as in speech models.
        embeddings: How many are added up, as in LayoutLM.
    """
    b = Builder()
    stream = b.node("Gather", b.weight(10, WIDTH), "input_ids")
    for _ in range(embeddings - 1):
        stream = b.node("Add", stream, b.weight(1, 6, WIDTH))
    if stem:
        stream = b.node("Add", stream, b.node("Tanh", b.linear(stream)))
    for layer, kind in enumerate(kinds):
        for letter in kind:
            normed, width = b.norm(stream), inner[layer] if inner else 12
            if letter == "p":
                both = b.node("Add", b.attention(normed, layer if cached else None), b.mlp(normed, width))
                stream = b.node("Add", both, stream)
            elif letter == "a":
                stream = b.node("Add", stream, b.attention(normed, layer if cached else None))
            else:
                stream = b.node("Add", stream, b.mlp(normed, width))
    b.nodes.append(helper.make_node("MatMul", [b.norm(stream), b.weight(WIDTH, 10)], ["logits"]))
    b.outputs.insert(0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 10]))
    return b
