"""Proof that a file computes what PyTorch computes, on the user's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ParityError, first_line
from ..generation import Session, first_step, generate, with_positions
from ..models import LoadedModel, generated, reference_logits
from ..samples import Row, Samples
from ..tasks import Inputs
from .formats import Written

# Batches of the user's rows that parity is checked on beside the shortest and the longest, by number of rows.
MIXED_BATCHES = (2, 3, 8, 8)
# Prompts that are continued, and by how many tokens.
PROMPTS, TOKENS = 4, 64
_UNUSABLE = "The file is not usable. Try another --format or --opset"


def prove_outputs(
    model: LoadedModel, samples: Samples, run: Session, written: Written, tolerance: float
) -> dict[str, Any]:
    """Compare file and model on the user's rows; returns the fields of the proof.

    Raises:
        ParityError: If an output is off by more than the tolerance, or a label changes.
    """
    task = model.task
    worst, shapes, sides, num_compared, agreeing = 0.0, [], [], 0, 0.0
    for side, inputs in parity_batches(model, samples):
        batch = with_positions(inputs, written.inputs)
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
                f"outputs differ by {difference:.2g} (tolerance {tolerance:.2g}), labels agree on "
                f"{agreement:.0%} of the rows, at batch {' x '.join(map(str, shape))} values, padded {side}.",
                f"{_UNUSABLE}; raise --atol only if you know why.",
            )
        worst = max(worst, difference)
        shapes.append(tuple(map(int, shape)))
        sides.append(side)
        num_compared += shape[0]
        agreeing += agreement * shape[0]
    return {
        "max_abs_difference": worst,
        "label_agreement": agreeing / num_compared,
        "rows_checked": len({id(row) for rows in _parity_rows(model, samples) for row in rows}),
        "shapes_checked": tuple(dict.fromkeys(shapes)),
        "padding_checked": tuple(dict.fromkeys(sides)),
    }


def prove_generation(model: LoadedModel, samples: Samples, run: Session, written: Written) -> dict[str, Any]:
    """Continue prompts greedily, padded on the left, by file and by PyTorch's own `generate`.

    Prompts are the ends of rows: half of what the model takes is left to what is generated, if not more.

    Returns:
        How many prompts were continued, and by how many tokens.

    Raises:
        ParityError: If a token differs.
    """
    limit = model.processor.max_answer or model.processor.max_length
    divided = model.network.config.is_encoder_decoder
    num_tokens = min(TOKENS, limit - 1 if divided else limit // 2)
    order = np.random.default_rng(0).permutation(len(samples))
    chosen = [samples.rows[i] for i in np.resize(order, PROMPTS)]
    prompts = first_step(model.task.encode(chosen, model.processor, "left"))
    prompts = padded_on_the_left(prompts, model.processor.max_length if divided else limit - num_tokens)
    expected = generated(model, prompts, num_tokens)
    actual = generate(run, prompts, written.cache, num_tokens)
    if not np.array_equal(expected, actual):
        row, place = np.argwhere(expected != actual)[0]
        raise ParityError(
            f"it generates other tokens than PyTorch: token {place + 1} of {num_tokens} after "
            f"{chosen[row].where} is {actual[row, place]}, not {expected[row, place]}.",
            f"{_UNUSABLE}.",
        )
    return {"prompts_continued": PROMPTS, "tokens_generated": num_tokens}


def padded_on_the_left(prompts: Inputs, longest: int) -> Inputs:
    """Cut prompts to their last `longest` tokens, and hide half of one where none has padding else."""
    mask = prompts.get("attention_mask")
    if mask is None:  # a spectrogram, say, of one length always
        return prompts
    texts = [
        name for name, value in prompts.items() if value.shape == mask.shape and name != "decoder_input_ids"
    ]
    cut = {name: prompts[name][:, -longest:] for name in texts}
    if mask.shape[1] == 1 < longest:
        cut = {name: np.tile(value, 2) for name, value in cut.items()}
    mask = cut["attention_mask"].copy()
    if mask.all():
        mask[0, : mask.shape[1] // 2] = 0
    return {**prompts, **cut, "attention_mask": mask}


def parity_batches(model: LoadedModel, samples: Samples) -> Iterator[tuple[str, Inputs]]:
    """Yield (padding side, inputs): shortest, longest and mixed rows, one and several at a time."""
    for chosen in _parity_rows(model, samples):
        sides = ("none",) if len(chosen) == 1 else model.task.padding_sides
        for side in sides:
            inputs = model.task.encode(chosen, model.processor, None if side == "none" else side)
            yield side, inputs
            if model.task.is_prompt:  # rows of one length: check a shorter one as well
                half = next(iter(inputs.values())).shape[1] // 4 * 2
                yield side, {name: values[:, :half] for name, values in inputs.items()}


def _parity_rows(model: LoadedModel, samples: Samples) -> list[list[Row]]:
    """Return the rows of each batch; where there are few, they stand in several."""
    order = np.argsort(model.task.lengths(samples.rows, model.processor), kind="stable")
    rows = [samples.rows[i] for i in order]
    # Short and long rows meet in a batch, so that padding occurs.
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    found, start = [rows[:1], rows[-1:]], 0
    for size in MIXED_BATCHES:
        found.append([mixed[(start + i) % len(mixed)] for i in range(size)])
        start += size
    return found
