"""The task metric group by group, where rows say what they are counted to.

Source: the worst group's metric is that of Sagawa et al. 2020, "Distributionally Robust Neural Networks for
Group Shifts", arXiv:1911.08731, section 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..artifacts import Groups
from ..domains import Domains
from ..samples import Samples
from ..tasks import Scores, Task
from .statistics import compare

# Rows of a group, of which fewer say little; groups, of which more are a column of another kind.
LEAST_ROWS, MOST_GROUPS = 10, 100


def compare_groups(
    task: Task, original: Scores, pruned: Scores, samples: Samples
) -> tuple[Groups | None, tuple[str, ...]]:
    """Compare two models on each group of rows.

    Args:
        task: Says what the metric is.
        original: Results of the original model, in the order of the rows.
        pruned: Those of the pruned model.
        samples: The rows.

    Returns:
        The groups, or None where there are none to compare; and in words what was left out.
    """
    found: dict[str, list[int]] = {}
    for place, row in enumerate(samples.rows):
        if row.group is not None:
            found.setdefault(row.group, []).append(place)
    if len(found) > MOST_GROUPS:
        told = f"the column group has {len(found):,} values, and up to {MOST_GROUPS} are compared"
        return None, (f"groups of the {samples.role} rows: {told}.",)
    kept = {name: found[name] for name in sorted(found) if len(found[name]) >= LEAST_ROWS}
    few = ", ".join(sorted(found.keys() - kept.keys()))
    left_out = (f"groups of fewer than {LEAST_ROWS} {samples.role} rows: {few}.",) if few else ()
    if not kept:
        return None, left_out
    each = {name: compare(task, _part(original, rows), _part(pruned, rows)) for name, rows in kept.items()}
    order = [place for rows in kept.values() for place in rows]
    worst = Domains.of({name: len(rows) for name, rows in kept.items()}, "worst")
    both = compare(task, _part(original, order), _part(pruned, order), worst)
    return Groups(both, each), left_out


def _part(scores: Scores, rows: list[int]) -> Scores:
    chosen = np.asarray(rows)
    return replace(scores, values=scores.values[chosen], losses=scores.losses[chosen])
