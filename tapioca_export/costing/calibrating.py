"""A few batches, run for real: what parts of a forward cost on this machine.

Three batches of a search's own rows (the shortest, one in between, the longest) and half a batch go
through the passes that a search makes: the prefix recorded, then candidates replayed. The longest
one is run as a search runs it, so that the memory it takes is the search's own.

Shapes: S sequences, T tokens, H hidden size, L layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from ..models import EndOfForward, LoadedModel, stand_ins
from ..profiling.replaying import Replayer, Trace, passes
from ..samples import Samples
from ..tasks import Batch, Processor
from .rehearsing import Item

# Cost of one part as a + b S T + c S T^2: overhead, work by tokens, and attention between tokens.
Line = tuple[float, float, float]
Clock = Callable[[], float]

NUM_SECONDS = 4.0  # for all shapes together; each is run at least twice
MOST_REPEATS = 15


@dataclass(frozen=True)
class Calibration:
    """Seconds of an item's parts: fitted to measurements, so an estimate.

    `start` begins a forward (embeddings, masks), `layer` is the mean layer, `last` the one below a
    head, `head` reads the answer off it and scores it; `row` encodes one row. `proofs` is what a
    worker begins with, `seconds` the calibration itself.
    """

    start: Line
    layer: Line
    last: Line
    head: Line
    row: float
    proofs: float = 0.0
    seconds: float = 0.0

    def time(self, item: Item) -> float:
        """Return the seconds that one batch takes."""
        whole = item.layers - item.narrowed
        parts = ((whole, self.layer), (item.narrowed, self.last), (item.heads, self.head))
        started = item.rows * self.row + item.starts * _at(self.start, item)
        return started + sum(count * _at(line, item) for count, line in parts)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of an item's parts, fitted to counts at two lengths.

    Exact where a layer is dense: matrix products and attention, which is counted as if no token was
    masked. A multiplication and an addition are two operations; all else is left out.
    """

    layer: Line
    last: Line
    head: Line

    def count(self, item: Item) -> float:
        """Return the operations of one batch."""
        whole = item.layers - item.narrowed
        parts = ((whole, self.layer), (item.narrowed, self.last), (item.heads, self.head))
        return sum(count * _at(line, item) for count, line in parts)


def _at(line: Line, item: Item) -> float:
    tokens = item.sequences * item.tokens
    return line[0] + line[1] * tokens + line[2] * tokens * item.tokens


@dataclass(frozen=True)
class _Measured:
    """One shape: S, T, and what each part took, in seconds or operations."""

    sequences: int
    tokens: int
    start: float
    layer: float
    last: float
    head: float
    row: float = 0.0


def calibrate(
    model: LoadedModel,
    samples: Samples,
    processor: Processor,
    batch_size: int,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Time a few batches of these rows.

    Args:
        model: The network; its stack is its own again at the end.
        samples: The rows that a search would score.
        processor: What encodes them.
        batch_size: Rows a forward.
        clock: Seconds; `time.process_time` on a machine with neighbours, at one thread.
    """
    began, batches = clock(), _chosen(model, samples, processor, batch_size)
    replayer, measured = Replayer(model, samples, processor), []
    proofs = clock() - began
    for number, rows in enumerate(batches):
        _timed(replayer, rows, clock)  # the first run of a shape finds its memory
        left = NUM_SECONDS - (clock() - began)
        end = clock() + left / (len(batches) - number)
        runs = [_timed(replayer, rows, clock)]
        while len(runs) < MOST_REPEATS and clock() < end:
            runs.append(_timed(replayer, rows, clock))
        parts = {name: median(getattr(run, name) for run in runs) for name in _PARTS}
        measured.append(_Measured(runs[0].sequences, runs[0].tokens, **parts))
    return Calibration(
        start=_fit(measured, "start"),
        layer=_fit(measured, "layer"),
        last=_fit(measured, "last"),
        head=_fit(measured, "head"),
        row=median(one.row for one in measured),
        proofs=proofs,
        seconds=clock() - began,
    )


_PARTS = ("start", "layer", "last", "head", "row")


def count_flops(model: LoadedModel, samples: Samples, processor: Processor, batch_size: int) -> Flops:
    """Count the operations of the shortest and of the longest batch of these rows."""
    shortest, *_, longest = _chosen(model, samples, processor, batch_size)
    replayer = Replayer(model, samples, processor)
    counted = [_parts(replayer, rows, _operations) for rows in (shortest, longest)]
    return Flops(*(_fit(counted, part, constant=False) for part in ("layer", "last", "head")))


def _chosen(model: LoadedModel, samples: Samples, processor: Processor, batch_size: int) -> list[np.ndarray]:
    """Return the shortest batch, one in between, half of the longest, and the longest, in this order."""
    batches = model.task.length_sorted(samples, processor, batch_size)
    whole = [batch for batch in batches if len(batch) == len(batches[0])]
    places = sorted({0, len(whole) // 2, len(whole) - 1})
    chosen = [whole[place] for place in places]
    half = batches[-1][-max(1, batch_size // 2) :]
    last = batches[-1] if len(batches[-1]) < len(chosen[-1]) else None
    return [*chosen[:-1], half, chosen[-1], *([] if last is None else [last])]


def _timed(replayer: Replayer, rows: np.ndarray, clock: Clock) -> _Measured:
    """Run one batch once."""
    model, samples = replayer.model, replayer.samples

    def seconds(step: Callable[[], object]) -> float:
        _wait(model.device)
        began = clock()
        answers = step()
        if isinstance(answers, np.ndarray) and samples.is_labelled:
            model.task.score(answers, samples, rows)
        _wait(model.device)
        return clock() - began

    return _parts(replayer, rows, seconds)


def _operations(step: Callable[[], object]) -> float:
    """Count the operations of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    # PyTorch 2.12 knows the formula for the kernels of GPUs only.
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        step()
    return float(counter.get_total_flops())


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Return the operations of attention from the shapes (S, heads, T, head size) of its inputs."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def _parts(
    replayer: Replayer, rows: np.ndarray, measure: Callable[[Callable[[], object]], float]
) -> _Measured:
    """Run the passes of a search: recorded below the last layer, then with the first layers dropped.

    As in a search, what the pass before returned is held until the next one is done.
    """
    model, num_layers = replayer.model, replayer.model.num_layers
    layers = sorted({0, min(1, num_layers - 1), num_layers - 1})
    batches: list[Batch] = []
    encoded = measure(lambda: batches.append(model.task.batch(replayer.samples, rows, replayer.processor)))
    batch, shape = batches[0], (0, 0)
    read = model.task.read_tokens(batch, replayer.processor) if replayer.narrows else None

    def begin() -> None:
        nonlocal shape
        for place in places:
            place.ends = place is places[0]
        try:
            model.answers(batch)
        except EndOfForward as end:
            shape = (int(end.stream.shape[0]), int(end.stream.shape[1]))

    held: list[Trace] = []

    def step() -> object:
        held[:] = [next(steps)[1]]
        return held[0].answers

    with stand_ins(model) as places:
        start = measure(begin)
        steps = passes(model, places, batch, (), layers, read=read)
        recorded, *replayed = [measure(step) for _ in (None, *layers)]
    head = max(replayed[-1] - start, 0.0)
    layer = max(recorded - start, 0.0) / max(1, num_layers - 1)
    # With the first or the second layer dropped, all layers above it are run, and the last of them narrowed.
    lasts = [
        taken - start - head - (num_layers - 2 - dropped) * layer
        for dropped, taken in zip(layers, replayed[:-1], strict=False)
    ]
    last = max(sum(lasts) / len(lasts), 0.0) if lasts else layer
    return _Measured(*shape, start, layer, last, head, encoded / len(rows))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fit(measured: Sequence[_Measured], part: str, *, constant: bool = True) -> Line:
    """Fit a line with no negative term, by the least relative error."""
    from scipy.optimize import nnls

    numbers = np.asarray([getattr(one, part) for one in measured], dtype=np.float64)
    tokens = np.asarray([[one.sequences * one.tokens, one.tokens] for one in measured], dtype=np.float64)
    terms = np.stack([np.full(len(tokens), float(constant)), tokens[:, 0], tokens.prod(axis=1)], axis=1)
    weights = 1 / np.maximum(numbers, numbers.max(initial=0.0) * 1e-3 + 1e-12)
    scale = np.maximum(terms.max(axis=0), 1e-12)
    found, _ = nnls(terms / scale * weights[:, None], numbers * weights)
    a, b, c = found / scale
    return float(a), float(b), float(c)
