"""Finished runs side by side: reads them, and tells which of their numbers may be held against each other.

A number is comparable where every fact that it rests on is the same. Knows nothing about how any of this is
shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import provenance, reporting
from .artifacts import (
    Benchmark,
    ComparedRun,
    Prompting,
    Quantity,
    Report,
    Run,
    RunComparison,
    RunDifference,
    Selection,
    fitting,
    read,
    refuse_inside,
    sha256,
    staged,
    to_json,
)
from .config import COMPARISON
from .errors import ConfigError, LoadError, OutputError
from .numbering import num_left

QUANTITIES: tuple[Quantity, ...] = ("target", "id", "speed")
# Which quantities rest on a fact.
RESTING: dict[str, tuple[Quantity, ...]] = {
    "task": ("target", "id"),
    "target metric": ("target",),
    "ID metric": ("id",),
    "target report rows": ("target",),
    "ID report rows": ("id",),
    "prompts": ("target", "id"),
    "longest input": ("target", "id"),
    "machine": ("speed",),
    "ONNX Runtime": ("speed",),
    "timed settings": ("speed",),
}
UNKNOWN, UNMEASURED = "not recorded", "not measured"


def compare_runs(
    folders: Sequence[Path], output: Path = COMPARISON, *, overwrite: bool = False
) -> RunComparison:
    """Write `run_comparison.json`, `.md` and `.html`: finished runs side by side.

    Args:
        folders: Two run folders or more; the others are held against the first.
        output: Where to write: a folder of its own.
        overwrite: Whether to replace what is there.

    Raises:
        ConfigError: If there are fewer than two, or one is there twice.
        LoadError: If one is no run folder, or is not what was written.
        OutputError: If the output cannot be written, or holds one of the runs.
    """
    if len(folders) < 2:
        raise ConfigError(
            f"--compare needs two run folders or more, and was given {len(folders)}.",
            "Such as report --compare out-a out-b.",
        )
    refuse_inside(output, folders)
    for folder in folders:  # which are left as they are
        if folder.exists() and output.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                f"The output {output} is inside the run {folder}.", "Name another with --output."
            )
    reports = [_read_report(folder) for folder in folders]
    _refuse_twice(folders, reports)
    named = zip(_names(folders), folders, reports, strict=True)
    with fitting(Path(", ".join(map(str, folders)))):
        result = collate([compared_run(*found) for found in named])
        with staged(output, overwrite=overwrite) as folder:
            reporting.write_run_comparison(result, folder)
    return result


def _read_report(folder: Path) -> Report:
    """Read what a run folder holds, if it is what was written.

    Raises:
        LoadError: If it is no run folder, or its report is not the one that its record names.
    """
    record, file = provenance.read_run(folder), folder / "report.json"
    if not file.is_file():
        raise LoadError(
            f"{folder} is not a run folder: it has no report.json.", "Render it: tapioca-export report RUN."
        )
    if record.outputs.get(file.name) != sha256(file):
        raise LoadError(
            f"{file} is not what {provenance.RUN} names.", "Render it again: tapioca-export report RUN."
        )
    return read(file, Report)


def _refuse_twice(folders: Sequence[Path], reports: Sequence[Report]) -> None:
    """Refuse a run that is named twice, or its copy: no two runs take the same time.

    Raises:
        ConfigError: Naming both.
    """
    seen: dict[str, Path] = {}
    for folder, report in zip(folders, reports, strict=True):
        first = seen.setdefault(to_json(report.benchmark), folder)
        if first is not folder:
            again = "is named twice" if first.resolve() == folder.resolve() else f"is a copy of {first}"
            raise ConfigError(f"Run {folder} {again}.", "Name each run once.")


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def compared_run(name: str, folder: Path, report: Report) -> ComparedRun:
    """Return what of a report stands beside others, under a name."""
    selection, export = report.selection, report.exports.get("pruned/onnx")
    made = ComparedRun(
        name=name,
        folder=str(folder),
        model=selection.model,
        criterion=selection.criterion,
        num_layers=selection.num_layers,
        num_left=num_left(selection.num_layers, selection.drop),
        benchmark=replace(report.benchmark, flips={}),
        facts=facts_of(report),
    )
    return made if export is None else replace(made, dtype=export.dtype, treatment=export.treatment)


# --- facts ----------------------------------------------------------------------------------


def facts_of(report: Report) -> dict[str, str]:
    """Return what the numbers of a run rest on, each in words or as a SHA-256, by the names in `RESTING`."""
    environment = report.run.environment
    prompting, original = report.selection.prompting, report.exports.get("original/onnx")
    prompts = hashlib.sha256(to_json(prompting).encode()).hexdigest()
    return {
        "task": report.benchmark.task,
        "target metric": _metric(report.benchmark, "target", report.selection),
        "ID metric": _metric(report.benchmark, "id", report.selection),
        "target report rows": _report_rows(report.run, "target"),
        "ID report rows": _report_rows(report.run, "id"),
        "prompts": prompts if prompting != Prompting() else "rows as they are",
        "longest input": UNKNOWN if original is None else str(original.max_length or UNKNOWN),
        "machine": _machine(environment),
        "ONNX Runtime": _runtime(environment),
        "timed settings": _timed(report.benchmark),
    }


def _metric(measured: Benchmark, role: str, selection: Selection) -> str:
    """Return the metric, and of several targets how it is made of theirs."""
    if role not in measured.accuracy:
        return UNMEASURED
    metric = measured.accuracy[role].metric
    if role == "id" or measured.objective is None:
        return metric
    weights = ",".join(f"{name}={weight:g}" for name, weight in sorted(selection.weights.items()))
    return f"{metric} ({measured.objective}{f' {weights}' if weights else ''})"


def _report_rows(run: Run, role: str) -> str:
    """Return one SHA-256 of all that says which rows of a role were reported: files, split, limit, names."""
    config = run.config
    own, apart = _files(config.get(role)), _files(config.get(f"{role}_report"))
    read_from = {domain: apart.get(domain, own[domain]) for domain in own}
    if config.get("drop_leaks"):  # what is left of a file depends on all others
        others = [_files(config.get(name)) for name in ("id", "target", "id_report", "target_report")]
        leaks = [[domain, run.inputs.get(path)] for files in others for domain, path in sorted(files.items())]
    else:
        leaks = []
    digests = {domain: run.inputs.get(path) for domain, path in read_from.items()}
    if not digests or None in digests.values() or any(digest is None for _, digest in leaks):
        return UNKNOWN
    limit = config.get("limit")
    seed = config.get("seed") if limit is not None or own.keys() - apart.keys() else None
    columns = {name: column for name, column in (config.get("columns") or {}).items() if name != "group"}
    parts = [digests, leaks, columns, limit, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(given: Any) -> dict[str, str]:
    """Return the file of each domain as a record names them; one file is that of a domain without a name."""
    if isinstance(given, Mapping):
        return dict(given)
    return {"": given} if given else {}


def _machine(environment: Mapping[str, Any]) -> str:
    if "processor" not in environment:
        return UNKNOWN
    gpus = ", ".join(environment.get("gpus", ())) or "no GPU"
    return f"{environment['processor']}, {environment['cores']} cores, {gpus}, {environment['platform']}"


def _runtime(environment: Mapping[str, Any]) -> str:
    """Return the version of each wheel that was installed."""
    versions = environment.get("versions", {})
    found = {wheel: versions.get(wheel, provenance.NOT_INSTALLED) for wheel in provenance.RUNTIMES}
    known = [f"{v} ({wheel})" for wheel, v in found.items() if v != provenance.NOT_INSTALLED]
    return ", ".join(known) or UNKNOWN


def _timed(measured: Benchmark) -> str:
    """Return the settings that were timed; where sessions were tuned, threads are part of what was found."""
    rows = {
        f"{row.setting}, {row.provider}, tuned" if measured.sessions else reporting.setting_text(row)
        for row in measured.served
    }
    return "; ".join(sorted(rows)) or UNMEASURED


# --- what is comparable ---------------------------------------------------------------------


def collate(runs: Sequence[ComparedRun]) -> RunComparison:
    """Put runs side by side: group those that are comparable, and say how others differ from the first."""
    first, *others = runs
    differences = [
        RunDifference(run.name, quantity, unlike)
        for run in others
        for quantity in QUANTITIES
        if _is_measured(run, quantity) or _is_measured(first, quantity)
        if (unlike := _unlike(run, first, quantity))
    ]
    groups = {quantity: _groups(runs, quantity) for quantity in QUANTITIES}
    result = RunComparison("", tuple(runs), groups, tuple(differences))
    return replace(result, verdict=reporting.run_verdict(result))


def _is_measured(run: ComparedRun, quantity: Quantity) -> bool:
    return bool(run.benchmark.served) if quantity == "speed" else quantity in run.benchmark.accuracy


def _unlike(run: ComparedRun, other: ComparedRun, quantity: Quantity) -> dict[str, tuple[str, str]]:
    """Return the facts that a quantity rests on and that are not known to be the same."""
    pairs = {
        fact: (run.facts[fact], other.facts[fact]) for fact, on_it in RESTING.items() if quantity in on_it
    }
    return {fact: (here, there) for fact, (here, there) in pairs.items() if here != there or here == UNKNOWN}


def _groups(runs: Sequence[ComparedRun], quantity: Quantity) -> tuple[tuple[str, ...], ...]:
    """Return the names of runs that are alike in all that a quantity rests on."""
    groups: list[list[ComparedRun]] = []
    for run in runs:
        if _is_measured(run, quantity):
            alike = next((group for group in groups if not _unlike(run, group[0], quantity)), None)
            if alike is None:
                groups.append(alike := [])
            alike.append(run)
    return tuple(tuple(run.name for run in group) for group in groups)
