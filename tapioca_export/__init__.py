"""Make a transformer smaller and faster by removing layers, and prove what that does.

Commands that make something are functions of the same name here. Names are loaded when first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .showing import rendered_by
from .telemetry import switch_off

if TYPE_CHECKING:
    from .artifacts import (
        Benchmark,
        Comparison,
        Export,
        Intervention,
        Plan,
        Profile,
        Report,
        RunComparison,
        Selection,
        Verification,
    )
    from .collating import compare_runs
    from .commands import benchmark, compare, export, intervene, profile, select
    from .config import Doses, RunConfig
    from .errors import TapiocaError
    from .gating import Thresholds, check
    from .pipeline import demo, run
    from .planning import plan
    from .pruning import prune
    from .renewing import report
    from .reporting import plot
    from .schemas import schema
    from .starting import init
    from .variants import export_variants
    from .verifying import verify

__version__ = "0.1.0"

switch_off()  # before the libraries are imported, which read it once

_HOMES = {
    "artifacts": (
        "Benchmark",
        "Comparison",
        "Export",
        "Intervention",
        "Plan",
        "Profile",
        "Report",
        "RunComparison",
        "Selection",
        "Verification",
    ),
    "collating": ("compare_runs",),
    "commands": (
        "benchmark",
        "compare",
        "export",
        "intervene",
        "profile",
        "select",
    ),
    "config": ("Doses", "RunConfig"),
    "errors": ("TapiocaError",),
    "gating": ("Thresholds", "check"),
    "pipeline": ("demo", "run"),
    "planning": ("plan",),
    "pruning": ("prune",),
    "renewing": ("report",),
    "reporting": ("plot",),
    "variants": ("export_variants",),
    "schemas": ("schema",),
    "starting": ("init",),
    "verifying": ("verify",),
}

__all__ = [
    "Benchmark",
    "Comparison",
    "Doses",
    "Export",
    "Intervention",
    "Plan",
    "Profile",
    "Report",
    "RunComparison",
    "RunConfig",
    "Selection",
    "TapiocaError",
    "Thresholds",
    "Verification",
    "benchmark",
    "check",
    "compare",
    "compare_runs",
    "demo",
    "export",
    "export_variants",
    "init",
    "intervene",
    "plan",
    "plot",
    "profile",
    "prune",
    "report",
    "run",
    "schema",
    "select",
    "verify",
]


def _load_renderer() -> Any:
    from .reporting import render_result

    return render_result


rendered_by(_load_renderer)


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
