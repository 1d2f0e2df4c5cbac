"""Exported files compute what PyTorch computes, hold the kept weights only, or are refused."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ALL_FAMILIES, NUM_LAYERS

from tapioca_export import exporting
from tapioca_export.artifacts import Export, read
from tapioca_export.errors import ExportError, ParityError, UnknownNameError
from tapioca_export.exporting import FORMATS, Dialect, ExportSettings, Format, export_model, parity_batches
from tapioca_export.exporting.quieting import quiet
from tapioca_export.models import LoadedModel, drop_layers, load_model
from tapioca_export.samples import Samples, read_samples

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


def load_with_rows(tiny: Tiny, sample_files: Files, family: str) -> tuple[LoadedModel, Samples]:
    model = load_model(tiny(family))
    path = sample_files(family)["target"]
    return model, read_samples(path, model.task.rows({}, model.processor), role="parity")


def num_weights(path: Path) -> int:
    graph = onnx.load(path).graph
    return sum(int(np.prod(t.dims)) for t in graph.initializer if len(t.dims) > 1)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_pruned_onnx_file_equals_pytorch_at_other_shapes_and_paddings(
    tiny: Tiny, sample_files: Files, tmp_path: Path, family: str
) -> None:
    model, rows = load_with_rows(tiny, sample_files, family)
    model = drop_layers(model, (1, 2))
    export = export_model(model, rows, tmp_path, ExportSettings(), drop=(1, 2))
    assert export.max_abs_difference <= 1e-4
    assert export.label_agreement == 1.0
    batches, lengths = zip(*export.shapes_checked, strict=True)
    assert min(batches) == 1
    assert max(batches) >= 8
    assert len(set(lengths)) >= 2
    assert export.padding_checked == (("none",) if family == "polynomial" else ("none", "right", "left"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert tuple(value.name for value in session.get_inputs()) == export.inputs
    assert read(tmp_path / "export.json", Export) == export
    assert (tmp_path / "config.json").is_file()
    assert (tmp_path / "tokenizer.json").is_file() == (family != "polynomial")


@pytest.mark.parametrize("family", ["bert", "polynomial"])
def test_the_pruned_onnx_file_holds_exactly_the_kept_weights(
    tiny: Tiny, sample_files: Files, tmp_path: Path, family: str
) -> None:
    model, rows = load_with_rows(tiny, sample_files, family)
    layer = sum(p.numel() for p in model.layers[0].parameters() if p.dim() > 1)
    sizes = []
    for drop in ((), (1, 3)):
        model = drop_layers(model, drop)
        folder = tmp_path / str(len(drop))
        folder.mkdir()
        sizes.append(
            (
                num_weights(folder / next(iter(export_model(model, rows, folder, ExportSettings()).files))),
                folder,
            )
        )
    (full, full_folder), (pruned, pruned_folder) = sizes
    assert full - pruned == 2 * layer
    names = [tensor.name for tensor in onnx.load(pruned_folder / "model.onnx").graph.initializer]
    assert not any(f".{NUM_LAYERS - 1}." in name for name in names)
    assert (pruned_folder / "model.onnx").stat().st_size < (full_folder / "model.onnx").stat().st_size


@pytest.mark.parametrize("num_rows", [8, 37, 74])
def test_parity_batches_mix_rows_of_several_lengths(tiny: Tiny, sample_files: Files, num_rows: int) -> None:
    model, rows = load_with_rows(tiny, sample_files, "bert")
    rows = replace(rows, rows=(rows.rows * 2)[:num_rows])
    masks = [
        batch["attention_mask"] for _, batch in parity_batches(model, rows) if len(batch["input_ids"]) == 8
    ]
    assert all(len(set(mask.sum(axis=1).tolist())) > 1 for mask in masks)


def test_torchscript_equals_pytorch_and_says_that_it_is_deprecated(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "gpt2")
    export = export_model(model, rows, tmp_path, ExportSettings(format="torchscript"))
    assert export.max_abs_difference <= 1e-6
    assert "deprecated" in (export.note or "")
    assert export.inputs == ("input_ids", "attention_mask")


def add_format(monkeypatch: pytest.MonkeyPatch, off_by: float) -> None:
    """Register a format whose file computes something else."""

    def write(model: LoadedModel, example: object, folder: Path, dialect: Dialect) -> exporting.Written:
        (folder / "model.lie").write_bytes(b"weights")
        add_format.model = model  # type: ignore[attr-defined]
        return exporting.Written("a liar", None, (), ("logits",), ("model.lie",))

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": add_format.model.logits(inputs) + off_by}  # type: ignore[attr-defined]

    entries = {**FORMATS._entries, "liar": Format(write, lambda path, written: run, "Lies.")}
    monkeypatch.setattr(FORMATS, "_entries", entries)


def test_a_file_that_differs_is_refused_and_marked_invalid(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "bert")
    add_format(monkeypatch, off_by=1e-3)
    with pytest.raises(ParityError, match=r"outputs differ by 0\.001 \(tolerance 0\.0001\)"):
        export_model(model, rows, tmp_path, ExportSettings(format="liar"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.lie.invalid"]


@pytest.mark.parametrize("off_by", [float("nan"), float("inf")])
def test_a_file_that_computes_no_numbers_is_refused(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_by: float
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "bert")
    add_format(monkeypatch, off_by)
    with pytest.raises(ParityError):
        export_model(model, rows, tmp_path, ExportSettings(format="liar"))


def test_a_changed_label_is_refused_even_within_the_tolerance(
    tiny: Tiny, sample_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load_with_rows(tiny, sample_files, "bert")
    add_format(monkeypatch, off_by=0.0)
    flipped = replace(FORMATS["liar"], open=lambda path, written: lambda x: {"logits": -model.logits(x)})
    monkeypatch.setitem(FORMATS._entries, "liar", flipped)
    with pytest.raises(ParityError, match="labels agree on"):
        export_model(model, rows, tmp_path, ExportSettings(format="liar", tolerance=1e6))


def test_an_opset_that_cannot_be_written_is_one_clear_error() -> None:
    with pytest.raises(ExportError, match="too old"):
        ExportSettings(opset=1)


def test_an_unknown_format_is_met_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="onx"):
        FORMATS["onx"]


def test_an_exporter_that_is_stopped_logs_nothing_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """PyTorch logs an error of many lines wherever Ctrl-C meets it."""
    library = logging.getLogger("library")  # PyTorch's own has handlers of its own once it has compiled
    with quiet():
        library.error("a traceback")
    library.error("later")
    assert [record.message for record in caplog.records] == ["later"]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "pt2"])
def test_a_trace_leaves_next_to_nothing_behind(format_: str, tiny: Tiny, tmp_path: Path) -> None:
    """PyTorch would keep thousands of objects of each for good."""
    counts = []
    for number in range(4):
        model = load_model(tiny("polynomial"))
        folder = tmp_path / str(number)
        folder.mkdir()
        with quiet():
            FORMATS[format_].write(model, model.task.examples(model.processor)[0], folder, Dialect())
        del model
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[3] - counts[1] < 2 * 1000
