"""Artifacts survive JSON, and files are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reports import report as make_report

from tapioca_export import artifacts
from tapioca_export.artifacts import Report, Selection, read, staged, write
from tapioca_export.errors import LoadError, OutputError, ParityError


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.mark.parametrize("part", [None, "selection", "profile", "benchmark", "run"])
def test_every_artifact_survives_json(report: Report, part: str | None, tmp_path: Path) -> None:
    artifact = report if part is None else getattr(report, part)
    write(tmp_path / "a.json", artifact)
    assert read(tmp_path / "a.json", type(artifact)) == artifact


def test_kind_and_schema_version_come_first(report: Report) -> None:
    keys = list(json.loads(artifacts.to_json(report.selection)))
    assert keys[:2] == ["kind", "schema_version"]


def test_keys_of_later_versions_are_ignored(report: Report, tmp_path: Path) -> None:
    fields = json.loads(artifacts.to_json(report.selection)) | {"of_tomorrow": 1}
    (tmp_path / "a.json").write_text(json.dumps(fields))
    assert read(tmp_path / "a.json", Selection) == report.selection


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "profile"}', "\x00", '{"kind": "selection"}'])
def test_a_file_that_is_no_selection_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LoadError, match=r"a\.json is not a selection file"):
        read(tmp_path / "a.json", Selection)


def fail_in(output: Path, file: str, error: BaseException, journal: str = "") -> None:
    with staged(output, overwrite=True, keep="j") as folder:
        (folder / file).write_text("x")
        if journal:
            (folder / "j").write_text(journal)
        raise error


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "out", overwrite=False) as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_stage_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "out", "new", ZeroDivisionError())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_journal_is_kept_for_the_same_command_to_resume(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_in(tmp_path / "o", "half-written", KeyboardInterrupt(), journal="header\nscores\n")
    assert not (tmp_path / "o").exists()
    with staged(tmp_path / "o", overwrite=False, keep="j") as folder:
        assert [path.name for path in folder.iterdir() if path.is_file()] == ["j"]


def test_the_evidence_of_a_failed_parity_check_stays(tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        fail_in(tmp_path / "out", "model.onnx.invalid", ParityError("differs"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx.invalid"]


def test_a_failed_parity_check_does_not_replace_a_good_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("good")
    with pytest.raises(ParityError):
        fail_in(tmp_path / "out", "model.onnx.invalid", ParityError("differs"))
    assert (tmp_path / "out" / "model.onnx").read_text() == "good"


def test_an_output_that_holds_something_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(OutputError, match="is not empty"), staged(tmp_path / "out", overwrite=False):
        pass
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_folders_beside_the_output_are_left_alone(tmp_path: Path) -> None:
    for name in ("out", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("x")
    with staged(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "out.old" / "precious").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old"]


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError), staged(tmp_path / "file" / "out", overwrite=False):
        pass
