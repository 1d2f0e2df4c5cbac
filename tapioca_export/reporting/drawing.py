"""What all plots share: the figure type, colours, traces and layouts.

A specification is a plain dictionary in Plotly's terms. Colours are Okabe and Ito's
colour-blind-safe set, and no two series differ by colour alone. Text and grid colours are left to
the page, which follows the reader's light or dark setting.

Source: Okabe and Ito, "Color Universal Design", 2008, the eight-colour palette (its black replaced
by a grey that reads on both backgrounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..artifacts import Interval
from .tables import TextTable

Spec = dict[str, Any]

BLUE, SKY, VERMILION, GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"
ORANGE, GREY = "#E69F00", "#808080"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")


@dataclass(frozen=True)
class Figure:
    """One plot: what it shows in words, its specification, and its data as text."""

    name: str
    title: str
    caption: str
    spec: Spec
    data: TextTable | None = None


def plot_spec(traces: list[Spec], layout: Spec) -> Spec:
    """Return traces and layout as one specification."""
    return {"data": traces, "layout": layout}


def line_trace(name: str, x: Sequence[float], y: Sequence[float | None], colour: str) -> Spec:
    """Return one line; None leaves a gap."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2.2},
        "marker": {"color": colour, "size": 7},
        "hovertemplate": "%{y:.4g}",
        "connectgaps": False,
    }


def band_trace(name: str, x: Sequence[float], band: Sequence[Interval], colour: str) -> Spec:
    """Return the filled band behind the line of the same name."""
    return {
        "type": "scatter",
        "fill": "toself",
        "fillcolor": faint_colour(colour),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "legendgroup": name,
        "showlegend": False,
        "x": [*x, *reversed(x)],
        "y": [high for _, high in band] + [low for low, _ in reversed(band)],
    }


def whisker_trace(name: str, x: list[float], y: list[float], intervals: list[Interval]) -> Spec:
    """Return points with horizontal whiskers that end at the intervals' bounds."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "customdata": [list(interval) for interval in intervals],
        "marker": {"size": 11},
        "error_x": whiskers(x, intervals),
        "hovertemplate": f"{name}: %{{x:.4g}} (%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}})"
        "<extra></extra>",
    }


def whiskers(values: Sequence[float], intervals: Sequence[Interval]) -> Spec:
    """Return error bars that end at the intervals' bounds."""
    bars = list(zip(values, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value) for value, (_, high) in bars],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in bars],
        "thickness": 2.2,
        "width": 6,
    }


def curve_layout(y_title: str, x_title: str) -> Spec:
    """Return the layout of a plot with lines, its legend below."""
    return {
        "height": 360,
        "margin": {"l": 10, "r": 12, "t": 22, "b": 10},
        "hovermode": "x unified",
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
        "xaxis": _axis(x_title),
        "yaxis": _axis(y_title),
    }


def _axis(title: str) -> Spec:
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "automargin": True,
        "zeroline": False,
    }


def rows_layout(names: Sequence[str], x_title: str) -> Spec:
    """Return the layout of a plot with one named row a line, the first on top."""
    layout = curve_layout("", x_title)
    layout["height"] = 150 + 62 * len(names)
    layout["hovermode"] = "closest"
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    layout["yaxis"] |= {
        "tickvals": [-i for i in range(len(names))],
        "ticktext": [escape(name).replace("\n", "<br>") for name in names],
        "range": [-len(names) + 0.5, 0.5],
        "showgrid": False,
        "fixedrange": True,
    }
    return layout


def vertical_line(x: float) -> Spec:
    """Return the line that stands for no change."""
    line = {"color": GREY, "width": 2}
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
        "layer": "between",
    }


def horizontal_line(y: float, dash: str = "solid", width: float = 2) -> Spec:
    """Return a line at one value of y, across the whole plot."""
    line = {"color": GREY, "width": width, "dash": dash}
    return {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "xref": "paper",
        "y0": y,
        "y1": y,
        "line": line,
        "layer": "below",
    }


def integer_ticks(count: int) -> Spec:
    """Return ticks at whole numbers, thinned so that at most about a dozen stand side by side."""
    return {"tickmode": "linear", "tick0": 0, "dtick": max(1, round(count / 12))}


def faint_colour(colour: str) -> str:
    """Return the colour as the fill of a band."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def axis_title(label: str, higher_is_better: bool | None) -> str:
    """Return the label and which way is better, where that is known."""
    if higher_is_better is None:
        return escape(label)
    return f"{escape(label)} ({'higher' if higher_is_better else 'lower'} is better)"
