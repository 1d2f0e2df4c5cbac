"""Memory: what is free goes back to the system, and a search gives back what a batch took."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapioca_export.memory import give_back_free_memory, peak_resident_bytes
from tapioca_export.models import load_model
from tapioca_export.profiling import Probe, replaying
from tapioca_export.samples import read_samples


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_between_what_is_used_goes_back() -> None:
    blocks = [bytearray(100_000) for _ in range(2000)]
    held, blocks = blocks[::50], []  # the heap cannot shrink from its end
    before = resident_bytes()
    give_back_free_memory()
    assert before - resident_bytes() > 100e6
    assert len(held) == 40
    assert peak_resident_bytes() >= 0.99 * before  # Linux counts each thread's pages in lots


def test_a_search_gives_back_what_each_batch_took(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["id"], model.task.rows({}, model.processor), role="id-select")
    calls: list[int] = []
    monkeypatch.setattr(replaying, "give_back_free_memory", lambda: calls.append(1))
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=8)
    probe.scores((), [0, 1], np.arange(len(rows)))
    assert len(calls) == len(probe.length_sorted(rows)) > 1
