"""Proof that a file computes what PyTorch computes, on the user's rows.

Files in half precision are held against PyTorch in float32 too. How far they may be off is measured, not
set: PyTorch runs in the same precision on the same rows, and its own distance from float32 is what the
precision costs, whatever the model's depth and the size of its logits. A file may be `ALLOWANCE` times as
far off, as its sums run in another order, and always as far as one in float32 may. A fixed number does
not fit all models: the same graph script of ONNX Runtime for GPT-2 allows 0.2 on logits in float16, and
5e-4 in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BenchmarkError, ParityError, UnsupportedModelError, first_line, onnxruntime_errors
from ..generation import Session, first_step, step_logits, with_positions
from ..models import LoadedModel, generated, reference_logits
from ..precision import FULL, TOLERANCE
from ..samples import Row, Samples
from ..tasks import Inputs
from .formats import Written

# Batches of the user's rows that parity is checked on beside the shortest and the longest, by number of rows.
MIXED_BATCHES = (2, 3, 8, 8)
# Prompts that are continued, and by how many tokens.
PROMPTS, TOKENS = 4, 64
# In half precision: how often PyTorch's own distance from float32 a file may be off; and the least share of
# labels, and of tokens, that are those of float32. Those that differ are ties within the tolerance.
ALLOWANCE, LEAST_AGREEMENT = 2.0, 0.9
_UNUSABLE = "The file is not usable. Try another --format, --opset or --dtype"


@dataclass(frozen=True)
class Reference:
    """What a file is held against: PyTorch in float32, and how far it is from that in the file's precision.

    `same` is the model in the file's precision `dtype`; `tolerance` is the user's, if any. What a file that
    `is_lossy` computes has no limit but that, and, unless its `loss_is_known`, the labels must be those of
    float32 as often as in half precision.
    """

    exact: LoadedModel
    same: LoadedModel
    dtype: str = FULL
    tolerance: float | None = None
    is_lossy: bool = False
    loss_is_known: bool = False

    @property
    def is_half(self) -> bool:
        """Tell whether the file is in half precision."""
        return self.dtype != FULL

    def answers(self, inputs: Inputs) -> tuple[np.ndarray, float]:
        """Return PyTorch's outputs in float32, and how far its own in the file's precision are off.

        Raises:
            ParityError: If these are not finite.
            UnsupportedModelError: If those are not.
        """
        expected = reference_logits(self.exact, inputs)
        if not self.is_half:
            return expected, 0.0
        try:
            rounded = reference_logits(self.same, inputs)
        except UnsupportedModelError as error:
            raise ParityError(
                f"PyTorch itself computes no finite outputs in {self.dtype}: values leave its range.",
                "Export it with --dtype fp32.",
            ) from error
        return expected, float(np.abs(rounded - expected).max())

    def limit(self, own: float) -> float:
        """Return the largest difference allowed where PyTorch's own is `own`."""
        if self.tolerance is not None:
            return self.tolerance
        if self.is_lossy:
            return np.inf
        return max(TOLERANCE, ALLOWANCE * own) if self.is_half else TOLERANCE

    def limit_text(self, own: float) -> str:
        """Say what is allowed, and why."""
        half = f"; PyTorch's own in {self.dtype} is {own:.2g}" if self.is_half else ""
        limit = "no tolerance" if np.isinf(self.limit(own)) else f"tolerance {self.limit(own):.2g}"
        return f"{limit}{half}"

    @property
    def least_agreement(self) -> float:
        """The least share of labels, and of tokens, that are PyTorch's in float32."""
        if self.loss_is_known:
            return 0.0
        return LEAST_AGREEMENT if self.is_half or self.is_lossy else 1.0


@dataclass(frozen=True)
class _Compared:
    """One batch: how far file and PyTorch are off float32, and the share of labels that are the same."""

    shape: tuple[int, ...]
    side: str
    difference: float
    own: float
    agreement: float


def prove_outputs(reference: Reference, samples: Samples, run: Session, written: Written) -> dict[str, Any]:
    """Compare file and model on the user's rows; returns the fields of the proof.

    Raises:
        ParityError: If an output is off by more than the tolerance, or too many labels change.
    """
    model = reference.exact
    found = [
        _compare(reference, with_positions(inputs, written.inputs), side, run)
        for side, inputs in parity_batches(model, samples)
    ]
    worst = max(found, key=lambda batch: batch.difference)
    own = max(batch.own for batch in found)
    agreeing = sum(batch.agreement * batch.shape[0] for batch in found)
    agreement = agreeing / sum(batch.shape[0] for batch in found)
    is_within = worst.difference <= reference.limit(own) and np.isfinite(worst.difference)
    if not is_within or agreement < reference.least_agreement:
        raise ParityError(
            f"outputs differ by {worst.difference:.2g} ({reference.limit_text(own)}), labels agree on "
            f"{agreement:.0%} of the rows, at batch {' x '.join(map(str, worst.shape))} values, "
            f"padded {worst.side}.",
            f"{_UNUSABLE}; raise --atol only if you know why.",
        )
    return {
        "max_abs_difference": worst.difference,
        "pytorch_difference": own,
        "tolerance": reference.limit(own),
        "label_agreement": agreement,
        "rows_checked": len({id(row) for rows in _parity_rows(model, samples) for row in rows}),
        "shapes_checked": tuple(dict.fromkeys(batch.shape for batch in found)),
        "padding_checked": tuple(dict.fromkeys(batch.side for batch in found)),
    }


def _compare(reference: Reference, batch: Inputs, side: str, run: Session) -> _Compared:
    """Compare one batch.

    Raises:
        ParityError: If the file does not run on it.
    """
    task = reference.exact.task
    expected, own = reference.answers(batch)
    refusals: tuple[type[Exception], ...] = (*onnxruntime_errors(), BenchmarkError)
    try:
        found = run(batch)
    except refusals as error:
        raise ParityError(f"the file does not run on your rows: {first_line(error)}") from error
    outputs = [np.asarray(found[name], np.float32) for name in task.outputs]
    actual = task.compared(task.joined(outputs), batch)
    difference = np.inf
    if actual.shape == expected.shape and np.isfinite(actual).all():
        difference = float(np.abs(actual - expected).max())
    agreement = task.agreement(expected, actual) if np.isfinite(difference) else 0.0
    shape = tuple(map(int, next(iter(batch.values())).shape))
    return _Compared(shape, side, difference, own, agreement)


def prove_generation(
    reference: Reference, samples: Samples, run: Session, written: Written
) -> dict[str, Any]:
    """Continue prompts greedily, padded on the left, by file and by PyTorch's own `generate` in float32.

    Prompts are the ends of rows: half of what the model takes is left to what is generated, if not more.
    The file is asked for each token with PyTorch's before it; where all are the same, that is what it
    generates by itself. In half precision, where one that differs would lead to others, its logits before
    each token must be within the tolerance as well: only ties can differ.

    Returns:
        How many prompts were continued, by how many tokens, and the share that are PyTorch's; in half
        precision also the largest difference of logits, PyTorch's own, and the tolerance.

    Raises:
        ParityError: If a token differs; in half precision, if too many do, or logits by too much.
    """
    model = reference.exact
    limit = model.processor.max_answer or model.processor.max_length
    divided = model.network.config.is_encoder_decoder
    num_tokens = min(TOKENS, limit - 1 if divided else limit // 2)
    order = np.random.default_rng(0).permutation(len(samples))
    chosen = [samples.rows[i] for i in np.resize(order, PROMPTS)]
    prompts = first_step(model.task.encode(chosen, model.processor, "left"))
    prompts = padded_on_the_left(prompts, model.processor.max_length if divided else limit - num_tokens)
    expected = generated(model, prompts, num_tokens)
    logits = step_logits(run, prompts, written.cache, expected)  # (prompts, tokens, V)
    actual = logits.argmax(axis=-1)
    agreement = float((expected == actual).mean())
    if agreement < reference.least_agreement:
        row, place = np.argwhere(expected != actual)[0]
        raise ParityError(
            f"it generates other tokens than PyTorch: token {place + 1} of {num_tokens} after "
            f"{chosen[row].where} is {actual[row, place]}, not {expected[row, place]} "
            f"({agreement:.1%} are the same).",
            f"{_UNUSABLE}.",
        )
    proof = {"prompts_continued": PROMPTS, "tokens_generated": num_tokens, "token_agreement": agreement}
    if not (reference.is_half or reference.is_lossy):
        return proof
    behind = with_positions(_continued(prompts, expected), written.inputs)
    return proof | _prove_steps(reference, behind, logits)


def _continued(prompts: Inputs, tokens: np.ndarray) -> Inputs:
    """Return prompts with tokens (B, K) behind them."""
    if "decoder_input_ids" in prompts:
        ids = np.concatenate([prompts["decoder_input_ids"], tokens], axis=1)
        return {**prompts, "decoder_input_ids": ids}
    ids = np.concatenate([prompts["input_ids"], tokens], axis=1)
    mask = np.concatenate([prompts["attention_mask"], np.ones_like(tokens)], axis=1)
    return {**prompts, "input_ids": ids, "attention_mask": mask}


def _prove_steps(reference: Reference, inputs: Inputs, logits: np.ndarray) -> dict[str, float]:
    """Hold what a file said before each of the last tokens, (B, K, V), against one forward of all.

    Raises:
        ParityError: If it differs by more than the tolerance.
    """
    before = slice(-logits.shape[1] - 1, -1)
    exact, rounded = (model.logits(inputs)[:, before] for model in (reference.exact, reference.same))
    own, difference = (float(np.abs(some - exact).max()) for some in (rounded, logits))
    if not (difference <= reference.limit(own) and np.isfinite(difference)):
        raise ParityError(
            f"amid generation its logits differ by {difference:.2g} ({reference.limit_text(own)}).",
            f"{_UNUSABLE}; raise --atol only if you know why.",
        )
    return {"max_abs_difference": difference, "pytorch_difference": own, "tolerance": reference.limit(own)}


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
    """Yield (padding side, inputs): shortest, longest and mixed rows, one and several at a time.

    Where all rows are of one length, nothing is padded, and a file that sees padding would not be found out:
    half of a row is hidden then.
    """
    is_hidden, inputs = False, {}
    for chosen in _parity_rows(model, samples):
        sides = ("none",) if len(chosen) == 1 else model.task.padding_sides
        for side in sides:
            inputs = model.task.encode(chosen, model.processor, None if side == "none" else side)
            yield side, inputs
            is_hidden |= not inputs.get("attention_mask", np.ones(1)).all()
            if model.task.is_prompt:  # rows of one length: check a shorter one as well
                half = next(iter(inputs.values())).shape[1] // 4 * 2
                yield side, {name: values[:, :half] for name, values in inputs.items()}
    if "attention_mask" in inputs and not is_hidden:
        mask = inputs["attention_mask"].copy()
        mask[0, ..., mask.shape[-1] // 2 :] = 0
        yield "right", {**inputs, "attention_mask": mask}


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
