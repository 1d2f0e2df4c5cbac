"""Commands that hold a finished folder against something: `check` thresholds, `verify` its record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import tapioca_export as library

from ..errors import LoadError, OutputError
from .commands import _prepare_libraries, main
from .options import printing
from .results import show

if TYPE_CHECKING:
    from ..artifacts import Report


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--min-target-gain", type=float, help="Least gain on the target: lower bound of its interval.")
@click.option("--max-id-loss", type=float, help="Largest loss on ID: worse bound of its interval.")
@click.option("--min-speedup", type=float, help="Least speed-up: lower bound, at every shape.")
@click.option("--max-size-ratio", type=float, help="Largest size, pruned / original.")
@click.option(
    "--fail-if", metavar="EXPRESSION", multiple=True,
    help="What must not be true of the report, such as 'target.difference.low < 0'; repeatable.",
)  # fmt: skip
@click.option(
    "--baseline", type=click.Path(path_type=Path),
    help="The run folder or report.json of the last release, which this one must not be worse than.",
)  # fmt: skip
@click.option(
    "--max-regression", type=float,
    help="Largest loss against --baseline: worse bound of its interval (default: none must be shown).",
)  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path), help="Write the checks as JUnit XML too.")
@click.option(
    "--summary", type=click.Path(path_type=Path), envvar="GITHUB_STEP_SUMMARY", show_envvar=True,
    help="Append verdict and checks to this Markdown file.",
)  # fmt: skip
@click.option(
    "--metrics", type=click.Path(path_type=Path), help="Write the report's numbers as OpenMetrics too."
)
@printing
def check(
    folder: Path,
    fail_if: tuple[str, ...],
    baseline: Path | None,
    junit: Path | None,
    summary: Path | None,
    metrics: Path | None,
    as_json: bool,
    quiet: bool,
    **thresholds: float | None,
) -> None:
    """Gate a run folder on interval bounds: exit code 3 when a threshold is missed."""
    from .. import gating
    from ..artifacts import append_text, fitting, write_text

    report = _report(folder)
    _refuse_places(folder, [path for path in (junit, metrics, summary) if path is not None])
    limits = gating.Thresholds(**thresholds)
    before = _report(baseline) if baseline else None
    with fitting(folder):
        verdict = gating.check(report, limits, fail_if=fail_if, baseline=before)
        numbers, said = gating.render_metrics(report), gating.render_summary(report, verdict)
    if junit is not None:
        write_text(junit, gating.render_junit(verdict))
    if metrics is not None:
        write_text(metrics, numbers)
    if summary is not None:
        append_text(summary, said)
    if as_json or not quiet:
        click.echo(gating.render_json(verdict) if as_json else gating.render_markdown(verdict))
    sys.exit(verdict.exit_code)


def _report(path: Path) -> Report:
    """Read the report of a run folder, which the run's record has to know, or a report.json alone.

    Raises:
        LoadError: If it is neither, or not the report of that run.
    """
    from .. import provenance
    from ..artifacts import Report, read

    file = path if path.suffix == ".json" else path / "report.json"
    if not file.is_file():
        raise LoadError(f"{path} is not a run folder: it has no report.json.", "Name the output of `run`.")
    if (file.parent / provenance.RUN).is_file():
        provenance.refuse_changed(file.parent, provenance.read_run(file.parent), [file.name])
    return read(file, Report)


def _refuse_places(folder: Path, files: Sequence[Path]) -> None:
    """Refuse to write what is no file's name, or over a file of the run.

    Raises:
        OutputError: Naming it.
    """
    from .. import provenance

    own = {folder / provenance.RUN}
    if (folder / provenance.RUN).is_file():
        own |= {folder / name for name in provenance.read_run(folder).outputs}
    places = {place.resolve() for place in own}
    for file in files:
        if file.is_dir():
            raise OutputError(f"{file} is a folder.", "Name a file.")
        if file.resolve() in places:
            raise OutputError(f"{file} is a file of the run that is checked.", "Name another.")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--hashes-only", is_flag=True, help="Compare hashes; load no model and make no proof again.")
@click.option("--strict", is_flag=True, help="Fail as well where something could not be compared or proven.")
@click.option(
    "--trust-remote-code", is_flag=True,
    help="Run code that comes with the model, or is in a pt2 or TorchScript file.",
)  # fmt: skip
@click.option(
    "--attestation", type=click.Path(path_type=Path),
    help="If all is as recorded, write it as an in-toto statement too, to be signed.",
)  # fmt: skip
@printing
def verify(
    folder: Path,
    hashes_only: bool,
    strict: bool,
    trust_remote_code: bool,
    attestation: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Hash a folder's files and make its proofs again: exit code 3 when something is not as recorded."""
    from ..artifacts import write_text
    from ..verifying import attest

    if attestation is not None and attestation.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{attestation} is inside {folder}, which it is about.", "Name a file elsewhere.")
    if not hashes_only:
        _prepare_libraries()
    found = library.verify(folder, proofs=not hashes_only, strict=strict, trust_remote_code=trust_remote_code)
    if attestation is not None and found.passed:
        write_text(attestation, attest(folder))
    show(found, as_json, quiet, lambda: "\n".join(found.verdict))
    sys.exit(found.exit_code)
