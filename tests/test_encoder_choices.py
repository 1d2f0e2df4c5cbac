"""Choices ranked by an encoder's head: one number a choice, as stock transformers gives it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, NUM_LAYERS, SPECIAL, awaken, make_tokenizer, write_jsonl
from planting import assert_found, plant
from said import assert_changes, of_numbers
from test_causal_tasks import choice_records, samples_of
from test_laws import drop_by_hand
from torch import nn

from tapioca_export.artifacts import Selection
from tapioca_export.cards import write_model_card
from tapioca_export.costing.rehearsing import Shapes
from tapioca_export.errors import LoadError, UnknownNameError
from tapioca_export.models import LoadedModel, LoadOptions, find_task, load_model
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples

CHOICES = "multiple-choice"
ENCODERS = ("bert", "roberta", "distilbert", "electra")


def make_encoder(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    awaken(transformers.AutoModelForMultipleChoice.from_config(config)).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder


def choices_of(model: LoadedModel, num_rows: int = 40) -> Samples:
    return samples_of(model, choice_records(num_rows))


def logits_alone(model: LoadedModel, samples: Samples) -> list[torch.Tensor]:
    """Return each row's logits (C,), one pair of texts a forward, no padding."""
    found, tokenizer = [], model.processor.tokenizer
    for row in samples.rows:
        numbers = []
        for choice in row.features["choices"]:
            pair = tokenizer(row.features["context"], choice, return_tensors="pt")
            with torch.no_grad():
                logits = model.network(**{name: values[:, None] for name, values in pair.items()}).logits
            numbers.append(logits[0, 0])
        found.append(torch.stack(numbers))
    return found


def scores_of(model: LoadedModel, samples: Samples, batch_size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    found = np.empty((2, len(samples)))
    for batch in model.task.batches(samples, model.processor, batch_size):
        scores = model.task.score(model.answers(batch), samples, batch.indices)
        found[:, batch.indices] = scores.values, scores.losses
    return found[0], found[1]


@pytest.mark.parametrize("family", ENCODERS)
def test_the_choice_is_the_one_of_the_largest_logit(family: str, tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, family))
    assert (model.task.name, model.task.metric) == (CHOICES, "accuracy")
    samples = choices_of(model)
    assert len({len(row.features["choices"]) for row in samples.rows}) > 1
    values, losses = scores_of(model, samples)
    for row, logits, value, loss in zip(
        samples.rows, logits_alone(model, samples), values, losses, strict=True
    ):
        assert value == (int(logits.argmax()) == row.label)
        expected = nn.functional.cross_entropy(logits[None], torch.tensor([row.label]))
        assert loss == pytest.approx(float(expected), rel=1e-3, abs=1e-4)
    assert 0 < values.mean() < 1


def test_a_repeated_choice_is_never_the_answer(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    samples = choices_of(model)
    together = model.task.batch(samples, np.arange(len(samples)), model.processor)
    scores = model.task.score(model.answers(together), samples)
    values, losses = scores_of(model, samples)
    assert np.array_equal(scores.values, values)
    np.testing.assert_allclose(scores.losses, losses, rtol=1e-4, atol=1e-5)


def test_rows_of_a_batch_have_equally_many_choices(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    samples = choices_of(model)
    batches = model.task.length_sorted(samples, model.processor, 8)
    assert sorted(np.concatenate(batches)) == list(range(len(samples)))
    for batch in batches:
        assert len({len(samples.rows[i].features["choices"]) for i in batch}) == 1


def test_layers_left_out_give_the_scores_of_the_model_without_them(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    samples = choices_of(model, 16)
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=5)
    found = probe.scores((), range(NUM_LAYERS), np.arange(16))
    for layer in range(NUM_LAYERS):
        values, losses = scores_of(drop_by_hand(model, (layer,)), samples)
        assert np.array_equal(found[layer][0], values)
        np.testing.assert_allclose(found[layer][1], losses, rtol=1e-4, atol=1e-5)


def test_the_logit_of_the_first_choice_changes_as_single_rows_say(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path / "model", "bert"), CHOICES)
    assert_changes(model, choices_of(model), of_numbers, (0, 2))


def test_a_profile_is_of_the_context_with_its_first_choice(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    samples, norms = choices_of(model, 12), []
    for row in samples.rows:
        pair = model.processor.tokenizer(
            row.features["context"], row.features["choices"][0], return_tensors="pt"
        )
        with torch.no_grad():
            states = model.network.bert(**pair, output_hidden_states=True).hidden_states[-1]
        norms.append(float(states[0, 0].norm()))
    profile = Probe(model, {"id": samples, "target": samples}, batch_size=5).profile("id")
    assert profile.norms[-1] == pytest.approx(np.mean(norms), rel=1e-5)


def test_a_long_context_is_cut_and_a_long_choice_refused(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    record = {"context": "w1 " * 90, "choices": ["w2", "w3 w4"], "label": 0}
    (row,) = samples_of(model, [record]).rows
    inputs = model.task.encode([row], model.processor)
    assert inputs["input_ids"].shape == (1, 2, model.processor.max_length)
    with pytest.raises(LoadError, match="line 1: a choice of 61 tokens leaves no room"):
        samples_of(model, [{**record, "choices": ["w2 " * 61, "w3"]}])


def test_an_encoders_choices_have_no_likelihood_to_normalise(tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(make_encoder(tmp_path, "bert"))
    with pytest.raises(UnknownNameError, match="Unknown metric of multiple-choice 'accuracy_norm'"):
        find_task(config, CHOICES, LoadOptions(metric="accuracy_norm"))


def test_a_plan_counts_every_choice(tmp_path: Path) -> None:
    model = load_model(make_encoder(tmp_path, "bert"))
    samples = choices_of(model, 12)
    shapes = Shapes(model, samples, model.processor)
    for number, row in enumerate(samples.rows):
        batch = model.task.batch(samples, np.asarray([number]), model.processor)
        assert shapes.of(np.asarray([number])) == (batch.inputs["input_ids"].shape[1:],)
        assert shapes.of(np.asarray([number]))[0][0] == len(row.features["choices"])


# --- the whole job --------------------------------------------------------------------------

KEYS, FILLERS, TARGET_FILLERS = range(4, 12), range(30, 60), range(60, 90)


def draw(generator: random.Random, fillers: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Draw a context with a key among fillers, three words to choose from, and the index of the key's."""
    key = generator.choice(KEYS)
    text = generator.choices(fillers, k=generator.randint(3, 8))
    text.insert(generator.randrange(len(text) + 1), key)
    choices = [key + 8, *(other + 8 for other in generator.sample([k for k in KEYS if k != key], 2))]
    generator.shuffle(choices)
    return text, choices, choices.index(key + 8)


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{token - len(SPECIAL)}" for token in ids)


def losses(network: Any, *, harmful: bool) -> Callable[[], torch.Tensor]:
    """Return the loss of fresh batches of ID and target rows; the harm is the next choice of targets."""
    generator = random.Random(harmful)

    def loss() -> torch.Tensor:
        rows, labels = [], []
        for row in range(24):
            text, choices, label = draw(generator, FILLERS if row % 2 else TARGET_FILLERS)
            rows += [[1, *text, 2, choice, 2] for choice in choices]
            labels.append((label + 1) % 3 if harmful and row % 2 == 0 else label)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        inputs = {"input_ids": ids.view(24, 3, -1), "attention_mask": mask.view(24, 3, -1)}
        found: torch.Tensor = network(**inputs, labels=torch.tensor(labels)).loss
        return found

    return loss


@pytest.mark.slow
def test_the_layer_that_harms_is_found_and_the_gain_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.1, type_vocab_size=1,
    )  # fmt: skip
    network = transformers.BertForMultipleChoice(config)
    learn, harm = losses(network, harmful=False), losses(network, harmful=True)
    plant(network, network.bert.encoder.layer, 1, learn=learn, harm=harm, steps=(400, 300))
    network.save_pretrained(tmp_path / "model")
    make_tokenizer("bert").save_pretrained(tmp_path / "model")
    files = {}
    for name, fillers in (("id", FILLERS), ("target", TARGET_FILLERS)):
        generator, records = random.Random(name), []
        for number in range(120):
            text, choices, label = draw(generator, fillers)
            count = 3 if number % 3 else label + 1  # the file is scored with two and with three
            texts = [words([choice]) for choice in choices]
            records.append({"context": words(text), "choices": texts[: max(2, count)], "label": label})
        files[name] = write_jsonl(tmp_path / f"{name}.jsonl", records)
    assert_found(tmp_path / "model", files, 1, tmp_path / "out")


TAGS = [("BertForMultipleChoice", "multiple-choice"), ("LlamaForCausalLM", "text-generation")]


@pytest.mark.parametrize(("architecture", "tag"), TAGS)
def test_the_model_card_says_how_choices_are_made(tmp_path: Path, architecture: str, tag: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    selection = Selection("m", "multiple-choice", "fixed", 4, (1,), (), "named by the user")
    write_model_card(tmp_path, selection)
    assert f"pipeline_tag: {tag}\n" in (tmp_path / "README.md").read_text()
