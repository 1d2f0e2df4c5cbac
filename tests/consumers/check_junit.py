"""Validate what `check --junit` writes against the schema that Jenkins' xUnit plugin publishes.

    python tests/consumers/check_junit.py junit-10.xsd

The schema is in pytest's source distribution, which tests its own output by it. Needs xmlschema.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xmlschema

sys.path.insert(0, str(Path(__file__).parent.parent))
import reports

from tapioca_export.artifacts import Pair
from tapioca_export.gating import Thresholds, check, render_junit

HOSTILE = '<script>"&\x00\x1b]]>é'


def main(path: str) -> None:
    """Validate verdicts that pass, fail and were not measured, with hostile texts in them."""
    schema = xmlschema.XMLSchema(path)
    limits = Thresholds(min_target_gain=0, max_id_loss=0, min_speedup=9, max_size_ratio=0.9)
    nothing = reports.benchmark(accuracy={}, latency=(), size_bytes=Pair(0, 0))
    hostile = reports.benchmark(latency=(reports.latency(provider=HOSTILE),))
    for benchmark in (reports.benchmark(), nothing, hostile):
        report = reports.report(benchmark=benchmark)
        expressions = ("target.difference.low < 0", f"target.metric == {HOSTILE[:8]!r}")
        verdict = check(report, limits, fail_if=expressions, baseline=reports.report())
        schema.validate(render_junit(verdict))
    wrong = render_junit(verdict).replace("<testcase ", "<case ").replace("</testcase>", "</case>")
    assert not schema.is_valid(wrong), "the schema refuses nothing"
    print("JUnit: valid")


if __name__ == "__main__":
    main(*sys.argv[1:])
