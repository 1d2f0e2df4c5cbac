"""Number formats of exported files, by Optimum's names; knows nothing about who computes in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """A number format: PyTorch's name of it, and the bytes that a number takes."""

    name: str
    num_bytes: int


FULL = "fp32"
# How far outputs of equal models, or of one file opened in two ways, may be apart in float32.
TOLERANCE = 1e-4
DTYPES = {FULL: Precision("float32", 4), "fp16": Precision("float16", 2), "bf16": Precision("bfloat16", 2)}

# NumPy's names of the types of inputs, by ONNX Runtime's; NumPy has no bfloat16.
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
