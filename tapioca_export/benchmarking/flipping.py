"""Report rows whose result is another without the layers: those that changed most, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifacts import MOST_FLIPS, Flip
from ..samples import Samples
from ..samples.rows import beginning
from ..tasks import Scores, Task


def changed_rows(before: np.ndarray, after: np.ndarray, higher_is_better: bool) -> list[int]:
    """Return the rows that became worse, then those that became better, the largest change first.

    Args:
        before: What each row was worth with the original model, (N,).
        after: What it is worth with the pruned one.
        higher_is_better: Which way the metric improves.
    """
    gains = (after - before) * (1 if higher_is_better else -1)
    worse, better = np.argsort(gains, kind="stable"), np.argsort(-gains, kind="stable")
    chosen = np.concatenate([worse[gains[worse] < 0][:MOST_FLIPS], better[gains[better] > 0][:MOST_FLIPS]])
    return [int(row) for row in chosen]


def flips_of(
    rows: Sequence[int],
    before: np.ndarray,
    after: np.ndarray,
    samples: Samples,
    said: Sequence[Sequence[str | None]],
    *,
    redact: bool = False,
) -> tuple[Flip, ...]:
    """Return what a reader is told of rows that changed.

    Args:
        rows: Which they are.
        before: What each row was worth with the original model, (N,).
        after: What it is worth with the pruned one.
        samples: All rows.
        said: Answers of the original and of the pruned model to all rows, None where a task has no words.
        redact: Leave out what the rows hold, and what was answered to them.
    """
    found = []
    for row in rows:
        answers = [None if redact or part[row] is None else beginning(part[row]) for part in said]
        found.append(
            Flip(
                where=Path(samples.rows[row].where).name,  # a folder of the user's is nobody else's
                sample=None if redact else samples.rows[row].shown,
                original=float(before[row]),
                pruned=float(after[row]),
                original_answer=answers[0],
                pruned_answer=answers[1],
            )
        )
    return tuple(found)


def num_still_wrong(task: Task, found: Sequence[Scores], said: Sequence[Sequence[str | None]]) -> int | None:
    """Count the rows that both models get wrong, each with another answer.

    None where rows are neither right nor wrong, or the task has no words for an answer.

    Args:
        task: What is right, and what of a text is its answer.
        found: What the original and the pruned model scored, of N rows each.
        said: Their answers to these rows, in words.
    """
    worth = [task.row_values(scores.values) for scores in found]
    if not task.is_right_or_wrong or worth[0] is None or worth[1] is None:
        return None
    wrong = np.flatnonzero((worth[0] == 0) & (worth[1] == 0)).tolist()
    pairs = [(said[0][row], said[1][row]) for row in wrong]
    if any(text is None for pair in pairs for text in pair):
        return None
    return sum(task.judged(str(before)) != task.judged(str(after)) for before, after in pairs)
