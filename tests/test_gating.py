"""A gate passes on what the interval's unfavourable bound shows, and on nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reports import GAIN, HARM, NO_CHANGE, accuracy, benchmark, latency, report

from tapioca_export.artifacts import Pair
from tapioca_export.errors import ConfigError
from tapioca_export.gating import (
    Thresholds,
    check,
    render_junit,
    render_markdown,
    render_metrics,
)

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


@pytest.mark.parametrize("runtime", ["torchscript", "pt2"])
def test_where_onnx_runtime_was_timed_other_runtimes_have_no_say(runtime):
    slow = latency(low=0.7, runtime=runtime)
    both = report(benchmark=benchmark(latency=(latency(), slow)))
    alone = report(benchmark=benchmark(latency=(latency(),)))
    assert both.verdict == alone.verdict
    assert check(both, Thresholds(min_speedup=1.1)).passed
    assert not check(report(benchmark=benchmark(latency=(slow,))), Thresholds(min_speedup=1.1)).passed


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


# --- against the last release ---------------------------------------------------------------


def against(old, new, **limits):
    """Return the checks of one report's benchmark against another's, by name."""
    before, now = report(benchmark=benchmark(**old)), report(benchmark=benchmark(**new))
    return {c.name: c for c in check(now, Thresholds(**limits), baseline=before).checks}


def scored(pruned, half_width=0.02, **changes):
    """Return a role whose pruned model scores this, give or take."""
    interval = (pruned - half_width, pruned + half_width)
    return replace(accuracy(0.7, pruned, (-0.1, 0.1), **changes), pruned_interval=interval)


def test_a_report_is_no_regression_on_itself():
    found = against({}, {})
    assert set(found) == {"regression id", "regression target", "regression speed-up", "regression size"}
    assert all(item.passed for item in found.values())


# Two estimates, each within 0.02: their difference is known to 0.02 times the square root of 2, 0.0283.
@pytest.mark.parametrize(("pruned", "passed"), [(0.80, True), (0.772, True), (0.771, False)])
def test_a_metric_fails_where_its_fall_is_shown(pruned, passed):
    found = against({"accuracy": {"target": scored(0.80)}}, {"accuracy": {"target": scored(pruned)}})
    assert found["regression target"].passed is passed


@pytest.mark.parametrize(("pruned", "passed"), [(0.20, True), (0.228, True), (0.229, False)])
def test_an_error_fails_where_its_rise_is_shown(pruned, passed):
    kind = {"metric": "nmse", "higher_is_better": False}
    old, new = ({"accuracy": {"id": scored(value, **kind)}} for value in (0.20, pruned))
    assert against(old, new)["regression id"].passed is passed


def test_the_bounds_that_face_each_other_count():
    """Below the new estimate and above the old one: the other two bounds say nothing of a fall."""
    new = replace(scored(0.77), pruned_interval=(0.5, 0.775))
    old = replace(scored(0.80), pruned_interval=(0.795, 0.99))
    assert not against({"accuracy": {"id": old}}, {"accuracy": {"id": new}})["regression id"].passed


@pytest.mark.parametrize(("limit", "passed"), [(0.0384, True), (0.0382, False)])
def test_with_a_limit_no_larger_loss_must_be_possible(limit, passed):
    accuracies = ({"accuracy": {"target": scored(value)}} for value in (0.80, 0.79))
    assert against(*accuracies, max_regression=limit)["regression target"].passed is passed


def test_with_a_limit_the_outer_bounds_count():
    new = replace(scored(0.79), pruned_interval=(0.785, 0.99))
    old = replace(scored(0.80), pruned_interval=(0.5, 0.805))
    for limit, passed in ((0.0171, True), (0.017, False)):
        found = against({"accuracy": {"id": old}}, {"accuracy": {"id": new}}, max_regression=limit)
        assert found["regression id"].passed is passed


def test_the_bounds_of_an_error_change_places():
    kind = {"metric": "nmse", "higher_is_better": False}
    new = replace(scored(0.23, **kind), pruned_interval=(0.225, 0.5))
    old = replace(scored(0.20, **kind), pruned_interval=(0.1, 0.205))
    assert not against({"accuracy": {"id": old}}, {"accuracy": {"id": new}})["regression id"].passed


def test_each_target_domain_is_compared():
    old = {"targets": {"airline": scored(0.80), "banking": scored(0.80)}}
    found = against(old, {"targets": {"airline": scored(0.80), "banking": scored(0.60)}})
    assert found["regression target airline"].passed
    assert not found["regression target banking"].passed


def test_what_was_measured_then_must_be_measured_now():
    found = against(
        {"accuracy": {"id": scored(0.8)}}, {"accuracy": {}, "latency": (), "size_bytes": Pair(0, 0)}
    )
    assert {name: item.passed for name, item in found.items()} == dict.fromkeys(found, False)
    assert all(item.message.startswith("Not measured") for item in found.values())


def timed(median, low, high, batch_size=1):
    return replace(
        latency(batch_size), speedup=replace(latency().speedup, median=median, interval=(low, high))
    )


@pytest.mark.parametrize(("low", "high", "passed"), [(1.15, 1.25, True), (1.01, 1.09, False)])
def test_a_speedup_fails_where_it_is_shown_to_be_less(low, high, passed):
    row = timed((low + high) / 2, low, high)
    found = against({"latency": (timed(1.25, 1.2, 1.3),)}, {"latency": (row,)})
    assert found["regression speed-up"].passed is passed


def test_speedups_are_compared_at_the_same_setting():
    old = (timed(1.5, 1.4, 1.6, 1), timed(1.1, 1.05, 1.15, 8))
    assert against({"latency": old}, {"latency": old[::-1]})["regression speed-up"].passed
    for now in (old[1:], old[:1]):  # one that was timed then is missing
        found = against({"latency": old}, {"latency": now})["regression speed-up"]
        assert not found.passed
        assert found.message.startswith("Not measured: batch")
    slower = replace(timed(0.5, 0.4, 0.6, 1), runtime="pt2")
    assert against({"latency": (*old, slower)}, {"latency": old})["regression speed-up"].passed
    tuned = tuple(replace(row, threads=7) for row in old)
    assert against({"latency": old}, {"latency": tuned})["regression speed-up"].passed


def test_metrics_of_a_family_stand_together_and_each_series_is_there_once():
    rows = tuple(latency(runtime=runtime) for runtime in ("onnxruntime", "pt2", "torchscript"))
    lines = render_metrics(report(benchmark=benchmark(latency=rows))).splitlines()
    series = [line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")]
    assert len(set(series)) == len(series)
    families = [line.split("{")[0] for line in series]
    assert families == sorted(families)


@pytest.mark.parametrize(("size", "passed"), [(303.0, True), (303.1, False)])
def test_a_file_may_grow_by_one_percent(size, passed):
    found = against({"size_bytes": Pair(400.0, 300.0)}, {"size_bytes": Pair(400.0, size)})
    assert found["regression size"].passed is passed


def test_another_metric_or_task_cannot_be_compared():
    with pytest.raises(ConfigError, match="metric on id rows is nmse"):
        against({"accuracy": {"id": NMSE}}, {"accuracy": {"id": NO_CHANGE}})
    with pytest.raises(ConfigError, match="of the task fill-mask"):
        against({"task": "fill-mask"}, {})


def test_a_limit_on_regression_needs_a_baseline():
    with pytest.raises(ConfigError, match="against a baseline"):
        check(report(), Thresholds(max_regression=0.1, min_speedup=1.0))


# --- metrics --------------------------------------------------------------------------------


def test_metrics_are_lines_of_openmetrics():
    row = latency(provider='a"b\\c\nd')
    lines = render_metrics(report(benchmark=benchmark(latency=(row,)))).splitlines()
    assert lines[-1] == "# EOF"
    pattern = re.compile(r'[a-z_]+\{[a-z]+="([^"\\]|\\["\\n])*"(,[a-z]+="([^"\\]|\\["\\n])*")*\} [-+.e0-9]+')
    assert all(pattern.fullmatch(line) for line in lines[:-1])
    assert 'tapioca_gain{rows="target",metric="accuracy",bound="low"} 0.024' in lines
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines)
