"""An intervention in words and as tables: what a dose of some layers does, and its controls.

Every claim names the numbers that it rests on; what they do not show is called undecided.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..artifacts import Accuracy, Dose, Interval, Intervention, Rank, Trend
from ..numbering import layers_text
from .tables import Row, TextTable
from .wording import effect, number, p_text, scaled_text, signed, span

# --- verdict --------------------------------------------------------------------------------


def intervention_verdict(found: Intervention) -> tuple[str, ...]:
    """Return what the sweep and its controls show, a sentence each."""
    metric, deviation = found.random.metric, found.random.deviation
    sentences = [
        _about_dropping(found),
        _about_rank("gain in the metric", found, metric) if metric else None,
        _about_metric_trend(found),
        _about_flatness(found),
        _about_norms(found),
        _about_deviation(found),
        _about_rank("share of the deviation removed", found, deviation) if deviation else None,
        None if found.random.sets else _without_random(found),
    ]
    return tuple(sentence for sentence in sentences if sentence)


def _about_dropping(found: Intervention) -> str:
    what = f"Dropping {layers_text(found.layers)} of {found.num_layers}"
    target = found.dropped.get("target")
    if target is None:
        return f"{what}: the target rows have no labels, so that only their geometry is judged."
    does = {"gain": "improves", "harm": "harms", "unclear": "is not shown to change"}[effect(target)]
    return f"{what} {does} the target: {_change(target)}."


def _change(accuracy: Accuracy) -> str:
    return (
        f"{accuracy.metric} {number(accuracy.original)} to {number(accuracy.pruned)} "
        f"({signed(accuracy.difference)}, 95 % interval {span(accuracy.interval, sign=True)}; "
        f"{p_text(accuracy.p_value)}; {accuracy.n} rows)"
    )


def _about_rank(quantity: str, found: Intervention, ranked: Rank) -> str:
    size = len(found.layers)
    other = "other single layers" if size == 1 else f"other sets of {size} layers"
    all_ = " there are" if ranked.num_sets == found.random.num_possible else " drawn"
    judged = {
        "distinguishable": "distinguishable from random layers",
        "not distinguishable": "not distinguishable from random layers",
        "undecided": "undecided, too few other layers to tell by rank",
    }[ranked.judgement]
    margin = ""
    if ranked.margin is not None:
        margin = f"; over the strongest of them {span(ranked.margin, sign=True)}, row by row"
    return (
        f"Random layers, {quantity}: {judged} ({signed(ranked.selected)} selected; median "
        f"{signed(ranked.median)} and best {signed(ranked.best)} of the {ranked.num_sets} {other}{all_}; "
        f"{ranked.num_as_good} as good; {p_text(ranked.p_value)}{margin})."
    )


def _without_random(found: Intervention) -> str:
    if found.random.num_possible:
        return "Random layers: none were drawn."
    size = len(found.layers)
    return f"Random layers: undecided, there is no other set of {size} that could go."


def _about_metric_trend(found: Intervention) -> str | None:
    if found.metric_trend is None:
        return None
    rises_is_better = found.higher_is_better
    better = {"rises": not rises_is_better, "falls": rises_is_better}.get(found.metric_trend.judgement)
    word = "" if better is None else f", for the {'better' if better else 'worse'}"
    return f"Dose, target {found.metric}: {_trend(found.metric_trend, word)}."


def _trend(trend: Trend, word: str = "") -> str:
    """Say which way a quantity goes as layers are taken away: alpha then falls from 1 to 0."""
    judged = {
        "rises": f"monotone, falling as alpha goes from 1 to 0{word}",
        "falls": f"monotone, rising as alpha goes from 1 to 0{word}",
        "not monotone": "not monotone in alpha from 1 to 0",
        "undecided": "undecided whether it is monotone in alpha from 1 to 0",
    }[trend.judgement]
    return (
        f"{judged} (dropping changes it by {signed(trend.change)}, {span(trend.change_interval, sign=True)}; "
        f"Spearman with alpha {signed(trend.spearman)}, {span(trend.interval, sign=True)})"
    )


def _about_flatness(found: Intervention) -> str:
    flat = found.flatness
    if flat is None:
        return "ID: the rows have no labels, so that only their geometry is judged."
    judged = {"flat": "flat", "not flat": "not flat", "undecided": "undecided whether it is flat"}
    return (
        f"ID: {judged[flat.judgement]} within +-{number(flat.epsilon)} for alpha from 0 to 1 (largest change "
        f"of {found.metric} {signed(flat.difference)}, {span(flat.interval, sign=True)}, at alpha "
        f"{flat.alpha:g}; {found.num_id} rows)."
    )


def _about_norms(found: Intervention) -> str | None:
    norms = found.norms
    if norms.judgement is None or norms.excess is None or norms.excess_interval is None:
        return None
    judged = {
        "more": "dropping gains more",
        "less": "dropping gains less",
        "undecided": "undecided whether dropping gains more",
    }[norms.judgement]
    return (
        f"Norms of ID alone, nothing removed: {judged} (target {found.metric} changes by "
        f"{signed(norms.target.difference or 0.0)}, {_in(norms.target.difference_interval)}; dropping "
        f"gains {signed(norms.excess)} over that, {span(norms.excess_interval, sign=True)})."
    )


def _in(interval: Interval | None) -> str:
    return "n/a" if interval is None else span(interval, sign=True)


def _about_deviation(found: Intervention) -> str:
    dropped, intact = (next(d for d in found.target if d.alpha == alpha) for alpha in (0, 1))
    floor = sum(found.noise_floor) / 2
    moved = next(dose for dose in found.id if dose.alpha == 0)
    return (
        "Deviation of the target from ID (mean of that of norms and of distances): "
        f"{intact.deviation:.3g} intact, {dropped.deviation:.3g} dropped, noise floor {floor:.3g}; "
        f"{_trend(found.deviation_trend)}; dropping moves ID itself by {number(moved.deviation)}."
    )


# --- tables ---------------------------------------------------------------------------------


def dose_table(found: Intervention) -> TextTable:
    """Return both distributions at every alpha, for a terminal."""
    has_labels = {name: getattr(found, name)[0].metric is not None for name in ("target", "id")}
    columns = ["alpha"]
    for name, role in (("target", "target"), ("id", "ID")):
        columns += [f"{role} {found.metric}", "change [95 % interval]"] if has_labels[name] else []
    columns += ["target norms", "distances", "ID norms", "distances"]
    rows: list[Row] = []
    for target, id_ in zip(found.target, found.id, strict=True):
        cells = [f"{target.alpha:g}"]
        for dose in (target, id_):
            if dose.metric is not None and dose.difference is not None:
                cells += [number(dose.metric), f"{signed(dose.difference)} {_bracketed(dose)}"]
        for dose in (target, id_):
            cells += [number(dose.norm_deviation), number(dose.distance_deviation)]
        rows.append(tuple(cells))
    return TextTable(_caption(found), tuple(columns), tuple(rows))


def _bracketed(dose: Dose) -> str:
    low, high = dose.difference_interval or (0.0, 0.0)
    return f"[{signed(low)}, {signed(high)}]"


def _caption(found: Intervention) -> str:
    better = "higher is better" if found.higher_is_better else "lower is better"
    norms, distances = map(number, found.noise_floor)
    return (
        f"{scaled_text(found)} scaled by alpha (0 dropped, 1 intact): {found.metric} "
        f"({better}) and deviation from ID (noise floor: norms {norms}, distances {distances}), on "
        f"{found.num_target} target and {found.num_id} ID report rows"
    )


def role_tables(found: Intervention) -> list[TextTable]:
    """Return target and ID at every alpha, of the layers together and of each alone, with intervals."""
    tables = [
        _role_table(f"{role}, {layers_text(found.layers)}", found.metric, getattr(found, name))
        for name, role in (("target", "Target"), ("id", "ID"))
    ]
    tables += [
        _role_table(f"Target {name}, {layers_text(found.layers)}", found.metric, doses)
        for name, doses in found.targets.items()
    ]
    if len(found.layers) > 1:
        for alone in found.by_layer:
            tables += [
                _role_table(f"Target, layer {alone.layer} alone", found.metric, alone.target),
                _role_table(f"ID, layer {alone.layer} alone", found.metric, alone.id),
            ]
    return tables


def _role_table(title: str, metric: str, doses: Sequence[Dose]) -> TextTable:
    geometry = ("deviation of norms", "deviation of distances")
    is_labelled = doses[0].metric is not None
    columns = ("alpha", *((metric, "change", "loss") if is_labelled else ()), *geometry)
    rows = []
    for dose in doses:
        pairs = [
            (dose.metric, dose.metric_interval, False),
            (dose.difference, dose.difference_interval, True),
            (dose.loss, dose.loss_interval, False),
            (dose.norm_deviation, dose.norm_deviation_interval, False),
            (dose.distance_deviation, dose.distance_deviation_interval, False),
        ]
        cells = [
            f"{(signed if sign else number)(value)} ({span(within, sign=sign)})"
            for value, within, sign in pairs
            if value is not None and within is not None
        ]
        rows.append((f"{dose.alpha:g}", *cells))
    return TextTable(f"{title} scaled by alpha (95 % intervals)", columns, tuple(rows))


def random_table(found: Intervention) -> TextTable:
    """Return what each random set of layers does on the target when dropped, the selected one first."""
    rows = [(_named(drawn.layers), drawn.gain, drawn.deviation_removed) for drawn in found.random.sets]
    gain, share = (
        None if ranked is None else ranked.selected
        for ranked in (found.random.metric, found.random.deviation)
    )
    rows.insert(0, (f"selected: {_named(found.layers)}", gain, share))
    return TextTable(
        "Layers dropped on the target: the selected ones, and random ones",
        ("layers", f"gain in {found.metric}", "deviation removed"),
        tuple((name, _signed(gain), _signed(share)) for name, gain, share in rows),
    )


def _named(layers: Sequence[object]) -> str:
    return ", ".join(map(str, layers))


def _signed(value: float | None) -> str:
    return "n/a" if value is None else signed(value)
