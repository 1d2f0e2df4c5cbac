"""The task metric group by group, where rows say what they are counted to.

Source: the worst group's metric is that of Sagawa et al. 2020, "Distributionally Robust Neural Networks for
Group Shifts", arXiv:1911.08731, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..artifacts import Groups
from ..domains import Domains
from ..errors import LoadError
from ..samples import Samples
from ..tasks import Scores, Task
from .statistics import compare

# Rows of a group, of which fewer say little; groups, of which more are a column of another kind.
LEAST_ROWS, MOST_GROUPS = 30, 100
MOST_NAMED = 5


def compare_groups(
    task: Task, original: Scores, pruned: Scores, samples: Samples, *, redact: bool = False
) -> tuple[Groups | None, tuple[str, ...]]:
    """Compare two models on each group of rows.

    Args:
        task: Says what the metric is.
        original: Results of the original model, in the order of the rows.
        pruned: Those of the pruned model.
        samples: The rows.
        redact: Whether names of groups, which are contents of rows, are left out.

    Returns:
        The groups, or None where there are none to compare; and in words what was left out.
    """
    found: dict[str, list[int]] = {}
    for place, row in enumerate(samples.rows):
        if row.group is not None:
            found.setdefault(row.group, []).append(place)
    of_role = f"of the {samples.role} rows"
    if len(found) > MOST_GROUPS:
        told = f"the column group has {len(found):,} values, and up to {MOST_GROUPS} are compared"
        return None, (f"groups {of_role}: {told}.",)
    few = sorted(name for name, rows in found.items() if len(rows) < LEAST_ROWS)
    rest = {name: found[name] for name in sorted(found.keys() - set(few))}
    kept = {name: rows for name, rows in rest.items() if _has_a_metric(task, samples, rows)}
    none = sorted(rest.keys() - kept.keys())
    left_out = (
        *_told(few, f"{of_role} with fewer than {LEAST_ROWS}", redact),
        *_told(none, f"{of_role} of which {task.metric} cannot be told", redact),
    )
    if not kept:
        return None, left_out
    each = {name: compare(task, _part(original, rows), _part(pruned, rows)) for name, rows in kept.items()}
    order = [place for rows in kept.values() for place in rows]
    worst = Domains.of({name: len(rows) for name, rows in kept.items()}, "worst")
    both = compare(task, _part(original, order), _part(pruned, order), worst)
    return Groups(both, {} if redact else each), left_out


def _has_a_metric(task: Task, samples: Samples, rows: Sequence[int]) -> bool:
    """Tell whether a metric of all rows together is one of these alone: F1 is none without entities."""
    if task.best_value is not None:  # a mean over rows is one over any of them
        return True
    try:
        task.check_labels(replace(samples, rows=tuple(samples.rows[row] for row in rows), named=None))
    except LoadError:
        return False
    return True


def _told(names: Sequence[str], what: str, redact: bool) -> tuple[str, ...]:
    if not names:
        return ()
    shown = [] if redact else names[:MOST_NAMED]
    more = len(names) - len(shown)
    each = ", ".join([*shown, *([f"{more} {'more' if shown else 'of them'}"] if more else [])])
    return (f"groups {what}: {each}.",)


def _part(scores: Scores, rows: Sequence[int]) -> Scores:
    chosen = np.asarray(rows)
    return Scores(scores.values[chosen], scores.losses[chosen])
