"""Plots of the method at work: the profiles of the residual stream, and the search."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..artifacts import Candidate, LayerName, LayerProfile, Profile, Selection
from ..numbering import whole_layers
from .drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    Figure,
    Spec,
    axis_title,
    band_trace,
    curve_layout,
    faint_colour,
    horizontal_line,
    integer_ticks,
    line_trace,
    plot_spec,
)
from .tables import boundary_table, candidate_table, influence_table
from .tradeoffs import trade_off_figure
from .wording import choice_text, damped_text, number

_STYLE = {
    "ID": (BLUE, "solid", "circle"),
    "ID, pruned": (SKY, "dot", "square"),
    "target": (VERMILION, "solid", "diamond"),
    "target, pruned": (GREEN, "dash", "triangle-up"),
}


# --- profiles -------------------------------------------------------------------------------


def profile_figures(profile: Profile) -> tuple[Figure, ...]:
    """Draw norms, distances, their deviation from ID, and each layer's influence."""
    return (
        profile_figure(profile, "norms", "Norm profile", "mean norm"),
        profile_figure(profile, "distances", "Distance profile", "mean pairwise distance"),
        deviation_figure(profile, "norms", "Deviation of norms"),
        deviation_figure(profile, "distances", "Deviation of distances"),
        influence_figure(profile),
    )


def profile_figure(profile: Profile, quantity: str, title: str, unit: str) -> Figure:
    """Draw `norms` or `distances` a boundary: ID and target, before and after, with bands."""
    traces: list[Spec] = []
    numbering = profile.numbering
    for name, part in profile.series.items():
        traces += _banded(name, part, quantity, numbering.boundaries)
    values = [v for _, part in profile.series.items() for v in getattr(part, quantity)]
    wide = min(values) > 0 and max(values) / min(values) > 20
    layout = curve_layout(f"{unit}{', log scale' if wide else ''}", "boundary")
    layout["xaxis"] |= _ticks(numbering.boundary_names)
    layout["yaxis"]["type"] = "log" if wide else "linear"
    layout |= _marked(profile, between_boundaries=True)
    where = (
        "Boundary 0 of a stack is what enters it, boundary l+1 follows its layer l."
        if profile.stacks
        else "Boundary 0 follows the embedding, boundary l+1 follows layer l."
    )
    caption = f"{where} Bands are 95 % bootstrap intervals over samples.{_drop_note(profile)}"
    data = boundary_table(profile, quantity)
    return Figure(f"profile-{quantity}", title, caption, plot_spec(traces, layout), data)


def _cut(trace: Spec, stacks: Sequence[range]) -> list[Spec]:
    """Cut a line where a stack ends: no layer leads from there to the next. The legend names it once."""
    if len(stacks) == 1:
        return [trace]
    return [
        trace
        | {
            "x": [trace["x"][place] for place in part],
            "y": [trace["y"][place] for place in part],
            "legendgroup": trace["name"],
            "showlegend": part is stacks[0],
        }
        for part in stacks
    ]


def _ticks(names: Sequence[LayerName]) -> Spec:
    """Return ticks at whole numbers, or at names, thinned alike."""
    ticks = integer_ticks(len(names))
    if all(isinstance(name, int) for name in names):
        return ticks
    places = list(range(0, len(names), ticks["dtick"]))
    return {"tickmode": "array", "tickvals": places, "ticktext": [escape(str(names[n])) for n in places]}


def _banded(name: str, part: LayerProfile, quantity: str, stacks: Sequence[range]) -> list[Spec]:
    colour, dash, symbol = _STYLE[name]
    values, band = getattr(part, quantity), getattr(part, f"{quantity}_band")
    x = list(range(len(values)))
    line = line_trace(name, x, values, colour) | {"mode": "lines+markers", "legendgroup": name}
    line["line"] |= {"dash": dash}
    line["marker"] |= {"symbol": symbol}
    lines = _cut(line, stacks)
    if not band:
        return lines
    fills = [band_trace(name, places, [band[n] for n in places], colour) for places in stacks]
    return [*fills, *lines]


def deviation_figure(profile: Profile, quantity: str, title: str) -> Figure:
    """Draw the target's deviation from ID a boundary, before and after, over the noise floor."""
    floor, numbering = getattr(profile.deviation.noise_floor, quantity), profile.numbering
    x = list(range(len(floor)))
    noise = line_trace("noise floor", x, floor, GREY) | {
        "fill": "tozeroy",
        "fillcolor": faint_colour(GREY),
    }
    noise["line"] |= {"dash": "dot"}
    before = line_trace("before", x, getattr(profile.deviation, quantity), VERMILION)
    traces = [noise, before | {"mode": "lines+markers"}]
    if profile.pruned_deviation:
        after = line_trace("after pruning", x, getattr(profile.pruned_deviation, quantity), GREEN)
        after["line"] |= {"dash": "dash"}
        after["marker"] |= {"symbol": "triangle-up"}
        traces.append(after | {"mode": "lines+markers"})
    layout = curve_layout("|log ratio| to ID", "boundary")
    layout["xaxis"] |= _ticks(numbering.boundary_names)
    layout["yaxis"]["rangemode"] = "tozero"
    layout |= _marked(profile, between_boundaries=True)
    traces = [piece for trace in traces for piece in _cut(trace, numbering.boundaries)]
    caption = (
        "Distance of the target from ID. Below the noise floor (what two random halves of ID show "
        f"between them) there is nothing to see.{_drop_note(profile)}"
    )
    return Figure(f"deviation-{quantity}", title, caption, plot_spec(traces, layout))


def influence_figure(profile: Profile) -> Figure:
    """Draw each layer's influence; dropped layers leave gaps in the pruned series."""
    traces: list[Spec] = []
    for name, part in profile.series.items():
        colour, dash, symbol = _STYLE[name]
        trace = line_trace(name, list(range(len(part.influences))), part.influences, colour)
        trace["line"] |= {"dash": dash}
        trace["marker"] |= {"symbol": symbol}
        traces += _cut(trace | {"mode": "lines+markers"}, profile.numbering.ranges)
    layout = curve_layout("1 - cos(input, output)", "layer")
    layout["xaxis"] |= _ticks(profile.layers)
    layout["yaxis"]["rangemode"] = "tozero"
    layout |= _marked(profile, between_boundaries=False)
    caption = f"How much each layer turns the residual stream.{_drop_note(profile)}"
    data = influence_table(profile)
    return Figure("influence", "Influence of each layer", caption, plot_spec(traces, layout), data)


def _drop_note(profile: Profile) -> str:
    grey = " Grey columns mark dropped layers." if whole_layers(profile.drop) else ""
    return f"{grey} Damped: {damped_text(profile.damp)}." if profile.damp else grey


def _marked(profile: Profile, *, between_boundaries: bool) -> Spec:
    """Grey columns where layers were dropped; layer l of a stack lies between its boundaries l and l+1."""
    shapes, notes = [], []
    numbering = profile.numbering
    for layer in whole_layers(profile.drop):
        place = numbering.index(layer)
        middle = place + (numbering.stack_of(place) + 0.5 if between_boundaries else 0.0)
        shapes.append(
            {
                "type": "rect",
                "x0": middle - 0.5,
                "x1": middle + 0.5,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "fillcolor": "rgba(128,128,128,0.16)",
                "line": {"width": 0},
                "layer": "below",
            }
        )
        note = {"x": middle, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        notes.append(note | {"text": escape(str(layer)), "font": {"size": 11}})
    return {"shapes": shapes, "annotations": notes}


# --- search ---------------------------------------------------------------------------------


def search_figures(selection: Selection) -> tuple[Figure, ...]:
    """Draw the trajectory, if a round was run, and what each number of layers trades, if that is known."""
    trajectory = search_figure(selection)
    trades = (trade_off_figure(selection),) if selection.points else ()
    return ((trajectory,) if trajectory else ()) + trades


def search_figure(selection: Selection) -> Figure | None:
    """Draw the trajectory: every candidate tried, the accepted path, the depth that was picked."""
    rounds = [step.candidates for step in selection.steps]
    if selection.rejected:
        rounds.append(selection.rejected)
    if not rounds:
        return None
    # What is known of an abandoned candidate is a bound of the number that the criterion compares.
    is_bound_metric = selection.criterion != "loss"
    measured = all(step.metric is not None for step in selection.steps) and all(
        c.metric is not None or (c.bound is not None and is_bound_metric)
        for candidates in rounds
        for c in candidates
    )
    field = "metric" if measured else "score"
    label = (selection.metric or "metric") if measured else f"{selection.criterion} score"
    last = len(selection.steps)
    traces = []
    for name, tried, first in (("", rounds[:last], 1), ("rejected ", rounds[last:], last + 1)):
        traces.append(_candidates(f"{name}candidate", tried, first, field))
        at_best = _candidates(f"{name}candidate, at best", tried, first, field, abandoned=True)
        if field == "metric" and not selection.higher_is_better:  # the arrow points to where it is worse
            at_best["marker"]["symbol"] = "arrow-bar-up-open"
        traces.append(at_best)
    traces += _path(selection, field)
    changed = "dropped or damped" if selection.criterion == "damp" else "dropped"
    layout = curve_layout(
        axis_title(label, selection.higher_is_better if measured else None), f"layers {changed}"
    )
    layout["xaxis"] |= integer_ticks(len(rounds) + 1)
    layout["xaxis"]["range"] = [-0.3, len(rounds) + 0.3]
    layout["height"] = 420
    layout["hovermode"] = "closest"
    layout |= _levels(selection) if measured else {}
    caption = (
        f"Each mark is the model with one more layer {changed}, on the {selection.num_samples} rows "
        f"that drove the search ({selection.select_on}); the accepted path names that layer. "
        f"Search ended: {selection.stop_reason}"
    ).rstrip(".") + "."
    if any(c.outcome == "abandoned" for candidates in rounds for c in candidates):
        caption += (
            " Marks with an arrow are the best that a candidate could still reach when it was given up; "
            "--full-scores scores all in full."
        )
    data = candidate_table(selection)
    spec = plot_spec([t for t in traces if t["x"]], layout)
    return Figure("search", "Search trajectory", caption, spec, data)


def _candidates(
    name: str, rounds: Sequence[Sequence[Candidate]], first: int, field: str, *, abandoned: bool = False
) -> Spec:
    pairs = [
        (first + i, c)
        for i, candidates in enumerate(rounds)
        for c in candidates
        if (c.outcome == "abandoned") == abandoned
    ]
    rejected = name.startswith("rejected")
    symbol = "x-thin-open" if rejected else "circle"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [depth for depth, _ in pairs],
        "y": [c.bound if abandoned and field == "metric" else getattr(c, field) for _, c in pairs],
        "text": [_hover(c) for _, c in pairs],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": ORANGE if rejected else SKY,
            "symbol": "arrow-bar-down-open" if abandoned else symbol,
            "size": 7 if rejected else 6,
            "opacity": 0.9 if rejected else 0.7,
        },
    }


def _hover(candidate: Candidate) -> str:
    layer = escape(choice_text(candidate))
    if candidate.outcome == "abandoned":
        return (
            f"layer {layer}<br>at best {number(candidate.bound)} after {candidate.rows} rows"
            f"<br>abandoned: layer {escape(str(candidate.against))} is better"
        )
    rows = f"<br>estimated from {candidate.rows} rows" if candidate.outcome == "estimated" else ""
    return (
        f"layer {layer}<br>metric {number(candidate.metric)}"
        f"<br>loss {number(candidate.loss)}<br>score {number(candidate.score)}{rows}"
    )


def _path(selection: Selection, field: str) -> list[Spec]:
    """The accepted path from the original model on, and the point on it that was picked."""
    points = [
        (depth, getattr(step, field), escape(choice_text(step)))
        for depth, step in enumerate(selection.steps, start=1)
    ]
    if field == "metric" and selection.baseline_metric is not None:
        points.insert(0, (0, selection.baseline_metric, ""))  # the line of its level is named
    path = line_trace("accepted", [p[0] for p in points], [p[1] for p in points], BLUE)
    # The picked point's label is left to the star, which knows how much room the star takes.
    picked = [p for p in points if p[0] == selection.num_changed]
    labels = ["" if p in picked else p[2] for p in points]
    star = {
        "type": "scatter",
        "name": "picked",
        "x": [p[0] for p in picked],
        "y": [p[1] for p in picked],
        "text": [p[2] for p in picked],
        "marker": {"symbol": "star", "size": 17, "color": VERMILION},
    }
    # On the side where a candidate would have been better, there is none.
    falls = field == "metric" and not selection.higher_is_better
    side = "bottom center" if falls else "top center"
    labelled = {"mode": "markers+text", "textposition": side, "cliponaxis": False}
    hover = {"hovertemplate": "%{x} dropped: %{y:.4g}<extra></extra>"}
    return [
        path | labelled | hover | {"mode": "lines+markers+text", "text": labels},
        star | labelled | hover,
    ]


def _levels(selection: Selection) -> Spec:
    """Horizontal lines for the original model and the floor, each named at its right end."""
    levels = {"original": selection.baseline_metric, "floor": selection.floor}
    if selection.floor == selection.baseline_metric:
        levels = {"original = floor": selection.floor}
    shapes, notes = [], []
    for name, value in levels.items():
        if value is None:
            continue
        shapes.append(horizontal_line(value, "dot" if name == "floor" else "dash", 1.5))
        note = {"x": 1, "xref": "paper", "xanchor": "right", "y": value, "showarrow": False}
        anchor = "top" if name == "floor" else "bottom"
        notes.append(note | {"yanchor": anchor, "text": f"{name} {number(value)}"})
    return {"shapes": shapes, "annotations": notes}
