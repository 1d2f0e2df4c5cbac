"""Intervening: how metric and profiles answer to a dose of some layers, and what random layers would do.

    stage.py      the sweep and its controls, on report rows
    controls.py   random sets of layers
    judging.py    what the numbers show: a trend, flatness, a rank among random sets

Knows nothing about how the layers were chosen.
"""

from .stage import intervene

__all__ = ["intervene"]
