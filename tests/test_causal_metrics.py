"""Metrics of causal language models beside the first: choices by their length, and perplexity."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import NUM_LAYERS, make_tokenizer, write_jsonl
from test_causal_tasks import (
    ANSWERS,
    CHOICES,
    choice_records,
    everything,
    log_likelihoods,
    make_model,
    samples_of,
    words,
)
from test_laws import drop_by_hand
from torch import nn

from tapioca_export import RunConfig
from tapioca_export.benchmarking import compare
from tapioca_export.errors import LoadError, UnknownNameError
from tapioca_export.models import LoadedModel, LoadOptions, find_task, load_model
from tapioca_export.profiling import Probe
from tapioca_export.samples import MIN_ROWS, Samples, read_samples
from tapioca_export.steps import fingerprint
from tapioca_export.tasks import TASKS, Readings


def with_metric(family: str, task: str, metric: str) -> LoadedModel:
    return replace(make_model(family, task), task=TASKS[task].metrics()[metric])


def text_records(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [{"text": words(generator, 2, 40)} for _ in range(num_rows)]


def answer_records(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [{"prompt": words(generator, 1, 20), "answer": words(generator, 1, 9)} for _ in range(num_rows)]


# --- choices by their length ----------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_a_choice_is_ranked_by_its_likelihood_a_character(shared: bool) -> None:
    model = with_metric("llama", CHOICES, "accuracy_norm")
    samples = samples_of(model, choice_records(48))
    scores = model.task.score(model.answers(everything(model, samples, shared=shared)), samples)
    plain = TASKS[CHOICES].score(model.answers(everything(model, samples)), samples)
    assert 0 < scores.values.mean() < 1
    assert not np.array_equal(scores.values, plain.values)  # the rows tell the two metrics apart
    for row, record, value, loss in zip(
        samples.rows, choice_records(48), scores.values, scores.losses, strict=True
    ):
        found = zip(log_likelihoods(model, row), record["choices"], strict=True)
        totals = torch.stack([logs.sum() / len(choice) for logs, choice in found])
        assert value == (int(totals.argmax()) == row.label)
        expected = nn.functional.cross_entropy(totals[None], torch.tensor([row.label]))
        assert loss == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_the_length_of_a_choice_is_counted_in_characters_not_in_bytes_or_tokens() -> None:
    model = with_metric("llama", CHOICES, "accuracy_norm")
    record = {"context": "w1", "choices": ["w2 w3", "äöü€", "w4"], "label": 0}
    (row,) = samples_of(model, [record]).rows
    assert model.task.sizes(row).tolist() == [5, 4, 2]  # type: ignore[attr-defined]


# --- perplexity -----------------------------------------------------------------------------


def all_losses(model: LoadedModel, samples: Samples) -> np.ndarray:
    """Return the negative log-likelihood of every token scored, row after row."""
    found = [-log_likelihoods(model, row)[0] for row in samples.rows]
    return np.concatenate([part.numpy() for part in found])


@pytest.mark.parametrize("records", [text_records(30), answer_records(30)], ids=["texts", "answers"])
def test_the_metric_is_the_logarithm_of_the_perplexity_of_all_tokens(records: list[dict[str, Any]]) -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    samples = samples_of(model, records)
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    tokens = all_losses(model, samples)
    assert math.exp(scores.values.mean()) == pytest.approx(math.exp(tokens.mean()), rel=1e-5)
    row_means = [-float(log_likelihoods(model, row)[0].mean()) for row in samples.rows]
    assert scores.values.mean() != pytest.approx(np.mean(row_means), rel=1e-3)  # the rows tell the two apart
    assert (scores.values >= model.task.best_value).all()


def test_a_text_is_scored_from_its_first_word_where_a_token_stands_before_it() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    samples = samples_of(model, [{"text": "w1 w2 w3"}])
    ids = model.processor.tokenizer.convert_tokens_to_ids(["[CLS]", "w1", "w2", "w3"])
    assert samples.rows[0].features["context"] == tuple(ids[:1])
    assert samples.rows[0].features["answers"] == (tuple(ids[1:]),)
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    with torch.no_grad():
        loss = model.network(torch.tensor([ids]), labels=torch.tensor([ids])).loss  # transformers' own
    assert scores.values.mean() == pytest.approx(float(loss), rel=1e-5)


def test_rows_scored_apart_add_up_to_rows_scored_together() -> None:
    model = with_metric("gpt2", ANSWERS, "perplexity")
    samples = samples_of(model, text_records(20))
    together = model.task.score(model.answers(everything(model, samples)), samples).values
    for chosen in (np.arange(0, 20, 3), np.array([7])):
        answers = model.answers(model.task.batch(samples, chosen, model.processor))
        apart = model.task.score(answers, samples, chosen).values
        np.testing.assert_allclose(apart, together[chosen], rtol=1e-5)


def test_layers_left_out_give_the_perplexity_of_the_model_without_them() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    samples = samples_of(model, text_records(16))
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=5)
    found = probe.scores((), range(NUM_LAYERS), np.arange(16))
    for layer in range(NUM_LAYERS):
        small = drop_by_hand(model, (layer,))
        assert found[layer][0].mean() == pytest.approx(all_losses(small, samples).mean(), rel=1e-5)


def test_a_profile_of_texts_reads_their_last_token_but_one() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    samples = samples_of(model, text_records(12))
    stream: list[torch.Tensor] = []
    hook = model.layers[-1].register_forward_hook(lambda _, __, output: stream.append(output))
    for row in samples.rows:
        ids = [*row.features["context"], *row.features["answers"][0]]
        model.logits({"input_ids": np.asarray([ids[:-1]])})
    hook.remove()
    expected = np.mean([float(states[0, -1].norm()) for states in stream])
    profile = Probe(model, {"id": samples, "target": samples}).profile("id")
    assert profile.norms[-1] == pytest.approx(expected, rel=1e-5)


def test_a_long_text_is_cut_behind_and_an_answer_keeps_its_prompt() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    (row,) = samples_of(model, [{"text": " ".join(f"w{i}" for i in range(90))}]).rows
    assert [row.features["context"], row.features["answers"][0]] == [(1,), tuple(range(4, 4 + 63))]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "text is int"),
        ({"answer": "w1"}, "has neither text nor prompt"),
        ({"prompt": "w1 w2", "answer": "w3"}, "has prompt and answer"),
    ],
)
def test_a_row_that_is_no_text_is_refused_with_its_place(
    record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "w1 w2"}, record])
    with pytest.raises(LoadError, match=message) as refused:
        read_samples(path, model.task.rows({}, model.processor), role="id-select")
    assert f"{path}, line 2" in refused.value.message


def test_a_text_of_one_token_follows_nothing() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    tokenizer = make_tokenizer("llama")
    tokenizer._tokenizer.post_processor = None
    with pytest.raises(LoadError, match="the text has one token"):
        samples_of(replace(model, processor=replace(model.processor, tokenizer=tokenizer)), [{"text": "w1"}])


def test_intervals_of_perplexity_are_of_row_values_and_lower_is_better() -> None:
    model = with_metric("llama", ANSWERS, "perplexity")
    samples = samples_of(model, text_records(40))
    before = model.task.score(model.answers(everything(model, samples)), samples)
    better = replace(before, values=before.values * 0.9)
    found = compare(model.task, before, better)
    assert (found.metric, found.higher_is_better, found.gained, found.lost) == (
        "log_perplexity",
        False,
        40,
        0,
    )
    assert found.gain_interval[0] > 0
    assert found.p_value < 0.001


def test_the_log_probabilities_of_many_tokens_are_those_of_each() -> None:
    generator = np.random.default_rng(0)
    logits, tokens = generator.normal(size=(1, 300, 7)), generator.integers(0, 7, 300)
    asked = Readings(np.arange(300) // 3, np.zeros(300, int), np.arange(300), tokens, np.zeros(100, int))
    found = asked.found_in(logits).reshape(300, 2)
    expected = torch.log_softmax(torch.from_numpy(logits[0]), dim=-1).numpy()[np.arange(300), tokens]
    np.testing.assert_allclose(found[:, 0], expected)
    assert np.array_equal(found[:, 1], logits[0].argmax(axis=1) == tokens)


# --- which metric ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "metric", "found"),
    [
        (CHOICES, None, "accuracy"), (CHOICES, "accuracy", "accuracy"),
        (CHOICES, "accuracy_norm", "accuracy_norm"),
        (ANSWERS, None, "exact_match"), (ANSWERS, "perplexity", "log_perplexity"),
        (ANSWERS, "log_perplexity", "log_perplexity"),
    ],
)  # fmt: skip
def test_a_metric_is_chosen_by_its_name(task: str, metric: str | None, found: str) -> None:
    assert find_task(make_model("llama").network.config, task, LoadOptions(metric=metric)).metric == found


@pytest.mark.parametrize(
    ("family", "task", "metric"),
    [
        ("llama", CHOICES, "accuracy_nrom"),
        ("llama", ANSWERS, "accuracy"),
        ("bert", "fill-mask", "f1"),
        ("t5", "text2text-generation", "perplexity"),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused(family: str, task: str, metric: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    with pytest.raises(UnknownNameError, match=f"Unknown metric of {task} '{metric}'"):
        find_task(config, task, LoadOptions(metric=metric))


def test_a_search_by_another_metric_is_another_search(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "model")
    path = write_jsonl(tmp_path / "id.jsonl", choice_records(4 * MIN_ROWS))
    config = RunConfig(model=str(folder), task=CHOICES, id=path, target=path)
    model = load_model(folder, CHOICES)
    samples = samples_of(model, choice_records(8))
    roles = {"id-select": samples, "target-select": samples}
    marks = [fingerprint(replace(config, metric=name), roles) for name in (None, "accuracy_norm")]
    assert marks[0] != marks[1]
    prompted = replace(config, prompt_template="{{context}}")
    assert fingerprint(prompted, roles) != marks[0]


def save_decoder(folder: Path) -> Path:
    make_model("llama").network.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder
