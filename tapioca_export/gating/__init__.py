"""Thresholds -> verdict: may this pruned model be shipped?

    thresholds.py    the four that have an option each
    expressions.py   any other, over the fields of the report
    baselines.py     no worse than the last release
    rendering.py     Markdown, JSON, JUnit XML, OpenMetrics

Thresholds act on the unfavourable bound of a 95 % interval, never on the estimate, so that a lucky
draw does not pass a gate. A quantity that was not measured fails its check.

Exit codes:

    ====  =============================================================
    code  meaning
    ====  =============================================================
    0     every check passed
    1     the report cannot be read, or no threshold was given
    2     the command line is wrong
    3     at least one check failed
    ====  =============================================================

Codes 0 and 3 come from `Verdict.exit_code`; 1 and 2 from the command line. Knows nothing about how
a number was measured.
"""

from .rendering import render_json, render_junit, render_markdown, render_metrics, render_summary
from .stage import check
from .thresholds import Thresholds
from .verdicts import Check, Verdict

__all__ = [
    "Check",
    "Thresholds",
    "Verdict",
    "check",
    "render_json",
    "render_junit",
    "render_markdown",
    "render_metrics",
    "render_summary",
]
