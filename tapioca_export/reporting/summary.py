"""A run at a glance: one table that fits a terminal."""

from __future__ import annotations

from ..artifacts import Accuracy, Latency, Pair, Report
from ..numbering import whole_layers
from .speeds import setting_text
from .tables import Row, TextTable
from .wording import change_text, changed_text, number, role_text, size_text


def summary_table(report: Report) -> TextTable:
    """Return layers, metrics, latency of what is served, memory and size: original, pruned and change."""
    selection, measured = report.selection, report.benchmark
    left = selection.num_layers - len(whole_layers(selection.drop))
    done = changed_text(selection) or "none dropped"
    rows: list[Row] = [("layers", str(selection.num_layers), str(left), done)]
    rows += [_score_row(role_text(role), accuracy) for role, accuracy in measured.rows.items()]
    rows += [_latency_row(row) for row in measured.served]
    sizes = (("file size", measured.size_bytes), ("peak memory", measured.peak_memory_bytes))
    rows += [_size_row(name, pair) for name, pair in sizes if pair.original > 0]
    columns = ("", "original", "pruned", "change (95 % interval)")
    return TextTable("Original and pruned", columns, tuple(rows))


def _score_row(name: str, found: Accuracy) -> Row:
    values = (number(found.original), number(found.pruned))
    return (f"{name} {found.metric}, {found.n} rows", *values, change_text(found))


def _latency_row(found: Latency) -> Row:
    low, high = found.speedup.interval
    speed = f"{found.speedup.median:.2f}x the speed ({low:.2f} to {high:.2f})"
    times = (f"{timing.p50_ms:.2f} ms" for timing in (found.original, found.pruned))
    return (setting_text(found), *times, speed)


def _size_row(name: str, found: Pair) -> Row:
    share = found.pruned / found.original
    return (name, size_text(found.original), size_text(found.pruned), f"{share:.3f} of the original")
