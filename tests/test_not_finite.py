"""NaN and infinity are errors that name the layer and the sample, in whatever is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ALL_FAMILIES, SPECIAL, complaint, save_model, text_records, write_jsonl
from safetensors.torch import load_file, save_file

from tapioca_export import RunConfig
from tapioca_export.cli import main
from tapioca_export.errors import NotFiniteError
from tapioca_export.models import load_model
from tapioca_export.profiling import Probe
from tapioca_export.profiling.replaying import Replayer, Work
from tapioca_export.reading import load_roles

Files = Callable[[str], dict[str, Path]]


def command(name: str, model: Path, files: dict[str, Path], output: Path) -> Result:
    arguments = [name, "-m", model, "--id", files["id"], "--target", files["target"], "-o", output]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert not output.exists()
    return result


def poison(model: Path, layer: int, value: float) -> None:
    """Put a value into every matrix of a layer."""
    file = model / "model.safetensors"
    weights = load_file(file)
    own = [name for name, weight in weights.items() if f".{layer}." in name and weight.dim() >= 2]
    assert own
    save_file(
        {n: torch.full_like(w, value) if n in own else w for n, w in weights.items()}, file, {"format": "pt"}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_layer_and_the_first_row_are_named(
    family: str, value: float, tmp_path: Path, sample_files: Files
) -> None:
    model, layer = save_model(tmp_path / "model", family), 1 + int(value == value)
    poison(model, layer, value)
    files = sample_files(family)
    for name in ("profile", "select"):
        (said, *_) = complaint(command(name, model, files, tmp_path / "out"))
        assert said.startswith(f"Error: The states behind layer {layer} are not finite"), said
        assert any(f"for {file}, line " in said for file in files.values())


def test_the_row_is_the_one_that_is_not_finite(tmp_path: Path) -> None:
    model, rows = save_model(tmp_path / "model", "bert"), {}
    for seed, name in enumerate(("id", "target")):
        texts = [record["text"].rpartition(" ")[0] for record in text_records(48, seed)]  # without numbers
        texts = [f"{text} w1" for text in dict.fromkeys(texts)]
        if name == "target":
            texts[17] += " unheard-of"
        rows[name] = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
    weights = load_file(model / "model.safetensors")
    (embeddings,) = (name for name in weights if "word_embeddings" in name)
    weights[embeddings][SPECIAL.index("[UNK]")] = np.inf
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    result = command("profile", model, rows, tmp_path / "out")
    said = (
        f"The states before the first layer are not finite (NaN or infinite) for {rows['target']}, line 18."
    )
    assert said in result.stderr, result.output


def test_layers_that_are_skipped_are_named_too(tmp_path: Path, sample_files: Files) -> None:
    folder = save_model(tmp_path / "model", "bert")
    poison(folder, 2, float("nan"))
    model = load_model(folder)
    config = RunConfig(model=str(folder), **sample_files("bert"))
    samples = load_roles(config, model.task, model.processor)["target-select"]
    with pytest.raises(NotFiniteError, match=r"behind layer 2, without 0, 1, are not finite .* line \d+\."):
        Replayer(model, samples)(Work((0,), (1,), np.arange(6)))
    found = Replayer(model, samples)(Work((2,), (1,), np.arange(6)))
    assert np.isfinite(found.losses).all()


def test_a_head_that_is_not_finite_is_told_from_a_layer(tmp_path: Path, sample_files: Files) -> None:
    folder = save_model(tmp_path / "model", "bert")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder)
    config = RunConfig(model=str(folder), **sample_files("bert"))
    samples = load_roles(config, model.task, model.processor)["target-select"]
    with pytest.raises(NotFiniteError, match=r"^The model's logits are not finite"):
        Probe(model, {"id": samples, "target": samples}).metric()
