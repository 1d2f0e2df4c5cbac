"""No worse than the last release: the pruned model of one report against that of an earlier one.

Both reports have an interval for each metric and speed-up, of rows and rounds that need not be the same, so
the change between them gets the interval of a difference of two independent estimates: MOVER, the
square-and-add rule (Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I;
Zou and Donner 2008, doi:10.1002/sim.3095). On the same rows the two are not independent, and the interval
is wider than it would have to be. Speed-ups are ratios, and compared on the scale of their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..artifacts import Accuracy, Interval, Latency, Report
from ..errors import ConfigError
from .verdicts import Check, not_measured

# What another version of an exporter may add to a file.
SIZE_MARGIN = 0.01


def regressions(report: Report, before: Report, max_regression: float | None = None) -> tuple[Check, ...]:
    """Compare the pruned model with that of an earlier report: roles, domains, speed and size measured then.

    A metric fails where the interval of its change lies below zero as a whole, a regression that is shown;
    with `max_regression`, where its low bound lies below that: no more than this much was lost. A speed-up
    fails where one is shown to be less at the same setting, a size where it grew by more than 1 %.

    Raises:
        ConfigError: If the reports are of different tasks or metrics, or have nothing in common.
    """
    if report.benchmark.task != before.benchmark.task:
        raise ConfigError(
            f"The baseline is of the task {before.benchmark.task}, the report of {report.benchmark.task}.",
            "Name the report of an earlier release of the same model.",
        )
    checks = (
        *_metrics(report, before, max_regression),
        *_speedup(report, before),
        *_size(report, before),
    )
    if not checks:
        raise ConfigError("The baseline has no numbers to compare with.", "Name another report.")
    return checks


def _metrics(report: Report, before: Report, margin: float | None) -> Iterator[Check]:
    rows, domains = report.benchmark.accuracy, report.benchmark.targets
    now = rows | {f"target {name}": row for name, row in domains.items()}
    rows, domains = before.benchmark.accuracy, before.benchmark.targets
    then = rows | {f"target {name}": row for name, row in domains.items()}
    for role, old in then.items():
        name = f"regression {role}"
        if role not in now:
            yield not_measured(name, f"there are no labelled {role} rows")
            continue
        new = now[role]
        if new.metric != old.metric:
            raise ConfigError(
                f"The baseline's metric on {role} rows is {old.metric}, the report's is {new.metric}.",
                "Run with the same --metric.",
            )
        low, high = _change(_oriented(new), _oriented(old))
        asked = "must not be below 0 as a whole" if margin is None else f"must be above {-margin:.6g}"
        passed = high >= 0 if margin is None else low >= -margin
        yield Check(
            name,
            passed,
            f"{new.metric} of the pruned model {old.pruned:.6g} then, {new.pruned:.6g} now; gain with 95 % "
            f"interval {low:.6g} to {high:.6g}, which {asked}.",
        )


def _oriented(row: Accuracy) -> tuple[float, Interval]:
    """Return the pruned model's metric and its interval, better being larger."""
    low, high = row.pruned_interval
    return (row.pruned, (low, high)) if row.higher_is_better else (-row.pruned, (-high, -low))


def _change(new: tuple[float, Interval], old: tuple[float, Interval]) -> Interval:
    """Return the interval of new minus old, two independent estimates with intervals."""
    (value, (low, high)), (before, (least, most)) = new, old
    change = value - before
    down = math.hypot(value - low, most - before)
    return change - down, change + math.hypot(high - value, before - least)


def _speedup(report: Report, before: Report) -> Iterator[Check]:
    if not before.benchmark.served:
        return
    name = "regression speed-up"
    now = {_setting(row): row for row in report.benchmark.served}
    if missing := [old for old in before.benchmark.served if _setting(old) not in now]:
        yield not_measured(name, f"{missing[0].setting}, {missing[0].provider}, was timed then and not now")
        return
    pairs = [(now[_setting(old)], old) for old in before.benchmark.served]
    changes = [(_change(_logarithms(new), _logarithms(old)), new, old) for new, old in pairs]
    (low, high), new, old = min(changes, key=lambda found: found[0][1])
    yield Check(
        name,
        all(bounds[1] >= 0 for bounds, *_ in changes),
        f"Of {len(pairs)} settings the most changed: {old.speedup.median:.6g} then, {new.speedup.median:.6g} "
        f"now, at {new.setting}, {new.provider}; ratio with 95 % interval {math.exp(low):.6g} to "
        f"{math.exp(high):.6g}, which must not be below 1 as a whole.",
    )


def _setting(row: Latency) -> tuple[object, ...]:
    return (row.runtime, row.provider, row.phase, row.batch_size, row.sequence_length)


def _logarithms(row: Latency) -> tuple[float, Interval]:
    low, high = row.speedup.interval
    return math.log(row.speedup.median), (math.log(low), math.log(high))


def _size(report: Report, before: Report) -> Iterator[Check]:
    old, new = before.benchmark.size_bytes.pruned, report.benchmark.size_bytes.pruned
    if old <= 0:
        return
    if new <= 0:
        yield not_measured("regression size", "the benchmark holds no file sizes")
        return
    yield Check(
        "regression size",
        new <= old * (1 + SIZE_MARGIN),
        f"Pruned file {old:.0f} bytes then, {new:.0f} now; it must not grow by more than {SIZE_MARGIN:.0%}.",
    )
