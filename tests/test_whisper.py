"""Whisper, whose encoder hears and whose decoder writes: layers go, and the three graphs say the same."""

from __future__ import annotations

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
from click.testing import CliRunner
from conftest import NUM_LAYERS, awaken, make_tokenizer, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tapioca_export.artifacts import Benchmark, Export, Selection, read
from tapioca_export.benchmarking import RUNTIMES, BenchmarkSettings, make_workloads, score_exported
from tapioca_export.cli import main
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
from tapioca_export.tasks import Inputs, Processor
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
    session = RUNTIMES["onnxruntime"](tmp_path, "cpu", 1)
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


def save_recognizer(folder: Path) -> Path:
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
    transformers.WhisperFeatureExtractor(
        feature_size=BANDS, sampling_rate=RATE, hop_length=HOP, chunk_length=SECONDS, n_fft=HOP
    ).save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"vocab_size": len(TOKENS_OF), "max_source_positions": 20, "max_target_positions": 40}
    sizes |= {"decoder_start_token_id": 3, "bos_token_id": 3}
    config = transformers.WhisperConfig(
        **{**WHISPER, **sizes, "decoder_start_token_id": 3, "bos_token_id": 3}
    )
    network = awaken(transformers.WhisperForConditionalGeneration(config))
    network.generation_config.decoder_start_token_id = 3
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_recognizer(tmp_path_factory.mktemp("recognizer")))  # the task is inferred


@pytest.fixture(scope="module")
def sayings(recognizer: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Return noise of several lengths, and texts."""
    folder, records = tmp_path_factory.mktemp("sayings"), []
    generator = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", generator.normal(0, 0.2, 6000 + 800 * number), RATE)
        text = " ".join(generator.choice(list(LETTERS), 2 + number % 4))
        records.append({"audio": f"{number}.wav", "text": text})
    read_row = recognizer.task.rows({}, recognizer.processor)
    return read_samples(write_jsonl(folder / "rows.jsonl", records), read_row, role="id-select")


def test_what_whisper_writes_is_what_generate_writes_and_is_scored_as_words(
    recognizer: LoadedModel, sayings: Samples
) -> None:
    task, tokenizer = recognizer.task, recognizer.processor.tokenizer
    assert (task.name, recognizer.processor.prompt) == ("automatic-speech-recognition", (3, 4))
    said, losses, values = {}, np.empty(12), np.empty(12)
    for batch in task.batches(sayings, recognizer.processor, 5):
        scores = task.score(recognizer.answers(batch), sayings, batch.indices)
        losses[batch.indices], values[batch.indices] = scores.losses, scores.values
    for index, row in enumerate(sayings.rows):
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
    texts = [row.label for row in sayings.rows]
    assert values.mean() == pytest.approx(jiwer.wer(texts, [said[index] for index in range(12)]))
    assert len(set(said.values())) > 3


def test_candidates_of_both_halves_write_what_the_smaller_models_write(
    recognizer: LoadedModel, sayings: Samples
) -> None:
    layers = droppable_layers(recognizer)
    assert set(range(NUM_LAYERS)) <= set(layers)
    probe = Probe(recognizer, {"id": sayings, "target": sayings}, batch_size=5)
    found = probe.metrics((1,), [layer for layer in layers if layer != 1])
    for layer, score in found.items():
        smaller = drop_layers(recognizer, sorted((1, layer)))
        alone = Probe(smaller, {"id": sayings, "target": sayings}, batch_size=5).metric()
        assert (score.metric, score.loss) == (alone.metric, alone.loss)
    assert len({score.metric for score in found.values()}) > 2
    profile = probe.profile("target", (1, NUM_LAYERS + 1))
    assert len(profile.norms) == 2 * NUM_LAYERS + 2


def test_what_a_search_costs_that_generates_is_not_told_beforehand(
    recognizer: LoadedModel, sayings: Samples
) -> None:
    with pytest.raises(ConfigError, match="a model that writes its answers cannot be told beforehand"):
        predict(
            recognizer, {"id": sayings, "target": sayings}, lambda probe, in_full: pytest.fail("searched")
        )


@pytest.mark.slow
def test_an_exported_whisper_is_scored_by_what_its_graphs_write(
    recognizer: LoadedModel, sayings: Samples, tmp_path: Path
) -> None:
    layers = recognizer.numbering.indices(DROPPED)
    batches = [batch.inputs for batch in recognizer.task.batches(sayings, recognizer.processor, 5)]
    (tmp_path / "pruned").mkdir()
    save_pruned(recognizer, sorted(layers), tmp_path / "pruned", batches)  # a fresh process agrees to the bit
    pruned = load_model(tmp_path / "pruned")
    (tmp_path / "onnx").mkdir()
    export = export_model(pruned, sayings, tmp_path / "onnx", ExportSettings())
    assert (export.prompts_continued, export.tokens_generated) == (
        4,
        39,
    )
    found = score_exported(tmp_path / "onnx", pruned.task, sayings, pruned.processor)
    alone = Probe(pruned, {"id": sayings, "target": sayings}).metric()
    assert found.values.mean() == pytest.approx(alone.metric)
    assert found.loss == pytest.approx(alone.loss, rel=1e-4)
    settings = BenchmarkSettings(batch_sizes=(2,), warmup=0, iterations=2)
    works = make_workloads(pruned.task, sayings, pruned.processor, settings, export.cache)
    session = RUNTIMES["onnxruntime"](tmp_path / "onnx", "cpu", 1)
    assert [(work.phase, work.sequence_length) for work in works] == [("prefill", 40), ("decode", 40)]
    assert session(works[1].batches[0])["logits"].shape == (2, 1, len(TOKENS_OF))
    assert works[1].batches[0]["past_key_values.0.encoder.key"].shape[2] == 20


def test_a_text_that_is_longer_than_the_decoder_is_refused(recognizer: LoadedModel, sayings: Samples) -> None:
    record = {"audio": str(sayings.rows[0].features["audio"]), "text": "a " * 38}
    with pytest.raises(LoadError, match="the text has 39 tokens, the model has room for 38"):
        recognizer.task.rows({}, recognizer.processor)(record, "line 1")


@pytest.mark.slow
def test_the_whole_job_runs_on_a_whisper(recognizer: LoadedModel, tmp_path: Path) -> None:
    generator, files = np.random.default_rng(5), {}
    for name in ("id", "target"):
        (tmp_path / name).mkdir()
        records = []
        for number in range(16):
            soundfile.write(tmp_path / name / f"{number}.wav", generator.normal(0, 0.2, 9000), RATE)
            text = " ".join(generator.choice(list(LETTERS), 2))
            records.append({"audio": f"{number}.wav", "text": text})
        files[name] = write_jsonl(tmp_path / name / "rows.jsonl", records)
    out = tmp_path / "out"
    arguments = ["run", "-m", recognizer.source, "--id", files["id"], "--target", files["target"], "-o", out]
    options = ["--criterion", "fixed", "--drop", "encoder:1,decoder:2", "--iterations", 2, "--warmup", 0]
    result = CliRunner().invoke(main, [str(argument) for argument in (*arguments, *options)])
    assert result.exit_code == 0, result.output
    assert read(out / "selection.json", Selection).drop == DROPPED
    target = read(out / "benchmark.json", Benchmark).accuracy["target"]
    assert (target.metric, target.original > 0) == ("wer", True)
    pruned = read(out / "pruned/onnx/export.json", Export)
    assert (tuple(pruned.files), pruned.tokens_generated) == (DECODER_FILES, 39)
