"""A search spread over Ray workers chooses what a search in this process chooses, whoever dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import text_records, write_jsonl

from tapioca_export import RunConfig, select

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
