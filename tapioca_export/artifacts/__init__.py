"""The data between the stages: frozen dataclasses, each of which is also one JSON file.

Knows nothing about models, runtimes or how any number came about.
"""

from ..numbering import LayerName, Numbering
from .files import check_output, read, refuse_inside, sha256, staged, to_json, write, write_text
from .interventions import (
    Dose,
    Flatness,
    Intervention,
    LayerDoses,
    NormControl,
    RandomLayers,
    RandomSet,
    Rank,
    Trend,
)
from .journal import Journal, Ledger
from .plans import Bounds, Plan
from .prompts import Prompting
from .records import (
    SCHEMA_VERSION,
    Candidate,
    Cost,
    Curves,
    Deviation,
    Evaluation,
    Interval,
    LayerProfile,
    Outcome,
    Pair,
    Prediction,
    Profile,
    Proof,
    Selection,
    Step,
)
from .reports import Report
from .results import (
    Accuracy,
    Benchmark,
    Compared,
    Comparison,
    Export,
    Latency,
    Phase,
    Ratio,
    Run,
    Timing,
)

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Benchmark",
    "Bounds",
    "Candidate",
    "Compared",
    "Comparison",
    "Cost",
    "Curves",
    "Deviation",
    "Dose",
    "Evaluation",
    "Export",
    "Flatness",
    "Interval",
    "Intervention",
    "Journal",
    "Latency",
    "LayerDoses",
    "LayerName",
    "LayerProfile",
    "Ledger",
    "NormControl",
    "Numbering",
    "Outcome",
    "Pair",
    "Phase",
    "Plan",
    "Prediction",
    "Profile",
    "Prompting",
    "Proof",
    "RandomLayers",
    "RandomSet",
    "Rank",
    "Ratio",
    "Report",
    "Run",
    "Selection",
    "Step",
    "Timing",
    "Trend",
    "check_output",
    "read",
    "refuse_inside",
    "sha256",
    "staged",
    "to_json",
    "write",
    "write_text",
]
