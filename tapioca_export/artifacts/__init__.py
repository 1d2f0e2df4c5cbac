"""The data between the stages: frozen dataclasses, each of which is also one JSON file.

Knows nothing about models, runtimes or how any number came about.
"""

from ..numbering import LayerName, Numbering
from .files import check_output, read, refuse_inside, sha256, staged, to_json, write, write_text
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
from .results import (
    Accuracy,
    Benchmark,
    Compared,
    Comparison,
    Export,
    Latency,
    Phase,
    Ratio,
    Report,
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
    "Evaluation",
    "Export",
    "Interval",
    "Journal",
    "Latency",
    "LayerName",
    "LayerProfile",
    "Ledger",
    "Numbering",
    "Outcome",
    "Pair",
    "Phase",
    "Plan",
    "Prediction",
    "Profile",
    "Prompting",
    "Proof",
    "Ratio",
    "Report",
    "Run",
    "Selection",
    "Step",
    "Timing",
    "check_output",
    "read",
    "refuse_inside",
    "sha256",
    "staged",
    "to_json",
    "write",
    "write_text",
]
