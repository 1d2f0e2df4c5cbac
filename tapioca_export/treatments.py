"""What is done to exported graphs to make them fast: names of levels and kinds, and which go together.

Knows nothing about who does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError, UnknownNameError
from .precision import FULL

# Optimum's levels; the last is the third in half precision, for CUDA.
LEVELS = ("O1", "O2", "O3", "O4")
HALF_LEVEL, HALF = "O4", "fp16"
# Levels that compute GELU by tanh.
APPROXIMATE = ("O3", "O4")
KINDS = ("int8", "int4")


@dataclass(frozen=True)
class Treatment:
    """How graphs are optimised and quantised.

    `optimize` is a level, `quantize` int8 or int4. Of int8, `per_channel` gives each output channel of a
    weight its own scale, and `calibration_samples` is the number of rows on which ranges of activations are
    measured (None: they are taken from each input as the file runs).

    Raises:
        UnknownNameError: If there is no such level or kind.
        ConfigError: If an option has no meaning without another.
    """

    optimize: str | None = None
    quantize: str | None = None
    per_channel: bool = False
    calibration_samples: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.optimize not in (None, *LEVELS):
            raise UnknownNameError("level of --optimize", str(self.optimize), LEVELS)
        if self.quantize not in (None, *KINDS):
            raise UnknownNameError("kind of --quantize", str(self.quantize), KINDS)
        if self.quantize != "int8" and (self.per_channel or self.calibration_samples is not None):
            option = "--per-channel" if self.per_channel else "--calibration-samples"
            raise ConfigError(f"{option} is for --quantize int8.", "Add it, or leave this out.")

    def check_dtype(self, dtype: str) -> None:
        """Refuse a precision that the graphs cannot be treated in.

        Raises:
            ConfigError: Saying which they can.
        """
        if self.optimize == HALF_LEVEL and dtype != HALF:
            raise ConfigError(f"--optimize O4 is float16, and --dtype says {dtype}.", "Leave out --dtype.")
        if self.quantize == "int8" and dtype != FULL:
            raise ConfigError(
                f"int8 activations are made of float32 numbers, not of {dtype} ones: ONNX Runtime has no "
                "kernel for these.",
                "Use --quantize int4, or fp32 and a level below O4.",
            )
        if self.optimize == "O1" and dtype != FULL:
            raise ConfigError(
                f"--optimize O1 is ONNX Runtime's own optimiser, which would write casts from {dtype} to "
                "float32 into the file: its CPU kernels need them.",
                "Use O2.",
            )

    @property
    def may_lose(self) -> bool:
        """Tell whether what is computed may change by more than rounding."""
        return self.quantize is not None or self.optimize in APPROXIMATE

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return self != Treatment()

    def __str__(self) -> str:
        """Say it in words, for tables."""
        static = "static" if self.calibration_samples else "dynamic"
        detail = f" {static}{', per channel' if self.per_channel else ''}" if self.quantize == "int8" else ""
        quantized = [f"{self.quantize}{detail}"] if self.quantize else []
        return ", ".join([*([self.optimize] if self.optimize else []), *quantized]) or "none"
