"""The report's numbers as tables of text, shared by Markdown and HTML.

Cells are plain text; escaping is the renderer's duty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..artifacts import (
    Accuracy,
    Benchmark,
    Candidate,
    Compared,
    Comparison,
    Export,
    Latency,
    Pair,
    Profile,
    Run,
    Selection,
    Timing,
    Verification,
)
from ..numbering import whole_layers
from .sessions import gain_text, session_text
from .speeds import provider_text, setting_text
from .wording import (
    change_text,
    choice_text,
    number,
    p_text,
    role_text,
    signed,
    size_text,
    span,
)

Row = tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """A caption, column heads and rows; the first cell of a row names it.

    `is_numeric` asks for right-aligned cells.
    """

    caption: str
    columns: Row
    rows: tuple[Row, ...]
    is_numeric: bool = True


def boundary_table(profile: Profile, quantity: str) -> TextTable:
    """Return `norms` or `distances` a boundary, with bands, and their deviation from ID."""
    series = profile.series.items()
    before, after = profile.deviation, profile.pruned_deviation
    columns = ["boundary", *(f"{name} (95 % band)" for name, _ in series)]
    columns += ["deviation", *(["deviation, pruned"] if after else []), "noise floor"]
    rows = []
    for boundary, name in enumerate(profile.numbering.boundary_names):
        cells = [str(name)]
        for _, part in series:
            band = getattr(part, f"{quantity}_band")
            value = number(getattr(part, quantity)[boundary])
            cells.append(f"{value} ({span(band[boundary])})" if boundary < len(band) else value)
        cells.append(number(getattr(before, quantity)[boundary]))
        if after:
            cells.append(number(getattr(after, quantity)[boundary]))
        cells.append(number(getattr(before.noise_floor, quantity)[boundary]))
        rows.append(tuple(cells))
    return TextTable(f"{quantity.capitalize()} at each boundary", tuple(columns), tuple(rows))


def influence_table(profile: Profile) -> TextTable:
    """Return each layer's influence in each profile."""
    series = profile.series.items()
    rows = []
    for layer, name in enumerate(profile.layers):
        values = (part.influences[layer] for _, part in series)
        cells = ("dropped" if value is None else number(value) for value in values)
        rows.append((str(name), *cells))
    return TextTable("Influence of each layer", ("layer", *(name for name, _ in series)), tuple(rows))


def deviation_table(profile: Profile) -> TextTable:
    """Return the target's deviation from ID at each boundary, before and after pruning."""
    before, after = profile.deviation, profile.pruned_deviation
    shown = {"norms": before.norms, "distances": before.distances}
    shown |= {"norms, pruned": after.norms, "distances, pruned": after.distances} if after else {}
    floor = before.noise_floor
    shown |= {"noise floor of norms": floor.norms, "of distances": floor.distances}
    names = map(str, profile.numbering.boundary_names)
    rows = tuple(
        (name, *map(number, values))
        for name, values in zip(names, zip(*shown.values(), strict=True), strict=True)
    )
    return TextTable("Target's |log ratio| to ID at each boundary", ("boundary", *shown), rows)


def layer_table(profile: Profile) -> TextTable:
    """Return the norms behind each layer, and how far norms and distances there deviate from ID."""
    before = profile.deviation
    shown = {"ID norm": profile.id.norms, "target norm": profile.target.norms}
    shown |= {"norm deviation": before.norms, "distance deviation": before.distances}
    behind = [boundary for part in profile.numbering.boundaries for boundary in part[1:]]
    rows = tuple(
        (str(layer), *(number(values[boundary]) for values in shown.values()))
        for layer, boundary in zip(profile.layers, behind, strict=True)
    )
    return TextTable("Norms behind each layer, and their deviation from ID", ("layer", *shown), rows)


def search_table(selection: Selection) -> TextTable:
    """Return the accepted rounds, and whether each is part of what was picked."""
    rows: list[Row] = [
        (
            "0 (original)",
            "",
            "",
            number(selection.baseline_metric),
            number(selection.baseline_loss),
            "",
            "",
        )
    ]
    for index, step in enumerate(selection.steps, start=1):
        rows.append(
            (
                str(index),
                choice_text(step),
                number(step.score),
                number(step.metric),
                number(step.loss),
                str(len(step.candidates)),
                "yes" if step.layer in (*selection.drop, *selection.scales) else "no",
            )
        )
    changed = "layer dropped" if selection.criterion != "damp" else "layer dropped or damped"
    columns = ("round", changed, "score", selection.metric or "metric", "mean loss")
    return TextTable(
        f"Accepted rounds, on the {selection.num_samples} rows that drove the search",
        (*columns, "candidates", "picked"),
        tuple(rows),
    )


def candidate_table(selection: Selection) -> TextTable:
    """Return every candidate of every round, the rejected round included."""
    rounds = [(str(i), step.candidates) for i, step in enumerate(selection.steps, start=1)]
    if selection.rejected:
        rounds.append((f"{len(rounds) + 1} (rejected)", selection.rejected))
    rows = [
        (name, choice_text(c), number(c.score), number(c.metric), number(c.loss), _how_scored(c))
        for name, candidates in rounds
        for c in candidates
    ]
    columns = ("round", "layer", "score", selection.metric or "metric", "mean loss", "scored")
    return TextTable("Every candidate", columns, tuple(rows))


def _how_scored(candidate: Candidate) -> str:
    """Say on how many rows a candidate was scored, and why on no more."""
    if candidate.outcome == "abandoned":
        return (
            f"{candidate.rows} rows: at best {number(candidate.bound)}, beaten by layer {candidate.against}"
        )
    if candidate.outcome == "estimated":
        return f"{candidate.rows} rows: an estimate, at best {number(candidate.bound)}"
    return "all rows"


def accuracy_table(benchmark: Benchmark) -> TextTable:
    """Return both models on the report rows, with intervals."""
    columns = ("report rows", "metric", "rows", "original", "pruned", "change", "p", "better/worse")
    rows = tuple(_accuracy_row(role, a) for role, a in benchmark.rows.items())
    return TextTable("Original and pruned on the same report rows (95 % intervals)", columns, rows)


def _accuracy_row(role: str, accuracy: Accuracy) -> Row:
    better = "higher is better" if accuracy.higher_is_better else "lower is better"
    return (
        role_text(role),
        f"{accuracy.metric} ({better})",
        str(accuracy.n),
        f"{number(accuracy.original)} ({span(accuracy.original_interval)})",
        f"{number(accuracy.pruned)} ({span(accuracy.pruned_interval)})",
        change_text(accuracy),
        p_text(accuracy.p_value).removeprefix("p ").removeprefix("= "),
        "-" if accuracy.gained is None else f"{accuracy.gained}/{accuracy.lost}",
    )


def group_table(benchmark: Benchmark) -> TextTable:
    """Return both models on each group of the report rows; the metric is the roles'."""
    rows = []
    for role, groups in benchmark.groups.items():
        for name, accuracy in groups.each.items():
            named, _, *rest = _accuracy_row(role, accuracy)
            rows.append((named, name, *rest))
    first, _, *columns = accuracy_table(benchmark).columns
    return TextTable("Group by group", (first, "group", *columns), tuple(rows))


def comparison_table(comparison: Comparison) -> TextTable:
    """Return the original, then each criterion on the report rows, the best on the target first."""
    target, id_ = comparison.criteria[0].target, comparison.criteria[0].id
    better = "higher is better" if target.higher_is_better else "lower is better"
    caption = (
        f"{target.metric} ({better}) on {target.n} target and {id_.n} ID report rows, "
        f"{comparison.max_drop_layers} of {comparison.num_layers} layers dropped"
    )
    change = "change [95 % interval]"
    name = f"target ({comparison.objective})" if comparison.objective else "target"
    columns = ("criterion", name, change, "ID", change, "forwards", "seconds", "dropped")
    original = ("original", number(target.original), "", number(id_.original), "", "", "", "")
    return TextTable(caption, columns, (original, *map(_compared_row, comparison.criteria)))


def _compared_row(row: Compared) -> Row:
    cells = [row.criterion]
    for accuracy in (row.target, row.id):
        low, high = map(number, accuracy.interval)
        cells += [number(accuracy.pruned), f"{signed(accuracy.difference)} [{low}, {high}]"]
    dropped = ",".join(map(str, row.drop)) or "nothing"
    return (*cells, f"{row.cost.layer_forwards:,}", f"{row.cost.seconds:.1f}", dropped)


def latency_table(rows: Sequence[Latency]) -> TextTable:
    """Return percentiles, throughput and the speed-up, a setting."""
    columns = (
        "setting",
        "p50 ms, original",
        "p50 ms, pruned",
        "p90 ms, original",
        "p90 ms, pruned",
        "per second, original",
        "per second, pruned",
        "runs each",
        "speed-up (95 % interval)",
        "ideal",
        "A/A noise",
    )
    return TextTable("Latency and throughput", columns, tuple(_latency_row(row) for row in rows))


def _latency_row(row: Latency) -> Row:
    before, after = row.original, row.pruned
    runs = {str(before.runs), str(after.runs)}
    low, high = row.speedup.interval
    return (
        setting_text(row),
        f"{before.p50_ms:.2f}",
        f"{after.p50_ms:.2f}",
        "too few runs" if before.p90_ms is None else f"{before.p90_ms:.2f}",
        "too few runs" if after.p90_ms is None else f"{after.p90_ms:.2f}",
        _throughput(before),
        _throughput(after),
        "/".join(sorted(runs)),
        f"{row.speedup.median:.2f} ({low:.2f} to {high:.2f})",
        f"{row.ideal_speedup:.2f}",
        f"{row.noise_floor[0]:.2f} to {row.noise_floor[1]:.2f}",
    )


def _throughput(timing: Timing) -> str:
    if timing.tokens_per_s is None:
        return f"{timing.throughput_per_s:.1f}"
    return f"{timing.throughput_per_s:.1f} ({timing.tokens_per_s:,.0f} tokens)"


def session_table(benchmark: Benchmark) -> TextTable:
    """Return what sessions were opened with, where that was searched for."""
    rows = tuple(
        (
            f"{name}, {provider_text(session.provider)}",
            session_text(session),
            gain_text(session),
            f"{session.candidates} of {session.planned}",
            f"{session.max_abs_difference:.1e}",
        )
        for name, sessions in benchmark.sessions.items()
        for session in sessions
    )
    columns = ("file", "settings", "found", "tried", "outputs differ from the default's by")
    return TextTable("Settings of ONNX Runtime's sessions", columns, rows, is_numeric=False)


def resource_table(benchmark: Benchmark) -> TextTable:
    """Return file size, peak memory and load time."""
    columns = ("quantity", "original", "pruned", "pruned/original")
    rows = tuple(
        (name, text(pair.original), text(pair.pruned), _ratio(pair))
        for name, pair, text in resources(benchmark)
    )
    return TextTable("File size, peak memory and load time", columns, rows)


def resources(benchmark: Benchmark) -> list[tuple[str, Pair, Callable[[float], str]]]:
    """Return what files take: its name, both values, and how one is written."""
    found: list[tuple[str, Pair, Callable[[float], str]]] = [
        ("file size", benchmark.size_bytes, size_text),
        ("peak memory", benchmark.peak_memory_bytes, size_text),
        ("load time", benchmark.load_seconds, "{:.3f} s".format),
    ]
    if cache := benchmark.cache_bytes_per_token:
        found.append(("keys and values cached, a token", cache, size_text))
    return found


def _ratio(pair: Pair) -> str:
    return f"{pair.pruned / pair.original:.3f}" if pair.original > 0 else "n/a"


def export_table(exports: dict[str, Export]) -> TextTable:
    """Return one column an export: a hash or a file name is too long for a narrow column head."""
    columns = [_export_cells(export) for export in exports.values()]
    names = list(columns[0]) if columns else []
    rows = tuple((name, *(cells[name] for cells in columns)) for name in names)
    references = dict.fromkeys(export.reference for export in exports.values())
    caption = f"Exported files and their parity with {' and '.join(references) or 'PyTorch'}"
    return TextTable(caption, ("", *exports), rows, is_numeric=False)


def _export_cells(export: Export) -> dict[str, str]:
    parts = [f"dropped {', '.join(map(str, export.drop))}"] if export.drop else []
    parts += [f"damped {', '.join(map(choice_text, export.damp))}"] if export.damp else []
    left = export.num_layers - len(whole_layers(export.drop))
    return {
        "format": export.format,
        "files": ", ".join(export.files),
        "exporter": export.exporter,
        "precision": export.dtype,
        "opset": "n/a" if export.opset is None else str(export.opset),
        "layers": f"{left} of {export.num_layers}" + (f" ({'; '.join(parts)})" if parts else ""),
        "inputs": ", ".join(export.inputs),
        "outputs": ", ".join(export.outputs),
        "largest difference": (
            "not run" if export.max_abs_difference is None else f"{export.max_abs_difference:.2e}"
        ),
        "PyTorch's own": f"{export.pytorch_difference:.2e}" if export.pytorch_difference else "n/a",
        "tolerance": "none" if export.tolerance is None else f"{export.tolerance:.1e}",
        "treatment": str(export.treatment),
        "label agreement": f"{export.label_agreement * 100:.1f} %",
        "rows checked": str(export.rows_checked),
        "input shapes checked": ", ".join(f"({', '.join(map(str, s))})" for s in export.shapes_checked),
        "padding checked": ", ".join(export.padding_checked) or "n/a",
        "size": size_text(export.size_bytes),
        "SHA-256": ", ".join(export.files.values()),
        "note": export.note or "",
    }


def check_tables(found: Verification) -> list[TextTable]:
    """Return the files that are not as recorded, and the proofs that were made again."""
    changed = tuple((file.path, file.role, file.state) for file in found.files if file.state != "same")
    proofs = tuple((proof.folder, proof.state, proof.message) for proof in found.proofs)
    return [
        TextTable("Files that are not as recorded", ("path", "role", "state"), changed, is_numeric=False),
        TextTable("Proofs made again", ("folder", "state", "found"), proofs, is_numeric=False),
    ]


def hash_table(run: Run) -> TextTable:
    """Return the SHA-256 of every input and output."""
    rows = [("input", path, digest) for path, digest in run.inputs.items()]
    rows += [("output", path, digest) for path, digest in run.outputs.items()]
    caption = "SHA-256 of inputs and outputs"
    return TextTable(caption, ("role", "path", "SHA-256"), tuple(rows), is_numeric=False)


def seconds_table(run: Run) -> TextTable:
    """Return how long each stage took."""
    rows = tuple((stage, f"{seconds:.1f}") for stage, seconds in run.seconds.items())
    return TextTable("Time taken", ("stage", "seconds"), rows)
