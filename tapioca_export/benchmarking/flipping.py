"""Report rows whose result is another without the layers: those that changed most, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..artifacts import Flip
from ..samples import Samples
from ..samples.rows import beginning
from .scoring import Answers

# Rows a direction: a report is read, and the counts beside it are of all.
MOST = 50


def changed_rows(before: np.ndarray, after: np.ndarray, higher_is_better: bool) -> list[int]:
    """Return the rows that became worse, then those that became better, the largest change first.

    Args:
        before: What each row was worth with the original model, (N,).
        after: What it is worth with the pruned one.
        higher_is_better: Which way the metric improves.
    """
    gains = (after - before) * (1 if higher_is_better else -1)
    worse, better = np.argsort(gains, kind="stable"), np.argsort(-gains, kind="stable")
    chosen = np.concatenate([worse[gains[worse] < 0][:MOST], better[gains[better] > 0][:MOST]])
    return [int(row) for row in chosen]


def flips_of(
    rows: Sequence[int],
    before: np.ndarray,
    after: np.ndarray,
    samples: Samples,
    answers: Answers,
    *,
    redact: bool = False,
) -> tuple[Flip, ...]:
    """Return what a reader is told of rows that changed.

    Args:
        rows: Which they are.
        before: What each row was worth with the original model, (N,).
        after: What it is worth with the pruned one.
        samples: All rows.
        answers: Both models' answers, as far as they are known.
        redact: Leave out what the rows hold, and what was answered to them.
    """
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
