"""Whisper, whose encoder hears and whose decoder writes: layers go, and the three graphs say the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from conftest import NUM_LAYERS, awaken, make_tokenizer

from tapioca_export.benchmarking import RUNTIMES
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.exporting.parity import TOKENS
from tapioca_export.generation import DECODER_FILES, generate
from tapioca_export.models import (
    LoadedModel,
    drop_layers,
    generated,
    in_order,
    prunable_stacks,
    skipping,
    stand_ins,
)
from tapioca_export.profiling.replaying import passes
from tapioca_export.samples import Row, Samples
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
