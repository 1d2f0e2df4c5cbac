"""Report rows whose result is another without the layers: those that changed most, in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..artifacts import Flip
from ..samples import Samples
from ..tasks import Scores, Task
from ..tasks.scoring import averaged

# Rows a direction: a report is read, and the counts beside it are of all.
MOST = 50


def flipped(
    task: Task, original: Scores, pruned: Scores, samples: Samples, *, redact: bool = False
) -> tuple[Flip, ...]:
    """Return the rows that became worse, then those that became better, the largest change first.

    Args:
        task: Says which way the metric improves; none are returned where it is no mean over rows.
        original: Results of the original model.
        pruned: Results of the pruned model on the same rows, in the same order.
        samples: The rows.
        redact: Leave out what the rows hold.
    """
    if task.best_value is None:
        return ()
    before, after = averaged(original.values), averaged(pruned.values)
    gains = (after - before) * (1 if task.higher_is_better else -1)
    worse, better = np.argsort(gains, kind="stable"), np.argsort(-gains, kind="stable")
    chosen = [*worse[gains[worse] < 0][:MOST], *better[gains[better] > 0][:MOST]]
    return tuple(
        Flip(
            where=Path(samples.rows[row].where).name,  # a folder of the user's is nobody else's
            sample=None if redact else samples.rows[row].shown,
            original=float(before[row]),
            pruned=float(after[row]),
        )
        for row in chosen
    )
