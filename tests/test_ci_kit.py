"""The action's and the template's steps gate a good and a bad model; the image holds all it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import reports
import yaml
from click.testing import CliRunner

from tapioca_export.artifacts import Pair, write
from tapioca_export.cli import main

pytestmark = pytest.mark.xdist_group("end-to-end")

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SPEC, TEMPLATE = yaml.safe_load_all((ROOT / "templates/check.yml").read_text(encoding="utf-8"))
JOB = TEMPLATE["tapioca-check"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders with hand-made reports: one of a model that gains, one of a model that is worse in all."""
    worse = reports.benchmark(
        accuracy={"target": reports.HARM, "id": reports.HARM},
        latency=(reports.latency(low=0.9),),
        size_bytes=Pair(438e6, 500e6),
    )
    made = {}
    for name, benchmark in (("good", reports.benchmark()), ("bad", worse)):
        made[name] = tmp_path_factory.mktemp(name)
        write(made[name] / "report.json", reports.report(benchmark=benchmark))
    return made


THRESHOLDS = {
    "min-target-gain": "0",
    "max-id-loss": "0.05",
    "min-speedup": "1.1",
    "max-size-ratio": "1",
    "fail-if": "target.difference.low < 0 or size_ratio > 1",
    "baseline": "{good}",
}


@pytest.mark.parametrize("option", THRESHOLDS)
@pytest.mark.parametrize(("which", "code"), [("good", 0), ("bad", 3)])
def test_each_threshold_passes_a_good_model_and_fails_a_bad_one(
    option: str, which: str, code: int, folders: dict[str, Path]
) -> None:
    value = THRESHOLDS[option].format(**folders)
    result = CliRunner().invoke(main, ["check", str(folders[which]), f"--{option}={value}"])
    assert result.exit_code == code, result.output


@pytest.mark.parametrize(("limit", "code"), [("0.2", 0), ("0.01", 3)])
def test_the_limit_on_regression_passes_and_fails(limit: str, code: int, folders: dict[str, Path]) -> None:
    good = str(folders["good"])
    options = ["--baseline", f"{good}/report.json", "--max-regression", limit]
    assert CliRunner().invoke(main, ["check", good, *options]).exit_code == code


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return what a runner gives a step, and what this machine has."""
    names = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")
    program = folder / "bin/tapioca-export"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tapioca_export "$@"\n')
        program.chmod(0o755)
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}",
        **{name: str(folder / name) for name in names}, **more,
    }  # fmt: skip


def act(folder: Path, **inputs: str) -> int:
    """Run the action's steps as a runner does; returns the exit code of the first that fails."""
    given = {name: str(about.get("default", "")) for name, about in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    assert set(given) == set(ACTION["inputs"])

    def filled(text: str) -> str:
        text = text.replace("${{ github.action_path }}", str(ROOT))
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], text)

    for step in ACTION["runs"]["steps"]:
        if condition := step.get("if"):
            name, sign, value = re.fullmatch(r"inputs\.([\w-]+) (==|!=) '(\w+)'", condition).groups()
            if (given[name] == value) != (sign == "=="):
                continue
        assert "${{" not in step["run"], "a value must not become a command"
        env = environment(folder, **{name: filled(text) for name, text in step.get("env", {}).items()})
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(shell, env=env, cwd=folder, timeout=300, check=False)
        if done.returncode:
            return done.returncode
    return 0


@pytest.mark.parametrize(("which", "code"), [("good", 0), ("bad", 3)])
def test_the_action_gates_a_good_and_a_bad_model(
    which: str, code: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = act(
        tmp_path,
        run_folder=str(folders[which]),
        install="false",
        verify="none",
        min_target_gain="0",
        max_id_loss="0.05",
        min_speedup="1.1",
        max_size_ratio="0.9",
        fail_if="target.difference.low < 0\n\n  id.difference.low < -0.05\n",
        baseline=str(folders["good"]),
    )
    assert found == code
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == f"passed={'true' if code == 0 else 'false'}\n"
    summary = (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert f"**Gate {'passed' if code == 0 else 'missed'}**" in summary
    suite = ElementTree.parse(tmp_path / "tapioca-junit.xml").getroot()
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names[:4] == ["min_target_gain", "max_id_loss", "min_speedup", "max_size_ratio"]
    assert "  id.difference.low < -0.05" in names
    assert len(names) == 10
    assert int(suite.get("failures", -1)) == (0 if code == 0 else 10)


def test_the_action_ends_where_a_file_was_tampered_with(finished: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(finished, tmp_path / "run")
    inputs = {"run_folder": str(copied), "install": "false", "max_size_ratio": "2"}
    assert act(tmp_path, **inputs) == 0
    with (copied / "pruned/onnx/model.onnx").open("ab") as file:
        file.write(b"\0")
    (tmp_path / "tapioca-junit.xml").unlink()
    assert act(tmp_path, **inputs) == 3
    assert not (tmp_path / "tapioca-junit.xml").exists()
    assert "|| 'false' }}" in ACTION["outputs"]["passed"]["value"], "no step says so that was not run"
    assert act(tmp_path, **{**inputs, "verify": "hash"}) == 2


def test_the_action_writes_no_junit_file_that_was_not_asked_for(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    inputs = {"run_folder": str(folders["good"]), "install": "false", "verify": "none"}
    assert act(tmp_path, **inputs, min_target_gain="0", junit="") == 0
    assert not list(tmp_path.glob("*.xml"))


@pytest.mark.slow
@pytest.mark.parametrize(("trust", "code"), [("true", 0), ("false", 3)])
def test_action_and_template_make_proofs_again_for_those_who_trust_them(
    trust: str, code: int, finished: Path, tmp_path: Path
) -> None:
    inputs = {"run_folder": str(finished), "max_size_ratio": "2"}
    inputs |= {"verify": "proofs", "trust_remote_code": trust}
    assert act(tmp_path, install="false", **inputs) == code
    assert run_job(tmp_path, **inputs) == code


def test_an_input_of_the_action_cannot_become_a_command(folders: dict[str, Path], tmp_path: Path) -> None:
    hostile = '"; touch pwned; $(touch pwned) `touch pwned` #'
    for name in ("min_speedup", "fail_if", "baseline", "run_folder"):
        inputs = {"run_folder": str(folders["good"]), "min_target_gain": "0", name: hostile}
        assert act(tmp_path, install="false", verify="none", **inputs) in (1, 2)
    assert not (tmp_path / "pwned").exists()


def test_the_action_and_the_template_have_every_threshold() -> None:
    check = {option for p in main.commands["check"].params for option in p.opts if option.startswith("--")}
    files = {"--junit", "--summary", "--metrics"}
    thresholds = check - files - {"--json", "--quiet", "--verbose"}
    assert thresholds == {f"--{name}" for name in (*THRESHOLDS, "max-regression")}
    for inputs in (ACTION["inputs"], SPEC["spec"]["inputs"]):
        assert thresholds <= {f"--{name}" for name in inputs}


def run_job(folder: Path, **inputs: str) -> int:
    """Run the template's script as GitLab's runner does: its lines after one another, in one shell."""
    given = {name: str((about or {}).get("default", "")) for name, about in SPEC["spec"]["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}

    def filled(text: str) -> str:
        return re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: given[found[1]], text)

    env = environment(folder, **{name: filled(text) for name, text in JOB["variables"].items()})
    del env["GITHUB_STEP_SUMMARY"]
    script = "set -e\n" + "\n".join(JOB["script"])
    return subprocess.run(["sh", "-c", script], env=env, cwd=folder, timeout=300, check=False).returncode


@pytest.mark.parametrize(("which", "code"), [("good", 0), ("bad", 3)])
def test_the_template_gates_a_good_and_a_bad_model(
    which: str, code: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = run_job(
        tmp_path,
        run_folder=str(folders[which]),
        verify="none",
        min_target_gain="0",
        fail_if="target.difference.low < 0\nsize_ratio > 1",
        baseline=str(folders["good"]),
    )
    assert found == code
    for kind, name in JOB["artifacts"]["reports"].items():
        assert (tmp_path / name).is_file(), kind
    cases = list(ElementTree.parse(tmp_path / "tapioca-junit.xml").iter("testcase"))
    assert len(cases) == 7
    assert "tapioca_gain{" in (tmp_path / "tapioca-metrics.txt").read_text()


def test_the_template_ends_where_a_file_was_tampered_with(finished: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(finished, tmp_path / "run")
    assert run_job(tmp_path, run_folder=str(copied), max_size_ratio="2") == 0
    (copied / "profile.json").write_text("{}")
    assert run_job(tmp_path, run_folder=str(copied), max_size_ratio="2") == 3


# --- the image ------------------------------------------------------------------------------


def instructions() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_what_the_dockerfile_copies_is_enough_to_install_and_run(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for _, *sources, place in (found for found in instructions() if found[0] == "COPY"):
        for source in sources:
            target = (tree / place / source) if place == "./" else tree / place
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
            copy(ROOT / source, target)
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", tree]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300)
    run = [sys.executable, "-m", "tapioca_export", "--version"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "tapioca-export" in done.stdout
    for file in ("polynomial_weights/model.safetensors", "templates/report.html.j2", "py.typed"):
        assert (tmp_path / "site/tapioca_export" / file).is_file()


def test_the_build_context_holds_what_the_dockerfile_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {name for found in instructions() if found[0] == "COPY" for name in found[1:-1]}
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_the_image_installs_the_locked_versions_and_runs_as_no_root() -> None:
    found: dict[str, Any] = {words[0]: words[1:] for words in instructions()}
    installs = [words for words in instructions() if words[:3] == ["RUN", "pip", "install"]]
    assert [words[3:5] for words in installs] == [["--constraint", "requirements.lock"]]
    assert found["USER"] != ["root"]
    assert found["ENTRYPOINT"] == ['["tapioca-export"]']
