"""Train the embedded example and write its weights and its log.

    python benchmarks/polynomial/train.py --output tapioca_export/polynomial_weights

Every step draws fresh prompts of the training distribution (all scales 1); no shifted prompt is
ever trained on or looked at. The log, `training.jsonl` beside this script, holds the settings in
its first line and an evaluation on fresh prompts of the training distribution in every other.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import click
import torch
import transformers

from tapioca_export.polynomial import (
    NUM_POINTS,
    PolynomialConfig,
    PolynomialModel,
    sample_prompts,
)
from tapioca_export.tasks import PolynomialRegression

EVALUATION_SEED = 10**6  # training uses seeds from 0 up, one a step


@torch.no_grad()
def evaluate(model: PolynomialModel, num_prompts: int = 1000) -> float:
    """Mean squared error from the fourth point on, on fresh prompts of the training distribution."""
    prompts = torch.from_numpy(sample_prompts(num_prompts, EVALUATION_SEED))
    error = model(prompts).logits - prompts[:, 1::2]
    return float(error[:, PolynomialRegression.FIRST_SCORED_POINT :].square().mean())


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=12000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--warmup", default=1000, show_default=True, help="Linear warm-up steps.")
@click.option("--layers", default=12, show_default=True)
@click.option("--width", default=64, show_default=True)
@click.option("--heads", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--num-threads", default=1, show_default=True)
@click.option("--log", type=click.Path(path_type=Path), default=Path(__file__).parent / "training.jsonl")
def train(output, steps, batch_size, learning_rate, warmup, layers, width, heads, seed, num_threads, log):
    """Train, evaluating and saving every 500 steps."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    config = PolynomialConfig(
        vocab_size=1,
        n_positions=2 * NUM_POINTS,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = PolynomialModel(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as lines:
        settings = dict(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=warmup,
            layers=layers,
            width=width,
            heads=heads,
            seed=seed,
            num_threads=num_threads,
            torch=torch.__version__,
            transformers=transformers.__version__,
            parameters=model.num_parameters(),
        )
        lines.write(json.dumps(settings) + "\n")
        for step in range(steps):
            prompts = torch.from_numpy(sample_prompts(batch_size, seed * 10**7 + step))
            loss = model(prompts, labels=prompts[:, 1::2]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            if (step + 1) % 500 == 0 or step + 1 == steps:
                row = dict(
                    step=step + 1,
                    training_loss=round(loss.item(), 6),
                    evaluation_mse=round(evaluate(model), 6),
                    seconds=round(time.perf_counter() - started, 1),
                )
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                click.echo(row)
                model.save_pretrained(output)


if __name__ == "__main__":
    train()
