"""The plots of a result as matplotlib figures: what reports draw in Plotly's terms, drawn by matplotlib.

What a plot shows is said once, in the specifications that reports use, and this module reads them. An
attribute that it does not know fails; what serves only a pointer or a page is left out.
"""

from __future__ import annotations

import html
import importlib
import io
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ..artifacts import Benchmark, Intervention, Profile, Report, RunComparison, Selection
from ..errors import ConfigError
from .comparisons import accuracy_figures, resource_figure, speedup_figure
from .doses import dose_figures
from .drawing import Figure, Spec
from .figures import profile_figures, search_figures
from .run_figures import speed_figures, trade_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

# Pixels of a page to the inch, and to a matplotlib point.
_INCH, _POINT = 96.0, 96.0 / 72.0
_WIDTH = 8.0
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
_SYMBOLS = {
    "circle": "o", "circle-open": "o", "diamond": "D", "square": "s", "triangle-up": "^", "x": "X",
    "cross": "P", "star": "*", "star-open": "*", "x-thin-open": "x", "line-ns-open": "|",
    "arrow-bar-down-open": "v", "arrow-bar-up-open": "^",
}  # fmt: skip
_LAYERS = {"below": 0.5, "between": 1.5}
# What is drawn, then what only a page uses.
_TRACE = {
    "type", "mode", "name", "x", "y", "text", "textposition", "line", "marker", "fill", "fillcolor",
    "opacity", "showlegend", "error_x", "error_y",
    "customdata", "hovertemplate", "hoverinfo", "legendgroup", "cliponaxis", "connectgaps",
}  # fmt: skip
_AXIS = {
    "title", "type", "range", "rangemode", "tickmode", "tickvals", "ticktext", "tick0", "dtick", "showgrid",
    "automargin", "zeroline", "fixedrange",
}  # fmt: skip


def plot(result: Report | Profile | Selection | Benchmark | Intervention | RunComparison) -> dict[str, Drawn]:
    """Return the plots of a result as matplotlib figures, by their names in reports.

    They belong to no window and no session: a notebook shows one that ends a cell, `savefig` saves it.

    Args:
        result: What a report is made of, a report, or runs side by side.

    Raises:
        ConfigError: If matplotlib is not installed, or such a result has no plots.
    """
    if type(result) not in _FIGURES:
        names = ", ".join(sorted(kind.__name__ for kind in _FIGURES))
        raise ConfigError(f"{type(result).__name__} has no plots.", f"These have: {names}.")
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            "Plots need matplotlib, which is not installed.", "pip install 'tapioca-export[plots]'"
        ) from error
    # Names of models and metrics may hold a dollar sign.
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        return {figure.name: _draw(figure) for figure in _FIGURES[type(result)](result)}


def _benchmark_figures(found: Benchmark) -> list[Figure]:
    others = (speedup_figure(found.latency), resource_figure(found))
    return [*accuracy_figures(found), *(figure for figure in others if figure)]


def _report_figures(found: Report) -> list[Figure]:
    parts = (found.profile, found.selection, found.intervention, found.benchmark)
    return [figure for part in parts if part is not None for figure in _FIGURES[type(part)](part)]


_FIGURES: dict[type, Callable[[Any], Sequence[Figure]]] = {
    Profile: profile_figures,
    Selection: search_figures,
    Intervention: dose_figures,
    Benchmark: _benchmark_figures,
    Report: _report_figures,
    RunComparison: lambda found: [*trade_figures(found), *speed_figures(found)],
}


# --- one plot -------------------------------------------------------------------------------


def _draw(figure: Figure) -> Drawn:
    """Draw one specification."""
    layout = figure.spec["layout"]
    canvas = _canvas_type()(figsize=(_WIDTH, layout["height"] / _INCH + 1.0), layout="constrained")
    axes = canvas.add_subplot()
    for trace in figure.spec["data"]:
        _add_trace(axes, trace)
    for shape in layout.get("shapes", ()):
        _add_shape(axes, shape)
    for note in layout.get("annotations", ()):
        _add_note(axes, note)
    _set_axis(axes, "x", layout["xaxis"])
    _set_axis(axes, "y", layout["yaxis"])
    axes.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(figure.title, x=0.01, ha="left", fontsize="large")
    pad = 18 if layout.get("annotations") else 6  # these may stand above the plot
    axes.set_title(textwrap.fill(figure.caption, 110), loc="left", pad=pad, fontsize="small", color="dimgrey")
    if layout.get("showlegend", True) and axes.get_legend_handles_labels()[0]:
        canvas.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return canvas


@cache
def _canvas_type() -> type[Drawn]:
    """Return figures that a notebook shows by themselves; pyplot's do so too, and stay in memory for it."""
    from matplotlib.figure import Figure as Canvas

    class Plot(Canvas):  # type: ignore[misc,unused-ignore]
        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Plot


def _plain(text: str) -> str:
    """Return text that was written for a page."""
    return html.unescape(text.replace("<br>", "\n"))


def _add_trace(axes: Axes, trace: Spec) -> None:
    """Draw one series: its area, its line and marks, its whiskers and the texts beside them."""
    assert trace["type"] == "scatter"
    assert trace.keys() <= _TRACE, trace.keys() - _TRACE
    modes, line, marker = trace["mode"].split("+"), trace.get("line", {}), trace.get("marker", {})
    x, y = ([float("nan") if value is None else value for value in trace[axis]] for axis in "xy")
    if trace.get("fill") == "toself":
        axes.fill(x, y, facecolor=_colour(trace["fillcolor"]), linewidth=0)
        return
    if trace.get("fill") == "tozeroy":
        axes.fill_between(x, y, 0.0, facecolor=_colour(trace["fillcolor"]), linewidth=0)
    drawn = "lines" in modes
    colour = line.get("color") if drawn else marker["color"]
    axes.plot(
        x,
        y,
        color=colour,
        alpha=trace.get("opacity", marker.get("opacity")),
        linestyle=_DASHES[line.get("dash", "solid")] if drawn else "none",
        linewidth=line.get("width", 2.0) / _POINT,
        label=_plain(trace["name"]) if trace.get("showlegend", True) else None,
        **(_marker(marker) if "markers" in modes else {}),
    )
    for axis in "xy":
        if bars := trace.get(f"error_{axis}"):
            ends: dict[str, Any] = {f"{axis}err": (bars["arrayminus"], bars["array"])}
            width = bars["thickness"] / _POINT
            axes.errorbar(
                x, y, fmt="none", ecolor=colour, elinewidth=width, capsize=bars["width"] / 2, **ends
            )
    if "text" in modes:
        upright, across = trace["textposition"].split()
        side, up = ("left" if across == "right" else "center"), (-1 if upright == "bottom" else 1)
        for at, text in zip(zip(x, y, strict=True), trace["text"], strict=True):
            axes.annotate(
                _plain(text), at, xytext=(0, 7 * up), textcoords="offset points", ha=side,
                va="top" if up < 0 else "baseline", fontsize="small",
            )  # fmt: skip


def _marker(marker: Spec) -> dict[str, Any]:
    """Return a mark of that symbol; an open one is its outline alone."""
    symbol = marker.get("symbol", "circle")
    found: dict[str, Any] = {"marker": _SYMBOLS[symbol], "markersize": marker["size"] / _POINT}
    if symbol.endswith("-open"):
        found |= {"markerfacecolor": "none"}
    if width := marker.get("line", {}).get("width"):
        found |= {"markeredgewidth": width / _POINT}
    return found


def _colour(text: str) -> tuple[float, float, float, float] | str:
    """Return a colour as matplotlib takes it: `rgba(0,114,178,0.16)` as four shares."""
    if not text.startswith("rgba("):
        return text
    red, green, blue, alpha = (float(part) for part in text[5:-1].split(","))
    return red / 255, green / 255, blue / 255, alpha


def _add_shape(axes: Axes, shape: Spec) -> None:
    """Draw a line across the whole plot, or a column of it."""
    layer = {"zorder": _LAYERS[shape["layer"]]}
    if shape["type"] == "rect":
        axes.axvspan(shape["x0"], shape["x1"], facecolor=_colour(shape["fillcolor"]), linewidth=0, **layer)
        return
    line = shape["line"]
    style = {"color": line["color"], "linewidth": line["width"] / _POINT}
    style["linestyle"] = _DASHES[line.get("dash", "solid")]
    if shape.get("yref") == "paper":
        axes.axvline(shape["x0"], **style, **layer)
    else:
        axes.axhline(shape["y0"], **style, **layer)


def _add_note(axes: Axes, note: Spec) -> None:
    """Write a text at a place of which one side may be the plot's edge."""
    across = axes.get_yaxis_transform() if note.get("xref") == "paper" else axes.get_xaxis_transform()
    align = {"ha": note.get("xanchor", "center"), "va": note.get("yanchor", "center")}
    axes.text(note["x"], note["y"], _plain(note["text"]), transform=across, fontsize="small", **align)


def _set_axis(axes: Axes, which: Literal["x", "y"], axis: Spec) -> None:
    """Set title, scale, ticks, range and grid."""
    from matplotlib.ticker import MultipleLocator

    assert axis.keys() <= _AXIS, axis.keys() - _AXIS
    of_axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}label": _plain(axis["title"]["text"]), f"{which}scale": axis.get("type", "linear")})
    if "tickvals" in axis:
        of_axis.set_ticks(axis["tickvals"], [_plain(text) for text in axis["ticktext"]])
    elif "dtick" in axis:
        of_axis.set_major_locator(MultipleLocator(axis["dtick"], offset=axis["tick0"]))
    limits = axis.get("range") or getattr(axes, f"get_{which}lim")()
    if axis.get("rangemode") == "tozero":
        limits = (min(0.0, *limits), max(0.0, *limits))
    axes.set(**{f"{which}lim": limits})
    if axis.get("showgrid", True):
        axes.grid(axis=which, color="0.9", zorder=0)
    axes.set_axisbelow(True)
