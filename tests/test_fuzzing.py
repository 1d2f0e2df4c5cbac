"""Files that are nearly right, fed to every reader: refused with one line, or read; always the same ones.

The whole of it, with more files and with coverage, is `make fuzz` (benchmarks/reliability/fuzzing.py).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.reliability import seeds  # noqa: E402
from benchmarks.reliability.crashes import CRASHES  # noqa: E402
from benchmarks.reliability.feeding import PROCESSES, feed  # noqa: E402
from benchmarks.reliability.fuzzing import QUICK, executions_of  # noqa: E402
from benchmarks.reliability.readers import READERS  # noqa: E402
from benchmarks.reliability.watching import BYTES, Outcome, Watch  # noqa: E402

from tapioca_export.errors import LoadError  # noqa: E402

# A process for each; names are those of readers, up to the comma.
GROUPS = sorted({name.split(",")[0].split(" of ")[0] for name in READERS})


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzing") / "valid"
    seeds.make(folder)
    return folder


@pytest.mark.parametrize("part", range(4))
def test_what_is_nearly_right_is_read_or_refused_with_one_line(part: int, valid: Path) -> None:
    names = list(READERS)[part::4]
    found = feed({name: executions_of(name, QUICK) for name in names}, valid)
    assert {name: row.broken for name, row in found.items() if row.broken} == {}
    assert list(found) == names
    for name, row in found.items():
        assert row.executions >= executions_of(name, QUICK)
        assert row.refused > 0 or name == "metadata of a model card"
    assert {crash for row in found.values() for crash in row.known} == {
        crash for crash, (reader, _) in CRASHES.items() if reader in names
    }
