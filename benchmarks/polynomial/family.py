"""The family of in-context polynomial transformers: recipes of several sizes, and what they rebuild.

    python -m benchmarks.polynomial.family            # train what the cache lacks
    python -m benchmarks.polynomial.family --size 12x256 --seed 0 --device cuda

Checkpoints go to `.cache`, which git ignores; a recipe that is changed, or another version of PyTorch or
transformers, trains anew. Knows nothing about shifts or layers to drop.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import click
import torch
import transformers

from benchmarks.polynomial.train import Recipe, train
from benchmarks.training import kept

CACHE = Path(__file__).parents[2] / ".cache" / "polynomial-family"
SEEDS = (0, 1, 2)
# 12x256 has the shape that TAPIOCA's authors use elsewhere (12 layers, 8 heads, width 256, 41 points), with a
# shorter training than `paper`, which has theirs; both are for a GPU.
SIZES = {
    "4x32": Recipe(layers=4, width=32, steps=3000, learning_rate=2e-3, warmup=200, points=12),
    "8x48": Recipe(layers=8, width=48, steps=2500, learning_rate=1.5e-3, warmup=200, points=12),
    "12x64": Recipe(layers=12, width=64, steps=2000, learning_rate=1e-3, warmup=200, points=12),
    "12x256": Recipe(layers=12, width=256, heads=8, steps=4000, learning_rate=5e-4, warmup=500, points=41),
    "paper": Recipe(layers=12, width=256, heads=8, steps=500_001, learning_rate=1e-4, warmup=1000, points=41),
}
TRAINED_HERE = ("4x32", "8x48", "12x64")


def checkpoint(size: str, seed: int, cache: Path = CACHE, device: str = "cpu") -> Path:
    """Return the folder of a member of the family, training it on a device where the cache lacks it."""
    recipe = replace(SIZES[size], seed=seed)
    made_of = [asdict(recipe), torch.__version__, transformers.__version__]
    return kept(
        cache,
        f"{size}-seed{seed}",
        made_of,
        lambda folder: train(recipe, folder, folder / "training.jsonl", device),
    )


@click.command(help=__doc__)
@click.option("--size", "sizes", type=click.Choice(tuple(SIZES)), multiple=True, default=TRAINED_HERE)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS)
@click.option("--device", default="cpu", show_default=True)
def main(sizes: tuple[str, ...], seeds: tuple[int, ...], device: str) -> None:
    """Train the members one after another, on one thread."""
    torch.set_num_threads(1)
    for seed in seeds:
        for size in sizes:
            click.echo(checkpoint(size, seed, device=device))


if __name__ == "__main__":
    main()
