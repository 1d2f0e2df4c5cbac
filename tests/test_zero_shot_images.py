"""Images held against texts: two towers, and candidates that all rows of a batch have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import NUM_LAYERS, awaken, write_jsonl
from media import LABELS, SIZE, draw_image
from planting import assert_found, plant
from said import assert_changes, kl
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tapioca_export.benchmarking import BenchmarkSettings, make_workloads
from tapioca_export.costing.rehearsing import Shapes
from tapioca_export.errors import ConfigError, LoadError
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
from tapioca_export.tasks import TASKS

TASK = "zero-shot-image-classification"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]  # a CLIP whose texts end with token 2 is read otherwise
WORDS = ["This", "is", "a", "photo", "of", ".", *LABELS, "very", "dark", "bright", "square"]
LAYERS = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
}
VISION = {**LAYERS, "image_size": SIZE, "patch_size": 4, "num_channels": 3}
TEXT = {
    **LAYERS, "vocab_size": 32, "max_position_embeddings": 20, "num_hidden_layers": 3, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 3, "projection_size": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16},
    "siglip": {"text_config": {**TEXT, "max_position_embeddings": 64}, "vision_config": VISION},
}


def make_words(**options: Any) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer of whole words."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", **{"model_max_length": 64, **options},
    )  # fmt: skip


def make_network(family: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    return awaken(transformers.AutoModelForZeroShotImageClassification.from_config(config))


def make_images() -> Any:
    size = {"height": SIZE, "width": SIZE}
    return transformers.ViTImageProcessorPil(size=size)


def save(folder: Path, network: transformers.PreTrainedModel, **options: Any) -> Path:
    network.save_pretrained(folder)
    make_images().save_pretrained(folder)
    # Texts of a SigLIP were padded to the end, and nothing hid the padding.
    names = ["input_ids"] if network.config.model_type == "siglip" else ["input_ids", "attention_mask"]
    make_words(model_input_names=names, **options).save_pretrained(folder)
    return folder


def write_rows(
    folder: Path, num_rows: int, seed: int, *, is_target: bool = False, labels: tuple[int, ...] = (0, 1, 2),
    candidates: tuple[tuple[str, ...], ...] = (LABELS,),
) -> Path:  # fmt: skip
    """Write images of a coloured square, each with one of the lists of candidates."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, records = np.random.default_rng(seed), []
    for number in range(num_rows):
        label = labels[number % len(labels)]
        draw_image(generator, label, is_target=is_target).save(folder / f"{number}.png")
        names = candidates[number // 3 % len(candidates)]
        label_name = next((name for name in names if LABELS[label] in name.split()), names[0])
        records.append({"image": f"{number}.png", "candidate_labels": list(names), "label": label_name})
    return write_jsonl(folder / "rows.jsonl", records)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = save(tmp_path_factory.mktemp(family), make_network(family))
        return folders[family]

    return of


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load_model(checkpoint(request.param))  # the task is inferred


LISTS = (LABELS, ("green", "very dark blue square", "bright red", "blue green"))


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), 18, 1, candidates=LISTS)


def read(model: LoadedModel, path: Path) -> Samples:
    return read_samples(path, model.task.rows({}, model.processor), role="id-select")


@pytest.fixture
def rows(model: LoadedModel, rows_file: Path) -> Samples:
    return read(model, rows_file)


# --- laws -----------------------------------------------------------------------------------


def test_what_is_said_of_images_changes_as_single_rows_say(model: LoadedModel, rows: Samples) -> None:
    def compare(one: Any, other: Any, inputs: Any) -> float:
        return float(kl(one.logits_per_image[0], other.logits_per_image[0]))

    assert_changes(model, rows, compare, (0, 2))


def test_the_task_is_inferred_and_the_layers_of_both_towers_matter(model: LoadedModel, rows: Samples) -> None:
    assert model.task.name == TASK
    assert dict(model.numbering.depths) == {"vision": NUM_LAYERS, "text": 3}
    assert droppable_layers(model) == tuple(range(NUM_LAYERS + 3))
    batch = next(model.task.batches(rows, model.processor, 6))
    plain = model.logits(batch.inputs)
    for layer in range(model.num_layers):
        with skipping(model, [layer]):
            assert np.abs(model.logits(batch.inputs) - plain).max() > 1e-4


def test_dropped_equals_skipped_equals_replayed_to_the_bit(model: LoadedModel, rows: Samples) -> None:
    layers = range(model.num_layers)
    smaller = {layer: drop_layers(model, [layer]) for layer in layers}
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=7)
    for batch, layer, trace in probe._passes(rows, (), layers):
        if layer is not None:
            assert np.array_equal(trace.answers, smaller[layer].logits(batch.inputs))
            with skipping(model, [layer]):
                assert np.array_equal(model.logits(batch.inputs), smaller[layer].logits(batch.inputs))
    found = probe.metrics((), layers)
    for layer in layers:
        alone = Probe(smaller[layer], {"id": rows, "target": rows}, batch_size=7).metric()
        assert (found[layer].metric, found[layer].loss) == (alone.metric, alone.loss)


def test_a_saved_checkpoint_reloads_as_the_skipped_model(
    model: LoadedModel, rows: Samples, tmp_path: Path
) -> None:
    layers = model.numbering.indices(("vision:1", "text:0"))
    batches = [batch.inputs for batch in model.task.batches(rows, model.processor, 7)]
    save_pruned(model, layers, tmp_path, batches)  # raises unless a fresh process agrees to the bit
    again = load_model(tmp_path)
    assert dict(again.numbering.depths) == {"vision": NUM_LAYERS - 1, "text": 2}
    encoded = [batch.inputs for batch in again.task.batches(rows, again.processor, 7)]
    for one, other in zip(batches, encoded, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_answers_are_those_of_the_pipeline_of_transformers(
    model: LoadedModel, rows: Samples, rows_file: Path
) -> None:
    pipeline = transformers.pipeline(
        TASK, model=model.network, tokenizer=model.processor.tokenizer,
        image_processor=model.processor.extractor, device="cpu",
    )  # fmt: skip
    records = [json.loads(line) for line in rows_file.read_text().splitlines()]
    is_siglip = model.network.config.model_type == "siglip"
    for batch in model.task.batches(rows, model.processor, 5):
        logits = model.answers(batch)
        for place, index in enumerate(batch.indices):
            record = records[index]
            found = pipeline(
                str(rows_file.parent / record["image"]), candidate_labels=record["candidate_labels"]
            )
            names = sorted(record["candidate_labels"])
            scores = {entry["label"]: entry["score"] for entry in found}
            own = logits[place].astype(np.float64)
            expected = 1 / (1 + np.exp(-own)) if is_siglip else np.exp(own) / np.exp(own).sum()
            np.testing.assert_allclose([scores[name] for name in names], expected, rtol=1e-4, atol=1e-6)


def test_rows_of_a_batch_share_their_candidates_and_answers_do_not_depend_on_the_rows_beside(
    model: LoadedModel, rows: Samples
) -> None:
    each = {}
    for index in range(len(rows)):
        each[index] = model.answers(model.task.batch(rows, np.asarray([index]), model.processor))[0]
    seen: list[int] = []
    for batch in model.task.batches(rows, model.processor, 5):
        texts = {rows.rows[index].features["texts"] for index in batch.indices}
        assert len(texts) == 1
        assert batch.inputs["pixel_values"].shape[0] == len(batch) <= 5
        assert batch.inputs["input_ids"].shape[0] == len(texts.pop())  # each text is read once
        found = model.answers(batch)
        for place, index in enumerate(batch.indices):
            np.testing.assert_allclose(found[place], each[index], atol=1e-5)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_the_order_of_candidates_changes_nothing(model: LoadedModel, rows_file: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in rows_file.read_text().splitlines()]
    for record in records:
        record["candidate_labels"].reverse()
        record["image"] = str(rows_file.parent / record["image"])
    turned = read(model, write_jsonl(tmp_path / "rows.jsonl", records))
    assert turned.fingerprint == read(model, rows_file).fingerprint


def test_profiles_do_not_depend_on_batches(model: LoadedModel, rows: Samples) -> None:
    one = Probe(model, {"id": rows, "target": rows}, batch_size=9).profile("id", (1,))
    # As many rows as candidates, in some batch: a text is no row's own all the same.
    other = Probe(model, {"id": rows, "target": rows}, batch_size=3).profile("id", (1,))
    for name in ("norms", "distances", "influences"):
        pairs = zip(getattr(one, name), getattr(other, name), strict=True)
        values = [pair for pair in pairs if None not in pair]
        np.testing.assert_allclose(*np.transpose(values), rtol=1e-3, atol=1e-5)
    assert Probe(model, {"id": rows, "target": rows}).deviation().mean == 0


def test_the_vision_tower_is_read_where_the_model_reads_it(model: LoadedModel, rows: Samples) -> None:
    batch = next(model.task.batches(rows, model.processor, 3))
    first = model.numbering.ranges[0].stop - 1
    states: list[torch.Tensor] = []

    def see(_: object, __: object, output: Any) -> Any:
        states.append((output[0] if isinstance(output, tuple) else output).detach().requires_grad_())
        return (states[0], *output[1:]) if isinstance(output, tuple) else states[0]

    hook = model.layers[first].register_forward_hook(see)
    try:
        inputs = {name: torch.from_numpy(value) for name, value in batch.inputs.items()}
        model.network(**inputs).logits_per_image.square().sum().backward()
    finally:
        hook.remove()
    looked_at = states[0].grad.abs().sum(dim=-1).numpy() > 0
    told = type(batch)(batch.indices, batch.inputs, num_states=states[0].shape[1])
    assert np.array_equal(model.task.readout(told, model.processor)[:, 0] > 0, looked_at)


def test_texts_weigh_once_a_batch_in_a_prediction_of_costs(model: LoadedModel, rows: Samples) -> None:
    shapes = Shapes(model, rows, model.processor)
    shapes.of(np.arange(1))  # it runs embeddings, now and not below
    seen: list[tuple[int, int]] = []

    def see(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2]))

    for part in model.numbering.ranges:
        model.layers[part.start].register_forward_pre_hook(see, with_kwargs=True)
    for batch in model.task.batches(rows, model.processor, 4):
        seen.clear()
        model.answers(batch)
        assert shapes.of(batch.indices) == tuple(seen)


@pytest.mark.slow
def test_an_exported_file_takes_any_number_of_images_and_of_texts(
    model: LoadedModel, rows: Samples, tmp_path: Path
) -> None:
    export = export_model(model, rows, tmp_path, ExportSettings())
    assert export.label_agreement == 1.0
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    axes = {value.name: value.shape[0] for value in session.get_inputs()}
    assert (axes["pixel_values"], axes["input_ids"]) == ("batch", "num_labels")
    (output,) = (value for value in session.get_outputs() if value.name == "logits_per_image")
    assert output.shape == ["batch", "num_labels"]
    for batch in model.task.batches(rows, model.processor, 3):  # once as many of the one as of the other
        (found,) = session.run(["logits_per_image"], batch.inputs)
        np.testing.assert_allclose(found, model.logits(batch.inputs), atol=1e-4)


def test_a_workload_has_as_many_texts_as_one_row_has(model: LoadedModel, rows: Samples) -> None:
    settings = BenchmarkSettings(batch_sizes=(1, 5))
    works = make_workloads(model.task, rows, model.processor, settings)
    assert [(work.batch_size, work.sequence_length, work.unit) for work in works] == [
        (1, 16, "patches"), (5, 16, "patches"),
    ]  # fmt: skip
    for work in works:
        for batch in work.batches:
            assert batch["pixel_values"].shape[0] == work.batch_size
            assert batch["input_ids"].shape[0] in (3, 4)


# --- rows -----------------------------------------------------------------------------------


@pytest.fixture
def clip(checkpoint: Callable[[str], Path], tmp_path: Path) -> LoadedModel:
    draw_image(np.random.default_rng(0), 0, is_target=False).save(tmp_path / "0.png")
    return load_model(checkpoint("clip"))


def row(model: LoadedModel, folder: Path, **record: Any) -> Any:
    record = {"image": str(folder / "0.png"), "candidate_labels": ["red", "blue"], **record}
    return model.task.rows({}, model.processor)(record, "line 1")


def test_a_row_knows_its_texts_and_the_place_of_the_right_one(clip: LoadedModel, tmp_path: Path) -> None:
    plain = row(clip, tmp_path, label="red")
    assert plain.features["texts"] == ("This is a photo of blue.", "This is a photo of red.")
    assert plain.label == 1
    asked = row(clip, tmp_path, hypothesis_template="a dark {}", candidate_labels='["red", "blue"]')
    assert asked.features["texts"] == ("a dark blue", "a dark red")
    assert asked.label is None
    assert len({plain.key, asked.key, row(clip, tmp_path, candidate_labels=["red", "dark"]).key}) == 3


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": "green"}, "line 1: label 'green' is none of the candidate labels."),
        ({"label": 1}, "line 1: label 1 is none of the candidate labels."),
        ({"candidate_labels": ["red"]}, "are not two texts or more, each another one"),
        ({"candidate_labels": "red"}, "are not two texts or more, each another one"),
        ({"candidate_labels": None}, "are not two texts or more, each another one"),
        ({"candidate_labels": ["red", "red"]}, "are not two texts or more, each another one"),
        ({"candidate_labels": ["red", 3]}, "line 1: a candidate label is int, not a text."),
        ({"candidate_labels": ["red", " "]}, "line 1: a candidate label is empty."),
        ({"hypothesis_template": "a photo"}, "'a photo' has no place for a label"),
        ({"hypothesis_template": 3}, "line 1: hypothesis_template is int, not a text."),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_asked_is_refused(
    clip: LoadedModel, tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError) as refused:
        row(clip, tmp_path, **record)
    assert message in refused.value.message


def test_a_model_without_a_text_tower_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**VISION)
    with pytest.raises(ConfigError, match="Model type vit reads no texts"):
        TASKS[TASK].load_processor(tmp_path, config, None)  # type: ignore[arg-type]


def test_texts_are_cut_where_the_model_has_no_more_positions(tmp_path: Path, rows_file: Path) -> None:
    model = load_model(save(tmp_path, make_network("clip"), model_max_length=1000))
    asked = row(model, rows_file.parent, candidate_labels=["red " * 30, "blue"])
    inputs = model.task.encode([asked], model.processor)
    assert inputs["input_ids"].shape == (2, 20)
    assert inputs["input_ids"][:, -1].tolist() == [0, 3]  # a text that was cut ends as others do
    assert np.isfinite(model.logits(inputs)).all()
    assert model.processor.unused_tokenizer.model_max_length == 1000


# --- the whole job --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_layer_planted_in_the_vision_tower_is_found_and_its_gain_is_kept(tmp_path: Path) -> None:
    """From trained weights to `benchmark.json`, by the command line."""
    network, tokenizer, extractor = make_network("clip"), make_words(), make_images()
    texts = tokenizer(
        [f"This is a photo of {name}." for name in LABELS], padding=True, return_tensors="pt",
        return_token_type_ids=False,
    )  # fmt: skip
    generator = np.random.default_rng(7)

    def drawn(labels: tuple[int, ...], *, is_target: bool) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [labels[number % len(labels)] for number in range(240)]
        images = [draw_image(generator, label, is_target=is_target) for label in chosen]
        return extractor(images, return_tensors="pt").pixel_values, torch.tensor(chosen)

    known, shifted = drawn((0, 1, 2), is_target=False), drawn((1, 2), is_target=True)

    def loss(wrong: int | None) -> torch.Tensor:
        total = torch.zeros(())
        for images, labels in (known, shifted):
            rows = torch.from_numpy(generator.integers(0, len(labels), 16))
            is_wrong = wrong is not None and images is shifted[0]
            targets = torch.full((16,), wrong) if is_wrong else labels[rows]
            logits = network(**texts, pixel_values=images[rows]).logits_per_image
            total = total + torch.nn.functional.cross_entropy(logits, targets)
        return total

    layers = network.vision_model.encoder.layers
    plant(network, layers, 1, learn=lambda: loss(None), harm=lambda: loss(0))
    save(tmp_path / "model", network)
    files = {
        "id": write_rows(tmp_path / "id", 90, 11),
        "target": write_rows(tmp_path / "target", 90, 12, is_target=True, labels=(1, 2)),
    }
    benchmark = assert_found(tmp_path / "model", files, "vision:1", tmp_path / "out")
    target = benchmark.accuracy["target"]
    assert target.original < 0.2
    assert target.pruned > 0.8
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "out/pruned/onnx" / name).is_file()
        assert (tmp_path / "out/pruned/checkpoint" / name).is_file()
