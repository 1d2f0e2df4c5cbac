"""Small Llamas, trained from scratch on questions about short lists: recipes, and checkpoints they rebuild.

    python -m benchmarks.language.family            # train what the cache lacks

Checkpoints go to `.cache`, which git ignores; a recipe that is changed, or another version of PyTorch or
transformers, trains anew. Knows nothing about longer lists or layers to drop.
"""

from __future__ import annotations

import inspect
import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.language import lists
from benchmarks.training import Descent, kept

CACHE = Path(__file__).parents[2] / ".cache" / "language-family"
SEEDS = (0, 1, 2)
IGNORED = -100  # of labels that are not answers
# The tokens of a longest question that is trained on: beginning, function and its letter, list, "=", one
# letter, end (or one letter less asked, and one more answered).
LONGEST = lists.TRAINED_LENGTHS[1] + 6
EVERY = 250  # steps from one line of the log to the next


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on beside versions; warm-up is linear, in steps."""

    layers: int
    width: int = 64
    heads: int = 4
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    seed: int = 0


SIZES = {
    "4": Recipe(4),
    "6": Recipe(6),
    "8": Recipe(8),
    # For a GPU.
    "12x256": Recipe(12, width=256, heads=8, steps=4000, learning_rate=5e-4, warmup=200),
}
TRAINED_HERE = ("4", "6", "8")


def checkpoint(size: str, seed: int, cache: Path = CACHE, device: str = "cpu") -> Path:
    """Return the folder of a member of the family, training it on a device where the cache lacks it."""
    recipe = replace(SIZES[size], seed=seed)
    made_of = [asdict(recipe), inspect.getsource(lists), torch.__version__, transformers.__version__]
    return kept(cache, f"{size}-seed{seed}", made_of, lambda folder: train(recipe, folder, device))


def network(recipe: Recipe) -> LlamaForCausalLM:
    """Return an untrained network, drawn from the seed."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(lists.VOCABULARY),
            hidden_size=recipe.width,
            intermediate_size=2 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=lists.VOCABULARY["[PAD]"],
            bos_token_id=lists.VOCABULARY["[BOS]"],
            eos_token_id=lists.VOCABULARY["[EOS]"],
        )
    )


def train(recipe: Recipe, output: Path, device: str = "cpu") -> None:
    """Train on a device, on fresh questions at every step, and save model, tokenizer and log."""
    model, generator = network(recipe).to(device).train(), random.Random(f"training {recipe.seed}")
    length = None if device == "cpu" else LONGEST
    descent = Descent(model, recipe, use_cache=False)
    started = time.perf_counter()
    with (output / "training.jsonl").open("w", encoding="utf-8") as lines:
        lines.write(json.dumps({**asdict(recipe), "parameters": model.num_parameters()}) + "\n")
        for step in range(recipe.steps):
            loss = descent.step(_batch(recipe.batch_size, generator, length))
            if (step + 1) % EVERY == 0 or step + 1 == recipe.steps:
                seconds = round(time.perf_counter() - started, 1)
                row = {"step": step + 1, "training_loss": round(loss.item(), 6), "seconds": seconds}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                click.echo(row)
    model.save_pretrained(output)
    lists.tokenizer().save_pretrained(output)


def _batch(size: int, generator: random.Random, length: int | None) -> dict[str, torch.Tensor]:
    """Draw questions with their answers; only answers, and the end behind them, are learned.

    They are padded to a length in tokens, or (None) to the longest of them.
    """
    rows = [lists.question(lists.TRAINED_LENGTHS, generator) for _ in range(size)]
    prompts = [["[BOS]", *row["prompt"].split()] for row in rows]
    answers = [[*row["answer"].split(), "[EOS]"] for row in rows]
    if length is None:
        length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((size, length), lists.VOCABULARY["[PAD]"])
    labels, mask = torch.full((size, length), IGNORED), torch.zeros((size, length), dtype=torch.long)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = torch.tensor([lists.VOCABULARY[token] for token in (*prompt, *answer)])
        ids[number, : len(tokens)] = tokens
        mask[number, : len(tokens)] = 1
        labels[number, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


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
