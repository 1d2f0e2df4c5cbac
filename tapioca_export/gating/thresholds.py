"""Thresholds on the bounds of the report's intervals; a new one is a field, and a function in `CHECKS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from ..artifacts import Report
from ..errors import ConfigError
from .verdicts import Check, not_measured


@dataclass(frozen=True)
class Thresholds:
    """What the pruned model must meet; None asks for nothing.

    Attributes:
        min_target_gain: Least gain on the target, in the metric's unit, better being positive.
        max_id_loss: Largest loss on ID, in the metric's unit, worse being positive.
        min_speedup: Least ratio of original to pruned latency, in every setting measured in ONNX Runtime.
        max_size_ratio: Largest ratio of pruned to original file size.
        max_regression: Largest loss against a baseline, in the metric's unit, worse being positive.
    """

    min_target_gain: float | None = None
    max_id_loss: float | None = None
    min_speedup: float | None = None
    max_size_ratio: float | None = None
    max_regression: float | None = None

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


def met(report: Report, thresholds: Thresholds) -> tuple[Check, ...]:
    """Compare the report's interval bounds with the thresholds that were given."""
    given = {name: getattr(thresholds, name) for name in CHECKS}
    return tuple(CHECKS[name](report, limit) for name, limit in given.items() if limit is not None)


def _target_gain(report: Report, limit: float) -> Check:
    accuracy = report.benchmark.accuracy.get("target")
    if accuracy is None:
        return not_measured("min_target_gain", "there are no labelled target rows")
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
        return not_measured("max_id_loss", "there are no labelled ID rows")
    worst = 0.0 - accuracy.gain_interval[0]
    return Check(
        "max_id_loss",
        worst <= limit,
        f"ID {accuracy.metric} loss {0.0 - accuracy.gain:.6g}, at worst {worst:.6g} (95 % "
        f"interval); it must be at most {limit:.6g}.",
    )


def _speedup(report: Report, limit: float) -> Check:
    rows, worst = report.benchmark.served, report.benchmark.slowest
    if worst is None:
        return not_measured("min_speedup", "there is no latency row")
    low, high = worst.speedup.interval
    return Check(
        "min_speedup",
        all(row.speedup.interval[0] >= limit for row in rows),
        f"Speed-up with the lowest bound of {len(rows)}: {worst.speedup.median:.6g}, 95 % interval "
        f"{low:.6g} to {high:.6g}, at {worst.setting}, "
        f"{worst.provider}, {worst.runtime}; the low bound must be at least {limit:.6g}.",
    )


def _size_ratio(report: Report, limit: float) -> Check:
    size = report.benchmark.size_bytes
    if size.original <= 0 or size.pruned <= 0:
        return not_measured("max_size_ratio", "the benchmark holds no file sizes")
    ratio = size.pruned / size.original
    return Check(
        "max_size_ratio",
        ratio <= limit,
        f"Pruned file is {ratio:.6g} of the original ({size.pruned:.0f} of {size.original:.0f} "
        f"bytes); it must be at most {limit:.6g}.",
    )


CHECKS: dict[str, Callable[[Report, float], Check]] = {
    "min_target_gain": _target_gain,
    "max_id_loss": _id_loss,
    "min_speedup": _speedup,
    "max_size_ratio": _size_ratio,
}
