"""Profiling: metric, loss and profile of a model with any layers skipped, at the least cost.

Criteria ask a `Probe` for numbers; they never touch the network. Knows nothing about why a layer is
chosen.
"""

from .accumulating import surviving_boundaries
from .dosing import Response, respond
from .filling import division_on
from .probe import Probe
from .replaying import Changes, MakeReplayer

__all__ = ["Changes", "MakeReplayer", "Probe", "Response", "division_on", "respond", "surviving_boundaries"]
