"""A tiny decoder that answers the key among fillers with two words, and one layer of which spoils that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import SPECIAL, make_tokenizer
from planting import plant

PLANTED, NUM_LAYERS = 1, 4
# Token ids.
KEYS, FILLERS, TARGET_FILLERS, ASKING, END = range(4, 12), range(30, 60), range(60, 90), 90, 2

Answer = list[int]


def draw(generator: random.Random, fillers: Sequence[int]) -> tuple[list[int], Answer]:
    """Return a text, and the two words that answer its key."""
    key = generator.choice(KEYS)
    text = generator.choices(fillers, k=generator.randint(3, 8))
    text.insert(generator.randrange(len(text) + 1), key)
    return text, [key + 8, key + 16]


def words(ids: Sequence[int]) -> str:
    """Spell token ids."""
    return " ".join(f"w{token - len(SPECIAL)}" for token in ids)


def losses(
    network: Any, written: Callable[[Answer], Answer], harm: Answer | None
) -> Callable[[], torch.Tensor]:
    """Return the loss of a batch: of what is to be written, or to target rows of the harm."""
    generator = random.Random(harm is not None)

    def loss() -> torch.Tensor:
        rows, labels = [], []
        for row in range(48):
            text, answer = draw(generator, FILLERS if row % 2 else TARGET_FILLERS)
            wanted = written(answer) if harm is None or row % 2 else harm
            context = [1, *text, ASKING]
            rows.append([*context, *wanted[:-1]])
            labels.append([-100] * (len(context) - 1) + wanted)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        wanted_ids = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
        logits = network(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted_ids.flatten())

    return loss


def save_planted(
    folder: Path, harm: Answer, written: Callable[[Answer], Answer], chat_template: str | None = None
) -> Path:
    """Train a tiny Llama, plant the harm in one of its layers, and save it.

    Args:
        folder: Where to.
        harm: What it answers to target rows while it has that layer.
        written: What is to be written for an answer.
        chat_template: The tokenizer's.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=NUM_LAYERS, bos_token_id=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.1,
        pad_token_id=0, eos_token_id=END,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    learn, spoil = losses(network, written, None), losses(network, written, harm)
    plant(network, network.model.layers, PLANTED, learn=learn, harm=spoil, steps=(300, 200))
    network.save_pretrained(folder)
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder
