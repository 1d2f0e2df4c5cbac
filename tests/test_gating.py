"""A gate passes on what the interval's unfavourable bound shows, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reports import GAIN, HARM, NO_CHANGE, accuracy, benchmark, latency, report

from tapioca_export.artifacts import Pair
from tapioca_export.errors import ConfigError
from tapioca_export.gating import Thresholds, check, render_junit, render_markdown

NMSE = accuracy(0.50, 0.40, (-0.15, -0.05), metric="nmse", higher_is_better=False)


def only(thresholds, **changes):
    """Return the one check that the thresholds ask for."""
    (found,) = check(report(benchmark=benchmark(**changes)), thresholds).checks
    return found


@pytest.mark.parametrize(("limit", "passed"), [(0.0, True), (0.024, True), (0.0241, False)])
def test_target_gain_is_judged_by_its_low_bound(limit, passed):
    assert only(Thresholds(min_target_gain=limit), accuracy={"target": GAIN}).passed is passed


@pytest.mark.parametrize(("limit", "passed"), [(0.05, True), (0.051, False)])
def test_target_gain_of_a_metric_where_lower_is_better_is_positive(limit, passed):
    assert only(Thresholds(min_target_gain=limit), accuracy={"target": NMSE}).passed is passed


@pytest.mark.parametrize(("limit", "passed"), [(0.022, True), (0.0219, False), (0.0, False)])
def test_id_loss_is_judged_by_the_worst_case(limit, passed):
    assert only(Thresholds(max_id_loss=limit), accuracy={"id": NO_CHANGE}).passed is passed


def test_id_loss_of_zero_is_met_by_a_low_bound_of_zero():
    unchanged = replace(NO_CHANGE, interval=(0.0, 0.0))
    assert only(Thresholds(max_id_loss=0.0), accuracy={"id": unchanged}).passed


@pytest.mark.parametrize(("limit", "passed"), [(1.14, True), (1.15, False)])
def test_every_setting_must_reach_the_speedup(limit, passed):
    rows = (latency(), latency(8, 1.14))
    assert only(Thresholds(min_speedup=limit), latency=rows).passed is passed


def test_the_worst_setting_is_reported():
    found = only(Thresholds(min_speedup=1.2), latency=(latency(), latency(8, 1.14)))
    assert "1.14" in found.message
    assert "batch 8, 128 tokens" in found.message


@pytest.mark.parametrize(("limit", "passed"), [(0.75, True), (0.7499, False)])
def test_size_ratio_may_equal_its_limit(limit, passed):
    size = Pair(400.0, 300.0)
    assert only(Thresholds(max_size_ratio=limit), size_bytes=size).passed is passed


@pytest.mark.parametrize(
    "thresholds",
    [
        Thresholds(min_target_gain=-1.0),
        Thresholds(max_id_loss=1.0),
        Thresholds(min_speedup=0.1),
        Thresholds(max_size_ratio=2.0),
    ],
)
def test_what_was_not_measured_fails_and_says_so(thresholds):
    found = only(thresholds, accuracy={}, latency=(), size_bytes=Pair(0, 0))
    assert not found.passed
    assert found.message.startswith("Not measured")


@pytest.mark.parametrize("name", ["min_target_gain", "max_id_loss"])
def test_a_bound_that_is_not_a_number_fails(name):
    broken = replace(GAIN, interval=(float("nan"), float("nan")))
    roles = {"target": broken, "id": broken}
    assert not only(Thresholds(**{name: 1.0}), accuracy=roles).passed


def test_one_missed_check_misses_the_gate():
    found = check(report(), Thresholds(min_target_gain=0.0, max_id_loss=0.0))
    assert [item.passed for item in found.checks] == [True, False]
    assert not found.passed
    assert found.exit_code == 3


def test_a_gate_that_is_met_exits_with_zero():
    assert check(report(), Thresholds(min_target_gain=0.0)).exit_code == 0


def test_a_gate_that_asks_for_nothing_is_refused():
    with pytest.raises(ConfigError) as raised:
        check(report(), Thresholds())
    assert "--min-target-gain" in raised.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_threshold_that_is_not_finite_is_refused(value):
    with pytest.raises(ConfigError, match="--min-speedup"):
        Thresholds(min_speedup=value)


def test_markdown_names_every_check_with_its_result():
    text = render_markdown(check(report(), Thresholds(min_target_gain=0.0, max_id_loss=0.0)))
    assert "**Gate missed**: 1 of 2" in text
    assert "| min_target_gain | pass |" in text
    assert "| max_id_loss | **FAIL** |" in text


def test_junit_counts_tests_and_failures():
    found = check(report(), Thresholds(min_target_gain=0.0, max_id_loss=0.0))
    root = ElementTree.fromstring(render_junit(found))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert [case.get("name") for case in root.iter("testcase")] == [
        "min_target_gain",
        "max_id_loss",
    ]
    assert len(list(root.iter("failure"))) == 1


def test_junit_survives_hostile_names():
    row = latency(provider='<script>"&\x00\x1b')
    changed = report(benchmark=benchmark(latency=(row,)))
    text = render_junit(check(changed, Thresholds(min_speedup=9.0)))
    assert "<script>" not in text
    assert ElementTree.fromstring(text).find(".//failure") is not None


def test_harm_on_the_target_misses_a_gate_of_no_loss():
    found = only(Thresholds(min_target_gain=0.0), accuracy={"target": HARM})
    assert not found.passed
    assert "-0.101" in found.message
