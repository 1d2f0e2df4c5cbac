"""ONNX, with transformers' own exporter: batch, sequence and what is cached are dynamic.

Decoders that generate go out as one graph for prefill and decoding: with an empty cache it reads a
prompt, with a full one it takes the next step.

In half precision the network itself is traced in it, as Optimum does. Converting the float32 graph
instead (`onnxruntime.transformers.float16`) takes from float32 what transformers computes there on
purpose: the squares of an RMSNorm leave the range of float16 above 255. ONNX Runtime hides that on the
CPU, where it has few kernels in float16 and computes much in float32, with casts of its own. In
bfloat16 it has no kernel for most operators on the CPU, and puts no casts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError, LoadError, first_line, onnxruntime_errors
from ..generation import PAST, PRESENT, CacheShapes, Session, as_one, with_positions
from ..models import LoadedModel, to_tensors
from ..precision import DTYPES, FULL, NUMPY_TYPES
from ..sessions import session_on_cpu
from ..tasks import Inputs, Task
from .encoder_decoder import write_encoder_decoder
from .formats import FORMATS, OLDEST_OPSET, Dialect, Format, Written
from .graphs import CACHED_TOKENS, cached, name_axes, names_of, rename, save, traced
from .tracing import dynamic, exporter_name

MODEL_FILE = "model.onnx"
# What the exporter makes of a cache's tensors.
_CACHED = re.compile(r"^(?:input\.|output\.)?past_key_values\.layers\.(\d+)\.(key|value)s$")


def write_onnx(model: LoadedModel, example: Inputs, folder: Path, dialect: Dialect) -> Written:
    """Write ONNX; a task that generates gets inputs and outputs for cached keys and values.

    Raises:
        ExportError: If the exporter refuses the model, or writes another opset.
    """
    if model.task.generates and model.network.config.is_encoder_decoder:
        return write_encoder_decoder(model, example, folder, dialect)
    sample: dict[str, Any] = to_tensors(example, dtype=model.network.dtype)
    axes: dict[str, Any] = {name: dynamic(range(len(model.task.axes(name)))) for name in sample}
    cache: CacheShapes = {}
    if model.task.generates:
        sample, axes, cache = _with_cache(model, example)
    program = traced(model, model.network, sample, axes, dialect)
    rename(program.graph.inputs, {_CACHED: rf"{PAST}.\1.\2"})
    rename(program.graph.outputs, {_CACHED: rf"{PRESENT}.\1.\2"})
    name_axes(program.graph, lambda name: _axes(name, model.task))
    save(program, folder / MODEL_FILE)
    inputs, outputs = names_of(program.graph.inputs), names_of(program.graph.outputs)
    return Written(
        exporter_name("OnnxExporter"), program.opset_imports.get(""), inputs, outputs, (MODEL_FILE,), cache
    )


def _axes(name: str, task: Task) -> Mapping[int, str]:
    """Name the axes of an input that may differ from batch to batch."""
    if name.startswith(PAST):
        return {0: "batch", 2: "past_sequence"}
    if name == "attention_mask" and task.generates:
        return {0: "batch", 1: "total_sequence"}
    return dict(enumerate(task.axes(name)))


# --- cached keys and values -----------------------------------------------------------------


def _with_cache(model: LoadedModel, example: Inputs) -> tuple[dict[str, Any], dict[str, Any], CacheShapes]:
    """Return an example with something in the cache, its dynamic axes, and the cache's inputs.

    Layers with a window keep all tokens here: their mask leaves out what is outside, so that one axis
    fits all layers, as those who run such graphs expect.

    Raises:
        ExportError: If the model keeps something else than keys and values of each layer.
    """
    import inspect

    from transformers import DynamicCache

    layers = _cached_layers(model, example)
    cache = DynamicCache()
    for index, layer in enumerate(layers):
        cache.update(*(cached(tensor) for tensor in layer), index)
    size = example["input_ids"].shape[0]
    before = np.ones((size, CACHED_TOKENS), dtype=np.int64)
    before[0, 0] = 0  # padded on the left, or the exporter leaves out the mask
    inputs = {**example, "attention_mask": np.concatenate([before, example["attention_mask"]], axis=1)}
    inputs = with_positions(inputs, inspect.signature(type(model.network).forward).parameters)
    sample: dict[str, Any] = {**to_tensors(inputs, dtype=model.network.dtype), PAST: cache}
    axes: dict[str, Any] = {name: dynamic((0, 1)) for name in inputs}
    axes[PAST] = [dynamic((0, 2))] * (2 * len(layers))
    shapes = {
        f"{PAST}.{index}.{kind}": (int(tensor.shape[1]), int(tensor.shape[3]))
        for index, layer in enumerate(layers)
        for kind, tensor in zip(("key", "value"), layer, strict=True)
    }
    return sample, axes, shapes


def _cached_layers(model: LoadedModel, example: Inputs) -> list[tuple[Any, Any]]:
    """Return the keys and values that each layer keeps of a few tokens, (B, A, tokens, D)."""
    import torch

    if not model.num_caching:
        raise ExportError(
            f"No layer of {model.source} is left with attention, and without one there is nothing to cache.",
            "Keep one, or try --format pt2 or torchscript.",
        )
    few = {name: value[:, :CACHED_TOKENS] for name, value in to_tensors(example).items()}
    with torch.no_grad():
        kept = getattr(model.network(**few, use_cache=True), PAST, None)
    # Of layers without attention, the cache has places, and nothing is in them.
    full = [layer for layer in getattr(kept, "layers", ()) if getattr(layer, "keys", None) is not None]
    layers = [(layer.keys, layer.values) for layer in full]
    if len(layers) != model.num_caching:
        raise ExportError(
            f"{model.source} keeps something else than keys and values of every layer while it generates "
            f"({type(kept).__name__}); such models are not exported with their cache.",
            "Try --format pt2 or torchscript, which have none.",
        )
    return layers


# --- running it back ------------------------------------------------------------------------


def open_onnx(folder: Path, written: Written) -> Session:
    """Run what was written in ONNX Runtime on the CPU.

    Raises:
        ExportError: If ONNX Runtime refuses a file.
    """
    return as_one([_open(folder / name) for name in written.files], written.cache)


def _open(model: Path | bytes) -> Session:
    """Open a file, or a model in memory; returns what feeds it, in its number types."""
    refusals: tuple[type[Exception], ...] = (LoadError, *onnxruntime_errors())
    try:
        session = session_on_cpu(model)
    except refusals as error:
        raise ExportError(
            f"ONNX Runtime cannot run the file on the CPU: {first_line(error)}",
            "Try another --opset or --dtype, or --format pt2.",
        ) from error
    types = {value.name: NUMPY_TYPES[value.type] for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        inputs = with_positions(inputs, types)
        feed: dict[str, np.ndarray] = {
            name: np.asarray(inputs[name], dtype=dtype) for name, dtype in types.items()
        }
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    return run


def refuse_without_kernels(dtype: str) -> None:
    """Refuse a precision in which ONNX Runtime multiplies no matrices on the CPU, where files are proven.

    Raises:
        ExportError: With ONNX Runtime's reason.
    """
    if dtype == FULL:
        return
    import onnx
    import onnxruntime

    number = getattr(onnx.TensorProto, DTYPES[dtype].name.upper())
    values = [onnx.helper.make_tensor_value_info(name, number, [2, 2]) for name in "abc"]
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "product", values[:2], values[2:])
    opsets = [onnx.helper.make_opsetid("", OLDEST_OPSET)]
    product = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)  # which any runtime reads
    try:
        session_on_cpu(product.SerializeToString())
    except onnxruntime_errors() as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} runs no {dtype} on the CPU, where files are proven: "
            f"{first_line(error)} (of a single MatMul in {DTYPES[dtype].name}; no other device was tried).",
            "Use --dtype fp16, or export with --format pt2 or torchscript, which PyTorch runs.",
        ) from error


FORMATS.add("onnx")(
    Format(
        write_onnx,
        open_onnx,
        "ONNX, batch and sequence dynamic, for ONNX Runtime.",
        refuse=refuse_without_kernels,
        is_treated=True,
    )
)
