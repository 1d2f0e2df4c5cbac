"""Costing: what a search will cost, before it is begun.

The search itself is run, on paper: a probe that computes nothing counts what it is asked for. A few
batches are then run for real, to tell what a layer forward costs here. Knows nothing about criteria
or ways of searching.
"""

from .calibrating import Calibration, Flops, calibrate, count_flops
from .predicting import PlanSettings, advise, longest_batch, model_bytes, predict, trace_bytes
from .rehearsing import Item, Rehearsal, Shapes
from .storing import run_bytes, search_bytes

__all__ = [
    "Calibration",
    "Flops",
    "Item",
    "PlanSettings",
    "Rehearsal",
    "Shapes",
    "advise",
    "calibrate",
    "count_flops",
    "longest_batch",
    "model_bytes",
    "predict",
    "run_bytes",
    "search_bytes",
    "trace_bytes",
]
