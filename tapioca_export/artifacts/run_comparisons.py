"""Frozen dataclasses of `run_comparison.json`: finished runs side by side, and what of them is comparable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..showing import Shown
from ..treatments import Treatment
from .records import SCHEMA_VERSION, SPARSE
from .results import Benchmark

Quantity = Literal["target", "id", "speed"]


@dataclass(frozen=True)
class ComparedRun:
    """One finished run: what was pruned, and what its benchmark found.

    `name` is the end of the folder's path that tells it from the others. `num_left` counts layers, one
    without its attention or MLP as half. `benchmark` lacks the rows whose result changed. `facts` are what
    its numbers rest on, each in words or as a SHA-256: task, metrics, report rows, machine and so on.
    """

    name: str
    folder: str
    model: str
    criterion: str
    num_layers: int
    num_left: float
    benchmark: Benchmark
    facts: dict[str, str]
    dtype: str = "fp32"
    treatment: Treatment = field(default=Treatment(), metadata=SPARSE)


@dataclass(frozen=True)
class RunDifference:
    """A quantity of a run that cannot be held against the first run's, and each fact that forbids it.

    `facts` maps a fact's name to what it is here and in the first run.
    """

    run: str
    quantity: Quantity
    facts: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class RunComparison(Shown):
    """`run_comparison.json`: finished runs in the order in which they were named.

    `groups` has, of each quantity ("target" and "id": the metric on these report rows; "speed": speed-up and
    memory), the names of runs that are comparable with each other; a run without it is in no group.
    """

    verdict: str
    runs: tuple[ComparedRun, ...]
    groups: dict[Quantity, tuple[tuple[str, ...], ...]]
    differences: tuple[RunDifference, ...]
    kind: Literal["run_comparison"] = "run_comparison"
    schema_version: int = SCHEMA_VERSION
