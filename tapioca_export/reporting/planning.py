"""A plan in a few lines for a terminal: least .. most."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..artifacts import Bounds, Plan
from ..config import RunConfig
from .tables import TextTable
from .wording import size_text

TIMES = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
POWERS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1, "FLOP"))


def plan_table(plan: Plan) -> TextTable:
    """Return what is counted first, then what is estimated."""
    sequences, tokens = plan.longest_batch
    rows = (
        ("candidates", _span(plan.evaluations, lambda n: f"{n:,}")),
        ("layer forwards", _span(plan.layer_forwards, lambda n: f"{n:,}")),
        ("tokens through layers", _span(plan.layer_tokens, lambda n: f"{n:,}")),
        # Those of ONNX Runtime are not seen.
        ("operations", _span(plan.flops, lambda n: scaled(n, POWERS)) if plan.flops.most else "not counted"),
        ("time of the search, estimated", _span(plan.seconds, lambda n: scaled(n, TIMES))),
        *_stages(plan),
        (
            "peak memory of the search",
            f"{size_text(plan.peak_memory_bytes)} a worker; weights {size_text(plan.model_bytes)}, states of "
            f"{sequences} x {tokens} tokens up to {size_text(plan.trace_bytes)}",
        ),
        *_run_memory(plan),
        ("disk, estimated", f"{_span(plan.disk_bytes, size_text)} in the output folder"),
    )
    caption = (
        f"{plan.search} search by {plan.criterion}: {plan.num_samples:,} rows, {plan.num_layers} layers, "
        f"{plan.rounds} rounds; a floor may end it after fewer"
    )
    return TextTable(caption, ("what it costs", "least .. most"), rows)


def _stages(plan: Plan) -> list[tuple[str, str]]:
    """Return what a run takes, and what its stages do; of what is not known, nothing is added up."""
    if not plan.stages or plan.untold:
        return []
    whole = Bounds(*(sum(getattr(part, end) for part in plan.stages.values()) for end in ("least", "most")))
    beside = ((name, part) for name, part in plan.stages.items() if name != "select")
    each = ", ".join(f"{name} {_span(part, lambda n: scaled(n, TIMES))}" for name, part in beside)
    told = f"{_span(whole, lambda n: scaled(n, TIMES))} without start-up and report; {each}"
    return [("time of the run, estimated", told)]


def _run_memory(plan: Plan) -> list[tuple[str, str]]:
    """Return what few layers took: whole files take more."""
    if plan.run_peak_memory_bytes is None:
        return []
    return [
        ("peak memory of the run", f"at least {size_text(plan.run_peak_memory_bytes)}, as few layers took")
    ]


def render_plan(plan: Plan) -> str:
    """Return the plan as text."""
    table = plan_table(plan)
    width = max(len(name) for name, _ in table.rows)
    beside = [] if plan.untold is None else [plan.untold]
    return "\n".join(
        [
            f"{table.caption}.",
            *(f"  {name:{width}s}  {text}" for name, text in table.rows),
            *_settings(plan),
            plan.advice,
            *beside,
            f"Nothing was searched and nothing written; {plan.calibration_seconds:.1f} s of calibration.",
        ]
    )


def _settings(plan: Plan) -> list[str]:
    """Return the settings that are not what they are by default."""
    defaults = json.loads(json.dumps(asdict(RunConfig(model="")), default=str))  # as JSON has them
    shown = [
        f"{name.replace('_', '-')} {_setting(value)}"
        for name, value in plan.config.items()
        if value not in (defaults[name], None)
    ]
    return (
        [f"Settings: {', '.join(shown)}; all others have their defaults (--json has all)."] if shown else []
    )


def _setting(value: Any) -> str:
    """Return a value as one would say it."""
    if isinstance(value, dict):
        return ",".join(f"{name}={part}" for name, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _span(bounds: Bounds, text: Callable[[Any], str]) -> str:
    """Return least .. most, or one number where they are shown alike."""
    least, most = text(bounds.least), text(bounds.most)
    return least if least == most else f"{least} .. {most}"


def scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    """Return a number in the largest unit of which it has at least one."""
    size, unit = next((pair for pair in units if number >= pair[0]), units[-1])
    return f"{number / size:.3g} {unit}"
