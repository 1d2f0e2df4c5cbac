"""Results as commands print them: the artifact, a few lines of text, or nothing."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..bars import is_terminal
from ..numbering import LayerName
from ..showing import visible

if TYPE_CHECKING:
    from ..reporting.tables import TextTable


def show(artifact: Any, as_json: bool, quiet: bool, text: Callable[[], str]) -> None:
    """Print an artifact (or a dict of several) as JSON, or a few lines of text, or, if quiet, nothing."""
    if not as_json:
        if not quiet:
            click.echo(visible(text()))
        return
    from ..artifacts import to_json

    if isinstance(artifact, dict):
        parts = {name: json.loads(to_json(part)) for name, part in artifact.items()}
        click.echo(json.dumps(parts, indent=1, ensure_ascii=False))
    else:
        click.echo(to_json(artifact), nl=False)


def wrapped(sentence: str, mark: str = "") -> str:
    """Return a sentence behind a mark: on a terminal in lines of its width, else in one line."""
    width = _terminal_width()
    if width is None:
        return mark + sentence
    return textwrap.fill(sentence, width, initial_indent=mark, subsequent_indent=" " * len(mark))


def table_text(table: TextTable) -> str:
    """Return a table: on a terminal of its width, else with a row in one line."""
    from ..reporting import render_text

    return render_text(table, _terminal_width())


def _terminal_width() -> int | None:
    """Return the columns of the terminal that results go to, if they go to one."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def show_report(report: Any, folder: Path, as_json: bool, quiet: bool) -> None:
    """Print a report: verdict, numbers, findings, and where its page is."""

    def text() -> str:
        from ..reporting import summary_table

        findings = "\n".join(wrapped(finding, "  - ") for finding in report.findings)
        page = (folder / "report.html").resolve()
        table = table_text(summary_table(report))
        return f"{wrapped(report.verdict)}\n\n{table}\n\n{findings}\n\nReport: {page}"

    show(report, as_json, quiet, text)


def show_selection(selection: Any, as_json: bool, quiet: bool) -> None:
    """Print a selection: its steps, why it ended, what it chose."""

    def text() -> str:
        from ..reporting import about_prediction, trade_off_table

        lines = []
        if selection.baseline_metric is not None:
            lines.append(f"baseline: {selection.metric} {selection.baseline_metric:.4g}")
        for step in selection.steps:
            metric = "" if step.metric is None else f": {selection.metric} {step.metric:.4g}"
            doing = f"damp layer {step.layer} to {step.scale:g}" if step.scale else f"drop layer {step.layer}"
            lines.append(f"{doing}{metric}")
        if selection.invalid is not None:
            lines.append(f"invalid answers: {counts(selection.invalid)} of {selection.num_samples}")
            if selection.invalid.original == selection.num_samples:
                lines.append(
                    "No answer of the original matches --extract: look at the rule, and at what it writes."
                )
        lines.append(f"stopped: {selection.stop_reason}")
        lines += about_prediction(selection)
        if selection.points:
            table = trade_off_table(selection)
            lines += ["", f"{table.caption}:", "", table_text(table), ""]
        lines.append(f"Drop: {join(selection.drop)} (pick {selection.pick})")
        if selection.damp:
            lines.append(f"Damp: {damped(selection)}")
        return "\n".join(lines)

    show(selection, as_json, quiet, text)


def show_plan(plan: Any, as_json: bool, quiet: bool) -> None:
    """Print what a command would take."""

    def text() -> str:
        from ..reporting import render_plan

        return render_plan(plan)

    show(plan, as_json, quiet, text)


def show_comparison(comparison: Any, as_json: bool, quiet: bool) -> None:
    """Print criteria side by side."""

    def text() -> str:
        from ..reporting import comparison_table

        table = comparison_table(comparison)
        asked, criteria = comparison.max_drop_layers, comparison.criteria
        short = [
            f"{row.criterion} dropped {row.depth} of {asked} layers: {row.stop_reason}."
            for row in criteria
            if row.depth < asked
        ]
        lines = [
            *(f"{table.caption}.", "", table_text(table), "", *short),
            "A forward is one sequence through one layer; scoring the original and each step counts too.",
            f"Each interval is of one criterion: the best of {len(criteria)} looks better than it is.",
        ]
        return "\n".join(lines)

    show(comparison, as_json, quiet, text)


def join(layers: tuple[LayerName, ...]) -> str:
    """Return layers with commas, or "nothing"."""
    return ", ".join(map(str, layers)) or "nothing"


def damped(selection: Any) -> str:
    """Return what is damped, by how much."""
    return ", ".join(f"{part.layer} times {part.scale:g}" for part in selection.damp)


def counts(pair: Any) -> str:
    """Return two whole numbers, original and pruned."""
    return f"{pair.original:.0f} -> {pair.pruned:.0f}"
