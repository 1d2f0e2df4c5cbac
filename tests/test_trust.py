"""Nothing is sent, nothing secret is written down, and no code comes in with a checkpoint."""

from __future__ import annotations

import ast
import json
import os
import pickle  # noqa: TID251 - to be refused
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forbidding
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from conftest import TOKEN, text_records, write_jsonl
from onnx_graphs import pre_norm

from tapioca_export import telemetry
from tapioca_export.benchmarking import memory
from tapioca_export.benchmarking.sessions import CPU, default_settings, open_session
from tapioca_export.cli import main
from tapioca_export.models import load_model, proof
from tapioca_export.sessions import session_on_cpu

PACKAGE = Path(__file__).parent.parent / "tapioca_export"


@pytest.mark.slow
def test_a_run_with_local_files_only_reaches_for_no_network(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["run"]["config"]["local_files_only"] is True
    assert report["benchmark"]["peak_memory_bytes"], "the processes that were started were not looked at"
    assert (finished / "pruned/checkpoint/model.safetensors").is_file()


def test_the_network_is_really_forbidden() -> None:
    with pytest.MonkeyPatch.context() as patch:
        forbidding.forbid_network_everywhere(patch)
        with pytest.raises(AssertionError, match=r"127\.0\.0\.1"):
            connect()
        with pytest.raises(AssertionError, match="looked up"):
            socket.create_connection(("localhost", 9))
        patch.setattr(proof, "_reload", connect)
        fresh = proof._run_fresh(b"")
        child = memory.subprocess.run(["python", "-m", "test_trust"])
    for process in (fresh, child):
        assert process.returncode == 1
        assert b"AssertionError: a socket was connected" in process.stderr


def connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def test_a_token_is_written_nowhere(finished: Path) -> None:
    files = [path for path in finished.parent.rglob("*") if path.is_file()]
    assert {"said.txt", "report.html", "run.json", "model.onnx"} <= {path.name for path in files}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("given", "found", "is_off"),
    [
        ({}, {"HF_HUB_DISABLE_TELEMETRY": "1"}, True),
        ({"DO_NOT_TRACK": "1"}, {"DO_NOT_TRACK": "1"}, True),
        ({"DO_NOT_TRACK": "0"}, {"DO_NOT_TRACK": "0"}, False),
        ({"HF_HUB_DISABLE_TELEMETRY": "0"}, {"HF_HUB_DISABLE_TELEMETRY": "0"}, False),
    ],
)
def test_importing_the_package_switches_reports_off_unless_the_user_has_set_one(
    given: dict[str, str], found: dict[str, str], is_off: bool
) -> None:
    code = (
        "import json, os\nimport tapioca_export\n"
        "from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY\n"
        f"switches = {{n: os.environ[n] for n in {telemetry.SWITCHES} if n in os.environ}}\n"
        "print(json.dumps([switches, HF_HUB_DISABLE_TELEMETRY]))"
    )
    left = {name: value for name, value in os.environ.items() if name not in telemetry.SWITCHES}
    child = subprocess.run(
        [sys.executable, "-c", code], env=left | given, capture_output=True, text=True, check=True
    )
    assert json.loads(child.stdout) == [found, is_off]


def test_onnxruntime_reports_nothing_from_its_import_on(tmp_path: Path) -> None:
    """What would report leaves a session's and a device's number on the disk."""
    code = "from tapioca_export.telemetry import import_onnxruntime as load; load().get_available_providers()"
    unset = (*telemetry.SWITCHES, telemetry.ONNXRUNTIME, "XDG_CACHE_HOME", "XDG_DATA_HOME")
    left = {name: value for name, value in os.environ.items() if name not in unset}
    here = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=left | here, check=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("given", "found"), [({}, "1"), ({"DO_NOT_TRACK": "0"}, None), ({telemetry.ONNXRUNTIME: "0"}, "0")]
)
def test_whoever_lets_onnxruntime_report_is_left_alone(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*telemetry.SWITCHES, telemetry.ONNXRUNTIME):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    telemetry.switch_off()
    assert os.environ.get(telemetry.ONNXRUNTIME) == found


def opened() -> dict[str, Callable[[], object]]:
    graph = pre_norm().model().SerializeToString()
    return {
        "on the CPU": lambda: session_on_cpu(graph),
        "timed": lambda: open_session(graph, default_settings(CPU, 1)),
    }


@pytest.mark.parametrize("how", ["on the CPU", "timed"])
@pytest.mark.parametrize(("track", "calls"), [(None, True), ("1", True), ("0", False)])
def test_onnxruntime_reports_nothing_unless_the_user_lets_it(
    how: str, track: str | None, calls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: called.append(True))
    if track is None:
        monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    else:
        monkeypatch.setenv("DO_NOT_TRACK", track)
    opened()[how]()
    assert bool(called) == calls


def test_a_build_of_onnxruntime_without_the_switch_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "disable_telemetry_events")
    opened()["on the CPU"]()


STARTERS = {"InferenceSession", "optimize_by_onnxruntime", "quantize_dynamic", "quantize_static"}


def test_whatever_starts_onnxruntime_switches_its_reports_off() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                called = {getattr(call, "attr", None) or getattr(call, "id", "") for call in calls}
                assert not called & STARTERS or "import_onnxruntime" in called, f"{path.name}, {node.name}"


# --- pickles --------------------------------------------------------------------------------


class Evil:
    """What runs a command as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("command", ["select", "prune", "export"])
def test_pickled_weights_are_refused_and_not_opened(
    name: str, command: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil(tmp_path / "ran")}, folder / name)
    if "00001" in name:
        index = {"metadata": {}, "weight_map": {"a": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    rows = write_jsonl(tmp_path / "rows.jsonl", text_records(32, 0))
    more = {
        "select": ["--id", rows, "--target", rows],
        "prune": ["--drop", 1],
        "export": ["--id", rows],
    }[command]
    arguments = [command, "-m", folder, *more, "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert f"pickled weights only ({name}); they are never loaded, as that runs code" in result.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_pickle_beside_safetensors_is_not_opened(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "model"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.MonkeyPatch.context() as patch:
        forbidding.forbid_pickles(patch)
        assert load_model(folder).num_layers == 4
    assert not (tmp_path / "ran").exists()


def test_what_a_terminal_would_obey_is_not_printed(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "a\x1b]0;title\x07b")], color=True)
    assert result.exit_code == 1
    assert "a\\x1b]0;title\\x07b" in result.stderr
    assert "\x1b" not in result.stderr


if __name__ == "__main__":  # as a run starts processes of its own
    connect()
