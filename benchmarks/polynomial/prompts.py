"""Prompts of shifted distributions: larger coefficients and inputs, other degrees, normal numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tapioca_export.polynomial import DEGREE, interleaved


@dataclass(frozen=True)
class Distribution:
    """Of coefficients and inputs; as it is by default, it is the one that was trained on.

    Uniform in [-scale, scale], or scale times standard normal; all coefficients up to that of x^degree.
    """

    coefficient_scale: float = 1.0
    input_scale: float = 1.0
    degree: int = DEGREE
    is_normal: bool = False

    def prompts(self, count: int, num_points: int, seed: tuple[int, ...]) -> np.ndarray:
        """Draw prompts x1, y1, x2, y2, ... of shape (count, 2 * num_points), float32."""
        generator = np.random.default_rng(seed)

        def draw(size: int) -> np.ndarray:
            shape = (count, size)
            return generator.standard_normal(shape) if self.is_normal else generator.uniform(-1, 1, shape)

        coefficients = draw(self.degree + 1) * self.coefficient_scale
        return interleaved(coefficients, draw(num_points) * self.input_scale)
