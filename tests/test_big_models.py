"""Models larger than one device: accelerate spreads the layers, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accelerate
import numpy as np
import pytest
from click.testing import CliRunner

from tapioca_export import RunConfig
from tapioca_export.artifacts import Selection, read
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, UnsupportedModelError
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.models.loading import _spreading
from tapioca_export.models.surgery import refuse_dependent_layers
from tapioca_export.profiling import Probe
from tapioca_export.reading import load_options
from tapioca_export.samples import Samples, read_samples

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
FAMILIES = ("bert", "llama")


def on_disk(model: LoadedModel, folder: Path) -> LoadedModel:
    """Keep every weight on disk until its module runs, as accelerate does with what fits nowhere."""
    accelerate.disk_offload(model.network, folder, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.layers.parameters())
    return model


def rows_of(model: LoadedModel, files: dict[str, Path]) -> Samples:
    return read_samples(files["target"], model.task.rows({}, model.processor), role="target")


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_layers_are_skipped_and_replayed_to_the_bit(
    tiny: Tiny, sample_files: Files, tmp_path: Path, family: str
) -> None:
    plain, spread = load_model(tiny(family)), on_disk(load_model(tiny(family)), tmp_path)
    rows = rows_of(plain, sample_files(family))
    everything = np.arange(len(rows))
    one, other = (Probe(model, {"id": rows, "target": rows}, batch_size=16) for model in (plain, spread))
    for dropped, layers in (((), ()), ((), (0, 1, 3)), ((2,), (0, 3))):
        found, expected = other.scores(dropped, layers, everything), one.scores(dropped, layers, everything)
        for layer in expected:
            np.testing.assert_array_equal(found[layer], expected[layer])
    assert other.profile("target") == one.profile("target")


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_on_disk_are_not_taken_to_share_weights(tiny: Tiny, tmp_path: Path, family: str) -> None:
    refuse_dependent_layers(on_disk(load_model(tiny(family)), tmp_path))


def test_weights_on_disk_cannot_be_weighed(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    model = on_disk(load_model(tiny("bert")), tmp_path)
    rows = rows_of(model, sample_files("bert"))
    with pytest.raises(UnsupportedModelError, match="cannot be weighed"):
        Probe(model, {"id": rows, "target": rows}).magnitudes()


def test_device_auto_chooses_what_the_cpu_chooses(tiny: Tiny, sample_files: Files, tmp_path: Path) -> None:
    files = sample_files("bert")
    chosen = []
    for device in ("cpu", "auto"):
        arguments = [
            "select", "-m", tiny("bert"), "--id", files["id"], "--target", files["target"],
            "-o", tmp_path / device, "--device", device, "--epsilon", "1", "--num-threads", "1",
        ]  # fmt: skip
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        chosen.append(read(tmp_path / device / "selection.json", Selection))
    assert chosen[0].steps == chosen[1].steps


def test_what_the_memory_does_not_hold_is_read_from_disk_layer_by_layer(
    tiny: Tiny, sample_files: Files
) -> None:
    """Straight from the checkpoint's own files: nothing is written."""
    size = 4 * sum(weight.numel() for weight in load_model(tiny("llama")).network.parameters())
    options = LoadOptions(device="auto", max_memory=f"{size // 2000}KB")
    plain, spread = load_model(tiny("llama")), load_model(tiny("llama"), options=options)
    places = [{weight.is_meta for weight in layer.parameters()} for layer in spread.layers]
    assert {True} in places
    rows = rows_of(plain, sample_files("llama"))
    one, other = (Probe(model, {"id": rows, "target": rows}, batch_size=16) for model in (plain, spread))
    everything = np.arange(len(rows))
    found, expected = other.scores((1,), (0, 3), everything), one.scores((1,), (0, 3), everything)
    for layer in expected:
        np.testing.assert_array_equal(found[layer], expected[layer])


def test_memory_that_is_no_size_or_has_no_meaning_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="--max-memory '8 apples' is no size"):
        load_model(tiny("llama"), options=LoadOptions(device="auto", max_memory="8 apples"))
    with pytest.raises(ConfigError, match="--max-memory has no meaning for --device cpu"):
        RunConfig(max_memory="8GB")
    assert _spreading(LoadOptions(device="auto", max_memory="2gb"))["max_memory"]["cpu"] == 2 * 10**9
    assert load_options(RunConfig(device="auto", max_memory="8GB")).max_memory == "8GB"


def test_a_spread_model_says_where_inputs_go(tiny: Tiny) -> None:
    model = load_model(tiny("llama"), options=LoadOptions(device="auto"))
    assert model.device.type == "cpu"
