"""Every model type of the installed transformers: what docs/families.md says of it is so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import transformers
from forking import run_script

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import families  # noqa: E402

PARTS = 8
PAGE = families.PAGE.read_text(encoding="utf-8")
TABLE = PAGE.split(families.BEGIN)[1].split(families.END)[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_row_is_what_the_sweep_finds(part: int) -> None:
    chosen = sorted(transformers.CONFIG_MAPPING)[part::PARTS]
    # In a process of its own: here, warnings are errors, and so would be model types that warn.
    child = run_script(BENCHMARKS / "families.py", *chosen)
    found, written = families.rows_of(child.stdout), families.rows_of(TABLE)
    assert child.returncode == 0, child.stdout.partition("### Broken")[2][:2000] or child.stderr[-2000:]
    assert found == {name: written.get(name) for name in chosen}


def test_no_type_is_broken_and_a_hundred_are_proven() -> None:
    statuses = [status for status, _ in families.rows_of(TABLE).values()]
    assert "broken" not in statuses
    assert statuses.count("proven") >= 100
    for status in families.STATUSES:
        said = re.search(rf"(\d+) {status}", TABLE)
        assert said is not None
        assert int(said[1]) == statuses.count(status)


def test_a_layer_that_is_dropped_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = families.drop_layers
    monkeypatch.setattr(families, "drop_layers", lambda model, drop: right(model, [(drop[0] + 1) % 4]))
    assert families.status_of(families.try_type("llama")) == "broken"
