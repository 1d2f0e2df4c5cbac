"""Sample files -> rows in four roles, with no row in two of them.

    files.py   a file -> records
    rows.py    records -> rows, by a function of the task's
    roles.py   rows -> roles

Knows nothing about tokenizers, models or metrics.
"""

from .files import read_records
from .roles import MIN_ROWS, NO_SPLIT, ROLES, Side, Split, halves, load_roles, refuse_shared
from .rows import GROUP, Place, ReadRow, Row, Samples, check_exists, group_of, read_samples

__all__ = [
    "GROUP",
    "MIN_ROWS",
    "NO_SPLIT",
    "ROLES",
    "Place",
    "ReadRow",
    "Row",
    "Samples",
    "Side",
    "Split",
    "check_exists",
    "group_of",
    "halves",
    "load_roles",
    "read_records",
    "read_samples",
    "refuse_shared",
]
