"""Artifacts -> report: one verdict with its numbers, findings, and JSON, Markdown and HTML of it.

    wording.py    the verdict and the findings, in sentences
    speeds.py     how much faster, and where, in sentences
    exported.py   exported files and their proofs, in sentences
    tables.py     the numbers as tables, shared by Markdown and HTML
    figures.py, comparisons.py, doses.py, drawing.py
                  the numbers as plots: plain dictionaries in Plotly's terms
    interventions.py
                  what `intervene` found, in sentences and tables
    plotting.py   the same plots as matplotlib figures
    rendering.py  report -> Markdown, report -> one self-contained HTML file, table -> plain text
    pages.py, markdown.py
                  what all HTML pages share, and all Markdown
    runs.py, run_tables.py, run_figures.py
                  finished runs side by side, and which of them are comparable
    notebooks.py  results as a notebook shows them
    summary.py    a run at a glance, in one table
    sessions.py   what ONNX Runtime's sessions were opened with, in words
    tradeoffs.py  several target domains: what each number of layers trades, and their profiles
    planning.py   what a search would cost -> a few lines

Knows nothing about how any number was computed. A new finding is one function in `wording.py`
named in its `findings`; a new plot is one function in `figures.py` named in `rendering.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import artifacts
from ..artifacts import Benchmark, Export, Intervention, Profile, Report, Run, Selection
from ..errors import LoadError
from .exported import export_lines
from .interventions import dose_table, intervention_verdict
from .notebooks import render_result
from .planning import render_plan
from .plotting import plot
from .rendering import render_html, render_markdown, render_text
from .run_tables import brief_runs_table
from .runs import run_verdict, write_run_comparison
from .sessions import about_sessions
from .speeds import about_medians, setting_text
from .summary import summary_table
from .tables import comparison_table, layer_table
from .tradeoffs import domain_table, trade_off_table
from .wording import about_prediction, findings, verdict

# What a report is written to.
FILES = ("report.html", "report.json", "report.md")

__all__ = [
    "FILES",
    "about_medians",
    "about_prediction",
    "about_sessions",
    "brief_runs_table",
    "comparison_table",
    "domain_table",
    "dose_table",
    "export_lines",
    "intervention_verdict",
    "layer_table",
    "make_report",
    "plot",
    "render_html",
    "render_markdown",
    "render_plan",
    "render_result",
    "render_text",
    "rendered",
    "run_verdict",
    "setting_text",
    "summary_table",
    "trade_off_table",
    "write_report",
    "write_run_comparison",
]


def make_report(
    run: Run,
    selection: Selection,
    profile: Profile,
    benchmark: Benchmark,
    exports: dict[str, Export],
    intervention: Intervention | None = None,
) -> Report:
    """Draw the verdict and the findings from what the stages wrote.

    Args:
        run: Configuration, environment and hashes.
        selection: Which layers were dropped and why.
        profile: ID and target profiles before and after.
        benchmark: Original against pruned, both exported.
        exports: Every exported file, keyed by a name that says which ("pruned/onnx").
        intervention: A dose-response of layers, if there is one.

    Returns:
        The report; equal artifacts give an equal report.
    """
    # A report cannot hold its own hash; run.json does.
    outputs = {name: digest for name, digest in run.outputs.items() if not name.startswith("report.")}
    return Report(
        verdict=verdict(selection, benchmark),
        findings=findings(selection, profile, benchmark, exports),
        run=replace(run, outputs=outputs),
        selection=selection,
        profile=profile,
        benchmark=benchmark,
        exports=dict(exports),
        intervention=intervention,
    )


def rendered(report: Report) -> dict[str, str]:
    """Return the texts of `report.json`, `report.md` and `report.html`, by name."""
    return {
        "report.json": artifacts.to_json(report),
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json`, `report.md` and `report.html` into the folder.

    Raises:
        LoadError: If an artifact in the folder has other numbers than the report.
        OutputError: If the folder cannot be written.
    """
    for name, part in (
        ("selection.json", report.selection),
        ("profile.json", report.profile),
        ("benchmark.json", report.benchmark),
    ):
        _refuse_other_numbers(folder / name, part)
    artifacts.write_together({folder / name: text for name, text in rendered(report).items()})


def _refuse_other_numbers(file: Path, part: Selection | Profile | Benchmark) -> None:
    """Refuse a report that says something else than an artifact beside it.

    Raises:
        LoadError: Naming the artifact.
    """
    if file.is_file() and artifacts.to_json(artifacts.read(file, type(part))) != artifacts.to_json(part):
        raise LoadError(f"The report has other numbers than {file}.", "Run the job again.")
