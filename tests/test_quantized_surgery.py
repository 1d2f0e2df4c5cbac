"""Layers cut out of quantised ONNX files: proven to the bit, the last layer too."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner
from conftest import NUM_LAYERS, make_model, make_tokenizer, text_records, write_jsonl

from tapioca_export.artifacts import Export, read
from tapioca_export.cli import main
from tapioca_export.errors import ParityError
from tapioca_export.graphs.proving import prove_outputs


def cli(*arguments: object) -> None:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--quantize int4",
        "--quantize int8",
        "--quantize int8 --calibration-samples 8",
        "--optimize O2 --quantize int8 --calibration-samples 8",
    ],
)
def test_quantised_files_are_cut_and_proven_to_the_bit(options: str, tmp_path: Path) -> None:
    """Of static int8 the token that is read is chosen before the last layer's end is stored in eight bits."""
    make_model("bert").save_pretrained(tmp_path / "model")
    make_tokenizer("bert").save_pretrained(tmp_path / "model")
    rows = write_jsonl(tmp_path / "rows.jsonl", text_records(32, 0))
    # A network that knows nothing loses nothing worth refusing.
    more = ("--max-drop", "1", *options.split())
    cli("export", "-m", tmp_path / "model", "--id", rows, *more, "-o", tmp_path / "whole")
    whole = tmp_path / "whole" / "model.onnx"
    for drop in ([NUM_LAYERS - 1], [0, NUM_LAYERS - 1], [1, 2]):
        file = tmp_path / f"without {drop}" / "model.onnx"
        cli("prune", whole, "--drop", ",".join(map(str, drop)), "-o", file.parent)
        assert read(file.with_name("export.json"), Export).max_abs_difference == 0
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with pytest.raises(ParityError, match="differs by"):
        prove_outputs(whole, file, [0, 1])
