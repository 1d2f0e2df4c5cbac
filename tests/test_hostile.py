"""Files made to do harm: each is answered by one line, before anything outside their folder is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from conftest import save_model, write_jsonl
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import pre_norm
from reports import export as export_record

from tapioca_export.artifacts import Export, read, sha256, write
from tapioca_export.cli import main
from tapioca_export.errors import LoadError, UnsupportedModelError
from tapioca_export.exporting.formats import Written
from tapioca_export.exporting.onnx import open_onnx
from tapioca_export.external import read_proto

OUTSIDE = "outside.bin"
SECRET = "the content of a file that is nobody's business"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in a folder of its own, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> None:
    """Check that a command ended with one line, and left nothing."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) <= 2, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert SECRET not in result.output
    assert not list(Path().glob("out")) + list(Path().glob(".out*"))


# --- ONNX files -----------------------------------------------------------------------------


def move_out(tensor: TensorProto, name: str, **more: object) -> TensorProto:
    """Say of a tensor that its values are in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": name, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def weight(name: str, **more: object) -> Callable[[onnx.ModelProto, Path], None]:
    """Put a graph's first weight, 10 rows of 8 numbers, into a file."""
    return lambda model, folder: void(move_out(model.graph.initializer[0], name, **more))


def void(_: object) -> None:
    """Return nothing."""


def elsewhere() -> TensorProto:
    return move_out(numpy_helper.from_array(np.zeros(8, np.float32), "c"), f"../{OUTSIDE}", length=32)


def in_a_constant(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=elsewhere()))


def in_a_branch(model: onnx.ModelProto, folder: Path) -> None:
    value = helper.make_tensor_value_info("d", TensorProto.FLOAT, [8])
    branch = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [value], [elsewhere()])
    true = numpy_helper.from_array(np.array(True), "true")
    model.graph.initializer.append(true)
    model.graph.node.append(
        helper.make_node("If", ["true"], ["e"], then_branch=branch, else_branch=branch),
    )


def in_a_function(model: onnx.ModelProto, folder: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=elsewhere())
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("own", "F", [], ["c"], [constant], [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", [], ["f"], domain="own"))


def in_a_sparse_tensor(model: onnx.ModelProto, folder: Path) -> None:
    indices = numpy_helper.from_array(np.arange(8), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(elsewhere(), indices, [80]))


def through_a_link(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "weights.bin").symlink_to(folder.parent / OUTSIDE)
    weight("weights.bin")(model, folder)


def through_a_folder(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "weights").symlink_to(folder.parent)
    weight(f"weights/{OUTSIDE}")(model, folder)


def too_large(model: onnx.ModelProto, folder: Path) -> None:
    weight("short.bin", length=10**15)(model, folder)
    model.graph.initializer[0].dims[:] = [10**9, 250_000]


OUT_OF_THE_FOLDER: dict[str, Callable[[onnx.ModelProto, Path], None]] = {
    "absolute": lambda model, folder: weight(str(folder.parent / OUTSIDE))(model, folder),
    "above": weight(f"../{OUTSIDE}"),
    "above, inside": weight(f"sub/../../{OUTSIDE}"),
    "a drive": weight(f"C:\\{OUTSIDE}"),
    "above, backwards": weight(f"..\\{OUTSIDE}"),
    "link": through_a_link,
    "link of a folder": through_a_folder,
    "constant": in_a_constant,
    "branch": in_a_branch,
    "function": in_a_function,
    "sparse": in_a_sparse_tensor,
}
UNTRUE: dict[str, Callable[[onnx.ModelProto, Path], None]] = {
    "too short": weight("short.bin", length=320),
    "too late": weight("short.bin", length=16, offset=1),
    "before": weight("short.bin", length=8, offset=-4),
    "no number": weight("short.bin", length="all"),
    "petabytes": too_large,
    "no name": weight(""),
    "NUL": weight("short\0.bin"),
    "a folder": weight("sub"),
    "missing": weight("none.bin"),
}


@pytest.fixture
def graph(tmp_path: Path, tiny: Callable[[str], Path]) -> Callable[..., Path]:
    """Write a graph of four layers into a folder with config, tokenizer and `export.json`."""

    def write_graph(change: Callable[[onnx.ModelProto, Path], None], cut: slice = slice(None)) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny("gpt2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        (folder / "sub").mkdir()
        (folder / "short.bin").write_bytes(bytes(16))
        (tmp_path / OUTSIDE).write_bytes(SECRET.encode() * 100)
        for name in ("id", "target"):
            rows = [{"prompt": f"w{n} {name}", "answer": f"w{n % 3}"} for n in range(40)]
            write_jsonl(tmp_path / f"{name}.jsonl", rows)
        model, file = pre_norm().model(), folder / "model.onnx"
        change(model, folder)
        file.write_bytes(model.SerializeToString()[cut])
        record = export_record(files={file.name: sha256(file)}, drop=(), task="text-generation")
        write(folder / "export.json", record)
        return file

    return write_graph


def readers(file: Path) -> dict[str, list[object]]:
    """Return command lines that read an ONNX file."""
    rows = ["--id", "id.jsonl", "--target", "target.jsonl", "-o", "out"]
    model = ["-m", file, "-t", "text-generation", *rows]
    return {
        "prune": ["prune", file, "--drop", "1", "-o", "out"],
        "prune --proof weights": ["prune", file, "--drop", "1", "--proof", "weights", "-o", "out"],
        "profile": ["profile", *model],
        "select": ["select", *model],
        "run": ["run", *model],
        "benchmark": ["benchmark", file.parent, file.parent, *rows],
    }


@pytest.mark.parametrize("case", OUT_OF_THE_FOLDER)
def test_a_graph_with_weights_out_of_its_folder_is_read_by_no_command(
    case: str, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(OUT_OF_THE_FOLDER[case])
    for arguments in readers(file).values():
        refused(call(*arguments), "outside its own folder")
    written = Written("", 18, ("input_ids",), ("logits",), (file.name,))  # as `verify` opens it
    with pytest.raises(UnsupportedModelError, match="outside its own folder"):
        open_onnx(file.parent, written)


@pytest.mark.parametrize("case", UNTRUE)
def test_a_graph_that_lies_about_its_weights_is_refused(
    case: str, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(UNTRUE[case])
    for name in ("prune --proof weights", "select", "benchmark"):
        refused(call(*readers(file)[name]), "model.onnx has", "beyond the end" if "short.bin" in case else "")
    with pytest.raises(LoadError, match="which is not there|beyond the end"):
        read_proto(file)


@pytest.mark.parametrize("end", [0, 1, 50, 1000, -1])
def test_a_graph_that_is_cut_off_is_refused(
    end: int, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(lambda model, folder: None, slice(end))
    for name in ("prune", "select", "benchmark"):
        refused(call(*readers(file)[name]))


def in_a_circle(model: onnx.ModelProto, folder: Path) -> None:
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    adds[0].input[0] = adds[2].output[0]


def of_ones_own(model: onnx.ModelProto, folder: Path) -> None:
    (node, *_) = (node for node in model.graph.node if node.op_type == "Relu")
    node.domain, node.op_type = "com.example", "RunCommand"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def twice(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node.append(model.graph.node[3])


@pytest.mark.parametrize(("change", "words"), [(in_a_circle, ""), (of_ones_own, "com.example"), (twice, "")])
def test_a_graph_that_nothing_can_run_is_refused(
    change: Any, words: str, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(change)
    for name in ("prune", "select", "benchmark"):
        refused(call(*readers(file)[name]), words)


def test_a_record_that_names_a_graph_elsewhere_is_refused(
    graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(lambda model, folder: None)
    shutil.copyfile(file, file.parent.parent / "other.onnx")
    record = file.with_name("export.json")
    record.write_text(record.read_text(encoding="utf-8").replace("model.onnx", "../other.onnx"))
    refused(call(*readers(file)["benchmark"]), "export.json", "'../other.onnx' is outside its own folder")


@pytest.mark.parametrize("kind", ["graph", "checkpoint"])
def test_what_stands_beside_a_model_is_no_way_to_copy_files_from_elsewhere(
    kind: str, graph: Callable[..., Path], call: Callable[..., Result], tmp_path: Path
) -> None:
    file = graph(lambda model, folder: None)
    if kind == "checkpoint":
        save_model(file.parent, "gpt2")
    (file.parent / "LICENSE").symlink_to(tmp_path / OUTSIDE)
    named = [file] if kind == "graph" else ["-m", file.parent]
    file.with_name("export.json").unlink()
    refused(call("prune", *named, "--drop", "1", "-o", "out"), "LICENSE is a link", "outside its own folder")


def test_links_are_followed_as_the_cache_of_the_hub_makes_them(
    graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    """There, every file of a snapshot is a link into one folder of all contents."""
    file = graph(weight("short.bin", length=16))
    (file.parent / "export.json").unlink()
    blobs = file.parent.parent / "blobs"
    shutil.copytree(file.parent, blobs)
    for path in [path for path in file.parent.iterdir() if path.is_file()]:
        path.unlink()
        path.symlink_to(f"../blobs/{path.name}")
    assert call(*readers(file)["prune --proof weights"]).exit_code == 0
    assert Path("out/tokenizer.json").is_file()


def test_records_of_exports_are_still_read(tmp_path: Path) -> None:
    record = export_record(files={"model.onnx": "0" * 64, "weights/part": "0" * 64})
    write(tmp_path / "export.json", record)
    assert read(tmp_path / "export.json", Export) == record
