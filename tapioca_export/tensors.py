"""Batches of NumPy arrays as PyTorch's tensors; knows nothing about what they are fed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def to_tensors(
    inputs: Mapping[str, np.ndarray], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Return the batch as tensors; `dtype` (default: float32) is that of what is no whole number."""
    import torch

    # Matrix products round differently where rows are cut off longer ones: what is equal must compute equals.
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in inputs.items()
    }
    wanted = dtype or torch.float32
    return {name: value.to(wanted) if value.is_floating_point() else value for name, value in tensors.items()}
