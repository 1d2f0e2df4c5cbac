"""The stage: every check that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifacts import Report
from ..errors import ConfigError
from .baselines import regressions
from .expressions import failing, fields_of
from .thresholds import CHECKS, Thresholds, met
from .verdicts import Verdict


def check(
    report: Report,
    thresholds: Thresholds | None = None,
    *,
    fail_if: Sequence[str] = (),
    baseline: Report | None = None,
) -> Verdict:
    """Hold a report against thresholds, expressions and the report of an earlier release.

    Args:
        report: Of the run to be judged.
        thresholds: On the bounds of its intervals.
        fail_if: Expressions over its fields, each of which must not be true.
        baseline: The report of the release that this one must not be worse than.

    Raises:
        ConfigError: If nothing is asked for: such a gate would always pass; or an expression or the baseline
            does not fit the report.
    """
    thresholds = thresholds or Thresholds()
    checks = met(report, thresholds)
    if fail_if:
        fields = fields_of(report)
        checks += tuple(failing(text, fields) for text in fail_if)
    if baseline is not None:
        checks += regressions(report, baseline, thresholds.max_regression)
    if thresholds.max_regression is not None and baseline is None:
        raise ConfigError("--max-regression is against a baseline.", "Add --baseline OLD/report.json.")
    if not checks:
        options = ", ".join("--" + name.replace("_", "-") for name in CHECKS)
        raise ConfigError(
            "No threshold was given.", f"Give at least one of {options}, --fail-if, --baseline."
        )
    return Verdict(checks)
