"""Graphs in the operators that ONNX Runtime computes fastest: what each level of `--optimize` does.

The levels are Optimum's; what does the work differs, since ONNX Runtime's transformer optimiser finds no
attention in the graphs that torch.export makes, and breaks on some (GPT-2, ModernBERT). transformers fuses
those for ONNX Runtime, and ONNX Runtime's own session optimiser does the rest, once instead of at each load.

What they fuse and the CPU is slower with is undone (`unfusing`). O4 is for CUDA, where all of it stays:
attention is one operator, and a norm takes the sum before it.

Knows nothing about tasks or samples.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..errors import ExportError, first_line, onnxruntime_errors
from ..generation import PAST
from ..graphs.norms import DOMAIN, take_over
from ..precision import FULL
from ..telemetry import import_onnxruntime
from ..treatments import APPROXIMATE, HALF_LEVEL
from .attending import take_in_products, zero_whole_rows
from .graphs import replace_graph
from .unfusing import leave_out_sums, merge_reshapes, part_norms, unpack_products

if TYPE_CHECKING:
    import onnx_ir as ir

# How far ONNX Runtime's session optimiser goes.
BASIC, EXTENDED = 1, 2


def optimize(file: Path, level: str, dtype: str, *, for_quantizer: bool = False) -> bool:
    """Optimise a graph in place, for ONNX Runtime on the CPU, or, by O4, on CUDA.

    Args:
        file: The graph; its weights may be beside it.
        level: O1 (what ONNX Runtime calls basic), O2 (and fused operators), O3 (and GELU by tanh), O4 (the
            same with the operators of CUDA).
        dtype: Its precision. ONNX Runtime's own optimiser runs in float32 alone: in half precision it
            would write into the file what its CPU kernels need, casts to float32.
        for_quantizer: Leave products with weights as `MatMul`, which is what quantisers look for.

    Returns:
        Whether the graph computes the same up to rounding; not where a GELU was approximated.

    Raises:
        ExportError: If the libraries that fuse refuse the graph, or are too old.
    """
    import onnx_ir

    model = onnx_ir.load(file)
    if level == HALF_LEVEL:
        _fuse_for_cuda(model, for_quantizer)
    elif level != "O1":
        _fuse_for_cpu(model)
    with TemporaryDirectory(dir=file.parent) as scratch:
        if dtype == FULL:
            model = _by_onnxruntime(model, BASIC if level == "O1" else EXTENDED, Path(scratch))
        if level not in ("O1", HALF_LEVEL):
            part_norms(model.graph)
        is_exact = level not in APPROXIMATE or not _approximate_gelu(model.graph)
        replace_graph(model, file)
    return is_exact


def _fuse_for_cpu(model: ir.Model) -> None:
    _fuse(model, "cpu")
    if not any(PAST in str(value.name) for value in model.graph.inputs):
        # With a cache, tokens come one at a time, and packed products pay.
        unpack_products(model.graph)
        _tidy(model)


def _fuse_for_cuda(model: ir.Model, for_quantizer: bool) -> None:
    _fuse(model, "cuda")
    if not for_quantizer:
        take_in_products(model.graph)
    zero_whole_rows(model.graph)
    leave_out_sums(model.graph)
    _tidy(model)


def _tidy(model: ir.Model) -> None:
    """Merge reshapes, and take out what nothing reads: what is left of fused nodes reads their inputs."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    merge_reshapes(model.graph)
    RemoveUnusedNodesPass()(model)


def _spell_alike(graph: ir.Graph) -> None:
    """Write each sum of lengths in one way: it is compared as a text, and nothing fused where two differ.

    The exporter writes "past + sequence" of some layers' keys and values, "sequence + past" of others'.
    """
    import onnx_ir as ir

    for value in (value for node in graph for value in node.outputs):
        if value.shape is not None and any(" + " in str(dim) for dim in value.shape):
            value.shape = ir.Shape([_sorted(dim) for dim in value.shape])


def _sorted(dim: int | ir.SymbolicDim) -> int | str | None:
    """Return a size, the terms of a plain sum in order."""
    name = dim if isinstance(dim, int) else dim.value
    if not isinstance(name, str) or "(" in name:  # a product of sums, whose terms are not all of one sum
        return name
    return " + ".join(sorted(name.split(" + ")))


def _fuse(model: ir.Model, provider: str) -> None:
    """Fuse as transformers does for one of ONNX Runtime's providers, and tidy up.

    Raises:
        ExportError: If transformers is older than 5.23.
    """
    try:
        from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime
    except ImportError as error:
        raise ExportError(
            "--optimize O2 and up need transformers 5.23 or newer, which needs Python 3.11.",
            "Use --optimize O1, or upgrade.",
        ) from error
    _spell_alike(model.graph)
    try:
        fuse_for_onnxruntime(model, provider)
    # Passes of onnxscript and onnx_ir raise errors of their own without a common base.
    except Exception as error:
        raise ExportError(
            f"transformers cannot fuse the graph: {type(error).__name__}: {first_line(error)}",
            "Use --optimize O1.",
        ) from error
    _tidy(model)


def _by_onnxruntime(model: ir.Model, level: int, scratch: Path) -> ir.Model:
    """Return what ONNX Runtime's session optimiser makes of a graph; its weights are in `scratch`."""
    import onnx_ir
    from onnxruntime.transformers.optimizer import optimize_by_onnxruntime

    import_onnxruntime()
    source, target = scratch / "source.onnx", scratch / "target.onnx"
    onnx_ir.save(model, source, external_data="source.onnx_data")
    try:
        optimize_by_onnxruntime(
            str(source), optimized_model_path=str(target), opt_level=level, save_as_external_data=True
        )
    except onnxruntime_errors() as error:
        raise ExportError(
            f"ONNX Runtime cannot optimise the graph: {first_line(error)}", "Leave out --optimize."
        ) from error
    return onnx_ir.load(target)


def _approximate_gelu(graph: ir.Graph) -> int:
    """Write each exact GELU as ONNX Runtime's fast one; return how many there were."""
    import onnx_ir

    found = [
        node
        for node in graph
        if node.op_type == "BiasGelu"
        or (node.op_type == "Gelu" and node.attributes.get_string("approximate", "none") == "none")
    ]
    for node in found:
        fast = onnx_ir.node("FastGelu", node.inputs, domain=DOMAIN)
        graph.insert_before(node, fast)
        take_over(node.outputs[0], fast.outputs[0])
        graph.remove(node, safe=True)
    if found:
        graph.opset_imports.setdefault(DOMAIN, 1)
    return len(found)
