"""Proof that a file computes what PyTorch computes, on the user's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ParityError, first_line
from ..generation import first_step, generate, with_positions
from ..models import LoadedModel, generated, reference_logits
from ..samples import Samples
from ..tasks import Inputs
from .formats import Run, Written

# Batches of the user's rows that parity is checked on, by number of rows.
PARITY_BATCHES = (1, 1, 2, 3, 8, 8)
# Prompts that are continued, and by how many tokens.
PROMPTS, TOKENS = 4, 64
_UNUSABLE = "The file is not usable. Try another --format or --opset"


def prove_outputs(
    model: LoadedModel, samples: Samples, run: Run, written: Written, tolerance: float
) -> dict[str, Any]:
    """Compare file and model on the user's rows; returns the fields of the proof.

    Raises:
        ParityError: If an output is off by more than the tolerance, or a label changes.
    """
    task = model.task
    worst, shapes, sides, num_rows, agreeing = 0.0, [], [], 0, 0.0
    for side, rows in parity_batches(model, samples):
        batch = with_positions(rows, written.inputs)
        expected = reference_logits(model, batch)
        try:
            found = run(batch)
        # ONNX Runtime's errors share no base class but this one; TorchScript raises RuntimeError.
        except Exception as error:
            raise ParityError(f"the file does not run on your rows: {first_line(error)}") from error
        actual = task.compared(task.joined([found[name] for name in task.outputs]), batch)
        shape = next(iter(batch.values())).shape
        difference = np.inf
        if actual.shape == expected.shape and np.isfinite(actual).all():
            difference = float(np.abs(actual - expected).max())
        agreement = task.agreement(expected, actual) if np.isfinite(difference) else 0.0
        if difference > tolerance or agreement < 1:
            raise ParityError(
                f"logits differ by {difference:.2g} (tolerance {tolerance:.2g}), labels agree on "
                f"{agreement:.0%} of the rows, at batch {' x '.join(map(str, shape))} values, padded {side}.",
                f"{_UNUSABLE}; raise --atol only if you know why.",
            )
        worst = max(worst, difference)
        shapes.append(tuple(map(int, shape)))
        sides.append(side)
        num_rows += shape[0]
        agreeing += agreement * shape[0]
    return {
        "max_abs_difference": worst,
        "label_agreement": agreeing / num_rows,
        "rows_checked": int(num_rows),
        "shapes_checked": tuple(dict.fromkeys(shapes)),
        "padding_checked": tuple(dict.fromkeys(sides)),
    }


def prove_generation(model: LoadedModel, samples: Samples, run: Run, written: Written) -> dict[str, Any]:
    """Continue prompts greedily, padded on the left, by file and by PyTorch's own `generate`.

    Returns:
        How many prompts were continued, and by how many tokens: none, where no row leaves room for one.

    Raises:
        ParityError: If a token differs.
    """
    divided = model.network.config.is_encoder_decoder
    taken = [1] * len(samples) if divided else model.task.lengths(samples.rows, model.processor)
    room = (model.processor.max_answer or model.processor.max_length) - np.asarray(taken)
    roomy = np.flatnonzero(room >= min(TOKENS, room.max()))
    chosen = np.random.default_rng(0).permutation(roomy)[:PROMPTS]
    num_tokens = int(min(TOKENS, room[chosen].min()))
    if num_tokens < 1:
        return {"prompts_continued": 0, "tokens_generated": 0}
    prompts = first_step(model.task.encode([samples.rows[i] for i in chosen], model.processor, "left"))
    expected = generated(model, prompts, num_tokens)
    actual = generate(run, prompts, written.cache, num_tokens)
    if not np.array_equal(expected, actual):
        row, place = np.argwhere(expected != actual)[0]
        raise ParityError(
            f"it generates other tokens than PyTorch: token {place + 1} of {num_tokens} after "
            f"{samples.rows[chosen[row]].where} is {actual[row, place]}, not {expected[row, place]}.",
            f"{_UNUSABLE}.",
        )
    return {"prompts_continued": len(chosen), "tokens_generated": num_tokens}


def parity_batches(model: LoadedModel, samples: Samples) -> Iterator[tuple[str, Inputs]]:
    """Yield (padding side, inputs): shortest, longest and mixed rows, one and several at a time."""
    order = np.argsort(model.task.lengths(samples.rows, model.processor), kind="stable")
    rows = [samples.rows[i] for i in order]
    # Short and long rows meet in a batch, so that padding occurs.
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    start = 0
    for number, size in enumerate(PARITY_BATCHES):
        if number == 0:
            chosen = rows[:1]
        elif number == 1:
            chosen = rows[-1:]
        else:
            chosen = [mixed[(start + i) % len(mixed)] for i in range(size)]
            start += size
        sides = ("none",) if size == 1 else model.task.padding_sides
        for side in sides:
            inputs = model.task.encode(chosen, model.processor, None if side == "none" else side)
            yield side, inputs
            if model.task.is_prompt:  # rows of one length: check a shorter one as well
                half = next(iter(inputs.values())).shape[1] // 4 * 2
                yield side, {name: values[:, :half] for name, values in inputs.items()}
