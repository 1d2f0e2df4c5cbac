"""Commands that hold a finished folder against something: `check` thresholds, `verify` its record."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import tapioca_export as library

from ..errors import LoadError
from .commands import _prepare_libraries, _show, main
from .options import printing


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--min-target-gain", type=float, help="Least gain on the target: lower bound of its interval.")
@click.option("--max-id-loss", type=float, help="Largest loss on ID: worse bound of its interval.")
@click.option("--min-speedup", type=float, help="Least speed-up: lower bound, at every shape.")
@click.option("--max-size-ratio", type=float, help="Largest size, pruned / original.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the checks as JUnit XML too.")
def check(folder: Path, junit: Path | None, **thresholds: float | None) -> None:
    """Gate a run folder on interval bounds: exit code 3 when a threshold is missed."""
    from .. import gating
    from ..artifacts import Report, read, write_text

    if not (folder / "report.json").is_file():
        raise LoadError(f"{folder} is not a run folder: it has no report.json.", "Name the output of `run`.")
    limits = gating.Thresholds(**thresholds)
    verdict = gating.check(read(folder / "report.json", Report), limits)
    if junit is not None:
        write_text(junit, gating.render_junit(verdict))
    click.echo(gating.render_markdown(verdict))
    sys.exit(verdict.exit_code)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--hashes-only", is_flag=True, help="Compare hashes; load no model and make no proof again.")
@click.option("--strict", is_flag=True, help="Fail as well where something could not be compared or proven.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@printing
def verify(
    folder: Path, hashes_only: bool, strict: bool, trust_remote_code: bool, as_json: bool, quiet: bool
) -> None:
    """Hash a folder's files and make its proofs again: exit code 3 when something is not as recorded."""
    if not hashes_only:
        _prepare_libraries()
    found = library.verify(folder, proofs=not hashes_only, strict=strict, trust_remote_code=trust_remote_code)
    _show(found, as_json, quiet, lambda: "\n".join(found.verdict))
    sys.exit(found.exit_code)
