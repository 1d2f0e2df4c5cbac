"""Selection: which layers to drop. One loop, one table of criteria; numbers only.

Knows nothing about how the numbers were measured, and imports no PyTorch.
"""

from .criteria import CRITERIA, Round, Scored, SelectionSettings
from .journal import Journal
from .search import pick_depth, select_layers

__all__ = [
    "CRITERIA",
    "Journal",
    "Round",
    "Scored",
    "SelectionSettings",
    "pick_depth",
    "select_layers",
]
