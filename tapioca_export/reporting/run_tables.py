"""Finished runs side by side, as tables. A run has a number, its place among those named."""

from __future__ import annotations

from ..artifacts import Accuracy, ComparedRun, Interval, Pair, RunComparison
from ..numbering import layers_text
from .tables import Row, TextTable, accuracy_table, latency_table
from .wording import change_text, damped_text, model_text, number, saving_text, signed, size_text, span


def _numbered(found: RunComparison) -> list[tuple[str, ComparedRun]]:
    return [(f"{place}. {run.name}", run) for place, run in enumerate(found.runs, start=1)]


def runs_table(found: RunComparison) -> TextTable:
    """Return a row a run: what was dropped of what, and what that did."""
    columns = (
        "run", "model", "criterion", "dropped", "layers left", "files", "target", "target change", "ID",
        "ID change", "speed-up", "A/A noise", "file size", "peak memory",
    )  # fmt: skip
    rows = tuple((name, *_run_cells(run)) for name, run in _numbered(found))
    caption = "Finished runs: original → pruned, changes and speed-ups with 95 % intervals"
    return TextTable(caption, columns, rows)


def _run_cells(run: ComparedRun) -> Row:
    measured, slowest = run.benchmark, run.benchmark.slowest
    dropped = [layers_text(measured.drop)] if measured.drop else []
    dropped += [f"{damped_text(measured.damp)} damped"] if measured.damp else []
    accuracies = (measured.accuracy.get("target"), measured.accuracy.get("id"))
    return (
        model_text(run.model),
        run.criterion,
        "; ".join(dropped) or "nothing",
        f"{run.num_left:g} of {run.num_layers}",
        f"{run.dtype}, {run.treatment}" if run.treatment else run.dtype,
        *(cell for accuracy in accuracies for cell in _accuracy_cells(accuracy)),
        f"{slowest.speedup.median:.2f} ({_bounds(slowest.speedup.interval)})" if slowest else "not measured",
        _bounds(slowest.noise_floor) if slowest else "not measured",
        _size_cell(measured.size_bytes),
        _size_cell(measured.peak_memory_bytes),
    )


def _bounds(ratios: Interval) -> str:
    return f"{ratios[0]:.2f} to {ratios[1]:.2f}"


def _accuracy_cells(accuracy: Accuracy | None) -> Row:
    if accuracy is None:
        return ("not measured", "not measured")
    return (
        f"{accuracy.metric} {number(accuracy.original)} → {number(accuracy.pruned)}",
        change_text(accuracy),
    )


def _size_cell(size: Pair) -> str:
    if size.original <= 0:
        return "not measured"
    return f"{size_text(size.original)} → {size_text(size.pruned)} ({saving_text(size)})"


def brief_runs_table(found: RunComparison) -> TextTable:
    """Return what of `runs_table` fits a terminal: a row a run."""
    rows = []
    for name, run in _numbered(found):
        slowest, size = run.benchmark.slowest, run.benchmark.size_bytes
        accuracies = (run.benchmark.accuracy.get(role) for role in ("target", "id"))
        rows.append(
            (
                name,
                f"{run.num_left:g}/{run.num_layers}",
                *(
                    "n/a" if a is None else f"{signed(a.difference)} [{span(a.interval, sign=True)}]"
                    for a in accuracies
                ),
                f"{slowest.speedup.median:.2f} [{_bounds(slowest.speedup.interval)}]" if slowest else "n/a",
                f"{size.pruned / size.original:.3f}" if size.original > 0 else "n/a",
            )
        )
    columns = ("run", "layers", "target", "ID", "speed-up", "size")
    return TextTable("Changes, and the speed-up with the lowest bound (95 % intervals)", columns, tuple(rows))


def scores_table(found: RunComparison) -> TextTable:
    """Return every metric of every run, those of single target domains too."""
    return _stacked(found, [(name, accuracy_table(run.benchmark)) for name, run in _numbered(found)])


def settings_table(found: RunComparison) -> TextTable:
    """Return every setting that was timed in every run."""
    return _stacked(found, [(name, latency_table(run.benchmark.latency)) for name, run in _numbered(found)])


def _stacked(found: RunComparison, parts: list[tuple[str, TextTable]]) -> TextTable:
    """Return tables of the same columns as one, its first column naming the run."""
    rows = tuple((name, *row) for name, table in parts for row in table.rows)
    one = parts[0][1]
    return TextTable(one.caption, ("run", *one.columns), rows)


def facts_table(found: RunComparison) -> TextTable:
    """Return what the numbers of each run rest on, a column a run; of a SHA-256 its beginning."""
    numbered = _numbered(found)
    rows = tuple(
        (fact, *(_fact_text(run.facts[fact]) for _, run in numbered)) for fact in found.runs[0].facts
    )
    caption = "What the numbers rest on; they are comparable where these are the same"
    return TextTable(caption, ("", *(name for name, _ in numbered)), rows, is_numeric=False)


def _fact_text(value: str) -> str:
    is_hash = len(value) == 64 and set(value) <= set("0123456789abcdef")
    return f"SHA-256 {value[:12]}" if is_hash else value
