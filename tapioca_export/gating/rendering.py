"""A verdict for people and pipelines: Markdown, JSON, JUnit XML, and the numbers behind it as OpenMetrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from xml.etree import ElementTree

from ..artifacts import Report
from ..showing import visible
from .verdicts import Verdict


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


def render_json(verdict: Verdict) -> str:
    """Return the verdict as JSON: whether the gate was passed, and every check."""
    checks = [asdict(item) for item in verdict.checks]
    return json.dumps({"passed": verdict.passed, "checks": checks}, indent=1, ensure_ascii=False)


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
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def _printable(text: str) -> str:
    """Drop control characters: XML 1.0 has no way to write them."""
    return "".join(char for char in text if char.isprintable())


def render_summary(report: Report, verdict: Verdict) -> str:
    """Return what stands on the page of a CI job: the report's verdict, then the gate's."""
    return f"### tapioca-export\n\n{_cell(report.verdict)}\n\n{render_markdown(verdict)}\n"


def render_metrics(report: Report) -> str:
    """Return the report's numbers in the text format of OpenMetrics; one that is not finite is left out."""
    together = sorted(_numbers(report), key=lambda found: found[0])  # families do not mix
    lines = [
        f"{name}{{{_labels(labels)}}} {value!r}" for name, labels, value in together if math.isfinite(value)
    ]
    return "\n".join((*lines, "# EOF", ""))


def _numbers(report: Report) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the name, the labels and the value of each number."""
    measured = report.benchmark
    for role, row in measured.rows.items():
        labels = {"rows": role, "metric": row.metric}
        yield "tapioca_original", labels, row.original
        yield "tapioca_pruned", labels, row.pruned
        for bound, value in zip(("value", "low", "high"), (row.gain, *row.gain_interval), strict=True):
            yield "tapioca_gain", {**labels, "bound": bound}, value
    for cell in measured.latency:
        labels = {"runtime": cell.runtime, "provider": cell.provider, "setting": cell.setting}
        bounds = (cell.speedup.median, *cell.speedup.interval)
        for bound, value in zip(("value", "low", "high"), bounds, strict=True):
            yield "tapioca_speedup", {**labels, "bound": bound}, value
    for name, pair in (("size", measured.size_bytes), ("peak_memory", measured.peak_memory_bytes)):
        yield f"tapioca_{name}_bytes", {"model": "original"}, pair.original
        yield f"tapioca_{name}_bytes", {"model": "pruned"}, pair.pruned


def _labels(labels: dict[str, str]) -> str:
    """Return labels with what has a meaning in their values escaped."""
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for name, value in labels.items()
    }
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())
