"""The rows whose result is another without the layers, as a table that says how many of them it shows."""

from __future__ import annotations

from ..artifacts import MOST_FLIPS, Benchmark, Flip
from .tables import Row, TextTable
from .wording import number, role_text


def flip_table(benchmark: Benchmark) -> TextTable:
    """Return the rows whose result changed most, those that became worse first."""
    has_answers = any(flip.original_answer is not None for part in benchmark.flips.values() for flip in part)
    columns = ("report rows", "place", "result", *(["answer"] if has_answers else []), "sample")
    rows: list[Row] = []
    for role, flips in benchmark.flips.items():
        for flip in flips:
            became = "better" if _is_better(flip, benchmark, role) else "worse"
            result = f"{became}: {number(flip.original)} → {number(flip.pruned)}"
            answers = [_answers(flip)] if has_answers else []
            rows.append((role_text(role), flip.where, result, *answers, flip.sample or "(left out)"))
    return TextTable(_caption(benchmark), columns, tuple(rows), is_numeric=False)


def _answers(flip: Flip) -> str:
    if flip.original_answer is None or flip.pruned_answer is None:
        return "-"
    return f"{flip.original_answer} → {flip.pruned_answer}"


def _is_better(flip: Flip, benchmark: Benchmark, role: str) -> bool:
    return (flip.pruned > flip.original) is benchmark.accuracy[role].higher_is_better


def _caption(benchmark: Benchmark) -> str:
    """Say which rows are shown, and of how many, where that was counted."""
    cut = []
    for role, flips in benchmark.flips.items():
        accuracy = benchmark.accuracy[role]
        better = sum(_is_better(flip, benchmark, role) for flip in flips)
        ways = ((len(flips) - better, accuracy.lost, "worse"), (better, accuracy.gained, "better"))
        cut += [
            f"the {shown} of {num_rows or 'more'} {role_text(role)} rows that became {way}"
            for shown, num_rows, way in ways
            if shown == MOST_FLIPS and num_rows != shown
        ]
    return f"Rows whose result changed most: {'; '.join(cut)}" if cut else "All rows whose result changed"
