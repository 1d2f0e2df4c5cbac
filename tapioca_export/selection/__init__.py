"""Selection: which layers to drop. One loop, one table of criteria, one of searches; numbers only.

Knows nothing about how the numbers were measured, and imports no PyTorch.
"""

from . import published  # registers criteria
from .criteria import CRITERIA
from .pareto import are_on_front
from .rounds import PICKS, Round, Scored, SelectionSettings
from .search import Weigh, beyond_reach, changed, pick_depth, select_layers
from .searches import SEARCHES

__all__ = [
    "CRITERIA",
    "PICKS",
    "SEARCHES",
    "Round",
    "Scored",
    "SelectionSettings",
    "Weigh",
    "are_on_front",
    "beyond_reach",
    "changed",
    "pick_depth",
    "published",
    "select_layers",
]
