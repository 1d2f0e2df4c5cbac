"""The report of a run folder, rendered again from its artifacts, or with one that is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import provenance, reporting
from .artifacts import (
    Benchmark,
    Export,
    Intervention,
    Profile,
    Report,
    Run,
    Selection,
    fitting,
    hash_text,
    locked,
    read,
    sealed,
    to_json,
    write_together,
)

INTERVENTION = "intervention.json"


def report(folder: Path) -> Report:
    """Render a run folder again, from its artifacts.

    Raises:
        LoadError: If it is no run folder, or an artifact is not what the run wrote.
        OutputError: If it cannot be written, or another process writes it.
    """
    provenance.read_run(folder)
    with locked(folder, folder):
        return render_again(folder)


def render_again(folder: Path, added: Intervention | None = None) -> Report:
    """Write the report of a run folder, with an intervention that is added to it, and record both."""
    before = provenance.read_run(folder)
    found = sorted(folder.glob("*/*/export.json"))
    names = [path.relative_to(folder).as_posix() for path in found]
    parts = ("selection.json", "profile.json", "benchmark.json", *names)
    provenance.refuse_changed(folder, before, parts)
    exports = {path.parent.relative_to(folder).as_posix(): read(path, Export) for path in found}
    texts, there = {}, folder / INTERVENTION
    if added is not None:
        texts[INTERVENTION] = to_json(added)
    elif there.is_file():
        added = read(there, Intervention)
        texts[INTERVENTION] = there.read_text(encoding="utf-8")
    record = replace(_renewed(before, texts), sha256="")
    selection = read(folder / "selection.json", Selection)
    profile = read(folder / "profile.json", Profile)
    benchmark = read(folder / "benchmark.json", Benchmark)
    with fitting(folder):
        result = reporting.make_report(record, selection, profile, benchmark, exports, added)
        texts |= reporting.rendered(result)
    texts[provenance.RUN] = sealed(_renewed(record, texts))
    write_together({folder / name: text for name, text in texts.items()})
    return result


def _renewed(record: Run, texts: Mapping[str, str]) -> Run:
    """Return the record of a run with the hashes of files that will be written."""
    return replace(record, outputs={**record.outputs, **{n: hash_text(text) for n, text in texts.items()}})
