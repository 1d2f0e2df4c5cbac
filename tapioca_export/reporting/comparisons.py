"""Plots of original against pruned: task metric, latency, size, memory and loading."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..artifacts import Accuracy, Benchmark, Latency
from .drawing import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Figure,
    Spec,
    axis_title,
    plot_spec,
    rows_layout,
    vertical_line,
    whisker_trace,
)
from .speeds import provider_text
from .tables import resources
from .wording import role_text

# --- accuracy -------------------------------------------------------------------------------


def accuracy_figures(benchmark: Benchmark) -> list[Figure]:
    """Draw each role's metric before and after, and the paired change, a metric."""
    figures = []
    metrics = dict.fromkeys(a.metric for a in benchmark.rows.values())
    for number, metric in enumerate(metrics, start=1):
        rows = {r: a for r, a in benchmark.rows.items() if a.metric == metric}
        figures += [
            _level_figure(f"level-{number}", metric, rows),
            _change_figure(f"change-{number}", metric, rows),
        ]
    return figures


def _level_figure(name: str, metric: str, rows: dict[str, Accuracy]) -> Figure:
    accuracies = list(rows.values())
    places = [float(-i) for i in range(len(rows))]
    original = whisker_trace(
        "original",
        [a.original for a in accuracies],
        [p + 0.14 for p in places],
        [a.original_interval for a in accuracies],
    )
    pruned = whisker_trace(
        "pruned",
        [a.pruned for a in accuracies],
        [p - 0.14 for p in places],
        [a.pruned_interval for a in accuracies],
    )
    original["marker"] |= {"color": GREY, "symbol": "circle"}
    pruned["marker"] |= {"color": GREEN, "symbol": "triangle-up"}
    layout = rows_layout([role_text(r) for r in rows], axis_title(metric, _better(accuracies)))
    caption = "Both models on the same report rows, with 95 % intervals of each alone."
    title = f"{metric} before and after"
    return Figure(name, title, caption, plot_spec([original, pruned], layout))


def _change_figure(name: str, metric: str, rows: dict[str, Accuracy]) -> Figure:
    accuracies = list(rows.values())
    change = whisker_trace(
        "pruned - original",
        [a.difference for a in accuracies],
        [float(-i) for i in range(len(rows))],
        [a.interval for a in accuracies],
    )
    change["marker"] |= {"color": BLUE, "symbol": "diamond"}
    layout = rows_layout([role_text(r) for r in rows], f"change in {escape(metric)}")
    layout["shapes"] = [vertical_line(0.0)]
    layout["xaxis"]["rangemode"] = "tozero"
    layout["showlegend"] = False
    side = "Right" if _better(accuracies) else "Left"
    caption = (
        f"Pruned minus original, paired row by row, with 95 % intervals. {side} of zero is better; "
        "an interval that touches zero shows no change."
    )
    title = f"Change in {metric}"
    return Figure(name, title, caption, plot_spec([change], layout))


def _better(accuracies: Sequence[Accuracy]) -> bool:
    return accuracies[0].higher_is_better


# --- latency --------------------------------------------------------------------------------


def speedup_figure(rows: Sequence[Latency]) -> Figure | None:
    """Draw the measured speed-up of each setting beside the ideal and the A/A noise."""
    if not rows:
        return None
    places = [float(-i) for i in range(len(rows))]
    measured = whisker_trace(
        "measured",
        [row.speedup.median for row in rows],
        places,
        [row.speedup.interval for row in rows],
    )
    measured["marker"] |= {"color": BLUE, "symbol": "diamond"}
    layout = rows_layout([_short_setting(row, rows) for row in rows], "original/pruned time")
    layout["shapes"] = [vertical_line(1.0)]
    caption = (
        "Right of 1 is faster. Whiskers are 95 % intervals; the ideal assumes that only layers "
        "take time; grey bars show the original timed against itself."
    )
    spec = plot_spec([noise_trace(rows, places), _ideal(rows, places), measured], layout)
    return Figure("speedup", "Speed-up by setting", caption, spec)


def noise_trace(rows: Sequence[Latency], places: list[float]) -> Spec:
    """Return what the original shows against itself, a bar at each place."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "A/A noise",
        "x": [x for row in rows for x in (*row.noise_floor, None)],
        "y": [y for place in places for y in (place, place, None)],
        "line": {"color": GREY, "width": 12},
        "opacity": 0.5,
        "hovertemplate": "original against itself: %{x:.3f}<extra></extra>",
    }


def _ideal(rows: Sequence[Latency], places: list[float]) -> Spec:
    marker = {"symbol": "line-ns-open", "size": 18, "color": VERMILION}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "ideal",
        "x": [row.ideal_speedup for row in rows],
        "y": places,
        "marker": marker | {"line": {"width": 3, "color": VERMILION}},
        "hovertemplate": "ideal: %{x:.3f}<extra></extra>",
    }


def _short_setting(row: Latency, rows: Sequence[Latency]) -> str:
    lines = [row.setting, provider_text(row.provider)]
    if len({other.threads for other in rows}) > 1:
        lines.append(f"{row.threads} thr.")
    if len({other.runtime for other in rows}) > 1:
        lines.append(row.runtime)
    return f"{lines[0]}\n{', '.join(lines[1:])}"


# --- size, memory and loading ---------------------------------------------------------------


def resource_figure(benchmark: Benchmark) -> Figure | None:
    """Draw what the pruned file takes of what the original takes, of each quantity that was measured."""
    found = [part for part in resources(benchmark) if part[1].original > 0]
    if not found:
        return None
    shares = [pair.pruned / pair.original for _, pair, _ in found]
    before, after = [text(pair.original) for _, pair, text in found], [text(p.pruned) for _, p, text in found]
    traces = [
        _shares("original", [1.0] * len(found), before, 0.14)
        | {"marker": {"color": GREY, "symbol": "circle", "size": 11}},
        _shares("pruned", shares, after, -0.14)
        | {"marker": {"color": GREEN, "symbol": "triangle-up", "size": 11}},
    ]
    layout = rows_layout([name for name, _, _ in found], "share of the original")
    layout["shapes"] = [vertical_line(1.0)]
    layout["xaxis"]["rangemode"] = "tozero"
    caption = "Left of 1 is smaller, or loads faster. One measurement each, without an interval."
    return Figure("sizes", "Size, memory and loading", caption, plot_spec(traces, layout))


def _shares(name: str, shares: list[float], values: list[str], offset: float) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": shares,
        "y": [offset - row for row in range(len(shares))],
        "text": values,
        "hovertemplate": f"{name}: %{{text}} (%{{x:.3f}})<extra></extra>",
    }
