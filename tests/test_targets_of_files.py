"""Files for a version of ONNX Runtime, and what is said of GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from test_exporting import load_with_rows

from tapioca_export.artifacts import Export, read
from tapioca_export.benchmarking import missing_for_gpu
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError
from tapioca_export.exporting import Dialect, ExportSettings, dialect_for, export_model
from tapioca_export.exporting.targets import NEWEST_READ, USUAL_OPSET, refuse_opset_beside

ROOT = Path(__file__).parent.parent
Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


def test_the_table_is_what_the_versions_were_measured_to_read() -> None:
    rows = json.loads((ROOT / "benchmarks/ort_versions.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) > 10
    seen = set()
    for row in rows:
        version = tuple(map(int, row["onnxruntime"].split(".")[:2]))
        first = max(known for known in NEWEST_READ if known <= version)
        assert NEWEST_READ[first] == Dialect(row["opset"], row["ir_version"]), row
        seen.add(first)
    assert seen == set(NEWEST_READ)


def test_no_newer_opset_is_written_than_is_of_use() -> None:
    assert dialect_for("1.16") == Dialect(19, 9)
    assert dialect_for("1.17.3") == Dialect(20, 9)
    assert dialect_for("1.24") == Dialect(USUAL_OPSET, 13)
    assert dialect_for("2.0") == dialect_for("1.99") == dialect_for("1.32")


@pytest.mark.parametrize("version", ["1.15", "0.9", "1", "new", "1.17-rc", ""])
def test_what_is_no_known_version_is_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a version of ONNX Runtime from 1\.16 on"):
        dialect_for(version)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_file_is_written_as_its_runtime_reads_it(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    """Opset 19 and IR 9, of a network whose file would else have newer ones; proven all the same."""
    out, rows = tmp_path / "out", sample_files("bert")["id"]
    result = invoke("export", "-m", tiny("bert"), "--id", rows, "-o", out, "--target-ort", "1.16")
    assert result.exit_code == 0, result.output
    model = onnx.load(out / "model.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (19, 9)
    assert read(out / "export.json", Export).opset == 19
    assert read(out / "export.json", Export).max_abs_difference < 1e-4
    usual = tmp_path / "usual"
    usual.mkdir()
    network, samples = load_with_rows(tiny, sample_files, "bert")
    assert export_model(network, samples, usual, ExportSettings()).opset == USUAL_OPSET
    assert onnx.load(usual / "model.onnx").ir_version > 9


# What is given beside --target-ort 1.17 -> the error and the hint.
BESIDE: dict[tuple[Any, ...], tuple[str, str]] = {
    ("--opset", 19): (
        "--target-ort 1.17 chooses the opset itself, 20, and --opset asks for 19.",
        "Leave out --opset to write opset 20, or --target-ort to write opset 19.",
    ),
    ("--opset", 20): (
        "--target-ort 1.17 chooses the opset itself, 20, and --opset asks for 20.",
        "Leave out --opset to write opset 20, or --target-ort to write opset 20.",
    ),
    ("--opset", 22): (
        "--opset 22 is newer than what --target-ort 1.17 reads, opset 20.",
        "Leave out --opset to write opset 20, or --target-ort to write opset 22, which ONNX Runtime "
        "reads from 1.21 on.",
    ),
    ("--opset", 99): (
        "--opset 99 is newer than what --target-ort 1.17 reads, opset 20.",
        "Leave out --opset to write opset 20, or --target-ort to write opset 99.",
    ),
    ("--format", "pt2", "--format", "torchscript"): (
        "--target-ort is for ONNX files, and --format is pt2, torchscript.",
        "Leave out --target-ort, or add --format onnx.",
    ),
}


@pytest.mark.parametrize("more", BESIDE, ids=str)
def test_a_target_that_has_no_say_is_refused(
    more: tuple[Any, ...], sample_files: Files, tmp_path: Path
) -> None:
    rows = sample_files("bert")["id"]
    result = invoke("export", "-m", "m", "--id", rows, "-o", tmp_path / "o", "--target-ort", "1.17", *more)
    assert result.exit_code == 1
    message, hint = BESIDE[more]
    assert result.stderr.splitlines() == [f"Error: {message}", f"Hint: {hint}"]


def test_an_opset_that_a_runtime_reads_but_does_not_get_is_not_called_too_new() -> None:
    with pytest.raises(ConfigError, match=r"1\.32 chooses the opset itself, 20, and --opset asks for 28"):
        refuse_opset_beside("1.32", 28)
    refuse_opset_beside("1.32", None)


# --- GPUs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wheels", [{"onnxruntime"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_what_is_missing_for_a_gpu_is_named_with_the_wheel(
    wheels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package not in wheels:
            raise metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(metadata, "version", version)
    said = missing_for_gpu()
    assert said is not None
    assert said.startswith("CUDAExecutionProvider is missing: ")
    assert ("both installed" in said) == (len(wheels) == 2)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'" in said


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_build_that_does_not_start_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    said = missing_for_gpu()
    assert said is not None
    assert "does not start: CUDAExecutionProvider was asked for" in said
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: both)
    assert missing_for_gpu() is None
