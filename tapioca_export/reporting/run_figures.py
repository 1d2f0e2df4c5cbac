"""Finished runs side by side, as plots: only runs that are comparable share one.

A run is labelled with its number, its place among those named.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..artifacts import ComparedRun, Interval, Latency, Quantity, RunComparison
from .comparisons import noise_trace
from .drawing import (
    COLOURS,
    SYMBOLS,
    Figure,
    Spec,
    curve_layout,
    horizontal_line,
    plot_spec,
    vertical_line,
    whiskers,
)

# A value and its interval.
_Estimate = tuple[float, Interval]


def trade_figures(found: RunComparison) -> list[Figure]:
    """Draw target gain over ID loss with intervals, a plot for runs that are comparable in both."""
    figures = []
    for group in comparable_in_all(found, "target", "id"):
        points = {n: (_id_loss(found.runs[n]), _target_gain(found.runs[n])) for n in group}
        metrics = found.runs[group[0]].benchmark.accuracy
        layout = _layout(
            f"target gain in {metrics['target'].metric}", f"ID loss in {metrics['id'].metric}", 0.0
        )
        caption = "Up is better on the target, left is better on ID. Whiskers are 95 % intervals."
        figures.append(
            Figure(
                f"trade-{group[0] + 1}",
                f"Target gain against ID loss{_whose(found, group)}",
                caption + _apart(found, group),
                plot_spec([_point(found, n, *point) for n, point in points.items()], layout),
            )
        )
    return figures


def speed_figures(found: RunComparison) -> list[Figure]:
    """Draw target gain over speed-up with intervals, a plot for runs that are comparable in both."""
    figures = []
    for group in comparable_in_all(found, "target", "speed"):
        slowest = [_slowest(found.runs[n]) for n in group]
        gains = [_target_gain(found.runs[n]) for n in group]
        points = [
            _point(found, n, (row.speedup.median, row.speedup.interval), gain)
            for n, row, gain in zip(group, slowest, gains, strict=True)
        ]
        metric = found.runs[group[0]].benchmark.accuracy["target"].metric
        caption = (
            "Up is better on the target, right of 1 is faster, at the setting with the lowest bound. "
            "Whiskers are 95 % intervals; grey bars show each original timed against itself."
        )
        noise = noise_trace(slowest, [gain for gain, _ in gains])
        figures.append(
            Figure(
                f"speed-{group[0] + 1}",
                f"Speed-up against target gain{_whose(found, group)}",
                caption + _apart(found, group),
                plot_spec([noise, *points], _layout(f"target gain in {metric}", "original/pruned time", 1.0)),
            )
        )
    return figures


def comparable_in_all(found: RunComparison, *quantities: Quantity) -> list[list[int]]:
    """Return the places of runs that have these quantities, those together that are comparable in all."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, run in enumerate(found.runs):
        places = [
            place
            for quantity in quantities
            for place, group in enumerate(found.groups[quantity])
            if run.name in group
        ]
        if len(places) == len(quantities):
            groups.setdefault(tuple(places), []).append(n)
    return list(groups.values())


def _target_gain(run: ComparedRun) -> _Estimate:
    target = run.benchmark.accuracy["target"]
    return target.gain, target.gain_interval


def _id_loss(run: ComparedRun) -> _Estimate:
    id_ = run.benchmark.accuracy["id"]
    low, high = id_.gain_interval
    return 0.0 - id_.gain, (0.0 - high, 0.0 - low)


def _slowest(run: ComparedRun) -> Latency:
    slowest = run.benchmark.slowest
    assert slowest is not None
    return slowest


def _layout(y_title: str, x_title: str, no_change: float) -> Spec:
    layout = curve_layout(escape(y_title), escape(x_title))
    layout["hovermode"] = "closest"
    layout["shapes"] = [vertical_line(no_change), horizontal_line(0.0)]
    return layout


def _point(found: RunComparison, n: int, across: _Estimate, up: _Estimate) -> Spec:
    """Return a run as one point with whiskers both ways, labelled with its number."""
    (x, x_interval), (y, y_interval) = across, up
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": escape(f"{n + 1}. {found.runs[n].name}"),
        "x": [x],
        "y": [y],
        "text": [str(n + 1)],
        "textposition": "top right",
        "customdata": [[*x_interval, *y_interval]],
        "marker": {"size": 11, "color": COLOURS[n % len(COLOURS)], "symbol": SYMBOLS[n % len(SYMBOLS)]},
        "error_x": whiskers([x], [x_interval]),
        "error_y": whiskers([y], [y_interval]),
        "hovertemplate": "%{fullData.name}<br>across: %{x:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})"
        "<br>up: %{y:.4g} (%{customdata[2]:.4g} to %{customdata[3]:.4g})<extra></extra>",
    }


def _whose(found: RunComparison, group: Sequence[int]) -> str:
    if len(group) == len(found.runs):
        return ""
    return f": {', '.join(f'{n + 1}. {found.runs[n].name}' for n in group)}"


def _apart(found: RunComparison, group: Sequence[int]) -> str:
    if len(group) == len(found.runs):
        return ""
    return " Other runs are not comparable with these, or lack one of the two."
