"""Plots of an intervention: metric and deviation over the dose, and the selected among random layers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..artifacts import Dose, Interval, Intervention
from ..numbering import layers_text
from .drawing import (
    COLOURS,
    GREY,
    ORANGE,
    SYMBOLS,
    VERMILION,
    Figure,
    Spec,
    axis_title,
    band_trace,
    curve_layout,
    horizontal_line,
    line_trace,
    plot_spec,
    rows_layout,
    vertical_line,
)
from .wording import scaled_text

_DOSE = "alpha (0 dropped, 1 intact)"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def dose_figures(found: Intervention) -> list[Figure]:
    """Draw what can be drawn: the metric where there are labels, the deviation always."""
    figures = [_metric_figure(found)] if found.metric_trend else []
    figures.append(_deviation_figure(found))
    if len(found.by_layer) > 1:
        figures.append(_layer_figure(found))
    if found.random.metric:
        figures.append(_random_figure(found, "gain"))
    if found.random.deviation:
        figures.append(_random_figure(found, "deviation_removed"))
    return figures


def _line(name: str, doses: Sequence[Dose], field: str, number: int) -> list[Spec]:
    """Return the line of one quantity over alpha, with its band."""
    colour = COLOURS[number % len(COLOURS)]
    x = [dose.alpha for dose in doses]
    line = line_trace(name, x, [getattr(dose, field) for dose in doses], colour)
    line |= {"mode": "lines+markers", "legendgroup": name}
    line["line"] |= {"dash": _DASHES[number % len(_DASHES)]}
    line["marker"] |= {"symbol": SYMBOLS[number % len(SYMBOLS)]}
    bands: list[Interval] = [getattr(dose, f"{field}_interval") for dose in doses]
    return [band_trace(name, x, bands, colour), line]


def _layout(y_title: str) -> Spec:
    layout = curve_layout(y_title, _DOSE)
    layout["shapes"] = [vertical_line(1.0)]
    return layout


def _metric_figure(found: Intervention) -> Figure:
    traces = _line("target", found.target, "difference", 1)
    if found.id[0].difference is not None:
        traces += _line("ID", found.id, "difference", 0)
    sign = 1 if found.higher_is_better else -1
    gains = [drawn for drawn in found.random.sets if drawn.gain is not None]
    if gains:
        hover = [escape(layers_text(drawn.layers)) for drawn in gains]
        changes = [sign * (drawn.gain or 0.0) for drawn in gains]
        traces.append(_points("target, random layers", [0.0] * len(gains), changes, GREY) | {"text": hover})
    if found.norms.target.difference is not None:
        alone = _points("target, norms of ID", [1.0], [found.norms.target.difference], ORANGE)
        alone["marker"] |= {"symbol": "star", "size": 12, "opacity": 1.0}
        traces.append(alone)
    layout = _layout(axis_title(f"change in {found.metric}", found.higher_is_better))
    layout["hovermode"] = "closest"
    layout["yaxis"]["range"] = _range_of(traces)
    caption = (
        f"{scaled_text(found)}, against the intact model on the same report rows. "
        "Bands are 95 % intervals. Circles: as many other layers, dropped, as far as they are in view. "
        "Star: norms made those of ID behind the layers, nothing removed."
    )
    return Figure("dose-metric", f"{found.metric} over the dose", caption, plot_spec(traces, layout))


def _range_of(traces: Sequence[Spec]) -> list[float]:
    """Return the range of lines and bands: a layer that nothing works without would flatten them."""
    values = [y for trace in traces if trace["mode"] != "markers" for y in trace["y"]]
    margin = 0.1 * (max(values) - min(values)) or 0.01
    return [min(values) - margin, max(values) + margin]


def _points(name: str, x: list[float], y: list[float], colour: str) -> Spec:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "marker": {"color": colour, "size": 8, "opacity": 0.6, "symbol": "circle-open"},
        "hovertemplate": "%{text} %{y:.4g}<extra></extra>" if name.endswith("layers") else "%{y:.4g}",
    }


def _deviation_figure(found: Intervention) -> Figure:
    traces: list[Spec] = []
    for start, (role, doses) in enumerate((("ID", found.id), ("target", found.target))):
        traces += _line(f"{role}, norms", doses, "norm_deviation", start)
        traces += _line(f"{role}, distances", doses, "distance_deviation", start + 2)
    layout = _layout("mean |log ratio| to ID")
    layout["yaxis"]["rangemode"] = "tozero"
    for floor, dash in zip(found.noise_floor, ("dash", "dot"), strict=True):
        layout["shapes"].append(horizontal_line(floor, dash, 1.5))
    caption = (
        "Distance from the ID profile of the intact model, over the boundaries that are left when the layers "
        "are gone. Grey lines: what two random halves of ID differ by (dashed: norms, dotted: distances)."
    )
    return Figure("dose-deviation", "Deviation over the dose", caption, plot_spec(traces, layout))


def _layer_figure(found: Intervention) -> Figure:
    field = "difference" if found.metric_trend else "distance_deviation"
    traces = []
    for number, alone in enumerate(found.by_layer):
        traces += _line(f"layer {escape(str(alone.layer))}", alone.target, field, number)
    title = (
        axis_title(f"change in {found.metric}", found.higher_is_better)
        if found.metric_trend
        else "deviation of distances"
    )
    caption = "Target rows; each layer is scaled alone, the others are intact. Bands are 95 % intervals."
    return Figure("dose-layers", "Layer by layer", caption, plot_spec(traces, _layout(title)))


def _random_figure(found: Intervention, field: str) -> Figure:
    """Draw the selected layers on one line and all random sets on the next."""
    is_metric = field == "gain"
    ranked = found.random.metric if is_metric else found.random.deviation
    assert ranked is not None
    drawn = [part for part in found.random.sets if getattr(part, field) is not None]
    selected = _points("selected layers", [ranked.selected], [0.0], VERMILION)
    selected["marker"] |= {"symbol": "diamond", "size": 13, "opacity": 1.0}
    others = _points("random layers", [getattr(part, field) for part in drawn], [-1.0] * len(drawn), GREY)
    for trace, sets in ((selected, [found.layers]), (others, [part.layers for part in drawn])):
        trace["text"] = [escape(layers_text(layers)) for layers in sets]
        trace["hovertemplate"] = "%{text}: %{x:.4g}<extra></extra>"
    what = f"gain in {found.metric}" if is_metric else "share of the deviation removed"
    layout = rows_layout(["selected", "random"], escape(what))
    layout["shapes"] = [vertical_line(0.0)]
    layout["showlegend"] = False
    caption = "Dropped on the target. Right of zero is better; each grey circle is one set of other layers."
    name = "random-metric" if is_metric else "random-deviation"
    title = f"Random layers: {what}"
    return Figure(name, title, caption, plot_spec([others, selected], layout))
