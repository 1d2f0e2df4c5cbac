"""What a search, or a whole run, would cost: the one artifact that is printed and never written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..showing import Shown
from .records import SCHEMA_VERSION, SPARSE


@dataclass(frozen=True)
class Bounds:
    """The least and the most of something; equal where it is known exactly."""

    least: int | float
    most: int | float


@dataclass(frozen=True)
class Plan(Shown):
    """What a search would cost (`select --dry-run`, `run --dry-run`); printed, never written.

    For `rounds` rounds: a floor that ends the search earlier makes it cheaper, as does a budget of
    seconds. `evaluations`, `layer_forwards` and `layer_tokens` are as in `Cost`, and exact where
    every candidate is scored on all rows (`full_scores`, exhaustive). Elsewhere the least is that of
    a search whose first rows tell everything, the most that of scoring all rows, and for a race of
    recording every prefix twice; tokens are then estimates, as a race pads other batches. With a
    beam, sets are taken to be neighbours. `flops` follows from them: matrix products and attention,
    a multiplication and an addition counted as two. `seconds` is an estimate, from batches run for
    `calibration_seconds` on this machine, of the search alone, as in `Cost`; workers are taken not to
    hinder each other.

    `peak_memory_bytes` is that of the calibration, in which this process ran its longest batch of
    `longest_batch` (sequences, tokens) as a search does: the whole process, and what its heap comes
    to lose; on a GPU, what is allocated there. Of it, `model_bytes` are weights and at
    most `trace_bytes` hidden states.

    `disk_bytes` is what the `command` leaves in its output folder: the journal of a search, and of a whole
    run the exports of both models and the pruned checkpoint, from as many layers dropped as may be to none.

    Of several stacks, what a round costs depends on which of them loses a layer: the bounds are those of
    dropping the layers that run first and those that run last. `longest_batch` is given as the first
    stack's; `flops` and `seconds` are estimates by the mean layer of all.

    Of a run, `stages` has the seconds of each stage, named as in `run.json`: of those behind the search they
    are read off exports of few layers that were tried, and the most is that of no layer dropped. `untold`
    says in words why some are missing. `run_peak_memory_bytes` is the most that this process had resident
    when they were tried, and so the least that the run will: whole files and their proofs take more.

    `config` has every setting as the command would take it, defaults and config file included.
    """

    model: str
    task: str
    criterion: str
    search: str
    full_scores: bool
    num_layers: int
    num_samples: int
    rounds: int
    batch_size: int
    longest_batch: tuple[int, int]
    evaluations: Bounds
    layer_forwards: Bounds
    layer_tokens: Bounds
    flops: Bounds
    seconds: Bounds
    peak_memory_bytes: int
    model_bytes: int
    trace_bytes: int
    calibration_seconds: float
    device: str
    engine: str
    num_workers: int
    advice: str
    disk_bytes: Bounds = field(default=Bounds(0, 0))
    command: Literal["select", "run"] = field(default="select", metadata=SPARSE)
    stages: dict[str, Bounds] = field(default_factory=dict, metadata=SPARSE)
    untold: str | None = field(default=None, metadata=SPARSE)
    run_peak_memory_bytes: int | None = field(default=None, metadata=SPARSE)
    config: dict[str, Any] = field(default_factory=dict)
    kind: Literal["plan"] = "plan"
    schema_version: int = SCHEMA_VERSION
