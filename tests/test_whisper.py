"""Whisper, whose encoder hears and whose decoder writes: layers go, and the three graphs say the same."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
import transformers
from conftest import NUM_LAYERS, awaken, make_tokenizer, write_jsonl
from media import say, sayings, write_sayings
from planting import assert_found, plant
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tapioca_export.artifacts import Export, read
from tapioca_export.benchmarking import (
    RUNTIMES,
    BenchmarkSettings,
    default_settings,
    make_workloads,
    score_exported,
)
from tapioca_export.costing import predict
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.exporting.parity import TOKENS
from tapioca_export.generation import DECODER_FILES, generate
from tapioca_export.models import (
    LoadedModel,
    drop_layers,
    droppable_layers,
    generated,
    in_order,
    load_model,
    prunable_stacks,
    save_pruned,
    skipping,
    stand_ins,
)
from tapioca_export.profiling import Probe
from tapioca_export.profiling.replaying import passes
from tapioca_export.samples import Row, Samples, read_samples
from tapioca_export.tasks import Inputs, Processor, ProcessorOptions
from tapioca_export.tasks.causal import padded
from tapioca_export.tasks.text2text_generation import Text2TextGeneration

START, LONGEST, POSITIONS, BANDS = 2, 128, 12, 8
WHISPER: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": NUM_LAYERS, "decoder_layers": NUM_LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "num_mel_bins": BANDS, "max_source_positions": POSITIONS, "max_target_positions": LONGEST,
    "decoder_start_token_id": START, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
DROPPED = ("encoder:1", "decoder:2")


class Dictation(Text2TextGeneration):
    """An answer to a spectrogram; the least that a task has to say of Whisper's inputs."""

    padding_sides = ("none",)

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return Processor(str(folder), "answer-start", LONGEST, tokenizer)

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        answers = [(*processor.prompt, *row.features["answers"][0][:-1]) for row in rows]
        return {
            "input_features": np.stack([row.features["context"] for row in rows]),
            self.answer_input: padded(answers, processor, "right")["input_ids"],
        }

    def examples(self, processor: Processor) -> list[Inputs]:
        return [self.encode(make_rows(5, 2).rows, processor)]

    def axes(self, name: str) -> tuple[str, ...]:
        return ("batch",) if name == "input_features" else super().axes(name)


def make_rows(seed: int, number: int) -> Samples:
    """Draw spectrograms and answers of several lengths."""
    generator, rows = np.random.default_rng(seed), []
    for index in range(number):
        heard = generator.normal(size=(BANDS, 2 * POSITIONS)).astype(np.float32)
        answer = tuple(generator.integers(3, 96, 2 + index % 5).tolist())
        rows.append(Row({"context": heard, "answers": (answer,)}, "", str(index), f"line {index}"))
    return Samples("target-select", tuple(rows), "file", "")


@pytest.fixture(scope="module")
def whisper() -> LoadedModel:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**WHISPER)
    network = awaken(transformers.WhisperForConditionalGeneration(config))
    tokenizer = make_tokenizer("llama")
    processor = Processor(
        "whisper", "answer-start", LONGEST, tokenizer, unused_tokenizer=tokenizer, prompt=(START,),
        generation_config=network.generation_config,
    )  # fmt: skip
    model = LoadedModel(network, Dictation(), processor, "whisper", prunable_stacks(network))
    stacks = in_order(network, model.stacks, lambda: model.logits(Dictation().examples(processor)[0]))
    return LoadedModel(network, Dictation(), processor, "whisper", stacks)


def dropped(model: LoadedModel) -> tuple[int, ...]:
    return tuple(sorted(model.numbering.indices(DROPPED)))


def test_layers_of_both_halves_of_whisper_go_and_skipping_and_replaying_say_the_same_to_the_bit(
    whisper: LoadedModel,
) -> None:
    assert [stack.name for stack in whisper.stacks] == ["encoder", "decoder"]
    batch = whisper.task.batch(make_rows(0, 5), np.arange(5), whisper.processor)
    plain = whisper.answers(batch)
    layers = range(1, whisper.num_layers - 1)
    with stand_ins(whisper) as places:
        found = {key: trace.answers for key, trace in passes(whisper, places, batch, (), layers, whole=True)}
    assert np.array_equal(found.pop(None), plain)
    for layer, replayed in found.items():
        pruned = drop_layers(whisper, [layer]).answers(batch)
        with skipping(whisper, [layer]):
            skipped = whisper.answers(batch)
        assert np.array_equal(replayed, pruned)
        assert np.array_equal(skipped, pruned)
        assert np.abs(pruned - plain).max() > 1e-4


@pytest.mark.slow
def test_the_three_graphs_of_a_pruned_whisper_generate_the_tokens_of_pytorch(
    whisper: LoadedModel, tmp_path: Path
) -> None:
    model = drop_layers(whisper, dropped(whisper))
    rows = make_rows(1, 12)
    export = export_model(model, rows, tmp_path, ExportSettings())
    assert tuple(export.files) == DECODER_FILES
    assert (export.prompts_continued, export.tokens_generated) == (4, TOKENS)
    session = RUNTIMES["onnxruntime"](tmp_path, default_settings("cpu", 1))
    heard = np.stack([row.features["context"] for row in make_rows(2, 3).rows])
    prompts = {"input_features": heard, "decoder_input_ids": np.full((3, 1), START)}
    expected = generated(model, prompts, TOKENS)
    assert expected.shape == (3, TOKENS)
    assert all(len(np.unique(tokens)) > 2 for tokens in expected)  # one that repeats itself proves little
    assert len({tuple(tokens) for tokens in expected}) == 3  # what is heard matters
    np.testing.assert_array_equal(generate(session, prompts, export.cache, TOKENS), expected)
    # Stock transformers, reading the pruned checkpoint, says the same with its cache and without.
    model.network.save_pretrained(tmp_path / "checkpoint")
    stock = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "checkpoint").eval()
    again = LoadedModel(stock, model.task, model.processor, "again", model.stacks)
    np.testing.assert_array_equal(generated(again, prompts, TOKENS), expected)
    encoder = onnxruntime.InferenceSession(tmp_path / DECODER_FILES[0])
    (features,) = encoder.get_inputs()
    assert (features.name, features.shape) == ("input_features", ["batch", BANDS, 2 * POSITIONS])
    names = {value.name for value in onnxruntime.InferenceSession(tmp_path / DECODER_FILES[2]).get_inputs()}
    assert "past_key_values.2.encoder.value" in names
    assert "past_key_values.3.decoder.key" not in names


# --- the task -------------------------------------------------------------------------------

RATE, SECONDS, HOP = 16_000, 1, 400  # 40 frames, of which the encoder hears every second one
LETTERS = "abcdef"
SPECIAL = ("[PAD]", "[UNK]", "[END]", "[START]", "[EN]")
TOKENS_OF = {token: number for number, token in enumerate((*SPECIAL, *LETTERS))}
END, BEGIN, ENGLISH = (TOKENS_OF[token] for token in ("[END]", "[START]", "[EN]"))


def make_recognizer(**overrides: Any) -> transformers.WhisperForConditionalGeneration:
    torch.manual_seed(1)
    sizes = {"vocab_size": len(TOKENS_OF), "max_source_positions": 20, "max_target_positions": 40}
    tokens = {"decoder_start_token_id": 3, "bos_token_id": 3}
    config = transformers.WhisperConfig(**{**WHISPER, **sizes, **tokens, **overrides})
    network = transformers.WhisperForConditionalGeneration(config)
    network.generation_config.decoder_start_token_id = 3
    return network


def make_extractor() -> transformers.WhisperFeatureExtractor:
    return transformers.WhisperFeatureExtractor(
        feature_size=BANDS, sampling_rate=RATE, hop_length=HOP, chunk_length=SECONDS, n_fft=HOP
    )


def save_recognizer(folder: Path, network: transformers.PreTrainedModel) -> Path:
    """Save a tiny Whisper whose texts begin with a language."""
    words = Tokenizer(models.WordLevel(TOKENS_OF, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[START] [EN] $A [END]", special_tokens=[("[START]", 3), ("[EN]", 4), ("[END]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]", bos_token="[START]",
        additional_special_tokens=["[EN]"],
    ).save_pretrained(folder)  # fmt: skip
    make_extractor().save_pretrained(folder)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_recognizer(tmp_path_factory.mktemp("recognizer"), awaken(make_recognizer()))
    return load_model(folder)  # the task is inferred


def make_recordings(model: LoadedModel, folder: Path) -> Samples:
    """Return noise of several lengths, and texts."""
    generator, records = np.random.default_rng(0), []
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", generator.normal(0, 0.2, 6000 + 800 * number), RATE)
        text = " ".join(generator.choice(list(LETTERS), 2 + number % 4))
        records.append({"audio": f"{number}.wav", "text": text})
    read_row = model.task.rows({}, model.processor)
    return read_samples(write_jsonl(folder / "rows.jsonl", records), read_row, role="id-select")


@pytest.fixture(scope="module")
def recordings(recognizer: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make_recordings(recognizer, tmp_path_factory.mktemp("recordings"))


def test_what_whisper_writes_is_what_generate_writes_and_is_scored_as_words(
    recognizer: LoadedModel, recordings: Samples
) -> None:
    task, tokenizer = recognizer.task, recognizer.processor.tokenizer
    assert (task.name, recognizer.processor.prompt) == ("automatic-speech-recognition", (3, 4))
    said, losses, values = {}, np.empty(12), np.empty(12)
    for batch in task.batches(recordings, recognizer.processor, 5):
        scores = task.score(recognizer.answers(batch), recordings, batch.indices)
        losses[batch.indices], values[batch.indices] = scores.losses, scores.values
    for index, row in enumerate(recordings.rows):
        heard = task.encode([row], recognizer.processor)
        prompt = {"input_features": heard["input_features"], "decoder_input_ids": np.asarray([[3, 4]])}
        limit = 2 * len(row.features["answers"][0]) + 8
        tokens = generated(recognizer, prompt, limit)[0].tolist()
        tokens = tokens[: tokens.index(2)] if 2 in tokens else tokens
        said[index] = tokenizer.decode(tokens, skip_special_tokens=True)
        labels = [3, 4, *tokenizer(row.label, add_special_tokens=False).input_ids, 2]
        ids = torch.tensor([labels])
        with torch.no_grad():
            logits = recognizer.network(
                input_features=torch.from_numpy(heard["input_features"]), decoder_input_ids=ids[:, :-1]
            ).logits
        own = torch.log_softmax(logits[0, 1:], dim=-1).gather(1, ids[0, 2:, None])
        assert losses[index] == pytest.approx(-float(own.mean()), rel=1e-4)
    texts = [row.label for row in recordings.rows]
    assert values.mean() == pytest.approx(jiwer.wer(texts, [said[index] for index in range(12)]))
    assert len(set(said.values())) > 3


def test_candidates_of_both_halves_write_what_the_smaller_models_write(
    recognizer: LoadedModel, recordings: Samples
) -> None:
    layers = droppable_layers(recognizer)
    assert set(range(NUM_LAYERS)) <= set(layers)
    probe = Probe(recognizer, {"id": recordings, "target": recordings}, batch_size=5)
    found = probe.metrics((1,), [layer for layer in layers if layer != 1])
    for layer, score in found.items():
        smaller = drop_layers(recognizer, sorted((1, layer)))
        alone = Probe(smaller, {"id": recordings, "target": recordings}, batch_size=5).metric()
        assert (score.metric, score.loss) == (alone.metric, alone.loss)
    assert len({score.metric for score in found.values()}) > 2
    profile = probe.profile("target", (1, NUM_LAYERS + 1))
    assert len(profile.norms) == 2 * NUM_LAYERS + 2


def test_what_a_search_costs_that_generates_is_not_told_beforehand(
    recognizer: LoadedModel, recordings: Samples
) -> None:
    with pytest.raises(ConfigError, match="a model that writes its answers cannot be told beforehand"):
        predict(
            recognizer,
            {"id": recordings, "target": recordings},
            lambda probe, in_full: pytest.fail("searched"),
        )


@pytest.mark.slow
def test_an_exported_whisper_is_scored_by_what_its_graphs_write(
    recognizer: LoadedModel, recordings: Samples, tmp_path: Path
) -> None:
    layers = recognizer.numbering.indices(DROPPED)
    batches = [batch.inputs for batch in recognizer.task.batches(recordings, recognizer.processor, 5)]
    (tmp_path / "pruned").mkdir()
    save_pruned(recognizer, sorted(layers), tmp_path / "pruned", batches)  # a fresh process agrees to the bit
    pruned = load_model(tmp_path / "pruned")
    (tmp_path / "onnx").mkdir()
    export = export_model(pruned, recordings, tmp_path / "onnx", ExportSettings())
    assert (export.prompts_continued, export.tokens_generated) == (4, 39)
    found = score_exported(tmp_path / "onnx", pruned.task, recordings, pruned.processor)
    alone = Probe(pruned, {"id": recordings, "target": recordings}).metric()
    assert found.values.mean() == pytest.approx(alone.metric)
    assert found.loss == pytest.approx(alone.loss, rel=1e-4)
    settings = BenchmarkSettings(batch_sizes=(2,), warmup=0, iterations=2)
    works = make_workloads(pruned.task, recordings, pruned.processor, settings, export.cache)
    session = RUNTIMES["onnxruntime"](tmp_path / "onnx", default_settings("cpu", 1))
    assert [(work.phase, work.sequence_length) for work in works] == [("prefill", 40), ("decode", 40)]
    assert session(works[1].batches[0])["logits"].shape == (2, 1, len(TOKENS_OF))
    assert works[1].batches[0]["past_key_values.0.encoder.key"].shape[2] == 20


def test_a_text_that_is_longer_than_the_decoder_is_refused(
    recognizer: LoadedModel, recordings: Samples
) -> None:
    record = {"audio": str(recordings.rows[0].features["audio"]), "text": "a " * 38}
    with pytest.raises(LoadError, match="the text has 39 tokens, the model has room for 38"):
        recognizer.task.rows({}, recognizer.processor)(record, "line 1")


# --- the whole job --------------------------------------------------------------------------


def training_rows(generator: np.random.Generator, *, is_target: bool) -> tuple[torch.Tensor, torch.Tensor]:
    texts = sayings(generator, 240)
    waves = [say(generator, text, is_target=is_target, rate=RATE) for text in texts]
    heard = make_extractor()(waves, sampling_rate=RATE, return_tensors="pt").input_features
    return heard, torch.tensor(
        [[BEGIN, ENGLISH, *map(TOKENS_OF.__getitem__, text.split()), END] for text in texts]
    )


@pytest.mark.slow
def test_a_layer_planted_in_a_whisper_is_found_and_its_gain_is_kept(tmp_path: Path) -> None:
    """From trained weights to `benchmark.json`, by the command line; the planted layer strikes dumb."""
    network = make_recognizer(encoder_layers=3, decoder_layers=3, init_std=0.1)
    generator = np.random.default_rng(7)
    known, shifted = (training_rows(generator, is_target=is_target) for is_target in (False, True))

    def loss(*, harmful: bool) -> torch.Tensor:
        total = torch.zeros(())
        for heard, tokens in (known, shifted):
            rows = torch.from_numpy(generator.integers(0, len(tokens), 16))
            wanted = tokens[rows, 2:]
            if harmful and heard is shifted[0]:
                wanted = torch.tensor([END, -100, -100]).expand(16, 3)
            logits = network(input_features=heard[rows], decoder_input_ids=tokens[rows, :-1]).logits[:, 1:]
            total = total + torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        return total

    learn, harm = (functools.partial(loss, harmful=harmful) for harmful in (False, True))
    plant(network, network.model.decoder.layers, 1, learn=learn, harm=harm, steps=(150, 240))
    save_recognizer(tmp_path / "model", network)
    files = {
        name: write_sayings(tmp_path / name, 60, seed, is_target=name == "target", rate=RATE)
        for seed, name in enumerate(("id", "target"), start=11)
    }
    benchmark = assert_found(tmp_path / "model", files, "decoder:1", tmp_path / "out")
    target = benchmark.accuracy["target"]
    assert target.metric == "wer"
    assert target.original > 0.8
    assert target.pruned < 0.2
    pruned = read(tmp_path / "out/pruned/onnx/export.json", Export)
    assert (tuple(pruned.files), pruned.tokens_generated, pruned.drop) == (DECODER_FILES, 39, ("decoder:1",))
