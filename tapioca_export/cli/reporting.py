"""The command `report`: a run folder rendered again, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import tapioca_export as library

from ..config import COMPARISON
from ..errors import ConfigError
from .commands import main
from .options import printing
from .results import show, show_report, table_text


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--compare", is_flag=True, help="Put two runs or more side by side, in a folder of its own.")
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path),
    help=f"Where to put them side by side [default: {COMPARISON}].",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace that folder if it holds something.")
@printing
def report(
    runs: tuple[Path, ...], compare: bool, output: Path | None, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Render a run folder again, or put several side by side."""
    if compare:
        _compare(runs, output or COMPARISON, overwrite, as_json, quiet)
        return
    if output is not None or overwrite:
        name = "--overwrite" if output is None else "--output"
        raise ConfigError(f"{name} is for --compare: a report stands in its run folder.", "Add --compare.")
    if len(runs) != 1:
        raise click.UsageError(f"Give one run folder, or several with --compare; {len(runs)} were given.")
    show_report(library.report(runs[0]), runs[0], as_json, quiet)


def _compare(runs: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool, quiet: bool) -> None:
    found: Any = library.compare_runs(runs, output, overwrite=overwrite)

    def text() -> str:
        from ..reporting import brief_runs_table

        table = brief_runs_table(found)
        page = (output / "run_comparison.html").resolve()
        return f"{found.verdict}\n\n{table.caption}:\n\n{table_text(table)}\n\nReport: {page}"

    show(found, as_json, quiet, text)
