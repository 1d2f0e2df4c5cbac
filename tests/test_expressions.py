"""What `--fail-if` understands, and that it understands nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reports import GAIN, accuracy, benchmark, latency, report

from tapioca_export.artifacts import Pair
from tapioca_export.errors import ConfigError, UnknownNameError
from tapioca_export.gating import check
from tapioca_export.gating.expressions import LONGEST, fields_of


def passes(text, **changes):
    (found,) = check(report(benchmark=benchmark(**changes)), fail_if=[text]).checks
    return found.passed


# The report's target gains 0.056, 0.024 to 0.088; the least speed-up is that of the second setting.
TRUE = [
    "target.difference.low < 0.025",
    "target.difference.low >= 0.024",
    "target.difference > 0.05",
    "target.difference.value == target.difference",
    "target.gain.high > 0.08",
    "0.02 < target.difference.low < 0.03",
    "speedup.low < 1.15",
    "speedup.high != speedup.low",
    "target.metric == 'accuracy'",
    'exports["pruned/onnx"].max_abs_difference <= 1.4e-6',
    "exports['pruned/onnx'].shapes_checked[2][1] == 128",
    "max(benchmark.latency.speedup.low) > min(benchmark.latency.speedup.low)",
    "min(benchmark.latency.original.runs) >= 1",
    "len(selection.drop) == dropped",
    "len(targets) == 0",
    "abs(-target.difference.low) * 2 - 0.048 < 1e-12",
    "size_ratio + 1 < 1.9 and not memory_ratio > 1",
    "id.n < 0 or (optimism_gap > 0.002 and optimism_gap < 0.004)",
    "selection.cut == False",
    "not (target.n == 0 or id.n == 0)",
    "benchmark.accuracy.target.difference.low == target.difference.low",
    "size_ratio == benchmark.size_bytes.pruned / benchmark.size_bytes.original",
]


@pytest.mark.parametrize("text", TRUE)
def test_what_is_true_fails_and_its_negation_passes(text):
    assert not passes(text)
    assert passes(f"not ({text})")


def test_a_speedup_is_the_least_of_all_settings_by_value_and_by_bound():
    """Neither hides behind the other: one is slow for certain, of the other next to nothing is known."""
    slow = replace(latency().speedup, median=0.5, interval=(0.45, 0.55))
    vague = replace(latency().speedup, median=1.4, interval=(0.02, 3.2))
    rows = (replace(latency(), speedup=vague), replace(latency(8), speedup=slow))
    for expression in ("speedup < 0.6", "speedup.low < 0.03", "speedup.high < 0.6"):
        assert not passes(expression, latency=rows)
    assert passes("speedup < 0.5", latency=rows)


@pytest.mark.parametrize(("limit", "passed"), [("1.13", True), ("1.14", True), ("1.141", False)])
def test_a_speedup_is_that_of_the_worst_setting(limit, passed):
    worst = replace(latency().speedup, median=1.2, interval=(1.14, 1.3))
    best = replace(latency().speedup, median=1.3, interval=(1.25, 1.35))
    rows = (replace(latency(), speedup=best), replace(latency(8), speedup=worst))
    assert passes(f"speedup.low < {limit}", latency=rows) is passed


def test_the_gain_of_an_error_is_positive_where_it_falls():
    row = accuracy(0.50, 0.40, (-0.15, -0.05), metric="nmse", higher_is_better=False)
    assert not passes("target.gain.low == 0.05 and target.difference.low == -0.15", accuracy={"target": row})


def test_a_domain_is_named_in_brackets_where_its_name_is_no_word():
    domains = {"air-line": GAIN}
    assert not passes('targets["air-line"].difference.low > 0', targets=domains)


@pytest.mark.parametrize(
    "text",
    [
        "id.n < 0 or target.difference.low < -9",
        "speedup.low < 1",
        "size_ratio > 2",
        "optimism_gap > 9",
        "max(benchmark.latency.speedup.low) < 0",
        "not target.n > 0",
    ],
)
def test_what_was_not_measured_fails_whichever_way_it_is_asked(text):
    nothing = {"accuracy": {}, "latency": (), "size_bytes": Pair(0, 0), "optimism_gap": None}
    (found,) = check(report(benchmark=benchmark(**nothing)), fail_if=[text]).checks
    assert not found.passed
    assert found.message.startswith("Not measured")


@pytest.mark.parametrize(
    "text",
    [
        "target.difference.low < 0",
        "target.difference.low >= 0",
        "target.gain.low < 0",
        "target.gain.high > 0",
    ],
)
def test_a_bound_that_is_not_a_number_fails_whichever_way_it_is_asked(text):
    broken = replace(GAIN, interval=(float("nan"), float("nan")))
    assert not passes(text, accuracy={"target": broken})


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("target.diference < 0", "'diference'", "Did you mean 'difference'?"),
        ("target.n > 0 or traget.n > 0", "'traget'", "Did you mean 'target'?"),
        ("target.difference.lowest < 0", "'lowest'", "Did you mean 'low'?"),
        ("min(benchmark.latncy.speedup.low) < 0", "'latncy'", "Did you mean 'latency'?"),
        ('exports["pruned/onix"].opset > 1', "'pruned/onix'", "Did you mean 'pruned/onnx'?"),
    ],
)
def test_a_field_that_is_not_there_is_named_with_the_nearest_that_is(text, said, hint):
    with pytest.raises(UnknownNameError) as raised:
        passes(text)
    assert said in raised.value.message
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no expression"),
        ("target.difference.low <", "is no expression"),
        ("x = 1", "is no expression"),
        ("target.n > 0; 1", "is no expression"),
        ("\0", "is no expression"),
        ("(" * 400 + "1" + ")" * 400 + " < 2", "is no expression"),
        ("-" * 900 + "1 < 2", "nested too deeply"),
        ("1<" * 500 + "1", "1001 characters"),
        ("target.n", "is no comparison"),
        ("target.n and id.n", "target.n is no comparison"),
        ("target < 1", "target holds metric"),
        ("benchmark.latency.speedup.low < 1", "is a list"),
        ("target.metric < 3", "a text and a number"),
        ("target.metric + 1 < 3", "target.metric is no number"),
        ("target.n / 0 < 1", "divides by zero"),
        (f"1{'0' * 400} * 1.0 < target.n", "too large"),
        ("1 < 2", "names no field"),
        ("True", "names no field"),
        ("benchmark.latency[9].speedup.low < 1", "has 2 entries"),
        ("max(target.n) < 1", "is no list"),
        ("target.n.n < 1", "and has no n"),
        ("target.n ** 9 < 1", "understands no"),
        ("target.n % 2 == 1", "understands no"),
        ("target.metric in 'accuracy'", "understands no"),
        ("target.n is 3", "understands no"),
        ("(lambda: 1)() < 2", "understands no"),
        ("[1][0] < 2", "understands no"),
        ("[1 for _ in (1,)] == 1", "field of the report"),
        ("f'{target.n}' == '1'", "understands no"),
        ("(n := 1) < 2", "field of the report"),
        ("1 if target.n > 0 else 2", "understands no"),
        ("open('/etc/passwd') == 1", "understands no"),
        ("__import__('os').system('true') == 0", "understands no"),
        ("min(target.n, 1) < 1", "understands no"),
        ("min(benchmark.latency, key=1) < 1", "understands no"),
        ("1j < 2", "understands no"),
        ("b'x' == 'x'", "understands no"),
        ("benchmark.latency[0:1] == 1", "understands no"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError) as raised:
        passes(text)
    assert said in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("name", ["__class__", "__init__", "keys", "mro"])
def test_nothing_of_pythons_is_in_reach(name):
    for holder in ("target", "target.difference", "benchmark.latency", "target.metric"):
        with pytest.raises(ConfigError):
            passes(f"{holder}.{name} == 1")


def test_the_longest_expression_is_read():
    text = "target.n > 0 or " * 60
    text += " " * (LONGEST - len(text) - len("target.n > 0")) + "target.n > 0"
    assert len(text) == LONGEST
    assert not passes(text)


def test_the_message_shows_what_each_field_was():
    text = "target.difference < 0 or min(benchmark.latency.speedup.low) < 1"
    (found,) = check(report(), fail_if=[text]).checks
    assert "target.difference is 0.056 (0.024 to 0.088)" in found.message
    assert "min(benchmark.latency.speedup.low) is 1.14" in found.message


def test_every_key_of_the_report_can_be_named():
    assert {"verdict", "run", "selection", "profile", "benchmark", "exports"} <= set(fields_of(report()))
