"""A folder is what it was, or `verify` names what is not, and says whether a file or a library changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reports
import safetensors.torch
from click.testing import CliRunner, Result
from conftest import DECODERS, make_decoder, make_tokenizer, text_records, write_jsonl

from tapioca_export import provenance, prover, verify
from tapioca_export.artifacts import Provenance, Run, is_sealed, read, sha256, write, write_sealed
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.exporting import FORMATS
from tapioca_export.provenance import record_added
from tapioca_export.verifying import attest

pytestmark = pytest.mark.xdist_group("end-to-end")

Tiny = Callable[[str], Path]
PROVEN = [
    "original/onnx", "original/pt2", "original/torchscript", "pruned/checkpoint", "pruned/onnx", "pruned/pt2",
    "pruned/torchscript",
]  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@contextmanager
def changed(file: Path, place: int) -> Iterator[None]:
    """One bit of a file is another."""
    before = file.read_bytes()
    content = bytearray(before)
    content[place] ^= 1
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def wrong(folder: Path) -> list[tuple[str, str]]:
    """Return the outputs that are not as recorded, of a folder that is not verified."""
    try:
        found = verify(folder, proofs=False)
    except LoadError as error:  # the record itself is no JSON any more
        name = error.message.split(" is not a ")[0]
        return [(Path(name).relative_to(folder).as_posix(), "changed")]
    files = [(check.path, check.state) for check in found.files if check.role == "output"]
    assert found.passed == all(state == "same" for _, state in files)
    return [file for file in files if file[1] != "same"]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run folder, somewhere else, to write in."""
    return shutil.copytree(finished, tmp_path / "elsewhere")


def test_a_run_folder_is_verified_with_all_its_proofs_wherever_it_lies(copied: Path) -> None:
    found = verify(copied, strict=True, trust_remote_code=True)
    assert found.passed, found.verdict
    assert [(check.folder, check.state) for check in found.proofs] == [(name, "holds") for name in PROVEN]
    assert [check.found for check in found.proofs if check.recorded] == [
        check.recorded for check in found.proofs if check.recorded
    ]
    assert {check.path for check in found.files if check.role == "output"} == {
        path.relative_to(copied).as_posix() for path in files_of(copied)
    }


def test_one_changed_bit_of_any_file_fails_and_names_the_file(copied: Path) -> None:
    for number, file in enumerate(files_of(copied)):
        with changed(file, (file.stat().st_size - 1) * (number % 3) // 2):
            assert wrong(copied) == [(file.relative_to(copied).as_posix(), "changed")]
    assert wrong(copied) == []


@pytest.mark.parametrize("place", ["pruned/onnx", "pruned/checkpoint", "original/pt2"])
def test_a_folder_that_is_handed_on_alone_can_be_verified(finished: Path, tmp_path: Path, place: str) -> None:
    alone = shutil.copytree(finished / place, tmp_path / "alone")
    for file in files_of(alone):
        with changed(file, file.stat().st_size // 2):
            assert wrong(alone) == [(file.relative_to(alone).as_posix(), "changed")]
    assert verify(alone, proofs=False).passed


def test_a_record_is_sealed_to_the_bit(copied: Path) -> None:
    for name in ("run.json", "pruned/onnx/provenance.json"):
        file = copied / name
        digest = json.loads(file.read_text())["sha256"]
        size = file.stat().st_size
        assert is_sealed(file, digest)
        for place in range(0, size, max(1, size // 97)):
            with changed(file, place):
                assert not is_sealed(file, digest) or digest.encode() not in file.read_bytes()


def test_a_record_without_its_seal_is_a_changed_record(copied: Path) -> None:
    fields = json.loads((copied / "run.json").read_text())
    del fields["sha256"]
    (copied / "run.json").write_text(json.dumps(fields))
    assert wrong(copied) == [("run.json", "changed")]


def test_what_is_missing_and_what_was_added_are_told_from_what_changed(copied: Path) -> None:
    (copied / "profile.json").unlink()
    (copied / "pruned/onnx/generation_config.json").write_text("{}")
    with changed(copied / "benchmark.json", 7):
        assert sorted(wrong(copied)) == [
            ("benchmark.json", "changed"),
            ("profile.json", "missing"),
            ("pruned/onnx/generation_config.json", "added"),
        ]
        verdict = verify(copied, proofs=False).verdict
    assert verdict == (
        "Changed since written: benchmark.json.",
        "Missing: profile.json.",
        "Added, named by no record: pruned/onnx/generation_config.json.",
    )


def test_what_nothing_loads_may_lie_beside_the_report(copied: Path) -> None:
    for name in ("junit.xml", ".gitattributes", "pruned/checkpoint/.cache"):
        (copied / name).write_text("x")
    assert wrong(copied) == []


# --- proofs ---------------------------------------------------------------------------------


@pytest.fixture
def other_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime computes something else than it did."""
    format_ = FORMATS["onnx"]

    def opened(*arguments: Any) -> Any:
        run = format_.open(*arguments)
        return lambda inputs: {name: value + 0.01 for name, value in run(inputs).items()}

    monkeypatch.setitem(FORMATS._entries, "onnx", replace(format_, open=opened))


@pytest.fixture
def other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is of another version than it was."""
    here = {**provenance.versions(), "onnxruntime": "99.0"}
    monkeypatch.setattr(provenance, "versions", lambda: here)


@pytest.mark.usefixtures("other_runtime", "other_versions")
def test_a_changed_library_is_told_from_a_changed_file(finished: Path) -> None:
    found = verify(finished / "original/onnx")
    assert not found.passed
    assert found.exit_code == 3
    assert [check.state for check in found.proofs] == ["fails"]
    assert all(check.state == "same" for check in found.files)
    said = " ".join(found.verdict)
    assert "no file of it changed: outputs differ by 0.01 (tolerance 0.0001)" in said
    assert " then, 99.0 here." in said
    assert "Changed since written" not in said


@pytest.mark.usefixtures("other_runtime")
def test_where_no_library_changed_the_machine_is_named(finished: Path) -> None:
    said = verify(finished / "original/onnx").verdict[-1]
    assert said.startswith("The libraries are the same, on ")


@pytest.mark.usefixtures("other_versions")
def test_another_library_that_computes_the_same_passes_and_is_named(finished: Path) -> None:
    found = verify(finished / "original/onnx")
    assert found.passed
    assert list(found.versions) == ["onnxruntime"]
    assert found.verdict[-1].startswith("Libraries are others than then: onnxruntime ")


def test_a_changed_file_is_not_run(copied: Path) -> None:
    with changed(copied / "pruned/onnx/model.onnx", 5000):
        found = verify(copied, trust_remote_code=True)
    states = {check.folder: check.state for check in found.proofs}
    assert states == dict.fromkeys(PROVEN, "holds") | {"pruned/onnx": "not run"}
    assert found.verdict[0] == "Changed since written: pruned/onnx/model.onnx."
    assert not any("Libraries" in line or "libraries" in line for line in found.verdict)


def test_a_checkpoint_that_is_another_under_a_record_that_fits_fails_its_proof(copied: Path) -> None:
    folder = copied / "pruned/checkpoint"
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1e-3
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    record = read(folder / "provenance.json", Provenance)
    outputs = {name: sha256(folder / name) for name in record.outputs}
    write_sealed(folder / "provenance.json", replace(record, outputs=outputs))
    found = verify(folder)
    assert all(check.state == "same" for check in found.files)
    assert [check.state for check in found.proofs] == ["fails"]
    assert "is not the model that was measured" in found.proofs[0].message


def test_a_report_does_not_seal_a_changed_record(copied: Path) -> None:
    record = copied / "run.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1', 1))
    changed = record.read_bytes()
    result = CliRunner().invoke(main, ["report", str(copied)])
    assert (result.exit_code, "is not what was written" in result.output) == (1, True)
    assert record.read_bytes() == changed


def test_the_record_of_another_run_is_left_alone(finished: Path, tmp_path: Path) -> None:
    """An export folder lies two below a run that it is no part of."""
    shutil.copytree(finished / "pruned/onnx", tmp_path / "mine" / "onnx")
    shutil.copy(finished / "run.json", tmp_path / "run.json")
    record = read(tmp_path / "run.json", Run)
    others = {name: digest for name, digest in record.outputs.items() if not name.startswith("pruned")}
    write_sealed(tmp_path / "run.json", replace(record, outputs=others))
    before = (tmp_path / "run.json").read_bytes()
    session = tmp_path / "mine" / "onnx" / "ort_session.json"
    record_added(session.parent, session.name, session.read_text())
    assert (tmp_path / "run.json").read_bytes() == before
    assert wrong(tmp_path / "mine" / "onnx") == []


def test_a_model_that_does_not_load_is_no_proof_that_fails(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LoadError("The hub is out of reach.")

    monkeypatch.setattr(prover, "load_model", refuse)
    found = verify(copied / "pruned/onnx")
    assert found.passed
    assert [check.state for check in found.proofs] == ["not run"]
    assert "None of 1 proofs could be made again." in found.verdict
    assert "The hub is out of reach" in found.proofs[0].message
    assert not verify(copied / "pruned/onnx", strict=True).passed


def test_settings_found_later_are_recorded_and_nothing_else_is(copied: Path) -> None:
    """As `benchmark --tune` does on folders of a run."""
    folder = copied / "pruned/onnx"
    session = folder / "ort_session.json"
    session.write_text(session.read_text().replace("false", "true"))
    assert wrong(copied) == [("pruned/onnx/ort_session.json", "changed")]
    record_added(folder, session.name, session.read_text())
    assert wrong(copied) == wrong(folder) == []
    (folder / "config.json").write_text("{}")
    record_added(folder, session.name, session.read_text())
    assert wrong(copied) == [("pruned/onnx/config.json", "changed")]
    record = folder / "provenance.json"
    record.write_text(record.read_text().replace("export", "expert", 1))
    before = record.read_bytes()
    record_added(folder, session.name, session.read_text())
    assert record.read_bytes() == before


def test_inputs_that_are_not_here_pass_unless_strict(finished: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(finished / "pruned/onnx", tmp_path / "alone")
    found = verify(alone)
    assert found.passed
    assert [check.state for check in found.proofs] == ["not run"]
    assert "../checkpoint" in [check.path for check in found.files if check.state == "missing"]
    assert not verify(alone, strict=True).passed


def test_an_input_that_changed_fails_and_is_named(finished: Path) -> None:
    target = Path(read(finished / "run.json", Run).config["target"])
    with changed(target, 20):
        found = verify(finished)
    assert not found.passed
    assert [check.path for check in found.files if check.state == "changed"] == [str(target)]
    assert {check.state for check in found.proofs} == {"not run"}


def resealed(folder: Path, **changes: Any) -> Path:
    record = read(folder / "provenance.json", Provenance)
    write_sealed(folder / "provenance.json", replace(record, **changes))
    return folder


def test_rows_that_name_other_files_fail(copied: Path) -> None:
    found = verify(resealed(copied / "original/onnx", rows="0" * 32))
    assert [check.state for check in found.proofs] == ["fails"]
    assert "a file that one names changed" in found.proofs[0].message


def test_a_file_that_is_code_is_run_for_those_who_trust_it(finished: Path) -> None:
    folder = finished / "original/torchscript"
    (check,) = verify(folder).proofs
    assert check.state == "not run"
    assert "A torchscript file is code; add --trust-remote-code" in check.message
    assert not verify(folder, strict=True).passed
    assert [check.state for check in verify(folder, trust_remote_code=True).proofs] == ["holds"]


def test_a_record_cannot_ask_for_code_to_be_run(copied: Path) -> None:
    config = read(copied / "original/onnx/provenance.json", Provenance).config
    folder = resealed(copied / "original/onnx", config={**config, "trust_remote_code": True})
    assert [check.state for check in verify(folder).proofs] == ["not run"]
    assert [check.state for check in verify(folder, trust_remote_code=True).proofs] == ["holds"]


def test_a_source_whose_weights_are_not_read_is_known_by_its_tensors(tiny: Tiny, tmp_path: Path) -> None:
    source = shutil.copytree(tiny("bert"), tmp_path / "model")
    made = invoke("prune", "-m", source, "--drop", "1", "--proof", "weights", "-o", tmp_path / "out")
    assert made.exit_code == 0, made.output
    (digest,) = read(tmp_path / "out/provenance.json", Provenance).inputs.values()
    assert digest.startswith("headers:")
    weights = source / "model.safetensors"
    for file, place, passes in (
        (weights, -1, True),
        (weights, 40, False),
        (source / "config.json", 9, False),
    ):
        with changed(file, place):
            assert verify(tmp_path / "out", proofs=False).passed is passes
    with weights.open("ab") as file:
        file.write(b"\0")
    assert not verify(tmp_path / "out", proofs=False).passed


@pytest.mark.parametrize(("proof", "state"), [("logits", "holds"), ("weights", "not run")])
def test_a_pruned_checkpoint_can_be_verified(tiny: Tiny, tmp_path: Path, proof: str, state: str) -> None:
    made = invoke("prune", "-m", tiny("bert"), "--drop", "1", "--proof", proof, "-o", tmp_path / "out")
    assert made.exit_code == 0, made.output
    found = verify(tmp_path / "out")
    assert found.passed
    assert [check.state for check in found.proofs] == [state]
    with changed(tmp_path / "out/model.safetensors", -1):
        assert wrong(tmp_path / "out") == [("model.safetensors", "changed")]


def test_a_graph_that_was_cut_is_verified_by_its_hashes(finished: Path, tmp_path: Path) -> None:
    made = invoke("prune", finished / "original/onnx/model.onnx", "--drop", "1", "-o", tmp_path / "cut")
    assert made.exit_code == 0, made.output
    found = verify(tmp_path / "cut")
    assert found.passed
    assert [check.state for check in found.proofs] == ["not run"]
    assert "cut out of a graph" in found.proofs[0].message
    with changed(tmp_path / "cut/model.onnx", 1000):
        assert wrong(tmp_path / "cut") == [("model.onnx", "changed")]


@pytest.mark.slow
def test_a_decoder_in_two_formats_is_proven_again_token_by_token(tmp_path: Path) -> None:
    assert "gpt2" in DECODERS
    make_decoder("gpt2").save_pretrained(tmp_path / "model")
    make_tokenizer("gpt2").save_pretrained(tmp_path / "model")
    rows = [{"prompt": row["text"], "answer": row["label"]} for row in text_records(12, 1)]
    target = write_jsonl(tmp_path / "target.jsonl", rows)
    formats = ["--format", "onnx", "--format", "torchscript"]
    made = invoke("export", "-m", tmp_path / "model", "--target", target, *formats, "-o", tmp_path / "out")
    assert made.exit_code == 0, made.output
    found = verify(tmp_path / "out", strict=True, trust_remote_code=True)
    assert found.passed, found.verdict
    assert [(check.folder, check.state) for check in found.proofs] == [
        ("onnx", "holds"), ("torchscript", "holds"),
    ]  # fmt: skip


def test_a_model_on_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "c" * 40
    snapshot = tmp_path / "models--org--name/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name/refs").mkdir()
    (tmp_path / "models--org--name/refs/main").write_text(commit)
    assert provenance.hash_model("org/name") == f"hub:org/name@{commit}"
    assert provenance.hash_model("org/other") == "hub:org/other"


# --- the door -------------------------------------------------------------------------------


def test_exit_codes_are_those_of_check(copied: Path, tmp_path: Path) -> None:
    assert invoke("verify", copied, "--hashes-only").exit_code == 0
    with changed(copied / "report.md", 0):
        result = invoke("verify", copied, "--hashes-only")
    assert result.exit_code == 3
    assert "report.md" in result.stdout
    result = invoke("verify", tmp_path)
    assert result.exit_code == 1
    assert "has no run.json" in result.stderr


def test_json_has_every_file_and_its_state(copied: Path) -> None:
    printed = json.loads(invoke("verify", copied, "--hashes-only", "--json").stdout)
    assert (printed["kind"], printed["passed"]) == ("verification", True)
    assert {"path": "run.json", "role": "output", "state": "same"} in printed["files"]


def test_a_report_that_is_rendered_again_with_what_was_added_is_verified(copied: Path) -> None:
    write(copied / "intervention.json", reports.intervention())
    assert invoke("report", copied, "-q").exit_code == 0
    assert wrong(copied) == []
    with changed(copied / "intervention.json", 9):
        assert wrong(copied) == [("intervention.json", "changed")]


def test_comparing_hashes_loads_no_pytorch(copied: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tapioca_export import verify; "
        f"print(verify(Path({str(copied)!r}), proofs=False).passed, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


# --- attestations ---------------------------------------------------------------------------


def test_an_attestation_names_every_file_by_its_hash(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.intoto.json"
    done = invoke("verify", finished, "--hashes-only", "--attestation", file)
    assert done.exit_code == 0, done.output
    said = json.loads(file.read_text(encoding="utf-8"))
    assert (said["_type"], said["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    digests = {subject["name"]: subject["digest"]["sha256"] for subject in said["subject"]}
    files = [path for path in finished.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert digests == {path.relative_to(finished).as_posix(): sha256(path) for path in files}
    made = said["predicate"]["buildDefinition"]
    record = read(finished / "run.json", Run)
    assert made["buildType"] == "urn:tapioca-export:run"
    assert made["externalParameters"]["seed"] == record.config["seed"]
    inputs = {part["name"]: part["digest"]["sha256"] for part in made["resolvedDependencies"]}
    assert inputs == record.inputs
    assert (
        said["predicate"]["runDetails"]["builder"]["version"]["torch"]
        == record.environment["versions"]["torch"]
    )


def test_nothing_is_attested_of_a_folder_that_changed(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.intoto.json"
    with changed(finished / "selection.json", 40):
        assert invoke("verify", finished, "--hashes-only", "--attestation", file).exit_code == 3
    assert not file.exists()
    inside = invoke("verify", finished, "--hashes-only", "--attestation", finished / "a.json")
    assert (inside.exit_code, inside.stderr.count("\n")) == (1, 2)
    assert not (finished / "a.json").exists()


def test_what_is_known_by_no_hash_is_no_subject(tmp_path: Path) -> None:
    environment = {"versions": {"torch": "2"}}
    inputs = {"model": "headers:ab", "hub": "hub:x@1", "id.jsonl": "cd"}
    record = Provenance(
        "prune", "model", {"drop": [1]}, environment, inputs, {"a.bin": "ef", "big": "size:9"}
    )
    write_sealed(tmp_path / "provenance.json", record)
    said = json.loads(attest(tmp_path))
    assert [subject["name"] for subject in said["subject"]] == ["provenance.json", "a.bin"]
    assert said["predicate"]["buildDefinition"]["resolvedDependencies"] == [
        {"name": "hub", "annotations": {"recorded": "hub:x@1"}},
        {"name": "id.jsonl", "digest": {"sha256": "cd"}},
        {"name": "model", "annotations": {"recorded": "headers:ab"}},
    ]
    assert said["predicate"]["buildDefinition"]["buildType"] == "urn:tapioca-export:prune"


def test_an_attestation_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sealed(tmp_path / "provenance.json", Provenance("prune", "m", {}, {}, {}, {"a": "b"}))
    monkeypatch.setitem(sys.modules, "in_toto_attestation.v1.statement", None)
    with pytest.raises(ConfigError, match="in-toto-attestation"):
        attest(tmp_path)
