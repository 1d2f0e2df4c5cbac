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

from ..errors import ExportError
from ..generation import PAST, PRESENT, CacheShapes, Session, as_one, with_positions
from ..models import LoadedModel, to_tensors
from ..tasks import Inputs, Task
from .encoder_decoder import write_encoder_decoder
from .formats import FORMATS, Format, Written
from .graphs import CACHED_TOKENS, cached, dynamic, exporter_name, name_axes, names_of, rename, save, traced

MODEL_FILE = "model.onnx"
# What the exporter makes of a cache's tensors.
_CACHED = re.compile(r"^(?:input\.|output\.)?past_key_values\.layers\.(\d+)\.(key|value)s$")


def write_onnx(model: LoadedModel, example: Inputs, folder: Path, opset: int | None) -> Written:
    """Write ONNX; a task that generates gets inputs and outputs for cached keys and values.

    Raises:
        ExportError: If the exporter refuses the model, or writes another opset.
    """
    if model.task.generates and model.network.config.is_encoder_decoder:
        return write_encoder_decoder(model, example, folder, opset)
    sample: dict[str, Any] = dict(to_tensors(example))
    axes: dict[str, Any] = {name: dynamic(range(len(model.task.axes(name)))) for name in sample}
    cache: CacheShapes = {}
    if model.task.generates:
        sample, axes, cache = _with_cache(model, example)
    program = traced(model, model.network, sample, axes, opset)
    rename(program.graph.inputs, {_CACHED: rf"{PAST}.\1.\2"})
    rename(program.graph.outputs, {_CACHED: rf"{PRESENT}.\1.\2"})
    name_axes(program.graph, lambda name: _axes(name, model.task))
    save(program, folder / MODEL_FILE)
    inputs, outputs = names_of(program.graph.inputs), names_of(program.graph.outputs)
    return Written(exporter_name(), program.opset_imports.get(""), inputs, outputs, (MODEL_FILE,), cache)


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
    sample: dict[str, Any] = {**to_tensors(inputs), PAST: cache}
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

    few = {name: value[:, :CACHED_TOKENS] for name, value in to_tensors(example).items()}
    with torch.no_grad():
        kept = getattr(model.network(**few, use_cache=True), PAST, None)
    layers = [(layer.keys, layer.values) for layer in getattr(kept, "layers", ()) if hasattr(layer, "keys")]
    if len(layers) != model.num_layers:
        raise ExportError(
            f"{model.source} keeps something else than keys and values of every layer while it generates "
            f"({type(kept).__name__}); such models are not exported with their cache.",
            "Try --format torchscript, which has none.",
        )
    return layers


# --- running it back ------------------------------------------------------------------------


def open_onnx(folder: Path, written: Written) -> Session:
    """Run what was written in ONNX Runtime on the CPU."""
    return as_one([_open(folder / name) for name in written.files], written.cache)


def _open(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        found = session.run(outputs, {name: inputs[name] for name in names})
        return dict(zip(outputs, found, strict=True))

    return run


FORMATS.add("onnx")(Format(write_onnx, open_onnx, "ONNX, batch and sequence dynamic, for ONNX Runtime."))
