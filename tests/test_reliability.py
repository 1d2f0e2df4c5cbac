"""Numbers that hold: the quick version of benchmarks/reliability, and that its checks can fail."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reliability import intervals, load, nulls, page, sameness
from benchmarks.reliability.tiny import jobs

CASES = {
    "intervals": intervals, "load": load, "nulls": nulls, "sameness": sameness,
}  # fmt: skip


LOADED = {
    "num_rows": 1000, "rows_bytes": 10**6, "peak_bytes": 10**9, "is_whole": True,
    "seconds": {"load": 1.0, "select": 10.0, "profile": 5.0, "benchmark": 4.0},
}  # fmt: skip
TEN_TIMES = {
    "num_rows": 10_000, "rows_bytes": 10**7, "peak_bytes": 10**9 + 9 * 10**6, "is_whole": True,
    "seconds": {"load": 10.0, "select": 100.0, "profile": 50.0, "benchmark": 40.0},
}  # fmt: skip
MADE_UP = {"load": {"runs": [LOADED, TEN_TIMES], "journal": {"seconds": 0.8, "candidates": 500}}}


def committed(part: str) -> dict[str, Any]:
    return copy.deepcopy(MADE_UP.get(part) or page.found_by(part))


@pytest.mark.slow
@pytest.mark.parametrize("population", intervals.QUICK)
def test_intervals_cover_and_tests_are_not_fooled(population: str) -> None:
    found = intervals.simulate(population, 100, 150)
    agreed = committed("intervals")["agreement"]
    assert not intervals.broken({"cases": [found], "agreement": agreed})


def test_the_interval_of_a_speed_up_covers() -> None:
    found = intervals.simulate_timing(150)
    assert not intervals.broken({"cases": [found], "agreement": committed("intervals")["agreement"]})


def test_p_values_and_intervals_are_those_of_other_libraries() -> None:
    assert not intervals.broken({"cases": [], "agreement": intervals.agreement(60)})


@pytest.mark.slow
def test_a_selection_is_the_same_bytes_whatever_is_none_of_its_business(tmp_path: Path) -> None:
    job = jobs(tmp_path)[0]
    plain = sameness.select(job, tmp_path / "plain", sameness.Variation("plain"))
    for variation in sameness.VARIATIONS:
        if variation.name in sameness.QUICK:
            other = sameness.select(job, tmp_path / variation.name, variation)
            found = sameness.difference(copy.deepcopy(plain), other)
            assert found["is_same"] if variation.is_same_command else found["is_same_choice"], variation.name
            assert found["largest_difference"] < 1e-6


@pytest.mark.slow
def test_runs_without_an_effect_claim_none_and_leave_nothing_open() -> None:
    runs = nulls.measure(2)
    assert [run["target"] for run in runs] == ["unclear", "unclear"]
    assert runs[0]["open_files"] == runs[1]["open_files"]


@pytest.mark.slow
def test_a_long_journal_is_read_sooner_than_searched(tmp_path: Path) -> None:
    found = load.resume(tmp_path)
    assert found["candidates"] >= load.CANDIDATES
    assert found["seconds"] < found["searched_in"]


@pytest.mark.parametrize("part", page.PARTS)
def test_what_was_measured_is_on_the_page(part: str) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == "\n".join(page.lines())
    assert f"`python -m benchmarks.reliability.{part}`" in text


# --- the checks can fail --------------------------------------------------------------------


def spoil_coverage(found: dict[str, Any]) -> None:
    found["cases"][0]["covered"]["difference"] = 0.9


def spoil_width(found: dict[str, Any]) -> None:
    found["cases"][0]["covered"]["pruned"] = 1.0


def spoil_test(found: dict[str, Any]) -> None:
    next(case for case in found["cases"] if case["fooled"])["fooled"]["gain"] = 0.09


def spoil_agreement(found: dict[str, Any]) -> None:
    found["agreement"]["p_value_off"] = 1e-6


def spoil_bootstrap(found: dict[str, Any]) -> None:
    found["agreement"]["bootstrap_off_in_widths"] = 0.2


def spoil_time(found: dict[str, Any]) -> None:
    found["runs"][-1]["seconds"]["select"] *= 3


def spoil_memory(found: dict[str, Any]) -> None:
    found["runs"][-1]["peak_bytes"] += found["runs"][-1]["rows_bytes"]


def spoil_report(found: dict[str, Any]) -> None:
    found["runs"][-1]["is_whole"] = False


def spoil_resuming(found: dict[str, Any]) -> None:
    found["journal"]["seconds"] = 1.5


def spoil_verdicts(found: dict[str, Any]) -> None:
    for run in found["runs"][::9]:
        run["target"] = "gain"


def spoil_files(found: dict[str, Any]) -> None:
    found["runs"][-1]["open_files"] += 1


def spoil_leak(found: dict[str, Any]) -> None:
    for number, run in enumerate(found["runs"]):
        run["memory"] += number * 10**6


def spoil_bytes(found: dict[str, Any]) -> None:
    next(case for case in found["cases"] if case["is_same_command"])["is_same"] = False


def spoil_choice(found: dict[str, Any]) -> None:
    found["cases"][-1]["is_same_choice"] = False


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("intervals", spoil_coverage),
        ("intervals", spoil_width),
        ("intervals", spoil_test),
        ("intervals", spoil_agreement),
        ("intervals", spoil_bootstrap),
        ("load", spoil_time),
        ("load", spoil_memory),
        ("load", spoil_report),
        ("load", spoil_resuming),
        ("nulls", spoil_verdicts),
        ("nulls", spoil_files),
        ("nulls", spoil_leak),
        ("sameness", spoil_bytes),
        ("sameness", spoil_choice),
    ],
)
def test_a_promise_that_is_broken_is_seen(part: str, spoil: Any) -> None:
    found = committed(part)
    before = CASES[part].broken(found)
    spoil(found)
    assert set(CASES[part].broken(found)) - set(before)
