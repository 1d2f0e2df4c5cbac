"""What is said in a recording, by a token a frame: word error rate, the loss of CTC, and the whole job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import NUM_LAYERS, awaken
from media import AUDIO_FAMILIES, RATE, SPELLED, make_extractor, say, sayings, write_sayings
from planting import assert_found, plant
from said import assert_changes, of_classes

from tapioca_export.errors import ConfigError, LoadError, SelectionError
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
from tapioca_export.samples import Row, Samples, read_samples
from tapioca_export.tasks import TASKS
from tapioca_export.tasks.speech_recognition import ctc_losses

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
TASK = "automatic-speech-recognition"
FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "sew")
BLANK, UNKNOWN, SPACE = 0, 1, 2
VOCABULARY = {"[PAD]": BLANK, "[UNK]": UNKNOWN, "|": SPACE, **{c: i + 3 for i, c in enumerate(SPELLED)}}


def make_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    path = folder / "vocab.json"
    path.write_text(json.dumps(VOCABULARY), encoding="utf-8")
    return transformers.Wav2Vec2CTCTokenizer(
        str(path), pad_token="[PAD]", unk_token="[UNK]", bos_token=None, eos_token=None
    )


def make_network(family: str, **overrides: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    values = {**AUDIO_FAMILIES[family], "vocab_size": len(VOCABULARY), "pad_token_id": BLANK, **overrides}
    config = transformers.AutoConfig.for_model(family, **values)
    return awaken(transformers.AutoModelForCTC.from_config(config))


def save(folder: Path, network: transformers.PreTrainedModel) -> Path:
    network.save_pretrained(folder)
    make_extractor("wav2vec2").save_pretrained(folder)
    make_tokenizer(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = save(tmp_path_factory.mktemp(family), make_network(family))
        return folders[family]

    return of


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sayings(tmp_path_factory.mktemp("rows"), 12, 1, is_target=False, longest=4)


def read(model: LoadedModel, path: Path) -> Samples:
    return read_samples(path, model.task.rows({}, model.processor), role="id-select")


# --- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_go_and_skipping_and_replaying_say_the_same_to_the_bit(
    family: str, checkpoint: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint(family))  # the task is inferred
    rows = read(model, rows_file)
    assert model.task.name == TASK
    layers = droppable_layers(model)
    assert layers[-NUM_LAYERS + 1 :] == tuple(range(1, NUM_LAYERS))
    smaller = {layer: drop_layers(model, [layer]) for layer in layers}
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=5)
    for batch, layer, trace in probe._passes(rows, (), layers):
        if layer is None:
            plain = model.logits(batch.inputs)
            continue
        dropped = smaller[layer].logits(batch.inputs)
        assert np.abs(dropped - plain).max() > 1e-4
        assert np.array_equal(trace.answers, dropped)
        with skipping(model, [layer]):
            assert np.array_equal(model.logits(batch.inputs), dropped)
    batches = [batch.inputs for batch in model.task.batches(rows, model.processor, 5)]
    save_pruned(model, [2], tmp_path, batches)  # raises unless a fresh process agrees to the bit
    assert load_model(tmp_path).num_layers == NUM_LAYERS - 1


@pytest.mark.parametrize("family", ["wav2vec2", "sew"])  # of which one stretches its frames again
def test_what_is_said_of_frames_changes_as_single_rows_say(
    family: str, checkpoint: Callable[[str], Path], rows_file: Path
) -> None:
    model = load_model(checkpoint(family))
    assert_changes(model, read(model, rows_file), of_classes, (0, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_that_of_transformers_torch_and_jiwer_whatever_a_row_is_padded_to(
    family: str, checkpoint: Callable[[str], Path], rows_file: Path
) -> None:
    model = load_model(checkpoint(family))
    rows, network, tokenizer = read(model, rows_file), model.network, model.processor.tokenizer
    values, losses, said = np.empty(len(rows)), np.empty(len(rows)), {}
    for batch in model.task.batches(rows, model.processor, 5):
        scores = model.task.score(model.answers(batch), rows, batch.indices)
        values[batch.indices], losses[batch.indices] = scores.values, scores.losses
    for index, row in enumerate(rows.rows):
        inputs = model.task.encode([row], model.processor)
        logits = torch.from_numpy(model.logits(inputs))
        said[index] = tokenizer.batch_decode(logits.argmax(dim=-1))[0]
        labels = torch.tensor(tokenizer(row.label).input_ids)[None]
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            network.config.ctc_loss_reduction = "mean"
            expected = network(**tensors, labels=labels).loss
        assert losses[index] == pytest.approx(float(expected), rel=1e-3)
        words = [len(row.label.split()) for row in rows.rows]
        own = jiwer.process_words(row.label, said[index])
        errors = own.substitutions + own.deletions + own.insertions
        assert values[index] == pytest.approx(errors / np.mean(words))
    texts = [row.label for row in rows.rows]
    assert values.mean() == pytest.approx(jiwer.wer(texts, [said[index] for index in range(len(rows))]))
    assert values.std() > 0


def test_the_loss_of_ctc_is_that_of_torch_on_rows_of_all_lengths() -> None:
    generator = np.random.default_rng(0)
    found = torch.log_softmax(torch.from_numpy(generator.normal(size=(5, 15, 6)) * 2), dim=-1)
    texts = [(3,), (3, 3, 3), (1, 2, 3, 4, 5), (5, 5), (2, 4, 2, 4)]
    frames = [1, 7, 15, 3, 9]
    expected = torch.nn.functional.ctc_loss(
        found.transpose(0, 1), torch.tensor([token for text in texts for token in text]),
        torch.tensor(frames), torch.tensor([len(text) for text in texts]), reduction="none",
    )  # fmt: skip
    lengths = np.asarray([len(text) for text in texts])
    np.testing.assert_allclose(ctc_losses(found.numpy(), frames, texts, 0), expected.numpy() / lengths)


def test_profiles_are_read_at_real_frames(checkpoint: Callable[[str], Path], rows_file: Path) -> None:
    model = load_model(checkpoint("wav2vec2"))
    rows = read(model, rows_file)
    one, other = (Probe(model, {"id": rows, "target": rows}, batch_size=n).profile("id") for n in (1, 5))
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-4)
    assert one.num_tokens == other.num_tokens == sum(row.features["frames"] for row in rows.rows)


@pytest.mark.slow
def test_an_exported_file_says_what_pytorch_says(
    checkpoint: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint("hubert"))
    export = export_model(model, read(model, rows_file), tmp_path, ExportSettings())
    assert export.label_agreement == 1.0
    assert {shape[0] for shape in export.shapes_checked} == {1, 2, 3, 8}
    assert (tmp_path / "vocab.json").is_file()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab() == VOCABULARY


# --- rows -----------------------------------------------------------------------------------


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> LoadedModel:
    soundfile.write(tmp_path / "0.wav", say(np.random.default_rng(0), "a b", is_target=False), RATE)
    return load_model(checkpoint("wav2vec2"))


def row(model: LoadedModel, folder: Path, text: Any) -> Row:
    record = {"audio": str(folder / "0.wav"), "text": text}
    return model.task.rows({}, model.processor)(record, "line 1")


def test_a_row_knows_its_tokens_frames_and_words(model: LoadedModel, tmp_path: Path) -> None:
    found = row(model, tmp_path, "a  cb")
    assert found.label == "a  cb"
    assert (found.features["words"], found.features["frames"]) == (2, 23)
    assert found.features["tokens"] == (3, SPACE, SPACE, 5, 4)
    assert row(model, tmp_path, None).label is None


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a B-c!", "line 1: the model cannot write '!-B' of the text 'a B-c!'.", "It writes: abc|"),
        ("abc" * 8, "24 tokens, for which the model needs 24 frames; the recording has 23", "is cut"),
        ("a" * 13, "13 tokens, for which the model needs 25 frames; the recording has 23", "is cut"),
        ("  ", "line 1: text is empty.", "fill it in"),
        (3, "line 1: text is int, not a text.", ""),
    ],
)  # fmt: skip
def test_a_text_that_the_model_cannot_write_is_refused(
    model: LoadedModel, tmp_path: Path, text: Any, message: str, hint: str
) -> None:
    with pytest.raises(LoadError) as refused:
        row(model, tmp_path, text)
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


def test_case_counts_and_runs_of_spaces_do_not(model: LoadedModel, tmp_path: Path) -> None:
    task: Any = TASKS[TASK]
    rows = [row(model, tmp_path, "a b"), row(model, tmp_path, "a  b c b")]
    samples = Samples("id-select", tuple(rows), "", "")
    found = task.values([" A   b", "a b c b b"], samples, np.arange(2))
    np.testing.assert_allclose(found, [1 / 3, 1 / 3])  # one error each, by three words on the average


def test_logits_that_are_not_finite_are_refused(model: LoadedModel, tmp_path: Path) -> None:
    samples = Samples("id-select", (row(model, tmp_path, "a b"),), "", "")
    with pytest.raises(SelectionError, match="not finite"):
        model.task.score(np.full((1, 23, 6), np.nan, dtype=np.float32), samples)


def test_another_blank_in_the_tokenizer_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    save(tmp_path, make_network("wav2vec2", pad_token_id=1))
    with pytest.raises(LoadError, match="is token 1, that of its tokenizer 0"):
        load_model(tmp_path)


def test_a_model_without_a_token_a_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Model type bert names no token for each stretch of a waveform"):
        TASKS[TASK].load_processor(tmp_path, transformers.BertConfig(), None)  # type: ignore[arg-type]


# --- the whole job --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_layer_planted_in_a_recognizer_is_found_and_its_gain_is_kept(tmp_path: Path) -> None:
    """From trained weights to `benchmark.json`, by the command line; the planted layer strikes dumb."""
    network, extractor = make_network("wav2vec2"), make_extractor("wav2vec2")
    generator = np.random.default_rng(7)

    def drawn(*, is_target: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        texts = sayings(generator, 160)
        waves = [say(generator, text, is_target=is_target) for text in texts]
        inputs = extractor(waves, sampling_rate=RATE, padding=True, return_tensors="pt")
        frames = np.full((len(texts), 23), SPACE)
        for number, text in enumerate(texts):
            frames[number, :10], frames[number, 14:] = (VOCABULARY[letter] for letter in text.split())
        return dict(inputs), torch.from_numpy(frames)

    known, shifted = drawn(is_target=False), drawn(is_target=True)

    def loss(wrong: int | None) -> torch.Tensor:
        total = torch.zeros(())
        for inputs, frames in (known, shifted):
            rows = torch.from_numpy(generator.integers(0, len(frames), 16))
            targets = frames[rows]
            if wrong is not None and inputs is shifted[0]:
                targets = torch.full_like(targets, wrong)
            logits = network(**{name: value[rows] for name, value in inputs.items()}).logits
            total = total + torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
        return total

    layers = network.wav2vec2.encoder.layers
    plant(network, layers, 1, learn=lambda: loss(None), harm=lambda: loss(BLANK))
    save(tmp_path / "model", network)
    files = {
        name: write_sayings(tmp_path / name, 60, seed, is_target=name == "target")
        for seed, name in enumerate(("id", "target"), start=11)
    }
    benchmark = assert_found(tmp_path / "model", files, 1, tmp_path / "out")
    target = benchmark.accuracy["target"]
    assert target.metric == "wer"
    assert target.original > 0.8
    assert target.pruned < 0.2
    assert "wer is the word error rate" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
    for place in ("original/onnx", "pruned/onnx", "pruned/checkpoint"):
        assert (tmp_path / "out" / place / "vocab.json").is_file()
