"""A search spread over Ray workers chooses what a search in this process chooses, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import text_records, write_jsonl

from tapioca_export import RunConfig, select
from tapioca_export.artifacts import staged
from tapioca_export.engines import EngineSettings, open_engine
from tapioca_export.errors import OutOfMemoryError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")


@pytest.fixture
def config(tiny: Callable[[str], Path], tmp_path: Path) -> RunConfig:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", text_records(400, seed))
        for seed, name in enumerate(("id", "target"))
    }
    return RunConfig(
        model=str(tiny("llama")), **files, output=tmp_path / "local", epsilon=1.0, eval_batch_size=4,
        num_threads=1,
    )  # fmt: skip


def chosen(config: RunConfig) -> dict[str, Any]:
    select(config)
    selection = json.loads((config.output / "selection.json").read_text())
    # Where candidates are dealt out, each worker records the prefix for itself.
    del selection["cost"]
    return selection


def on_ray(config: RunConfig, name: str) -> RunConfig:
    return RunConfig(
        **{**vars(config), "output": config.output.with_name(name), "engine": "ray", "num_workers": 2}
    )


def kill_a_worker(journal: Path, killed: list[int]) -> None:
    """Wait until the search is under way, then kill one of its workers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") > 20:
            for process in psutil.process_iter(["cmdline"]):
                if "".join(process.info["cmdline"] or ()).startswith("ray::_Process"):
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.005)


def test_two_ray_workers_choose_what_one_process_chooses_though_one_is_killed(config: RunConfig) -> None:
    local = chosen(config)
    assert chosen(on_ray(config, "ray")) == local
    again = on_ray(config, "killed")
    journal, killed = again.output.with_name(".killed.tapioca-partial") / "search.jsonl", []
    killer = threading.Thread(target=kill_a_worker, args=(journal, killed))
    killer.start()
    assert chosen(again) == local
    killer.join()
    assert killed, "no worker was found to kill: the test shows nothing"


def test_memory_that_runs_out_in_a_worker_is_one_line(tmp_path: Path) -> None:
    def make_worker() -> Callable[[int], bytearray]:
        return lambda size: bytearray(size)

    with (
        pytest.raises(OutOfMemoryError, match=r"Memory ran out: .*MemoryError") as raised,
        staged(tmp_path / "out", overwrite=False),
        open_engine("ray", make_worker, EngineSettings(num_workers=1)) as engine,
    ):
        engine.map([1 << 60])
    assert len(raised.value.message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


SEARCHING = """
import time
from pathlib import Path
from tapioca_export.stopping import stopped_by_signals
def make_worker():
    return lambda item: time.sleep(60)
with stopped_by_signals():
    from tapioca_export.artifacts import staged
    from tapioca_export.engines import EngineSettings, open_engine
    with staged(Path("out"), overwrite=False), open_engine("ray", make_worker, EngineSettings(1)) as engine:
        print("ready", flush=True)
        engine.map([1])
"""


def test_sigterm_stops_a_search_on_ray_as_it_stops_any_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCHING], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("Error: Stopped by SIGTERM")) == (143, 1)
    assert list(tmp_path.iterdir()) == []
