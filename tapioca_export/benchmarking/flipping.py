"""Report rows whose result is another without the layers: those that changed most, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifacts import Flip
from ..samples import Samples
from ..samples.rows import beginning
from ..tasks import Scores, Task
from ..tasks.scoring import averaged
from .scoring import Answers

# Rows a direction: a report is read, and the counts beside it are of all.
MOST = 50


def changed_rows(task: Task, original: Scores, pruned: Scores) -> list[int]:
    """Return the rows that became worse, then those that became better, the largest change first.

    Args:
        task: Says which way the metric improves; none are returned where it is no mean over rows.
        original: Results of the original model.
        pruned: Results of the pruned model on the same rows, in the same order.
    """
    if task.best_value is None:
        return []
    gains = averaged(pruned.values) - averaged(original.values)
    gains *= 1 if task.higher_is_better else -1
    worse, better = np.argsort(gains, kind="stable"), np.argsort(-gains, kind="stable")
    chosen = np.concatenate([worse[gains[worse] < 0][:MOST], better[gains[better] > 0][:MOST]])
    return [int(row) for row in chosen]


def flips_of(
    rows: Sequence[int],
    original: Scores,
    pruned: Scores,
    samples: Samples,
    answers: Answers,
    *,
    redact: bool = False,
) -> tuple[Flip, ...]:
    """Return what a reader is told of rows that changed.

    Args:
        rows: Which they are.
        original: Results of the original model.
        pruned: Results of the pruned model.
        samples: All rows.
        answers: Both models' answers, as far as they are known.
        redact: Leave out what the rows hold, and what was answered to them.
    """
    before, after = averaged(original.values), averaged(pruned.values)
    found = []
    for row in rows:
        known = (None, None) if redact else answers.get(row, (None, None))
        said = [None if text is None else beginning(text) for text in known]
        found.append(
            Flip(
                where=Path(samples.rows[row].where).name,  # a folder of the user's is nobody else's
                sample=None if redact else samples.rows[row].shown,
                original=float(before[row]),
                pruned=float(after[row]),
                original_answer=said[0],
                pruned_answer=said[1],
            )
        )
    return tuple(found)
