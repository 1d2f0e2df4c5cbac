"""What must hold for every family of image and audio models: removal, replay, round trip, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import NUM_LAYERS
from media import AUDIO_FAMILIES, IMAGE_FAMILIES, save_media_model, write_media
from said import assert_changes, of_classes

from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import (
    LoadedModel,
    drop_layers,
    droppable_layers,
    load_model,
    save_pruned,
    skipping,
)
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples, read_samples
from tapioca_export.tasks import Batch

# WavLM's own code, of transformers, hands PyTorch two masks of different types.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
FAMILIES = (*IMAGE_FAMILIES, *AUDIO_FAMILIES)
Rows = Callable[[LoadedModel], Samples]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = save_media_model(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return of


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    files: dict[str, Path] = {}

    def read(model: LoadedModel) -> Samples:
        column = model.task.columns[0]
        if column not in files:
            files[column] = write_media(tmp_path_factory.mktemp(column), column, 18, 1, is_target=False)
        return read_samples(files[column], model.task.rows({}, model.processor), role="id-select")

    return read


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load_model(checkpoint(request.param))  # the task is inferred


@pytest.fixture
def rows(model: LoadedModel, rows_of: Rows) -> Samples:
    return rows_of(model)


def test_the_task_is_inferred_and_layers_matter(model: LoadedModel, rows: Samples) -> None:
    assert model.task.name == f"{model.task.columns[0]}-classification"
    assert model.num_layers == NUM_LAYERS
    # WavLM's lowest layer has the only table of relative positions.
    assert droppable_layers(model)[-NUM_LAYERS + 1 :] == tuple(range(1, NUM_LAYERS))
    batch = model.task.batch(rows, np.arange(6), model.processor)
    plain = model.logits(batch.inputs)
    for layer in range(NUM_LAYERS):
        with skipping(model, [layer]):
            assert np.abs(model.logits(batch.inputs) - plain).max() > 1e-4


def test_dropped_equals_skipped_equals_replayed_to_the_bit(model: LoadedModel, rows: Samples) -> None:
    layers = droppable_layers(model)
    smaller = {layer: drop_layers(model, [layer]) for layer in layers}
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=7)
    for batch, layer, trace in probe._passes(rows, (), layers):
        if layer is None:
            continue
        dropped = smaller[layer].logits(batch.inputs)
        assert np.array_equal(trace.answers, dropped)
    for batch in model.task.batches(rows, model.processor, 7):
        for layer in layers:
            with skipping(model, [layer]):
                assert np.array_equal(model.logits(batch.inputs), smaller[layer].logits(batch.inputs))
    found = probe.metrics((), layers)
    for layer in layers:
        alone = Probe(smaller[layer], {"id": rows, "target": rows}, batch_size=7).metric()
        assert (found[layer].metric, found[layer].loss) == (alone.metric, alone.loss)


def test_a_saved_checkpoint_reloads_as_the_skipped_model(
    model: LoadedModel, rows: Samples, tmp_path: Path
) -> None:
    batches = [batch.inputs for batch in model.task.batches(rows, model.processor, 7)]
    with skipping(model, [1, 3]):
        expected = [model.logits(batch) for batch in batches]
    save_pruned(model, [1, 3], tmp_path, batches)  # raises unless a fresh process agrees to the bit
    again = load_model(tmp_path)
    assert again.num_layers == NUM_LAYERS - 2
    encoded = [batch.inputs for batch in again.task.batches(rows, again.processor, 7)]
    for one, other, logits in zip(batches, encoded, expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert np.array_equal(again.logits(other), logits)


def test_profiles_do_not_depend_on_batches_and_read_the_last_boundary(
    model: LoadedModel, rows: Samples
) -> None:
    one = Probe(model, {"id": rows, "target": rows}, batch_size=5).profile("id", (1,))
    other = Probe(model, {"id": rows, "target": rows}, batch_size=1).profile("id", (1,))
    for name in ("norms", "distances"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)
    assert one.num_tokens == other.num_tokens
    assert Probe(model, {"id": rows, "target": rows}).deviation().mean == 0


def test_profiles_are_read_where_the_head_reads(model: LoadedModel, rows: Samples) -> None:
    """The gradient of the logits by the last layer's states says what the head looks at."""
    batch = model.task.batch(rows, np.arange(6), model.processor)
    states: list[torch.Tensor] = []

    def see(_: object, __: object, output: object) -> object:
        stream = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
        states.append(stream)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    hook = model.layers[-1].register_forward_hook(see)
    try:
        inputs = {name: torch.from_numpy(value) for name, value in batch.inputs.items()}
        model.network(**inputs).logits.square().sum().backward()
    finally:
        hook.remove()
    looked_at = states[0].grad.abs().sum(dim=-1).numpy() > 0
    told = Batch(batch.indices, batch.inputs, num_states=states[0].shape[1])
    weights = model.task.readout(told, model.processor)[:, 0]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    # A mean takes in a few special positions that the head leaves out, and padding never.
    special = 5 if model.processor.position == "mean" and model.task.name[0] == "i" else 1
    assert ((weights > 0) >= looked_at).all() or model.processor.position == "first-token"
    assert (np.abs((weights > 0).sum(axis=1) - looked_at.sum(axis=1)) <= special).all()
    if model.task.name[0] == "a" and model.processor.position == "mean":
        assert np.array_equal(weights > 0, looked_at)


def test_what_the_head_says_changes_as_single_rows_say(model: LoadedModel, rows: Samples) -> None:
    assert_changes(model, rows, of_classes, (0, 2))


def test_an_answer_does_not_depend_on_the_rows_beside_it(model: LoadedModel, rows: Samples) -> None:
    each = (model.task.batch(rows, np.asarray([row]), model.processor) for row in range(len(rows)))
    alone = np.concatenate([model.answers(batch) for batch in each])
    num_rows = 0
    for batch in model.task.batches(rows, model.processor, 7):
        np.testing.assert_allclose(model.answers(batch), alone[batch.indices], atol=1e-5)
        num_rows += len(batch)
    assert num_rows == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dinov2", "wavlm", "audio-spectrogram-transformer"])
def test_an_exported_file_computes_what_pytorch_computes(family: str, rows_of: Rows, tmp_path: Path) -> None:
    model = load_model(save_media_model(tmp_path / "model", family, num_hidden_layers=2))
    rows = rows_of(model)
    (folder := tmp_path / "onnx").mkdir()
    export = export_model(model, rows, folder, ExportSettings())
    assert export.max_abs_difference < 1e-4
    assert {shape[0] for shape in export.shapes_checked} == {1, 2, 3, 8}
    assert (folder / "preprocessor_config.json").is_file()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert session.get_inputs()[0].shape[0] == "batch"
    for batch in model.task.batches(rows, model.processor, 5):
        (found,) = session.run(["logits"], batch.inputs)
        np.testing.assert_allclose(found, model.logits(batch.inputs), atol=1e-4)
