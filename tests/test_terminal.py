"""What is seen while a command runs, and how wide: on a terminal, in a pipe, in a log."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from click.testing import CliRunner, Result

from tapioca_export import artifacts, bars
from tapioca_export.cli import main
from tapioca_export.cli.logs import LOGGER, show_logs
from tapioca_export.reporting import render_text, summary_table
from tapioca_export.reporting.tables import TextTable

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
COUNTING = """
import logging, sys, time
logging.basicConfig(format="%(message)s", level="INFO")
from tapioca_export import bars
bars.SECONDS_A_LINE = 0.05
for _ in bars.progress_bar(range(10), desc="Counting", leave=False):
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `-q` of another test left in the environment."""
    monkeypatch.setenv(bars.DISABLED, "")


def on_terminal(*arguments: str, columns: int = 80, term: str = "xterm", code: int = 0) -> str:
    """Return what Python writes where a terminal is its stdout and stderr."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "TERM": term})
    written = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code, written
    return written.decode()


# --- progress -------------------------------------------------------------------------------


def test_a_terminal_has_a_bar_that_fits() -> None:
    written = on_terminal("-c", COUNTING, columns=60)
    frames = [frame for frame in written.split("\r") if frame.strip()]
    assert any(re.match(r"Counting:  *\d+% \[00:00<00:00\] \d+/10 \|", frame) for frame in frames)
    assert max(map(len, frames)) <= 60
    assert " left" not in written


def test_the_time_left_is_what_a_narrow_terminal_still_shows() -> None:
    code = COUNTING.replace('desc="Counting"', 'desc="Round 1/11, layer encoder:10, best accuracy 0.566"')
    frames = on_terminal("-c", code, columns=74).split("\r")
    assert any("[00:00<00:00]" in frame for frame in frames)


def test_a_terminal_that_cannot_go_back_has_lines() -> None:
    lines = on_terminal("-c", COUNTING, term="dumb").split("\r\n")
    said = [line for line in lines if line]
    assert 2 <= len(said) <= 5
    assert all(
        re.fullmatch(r"Counting: \d+ of 10 its \(\d+ %\) in 00:0\d, 00:0\d left", line) for line in said
    )


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    moments = iter(range(100))
    monkeypatch.setattr(bars.time, "monotonic", lambda: 10.0 * next(moments))
    bar = bars.progress_bar(total=9, desc="Outer")
    inner = bars.progress_bar(total=5, desc="Inner", leave=False)  # moves no cursor
    for _ in range(9):
        bar.update()
        bar.refresh()
    inner.close()
    bar.close()
    assert [record.getMessage().partition(":")[0] for record in caplog.records].count("Outer") in (2, 3)
    assert not any(sign in record.getMessage() for record in caplog.records for sign in "\r\n\x1b")


def test_nobody_who_wants_no_progress_gets_any(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(bars.DISABLED, "1")
    monkeypatch.setattr(bars, "SECONDS_A_LINE", 0.0)
    assert list(bars.progress_bar(range(3), desc="Silent")) == [0, 1, 2]
    assert caplog.records == []


# --- lines ----------------------------------------------------------------------------------


STOPPED = """
import os, signal, time
from tapioca_export import bars
from tapioca_export.stopping import stopped_by_signals
with stopped_by_signals():
    for number in bars.progress_bar(range(100), desc="Counting"):
        time.sleep(0.02)
        if number == 20:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_on_a_terminal_the_line_that_says_why_is_not_behind_a_bar() -> None:
    written = on_terminal("-c", STOPPED, code=143)
    assert "\r\x1b[KError: Stopped by SIGTERM; what was there is whole." in written


def test_a_bar_in_a_log_needs_no_thread_of_tqdms() -> None:
    """Which would take the locks of bars and of logging the other way round."""
    code = (
        "import threading, time, tqdm\n"
        "tqdm.tqdm.monitor_interval = 0.05\n"
        "from tapioca_export import bars\n"
        "bar = bars.progress_bar(total=10**9, desc='Counting')\n"
        "bar.maxinterval = 0.05\n"
        "here = threading.current_thread()\n"
        "bar.refresh = lambda *_, **__: threading.current_thread() is here or print('from a thread')\n"
        "for _ in range(8): bar.update(1000); time.sleep(0.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("both", [("-q", "-v"), ("-v", "-q")])
def test_quiet_and_verbose_exclude_each_other(both: tuple[str, str]) -> None:
    found = CliRunner().invoke(main, ["verify", "nowhere", *both])
    assert found.exit_code == 2
    assert "--quiet and --verbose exclude each other" in found.stderr


@pytest.fixture
def search(tiny: Tiny, sample_files: Files, tmp_path: Path) -> Callable[..., Result]:
    paths = sample_files("polynomial")
    files = ["--id", paths["id"], "--target", paths["target"], "-o", tmp_path / "out"]

    def call(*flags: str) -> Result:
        arguments = ["select", "-m", tiny("polynomial"), *files, *flags]
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result

    return call


def test_verbose_names_every_candidate(search: Callable[..., Result], tmp_path: Path) -> None:
    result = search("-v", "--full-scores", "--json")
    found = artifacts.read(tmp_path / "out/selection.json", artifacts.Selection)
    rounds = [step.candidates for step in found.steps] + ([found.rejected] if found.rejected else [])
    said = re.findall(r"Round (\d+): layer (\d+), full: ", result.stderr)
    told = {(str(number), str(c.layer)) for number, part in enumerate(rounds, 1) for c in part}
    assert told
    assert set(said) == told
    assert json.loads(result.stdout)["kind"] == "selection"  # with all that, stdout stays what it is


def test_candidates_are_not_named_unasked(search: Callable[..., Result]) -> None:
    assert "Round" not in search().stderr


def test_quiet_says_nothing_on_either_stream(search: Callable[..., Result]) -> None:
    result = search("-q")
    assert (result.stdout, result.stderr) == ("", "")
    both = search("-q", "--json", "--overwrite")
    assert (json.loads(both.stdout)["kind"], both.stderr) == ("selection", "")


@pytest.mark.parametrize("is_plan", [False, True])
def test_a_depth_that_no_search_reaches_is_named_once_with_what_is_taken(
    search: Callable[..., Result], is_plan: bool
) -> None:
    dry = ["--dry-run"] if is_plan else []
    result = search("--max-drop-layers", "7", "--epsilon", "1e9", *dry, "--json")
    (line,) = (line for line in result.stderr.splitlines() if "--max-drop-layers" in line)
    said = "Warning: --max-drop-layers 7 is more than can go: 3 of 4 layers, which is taken instead."
    assert line.partition("] ")[2] == said
    found = json.loads(result.stdout)
    assert (found["rounds"] if is_plan else len(found["steps"])) == 3
    assert "--max-drop-layers" not in search("--max-drop-layers", "3", *dry, "--overwrite").stderr


def test_a_line_is_one_line_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show_logs(logging.INFO)
    LOGGER.info("Exporting %s", "a\nmodel\x1b[2J\u202e")
    LOGGER.debug("not asked for")
    show_logs(logging.ERROR)
    LOGGER.info("not asked for")
    assert capsys.readouterr().err == "[0:00] Exporting a model\\x1b[2J\\u202e\n"


def test_a_signal_amid_a_line_stops_the_work_behind_it() -> None:
    code = (
        "import logging, os, signal, tqdm\n"
        "from tapioca_export.cli.logs import LOGGER, show_logs\n"
        "from tapioca_export.stopping import stopped_by_signals\n"
        "write = tqdm.tqdm.write\n"
        "def late(*given, **named):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    write(*given, **named)\n"
        "tqdm.tqdm.write = late\n"
        "with stopped_by_signals():\n"
        "    show_logs(logging.INFO)\n"
        "    LOGGER.info('here')\n"
        "    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (143, "", 3)
    assert lines[0] == "[0:00] here"
    assert lines[1].startswith("Error: Stopped by SIGTERM")


def test_commands_one_after_another_say_things_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        show_logs(logging.INFO)
    LOGGER.info("once")
    assert capsys.readouterr().err == "[0:00] once\n"


# --- tables ---------------------------------------------------------------------------------

WIDE = TextTable(
    "Wide",
    ("row", "number", "words"),
    (("first", "1.25", "word " * 20), ("second", "22.5", "[red]x[/] :+1:")),
)


def test_what_a_program_reads_has_a_line_a_row() -> None:
    lines = render_text(WIDE).splitlines()
    assert [len(line.split()) for line in lines] == [3, 22, 4]
    assert lines[1].index("1.25") + len("1.25") == lines[2].index("22.5") + len("22.5")  # numbers end alike
    assert lines[2].endswith("[red]x[/] :+1:")  # text is no markup


def test_on_a_terminal_cells_are_broken_into_lines_and_nothing_is_left_out() -> None:
    long = "a_name_without_a_space_in_it_that_fills_a_line_by_itself"
    table = replace(WIDE, rows=(*WIDE.rows, (long, "0.123456789", "end")))
    lines = render_text(table, 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert sum(line.count("word") for line in lines[1:]) == 20
    cells = "".join("".join(row) for row in (table.columns, *table.rows))
    assert sorted("".join(lines).replace(" ", "")) == sorted(cells.replace(" ", ""))


def test_a_stream_that_cannot_say_what_it_is_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def write(self, text: str) -> None: ...

    for stream in (Plain(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(bars.progress_bar(range(2), desc="Counting")) == [0, 1]


def test_the_summary_of_a_run_has_the_reports_numbers() -> None:
    report = reports.report()
    rows = {row[0]: row[1:] for row in summary_table(report).rows}
    assert rows["layers"] == ("12", "10", "dropping layers 4 and 7")
    target, cell = report.benchmark.accuracy["target"], report.benchmark.latency[0]
    low, high = target.interval
    change = f"+{target.difference:.3f} (+{low:.3f} to +{high:.3f})"
    assert rows["target accuracy, 500 rows"] == (f"{target.original:.3f}", f"{target.pruned:.3f}", change)
    low, high = cell.speedup.interval
    speed = f"{cell.speedup.median:.2f}x the speed ({low:.2f} to {high:.2f})"
    times = (f"{cell.original.p50_ms:.2f} ms", f"{cell.pruned.p50_ms:.2f} ms")
    assert (*times, speed) in rows.values()
    assert list(rows)[-2:] == ["file size", "peak memory"]


def test_a_run_prints_a_table_that_fits_a_terminal() -> None:
    """Sentences too; only a path may be longer."""
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import reports, tapioca_export, tapioca_export.cli as cli\n"
        "tapioca_export.report = lambda folder: reports.report(); cli.main(['report', 'there'])"
    )
    lines = on_terminal("-c", code, columns=80).split("\r\n")
    assert max(len(line) for line in lines if not line.startswith("Report: ")) <= 80
    text = " ".join(" ".join(lines).split())
    assert reports.report().verdict in text
    assert all(finding in text for finding in reports.report().findings)


def test_check_prints_json_or_nothing(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "report.json", reports.report())
    gate = ["check", str(tmp_path), "--min-speedup"]
    for least, passed in (("1.1", True), ("1.2", False)):
        found = CliRunner().invoke(main, [*gate, least, "--json"])
        said = json.loads(found.stdout)
        assert (said["passed"], found.exit_code) == (passed, 0 if passed else 3)
        assert [(c["name"], c["passed"]) for c in said["checks"]] == [("min_speedup", passed)]
        both = CliRunner().invoke(main, [*gate, least, "-q", "--json"])
        assert (both.stdout, both.stderr, both.exit_code) == (found.stdout, "", found.exit_code)
        silent = CliRunner().invoke(main, [*gate, least, "-q"])
        assert (silent.output, silent.exit_code) == ("", found.exit_code)
