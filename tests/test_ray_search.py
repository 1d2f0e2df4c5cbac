"""A search spread over Ray workers chooses what a search in this process chooses, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import text_records, write_jsonl

from tapioca_export import RunConfig, select
from tapioca_export.artifacts import staged
from tapioca_export.engines import EngineSettings, open_engine
from tapioca_export.errors import OutOfMemoryError

ROOT = Path(__file__).parent.parent
RAY = (sys.executable, "-m", "ray.scripts.scripts")
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


@contextmanager
def cluster(home: Path, **mode: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a cluster on loopback as a user does; its address, and the environment of that user."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**known, "HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | mode
    command = [
        *RAY, "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false"
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as head:
        try:
            said = head.stdout
            assert said is not None
            assert any("--block" in line for line in said), "the cluster did not start"
            yield f"127.0.0.1:{port}", environment
        finally:
            head.send_signal(signal.SIGTERM)


def joining(config: RunConfig, address: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Select on the cluster at this address, as a command."""
    command = [
        sys.executable, "-m", "tapioca_export", "select", "--model", config.model, "--id", str(config.id),
        "--target", str(config.target), "--epsilon", "1", "--eval-batch-size", "4", "--num-threads", "1",
        "--engine", "ray", "--num-workers", "2", "--ray-address", address, "-q", "-o", str(config.output),
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


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


def test_a_cluster_that_is_there_is_joined_though_it_asks_for_a_token(
    config: RunConfig, tmp_path: Path
) -> None:
    local = chosen(config)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    with cluster(tmp_path, RAY_AUTH_MODE="token") as (address, environment):
        joined = on_ray(config, "joined")
        done = joining(joined, address, environment)
        assert done.returncode == 0, done.stderr
        selection = json.loads((joined.output / "selection.json").read_text())
        del selection["cost"]
        assert selection == local
        assert subprocess.run([*RAY, "health-check", f"--address={address}"], env=environment).returncode == 0


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_that_is_no_cluster_is_one_line_before_a_minute_is_over(
    config: RunConfig, says: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, ExitStack() as held:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        threading.Thread(target=answer, args=(other, says, held), daemon=True).start()
        started = time.monotonic()
        done = joining(on_ray(config, "wrong"), address, {**os.environ, "PYTHONPATH": str(ROOT)})
    assert time.monotonic() - started < 60
    assert done.returncode == 1
    assert f"No Ray cluster can be used at '{address}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (config.output.parent / "wrong").exists()


def answer(server: socket.socket, says: bytes, held: ExitStack) -> None:
    """Take one connection, say something, and keep it open: a closed one would be an answer."""
    connection, _ = server.accept()
    held.enter_context(connection).sendall(says)


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
