"""The plan of a search: what it will cost, from a rehearsal and a calibration.

What is exact and what is not: layer forwards and their tokens are counted by the search itself, on
paper, so they are exact wherever the numbers that it finds cannot change what it does next (scoring
every candidate on all rows, for the number of rounds assumed). Elsewhere the least is what the search
asks for when its first rows tell everything; of a statistical race, whose rows are drawn by chance, it
is the original alone. The most is that of scoring every candidate on all
rows; for a race also of recording every prefix twice, as the leader is scored apart: a bound for
races that score a row at most so. Operations follow from the counts. Seconds are an estimate from a
few batches run here. Memory is that of those batches, the longest among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..artifacts import Bounds, Cost, Ledger, Plan, Selection
from ..errors import ConfigError
from ..memory import peak_resident_bytes
from ..models import GraphNetwork, LoadedModel, config_at
from ..profiling.replaying import Replayer
from ..samples import Samples
from .calibrating import Calibration, Clock, Flops, calibrate, count_flops
from .rehearsing import CASES, Case, Rehearsal, Shape
from .storing import search_bytes

# Of a device's memory, what a plan takes to be there for the process.
USABLE = 0.9

# A probe, and whether to score every candidate on all rows -> what was chosen.
Search = Callable[[Any, bool], Selection]


@dataclass(frozen=True)
class PlanSettings:
    """How rows will be scored.

    `races` tells that candidates are scored apart from each other, `is_statistical` that estimates end
    a race; `full_scores` is recorded only.
    """

    select_on: str = "target"
    batch_size: int = 32
    engine: str = "local"
    num_workers: int = 1
    full_scores: bool = False
    races: bool = False
    is_statistical: bool = False
    seed: int = 0


def predict(
    model: LoadedModel,
    samples: Mapping[str, Samples],
    search: Search,
    settings: PlanSettings | None = None,
    clock: Clock = time.perf_counter,
) -> Plan:
    """Return what a search would cost; nothing but a few batches is run.

    Args:
        model: The network, where it will be searched.
        samples: Select rows by "id" and "target".
        search: Runs the search on a probe, in full if told so, and refuses what it refuses.
        settings: How rows will be scored.
        clock: Of the calibration.

    Raises:
        ConfigError: If answers are generated: how long they get, and what they cost, shows when they are.
    """
    settings = settings or PlanSettings()
    rows = samples[settings.select_on]
    _refuse_written_answers(model, rows)

    def rehearse(case: Case) -> Rehearsal:
        return Rehearsal(
            model,
            samples,
            select_on=settings.select_on,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            case=case,
            recordings=2 if case == "most" and settings.races else 1,
        )

    rehearsals = [rehearse(case) for case in CASES]
    most_tokens = Replayer(model, rows, rehearsals[0].probe.processor).most_tokens
    for one in rehearsals:
        one.seed, one.most_tokens = settings.seed, most_tokens
    least, most = (search(one, one.case == "most") for one in rehearsals)
    processor = rehearsals[0].probe.processor
    flops = count_flops(model, rows, processor)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    calibration = calibrate(model, rows, processor, rehearsals[0].probe.length_sorted(rows), clock)
    shapes = longest_batch(rehearsals[0])
    trace = trace_bytes(model, shapes)
    peak = peak_memory_bytes(model.device) + _known_bytes(rehearsals[1])
    costs = [found.cost for found in (least, most) if found.cost is not None]
    if settings.is_statistical:  # which rows it draws is chance: sure is the original alone
        rehearsals[0] = rehearse("least")
        rehearsals[0].metric()
        costs[0] = _cost_so_far(costs[0], rehearsals[0].ledger)
    evaluations = _bounds(cost.evaluations for cost in costs)
    return Plan(
        model=model.source,
        task=model.task.name,
        criterion=least.criterion,
        search=least.search,
        full_scores=settings.full_scores,
        num_layers=model.num_layers,
        num_samples=len(rows),
        rounds=len(most.steps) + bool(most.rejected),
        batch_size=settings.batch_size,
        longest_batch=shapes[0],
        evaluations=evaluations,
        layer_forwards=_bounds(cost.layer_forwards for cost in costs),
        layer_tokens=_bounds(cost.layer_tokens for cost in costs),
        flops=_bounds(count_all(one, flops) for one in rehearsals),
        seconds=_bounds(time_all(one, calibration) for one in rehearsals),
        peak_memory_bytes=peak,
        model_bytes=model_bytes(model),
        trace_bytes=trace,
        calibration_seconds=calibration.seconds,
        device=str(model.device),
        engine=settings.engine,
        num_workers=settings.num_workers,
        advice=advise(peak, memory_bytes(model.device), model.device.type, settings.num_workers),
        disk_bytes=search_bytes(evaluations, len(rows)),
    )


def _refuse_written_answers(model: LoadedModel, rows: Samples) -> None:
    first = model.task.batch(rows, np.zeros(1, dtype=np.int64), model.processor)
    if rows.is_labelled and first.continuation is not None:
        raise ConfigError(
            f"What {model.task.name} costs with a model that writes its answers cannot be told beforehand.",
            "Search without --dry-run, with --budget-seconds.",
        )


def _cost_so_far(cost: Cost, ledger: Ledger) -> Cost:
    return replace(
        cost,
        evaluations=ledger.num_evaluations,
        layer_forwards=ledger.layer_forwards,
        layer_tokens=ledger.layer_tokens,
    )


def _bounds(numbers: Any) -> Bounds:
    """Return the two cases in order: costs that are hardly different may come out the other way round."""
    low, high = sorted(numbers)
    return Bounds(low, high)


def count_all(rehearsal: Rehearsal, flops: Flops) -> float:
    """Return the operations of all batches."""
    return sum(flops.count(item) for group in rehearsal.groups for item in group)


def time_all(rehearsal: Rehearsal, calibration: Calibration) -> float:
    """Return the seconds of all batches; those of a group are worked on at the same time."""
    return calibration.proofs + sum(max(map(calibration.time, group)) for group in rehearsal.groups)


# --- memory ---------------------------------------------------------------------------------


def longest_batch(rehearsal: Rehearsal) -> tuple[Shape, ...]:
    """Return S and T, in each stack, of the batch of most tokens."""
    probe, rows = rehearsal.probe, rehearsal.shapes.samples
    return max(
        map(rehearsal.shapes.of, probe.length_sorted(rows)),
        key=lambda shapes: sum(sequences * tokens for sequences, tokens in shapes),
    )


def model_bytes(model: LoadedModel) -> int:
    """Return the bytes of the weights; shared ones count once. Of an ONNX file, they are the file's."""
    if isinstance(model.network, GraphNetwork):
        return model.network.pieces.size_bytes
    return sum(p.numel() * p.element_size() for p in model.network.parameters())


def trace_bytes(model: LoadedModel, shapes: Sequence[Shape]) -> int:
    """Return the most bytes of hidden states that are held of one batch: those of all boundaries."""
    size, total = int(model.network.dtype.itemsize), 0
    parts = zip(model.stacks, model.numbering.boundaries, shapes, strict=True)
    for stack, boundaries, (sequences, tokens) in parts:
        hidden = config_at(model.network.config, stack.config).get_text_config().hidden_size
        total += len(boundaries) * sequences * tokens * int(hidden) * size
    return total


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory of this process so far: resident; on a GPU, allocated there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


def memory_bytes(device: torch.device) -> int:
    """Return the memory that the device has; 0 where it cannot be told."""
    import os

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _known_bytes(rehearsal: Rehearsal) -> int:
    """Return the bytes of what a search keeps of its scores: value and loss of each row and set."""
    return 16 * rehearsal.ledger.num_evaluations * rehearsal.num_rows


def advise(peak: int, available: int, device: str, num_workers: int) -> str:
    """Say in words whether a search fits, and which engine to choose.

    Args:
        peak: Bytes of one worker.
        available: Bytes of the device; 0: not known.
        device: Its kind, such as "cuda".
        num_workers: Workers asked for; on a CPU they share its memory, on GPUs each has its own.
    """
    share = num_workers if device == "cpu" else 1
    if not available:
        return "The memory of this device is not known."
    room = USABLE * available / 2**30
    need = f"{share * peak / 2**30:.2f} GiB of {available / 2**30:.1f}"
    if share * peak / 2**30 <= room:
        others = int(room // (peak / 2**30)) if device == "cpu" else 0
        more = (
            f"; memory has room for {others} workers (--engine ray --num-workers), which pay where cores "
            "are left idle"
            if others > num_workers
            else "; with more GPUs: --engine ray, one worker a GPU"
            if device != "cpu"
            else ""
        )
        return f"It fits: {need}{more}."
    if device == "cpu":
        return f"It does not fit: {need}. Lower --eval-batch-size, or use fewer workers."
    return f"It does not fit: {need}. Lower --eval-batch-size, or spread the layers with --device auto."
