"""Exports that are made faster for tests are those that users get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import save_model, text_records, write_jsonl

from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import load_model
from tapioca_export.samples import read_samples


@pytest.mark.slow
def test_one_program_gives_one_file_and_another_weight_another(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "model", "bert", num_hidden_layers=1)
    model = load_model(checkpoint)
    records = write_jsonl(tmp_path / "rows.jsonl", text_records(16, 0))
    rows = read_samples(records, model.task.rows({}, model.processor), role="id-select")
    batch = model.task.encode(rows.rows, model.processor)
    files = []
    for number in range(4):
        if number == 2:
            with torch.no_grad():
                model.network.classifier.bias[0] += 0.25
        if number == 3:
            model = load_model(checkpoint)
        (folder := tmp_path / str(number)).mkdir()
        export_model(model, rows, folder, ExportSettings())
        files.append((folder / "model.onnx").read_bytes())
        (found,) = onnxruntime.InferenceSession(files[-1]).run(None, batch)
        np.testing.assert_allclose(found, model.logits(batch), atol=1e-5)
    assert files[0] == files[1] == files[3] != files[2]
