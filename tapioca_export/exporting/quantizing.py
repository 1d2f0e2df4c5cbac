"""Weights in 8 or 4 bits, by ONNX Runtime's quantisers.

int8: weights, and what is multiplied with them, are 8 bits wide; activations get their range from each input
(dynamic), or have one that was measured on calibration inputs (static). Static files quantise what goes into
products with weights, and nothing else: norms, softmax and sums stay in float32. int4: weights alone, with a
scale for each block of them.

Knows nothing about tasks or samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError, ParityError, first_line
from ..exhaustion import exhausted
from ..telemetry import import_onnxruntime
from .graphs import replace_graph

if TYPE_CHECKING:
    import onnx_ir as ir

# Weights of one column that share a scale in 4 bits, and how products with them are computed: in int8.
BLOCK_SIZE, COMPUTE_IN_INT8 = 32, 4
# What stands for a weight in 8 bits, by what is added to its name; and how far rounding takes any, in steps.
_PARTS = ("quantized", "scale", "zero_point")
HALF_A_STEP = 0.51
# What weights are multiplied in.
_PRODUCTS = ["MatMul", "Gemm"]
Feeds = Sequence[Mapping[str, np.ndarray]]


def quantize(file: Path, kind: str, *, per_channel: bool = False, calibration: Feeds = ()) -> None:
    """Quantise a graph in place.

    Args:
        file: The graph; its weights may be beside it.
        kind: int8 or int4.
        per_channel: Of int8: a scale for each output channel instead of one a matrix.
        calibration: Of int8: inputs of the graph by name, on which ranges of activations are measured;
            without any, they are taken from each input when the file runs.

    Raises:
        ExportError: If the quantiser refuses the graph.
        ParityError: If a weight is not what it was, rounded.
    """
    import onnx_ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    model = onnx_ir.load(file)
    LiftConstantsToInitializersPass()(model)  # the quantisers look for weights there
    with TemporaryDirectory(dir=file.parent) as scratch:
        source, target = Path(scratch) / "source.onnx", Path(scratch) / "target.onnx"
        _forget_shapes(model.graph)
        onnx_ir.save(model, source, external_data="source.onnx_data")
        try:
            if kind == "int4":
                _in_blocks(source, target)
            elif calibration:
                excluded = _products_of_activations(model.graph)
                _statically((source, target), per_channel, calibration, excluded)
            else:
                _dynamically(source, target, per_channel)
        # The quantisers raise errors of their own, of Python, onnx and ONNX Runtime, without a common base.
        except Exception as error:
            # It writes the graph whole, and again with shapes, also where temporary files go.
            size = sum(part.stat().st_size for part in Path(scratch).iterdir())
            fullest = min((file.parent, Path(gettempdir())), key=lambda place: disk_usage(place).free)
            raise exhausted(error, fullest, 2 * size) or ExportError(
                f"ONNX Runtime cannot quantise the graph to {kind}: {type(error).__name__}: "
                f"{first_line(error)}",
                "Leave out --quantize, or try it without --optimize.",
            ) from error
        replace_graph(onnx_ir.load(target), file)
        _refuse_other_weights(kind, onnx_ir.load(source), onnx_ir.load(file))


def _refuse_other_weights(kind: str, source: ir.Model, quantized: ir.Model) -> None:
    """Refuse quantised weights that are not, to half a step, what they were: metrics may not tell.

    Raises:
        ParityError: Naming one, and how far it is off.
    """
    bits, found = (8, _off_in_8_bits) if kind == "int8" else (4, _off_in_blocks)
    for name, off in found(source.graph.initializers, quantized.graph):
        if not off <= HALF_A_STEP:
            raise ParityError(
                f"the weight {name} in {bits} bits is off by {off:.3g} steps; rounding takes half of one.",
                "Leave out --quantize, and report the versions of the libraries.",
            )


def _off_in_8_bits(exact: Mapping[str, ir.Value], quantized: ir.Graph) -> Iterator[tuple[str, float]]:
    """Yield each weight that has a twin in 8 bits, and how many steps that is off at most."""
    for name, value in exact.items():
        parts = [quantized.initializers.get(f"{name}_{part}") for part in _PARTS]
        if any(part is None or part.const_value is None for part in parts):
            continue
        floats = _array(value).astype(np.float32)
        stored, scale, zero = (_array(part) for part in parts if part is not None)
        steps = stored.astype(np.int32)
        yield name, min(_steps_off(floats, steps, scale, zero, axis) for axis in range(floats.ndim))


def _off_in_blocks(exact: Mapping[str, ir.Value], quantized: ir.Graph) -> Iterator[tuple[str, float]]:
    """Yield each weight in 4 bits, and how many steps it is off at most.

    Source: ONNX Runtime, "Contrib operators", MatMulNBits: N columns of K weights, two in a byte, the low
    half first; a scale a block; without zero points, 8 stands for 0.
    """
    for node in quantized:
        if node.op_type != "MatMulNBits":
            continue
        packed, scale = (_array(value) for value in node.inputs[1:3])
        name = str(node.inputs[1].name).removesuffix("_Q4")
        num_rows, num_columns = (node.attributes[key].as_int() for key in "KN")
        halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(num_columns, -1)[:, :num_rows]
        scales = np.repeat(scale.reshape(num_columns, -1), BLOCK_SIZE, axis=1)[:, :num_rows]
        # A Gemm, which is made a MatMul first, may have its weight the other way round.
        floats = _array(exact.get(name) or exact[name.removesuffix("_Transposed")]).astype(np.float32)
        turned = [way for way in (floats.T, floats) if way.shape == halves.shape]
        yield name, min(_block_steps_off(way, halves.astype(np.int32) - 8, scales) for way in turned)


def _block_steps_off(exact: np.ndarray, steps: np.ndarray, scales: np.ndarray) -> float:
    """Return how many steps a weight is off at most; what is beyond the last step is clipped there."""
    wanted = np.clip(exact / np.where(scales == 0, 1, scales), -8, 7)
    return float(np.abs(wanted - steps).max(initial=0.0))


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _steps_off(exact: np.ndarray, steps: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> float:
    """Return how many steps a weight is off at most, its scales being one, or one for each along an axis."""
    if scale.size not in (1, exact.shape[axis]):
        return float("inf")
    shape = [-1 if place == axis and scale.size > 1 else 1 for place in range(exact.ndim)]
    scale, zero = scale.reshape(shape), zero.astype(np.int32).reshape(shape)
    return float(np.abs(exact / np.where(scale == 0, 1, scale) - (steps - zero)).max(initial=0.0))


def _forget_shapes(graph: ir.Graph) -> None:
    """Take away the shapes of values amid the graph: ONNX's inference, run anew, may contradict them."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _products_of_activations(graph: ir.Graph) -> list[str]:
    """Name the products without weights: a static file would quantise what goes into them, too."""
    return [
        str(node.name)
        for node in graph
        if node.op_type in _PRODUCTS and not any(value.is_initializer() for value in node.inputs if value)
    ]


def _options() -> dict[str, Any]:
    """Return the settings that all graphs need."""
    import onnx

    # Of ONNX Runtime's own operators, ONNX's inference cannot tell the type of what they give.
    return {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}


def _dynamically(source: Path, target: Path, per_channel: bool) -> None:
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options=_options(),
    )


def _statically(
    files: tuple[Path, Path], per_channel: bool, calibration: Feeds, excluded: Sequence[str]
) -> None:
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Mapping[str, np.ndarray]] = iter(calibration)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize_static(
        *files,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_PRODUCTS,
        nodes_to_exclude=list(excluded),
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={
            **_options(),
            "OpTypesToExcludeOutputQuantization": _PRODUCTS,
            "QuantizeBias": False,
        },
    )


def _in_blocks(source: Path, target: Path) -> None:
    import_onnxruntime()
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(source))
    model.replace_gemm_with_matmul()  # it knows no Gemm, which GPT-2 is made of
    quantizer = MatMulNBitsQuantizer(
        model.model, bits=4, block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=COMPUTE_IN_INT8
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=True)
