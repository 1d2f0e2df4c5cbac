"""ONNX, with transformers' own exporter: batch, sequence and what is cached are dynamic.

Decoders that generate go out as one graph for prefill and decoding: with an empty cache it reads a
prompt, with a full one it takes the next step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExportError, first_line
from ..generation import PAST, PRESENT, CacheShapes, with_cache, with_positions
from ..models import LoadedModel, to_tensors
from ..tasks import Inputs, Task
from .formats import FORMATS, Format, Run, Written

# Above this the weights go to one file beside the graph: protobuf ends at 2 GB.
INLINE_WEIGHTS_BYTES = 1 << 30
# Tokens cached in the example that is traced; like every axis that is to vary, it is not one long.
CACHED_TOKENS = 3
# What the exporter makes of a cache's tensors, and what the ecosystem calls them.
_CACHED = re.compile(r"^(?:input\.|output\.)?past_key_values\.layers\.(\d+)\.(key|value)s$")


def write_onnx(model: LoadedModel, example: Inputs, path: Path, opset: int | None) -> Written:
    """Write ONNX; a task that generates gets inputs and outputs for cached keys and values.

    Raises:
        ExportError: If the exporter refuses the model, or writes another opset.
    """
    import onnx_ir
    import torch
    import transformers

    sample: dict[str, Any] = dict(to_tensors(example))
    axes: dict[str, Any] = {name: _dynamic(range(len(model.task.axes(name)))) for name in sample}
    cache: CacheShapes = {}
    if model.task.generates:
        sample, axes, cache = _with_cache(model, example)
    program = _export(model, sample, axes, opset)
    written = program.opset_imports.get("")
    if opset not in (None, written):
        raise ExportError(f"Opset {opset} was asked for, the exporter wrote {written}.", "Leave out --opset.")
    _rename(program.graph.inputs, PAST)
    _rename(program.graph.outputs, PRESENT)
    _name_axes(program.graph, model.task)
    num_bytes = sum(p.numel() * p.element_size() for p in model.network.parameters())
    external = data_file(path).name if num_bytes > INLINE_WEIGHTS_BYTES else None
    onnx_ir.save(program, str(path), external_data=external)
    return Written(
        f"transformers {transformers.__version__} OnnxExporter, torch {torch.__version__}",
        written,
        tuple(str(value.name) for value in program.graph.inputs),
        tuple(str(value.name) for value in program.graph.outputs),
        cache,
    )


def data_file(path: Path) -> Path:
    """Return where the weights of a large file are."""
    return path.with_name(f"{path.name}_data")


def _dynamic(axes: Any) -> dict[int, Any]:
    import torch

    # AUTO, as models bound the sequence by their positions, and a named dimension must state the bound.
    return dict.fromkeys(axes, torch.export.Dim.AUTO)


def _export(model: LoadedModel, sample: dict[str, Any], axes: dict[str, Any], opset: int | None) -> Any:
    """Trace the network, and return the graph.

    Raises:
        ExportError: If the exporter refuses.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, opset_version=opset, dynamic_shapes=axes)
    had_cache = getattr(model.network.config, "use_cache", None)
    try:
        if had_cache is not None:
            model.network.config.use_cache = model.task.generates
        exported = OnnxExporter().export(model.network, sample, config=config)
    # The exporter, torch.export and onnxscript raise errors of their own without a common base.
    except Exception as error:
        raise ExportError(
            f"The ONNX exporter refuses {model.source}: {type(error).__name__}: {first_line(error)}",
            "Try --format torchscript, or another --opset.",
        ) from error
    finally:
        if had_cache is not None:
            model.network.config.use_cache = had_cache
    # transformers 5.23 returns a model of its own, 5.20 (Python 3.10) torch's ONNXProgram.
    return exported.program if hasattr(exported, "program") else exported.model


# --- cached keys and values -----------------------------------------------------------------


def _with_cache(model: LoadedModel, example: Inputs) -> tuple[dict[str, Any], dict[str, Any], CacheShapes]:
    """Return an example with something in the cache, its dynamic axes, and the cache's inputs.

    Layers with a window keep all tokens here: their mask leaves out what is outside, so that one axis
    fits all layers, as those who run such graphs expect.

    Raises:
        ExportError: If the model keeps something else than keys and values of each layer.
    """
    import inspect

    import torch
    from transformers import DynamicCache

    layers = _cached_layers(model, example)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    size = example["input_ids"].shape[0]
    before = np.ones((size, CACHED_TOKENS), dtype=np.int64)
    before[0, 0] = 0  # padded on the left, or the exporter leaves out the mask
    inputs = {**example, "attention_mask": np.concatenate([before, example["attention_mask"]], axis=1)}
    inputs = with_positions(inputs, inspect.signature(type(model.network).forward).parameters)
    sample: dict[str, Any] = {**to_tensors(inputs), PAST: cache}
    axes: dict[str, Any] = {name: _dynamic((0, 1)) for name in inputs}
    axes[PAST] = [_dynamic((0, 2))] * (2 * len(layers))
    shapes = {
        f"{PAST}.{index}.{kind}": (int(tensor.shape[1]), int(tensor.shape[3]))
        for index, layer in enumerate(layers)
        for kind, tensor in zip(("key", "value"), layer, strict=True)
    }
    assert isinstance(cache.layers[0].keys, torch.Tensor)
    return sample, axes, shapes


def _cached_layers(model: LoadedModel, example: Inputs) -> list[tuple[Any, Any]]:
    """Return the keys and values that each layer keeps of a few tokens, (B, A, CACHED_TOKENS, D)."""
    import torch

    few = {name: value[:, :CACHED_TOKENS] for name, value in to_tensors(example).items()}
    with torch.no_grad():
        kept = getattr(model.network(**few, use_cache=True), PAST, None)
    layers = [(layer.keys, layer.values) for layer in getattr(kept, "layers", ()) if hasattr(layer, "keys")]
    kinds = [
        tensor.shape[2] if getattr(tensor, "ndim", 0) == 4 else None for pair in layers for tensor in pair
    ]
    if len(layers) != model.num_layers or set(kinds) != {CACHED_TOKENS}:
        raise ExportError(
            f"{model.source} keeps something else than keys and values of every layer while it generates "
            f"({type(kept).__name__}); such models are not exported with their cache.",
            "Try --format torchscript, which has none.",
        )
    return layers


def _rename(values: Any, prefix: str) -> None:
    for value in values:
        value.name = _CACHED.sub(rf"{prefix}.\1.\2", value.name)


def _name_axes(graph: Any, task: Task) -> None:
    """Call the dynamic axes of the inputs by the task's names, wherever they occur."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        if value.name.startswith(PAST):
            axes: Mapping[int, str] = {0: "batch", 2: "past_sequence"}
        elif value.name == "attention_mask" and task.generates:
            axes = {0: "batch", 1: "total_sequence"}
        else:
            axes = dict(enumerate(task.axes(value.name)))
        for axis, name in axes.items():
            names.setdefault(str(value.shape[axis]), name)
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        for axis, dimension in enumerate(value.shape or ()):
            if not isinstance(dimension, int):  # a symbol, or an expression of symbols
                value.shape[axis] = symbol.sub(lambda match: names[match.group()], str(dimension))


# --- running it back ------------------------------------------------------------------------


def open_onnx(path: Path, written: Written) -> Run:
    """Run an ONNX file in ONNX Runtime on the CPU; an input that caches is empty where it is not given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        if written.cache.keys() - inputs.keys():
            inputs = with_cache(inputs, written.cache)
        found = session.run(written.outputs, {name: inputs[name] for name in written.inputs})
        return dict(zip(written.outputs, found, strict=True))

    return run


FORMATS.add("onnx")(
    Format("model.onnx", write_onnx, open_onnx, "ONNX, batch and sequence dynamic, for ONNX Runtime.")
)
