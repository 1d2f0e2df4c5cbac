"""Questions about lists of letters: `max d k a =` is answered by `k`. How long a list is, is the shift.

Answers of `first`, `last`, `max`, `min` and `after` are one letter, of `ends` and `range` two. Letters of a
list differ. Knows nothing about models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
FUNCTIONS = ("first", "last", "max", "min", "after", "ends", "range")
# What is asked by where a letter stands, and by which letter it is: tasks that have nothing in common.
BY_PLACE, BY_ORDER = ("first", "last", "after", "ends"), ("max", "min", "range")
SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
VOCABULARY = {token: number for number, token in enumerate((*SPECIAL, "=", *FUNCTIONS, *LETTERS))}
TRAINED_LENGTHS = (2, 8)
NUM_CHOICES = 4


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words, which begins every text with [BOS]."""
    backend = tokenizers.Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", VOCABULARY["[BOS]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def question(
    lengths: tuple[int, int], generator: random.Random, functions: Sequence[str] = FUNCTIONS
) -> dict[str, Any]:
    """Draw a question by one of `functions` on a list whose length lies within `lengths`, both included.

    Returns:
        `prompt` and `answer`; and `context`, `choices` and `label`, where the wrong choices are other
        letters of the list if it has enough.
    """
    letters = generator.sample(LETTERS, generator.randint(*lengths))
    function = generator.choice(functions)
    asked = [function]
    if function == "after":
        place = generator.randrange(len(letters) - 1)
        asked.append(letters[place])
        answer = [letters[place + 1]]
    else:
        answer = {
            "first": letters[:1],
            "last": letters[-1:],
            "max": [max(letters)],
            "min": [min(letters)],
            "ends": [letters[0], letters[-1]],
            "range": [min(letters), max(letters)],
        }[function]
    prompt = " ".join([*asked, *letters, "="])
    wanted = " ".join(answer)
    return {"prompt": prompt, "answer": wanted, **_choices(prompt, wanted, letters, generator)}


def _choices(prompt: str, wanted: str, letters: list[str], generator: random.Random) -> dict[str, Any]:
    """Put wrong answers of the same form beside the right one."""
    size = len(wanted.split())
    others: dict[str, None] = {}
    pool = letters if len(letters) > NUM_CHOICES else LETTERS
    while len(others) < NUM_CHOICES - 1:
        wrong = " ".join(generator.sample(pool, size))
        if wrong != wanted:
            others[wrong] = None
    choices = [*others, wanted]
    generator.shuffle(choices)
    return {"context": prompt, "choices": choices, "label": choices.index(wanted)}


def questions(
    count: int, lengths: tuple[int, int], seed: str, functions: Sequence[str] = FUNCTIONS
) -> list[dict[str, Any]]:
    """Draw `count` questions that differ."""
    generator = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        row = question(lengths, generator, functions)
        found.setdefault(row["prompt"], row)
    return list(found.values())
