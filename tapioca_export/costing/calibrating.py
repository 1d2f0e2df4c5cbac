"""A few batches, run for real: what parts of a forward cost on this machine.

The shortest and the longest batch of a search's own rows, a small one and, if there is time, one in
between go through the passes that a search makes: the prefix recorded, then candidates replayed. So
the memory that they take is the search's own.

Shapes: S sequences, T tokens, H hidden size, L layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from ..memory import give_back_free_memory
from ..models import EndOfForward, LoadedModel, stand_ins
from ..profiling.replaying import Replayer, Shortcuts, passes
from ..samples import Samples
from ..tasks import Batch, Processor
from .rehearsing import Item

# Cost of one part as a + b S T + c S T^2: overhead, work by tokens, and attention between tokens.
Line = tuple[float, float, float]
Clock = Callable[[], float]

NUM_SECONDS = 4.0  # more than that only where three batches take longer
LEAST_RUNS = 3
MOST_REPEATS = 15  # of one shape


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
        """Return the seconds that one batch takes; what goes along with others adds no overhead."""
        whole = item.layers - item.narrowed
        parts = ((whole, self.layer), (item.narrowed, self.last), (item.heads, self.head))
        started = item.rows * self.row + item.starts * _at(self.start, item)
        saved = sum(
            count * line[0]
            for count, line in zip(item.along, (self.start, self.layer, self.head), strict=True)
        )
        return started + sum(count * _at(line, item) for count, line in parts) - saved


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
    batches: Sequence[np.ndarray],
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Time a few batches of these rows.

    Args:
        model: The network; its stack is its own again at the end.
        samples: The rows that a search would score.
        processor: What encodes them.
        batches: Indices of each batch that a search of all rows would score.
        clock: Seconds; `time.process_time` on a machine with neighbours, at one thread.
    """
    began, replayer = clock(), Replayer(model, samples, processor)
    proofs = clock() - began
    batches = _chosen(model, samples, processor, batches)
    _timed(replayer, batches[0], clock)  # the first forward of a process is no measure
    runs: list[list[_Measured]] = [[] for _ in batches]
    for number in range(MOST_REPEATS * len(batches)):
        if number >= LEAST_RUNS and clock() - began > NUM_SECONDS:
            break
        which = number % len(batches)
        runs[which].append(_timed(replayer, batches[which], clock))
    measured = [_middle(found) for found in runs if found]
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


def _middle(runs: Sequence[_Measured]) -> _Measured:
    """Return the median of each part over runs of one shape."""
    parts = {name: median(getattr(run, name) for run in runs) for name in _PARTS}
    return _Measured(runs[0].sequences, runs[0].tokens, **parts)


def _chosen(
    model: LoadedModel, samples: Samples, processor: Processor, batches: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the batch of fewest tokens, a small one of long rows, the batch of most, and one in between."""
    lengths = np.asarray(model.task.lengths(samples.rows, processor))
    order = sorted(batches, key=lambda batch: len(batch) * int(lengths[batch].max()))
    largest = order[-1]
    return [order[0], largest[-max(1, len(largest) // 2) :], largest, *order[len(order) // 2 : -1][:1]]


def count_flops(model: LoadedModel, samples: Samples, processor: Processor) -> Flops:
    """Count the operations of the shortest and of the longest row."""
    order = model.task.length_sorted(samples, processor, 1)
    replayer = Replayer(model, samples, processor)
    counted = [_parts(replayer, row, _operations) for row in (order[0], order[-1])]
    return Flops(*(_fit(counted, part, constant=False) for part in ("layer", "last", "head")))


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

    found = _parts(replayer, rows, seconds)
    give_back_free_memory()  # as a search does after a batch: what is predicted is its peak
    return found


def _operations(step: Callable[[], object]) -> float:
    """Count the operations of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    # PyTorch 2.13 knows the formula for the kernels of GPUs only.
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
    """Run the passes of a search: recorded below the last layer, then with the first or the last dropped."""
    model, num_layers = replayer.model, replayer.model.num_layers
    layers = sorted({0, num_layers - 1})
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

    def step() -> object:
        return next(steps)[1].answers

    with stand_ins(model) as places:
        start = measure(begin)
        steps = passes(model, places, batch, (), layers, shortcuts=Shortcuts(read))
        recorded, *replayed = [measure(step) for _ in (None, *layers)]
    head = max(replayed[-1] - start, 0.0)
    layer = max(recorded - start, 0.0) / max(1, num_layers - 1)
    last = layer
    if num_layers > 1:  # with the first layer dropped, all above it are run, and the last of them narrowed
        last = max(replayed[0] - start - head - (num_layers - 2) * layer, 0.0)
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
