"""Several target domains: what each number of layers trades, as a table and a plot, and their profiles."""

from __future__ import annotations

from html import escape

from ..artifacts import Point, Profile, Selection
from .drawing import BLUE, GREY, VERMILION, Figure, Spec, curve_layout, plot_spec, vertical_line
from .tables import TextTable
from .wording import changed_text, choice_text, number, objective_text, signed


def trade_off_table(selection: Selection) -> TextTable:
    """Return a row for each number of layers: target, its domains and ID, and whether it is on the front."""
    metric, domains = selection.metric or "metric", list(selection.points[0].domains)
    noun = selection.units.noun
    columns = (
        "pick",
        f"target ({selection.objective})",
        "gain",
        *domains,
        "ID",
        "ID loss",
        "front",
        "layers",
    )
    rows = tuple(
        (
            str(point.num_changed),
            number(point.target),
            signed(point.gain),
            *(number(point.domains[name]) for name in domains),
            number(point.id),
            signed(point.id_loss),
            "yes" if point.is_on_front else "no",
            ",".join([*map(str, point.drop), *map(choice_text, point.damp)]) or "none",
        )
        for point in selection.points
    )
    caption = (
        f"{metric} on the rows that drive the choice, for every number of {noun} that --pick can name; "
        f"on the front are those that no other beats in target gain, ID loss and {noun} dropped at once"
    )
    return TextTable(caption, columns, rows)


def trade_off_figure(selection: Selection) -> Figure:
    """Draw target gain over ID loss, a point for each number of layers; the front is marked."""
    groups = (
        ("on the front", [p for p in selection.points if p.is_on_front], BLUE, "circle"),
        ("beaten by another", [p for p in selection.points if not p.is_on_front], GREY, "x"),
        (
            "picked",
            [p for p in selection.points if (p.drop, p.damp) == (selection.drop, selection.damp)],
            VERMILION,
            "star-open",
        ),
    )
    traces = [_points(*group) for group in groups if group[1]]
    metric = selection.metric or "metric"
    layout = curve_layout(f"gain on the {objective_text(selection)}", f"ID loss in {escape(metric)}")
    layout["hovermode"] = "closest"
    layout["shapes"] = [vertical_line(0.0)]
    caption = (
        "Numbers are those that --pick can name. Up is better on the target, left is better on ID. All on "
        "rows that drive the choice: the report rows tell what remains of it."
    )
    return Figure("trade-offs", "Target gain against ID loss", caption, plot_spec(traces, layout))


def _points(name: str, points: list[Point], colour: str, symbol: str) -> Spec:
    is_picked = name == "picked"
    return {
        "type": "scatter",
        "mode": "markers" if is_picked else "markers+text",
        "name": name,
        "x": [point.id_loss for point in points],
        "y": [point.gain for point in points],
        "text": [str(point.num_changed) for point in points],
        "textposition": "top center",
        "customdata": [escape(changed_text(p)) or "nothing dropped" for p in points],
        "marker": {"color": colour, "symbol": symbol, "size": 18 if is_picked else 10},
        "hovertemplate": "%{customdata}: gain %{y:.4g}, ID loss %{x:.4g}<extra></extra>",
    }


def domain_table(profile: Profile) -> TextTable:
    """Return how far each target domain deviates from ID, before and after pruning."""
    rows = []
    for name, part in profile.targets.items():
        after, removed = part.pruned_deviation, part.deviation_removed
        rows.append(
            (
                name,
                str(part.target.num_samples),
                number(part.deviation.mean),
                "n/a" if after is None else number(after.mean),
                "n/a" if removed is None else f"{removed * 100:.0f} %",
            )
        )
    columns = ("domain", "samples", "deviation", "after pruning", "removed")
    floor = number(profile.deviation.noise_floor.mean)
    return TextTable(
        f"Mean |log ratio| of each target domain to ID (noise floor {floor})", columns, tuple(rows)
    )
