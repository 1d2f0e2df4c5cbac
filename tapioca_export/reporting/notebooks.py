"""Results as they show themselves in a notebook: what they say in sentences, and small tables.

Another kind of result is one entry of `_PARTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..artifacts import (
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
from ..showing import html_table, html_text
from .exported import about_export
from .interventions import dose_table
from .planning import plan_table
from .run_tables import runs_table
from .tables import (
    TextTable,
    accuracy_table,
    check_tables,
    comparison_table,
    deviation_table,
    export_table,
    latency_table,
    resource_table,
    search_table,
)
from .tradeoffs import domain_table, trade_off_table
from .wording import about_deviation, changed_text

Parts = tuple[tuple[str, ...], tuple[TextTable, ...]]


def render_result(result: Any) -> str:
    """Return a result as HTML that needs nothing else; all text is escaped."""
    sentences, tables = _PARTS[type(result)](result)
    shown = [html_table(table.caption, table.columns, table.rows) for table in tables if table.rows]
    return "\n".join([*map(html_text, sentences), *shown])


def _benchmark(found: Benchmark) -> Parts:
    return (), (accuracy_table(found), latency_table(found.latency), resource_table(found))


def _profile(found: Profile) -> Parts:
    return tuple(about_deviation(found)), (
        deviation_table(found),
        *([domain_table(found)] if found.targets else []),
    )


def _selection(found: Selection) -> Parts:
    what = changed_text(found) or "dropping nothing"
    reason = found.stop_reason.strip().rstrip(".") or "no reason given"
    sentence = f"Criterion {found.criterion} chose {what} of {found.num_layers} layers; it ended: {reason}."
    points = (trade_off_table(found),) if found.points else ()
    return (sentence,), (search_table(found), *points)


_PARTS: dict[type, Callable[[Any], Parts]] = {
    Report: lambda found: ((found.verdict,), _benchmark(found.benchmark)[1]),
    Benchmark: _benchmark,
    Profile: _profile,
    Selection: _selection,
    Export: lambda found: ((about_export("as", found),), (export_table({found.format: found}),)),
    Comparison: lambda found: ((), (comparison_table(found),)),
    Intervention: lambda found: (found.verdict, (dose_table(found),)),
    Plan: lambda found: ((found.advice,), (plan_table(found),)),
    RunComparison: lambda found: ((found.verdict,), (runs_table(found),)),
    Verification: lambda found: (found.verdict, tuple(check_tables(found))),
}
