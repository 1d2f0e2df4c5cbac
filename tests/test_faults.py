"""Commands that are killed, out of room or memory, or interfered with leave the old output or the new."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_graphs import pre_norm

from tapioca_export import RunConfig, TapiocaError, exhaustion, provenance, stopping
from tapioca_export.artifacts import Selection, locked, read, staged, write_text, write_together
from tapioca_export.artifacts import staging as staging_module
from tapioca_export.cli import main
from tapioca_export.errors import LoadError, OutOfMemoryError, OutputError, ParityError, reason
from tapioca_export.exhaustion import exhausted
from tapioca_export.exporting import quantizing
from tapioca_export.exporting.formats import FORMATS, Dialect
from tapioca_export.exporting.quieting import quiet
from tapioca_export.models import load_model

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.reliability import faults, subjects  # noqa: E402

Invoke = Callable[..., object]


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Commands that these tests start heed Ctrl-C and a hang-up, also in the background or under nohup."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --- the benchmark, in brief ------------------------------------------------------------------


@pytest.mark.slow
def test_commands_survive_a_few_faults_of_every_kind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability.faults", "--quick"]
    record = tmp_path / "faults.json"
    done = subprocess.run(
        [*command, "--output", record], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, [*re.findall(r".*\"problem\": \"[^\"].*", done.stderr), done.stderr[-2000:]]
    found = json.loads(record.read_text())
    assert found["cases"].keys() == faults.KINDS.keys()
    assert all(found["cases"].values())
    assert len(faults.rows(found)) == len(faults.KINDS)


@pytest.mark.skipif(not faults.OUTPUT.exists(), reason="the full version was not run to its end yet")
def test_the_committed_record_is_of_all_faults_and_names_no_problem() -> None:
    found = json.loads(faults.OUTPUT.read_text(encoding="utf-8"))
    cases = found["cases"]
    assert cases.keys() == faults.KINDS.keys()
    kills = [case for kind in cases if kind.startswith("kills") for case in cases[kind]]
    assert len(kills) >= 200
    assert {case["command"] for case in kills} == {subject.name for subject in subjects.SUBJECTS}
    assert len(cases["full disks"]) >= 100
    assert [case for kind in cases.values() for case in kind if case["problem"]] == []


def test_every_command_that_writes_is_tried() -> None:
    silent = {"list", "doctor", "schema"}
    assert {subject.arguments[0] for subject in subjects.SUBJECTS} == set(main.commands) - silent


# --- signals ------------------------------------------------------------------------------------

SLEEPING = """
import sys, time
from pathlib import Path
from tapioca_export.stopping import stopped_by_signals
with stopped_by_signals():
    from tapioca_export.artifacts import staged
    with staged(Path("out"), overwrite=False) as folder:
        (folder / "half").write_text("x")
        print("ready", flush=True)
        try:
            time.sleep(30)
        finally:
            print("cleaning", flush=True)
            time.sleep({pause})
"""


def stopped(folder: Path, *signals: int, pause: float = 0.0, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", SLEEPING.format(pause=pause)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        if pause:
            assert process.stdout.readline() in ("cleaning\n", "")
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("name", stopping.NAMES)
def test_a_signal_is_one_line_a_code_and_nothing_left(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    code, said = stopped(tmp_path, number)
    assert code == 128 + number
    assert said.splitlines()[0] == f"Error: Stopped by {name}; what was there is whole."
    assert len(said.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_does_not_cut_the_cleaning_short(tmp_path: Path) -> None:
    code, said = stopped(tmp_path, signal.SIGINT, signal.SIGINT, pause=0.3)
    assert (code, said.count("Error: ")) == (130, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_long_after_one_that_was_swallowed_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, now = stopping._Stopping(), [1000.0]
    monkeypatch.setattr(stopping, "monotonic", lambda: now[0])
    for late, raises in ((0.0, True), (stopping.PATIENCE_S - 0.1, False), (0.2, True)):
        now[0] += late
        if raises:
            with pytest.raises(SystemExit):
                handler(signal.SIGINT, None)
        else:
            handler(signal.SIGINT, None)


def test_a_signal_waits_for_what_must_not_be_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, stopping._STOPPING)
    monkeypatch.setattr(stopping._STOPPING, "_stopped_at", -stopping.PATIENCE_S)
    steps = []
    try:
        with pytest.raises(SystemExit) as ended:  # noqa: PT012 - what runs before and after is the point
            with stopping.unstopped(), stopping.unstopped():
                signal.raise_signal(signal.SIGINT)
                steps.append("whole")
            steps.append("never")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.value.code, steps) == (130, ["whole"])


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` wants it."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from tapioca_export.stopping import stopped_by_signals\n"
        "with stopped_by_signals(): signal.raise_signal(signal.SIGHUP); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "on\n"


def test_ctrl_c_during_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time; print('importing', flush=True); time.sleep(30)")
    process = subprocess.Popen(
        [sys.executable, "-m", "tapioca_export", "list"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, len(said.splitlines())) == (130, 2)


LATE = """
import os, signal, time
from tapioca_export.stopping import stopped_by_signals
class Kept:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # here it arrives, and nothing that is raised gets out
with stopped_by_signals():
    kept = Kept()
    del kept
    try:
        time.sleep(20)
    finally:
        print("cleaned", flush=True)
    print("went on", flush=True)
"""


def test_a_signal_that_arrives_in_a_destructor_stops_the_work() -> None:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (143, "cleaned\n")
    assert done.stderr == (
        "Error: Stopped by SIGTERM; what was there is whole.\nHint: Give the same command again.\n"
    )
    assert time.monotonic() - begun < 10


def test_a_stop_that_a_library_turns_into_an_error_is_a_stop(tmp_path: Path) -> None:
    """As pydantic does where it is building a validator."""
    code = (
        "import os, signal, sys, time\n"
        "import tapioca_export\n"
        "from tapioca_export import errors\n"
        "from tapioca_export.__main__ import start\n"
        "def late(*given, **named):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "    except BaseException as error:\n"
        "        raise ({})(f'within: {{error!r}}')\n"
        "tapioca_export.report = late\n"
        "sys.argv = ['tapioca-export', 'report', 'there']\n"
        "start()\n"
    )
    for kind in ("RuntimeError", "errors.TapiocaError"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(kind)], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (130, 2), done.stderr
        assert done.stderr.startswith("Error: Stopped by SIGINT")


def test_other_errors_in_destructors_are_shown_as_python_shows_them() -> None:
    code = (
        "from tapioca_export.stopping import stopped_by_signals\n"
        "class Kept:\n"
        "    def __del__(self): raise SystemExit('a library ends')\n"
        "with stopped_by_signals(): Kept(); print('on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "Exception ignored in" in done.stderr


# --- full disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("format_", "name"), [("pt2", "model.pt2"), ("torchscript", "model.pt")])
def test_pytorchs_files_on_a_full_disk_are_an_error_and_no_crash(
    format_: str, name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """PyTorch's own writer ends the process, in a destructor that raises."""
    model = load_model(str(tiny("polynomial")))
    if not Path("/dev/full").exists():
        pytest.skip("here is no file that is always full")
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), quiet():
        FORMATS[format_].write(model, model.task.examples(model.processor)[0], tmp_path, Dialect(None, None))


@pytest.mark.slow
def test_a_signal_amid_pytorchs_writing_waits_for_its_end(tmp_path: Path) -> None:
    """Anything raised within the writer ends the process, with nothing cleaned up."""
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from tapioca_export.exporting import pt2, writing\n"
        "from tapioca_export.exporting.formats import Dialect\n"
        "from tapioca_export.exporting.quieting import quiet\n"
        "from tapioca_export.models import load_model\n"
        "from tapioca_export.stopping import stopped_by_signals\n"
        "write = writing._Patient.write\n"
        "calls = []\n"
        "def late(self, data):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 5: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return write(self, data)\n"
        "writing._Patient.write = late\n"
        "model = load_model('tapioca_export/polynomial_weights')\n"
        "example = model.task.examples(model.processor)[0]\n"
        "with stopped_by_signals():\n"
        "    try:\n"
        "        with quiet(): pt2.write_pt2(model, example, Path(sys.argv[1]), Dialect())\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (143, "cleaned\n"), done.stderr[-500:]


def test_a_graph_that_was_cut_short_by_a_full_disk_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX's writers say nothing; what they wrote cannot be read."""
    graph = tmp_path / "model.onnx"
    onnx.save(pre_norm().model(), graph)

    def cut_short(source: Path, target: Path, *rest: Any, **more: Any) -> None:
        onnx.load_model_from_string(source.read_bytes()[:-7])

    monkeypatch.setattr(quantizing, "_dynamically", cut_short)
    for free, told in ((0, "Cannot write .*: No space left on device"), (1 << 30, "cannot quantise")):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(exhaustion.shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(TapiocaError, match=told):
            quantizing.quantize(graph, "int8")


# --- folders ------------------------------------------------------------------------------------


def put(folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / name).write_text(name)


def test_an_output_is_there_at_every_instant_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out", "old")
    seen = []
    real = staging_module.os.replace
    monkeypatch.setattr(staging_module.os, "replace", lambda *pair: (seen.append(pair), real(*pair)))
    monkeypatch.setattr(
        staging_module.shutil, "rmtree", lambda *_, **__: seen.append(os.listdir(tmp_path / "out"))
    )
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert seen == [["new"], ["new"]]  # changed places at once; the old one is removed after that


def test_folders_change_places_where_the_system_cannot_do_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging_module.sys, "platform", "elsewhere")
    put(tmp_path / "out", "old")
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_folder_that_is_taken_away_is_said_to_be(tmp_path: Path) -> None:
    for again in (False, True):
        with (  # noqa: PT012
            pytest.raises(OutputError, match="was taken away while it was being filled"),
            staged(tmp_path / "out", overwrite=False) as folder,
        ):
            staging_module.shutil.rmtree(folder)
            if again:
                write_text(folder / "late", "x")  # which makes it again
            else:
                (folder / "late").write_text("x")
        assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_files_were_taken_away_is_not_put_into_place(tmp_path: Path) -> None:
    """As when files are written while `rm -r` is at work: the folder stays, and what was in it does not."""
    with (  # noqa: PT012
        pytest.raises(OutputError, match="was taken away while it was being filled"),
        staged(tmp_path / "out", overwrite=False) as folder,
    ):
        (folder / "early").write_text("x")
        for path in folder.iterdir():
            path.unlink() if path.is_file() else path.rmdir()
        (folder / "late").write_text("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_who_is_taking_the_folder_away_never_reaches_the_output(
    is_old: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rm -r` holds a folder open, and goes on in it wherever it is moved."""
    if is_old:
        put(tmp_path / "out", "old")
    if not links:
        monkeypatch.setattr(staging_module.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM)))
    held = {}
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "inner").mkdir()
        for place in (folder, folder / "inner"):
            (place / "new").write_text("new")
            held[os.open(place, os.O_RDONLY)] = place
    for descriptor in held:
        assert os.listdir(descriptor) == []
        os.close(descriptor)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")} == {
        "new", "inner", "inner/new",
    }  # fmt: skip
    assert [path.read_text() for path in (tmp_path / "out").rglob("new")] == ["new", "new"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("gone", ["early", "late", staging_module.MARK])
def test_a_file_that_goes_while_the_folder_is_put_into_place_is_noticed(
    is_old: bool, gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_old:
        put(tmp_path / "out", "old")
    real = staging_module.os.link

    def link(path: Path, copy: Path) -> None:
        if path.name == "late":
            taken = path.with_name(gone)
            taken.rmdir() if taken.is_dir() else taken.unlink()
        real(path, copy)

    monkeypatch.setattr(staging_module.os, "link", link)
    with (  # noqa: PT012
        pytest.raises(OutputError, match="was taken away while it was being filled"),
        staged(tmp_path / "out", overwrite=True) as folder,
    ):
        (folder / "early").write_text("x")
        (folder / "late").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "old"] if is_old else [])


def test_what_an_orphan_leaves_is_not_the_next_process_s(tmp_path: Path) -> None:
    """It fails when the next one, which has begun after its folder was taken away, is about to end."""
    finished = tmp_path / ".out.tapioca-finished"
    with (  # noqa: PT012
        pytest.raises(OutputError, match="was taken away"),
        staged(tmp_path / "out", overwrite=False) as folder,
    ):
        staging_module.shutil.rmtree(folder)
        put(folder, "theirs")
        (folder / staging_module.MARK).mkdir()
        put(finished, "theirs")
        raise ValueError
    assert [path.name for path in finished.iterdir()] == ["theirs"]


def test_a_folder_that_was_begun_after_ours_went_is_left_to_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out", "old")
    real = staging_module._exchange

    def exchange(one: Path, other: Path) -> None:
        real(one, other)
        staging_module.shutil.rmtree(folder)
        put(folder, "theirs")

    monkeypatch.setattr(staging_module, "_exchange", exchange)
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "new", folder.name, "theirs"}


def test_a_failed_proof_is_what_is_said_whatever_becomes_of_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging_module.os, "link", full)
    monkeypatch.setattr(staging_module.shutil, "copy2", full)
    with (  # noqa: PT012
        pytest.raises(ParityError, match="differs by 3"),
        staged(tmp_path / "out", overwrite=False) as folder,
    ):
        (folder / "model.onnx.invalid").write_text("x")
        raise ParityError("differs by 3")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_way_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / ".out.tapioca-finished").write_text("theirs")
    with pytest.raises(OutputError, match=r"Cannot write .*\.out\.tapioca-finished"):  # noqa: SIM117
        with staged(tmp_path / "out", overwrite=False):
            pytest.fail("work began")
    assert [path.name for path in tmp_path.iterdir()] == [".out.tapioca-finished"]


def test_another_process_s_folder_is_left_alone(tmp_path: Path) -> None:
    aside = tmp_path / ".out.tapioca-partial"
    with (  # noqa: PT012
        pytest.raises(OutputError, match="was taken away"),
        staged(tmp_path / "out", overwrite=False) as folder,
    ):
        staging_module.shutil.rmtree(folder)
        put(aside, "theirs")
        (aside / staging_module.MARK).mkdir()
        descriptor = os.open(aside, os.O_RDONLY)
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.close(descriptor)
    assert {path.name for path in tmp_path.rglob("*")} == {aside.name, "theirs", staging_module.MARK}


def test_an_output_that_cannot_even_be_looked_at_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="File name too long"),
        staged(tmp_path / ("x" * 300), overwrite=True),
    ):
        pass


def test_files_that_belong_together_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("old")
    with locked(_touched(tmp_path / "other.partial"), other):
        with pytest.raises(OutputError, match="Another process is writing"):
            write_together({one: "new", other: "new"})
        assert one.read_text() == "old"
        assert not (tmp_path / "one.partial").exists()
    write_together({one: "new", other: "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]
    assert one.read_text() == other.read_text() == "new"


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_an_artifact_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    text = (
        '{"kind": "selection", "schema_version": 2, "model": "m", "task": "t", "criterion": "c", '
        '"num_layers": 1, "drop": [], "steps": [], "stop_reason": ""}'
    )
    (tmp_path / "a.json").write_text(text.replace(": 2", ": 1"))
    assert read(tmp_path / "a.json", Selection).drop == ()
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LoadError, match="has schema version 2, and 1 is the newest"):
        read(tmp_path / "a.json", Selection)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "id.jsonl"])
def test_an_input_that_changes_while_it_is_read_is_refused(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    put(model, "config.json")
    (model / "model.safetensors").write_text("weights")
    rows = tmp_path / "id.jsonl"
    rows.write_text("rows")
    config = RunConfig(model=str(model), id=rows)
    with provenance.unchanged(config):
        changed = rows if name == rows.name else model / name
    with pytest.raises(LoadError, match=f"{name} changed while it was read"), provenance.unchanged(config):
        changed.write_text("other")
    with pytest.raises(LoadError, match="changed while it was read"), provenance.unchanged(config):
        (model / "tokenizer.json").write_text("new")


def test_a_refusal_without_the_system_s_words_says_what_there_is() -> None:
    assert reason(PermissionError("Permission denied (os error 13)")) == "Permission denied (os error 13)"
    assert reason(PermissionError(errno.EACCES, "Permission denied", "/a/file")) == "Permission denied"


# --- what runs out ------------------------------------------------------------------------------

NO_ROOM = (
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/file"),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/there/file"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
)
NO_MEMORY = (
    MemoryError(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)


@pytest.mark.parametrize("error", [*NO_ROOM, *NO_MEMORY], ids=str)
def test_what_ran_out_is_said_whichever_library_found_it_out(error: Exception, tmp_path: Path) -> None:
    kind = OutputError if error in NO_ROOM else OutOfMemoryError
    full = r"Cannot write .*: (No space left on device|Disk quota exceeded)\."
    with (
        pytest.raises(kind, match=full if error in NO_ROOM else "Memory ran out: ") as raised,
        staged(tmp_path / "out", overwrite=False),
    ):
        raise LoadError("Something else went wrong.") from error  # which is no more than what it led to
    assert raised.value.__cause__ is not None
    assert len(raised.value.message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_did_not_run_out_is_not_said_to(tmp_path: Path) -> None:
    for error in (
        ValueError("no"),
        RuntimeError("PytorchStreamWriter failed writing file"),
        TapiocaError("x"),
    ):
        assert exhausted(error, tmp_path) is None  # the disk has room


def test_a_writer_that_gives_no_reason_is_believed_to_lack_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapioca_export import exhaustion

    monkeypatch.setattr(exhaustion, "_is_full", lambda place, needed: place == tmp_path)
    found = exhausted(
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), tmp_path
    )
    assert found is not None
    assert found.message == f"Cannot write {tmp_path}: No space left on device."


@pytest.mark.parametrize(("free", "is_told"), [(0, True), (999_999, True), (1_000_001, False)])
def test_what_had_to_fit_says_whether_a_disk_is_full(
    free: int, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(exhaustion.shutil, "disk_usage", lambda path: usage)
    found = exhausted(RuntimeError("DecodeError: Wire format was corrupt"), tmp_path, 1_000_000)
    assert isinstance(found, OutputError) is is_told


def test_an_output_that_holds_something_is_refused_before_libraries_load(tmp_path: Path) -> None:
    put(tmp_path / "out", "old")
    code = (
        "import sys\nfrom tapioca_export.cli import main\n"
        f"try: main(['profile', '-m', 'm', '--id', 'i', '--target', 't', '-o', {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1 False False\n", done.stderr
    assert "is not empty" in done.stderr
