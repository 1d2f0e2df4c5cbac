"""A network traced to an ONNX graph by transformers' exporter; its names, axes and files.

Knows nothing about tasks, nor about what a graph is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import ExportError, first_line
from ..models import LoadedModel
from .simplifying import leave_out_zeros

# Above this the weights go to one file beside the graph. Protobuf ends at 2 GB; long before, a session opens
# faster and in less memory from it, and layers are cut out without touching it (benchmarks/surgery.py).
INLINE_WEIGHTS_BYTES = 100 * 10**6
# Tokens cached in the example that is traced: an axis that is to vary is not one long.
CACHED_TOKENS = 3


def data_file(path: Path) -> Path:
    """Return where the weights of a large file are."""
    return path.with_name(f"{path.name}_data")


def cached(like: Any) -> Any:
    """Return keys or values of a few tokens, whatever a window keeps of them: (B, A, tokens, D)."""
    return like.new_zeros((*like.shape[:2], CACHED_TOKENS, like.shape[3]))


def exporter_name() -> str:
    """Return what traces and writes, with versions."""
    import torch
    import transformers

    return f"transformers {transformers.__version__} OnnxExporter, torch {torch.__version__}"


def dynamic(axes: Iterable[int]) -> dict[int, Any]:
    """Let axes vary from batch to batch."""
    import torch

    # AUTO, as models bound the sequence by their positions, and a named dimension must state the bound.
    return dict.fromkeys(axes, torch.export.Dim.AUTO)


def traced(
    model: LoadedModel, network: Any, sample: dict[str, Any], axes: dict[str, Any], opset: int | None
) -> Any:
    """Trace a network, or a part of one, on a sample; return the ONNX model.

    Args:
        model: What the network is of; whether it keeps a cache is up to its task.
        network: What is traced.
        sample: Its inputs; no axis that is to vary may be one long.
        axes: Of each input, which axes vary.
        opset: The ONNX opset, None for the exporter's own.

    Raises:
        ExportError: If the exporter refuses the network, or writes another opset.
    """
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, opset_version=opset, dynamic_shapes=axes)
    had_cache = getattr(model.network.config, "use_cache", None)
    try:
        if had_cache is not None:
            model.network.config.use_cache = model.task.generates
        with _taking_values_as_finite() if network.dtype == torch.float16 else nullcontext():
            exported = OnnxExporter().export(network, sample, config=config)
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
    program = exported.program if hasattr(exported, "program") else exported.model
    if model.silent:
        leave_out_zeros(program)
    written = program.opset_imports.get("")
    if opset not in (None, written):
        raise ExportError(f"Opset {opset} was asked for, the exporter wrote {written}.", "Leave out --opset.")
    return program


def _taking_values_as_finite() -> Any:
    """Answer `torch.isfinite(...).all()` with True while a network is traced.

    Layers of BART and its kin ask it in float16 alone, to clamp what is infinite, and a graph has no
    branches. Where values are not finite, PyTorch clamps and the file does not, so that the proof fails.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Finite(TorchFunctionMode):
        asked: Any = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.all and args[0] is self.asked:
                return True
            found = function(*args, **(kwargs or {}))
            if function is torch.isfinite:
                self.asked = found
            return found

    return Finite()


def names_of(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of a graph's inputs or outputs."""
    return tuple(str(value.name) for value in values)


def rename(values: Iterable[Any], names: Mapping[re.Pattern[str], str]) -> None:
    """Rename a graph's inputs or outputs, each by the first pattern that matches."""
    for value in values:
        for pattern, name in names.items():
            if pattern.match(value.name):
                value.name = pattern.sub(name, value.name)
                break


def name_axes(graph: Any, axes: Callable[[str], Mapping[int, str]]) -> None:
    """Name the dynamic axes of the inputs, wherever they occur."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, name in axes(value.name).items():
            if not isinstance(value.shape[axis], int):
                names.setdefault(str(value.shape[axis]), name)
    if not names:
        return
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        for axis, dimension in enumerate(value.shape or ()):
            # A symbol, or an expression of symbols. Those that are not known must not get one name: ONNX
            # Runtime takes axes of one name to be of one size.
            if not isinstance(dimension, int) and dimension.value is not None:
                value.shape[axis] = symbol.sub(lambda match: names[match.group()], str(dimension))


def save(program: Any, path: Path) -> None:
    """Write an ONNX model, with its weights in one file beside it where they are large."""
    import onnx_ir

    num_bytes = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    external = data_file(path).name if num_bytes > INLINE_WEIGHTS_BYTES else None
    onnx_ir.save(program, str(path), external_data=external)
