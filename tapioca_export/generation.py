"""Graphs with a cache of keys and values: what they take beside a task's inputs, and how they generate.

Names are those of the ecosystem: `past_key_values.N.key` goes in, `present.N.key` comes out, and so do
values; N counts the layers of the file from 0. Knows nothing about PyTorch, nor about who runs a graph.

Shapes: B sequences, T tokens, P tokens cached, A key-value heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from .tasks import Inputs

PAST, PRESENT = "past_key_values", "present"
POSITIONS = "position_ids"
# Of an input that holds cached keys or values of one layer: A and D.
CacheShapes = Mapping[str, tuple[int, int]]
# Runs a graph; takes and returns arrays by name.
Run = Callable[[Inputs], Mapping[str, np.ndarray]]


def present_name(past: str) -> str:
    """Return the output that becomes the input `past` of the next step."""
    return PRESENT + past.removeprefix(PAST)


def with_positions(inputs: Inputs, wanted: Iterable[str]) -> Inputs:
    """Add each token's position, counted from the first real one, where a graph wants them."""
    if POSITIONS in inputs or POSITIONS not in wanted:
        return inputs
    counted = np.maximum(inputs["attention_mask"].cumsum(axis=1) - 1, 0)
    return {**inputs, POSITIONS: counted[:, -inputs["input_ids"].shape[1] :]}


def with_cache(inputs: Inputs, shapes: CacheShapes, num_cached: int = 0) -> Inputs:
    """Add a cache of `num_cached` tokens that are all zeros; with none, generation begins."""
    size = len(inputs["input_ids"])
    past = {
        name: np.zeros((size, heads, num_cached, width), np.float32)
        for name, (heads, width) in shapes.items()
    }
    return {**inputs, **past}


def one_token_step(inputs: Inputs, shapes: CacheShapes) -> Inputs:
    """Return the inputs of the step that follows `inputs`, (B, T): one token each, T tokens cached."""
    ones = np.ones((len(inputs["input_ids"]), 1), dtype=np.int64)
    step = {
        "input_ids": inputs["input_ids"][:, -1:],
        "attention_mask": np.concatenate([inputs["attention_mask"], ones], axis=1),
    }
    return with_cache(with_positions(step, [POSITIONS]), shapes, inputs["input_ids"].shape[1])


def cache_bytes(shapes: CacheShapes, bytes_per_value: int = 4) -> int:
    """Return the bytes that a cache takes for one token of one sequence."""
    return sum(heads * width for heads, width in shapes.values()) * bytes_per_value


def generate(run: Run, prompts: Inputs, shapes: CacheShapes, num_tokens: int) -> np.ndarray:
    """Generate greedily, each token after the prompt's with one step on what is cached.

    Args:
        run: Runs the graph.
        prompts: `input_ids` and `attention_mask`, (B, T), padded on the left.
        shapes: The graph's cache inputs.
        num_tokens: Tokens to generate; nothing ends a sequence earlier.

    Returns:
        Token ids, (B, num_tokens).
    """
    mask, ids = prompts["attention_mask"], prompts["input_ids"]
    past = {name: value for name, value in with_cache(prompts, shapes).items() if name in shapes}
    tokens = []
    for _ in range(num_tokens):
        step = with_positions({"input_ids": ids, "attention_mask": mask}, [POSITIONS])
        found = run({**step, **past})
        past = {name: found[present_name(name)] for name in past}
        ids = found["logits"][:, -1].argmax(axis=-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        tokens.append(ids)
    return np.concatenate(tokens, axis=1)
