"""torch.export files compute what PyTorch does, need nothing but PyTorch, and are not opened untrusted."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_benchmarking import (
    CLASSIFICATION,
    QUICK,
    TEXT,
    VOCABULARY,
    make_text_export,
    save_export,
    text_samples,
)
from test_exporting import load_with_rows
from test_laws import load_rows
from test_sublayer_exports import SILENT, half_zero
from torch import nn

from tapioca_export.artifacts import Export, read, sha256, write
from tapioca_export.benchmarking import RUNTIMES, benchmark, default_settings, score_exported, time_exports
from tapioca_export.benchmarking.runtimes import ExportFolder
from tapioca_export.benchmarking.sessions import CPU, CUDA
from tapioca_export.cli import main
from tapioca_export.errors import BenchmarkError, ExportError, LoadError
from tapioca_export.exporting import FORMATS, Dialect, ExportSettings, export_model
from tapioca_export.models import LoadOptions, drop_layers, load_model
from tapioca_export.programs import PROGRAMS, open_program

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def llama(
    tiny: Tiny, sample_files: Files, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path, Export]:
    """Return a decoder that lost two of four layers, with its file."""
    folder = tmp_path_factory.mktemp("pt2")
    model, rows = load_with_rows(tiny, sample_files, "llama")
    model = drop_layers(model, (1, 2))
    return model, folder, export_model(model, rows, folder, ExportSettings("pt2"), drop=(1, 2))


def test_a_pruned_file_equals_pytorch_at_other_shapes_and_paddings(llama: tuple[Any, Path, Export]) -> None:
    _, folder, export = llama
    assert export.max_abs_difference <= 1e-6
    assert export.label_agreement == 1.0
    batches, lengths = zip(*export.shapes_checked, strict=True)
    assert (min(batches), max(batches)) == (1, 8)
    assert len(set(lengths)) >= 2
    assert export.padding_checked == ("none", "right", "left")
    assert (export.inputs, export.outputs) == (("input_ids", "attention_mask"), ("logits",))
    assert (export.format, export.opset, export.note, export.cache) == ("pt2", None, None, {})
    assert list(export.files) == ["model.pt2"]
    assert read(folder / "export.json", Export) == export


def test_the_file_holds_the_kept_weights_under_the_checkpoints_names(llama: tuple[Any, Path, Export]) -> None:
    model, folder, _ = llama
    held = torch.export.load(folder / "model.pt2").state_dict
    expected = {name: value for name, value in model.network.named_parameters()}
    assert {name for name in held if held[name].dim() > 1} == {
        name for name, value in expected.items() if value.dim() > 1
    }
    assert all(torch.equal(held[name], value) for name, value in expected.items())


def test_an_export_leaves_the_network_as_it_was(llama: tuple[Any, Path, Export]) -> None:
    network = llama[0].network
    assert "forward" not in vars(network)
    assert network(torch.tensor([[5, 6]]), use_cache=True).past_key_values is not None


@pytest.mark.slow
def test_whoever_has_pytorch_runs_the_file(llama: tuple[Any, Path, Export]) -> None:
    model, folder, _ = llama
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "ids = torch.arange(4, 16).reshape(3, 4)\n"
        "found = module(input_ids=ids, attention_mask=torch.ones_like(ids))\n"
        "print([name for name in found], found['logits'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "model.pt2")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids = np.arange(4, 16).reshape(3, 4)
    expected = model.logits({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    names, logits = done.stdout.strip().split("] ", 1)
    assert names == "['logits'"
    np.testing.assert_allclose(json.loads(logits), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_half_precision_is_as_near_as_pytorchs_own(
    dtype: str, tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "bert")
    export = export_model(model, rows, tmp_path, ExportSettings("pt2", dtype=dtype))
    kinds = {weight.dtype for weight in torch.export.load(tmp_path / "model.pt2").parameters()}
    assert kinds == {{"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]}
    assert 0 < export.max_abs_difference <= export.tolerance < {"fp16": 0.02, "bf16": 0.2}[dtype]
    assert next(model.network.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_parts_of_layers_that_are_left_out_are_not_in_the_file(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model = load_model(tiny("bert"), options=LoadOptions(granularity="sublayer"))
    rows = load_rows(model, sample_files("bert")["id"])
    with half_zero(model, SILENT):
        found = export_model(
            model, rows, tmp_path, ExportSettings("pt2"), ("0.attention", "2.mlp"), silent=SILENT
        )
    program = torch.export.load(tmp_path / "model.pt2")
    gone = {name for name, _ in model.network.named_parameters()} - set(program.state_dict)
    assert {name.removeprefix("bert.encoder.layer.").rpartition(".")[0] for name in gone} == {
        "0.attention.self.query", "0.attention.self.key", "0.attention.self.value",
        "0.attention.output.dense", "2.intermediate.dense", "2.output.dense",
    }  # fmt: skip
    calls = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product_attention" in call for call in calls) == 3
    assert sum("aten.linear" in call for call in calls) == 3 * 4 + 3 * 2 + 2
    assert found.max_abs_difference < 1e-5


def test_what_cannot_be_traced_or_saved_is_one_clear_error(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "polynomial")

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no place for it\nat all")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", fail)
        with pytest.raises(ExportError, match=r"cannot save .*: no place for it$"):
            export_model(model, rows, tmp_path, ExportSettings("pt2"))
    monkeypatch.setattr(type(model.network), "forward", fail)
    with pytest.raises(ExportError, match=r"DynamoExporter refuses .*: AssertionError: no place for it$"):
        FORMATS["pt2"].write(model, model.task.examples(model.processor)[0], tmp_path, Dialect())
    assert "forward" not in vars(model.network)


# --- benchmarks, on programs of a few operators ---------------------------------------------


class Classifier(nn.Module):
    """A classifier of four layers, each one product: words -> mean -> two logits."""

    def __init__(self, drop: tuple[int, ...], width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, width)
        layers = [nn.Linear(width, width) for _ in range(4)]
        self.layers = nn.Sequential(*(layer for n, layer in enumerate(layers) if n not in drop))
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        states = self.layers(self.table(input_ids)) * attention_mask[..., None]
        return {"logits": self.head(states.mean(dim=1))}


class Positional(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> Any:
        return (self.module(*tensors)["logits"],)


def make_program(folder: Path, format_: str, drop: tuple[int, ...] = ()) -> Path:
    folder.mkdir()
    module, ids = Classifier(drop).eval(), torch.ones((2, 3), dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": ids.clone()}
    name = {"pt2": "model.pt2", "torchscript": "model.pt"}[format_]
    if format_ == "pt2":
        axes = {name: dict.fromkeys((0, 1), torch.export.Dim.AUTO) for name in example}
        torch.export.save(torch.export.export(module, (), example, dynamic_shapes=axes), folder / name)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            torch.jit.save(torch.jit.trace(Positional(module), tuple(example.values())), str(folder / name))
    (folder / "model.onnx").write_bytes((folder / name).read_bytes())  # `save_export` reads its size
    save_export(folder, 4, drop, "text-classification")
    (folder / "model.onnx").unlink()
    export = replace(
        read(folder / "export.json", Export), format=format_, opset=None, files={name: sha256(folder / name)}
    )
    write(folder / "export.json", export)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("started_measures")
@pytest.mark.parametrize("format_", sorted(PROGRAMS))
def test_programs_are_benchmarked_like_graphs(format_: str, tmp_path: Path) -> None:
    pair = make_program(tmp_path / "original", format_), make_program(tmp_path / "pruned", format_, (1, 2))
    samples = {"target": text_samples(30)}
    settings = replace(QUICK, batch_sizes=(1, 4))
    found = benchmark(*pair, CLASSIFICATION, samples, TEXT, settings)
    assert [(row.runtime, row.provider, row.threads, row.ideal_speedup) for row in found.latency] == [
        (format_, "CPU", 1, 2.0)
    ] * 4
    assert found.skipped == ()  # nobody asked for a GPU that this runtime would not use
    assert found.size_bytes.original > found.size_bytes.pruned > 0
    assert min(found.peak_memory_bytes.original, found.load_seconds.pruned) > 0
    module = Classifier(()).eval()
    right = 0
    for row in samples["target"].rows:
        batch = {name: torch.from_numpy(v) for name, v in CLASSIFICATION.encode([row], TEXT).items()}
        right += int(module(**batch)["logits"].argmax()) == row.label
    assert found.accuracy["target"].original == pytest.approx(right / 30)
    rows, skipped = time_exports(
        *pair, CLASSIFICATION, samples["target"], TEXT, replace(settings, tune_seconds=9.0)
    )
    assert skipped == ()
    assert [(row.runtime, row.setting) for row in rows] == [
        (row.runtime, row.setting) for row in found.latency
    ]


@pytest.mark.parametrize("format_", sorted(PROGRAMS))
def test_a_program_takes_what_it_needs_and_says_what_it_lacks(format_: str, tmp_path: Path) -> None:
    folder = make_program(tmp_path / "export", format_)
    session = RUNTIMES[format_](folder, default_settings("cpu", 1))
    ids = np.array([[1, 2, 3]])
    mask = np.array([[1, 1, 0]])
    found = session({"more": ids, "attention_mask": mask, "input_ids": ids})["logits"]  # in any order
    tensors = torch.from_numpy(ids), torch.from_numpy(mask)
    np.testing.assert_allclose(found, Classifier(()).eval()(*tensors)["logits"].detach(), atol=1e-6)
    with pytest.raises(BenchmarkError, match="needs input attention_mask; the task gives input_ids"):
        session({"input_ids": ids})
    with pytest.raises(BenchmarkError, match=r"cannot run .* on input_ids \(1, 1\)"):
        session({"input_ids": np.array([[VOCABULARY]]), "attention_mask": np.array([[1]])})
    (file,) = folder.glob("model.*")
    file.write_bytes(b"no program")
    with pytest.raises(LoadError, match="PyTorch cannot open") as caught:
        open_program(file, format_, (), ())
    assert "\n" not in caught.value.message


def test_a_compiled_program_computes_the_same_and_compiles_once_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = make_program(tmp_path / "export", "pt2"), default_settings("cpu", 1)
    plain, compiled = torch.compile, []

    def count(graph: Any, example: Any) -> Any:  # in place of the compiler of kernels, which needs one of C++
        compiled.append([tuple(value.shape) for value in example if isinstance(value, torch.Tensor)])
        if (
            len(compiled) == 1
        ):  # as Inductor does of a newer GPU; of float32, which both files are measured in
            warnings.warn(
                "TensorFloat32 tensor cores for float32 are available but not enabled.", stacklevel=1
            )
        if len(compiled) > 12:
            raise ValueError("no kernel\nfor this")
        return graph

    def compile_(module: Any, **options: Any) -> Any:
        assert options == {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
        return plain(module, backend=count, fullgraph=True, dynamic=False)

    monkeypatch.setattr(torch, "compile", compile_)
    one, other = (RUNTIMES[name](folder, settings) for name in ("pt2", "torch.compile"))
    generator = np.random.default_rng(0)
    for shape in [(size, length) for size in (1, 2, 3, 1) for length in (4, 5, 6, 7)]:
        batch = {
            "input_ids": generator.integers(0, VOCABULARY, shape),
            "attention_mask": np.ones(shape, np.int64),
        }
        np.testing.assert_array_equal(one(batch)["logits"], other(batch)["logits"])
    assert len(compiled) == 12  # more shapes than PyTorch compiles of a function unless told
    # The first line of PyTorch's message ends with "raised:", and the cause is in the next.
    with pytest.raises(BenchmarkError, match=r"raised: ValueError: no kernel$"):
        other({name: values[:, :3] for name, values in batch.items()})


def test_what_a_trace_made_on_the_cpu_is_made_where_the_program_runs(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], device=x.device)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Positions()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(x) + torch.ones(x.shape, device=x.device)

    file = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(Two(), torch.zeros(2, 3)), str(file))
    module, call = PROGRAMS["torchscript"](file, "meta")
    named = [str(part.graph).count('Device = prim::Constant[value="meta"]') for part in module.modules()]
    assert named == [1, 1]
    assert call(module, {"x": torch.zeros(2, 3, device="meta")}).device.type == "meta"


def test_a_program_is_placed_on_a_gpu_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program asserts its tensors' devices, and torch.compile does not take cuda for cuda:1."""
    folder, asked = make_program(tmp_path / "export", "pt2"), []

    def move(program: Any, location: str) -> Any:
        asked.append(location)
        return program

    monkeypatch.setattr(torch.export.passes, "move_to_device_pass", move)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for device in ("cpu", "cuda"):
        PROGRAMS["pt2"](folder / "model.pt2", device)
    assert asked == ["cuda:1"]


def test_programs_run_on_cuda_where_there_is_one_and_compiled_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [make_program(tmp_path / name, "pt2") for name in ("original", "pruned")]
    rows, opened = {"target": text_samples(8, labelled=False)}, []

    def open_(self: ExportFolder, settings: Any, runtime: str | None = None) -> Any:
        opened.append((runtime, settings.provider))
        return lambda batch: {"logits": np.zeros((1, 2))}

    settings = replace(QUICK, batch_sizes=(1,), iterations=2)
    monkeypatch.setattr(ExportFolder, "open", open_)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = benchmark(*pair, CLASSIFICATION, rows, TEXT, settings)
    assert {(row.runtime, row.provider) for row in found.latency} == {
        ("pt2", "CPU"), ("pt2", "CUDA"), ("torch.compile", "CUDA"),
    }  # fmt: skip
    assert set(opened) == {("pt2", CPU), ("pt2", CUDA), ("torch.compile", CUDA)}
    assert {row.runtime for row in found.served} == {"pt2"}

    def fail(self: ExportFolder, settings: Any, runtime: str | None = None) -> Any:
        if runtime == "torch.compile":
            raise BenchmarkError("no compiler")
        return open_(self, settings, runtime)

    monkeypatch.setattr(ExportFolder, "open", fail)
    found = benchmark(*pair, CLASSIFICATION, rows, TEXT, settings)
    assert {row.runtime for row in found.latency} == {"pt2"}
    assert found.skipped == ("torch.compile on CUDA: no compiler; it was not timed there.",)
    assert time_exports(*pair, CLASSIFICATION, rows["target"], TEXT, settings)[1] == found.skipped

    def full(self: ExportFolder, settings: Any, runtime: str | None = None) -> Any:
        if settings.provider == CUDA:
            raise LoadError("out of memory")
        return open_(self, settings, runtime)

    monkeypatch.setattr(ExportFolder, "open", full)
    found = benchmark(*pair, CLASSIFICATION, rows, TEXT, settings)
    assert {row.provider for row in found.latency} == {"CPU"}
    assert found.skipped == ("pt2 on CUDA: out of memory; it was not timed there.",)


def test_what_only_graphs_have_is_refused_of_programs(tmp_path: Path) -> None:
    program, graph = make_program(tmp_path / "program", "pt2"), make_text_export(tmp_path / "graph")
    rows = {"target": text_samples()}
    with pytest.raises(BenchmarkError, match=r"is pt2, .* is onnx"):
        benchmark(program, graph, CLASSIFICATION, rows, TEXT, QUICK)
    with pytest.raises(BenchmarkError, match="--tune is for ONNX files"):
        benchmark(program, program, CLASSIFICATION, rows, TEXT, replace(QUICK, tune_seconds=1.0))


def test_answers_are_not_written_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program(tmp_path / "program", "pt2")
    encode = type(CLASSIFICATION).batch

    def with_answers(self: Any, *arguments: Any) -> Any:
        return replace(encode(self, *arguments), continuation=object())

    monkeypatch.setattr(type(CLASSIFICATION), "batch", with_answers)
    with pytest.raises(BenchmarkError, match="has no cache, and answers are written with one"):
        score_exported(program, CLASSIFICATION, text_samples(), TEXT, QUICK)


# --- trust ----------------------------------------------------------------------------------


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("format_", sorted(PROGRAMS))
@pytest.mark.parametrize("which", [0, 1])
def test_a_program_from_elsewhere_is_not_opened_unless_it_is_trusted(
    format_: str, which: int, tmp_path: Path
) -> None:
    """Of either folder, before anything is opened, whatever the other is."""
    marker, folder = tmp_path / "it ran", make_program(tmp_path / "program", format_)
    (file,) = folder.glob("model.*")
    torch.save(Payload(marker), file)
    torch.load(file, weights_only=False)
    assert marker.exists()  # so it would
    marker.unlink()
    folders = [make_text_export(tmp_path / "graph")] * 2
    folders[which] = folder
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b c"}\n')
    result = CliRunner().invoke(
        main, ["benchmark", *map(str, folders), "--target", str(rows), "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert f"{folder} is a {format_} export: PyTorch runs whatever code such a file holds" in result.stderr
    assert "--trust-remote-code" in result.stderr
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
