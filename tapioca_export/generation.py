"""Graphs with a cache of keys and values: what they take beside a task's inputs, and how they generate.

Names are those of the ecosystem: `past_key_values.N.key` goes in, `present.N.key` comes out, and so do
values; N counts the layers of the file from 0. Knows nothing about PyTorch, nor about who runs a graph.

Shapes: B sequences, T tokens, P tokens cached, A key-value heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .bars import progress_bar
from .errors import BenchmarkError
from .samples import Samples
from .tasks import Batch, Inputs, Processor, Scores, Task

PAST, PRESENT = "past_key_values", "present"
POSITIONS, LOGITS = "position_ids", "logits"
# An encoder-decoder's graphs.
DECODER_FILES = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
# Of an input that holds cached keys or values of one layer: A and D.
CacheShapes = Mapping[str, tuple[int, int]]
SCORING_BATCH_SIZE = 32  # sequences: a row takes one an answer
# Runs a graph, or a model's graphs as one; takes and returns arrays by name.
Session = Callable[[Inputs], Mapping[str, np.ndarray]]


def present_name(past: str) -> str:
    """Return the output that becomes the input `past` of the next step."""
    return PRESENT + past.removeprefix(PAST)


def with_positions(inputs: Inputs, wanted: Iterable[str]) -> Inputs:
    """Add each token's position, counted from the first real one, where a graph wants them."""
    if POSITIONS in inputs or POSITIONS not in wanted:
        return inputs
    counted = np.maximum(inputs["attention_mask"].cumsum(axis=1) - 1, 0)
    return {**inputs, POSITIONS: counted[:, -inputs["input_ids"].shape[1] :]}


def with_cache(
    inputs: Inputs,
    shapes: CacheShapes,
    num_cached: int = 0,
    num_encoded: int = 0,
    dtype: npt.DTypeLike = np.float32,
) -> Inputs:
    """Add a cache of `num_cached` tokens that are all zeros; with none, generation begins.

    Beside it may stand that of an encoder, of `num_encoded` states. Who runs a graph gives it the number
    type that it asks for; `dtype` saves that where there is much to convert.
    """
    size = len(next(iter(inputs.values())))
    past = {
        name: np.zeros((size, heads, num_encoded if ".encoder." in name else num_cached, width), dtype)
        for name, (heads, width) in shapes.items()
    }
    return {**inputs, **past}


def first_step(inputs: Inputs) -> Inputs:
    """Return the inputs of the step that reads a prompt: a decoder beside an encoder begins with a token."""
    return {name: value[:, :1] if name.startswith("decoder_") else value for name, value in inputs.items()}


def one_token_step(
    inputs: Inputs,
    shapes: CacheShapes,
    lengths: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Inputs:
    """Return the inputs of a later step: one token a sequence, and others cached.

    Args:
        inputs: What a model reads at first.
        shapes: The cache inputs.
        lengths: States of an encoder, and tokens, that are cached (default: T, as `inputs` have).
        dtype: Of the cache.
    """
    size, length = next(iter(inputs.values())).shape[:2]
    if "decoder_input_ids" in inputs:
        num_encoded, num_cached = lengths or (length, length)
        return with_cache(first_step(inputs), shapes, num_cached, num_encoded, dtype)
    step = {
        "input_ids": inputs["input_ids"][:, -1:],
        "attention_mask": np.concatenate([inputs["attention_mask"], np.ones((size, 1), np.int64)], axis=1),
    }
    return with_cache(with_positions(step, [POSITIONS]), shapes, length, dtype=dtype)


def cache_bytes(shapes: CacheShapes, bytes_per_value: int) -> int:
    """Return the bytes that a cache takes for one token of one sequence."""
    return sum(heads * width for heads, width in shapes.values()) * bytes_per_value


def as_one(sessions: Sequence[Session], shapes: CacheShapes) -> Session:
    """Return what runs a model's graphs as if they were one, from a task's inputs to outputs.

    Args:
        sessions: A graph alone; or encoder, first decoder step and further steps, which are taken where
            the inputs hold a cache.
        shapes: The cache inputs; of a graph alone, they are empty where they are not given.
    """

    def alone(inputs: Inputs) -> Mapping[str, np.ndarray]:
        return sessions[0](with_cache(inputs, shapes) if shapes.keys() - inputs.keys() else inputs)

    def divided(inputs: Inputs) -> Mapping[str, np.ndarray]:
        encoder, first, further = sessions
        step = {"input_ids": inputs["decoder_input_ids"]}
        if "attention_mask" in inputs:
            step["encoder_attention_mask"] = inputs["attention_mask"]
        if shapes.keys() <= inputs.keys():
            return further({**step, **{name: inputs[name] for name in shapes}})
        return first({**step, "encoder_hidden_states": encoder(inputs)["last_hidden_state"]})

    return alone if len(sessions) == 1 else divided


def generate(
    run: Session, prompts: Inputs, shapes: CacheShapes, num_tokens: int, ends: Sequence[int] = ()
) -> np.ndarray:
    """Generate greedily, each token after the prompt's with one step on what is cached.

    Args:
        run: Runs the model, all its graphs as one.
        prompts: `input_ids` and `attention_mask`, (B, T), padded on the left; for an encoder-decoder what
            it reads, and `decoder_input_ids` to begin with.
        shapes: The cache inputs.
        num_tokens: Tokens to generate.
        ends: Tokens that end a sequence; once all have ended, no more is generated.

    Returns:
        Token ids, (B, num_tokens), or fewer where all have ended; what stands behind an end means nothing.
    """
    steps = _steps(run, prompts, shapes)
    logits, tokens = next(steps), []
    while True:
        tokens.append(logits.argmax(axis=-1)[:, None])
        made = np.concatenate(tokens, axis=1)
        if len(tokens) == num_tokens or np.isin(made, ends).any(axis=1).all():
            return made
        logits = steps.send(tokens[-1])


def step_logits(run: Session, prompts: Inputs, shapes: CacheShapes, tokens: np.ndarray) -> np.ndarray:
    """Return what each step of `generate` says if the steps before gave these tokens, whatever they chose.

    Args:
        run: Runs the model, all its graphs as one.
        prompts: As for `generate`.
        shapes: The cache inputs.
        tokens: What follows each prompt, (B, K).

    Returns:
        Logits (B, K, V), float32: of each of the tokens, those that it would be chosen by.
    """
    steps = _steps(run, prompts, shapes)
    found = [next(steps), *(steps.send(tokens[:, place : place + 1]) for place in range(tokens.shape[1] - 1))]
    return np.stack(found, axis=1).astype(np.float32)


def _steps(run: Session, prompts: Inputs, shapes: CacheShapes) -> Generator[np.ndarray, np.ndarray, None]:
    """Yield the logits of the next tokens, (B, V), and take these tokens, (B, 1), without end."""
    divided = "decoder_input_ids" in prompts
    inputs = dict(prompts)
    if not divided:
        inputs = with_positions(with_cache(inputs, shapes), [POSITIONS])
    while True:
        found = run(inputs)
        ids = yield found[LOGITS][:, -1]
        # What the encoder gave is the same in every step, and comes out of the first only.
        new = {name: present_name(name) for name in shapes}
        past = {name: found[out] if out in found else inputs[name] for name, out in new.items()}
        if divided:
            inputs = {**inputs, "decoder_input_ids": ids, **past}
        else:
            mask = np.concatenate([inputs["attention_mask"], np.ones_like(ids)], axis=1)
            inputs = with_positions({"input_ids": ids, "attention_mask": mask}, [POSITIONS]) | past


@dataclass(frozen=True)
class Evaluation:
    """Labelled rows that exported models are scored on, in batches that are the same for all of them.

    Args:
        task: Encodes the rows, and scores what comes out.
        samples: The rows.
        processor: What the encoding needs.
    """

    task: Task
    samples: Samples
    processor: Processor

    @cached_property
    def batches(self) -> list[np.ndarray]:
        """The indices of each batch's rows."""
        num_rows = max(1, SCORING_BATCH_SIZE // self.task.num_answers(self.samples))
        return self.task.length_sorted(self.samples, self.processor, num_rows)

    def score(self, run: Session, shapes: CacheShapes, batches: Sequence[np.ndarray] | None = None) -> Scores:
        """Score a model on some of the batches (default: all); returns scores in the samples' order.

        Args:
            run: Runs the model, all its graphs as one.
            shapes: The cache inputs.
            batches: Which.

        Raises:
            BenchmarkError: If the batch axis is not dynamic, or answers are written and nothing is cached.
        """
        found = self._found(run, shapes, self.batches if batches is None else batches)
        return Scores.joined([(rows, self._scored(outputs, rows)) for rows, outputs in found])

    def answer(self, run: Session, shapes: CacheShapes) -> tuple[Scores, list[str | None]]:
        """Score a model on all rows, and put what it answers into words, None where the task has none.

        Args:
            run: Runs the model, all its graphs as one.
            shapes: The cache inputs.

        Raises:
            BenchmarkError: As `score` does.
        """
        parts, said = [], dict[int, str | None]()
        for indices, outputs in self._found(run, shapes, self.batches):
            parts.append((indices, self._scored(outputs, indices)))
            words = self.task.answers_by_domain(outputs, self.samples, indices, self.processor)
            said |= dict(zip(indices.tolist(), words, strict=True))
        return Scores.joined(parts), [said[row] for row in sorted(said)]

    def _scored(self, outputs: np.ndarray, rows: np.ndarray) -> Scores:
        return self.task.score_by_domain(outputs, self.samples, rows)

    def _found(
        self, run: Session, shapes: CacheShapes, batches: Sequence[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of each batch, and what a model says of them that `Task.score` takes."""
        total = sum(map(len, batches))
        with progress_bar(total=total, desc=f"Scoring {self.samples.role}", unit="row") as progress:
            for indices in batches:
                batch = self.task.batch(self.samples, indices, self.processor)
                yield batch.indices, _found(run, self.task, batch, shapes)
                progress.update(len(batch))


def _found(run: Session, task: Task, batch: Batch, shapes: CacheShapes) -> np.ndarray:
    """Return what an exported model says of a batch that `Task.score` takes."""
    found = run(batch.inputs)
    logits = task.joined([np.asarray(found[name], np.float32) for name in task.outputs])
    num_sequences = len(next(iter(batch.inputs.values())))
    if len(logits) != num_sequences:
        raise BenchmarkError(
            f"The file gives {len(logits)} rows for a batch of {num_sequences}.",
            "Export with a dynamic batch axis.",
        )
    evidence = task.evidence(logits, batch)
    if (wanted := batch.continuation) is None:
        return evidence
    if not shapes:
        raise BenchmarkError(
            "The file has no cache, and answers are written with one.", "Benchmark the ONNX exports."
        )
    prompts, most = wanted.inputs(batch.inputs), int(wanted.limits.max())
    return wanted.joined(evidence, generate(run, prompts, shapes, most, wanted.ends))
