"""Report -> Markdown, report -> one self-contained HTML file, and a table -> plain text."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from ..artifacts import Benchmark, Intervention, Report
from ..numbering import layers_text
from ..showing import visible
from . import comparisons, doses, figures, interventions, tables, tradeoffs
from .flips import flip_table
from .markdown import json_text, md_captioned, md_json, md_table, md_text
from .pages import Section, render_page
from .tables import TextTable
from .wording import damped_text, effect, model_text, number, size_text

AGAIN = (
    "The configuration, saved as settings.yaml, does the same again where its paths lead to the model and "
    "the samples: tapioca-export run -c settings.yaml --output ANOTHER."
)


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str


# --- Markdown -------------------------------------------------------------------------------


def render_markdown(report: Report) -> str:
    """Return the report as Markdown: verdict, findings, tables, how to reproduce it."""
    selection, benchmark, run = report.selection, report.benchmark, report.run
    parts = [
        f"# Pruning report: {md_text(model_text(selection.model))}",
        f"**{md_text(report.verdict)}**",
        "## Findings",
        "\n".join(f"- {md_text(finding)}" for finding in report.findings),
    ]
    shown = (
        ("Accuracy", tables.accuracy_table(benchmark)),
        ("Latency", tables.latency_table(benchmark.latency)),
        ("Size, memory and loading", tables.resource_table(benchmark)),
        ("Search", tables.search_table(selection)),
        ("Exports", tables.export_table(report.exports)),
    )
    for title, table in shown:
        parts += [f"## {title}", md_table(table) if table.rows else "Not measured."]
    if benchmark.groups:
        parts += md_captioned("Groups", tables.group_table(benchmark))
    if benchmark.sessions:
        parts += md_captioned("Sessions", tables.session_table(benchmark))
    if selection.points:
        parts += md_captioned("Trade-offs", tradeoffs.trade_off_table(selection))
    if report.profile.targets:
        parts += md_captioned("Target domains", tradeoffs.domain_table(report.profile))
    if report.intervention:
        parts += _md_intervention(report.intervention)
    parts += [
        "## Reproduce",
        f"Layers are 0-based indices in the original model. {AGAIN}",
        md_json("Configuration", run.config),
        md_json("Environment", run.environment),
        md_table(tables.hash_table(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _md_intervention(found: Intervention) -> list[str]:
    sentences = "\n".join(f"- {md_text(sentence)}" for sentence in found.verdict)
    shown = [*interventions.role_tables(found), interventions.random_table(found)]
    return ["## Dose-response", sentences, *(f"{md_text(t.caption)}:\n\n{md_table(t)}" for t in shown)]


# --- plain text -----------------------------------------------------------------------------


def render_text(table: TextTable, width: int | None = None) -> str:
    """Return a table in aligned columns, without its caption, as wide as it is, or at most so many columns.

    The first and the last column are aligned left. Where the width is too small, cells are broken into
    lines; without one, a row is a line.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    last = len(table.columns) - 1
    for place, column in enumerate(table.columns):
        side: Literal["left", "right"] = "left" if place in (0, last) else "right"
        drawn.add_column(Text(visible(column)), justify=side, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    columns = zip(table.columns, *table.rows, strict=True)
    whole = sum(2 + max(cell_len(visible(cell)) for cell in column) for column in columns)
    page = io.StringIO()
    Console(file=page, width=width or whole, color_system=None).print(drawn)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


# --- HTML -----------------------------------------------------------------------------------


def render_html(report: Report) -> str:
    """Return the report as one HTML file that needs no network."""
    tone, label = _tone(report)
    return render_page(
        "report.html.j2",
        _sections(report),
        report=report,
        model=model_text(report.selection.model),
        tone=tone,
        label=label,
        verdict=report.verdict,
        findings=report.findings,
        tiles=_tiles(report.benchmark),
        again=AGAIN,
        config=json_text(report.run.config),
        environment=json_text(report.run.environment),
        reproduce=[t for t in (tables.hash_table(report.run), tables.seconds_table(report.run)) if t.rows],
    )


def _tone(report: Report) -> tuple[str, str]:
    """Return the verdict's colour class and its two or three words."""
    if not report.selection.num_changed:
        return "neutral", "Remove nothing"
    found = {role: effect(a) for role, a in report.benchmark.accuracy.items()}
    target, in_distribution = found.get("target"), found.get("id")
    if target is None:
        return "neutral", "Target not measured"
    if target == "harm":
        return "bad", "Harms the target"
    fallen = [name for name, part in report.benchmark.targets.items() if effect(part) == "harm"]
    if fallen:
        return "warn", f"{'Gain on target' if target == 'gain' else 'No gain'}, harm on {', '.join(fallen)}"
    if in_distribution == "harm":
        return "warn", "Gain on target, harm on ID" if target == "gain" else "No gain, harm on ID"
    return ("good", "Gain on target") if target == "gain" else ("warn", "No gain shown")


def _tiles(benchmark: Benchmark) -> list[Tile]:
    tiles = []
    for role, name in (("target", "Target"), ("id", "ID")):
        accuracy = benchmark.accuracy.get(role)
        if accuracy is None:
            tiles.append(Tile(name, "not measured", "no labelled rows"))
            continue
        values = f"{number(accuracy.original)} → {number(accuracy.pruned)}"
        if role == "target" and benchmark.objective is not None:
            name = f"Target ({benchmark.objective})"
        tiles.append(Tile(f"{name} {accuracy.metric}", values, f"{accuracy.n} report rows"))
    if benchmark.served:
        medians = [row.speedup.median for row in benchmark.served]
        ideal = max(row.ideal_speedup for row in benchmark.served)
        low, high = f"{min(medians):.2f}", f"{max(medians):.2f}"
        value = low if low == high else f"{low} to {high}"
        tiles.append(Tile("Speed-up", value, f"ideal {ideal:.2f}"))
    size = benchmark.size_bytes
    if size.original > 0:
        value = f"{size_text(size.original)} → {size_text(size.pruned)}"
        tiles.append(Tile("File", value, f"{size.pruned / size.original:.3f} of the original"))
    return tiles


def _sections(report: Report) -> list[Section]:
    return [
        _profile_section(report),
        _search_section(report),
        *([_dose_section(report.intervention)] if report.intervention else []),
        _accuracy_section(report),
        _latency_section(report),
        _resource_section(report),
        _export_section(report),
    ]


def _profile_section(report: Report) -> Section:
    profile = report.profile
    intro = (
        f"ID: {profile.id.num_samples} samples, {profile.id.num_tokens} positions. Target: "
        f"{profile.target.num_samples} samples, {profile.target.num_tokens} positions. "
        f"The answer is read at: {profile.position}."
    )
    shown = (tradeoffs.domain_table(profile),) if profile.targets else ()
    return Section(
        "profile", "Residual stream", intro, figures=figures.profile_figures(profile), tables=shown
    )


def _search_section(report: Report) -> Section:
    selection = report.selection
    plots, shown = figures.search_figures(selection), [tables.search_table(selection)]
    intro = f"Criterion {selection.criterion}, pick {selection.pick}. "
    if selection.cost:
        cost = selection.cost
        share = cost.layer_forwards / max(1, cost.plain_layer_forwards)
        # Answers that are written take a forward a token, which the plain search does not count.
        of_plain = f", {share * 100:.0f} % of the plain {cost.plain_layer_forwards:,}" if share <= 1 else ""
        intro += (
            f"{cost.evaluations} evaluations took {cost.layer_forwards:,} layer forwards in "
            f"{cost.seconds:.1f} s{of_plain}."
        )
    if not any(plot.name == "search" for plot in plots):
        intro += f" No round was run: {selection.stop_reason}"
    if selection.points:
        shown.append(tradeoffs.trade_off_table(selection))
    return Section("search", "Search", intro.strip(), figures=plots, tables=tuple(shown))


def _dose_section(found: Intervention) -> Section:
    shown = (*interventions.role_tables(found), interventions.random_table(found))
    plots = tuple(doses.dose_figures(found))
    intro = "What layers add to the stream is multiplied by alpha, on rows that took no part in choosing."
    return Section("doses", "Dose-response", intro, found.verdict, plots, shown)


def _accuracy_section(report: Report) -> Section:
    benchmark = report.benchmark
    missing = [name for role, name in (("id", "ID"), ("target", "target")) if role not in benchmark.accuracy]
    intro = "Rows that took no part in choosing."
    if missing:
        intro += f" Not measured for lack of labels: {' and '.join(missing)}."
    if benchmark.optimism_gap is not None:
        intro += f" Optimism gap: {number(benchmark.optimism_gap)}."
    shown = (tables.accuracy_table(benchmark),) if benchmark.accuracy else ()
    groups = (tables.group_table(benchmark),) if benchmark.groups else ()
    flips = (flip_table(benchmark),) if any(benchmark.flips.values()) else ()
    plots = tuple(comparisons.accuracy_figures(benchmark))
    return Section("accuracy", "Task metric", intro, figures=plots, tables=(*shown, *groups), folded=flips)


def _latency_section(report: Report) -> Section:
    rows = report.benchmark.latency
    plot = comparisons.speedup_figure(rows)
    if plot is None:
        return Section("latency", "Latency", "Latency was not measured.")
    intro = "Original and pruned timed in turn, in one process."
    shown = [tables.latency_table(rows)]
    if report.benchmark.sessions:
        shown.append(tables.session_table(report.benchmark))
    return Section("latency", "Latency", intro, figures=(plot,), tables=tuple(shown))


def _resource_section(report: Report) -> Section:
    plot = comparisons.resource_figure(report.benchmark)
    shown = (tables.resource_table(report.benchmark),)
    return Section("resources", "Size, memory and loading", figures=(plot,) if plot else (), tables=shown)


def _export_section(report: Report) -> Section:
    if not report.exports:
        return Section("exports", "Exports", "Nothing was exported.")
    drop, damp = report.selection.drop, report.selection.damp
    said = [f"Pruned files lack {layers_text(drop)}."] if drop else []
    intro = " ".join([*said, f"They have {damped_text(damp)} damped."] if damp else said)
    return Section("exports", "Exports", intro, tables=(tables.export_table(report.exports),))
