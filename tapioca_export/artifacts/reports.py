"""The frozen dataclass of `report.json`, which holds all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..showing import Shown
from .interventions import Intervention
from .records import SCHEMA_VERSION, Profile, Selection
from .results import Benchmark, Export, Run


@dataclass(frozen=True)
class Report(Shown):
    """`report.json`: the verdict and everything it rests on, and what was added to the run folder since."""

    verdict: str
    findings: tuple[str, ...]
    run: Run
    selection: Selection
    profile: Profile
    benchmark: Benchmark
    exports: dict[str, Export]
    intervention: Intervention | None = None
    kind: Literal["report"] = "report"
    schema_version: int = SCHEMA_VERSION
