"""Train the embedded example and write its weights and its log.

    python -m benchmarks.polynomial.train --output tapioca_export/polynomial_weights

Every step draws fresh prompts of the training distribution (all scales 1); no shifted prompt is
ever trained on or looked at. The log, `training.jsonl` beside this script, holds the settings in
its first line and an evaluation on fresh prompts of the training distribution in every other.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import transformers

from benchmarks.training import Descent
from tapioca_export.polynomial import (
    NUM_POINTS,
    PolynomialConfig,
    PolynomialModel,
    sample_prompts,
)
from tapioca_export.tasks import PolynomialRegression

EVALUATION_SEED = 10**6  # training uses seeds from 0 up, one a step
EVERY = 500  # steps from one evaluation to the next


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on beside versions; warm-up is linear, in steps."""

    layers: int = 12
    width: int = 64
    heads: int = 4
    steps: int = 12000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 1000
    points: int = NUM_POINTS
    seed: int = 0

    def network(self) -> PolynomialModel:
        """Return an untrained network, drawn from the seed."""
        torch.manual_seed(self.seed)
        return PolynomialModel(
            PolynomialConfig(
                vocab_size=1,
                n_positions=2 * self.points,
                n_embd=self.width,
                n_layer=self.layers,
                n_head=self.heads,
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def prompts(self, count: int, seed: int) -> torch.Tensor:
        """Draw prompts of the training distribution."""
        return torch.from_numpy(sample_prompts(count, seed, num_points=self.points))


@torch.no_grad()
def evaluate(model: PolynomialModel, recipe: Recipe, num_prompts: int = 1000) -> float:
    """Mean squared error from the fourth point on, on fresh prompts of the training distribution."""
    prompts = recipe.prompts(num_prompts, EVALUATION_SEED).to(model.device)
    error = model(prompts).logits - prompts[:, 1::2]
    return float(error[:, PolynomialRegression.FIRST_SCORED_POINT :].square().mean())


def train(recipe: Recipe, output: Path, log: Path, device: str = "cpu") -> None:
    """Train on a device, evaluating and saving every 500 steps."""
    model = recipe.network().to(device).train()
    descent = Descent(model, recipe)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as lines:
        settings = {
            **asdict(recipe),
            "num_threads": torch.get_num_threads(),
            **({} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "parameters": model.num_parameters(),
        }
        lines.write(json.dumps(settings) + "\n")
        for step in range(recipe.steps):
            prompts = recipe.prompts(recipe.batch_size, recipe.seed * 10**7 + step)
            loss = descent.step({"values": prompts, "labels": prompts[:, 1::2]})
            if (step + 1) % EVERY == 0 or step + 1 == recipe.steps:
                row = {
                    "step": step + 1,
                    "training_loss": round(loss.item(), 6),
                    "evaluation_mse": round(evaluate(model, recipe), 6),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                click.echo(row)
                model.save_pretrained(output)


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=Recipe.steps, show_default=True)
@click.option("--batch-size", default=Recipe.batch_size, show_default=True)
@click.option("--learning-rate", default=Recipe.learning_rate, show_default=True)
@click.option("--warmup", default=Recipe.warmup, show_default=True, help="Linear warm-up steps.")
@click.option("--layers", default=Recipe.layers, show_default=True)
@click.option("--width", default=Recipe.width, show_default=True)
@click.option("--heads", default=Recipe.heads, show_default=True)
@click.option("--points", default=Recipe.points, show_default=True, help="Points of a prompt.")
@click.option("--seed", default=Recipe.seed, show_default=True)
@click.option("--num-threads", default=1, show_default=True)
@click.option("--log", type=click.Path(path_type=Path), default=Path(__file__).parent / "training.jsonl")
def main(output: Path, num_threads: int, log: Path, **settings: float) -> None:
    """Train by the options."""
    torch.set_num_threads(num_threads)
    train(Recipe(**settings), output, log)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
