"""Files made to do harm: each is answered by one line, before anything outside their folder is read."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pytest
import reports
from click.testing import CliRunner, Result
from conftest import complaint, save_model, text_records, write_jsonl
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import pre_norm
from pyarrow import parquet
from reports import export as export_record

from tapioca_export.artifacts import Export, read, sha256, write
from tapioca_export.artifacts.journal import _whole_lines
from tapioca_export.cli import main
from tapioca_export.errors import LoadError, UnsupportedModelError
from tapioca_export.exporting.formats import Written
from tapioca_export.exporting.onnx import open_onnx
from tapioca_export.external import read_proto
from tapioca_export.graphs.files import copy_graph, weight_paths
from tapioca_export.locating import Places
from tapioca_export.models import loading, sizes
from tapioca_export.samples import files as sample_readers
from tapioca_export.tasks.labels import label_id, listed

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
    said = complaint(result)
    assert said[0].startswith("Error: ")
    assert len(said) <= 2, result.stderr
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
    with pytest.raises(LoadError, match=r"which is not there|beyond the end"):
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


def test_a_graph_that_does_not_know_its_tokenizers_tokens_is_refused(
    graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(lambda model, folder: None)  # embeds 10 tokens; the tokenizer beside it has 96
    for name in ("profile", "select", "run"):
        refused(call(*readers(file)[name]), "does not compute", "indices")


def test_a_record_that_names_a_graph_elsewhere_is_refused(
    graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(lambda model, folder: None)
    shutil.copyfile(file, file.parent.parent / "other.onnx")
    record = file.with_name("export.json")
    record.write_text(record.read_text(encoding="utf-8").replace("model.onnx", "../other.onnx"))
    refused(call(*readers(file)["benchmark"]), "export.json", "'../other.onnx' is outside its own folder")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("graph", "LICENSE"), ("checkpoint", "LICENSE"), ("checkpoint", "chat_template.jinja")],
)
def test_what_stands_beside_a_model_is_no_way_to_copy_files_from_elsewhere(
    kind: str, name: str, graph: Callable[..., Path], call: Callable[..., Result], tmp_path: Path
) -> None:
    file = graph(lambda model, folder: None)
    if kind == "checkpoint":
        save_model(file.parent, "gpt2")
    (file.parent / name).symlink_to(tmp_path / OUTSIDE)
    named = [file] if kind == "graph" else ["-m", file.parent]
    file.with_name("export.json").unlink()
    refused(call("prune", *named, "--drop", "1", "-o", "out"), f"{name} is a link", "outside its own folder")


@pytest.mark.parametrize("name", [f"../{OUTSIDE}", "gone.bin", "/dev/zero"])
def test_a_file_that_is_named_by_a_weight_with_values_of_its_own_is_left_alone(
    name: str, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    def named(model: onnx.ModelProto, folder: Path) -> None:
        entry = model.graph.initializer[0].external_data.add()
        entry.key, entry.value = "location", name

    file = graph(named)
    assert weight_paths(file) == []
    assert call(*readers(file)["prune"]).exit_code == 0
    copied = file.parent.parent / "copied" / "deep"
    copied.mkdir(parents=True)
    copy_graph(file, copied)
    assert not (copied.parent / OUTSIDE).exists()


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


# --- safetensors ----------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Change the header of a safetensors file."""

    def changed(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        change(found)
        text = json.dumps(found).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return changed


def length(value: int) -> Callable[[bytes], bytes]:
    return lambda content: struct.pack("<Q", value) + content[8:]


def first(header: dict[str, Any], place: int = 0) -> dict[str, Any]:
    """Return what a header says of one tensor."""
    return header[[name for name in header if name != "__metadata__"][place]]


LYING: dict[str, Callable[[bytes], bytes]] = {
    "overlap": header(lambda h: first(h).update(data_offsets=first(h, 1)["data_offsets"])),
    "out of range": header(lambda h: first(h).update(data_offsets=[10**12, 10**12 + 4])),
    "backwards": header(lambda h: first(h).update(data_offsets=first(h)["data_offsets"][::-1])),
    "negative": header(lambda h: first(h).update(data_offsets=[-4, 4])),
    "petabytes": header(lambda h: first(h).update(shape=[10**9, 10**9])),
    "another type": header(lambda h: first(h).update(dtype="PICKLE")),
    "a list": lambda content: struct.pack("<Q", 2) + b"[]",
    "cut off": lambda content: content[:-100],
    "longer": lambda content: content + b"0" * 8,
    "no header": length(0),
    "header of gigabytes": length(1 << 31),
    "header of exabytes": length((1 << 64) - 1),
    "seven bytes": lambda content: content[:7],
}


@pytest.fixture
def checkpoint(
    tmp_path: Path, tiny: Callable[[str], Path], call: Callable[..., Result]
) -> tuple[Path, dict[str, list[object]]]:
    """Copy a tiny checkpoint, to be spoilt; with the command lines that read it."""
    folder = Path(shutil.copytree(tiny("bert"), tmp_path / "model"))
    for seed, name in enumerate(("id", "target")):
        write_jsonl(tmp_path / f"{name}.jsonl", text_records(40, seed))
    rows = ["--id", "id.jsonl", "--target", "target.jsonl", "-o", "out"]
    return folder, {
        "select": ["select", "-m", folder, *rows],
        "export": ["export", "-m", folder, "--id", "id.jsonl", "-o", "out"],
        "prune": ["prune", "-m", folder, "--drop", "1", "-o", "out"],
        "prune --proof weights": ["prune", "-m", folder, "--drop", "1", "--proof", "weights", "-o", "out"],
    }


Checkpoint = tuple[Path, dict[str, list[object]]]


@pytest.mark.parametrize("case", LYING)
def test_weights_whose_header_lies_are_refused(
    case: str, checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    folder, commands = checkpoint
    file = folder / "model.safetensors"
    file.write_bytes(LYING[case](file.read_bytes()))
    for arguments in commands.values():
        refused(call(*arguments), "model.safetensors is no whole safetensors file")


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/other.safetensors", "C:\\other.safetensors", "a.bin"]
)
def test_an_index_that_names_weights_elsewhere_is_refused(
    name: str, checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    folder, commands = checkpoint
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "a.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for arguments in commands.values():
        refused(call(*arguments), "no safetensors file in its folder")


# --- config.json ----------------------------------------------------------------------------

ABSURD: dict[str, tuple[dict[str, object], str]] = {
    "wide": ({"hidden_size": 10**9}, "hidden_size 1,000,000,000, but its largest tensor has 4,096 values"),
    "deep": ({"num_hidden_layers": 10**7}, "num_hidden_layers 10,000,000, but its weights are 73 tensors"),
    "inner": ({"intermediate_size": 5000}, "intermediate_size 5,000"),
    "words": ({"vocab_size": 10**11}, "vocab_size 100,000,000,000"),
    "labels": ({"num_labels": 2_000_000}, "num_labels 2,000,000"),
    "inside": ({"text_config": {"num_layers": 10**7}}, "num_layers 10,000,000"),
    "positions": ({"max_position_embeddings": 10**13}, "max_position_embeddings a number of 44 bits"),
    "beyond": ({"hidden_size": 10**400}, "hidden_size a number of 1329 bits"),
    "less than none": ({"hidden_size": -32}, "negative dimension"),
    "nothing": ({"hidden_size": 0}, ""),
    "text": ({"hidden_size": "32"}, "hidden_size"),
    "a function": ({"hidden_act": "os.system"}, "os.system"),
}


@pytest.mark.parametrize("case", ABSURD)
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of empty tensors
def test_a_config_of_absurd_sizes_is_refused_before_memory_is_taken(
    case: str, checkpoint: Checkpoint, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commands = checkpoint
    values, words = ABSURD[case]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    if "," in words or "bits" in words:
        monkeypatch.setattr(loading, "auto_class", lambda task: pytest.fail("a network was built"))
    for arguments in commands.values():
        refused(call(*arguments), words)


def test_a_config_nested_too_deeply_is_refused(checkpoint: Checkpoint, call: Callable[..., Result]) -> None:
    folder, commands = checkpoint
    (folder / "config.json").write_text('{"a":' * 100_000)
    for arguments in commands.values():
        refused(call(*arguments), "Cannot load the config", "recursion")


def test_bounds_are_of_the_largest_tensor_and_of_the_number_of_tensors(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint
    weights = loading.read_weights(folder, local_files_only=True)
    fit = {"hidden_size": 4096, "n_layer": 100, "seed": 10**9, "vocab_size": 1 << 20}
    sizes.refuse_sizes(fit, weights, folder)
    for raw in ({"hidden_size": 4097}, {"n_layer": 101}, {"vocab_size": (1 << 20) + 1}):
        with pytest.raises(LoadError):
            sizes.refuse_sizes(raw, weights, folder)
    sizes.refuse_numbers(
        {"num_labels": 1_000_000, "x": [2**40], "max_seq_length": 10**30, "seed": 2**63}, folder
    )
    for raw in ({"num_labels": 1_000_001}, {"x": [{"y": -(2**40) - 1}]}):
        with pytest.raises(LoadError):
            sizes.refuse_numbers(raw, folder)


def test_a_model_that_loads_and_does_not_compute_is_refused(
    checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    folder, commands = checkpoint
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "chunk_size_feed_forward": 1021}))
    for name in ("select", "prune"):
        refused(call(*commands[name]), "does not compute", "1021")
    refused(call(*commands["export"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", 4), ("architectures", [["BertModel"]]), ("id2label", ["a"]), ("pad_token_id", "0"),
        ("eos_token_id", [None]), ("vocab_size", 1.5), ("max_position_embeddings", []),
    ],
)  # fmt: skip
def test_a_config_whose_values_are_of_other_types_is_refused(
    name: str, value: object, checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    folder, commands = checkpoint
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    for arguments in commands.values():
        refused(call(*arguments), "config")


# --- tokenizer files ------------------------------------------------------------------------

TOKENIZERS: dict[str, tuple[str, str]] = {
    "deep": ("tokenizer.json", '{"a":' * 100_000),
    "deep settings": ("tokenizer_config.json", '{"a":' * 100_000),
    "a number": ("tokenizer.json", "1"),
    "no tokens": ("tokenizer_config.json", '{"model_max_length": -5}'),
    "text for a number": ("tokenizer_config.json", '{"model_max_length": "64"}'),
    "no tokens at all": ("tokenizer_config.json", '{"model_max_length": NaN}'),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_spoilt_tokenizer_is_refused(
    case: str, checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    folder, commands = checkpoint
    name, content = TOKENIZERS[case]
    (folder / name).write_text(content, encoding="utf-8")
    for arguments in commands.values():
        refused(call(*arguments), "okenizer")


# --- sample files ---------------------------------------------------------------------------

GOOD = "".join(json.dumps(row) + "\n" for row in text_records(40, 0)).encode()


def line(text: str) -> bytes:
    return json.dumps({"text": text, "label": "positive"}).encode() + b"\n"


ROWS: dict[str, tuple[bytes, str]] = {
    "nul.jsonl": (GOOD + b"\0\n", "nul.jsonl, line 41 is not valid JSON"),
    "nul inside.jsonl": (GOOD + line("w1").replace(b"w1", b"w\0"), "line 41 is not valid JSON"),
    "second mark.jsonl": (GOOD + b"\xef\xbb\xbf" + line("w1"), "line 41 is not valid JSON"),
    "deep.jsonl": (GOOD + b'{"text":' + b"[" * 10**6, "line 41 is not valid JSON"),
    "long.jsonl": (GOOD + line("w" * (1 << 15)), "long.jsonl, line 41 is longer than"),
    "packed.jsonl": (gzip.compress(GOOD), "packed.jsonl is compressed with gzip"),
    "packed.csv": (gzip.compress(GOOD), "packed.csv is not UTF-8"),
    "packed.parquet": (gzip.compress(GOOD), "cannot be read as Parquet"),
    "packed.jsonl.gz": (gzip.compress(GOOD), "unknown ending '.gz'"),
    "infinite.jsonl": (GOOD + b'{"text": "w1", "label": 1e999}', "label inf is unknown"),
    "number.jsonl": (GOOD + b'{"text": "w1", "label": "' + b"9" * 5000 + b'"}', "9..."),
}
PARQUET: dict[str, Any] = {
    "whole numbers": [1] * 40,
    "times": [datetime.datetime(2026, 1, 1)] * 40,
    "bytes": [b"\xff"] * 40,
    "lists": [["w1"]] * 40,
    "records": [{"a": 1}] * 40,
    "maps": pyarrow.array([[("a", 1)]] * 40, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "nothing": [None] * 40,
    "year 31 million": pyarrow.array([10**15] * 40, pyarrow.timestamp("s")),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_sample_file_that_is_made_to_break_its_reader_is_refused(
    name: str, checkpoint: Checkpoint, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = ROWS[name]
    monkeypatch.setattr(sample_readers, "LONGEST_LINE", 1 << 15)
    if name == "deep.jsonl":
        monkeypatch.setattr(sample_readers, "LONGEST_LINE", 1 << 24)
    Path("id.jsonl").unlink()
    Path(name).write_bytes(content)
    _, commands = checkpoint
    result = call(*[name if argument == "id.jsonl" else argument for argument in commands["select"]])
    refused(result, words)
    assert len(result.stderr) < 1000


@pytest.mark.parametrize("kind", PARQUET)
def test_a_table_of_odd_types_is_refused(
    kind: str, checkpoint: Checkpoint, call: Callable[..., Result]
) -> None:
    table = pyarrow.table({"text": PARQUET[kind], "label": ["positive"] * 40})
    parquet.write_table(table, "odd.parquet")
    _, commands = checkpoint
    arguments = ["odd.parquet" if argument == "id.jsonl" else argument for argument in commands["select"]]
    refused(call(*arguments), "odd.parquet")


@pytest.mark.slow
def test_a_line_of_100_megabytes_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    with file.open("wb") as stream:
        stream.write(GOOD + b'{"text": "')
        stream.writelines([b"w1 " * (1 << 20)] * 33)
    with pytest.raises(LoadError, match="line 41 is longer than 16 MiB"):
        list(sample_readers.read_records(file))


def test_a_line_may_be_as_long_as_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line("w" * size) for size in (100, 101)]
    monkeypatch.setattr(sample_readers, "LONGEST_LINE", len(rows[0]))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(rows[0] * 3)
    assert len(list(sample_readers.read_records(file))) == 3
    file.write_bytes(rows[1])
    with pytest.raises(LoadError, match="line 1 is longer"):
        list(sample_readers.read_records(file))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line("w1"))
    assert [record["text"] for record, _ in sample_readers.read_records(file)] == ["w1"]


def test_a_label_of_thousands_of_digits_is_a_name() -> None:
    names = {0: "9" * 5000, 1: "1"}
    assert label_id("9" * 5000, "row 1", names) == 0
    assert label_id("1", "row 1", names) == 1


def test_a_key_of_yaml_that_is_given_twice_is_refused(checkpoint: Any, call: Callable[..., Result]) -> None:
    _, commands = checkpoint
    Path("twice.yaml").write_text("epsilon: 0.1\nseed: 1\nepsilon: 0.2\n")
    refused(call(*commands["select"], "-c", "twice.yaml"), "twice.yaml", "'epsilon' is given twice")


# --- JSON, TOML and YAML nested too deeply ----------------------------------------------------

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["epsilon: " + DEEP, "epsilon = " + DEEP], ids=["yaml", "toml"])
def test_a_configuration_file_nested_too_deeply_is_refused(text: str, call: Callable[..., Result]) -> None:
    name = "config.yaml" if ":" in text else "config.toml"
    Path(name).write_text(text)
    refused(call("select", "-m", "x", "--config", name), f"{name} is malformed")


@pytest.mark.parametrize("name", ["export.json", "genai_config.json"])
def test_what_stands_beside_a_graph_may_be_nested_too_deeply(
    name: str, graph: Callable[..., Path], call: Callable[..., Result]
) -> None:
    file = graph(lambda model, folder: None)
    file.with_name("export.json").unlink()
    file.with_name(name).write_text(DEEP)
    for command in ("prune", "select") if name == "genai_config.json" else ("prune", "benchmark"):
        refused(call(*readers(file)[command]), name)


def test_lists_of_labels_and_lines_of_journals_may_be_nested_too_deeply(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"row 1: .* is not a list in JSON") as caught:
        listed(DEEP, "row 1")
    assert len(str(caught.value)) < 400
    journal = tmp_path / "search.jsonl"
    journal.write_text('{"a": 1}\n' + DEEP + "\n")
    assert _whole_lines(journal)[0] == [{"a": 1}]


def test_an_index_nested_too_deeply_is_refused(checkpoint: Checkpoint, call: Callable[..., Result]) -> None:
    folder, commands = checkpoint
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(DEEP)
    refused(call(*commands["select"]), "model.safetensors.index.json is no index")


# --- artifacts ----------------------------------------------------------------------------------


def shortened(folder: Path, name: str, *place: str | int) -> None:
    """Take the last entry of a list in an artifact away."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    found = content
    for key in place:
        found = found[key]
    found.pop()
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """Write a run folder."""
    made = reports.report()
    for name in ("selection", "profile", "benchmark"):
        write(tmp_path / "run" / f"{name}.json", getattr(made, name))
    write(tmp_path / "run" / "report.json", made)
    write(tmp_path / "run" / "run.json", made.run)
    return tmp_path / "run"


@pytest.mark.parametrize("place", [("id", "distances"), ("id", "norms"), ("deviation", "norms")])
def test_artifacts_that_do_not_fit_together_are_not_rendered(
    place: tuple[str, ...], rendered: Path, call: Callable[..., Result]
) -> None:
    assert call("report", rendered).exit_code == 0
    before = (rendered / "report.html").read_bytes()
    shortened(rendered, "profile.json", *place)
    refused(call("report", rendered), f"The numbers in {rendered} do not fit together")
    assert (rendered / "report.html").read_bytes() == before


def test_a_report_whose_numbers_do_not_fit_together_is_not_judged(
    rendered: Path, call: Callable[..., Result]
) -> None:
    content = json.loads((rendered / "report.json").read_text(encoding="utf-8"))
    content["benchmark"]["latency"][0]["speedup"]["interval"] = [0.0, 0.0]
    (rendered / "report.json").write_text(json.dumps(content))
    arguments = ["check", rendered, "--baseline", rendered, "--junit", "junit.xml"]
    refused(call(*arguments), "do not fit together")
    assert not Path("junit.xml").exists()


# --- records --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_record_that_names_what_has_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    endless = Path("/dev/zero") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(endless)
    places = Places(tmp_path)
    assert places.find(str(endless), "0" * 64) is None
    assert places.state(str(endless), "0" * 64) == "missing"
