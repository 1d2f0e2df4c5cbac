"""A network traced to an ONNX graph by transformers' exporter; its names, axes and files.

Knows nothing about tasks, nor about what a graph is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..models import LoadedModel
from .formats import Dialect
from .simplifying import leave_out_zeros
from .tracing import exported

# Above this the weights go to one file beside the graph. Protobuf ends at 2 GB; long before, a session opens
# faster and in less memory from it, and layers are cut out without touching it (benchmarks/surgery.py).
INLINE_WEIGHTS_BYTES = 100 * 10**6
# Tokens cached in the example that is traced: an axis that is to vary is not one long.
CACHED_TOKENS = 3


# What exporters note of each operator: lines of source under the paths of this machine, and texts that are
# longer than the operators. The module that it comes from, under `namespace`, stays.
_OF_THE_EXPORTER = tuple(
    f"pkg.torch.onnx.{name}" for name in ("stack_trace", "fx_node", "class_hierarchy", "name_scopes")
)


def data_file(path: Path) -> Path:
    """Return where the weights of a large file are."""
    return path.with_name(f"{path.name}_data")


def cached(like: Any) -> Any:
    """Return keys or values of a few tokens, whatever a window keeps of them: (B, A, tokens, D)."""
    return like.new_zeros((*like.shape[:2], CACHED_TOKENS, like.shape[3]))


def traced(
    model: LoadedModel, network: Any, sample: dict[str, Any], axes: dict[str, Any], dialect: Dialect
) -> Any:
    """Trace a network, or a part of one, on a sample; return the ONNX model.

    Args:
        model: What the network is of; whether it keeps a cache is up to its task.
        network: What is traced.
        sample: Its inputs; no axis that is to vary may be one long.
        axes: Of each input, which axes vary.
        dialect: The ONNX that is wanted.

    Raises:
        ExportError: If the exporter refuses the network, or writes another opset.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, opset_version=dialect.opset, dynamic_shapes=axes)
    had_cache = getattr(model.network.config, "use_cache", None)
    try:
        if had_cache is not None:
            model.network.config.use_cache = model.task.generates
        program = exported(model.source, network, sample, OnnxExporter(), config)
    except ExportError as error:
        raise ExportError(error.message, "Try --format pt2 or torchscript, or another --opset.") from error
    finally:
        if had_cache is not None:
            model.network.config.use_cache = had_cache
    for node in program.graph.all_nodes():
        for key in _OF_THE_EXPORTER:
            node.metadata_props.pop(key, None)
    if model.silent:
        leave_out_zeros(program)
    written = program.opset_imports.get("")
    if dialect.opset not in (None, written):
        raise ExportError(
            f"Opset {dialect.opset} was asked for, the exporter wrote {written}.", "Leave out --opset."
        )
    if dialect.ir_version is not None:  # newer ones add what these graphs do not hold
        program.ir_version = min(program.ir_version, dialect.ir_version)
    return program


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


def replace_graph(program: Any, path: Path) -> None:
    """Write an ONNX model, whose weights may be in files, over the one that it was made of."""
    import onnx_ir

    onnx_ir.external_data.load_to_model(program)
    data_file(path).unlink(missing_ok=True)
    save(program, path)
