"""The doors: what the command line takes, prints and returns, and what the package offers."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reports
from click.core import ParameterSource
from click.testing import CliRunner, Result

import tapioca_export
from tapioca_export import artifacts
from tapioca_export.cli import main, results
from tapioca_export.cli.config_files import CONFIG_FILE, in_config_file
from tapioca_export.config import RunConfig

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "pandas", "pyarrow", "pydantic")
PUBLIC = [
    "Benchmark", "Comparison", "Doses", "Export", "Intervention", "Plan", "Profile", "Report",
    "RunComparison", "RunConfig", "Selection", "TapiocaError", "Thresholds", "Verification",
    "benchmark", "check", "compare", "compare_runs", "demo", "export", "export_variants", "init",
    "intervene", "plan", "plot", "profile", "prune", "report", "run", "schema", "select", "verify",
]  # fmt: skip


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def in_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


# --- help -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert main.commands[name].get_short_help_str()


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_has_help(name: str) -> None:
    options = [p for p in main.commands[name].params if p.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("command", ["run", "init"])
def test_every_field_of_the_configuration_is_an_option(command: str) -> None:
    options = {parameter.name for parameter in main.commands[command].params}
    assert {item.name for item in fields(RunConfig)} <= options


def test_every_option_is_spelt_in_kebab_case() -> None:
    spelt = [name for c in main.commands.values() for p in c.params for name in p.opts if "-" in name]
    assert [name for name in spelt if "_" in name or name != name.lower()] == []


def test_defaults_are_shown_as_the_configuration_has_them() -> None:
    shown = " ".join(call("run", "--help").output.split())
    assert "[default: tale]" in shown
    assert "[default: 0.08]" in shown
    assert "[default: 1, 8]" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom tapioca_export.cli import main\n"
        f"main({arguments}, standalone_mode=False)\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert in_python("-c", code).stdout.splitlines()[-1] == "HEAVY []"


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        in_python("-m", "tapioca_export", "--help")
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.5


def test_the_package_runs_as_a_module() -> None:
    version = in_python("-m", "tapioca_export", "--version").stdout
    assert version.split()[-1] == tapioca_export.__version__


# --- public names ---------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert tapioca_export.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(tapioca_export, name).__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        tapioca_export.nonesuch  # noqa: B018


def test_every_stage_command_has_a_function_of_its_name() -> None:
    stages = set(main.commands) - {"list", "doctor"}
    assert stages <= set(tapioca_export.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, tapioca_export; print([n for n in {HEAVY} if n in sys.modules])"
    assert in_python("-c", code).stdout == "[]\n"


# --- configuration files --------------------------------------------------------------------

FLAGS = [
    "--criterion", "random", "--epsilon", "0.05", "--pick", "2", "--max-drop-layers", "3",
    "--protect-first", "1", "--seed", "7", "--columns", "text=review,label=stars", "--drop-leaks",
    "--task", "text-classification", "-o", "there",
]  # fmt: skip
TOML = """
criterion = "random"
epsilon = 0.05
pick = 2
max-drop-layers = 3
protect_first = 1
seed = 7
drop-leaks = true
task = "text-classification"
output = "there"

[columns]
text = "review"
label = "stars"
"""
YAML = """
criterion: random
epsilon: 5e-2
pick: 2
max-drop-layers: 3
protect_first: 1
seed: 7
drop-leaks: true
task: text-classification
output: there
columns: {text: review, label: stars}
"""


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """The configurations that reach the library, in place of running it."""
    configs: list[RunConfig] = []

    def select(config: RunConfig) -> artifacts.Selection:
        configs.append(config)
        return reports.selection()

    def export(config: RunConfig) -> dict[str, artifacts.Export]:
        configs.append(config)
        return {name: reports.export(name) for name in config.format}

    monkeypatch.setattr(tapioca_export, "select", select)
    monkeypatch.setattr(tapioca_export, "export", export)
    monkeypatch.setattr(tapioca_export, "run", lambda config: configs.append(config) or reports.report())
    monkeypatch.chdir(tmp_path)
    return configs


@pytest.mark.parametrize(("name", "text"), [("c.toml", TOML), ("c.yaml", YAML), ("c.yml", YAML)])
def test_a_configuration_file_is_the_same_as_flags(name: str, text: str, received: list[RunConfig]) -> None:
    Path(name).write_text(text)
    assert call("select", "-m", "m", *FLAGS).exit_code == 0
    assert call("select", "-m", "m", "--config", name).exit_code == 0
    assert received[0] == received[1]
    assert received[0] != RunConfig(model="m")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epsilon = -1", "--epsilon -1.0 must be"),
        ('epsilon = "x"', "Invalid value for '--epsilon'"),
        ("batch-size = [0]", "--batch-size 0 must be"),
        ('criterion = "tal"', "Unknown criterion 'tal'"),
        ('drop = ["x:y"]', "Invalid value for '--drop'"),
    ],
)
def test_a_bad_value_is_laid_to_the_file_that_has_it(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": "m", "id": "i.jsonl", "target": "t.jsonl", "output": "out"}
    for name in ("i.jsonl", "t.jsonl"):
        Path(name).touch()
    for file in ("c.toml", "there/c.toml"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("\n".join([line, *(f'{name} = "{value}"' for name, value in names.items())]))
        result = call("run", "-c", file)
        assert result.exit_code in (1, 2)
        assert result.stderr.startswith(f"Error: {file}: {said}")
    option = line.split(" = ")[0]
    given = {"drop": "x:z", "criterion": "tap", "batch-size": "-1"}.get(option, "-2")
    assert result.stderr != (own := call("run", "-c", file, f"--{option}", given).stderr)
    assert own.startswith("Error: ")
    assert file not in own, "what is given on the command line is not the file's"


def test_a_message_that_only_mentions_an_option_is_not_laid_to_the_file() -> None:
    set_by_file = SimpleNamespace(get_parameter_source=lambda name: ParameterSource.DEFAULT_MAP)
    meta = {CONFIG_FILE: (Path("c.toml"), set_by_file)}
    for message in ("--drop 1 is wrong.", "Invalid value for '--drop': no.", "Unknown criterion 'x'."):
        assert in_config_file(meta, message) == f"c.toml: {message}"
        assert in_config_file({}, message) == message
    for message in ("t.jsonl, line 3 is an example of --few-shot.", "accuracy is less than --max-drop 0.02."):
        assert in_config_file(meta, message) == message


@pytest.mark.parametrize("place", [0, -1])
def test_flags_win_over_the_configuration_file(place: int, received: list[RunConfig]) -> None:
    Path("c.toml").write_text('model = "other"\nepsilon = 0.5\nseed = 3\nbatch-size = [2]')
    flags = [["-m", "m"], ["--epsilon", "0.01"], ["--batch-size", "4"]]
    flags.insert(place, ["-c", "c.toml"])
    assert call("run", *(part for pair in flags for part in pair)).exit_code == 0
    config = received[0]
    assert (config.model, config.epsilon, config.seed) == ("m", 0.01, 3)
    assert config.batch_size == (4,)


def test_a_file_gives_one_value_or_several_to_a_repeatable_option(received: list[RunConfig]) -> None:
    for text in ('format = "onnx"', 'format = ["onnx", "torchscript"]'):
        Path("c.toml").write_text(text)
        assert call("export", "-m", "m", "-c", "c.toml").exit_code == 0
    assert [config.format for config in received] == [("onnx",), ("onnx", "torchscript")]


@pytest.mark.parametrize("text", ["drop = 3", "drop = [3]", 'drop = "3"'])
def test_layers_in_a_file_are_a_number_a_list_or_a_text(text: str, received: list[RunConfig]) -> None:
    Path("c.toml").write_text(text)
    assert call("select", "-m", "m", "-c", "c.toml", "--criterion", "fixed").exit_code == 0
    assert received[0].drop == (3,)


def test_an_empty_configuration_file_changes_nothing(received: list[RunConfig]) -> None:
    Path("c.yaml").write_text("# nothing\nopset:\n")
    assert call("export", "-m", "m", "-c", "c.yaml").exit_code == 0
    assert received == [RunConfig(model="m")]


# --- what is printed ------------------------------------------------------------------------


def test_json_prints_the_artifact_and_nothing_else(received: list[RunConfig]) -> None:
    result = call("select", "-m", "m", "--json")
    assert result.stdout == artifacts.to_json(reports.selection())
    assert result.stderr == ""


def test_json_of_several_formats_is_one_object(received: list[RunConfig]) -> None:
    result = call("export", "-m", "m", "--format", "onnx", "--format", "torchscript", "--json")
    printed = json.loads(result.stdout)
    assert list(printed) == ["onnx", "torchscript"]
    assert printed["torchscript"]["kind"] == "export"


def test_without_json_each_format_has_a_line(received: list[RunConfig]) -> None:
    result = call("export", "-m", "m", "--format", "onnx", "--format", "torchscript")
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize("command", ["select", "export", "run"])
def test_quiet_prints_nothing(command: str, received: list[RunConfig]) -> None:
    assert call(command, "-m", "m", "-q").output == ""
    assert len(received) == 1


@pytest.mark.parametrize("flags", [("-q", "--json"), ("--json", "--quiet")])
@pytest.mark.parametrize("command", ["select", "export", "run"])
def test_quiet_keeps_progress_away_and_not_the_json_that_was_asked_for(
    command: str, flags: tuple[str, ...], received: list[RunConfig]
) -> None:
    result = call(command, "-m", "m", *flags)
    assert result.stdout == call(command, "-m", "m", "--json").stdout
    assert json.loads(result.stdout)["kind"]
    assert result.stderr == ""


def test_a_search_prints_its_steps(received: list[RunConfig]) -> None:
    lines = call("select", "-m", "m").stdout.splitlines()
    assert lines[0] == "baseline: accuracy 0.72"
    assert lines[-1] == "Drop: 4, 7 (pick best)"


def test_a_run_prints_its_verdict_and_where_the_report_is(received: list[RunConfig]) -> None:
    lines = call("run", "-m", "m", "-o", "there").stdout.splitlines()
    assert lines[0] == reports.report().verdict
    assert lines[-1] == f"Report: {Path('there/report.html').resolve()}"


def test_a_real_search_prints_one_json_object_and_what_it_is_at_beside_it(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    paths = sample_files("polynomial")
    files = ["--id", paths["id"], "--target", paths["target"]]
    result = call("select", "-m", tiny("polynomial"), *files, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (tmp_path / "out" / "selection.json").read_text(encoding="utf-8")
    beginnings = [re.match(r"\[\d+:\d\d\] (\w+) ", line) for line in result.stderr.splitlines()]
    assert [found and found.group(1) for found in beginnings] == ["Loading", "Selecting", "Search"]


def test_list_names_every_entry_of_every_table() -> None:
    from tapioca_export.benchmarking import RUNTIMES
    from tapioca_export.engines import ENGINES
    from tapioca_export.exporting import FORMATS
    from tapioca_export.selection import CRITERIA, SEARCHES
    from tapioca_export.tasks import TASKS

    lines = [line.split(maxsplit=1) for line in call("list").stdout.splitlines() if line[0] == " "]
    assert [line[0] for line in lines] == [*CRITERIA, *SEARCHES, *TASKS, *FORMATS, *RUNTIMES, *ENGINES]
    assert all(len(line) == 2 for line in lines), "an entry has no help"


@pytest.mark.parametrize("columns", [None, 80])
def test_list_stands_in_two_columns_however_long_a_name_is(
    columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_terminal_width", lambda: columns)
    lines = [line for line in call("list").stdout.splitlines() if line[0] == " "]
    names = [line.split(maxsplit=1)[0] for line in lines if line[2] != " "]
    start = 4 + max(map(len, names))
    for line in lines:
        assert line[start - 2 : start] == "  "
        assert line[start] != " "
        assert len(line) <= (columns or 1000)
    assert (len(lines) > len(names)) is (columns is not None)
    assert "zero-shot-image-classification" in names


def test_doctor_names_versions_and_providers() -> None:
    result = call("doctor")
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    assert "CPUExecutionProvider" in result.stdout


# --- the gate -------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder with a hand-made report: target gain at least 0.024, speed-up at least 1.14."""
    artifacts.write(tmp_path / "report.json", reports.report())
    return tmp_path


@pytest.mark.parametrize(("least", "code"), [("1.1", 0), ("1.2", 3)])
def test_check_returns_3_where_a_threshold_is_missed(least: str, code: int, run_folder: Path) -> None:
    result = call("check", run_folder, "--min-speedup", least)
    assert result.exit_code == code
    assert "min_speedup" in result.stdout
    assert result.stderr == ""


def test_check_writes_junit_too(run_folder: Path) -> None:
    result = call("check", run_folder, "--min-speedup", "1.2", "--junit", run_folder / "junit.xml")
    assert result.exit_code == 3
    assert "<failure" in (run_folder / "junit.xml").read_text(encoding="utf-8")


def test_report_renders_a_run_folder_again(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tapioca_export, "report", lambda folder: reports.report())
    printed: Any = json.loads(call("report", run_folder, "--json").stdout)
    assert printed["kind"] == "report"
    assert call("report", run_folder).stdout.startswith(reports.report().verdict)


def test_a_setting_in_both_spellings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text("max-drop-layers = 2\nmax_drop_layers = 3\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["run", "-c", str(tmp_path / "both.toml"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "both.toml sets max_drop_layers twice" in result.stderr
