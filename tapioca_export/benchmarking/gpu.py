"""What is missing to time on a GPU, and how to get it."""

from __future__ import annotations

from importlib import metadata

from ..errors import BenchmarkError
from .sessions import CUDA, available_providers, default_settings, open_session

# One wheel replaces the other: both put their files into the same folder.
REPLACE = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"


def missing_for_gpu() -> str | None:
    """Return what keeps ONNX Runtime from CUDA, and what mends it; None where it computes there."""
    if CUDA in available_providers():
        try:
            open_session(_smallest_graph(), default_settings(CUDA, 1))
        except BenchmarkError as error:
            return (
                f"{CUDA} is in this build of onnxruntime and does not start: {error.message} It needs an "
                "NVIDIA driver, CUDA and cuDNN; CUDA and cuDNN come with: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return None
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        return (
            f"{CUDA} is missing: onnxruntime and onnxruntime-gpu are both installed, and the files of one "
            f"have replaced the other's. Run: {REPLACE}"
        )
    return (
        f"{CUDA} is missing: this is the build of onnxruntime for CPUs. For GPUs (Linux and Windows, x86-64, "
        f"CUDA), the wheel onnxruntime-gpu takes its place: {REPLACE}"
    )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _smallest_graph() -> bytes:
    """Return an ONNX graph of one operator."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "relu", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()  # type: ignore[no-any-return]
