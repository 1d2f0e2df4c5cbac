"""Answers that a model writes, and the rule that finds in them what counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import awaken, processor_of
from test_causal_tasks import (
    ANSWERS,
    CHOICES,
    everything,
    greedy,
    make_model,
    samples_of,
    words,
)
from test_text2text import network_of, save

from tapioca_export import RunConfig
from tapioca_export.artifacts import Prompting
from tapioca_export.benchmarking import score_exported
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import (
    LoadedModel,
    LoadOptions,
    drop_layers,
    find_task,
    load_model,
    skipping,
)
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples
from tapioca_export.tasks import answering
from tapioca_export.tasks.writing import extracted

TEXT2TEXT = "text2text-generation"
STRICT = r"#### (-?[0-9.,]+)"
FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


# --- the rule -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "last", "text", "found"),
    [
        (STRICT, False, "5 + 2 = 7\n#### 7\n\nQ: next? #### 9", "7"),
        (STRICT, True, "#### 7\n\nQ: next? #### 9", "9"),
        (STRICT, False, "the answer is 7", None),
        (FLEXIBLE, True, "from 10 to 7", "7"),  # the second group, as the first matched nothing
        (FLEXIBLE, False, "from 10 to 7", "10"),
        ("yes|no", False, "I say no, not yes", "no"),
        (r"(?s)^(.*?)(?:\n\n|$)", False, " two words \n\nmore", "two words"),  # up to a blank line
        (r"is( *)$", False, "it is   ", None),  # what is found holds nothing
        (None, False, "  two words\n", "two words"),
        (None, False, "", ""),
    ],
)
def test_the_rule_takes_the_first_match_or_the_last(
    rule: str | None, last: bool, text: str, found: str | None
) -> None:
    assert extracted(text, Prompting(None, False, (), 8, rule, last)) == found


# --- what is written ------------------------------------------------------------------------


def written(family: str, rule: str | None = None, num_tokens: int = 6, eos: int | None = None) -> LoadedModel:
    """Return a decoder whose answers are written; none ends, unless by a token."""
    prompting = Prompting(max_new_tokens=num_tokens, extract=rule)
    model = make_model(family, ANSWERS)
    generation = transformers.GenerationConfig(eos_token_id=eos)
    processor = replace(model.processor, prompting=prompting, generation_config=generation)
    return replace(model, task=answering(model.task, prompting), processor=processor)


def asked(model: LoadedModel, num_rows: int, skipped: Sequence[int] = ()) -> tuple[Samples, list[str]]:
    """Make rows of several lengths, and what is written to them; every third label is right."""
    generator, records, texts = random.Random(3), [], []
    for number in range(num_rows):
        record = {"prompt": words(generator, 1, 12), "answer": "w1"}
        (row,) = samples_of(model, [record]).rows
        with skipping(model, skipped):
            ids = greedy(model, row.features["context"], model.task.prompting.max_new_tokens)
        ends = model.processor.generation_config.eos_token_id
        ids = ids[: ids.index(ends)] if ends in ids else ids
        texts.append(model.processor.tokenizer.decode(ids, skip_special_tokens=True))
        answer = extracted(texts[-1], model.task.prompting)
        records.append({**record, "answer": answer if number % 3 == 0 and answer else "w2 w1"})
    return samples_of(model, records), texts


@pytest.mark.parametrize("skipped", [(), (0,), (1, 3)])
@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama", "opt", "qwen2"])
def test_an_answer_is_what_greedy_generation_writes_with_layers_skipped(
    family: str, skipped: tuple[int, ...]
) -> None:
    model = written(family)
    samples, texts = asked(model, 9, skipped)
    with skipping(model, skipped):
        answers = model.answers(everything(model, samples))
    ids = [found[found >= 0].astype(int).tolist() for found in answers[:, 1]]
    assert [model.processor.tokenizer.decode(row, skip_special_tokens=True) for row in ids] == texts
    assert len(set(texts)) > 3
    scores = model.task.score(answers, samples)
    right = [n % 3 == 0 and bool(text) for n, text in enumerate(texts)]
    assert scores.values[:, 0].tolist() == right
    assert 1 <= sum(right) < 9
    assert float(model.task.aggregate(scores.values)) == pytest.approx(np.mean(right))


def test_an_answer_ends_where_the_checkpoint_says() -> None:
    endless = written("llama")
    texts = asked(endless, 9)[1]
    word = texts[0].split()[2]
    ending = written("llama", eos=endless.processor.tokenizer.convert_tokens_to_ids(word))
    samples, cut = asked(ending, 9)
    assert cut[0].split() == texts[0].split()[: texts[0].split().index(word)]
    scores = ending.task.score(ending.answers(everything(ending, samples)), samples)
    assert scores.values[:, 0].tolist() == [float(n % 3 == 0 and bool(cut[n])) for n in range(9)]


def test_losses_are_those_of_the_labels_tokens_whatever_is_written() -> None:
    plain, model = make_model("gpt2", ANSWERS), written("gpt2")
    samples, _ = asked(model, 9)
    expected = plain.task.score(plain.answers(everything(plain, samples)), samples).losses
    found = model.task.score(model.answers(everything(model, samples)), samples).losses
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dropped", [(), (2,)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_candidates_write_what_the_models_without_the_layers_write(
    family: str, dropped: tuple[int, ...]
) -> None:
    model = written(family, r"w[1-4]\d")
    samples, _ = asked(model, 12)
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=5)
    layers = [layer for layer in range(model.num_layers) if layer not in dropped]
    found = probe.metrics(dropped, layers)
    for layer in layers:
        small = drop_layers(model, sorted((*dropped, layer)))
        alone = small.task.score(small.answers(everything(small, samples)), samples)
        assert found[layer].metric == pytest.approx(alone.values[:, 0].mean())
        assert found[layer].loss == pytest.approx(alone.loss, rel=1e-5)
        assert probe.num_invalid((*dropped, layer)) == alone.values[:, 1].sum()
    assert len({probe.num_invalid((*dropped, layer)) for layer in layers}) > 1


def test_answers_without_a_match_are_wrong_and_counted() -> None:
    model = written("llama", r"(w[1-4]\d) w")
    samples, texts = asked(model, 12)
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    none = [extracted(text, model.task.prompting) is None for text in texts]
    assert 0 < sum(none) < 12
    assert scores.values[:, 1].tolist() == none
    assert not scores.values[none, 0].any()
    assert scores.values[:, 0].sum() > 0
    assert model.task.num_invalid(scores.values) == sum(none)
    free = written("llama")
    assert free.task.num_invalid(scores.values) is None


def test_invalid_answers_are_counted_of_all_rows_or_not_at_all() -> None:
    model = written("llama", r"(w[1-4]\d) w")
    samples, texts = asked(model, 12)
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=5)
    assert probe.num_invalid() is None
    probe.scores((), (), np.arange(7))
    assert probe.num_invalid() is None
    probe.scores((), (), np.arange(12))
    assert probe.num_invalid() == sum(extracted(text, model.task.prompting) is None for text in texts)


def test_the_label_goes_through_the_rule_or_is_taken_as_it_is() -> None:
    model = written("llama", r"w9 (w\d+)")
    rows = samples_of(
        model, [{"prompt": "w1", "answer": "w3 w9 w5"}, {"prompt": "w2", "answer": " w5 "}]
    ).rows
    assert [row.features["wanted"] for row in rows] == ["w5", "w5"]
    assert [len(row.features["answers"][0]) for row in rows] == [3, 1]  # the loss is of the whole label


def test_a_context_leaves_room_for_what_is_written() -> None:
    model = written("llama", num_tokens=50)
    long = {"prompt": " ".join(["w1", *["w2"] * 70]), "answer": "w3"}
    (row,) = samples_of(model, [long]).rows
    assert len(row.features["context"]) == 64 - 50
    solved = replace(model.processor, prompting=replace(model.processor.prompting, chat=True))
    solved.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(LoadError, match="of 64 the answer leaves 14"):
        samples_of(replace(model, processor=solved), [long])
    with pytest.raises(LoadError, match="an answer of 64 tokens leaves no room for the context"):
        samples_of(written("llama", num_tokens=64), [{"prompt": "w1", "answer": "w3"}])


def test_rows_without_labels_are_not_generated_for() -> None:
    model = written("llama")
    samples = samples_of(model, [{"prompt": "w1 w2"}, {"prompt": "w3"}])
    assert model.task.batch(samples, np.arange(2), model.processor).continuation is None


# --- encoder-decoders -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["t5", "bart"])
def translator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save(awaken(network_of(request.param)), tmp_path_factory.mktemp(request.param))
    return load_model(folder, TEXT2TEXT, LoadOptions(prompting=Prompting(max_new_tokens=7)))


def texts_of(model: LoadedModel) -> Samples:
    generator = random.Random(0)
    records = [{"text": words(generator, 1, 12), "answer": words(generator, 1, 4)} for _ in range(9)]
    return samples_of(model, records)


def test_an_encoder_decoder_writes_what_stock_transformers_generates(translator: LoadedModel) -> None:
    samples = texts_of(translator)
    answers = translator.answers(everything(translator, samples))  # together, padded
    plain = transformers.GenerationConfig(
        max_new_tokens=7, do_sample=False, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=translator.processor.prompt[0],
    )  # fmt: skip
    for row, found in zip(samples.rows, answers[:, 1], strict=True):
        ids = torch.tensor([row.features["context"]])
        with torch.no_grad():
            tokens = translator.network.generate(ids, generation_config=plain)[0].tolist()
        tokens = tokens[len(translator.processor.prompt) :]
        tokens = tokens[: tokens.index(2)] if 2 in tokens else tokens
        assert found[found >= 0].astype(int).tolist() == tokens
    assert len({tuple(found) for found in answers[:, 1]}) > 2


def test_a_search_of_an_encoder_decoder_goes_by_what_is_written(translator: LoadedModel) -> None:
    samples = texts_of(translator)
    probe = Probe(translator, {"id": samples, "target": samples}, batch_size=4)
    found = probe.metrics((1,), [0, 4])
    for layer, score in found.items():
        small = drop_layers(translator, sorted((1, layer)))
        alone = small.task.score(small.answers(everything(small, samples)), samples)
        assert (score.metric, score.loss) == pytest.approx((alone.values[:, 0].mean(), alone.loss))


# --- exported files -------------------------------------------------------------------------


@pytest.mark.slow
def test_an_exported_decoder_is_scored_by_what_its_graph_writes(tmp_path: Path) -> None:
    model = written("llama", r"w[1-4]\d")
    own = model.processor
    read = processor_of(model.network, own.tokenizer, ANSWERS, max_length=own.max_length)
    read = replace(read, prompting=own.prompting, generation_config=own.generation_config)
    model = replace(model, processor=read)
    samples, _ = asked(model, 12)
    export_model(model, samples, tmp_path, ExportSettings())
    found = score_exported(tmp_path, model.task, samples, model.processor)
    expected = model.task.score(model.answers(everything(model, samples)), samples)
    assert np.array_equal(found.values, expected.values)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    assert 0 < found.values[:, 1].sum() < 12


@pytest.mark.slow
def test_exported_encoder_decoders_are_scored_by_what_their_graphs_write(
    translator: LoadedModel, tmp_path: Path
) -> None:
    samples = texts_of(translator)
    said = translator.answers(everything(translator, samples))
    rows = [
        replace(row, features={**row.features, "wanted": decoded(translator, found)})
        for row, found in zip(samples.rows, said[:, 1], strict=True)
    ]
    samples = replace(samples, rows=tuple(rows[:5]) + samples.rows[5:])
    export_model(translator, samples, tmp_path, ExportSettings())
    found = score_exported(tmp_path, translator.task, samples, translator.processor)
    assert found.values[:, 0].tolist() == [1.0] * 5 + [0.0] * 4


def decoded(model: LoadedModel, ids: np.ndarray) -> str:
    text = model.processor.tokenizer.decode(ids[ids >= 0].astype(int).tolist(), skip_special_tokens=True)
    return str(text).strip()


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "task", "metric"),
    [
        ("llama", ANSWERS, "perplexity"),
        ("llama", CHOICES, None),
        ("bert", "text-classification", None),
        ("whisper", "automatic-speech-recognition", None),
    ],
)
def test_tasks_without_answers_to_write_say_so(family: str, task: str, metric: str | None) -> None:
    config = transformers.AutoConfig.for_model(family)
    options = LoadOptions(metric=metric, prompting=Prompting(max_new_tokens=8))
    with pytest.raises(ConfigError, match=f"--max-new-tokens: {task} with metric .* has no answers"):
        find_task(config, task, options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extract": "a"}, "--extract finds answers in what a model writes, and nothing is written."),
        ({"extract": "(a", "max_new_tokens": 8}, "--extract '\\(a' is no regular expression"),
        ({"extract_last": True, "max_new_tokens": 8}, "--extract-last has no meaning without --extract."),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1."),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(**settings)


def test_prompts_are_refused_where_only_answers_are_written(translator: LoadedModel) -> None:
    options = LoadOptions(prompting=Prompting("{{a}}", max_new_tokens=8))
    with pytest.raises(ConfigError, match="has no prompts for a template"):
        load_model(translator.source, TEXT2TEXT, options)
