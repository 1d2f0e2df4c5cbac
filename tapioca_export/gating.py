"""Thresholds -> verdict: may this pruned model be shipped?

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
a number was measured. A new threshold is one field, and one function named in `_CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from xml.etree import ElementTree

from .artifacts import Report
from .errors import ConfigError


@dataclass(frozen=True)
class Thresholds:
    """What the pruned model must meet; None asks for nothing.

    Attributes:
        min_target_gain: Least gain on the target, in the metric's unit, better being positive.
        max_id_loss: Largest loss on ID, in the metric's unit, worse being positive.
        min_speedup: Least ratio of original to pruned latency, in every setting measured.
        max_size_ratio: Largest ratio of pruned to original file size.
    """

    min_target_gain: float | None = None
    max_id_loss: float | None = None
    min_speedup: float | None = None
    max_size_ratio: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that nothing can be compared with.

        Raises:
            ConfigError: If a threshold is not a finite number.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                option = "--" + field.name.replace("_", "-")
                raise ConfigError(f"Threshold {option} is {value}.", "Give a finite number.")


@dataclass(frozen=True)
class Check:
    """One threshold and whether it was met."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verdict:
    """Every check that was asked for."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0 when every check passed, else 3."""
        return 0 if self.passed else 3


def check(report: Report, thresholds: Thresholds) -> Verdict:
    """Compare the report's interval bounds with the thresholds that were given.

    Raises:
        ConfigError: If no threshold was given: a gate that asks for nothing would always pass.
    """
    given = {name: getattr(thresholds, name) for name in _CHECKS}
    checks = tuple(_CHECKS[name](report, limit) for name, limit in given.items() if limit is not None)
    if not checks:
        options = ", ".join("--" + name.replace("_", "-") for name in _CHECKS)
        raise ConfigError("No threshold was given.", f"Give at least one of {options}.")
    return Verdict(checks)


def render_markdown(verdict: Verdict) -> str:
    """Return the verdict as a Markdown table, for a terminal or a job summary."""
    passed = sum(item.passed for item in verdict.checks)
    lines = [
        f"**Gate {'passed' if verdict.passed else 'missed'}**: "
        f"{passed} of {len(verdict.checks)} checks passed.",
        "",
        "| check | result | what was found |",
        "| --- | --- | --- |",
    ]
    for item in verdict.checks:
        result = "pass" if item.passed else "**FAIL**"
        lines.append(f"| {item.name} | {result} | {_cell(item.message)} |")
    return "\n".join(lines) + "\n"


def render_junit(verdict: Verdict) -> str:
    """Return the verdict as JUnit XML: one test case a check."""
    failures = sum(not item.passed for item in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", {"name": "tapioca-export", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "tapioca-export check", **counts})
    for item in verdict.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname="tapioca_export.check", name=item.name, time="0"
        )
        message = _printable(item.message)
        if item.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            ElementTree.SubElement(case, "failure", message=message, type="threshold").text = message
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def _printable(text: str) -> str:
    """Drop control characters: XML 1.0 has no way to write them."""
    return "".join(char for char in text if char.isprintable())


# --- checks ---------------------------------------------------------------------------------


def _target_gain(report: Report, limit: float) -> Check:
    accuracy = report.benchmark.accuracy.get("target")
    if accuracy is None:
        return _not_measured("min_target_gain", "there are no labelled target rows")
    low, high = accuracy.gain_interval
    return Check(
        "min_target_gain",
        low >= limit,
        f"Target {accuracy.metric} gain {accuracy.gain:.6g}, 95 % interval {low:.6g} to "
        f"{high:.6g}; the low bound must be at least {limit:.6g}.{_by_domain(report)}",
    )


def _by_domain(report: Report) -> str:
    """Say what each of several target domains gains: the objective may hide one that falls."""
    gains = (f"{name} {part.gain:+.6g}" for name, part in report.benchmark.targets.items())
    return f" By domain: {', '.join(gains)}." if report.benchmark.targets else ""


def _id_loss(report: Report, limit: float) -> Check:
    accuracy = report.benchmark.accuracy.get("id")
    if accuracy is None:
        return _not_measured("max_id_loss", "there are no labelled ID rows")
    worst = 0.0 - accuracy.gain_interval[0]
    return Check(
        "max_id_loss",
        worst <= limit,
        f"ID {accuracy.metric} loss {0.0 - accuracy.gain:.6g}, at worst {worst:.6g} (95 % "
        f"interval); it must be at most {limit:.6g}.",
    )


def _speedup(report: Report, limit: float) -> Check:
    rows = report.benchmark.latency
    if not rows:
        return _not_measured("min_speedup", "there is no latency row")
    worst = min(rows, key=lambda row: row.speedup.interval[0])
    low, high = worst.speedup.interval
    return Check(
        "min_speedup",
        all(row.speedup.interval[0] >= limit for row in rows),
        f"Least speed-up of {len(rows)}: {worst.speedup.median:.6g}, 95 % interval {low:.6g} to "
        f"{high:.6g}, at {worst.setting}, "
        f"{worst.provider}, {worst.runtime}; the low bound must be at least {limit:.6g}.",
    )


def _size_ratio(report: Report, limit: float) -> Check:
    size = report.benchmark.size_bytes
    if size.original <= 0 or size.pruned <= 0:
        return _not_measured("max_size_ratio", "the benchmark holds no file sizes")
    ratio = size.pruned / size.original
    return Check(
        "max_size_ratio",
        ratio <= limit,
        f"Pruned file is {ratio:.6g} of the original ({size.pruned:.0f} of {size.original:.0f} "
        f"bytes); it must be at most {limit:.6g}.",
    )


def _not_measured(name: str, reason: str) -> Check:
    return Check(name, False, f"Not measured: {reason}. What was not measured does not pass.")


_CHECKS: dict[str, Callable[[Report, float], Check]] = {
    "min_target_gain": _target_gain,
    "max_id_loss": _id_loss,
    "min_speedup": _speedup,
    "max_size_ratio": _size_ratio,
}
