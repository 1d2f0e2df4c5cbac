"""The embedded example: a transformer that does polynomial regression in context.

A prompt is `x1, y1, x2, y2, ...` with `y = c0 + c1 x + c2 x^2` and fresh coefficients for every
prompt; the model predicts each `y` from everything before it. This is the controlled setting of
Garg et al. 2022 (arXiv:2208.01066) that the TALE and TAPIOCA authors use. Small enough to ship
and to run anywhere, yet every layer matters on the distribution it was trained on.

Knows nothing about tasks, layers to drop or files of samples. Importing this module registers the
model type with transformers, so that `AutoModel.from_pretrained` loads its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model, PreTrainedModel
from transformers.utils import ModelOutput

WEIGHTS = Path(__file__).parent / "polynomial_weights"
DEGREE = 2
NUM_POINTS = 20


class PolynomialConfig(GPT2Config):  # type: ignore[misc]
    """GPT-2's configuration; `n_positions` is twice the longest number of points."""

    model_type = "polynomial_regression"


@dataclass
class PolynomialOutput(ModelOutput):  # type: ignore[misc]
    """Predictions `logits` of shape (batch, points): the y that follows each x."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class PolynomialModel(PreTrainedModel):  # type: ignore[misc]
    """GPT-2 blocks between a scalar read-in and a scalar read-out.

    Source: Garg et al. 2022, arXiv:2208.01066, section 2 (architecture and prompt layout).
    """

    config_class = PolynomialConfig
    base_model_prefix = "transformer"
    main_input_name = "values"
    _no_split_modules = ("GPT2Block",)
    _supports_sdpa = True

    def __init__(self, config: PolynomialConfig) -> None:
        super().__init__(config)
        self.read_in = nn.Linear(1, config.n_embd)
        self.transformer = GPT2Model(config)
        self.read_out = nn.Linear(config.n_embd, 1)
        self.post_init()

    def forward(
        self, values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> PolynomialOutput:
        """Predict y at every x position.

        Args:
            values: Interleaved prompt x1, y1, x2, y2, ..., shape (batch, 2 * points).
            labels: True y, shape (batch, points); asks for the mean squared error as `loss`.
            **kwargs: `use_cache`, accepted for the convention's sake; there is nothing to cache.
        """
        hidden = self.transformer(
            inputs_embeds=self.read_in(values.unsqueeze(-1)), use_cache=False
        ).last_hidden_state
        predictions = self.read_out(hidden[:, 0::2]).squeeze(-1)
        loss = None if labels is None else nn.functional.mse_loss(predictions, labels)
        return PolynomialOutput(loss=loss, logits=predictions)


AutoConfig.register(PolynomialConfig.model_type, PolynomialConfig)
AutoModel.register(PolynomialConfig, PolynomialModel)


def sample_prompts(
    num_prompts: int,
    seed: int | tuple[int, ...],
    coefficient_scale: float = 1.0,
    input_scale: float = 1.0,
    num_points: int = NUM_POINTS,
) -> np.ndarray:
    """Draw prompts; scales of 1 are the training distribution, others shift it.

    Coefficients are uniform in [-coefficient_scale, coefficient_scale], inputs in
    [-input_scale, input_scale], all independent; there is no noise.

    Returns:
        Prompts x1, y1, x2, y2, ... of shape (num_prompts, 2 * num_points), float32.
    """
    generator = np.random.default_rng(seed)
    coefficients = generator.uniform(-1, 1, (num_prompts, DEGREE + 1)) * coefficient_scale
    x = generator.uniform(-1, 1, (num_prompts, num_points)) * input_scale
    return interleaved(coefficients, x)


def interleaved(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return prompts x1, y1, x2, y2, ... (N, 2 * points), float32, with y = sum over k of c_k x^k.

    Args:
        coefficients: c_0, c_1, ... of each prompt, (N, degree + 1).
        x: Inputs, (N, points).
    """
    y = sum(coefficients[:, k, None] * x**k for k in range(coefficients.shape[1]))
    return np.stack([x, y], axis=-1).reshape(len(x), -1).astype(np.float32)
