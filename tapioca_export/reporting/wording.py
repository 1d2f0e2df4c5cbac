"""The verdict and the findings: numbers -> plain sentences.

Every claim of a change rests on a 95 % interval that excludes no change; what the interval does
not show is said not to be shown. Knows nothing about Markdown or HTML: sentences are plain text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ..artifacts import (
    Accuracy,
    Benchmark,
    Candidate,
    Damping,
    Export,
    Interval,
    Intervention,
    Pair,
    Point,
    Profile,
    Selection,
    Step,
)
from ..numbering import counted, layers_text
from .exported import about_export, number_of
from .sessions import about_sessions
from .speeds import about_medians, about_speed, speed_clause

Effect = Literal["gain", "harm", "unclear"]

PAPER_NOTE = (
    "The body of the TAPIOCA paper was not available to this project: profile deviation as computed here and "
    'the criteria "tapioca" and "realignment" are this project\'s own proposal, not the paper\'s.'
)
TORCHSCRIPT_NOTE = (
    "TorchScript is deprecated in PyTorch; use that export only where a runtime still needs it (its "
    "successor: --format pt2)."
)


# --- numbers --------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Return three decimals, or three significant digits outside 0.001 to 1000."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def signed(value: float) -> str:
    """Return `number` with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def span(interval: Interval, *, sign: bool = False) -> str:
    """Return "low to high"."""
    show = signed if sign else number
    return f"{show(interval[0])} to {show(interval[1])}"


def p_text(p_value: float) -> str:
    """Return "p = 0.012", or "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def size_text(size: float) -> str:
    """Return a number of bytes in the decimal unit that fits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def model_text(model: str) -> str:
    """Return a model's name: the last part of a folder's path, or the whole name on the hub."""
    return Path(model).name if Path(model).is_absolute() else model


def damped_text(damp: Iterable[Damping]) -> str:
    """Return "layer 4 (times 0.5)", or several."""
    return counted("layer", [f"{part.layer} (times {part.scale:g})" for part in damp])


def changed_text(selection: Selection | Point) -> str:
    """Return "dropping layers 4 and 7" or "dropping layer 7 and damping layer 4 (times 0.5)"."""
    parts = [f"dropping {layers_text(selection.drop)}"] if selection.drop else []
    parts += [f"damping {damped_text(selection.damp)}"] if selection.damp else []
    return " and ".join(parts)


def scaled_text(found: Intervention) -> str:
    """Say what alpha multiplies."""
    layers = layers_text(found.layers)
    return f"The branches of {layers}" if found.scaling == "branches" else layers.capitalize()


def choice_text(choice: Step | Candidate | Damping) -> str:
    """Return "4", or where the layer is damped "4:0.5", as options name it."""
    return f"{choice.layer}:{choice.scale:g}" if choice.scale else str(choice.layer)


def role_text(role: str) -> str:
    """Return the role as it stands in a sentence."""
    name, comma, rest = role.partition(",")  # "id, worst group"
    return ("ID" if name == "id" else name) + comma + rest


def objective_text(found: Selection | Benchmark) -> str:
    """Return what of the target counts: "target", or "mean of targets airline and banking"."""
    if found.objective is None:
        return "target"
    domains = found.targets if isinstance(found, Benchmark) else found.points[0].domains
    what = {"mean": "mean", "worst": "worst", "weights": "weighted mean"}[found.objective]
    return f"{what} of {counted('target', list(domains))}"


def change_text(accuracy: Accuracy) -> str:
    """Return the change and its interval."""
    return f"{signed(accuracy.difference)} ({span(accuracy.interval, sign=True)})"


# --- judgements -----------------------------------------------------------------------------


def effect(accuracy: Accuracy) -> Effect:
    """Judge by interval and test together: an effect has an interval clear of zero and p < 0.05.

    Where few rows change, a bootstrap interval is too narrow, and the exact test is the judge.
    """
    low, high = accuracy.gain_interval
    if accuracy.p_value >= 0.05:
        return "unclear"
    if low > 0:
        return "gain"
    return "harm" if high < 0 else "unclear"


# --- verdict --------------------------------------------------------------------------------


def verdict(selection: Selection, benchmark: Benchmark) -> str:
    """Return one sentence that says whether dropping helped, with its numbers."""
    target = benchmark.accuracy.get("target")
    if not selection.num_changed:
        return _nothing_dropped(selection, target)
    clauses = [
        _target_clause(selection, target, objective_text(benchmark)),
        *_domain_clauses(benchmark),
        _id_clause(benchmark.accuracy.get("id")),
        speed_clause(benchmark.served),
        _size_clause(benchmark.size_bytes),
    ]
    if target is not None and effect(target) != "gain":
        clauses.append("unless a smaller or faster model is the goal, remove nothing")
    return "; ".join(clauses) + "."


def _nothing_dropped(selection: Selection, target: Accuracy | None) -> str:
    reason = selection.stop_reason.strip().rstrip(".") or "no reason given"
    state = (
        "the target was not measured, it has no labelled rows"
        if target is None
        else f"target {target.metric} stays at {number(target.original)} on {target.n} rows"
    )
    return (
        f"Remove nothing: criterion {selection.criterion} chose none of the "
        f"{selection.num_layers} layers ({reason}); {state}."
    )


def _target_clause(selection: Selection, target: Accuracy | None, name: str) -> str:
    what = f"{changed_text(selection)} of {selection.num_layers}"
    if target is None:
        return f"Whether {what} helps the target was not measured (no labelled target rows)"
    found, sentence = effect(target), what[0].upper() + what[1:]
    if found == "gain":
        verb = "raises" if target.difference > 0 else "lowers"
        return f"{sentence} {verb} the {name} {target.metric} {_change(target)}"
    if found == "harm":
        return f"{sentence} harms the {name}: {target.metric} goes {_change(target)}"
    return f"No improvement on the {name} was shown for {what}: {target.metric} {_change(target)}"


def _domain_clauses(benchmark: Benchmark) -> list[str]:
    """Name the domains that fall, whatever becomes of the objective."""
    return [
        f"it harms target {name}, {accuracy.metric} {_change(accuracy)}"
        for name, accuracy in benchmark.targets.items()
        if effect(accuracy) == "harm"
    ]


def _id_clause(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "ID was not measured (no labelled ID rows)"
    words = {
        "gain": f"ID improves too, {accuracy.metric}",
        "harm": f"it harms ID, {accuracy.metric}",
        "unclear": f"on ID no change was shown, {accuracy.metric}",
    }
    return f"{words[effect(accuracy)]} {_change(accuracy)}"


def _change(accuracy: Accuracy) -> str:
    return (
        f"from {number(accuracy.original)} to {number(accuracy.pruned)} "
        f"(95 % interval of the change {span(accuracy.interval, sign=True)}, {accuracy.n} rows)"
    )


def _size_clause(size: Pair) -> str:
    if size.original <= 0:
        return "file size was not measured"
    return f"file {saving_text(size)}"


def saving_text(pair: Pair) -> str:
    """Return "25.0 % smaller", "of the same size" or "3.0 % larger"."""
    saved = 1 - pair.pruned / pair.original
    if abs(saved) < 0.0005:
        return "of the same size"
    return f"{abs(saved) * 100:.1f} % {'smaller' if saved > 0 else 'larger'}"


# --- findings -------------------------------------------------------------------------------


def findings(
    selection: Selection, profile: Profile, benchmark: Benchmark, exports: dict[str, Export]
) -> tuple[str, ...]:
    """Return what a reader should know beside the verdict, one short sentence each."""
    return (
        *_about_accuracy(benchmark),
        *_about_optimism(benchmark),
        *about_deviation(profile),
        *about_prediction(selection),
        *about_speed(benchmark),
        *about_medians(benchmark),
        *about_sessions(benchmark),
        *_about_resources(benchmark),
        *(about_export(name, export) for name, export in exports.items()),
        *(f"Not measured here: {reason.strip().rstrip('.')}." for reason in benchmark.skipped),
        PAPER_NOTE,
        *([TORCHSCRIPT_NOTE] if any(e.format == "torchscript" for e in exports.values()) else []),
    )


def _about_accuracy(benchmark: Benchmark) -> list[str]:
    rows = {role: benchmark.accuracy.get(role) for role in ("target", "id")}
    if benchmark.objective is not None:
        rows |= benchmark.rows
        del rows["target"]
    lines = [_accuracy_sentence(role, rows[role]) for role in rows]
    lines += _about_groups(benchmark)
    if any(accuracy.metric == "nmse" for accuracy in benchmark.accuracy.values()):
        lines.append("nmse is the mean squared error divided by the variance of the answers; 0 is perfect.")
    if any(accuracy.metric == "wer" for accuracy in benchmark.accuracy.values()):
        lines.append(
            "wer is the word error rate: wrong, missing and added words by those said; 0 is perfect."
        )
    lines += [
        f"Invalid answers, {role_text(role)}: {accuracy.invalid.original:.0f} of {accuracy.n} before, "
        f"{accuracy.invalid.pruned:.0f} after; in these the rule found no answer, and they count as wrong."
        for role, accuracy in benchmark.rows.items()
        if accuracy.invalid is not None
    ]
    return lines + [
        f"Perplexity, {role_text(role)}: {number(math.exp(accuracy.original))} to "
        f"{number(math.exp(accuracy.pruned))}; log_perplexity is its logarithm."
        for role, accuracy in benchmark.rows.items()
        if accuracy.metric == "log_perplexity"
    ]


def _about_groups(benchmark: Benchmark) -> list[str]:
    """Say what becomes of the worst group, and which groups fall, each judged at its share of 0.05."""
    lines = []
    for role, groups in benchmark.groups.items():
        if benchmark.objective is None:  # elsewhere it stands among the rows
            lines.append(_accuracy_sentence(f"{role}, worst group", groups.worst))
        many = len(groups.each)
        fallen = [
            name
            for name, part in groups.each.items()
            if effect(part) == "harm" and part.p_value * many < 0.05
        ]
        if fallen:
            lines.append(
                f"It harms {len(fallen)} of {number_of(many, 'group')} of the {role_text(role)} rows "
                f"({', '.join(fallen)}); p below 0.05 divided by the number of groups."
            )
    return lines


def _accuracy_sentence(role: str, accuracy: Accuracy | None) -> str:
    name = role_text(role)
    start = name[0].upper() + name[1:]
    if accuracy is None:
        return f"{start}: the task metric was not measured, there are no labelled rows."
    shown = {"gain": "a gain is shown", "harm": "harm is shown", "unclear": "no change is shown"}
    changed = f"; of {accuracy.n} rows {accuracy.gained} became better and {accuracy.lost} worse"
    if accuracy.still_wrong:
        changed += f", {accuracy.still_wrong} more went from one wrong answer to another"
    return (
        f"{start}: {shown[effect(accuracy)]}; {accuracy.metric} changes by "
        f"{signed(accuracy.difference)} ({span(accuracy.interval, sign=True)}; "
        f"{p_text(accuracy.p_value)}){'' if accuracy.gained is None else changed}."
    )


def _about_optimism(benchmark: Benchmark) -> list[str]:
    gap = benchmark.optimism_gap
    if gap is None:
        return []
    if gap > 0:
        return [
            f"Optimism gap: the gain was {number(gap)} larger on the rows that drove the choice "
            "than on the report rows; all other numbers here come from the report rows."
        ]
    return [
        f"Optimism gap: {signed(gap)}; the gain was no larger on the rows that drove the choice "
        "than on the report rows."
    ]


def about_deviation(profile: Profile) -> list[str]:
    """Say how far the target is from ID, and what pruning did to that."""
    before = profile.deviation
    floor = number(before.noise_floor.mean)
    if before.mean <= before.noise_floor.mean:
        return [
            "The target does not deviate from ID beyond the noise floor (mean |log ratio| "
            f"{number(before.mean)}, floor {floor}): there was no shift for pruning to remove."
        ]
    found = (
        f"The target deviates from ID by a mean |log ratio| of {number(before.mean)} (noise floor {floor})"
    )
    after, removed = profile.pruned_deviation, profile.deviation_removed
    if after is None or removed is None:
        return [f"{found}; it was not measured after pruning."]
    did = "lowered" if removed >= 0 else "raised"
    share = f"{abs(removed) * 100:.0f} %"
    rest = "within" if after.mean <= before.noise_floor.mean else "above"
    return [
        f"{found}; over the boundaries that both models have, pruning {did} it by {share}, "
        f"to {number(after.mean)}, {rest} the floor."
    ]


def about_prediction(selection: Selection) -> list[str]:
    """Say how well a label-free score foretold the metric in the first round, if that was tried."""
    found = selection.prediction
    if selection.unpredicted is not None:
        return [f"How well the label-free score predicts the metric cannot be told: {selection.unpredicted}."]
    if found is None:
        return []
    if found.p_value >= 0.05:
        judged = "was not shown to predict"
    else:
        judged = "predicted" if found.spearman > 0 else "ranked against"
    return [
        f"The label-free score {judged} the metric in the first round: Spearman "
        f"{signed(found.spearman)} ({p_text(found.p_value)}, {found.num_candidates} candidates)."
    ]


def _about_resources(benchmark: Benchmark) -> list[str]:
    size, memory = benchmark.size_bytes, benchmark.peak_memory_bytes
    lines = []
    if size.original > 0:
        lines.append(
            f"File: {size_text(size.original)} before, {size_text(size.pruned)} after ({saving_text(size)})."
        )
    if memory.original > 0:
        lines.append(f"Peak memory: {size_text(memory.original)} before, {size_text(memory.pruned)} after.")
    return lines
