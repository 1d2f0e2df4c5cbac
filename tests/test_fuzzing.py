"""Files that are nearly right, fed to every reader: refused with one line, or read; always the same ones.

The whole of it, with more files and with coverage, is `make fuzz` (benchmarks/reliability/fuzzing.py).
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import Phase, given, settings
from onnx_graphs import pre_norm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.reliability import feeding, seeds, watching  # noqa: E402
from benchmarks.reliability.crashes import CRASHES  # noqa: E402
from benchmarks.reliability.feeding import Found, feed  # noqa: E402
from benchmarks.reliability.fuzzing import LEAST, QUICK, RESULT, broken, executions_of, rows  # noqa: E402
from benchmarks.reliability.readers import READERS, Reader  # noqa: E402
from benchmarks.reliability.spoiling import OUTSIDE, Mutants, of_json, of_onnx  # noqa: E402
from benchmarks.reliability.watching import Outcome, Watch  # noqa: E402
from tapioca_export.errors import LoadError  # noqa: E402

PARTS = 4  # processes
# A card that cannot be read says nothing; of settings for generation, few are asked for.
HARMLESS = ("a setting without a value", "a card with a number without digits")
NEVER_REFUSED = ("metadata of a model card", "generation_config.json")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzing") / "valid"
    seeds.make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_nearly_right_is_read_or_refused_with_one_line(part: int, valid: Path) -> None:
    names = list(READERS)[part::PARTS]
    found = feed({name: executions_of(name, QUICK) for name in names}, valid)
    assert {name: row.broken for name, row in found.items() if row.broken} == {}
    assert list(found) == names
    for name, row in found.items():
        assert row.executions >= executions_of(name, QUICK)
        assert row.refused > 0 or name in NEVER_REFUSED
    known = {crash: ended for row in found.values() for crash, ended in row.known.items()}
    assert known == {
        crash: "read" if crash in HARMLESS else "refused"
        for crash, (reader, _) in CRASHES.items()
        if reader in names
    }


def test_every_file_that_once_broke_a_reader_is_fed_to_one() -> None:
    assert {reader for reader, _ in CRASHES.values()} <= set(READERS)


def test_the_committed_result_is_of_every_reader_and_nothing_broke() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    assert [row["name"] for row in found["readers"]] == list(READERS)
    assert all(row["broken"] == {} and row["executions"] >= LEAST for row in found["readers"])
    assert {crash for row in found["readers"] for crash in row["known"]} == set(CRASHES)
    words = dict(rows(found))
    assert words["promises broken"] == "0"
    assert broken(found) == []
    for row in found["readers"]:
        count = row["executions"] + row["guided_executions"]
        assert words[f"fuzzed: {row['name']}"].startswith(f"{count:,} files")


# --- the watch ------------------------------------------------------------------------------


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "file").write_text("content")
    (tmp_path / "outside.bin").write_text("nobody's business")
    return Watch(folder, tmp_path / "outside.bin")


def looked_at(watch: Watch, read: Callable[[Path], object]) -> Outcome:
    return watch.run(read, watch.folder / "file")


def refuse(message: str) -> None:
    raise LoadError(message)


def open_as_a_library_does(file: Path) -> None:
    libc = ctypes.CDLL(None)
    os.close(libc.open(os.fsencode(file.parents[1] / "outside.bin"), os.O_RDONLY))


def connect(file: Path) -> None:
    with socket.socket() as found, contextlib.suppress(OSError):
        found.connect(("127.0.0.1", 9))


def follow(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file.parents[1] / "outside.bin")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a traceback": (lambda file: {}["key"], "KeyError"),
    "no Exception": (lambda file: sys.exit(1), "SystemExit"),
    "an empty line": (lambda file: refuse("  "), "no message"),
    "a file outside": (lambda file: (file.parents[1] / "outside.bin").read_text(), "open outside"),
    "a folder outside": (lambda file: os.listdir("/tmp"), "os.listdir outside"),
    "by a library": (open_as_a_library_does, "a outside"),
    "writing": (lambda file: file.write_text("x"), "open outside"),
    "a link": (follow, "os.symlink outside"),
    "a process": (lambda file: subprocess.run(["true"], check=False), "subprocess.Popen outside"),
    "a connection": (connect, "socket.connect outside"),
    "time": (lambda file: time.sleep(5), "time: "),
    "memory": (lambda file: len(b"x" * 10**8), "memory"),
    "swallowed time": (lambda file: swallow(), "time: "),
}


def swallow() -> None:
    with contextlib.suppress(Exception):
        time.sleep(5)


@pytest.mark.parametrize("case", BAD)
def test_a_reader_that_breaks_a_promise_is_found_out(
    case: str, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SECONDS", 0.5)
    monkeypatch.setattr(watching, "BYTES", 5 * 10**7)
    read, words = BAD[case]
    outcome = looked_at(watch, read)
    assert outcome.ended == "broken"
    assert outcome.what.startswith(words)


def test_what_keeps_its_promises_is_read_or_refused(watch: Watch) -> None:
    assert looked_at(watch, lambda file: file.read_text()) == Outcome("read")
    assert looked_at(watch, lambda file: refuse("so it is")) == Outcome("refused", "", "so it is")
    assert looked_at(watch, lambda file: importlib.reload(csv)) == Outcome("read")  # Python's own files
    watch.writes = True
    assert looked_at(watch, lambda file: file.write_text("x")) == Outcome("read")


def test_a_link_out_of_the_folder_does_not_hide_what_is_opened(watch: Watch) -> None:
    (watch.folder / "link").symlink_to(watch.outside)
    assert looked_at(watch, lambda file: file.with_name("link").read_bytes()).ended == "broken"


@pytest.mark.parametrize(("how", "words"), [("os._exit(3)", "ended with 3"), ("os.abort()", "ended with -6")])
def test_a_reader_that_takes_the_process_with_it_is_named(how: str, words: str, tmp_path: Path) -> None:
    results = {"one": Found(), "two": Found()}
    feeding.write(tmp_path, results)
    (tmp_path / feeding.LAST).write_bytes(b"the file")
    code = subprocess.run([sys.executable, "-c", f"import os; {how}"], check=False).returncode
    found = feeding._found(tmp_path, code)
    assert found["one"].broken == {}
    assert found["two"].broken[f"the process {words}"]["file"] == "the file"


def test_the_clock_of_a_reading_does_not_cut_a_first_import_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "modules" / "slow_to_import"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import part\n")
    (package / "part.py").write_text("import time\ntime.sleep(0.5)\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(watching, "SECONDS", 0.2)
    reader = Reader("file", lambda file: importlib.import_module("slow_to_import"), of_json)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "file").write_bytes(b"{}")
    found = Found()
    with (tmp_path / "said").open("w") as said:
        feeding.Plate(reader, tmp_path, said).try_valid(tmp_path / "valid", found)
    assert found.broken == {}


def test_a_valid_file_that_is_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "file").write_bytes(b"{}")
    found = Found()
    with (tmp_path / "said").open("w") as said:
        plate = feeding.Plate(Reader("file", lambda file: refuse("so it is"), of_json), tmp_path, said)
        plate.try_valid(tmp_path / "valid", found)
    assert list(found.broken) == ["a valid file is not read"]


def test_a_file_that_names_one_outside_names_one_that_is_watched(tmp_path: Path) -> None:
    reader = Reader("file", lambda file: Path(file.read_text()).read_bytes(), of_json)
    with (tmp_path / "said").open("w") as said:
        outcome = feeding.Plate(reader, tmp_path, said).feed(OUTSIDE.encode())
    assert (outcome.ended, outcome.what) == ("broken", "open outside")


# --- mutations ------------------------------------------------------------------------------


def made(strategy: Mutants, number: int = 200) -> list[bytes]:
    contents: list[bytes] = []

    @settings(max_examples=number, database=None, derandomize=True, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def collect(content: bytes) -> None:
        contents.append(content)

    collect()
    return contents


def test_trees_are_changed_and_often_still_trees() -> None:
    seed = b'{"a": [1, 2.5, {"b": "text"}], "c": null}'
    contents = made(of_json([seed]))
    assert len(set(contents)) > 100
    parsed = [json.loads(content) for content in contents if is_json(content)]
    assert len(parsed) > len(contents) / 2
    assert sum(isinstance(tree, dict) and set(tree) == {"a", "c"} for tree in parsed) > len(contents) / 8
    hostile = (OUTSIDE, "../outside.bin", "/etc/passwd", "/dev/zero")
    assert any(text in content.decode("latin-1") for content in contents for text in hostile)


def is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def test_graphs_are_changed_and_often_still_graphs() -> None:
    contents = made(of_onnx([pre_norm().model().SerializeToString()]), 60)
    parsed = 0
    for content in contents:
        with contextlib.suppress(Exception):
            parsed += len(onnx.load_model_from_string(content).graph.node) > 10
    assert len(set(contents)) > 40
    assert parsed > len(contents) / 2


def test_files_are_the_same_every_time() -> None:
    assert made(of_json([b'{"a": [1, 2]}']), 50) == made(of_json([b'{"a": [1, 2]}']), 50)
