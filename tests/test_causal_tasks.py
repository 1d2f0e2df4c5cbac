"""Choices ranked by likelihood, answers generated greedily: against the model asked one thing at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import (
    DECODERS,
    NUM_LAYERS,
    WORDS,
    complaint,
    make_decoder,
    make_tokenizer,
    save_model,
    write_jsonl,
)
from test_laws import drop_by_hand
from torch import nn

from tapioca_export import RunConfig
from tapioca_export.artifacts import Benchmark, Run, Selection, read
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.models import LoadedModel, load_model, prunable_stacks, skipping
from tapioca_export.profiling import Probe
from tapioca_export.profiling.sharing import shares_context
from tapioca_export.reading import load_roles as load_run_roles
from tapioca_export.samples import MIN_ROWS, Row, Samples, load_roles
from tapioca_export.tasks import TASKS, Batch, Division, MultipleChoice, Processor, ProcessorOptions
from tapioca_export.tasks.causal import BLIND

CHOICES, ANSWERS = "multiple-choice", "text-generation"
SHARING = ("gemma2", "gpt2", "gpt_neox", "llama", "mistral", "opt")
NOT_SHARING = ("bloom", "qwen2")  # distances read off a 2D mask; a window shorter than the rows
LONGEST = 64
FAST = ["--iterations", "5", "--warmup", "1", "--num-threads", "1"]


def test_the_families_here_are_all_there_are() -> None:
    assert sorted((*SHARING, *NOT_SHARING)) == sorted(DECODERS)


# --- models and rows ------------------------------------------------------------------------


@cache
def make_network(family: str, **overrides: object) -> transformers.PreTrainedModel:
    return make_decoder(family, **overrides)


def make_model(family: str, task: str = CHOICES, **overrides: object) -> LoadedModel:
    network = make_network(family, **overrides)
    processor = Processor(family, "last-token", LONGEST, make_tokenizer("llama"))
    return LoadedModel(network, TASKS[task], processor, family, prunable_stacks(network))


def words(generator: random.Random, least: int, most: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(least, most)))


def choice_records(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make contexts of 1 to 30 words with 2 to 5 choices of 1 to 6."""
    generator = random.Random(seed)
    records = []
    for _ in range(num_rows):
        choices = list({words(generator, 1, 6): None for _ in range(generator.randint(3, 5))})
        label = generator.randrange(len(choices))
        records.append({"context": words(generator, 1, 30), "choices": choices, "label": label})
    return records


def samples_of(model: LoadedModel, records: Sequence[dict[str, Any]]) -> Samples:
    read_row = model.task.rows({}, model.processor)
    rows = tuple(read_row(record, f"line {number}") for number, record in enumerate(records, start=1))
    return Samples("target-select", rows, "file", "")


def greedy(model: LoadedModel, context: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    """Return what the model generates greedily, one whole forward a token, no cache."""
    ids = list(context)
    for _ in range(num_tokens):
        ids.append(int(model.logits({"input_ids": np.asarray([ids])})[0, -1].argmax()))
    return tuple(ids[len(context) :])


def planted_answers(model: LoadedModel, num_rows: int, skipped: Sequence[int] = ()) -> Samples:
    """Make rows of which the even ones want what the model generates, the odd ones one other token."""
    generator = random.Random(1)
    rows = []
    for number in range(num_rows):
        record = {"prompt": words(generator, 1, 20), "answer": "w1"}
        row = model.task.rows({}, model.processor)(record, f"line {number}")
        with skipping(model, skipped):
            answer = list(greedy(model, row.features["context"], 1 + number % 5))
        if number % 2:
            place = generator.randrange(len(answer))
            answer[place] = (answer[place] + 1) % model.network.config.vocab_size
        rows.append(replace(row, features={**row.features, "answers": (tuple(answer),)}))
    return Samples("target-select", tuple(rows), "file", "")


def everything(model: LoadedModel, samples: Samples, *, shared: bool = False) -> Batch:
    processor = replace(model.processor, shares_context=shared)
    return model.task.batch(samples, np.arange(len(samples)), processor)


def log_likelihoods(model: LoadedModel, row: Row) -> list[torch.Tensor]:
    """Return each answer's log-probabilities, token by token: one forward an answer, no padding."""
    context, found = row.features["context"], []
    for answer in row.features["answers"]:
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([[*context, *answer]])).logits[0]
        places = range(len(context) - 1, len(context) + len(answer) - 1)
        probabilities = torch.log_softmax(logits.double(), dim=-1)
        found.append(torch.stack([probabilities[i, t] for i, t in zip(places, answer, strict=True)]))
    return found


# --- one sequence for all answers to a context ----------------------------------------------


@pytest.mark.parametrize("family", SHARING)
def test_answers_in_one_sequence_are_as_likely_as_answers_apart(family: str) -> None:
    model = make_model(family)
    samples = samples_of(model, choice_records(24))
    shared, apart = (model.answers(everything(model, samples, shared=shared)) for shared in (True, False))
    np.testing.assert_allclose(shared, apart, rtol=1e-4, atol=1e-4)
    assert shares_context(model, samples).shares_context
    one, other = (model.task.score(found, samples) for found in (shared, apart))
    assert np.array_equal(one.values, other.values)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    assert 0 < one.values.mean() < 1


@pytest.mark.parametrize("family", NOT_SHARING)
def test_a_family_that_cannot_share_a_context_is_found_out(family: str) -> None:
    model = make_model(family)
    samples = samples_of(model, choice_records(24))
    assert shares_context(model, samples) == model.processor
    values, _ = Probe(model, {"id": samples, "target": samples}).scores((), (), np.arange(24))[None]
    apart = model.task.score(model.answers(everything(model, samples)), samples)
    assert np.array_equal(values, apart.values)


def test_a_window_longer_than_every_row_is_no_obstacle() -> None:
    model = make_model("qwen2", sliding_window=LONGEST)
    assert shares_context(model, samples_of(model, choice_records(24))).shares_context


class Leaky(MultipleChoice):
    """Lets answers see each other, or puts them one behind the other."""

    def __init__(self, leak: str) -> None:
        self.leak = leak

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        batch = super().batch(samples, indices, processor)
        if not processor.shares_context:
            return batch
        length = batch.inputs["input_ids"].shape[1]
        causal = np.triu(np.full((1, 1, length, length), BLIND, np.float32), k=1)
        wrong = {
            "attention_mask": np.repeat(causal, len(batch), axis=0),
            "position_ids": np.repeat(np.arange(length)[None], len(batch), axis=0),
        }
        return replace(batch, inputs={**batch.inputs, self.leak: wrong[self.leak]})


@pytest.mark.parametrize("leak", ["attention_mask", "position_ids"])
def test_a_wrong_mask_or_position_would_not_be_accepted(leak: str) -> None:
    model = replace(make_model("llama"), task=Leaky(leak))
    assert not shares_context(model, samples_of(model, choice_records(24))).shares_context


# --- likelihoods ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_evidence_is_that_of_one_unpadded_forward_an_answer(family: str) -> None:
    model = make_model(family)
    samples = samples_of(model, choice_records(12))
    batch = everything(model, samples)
    found = model.answers(batch)
    np.testing.assert_allclose(model.task.evidence(model.logits(batch.inputs), batch), found, atol=1e-5)
    for row, evidence in zip(samples.rows, found, strict=True):
        expected = torch.cat(log_likelihoods(model, row)).numpy()
        np.testing.assert_allclose(evidence[: len(expected), 0], expected, rtol=1e-4, atol=1e-4)
        assert not evidence[len(expected) :].any()


def test_a_head_that_cannot_be_found_is_read_at_every_token() -> None:
    class Headless(type(make_network("llama"))):  # type: ignore[misc]
        def get_output_embeddings(self) -> None:
            return None

    model = make_model("llama")
    batch = everything(model, samples_of(model, choice_records(8)))
    expected = model.answers(batch)
    network = Headless(model.network.config).eval()
    network.load_state_dict(model.network.state_dict())
    found = replace(model, network=network).answers(batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_choice_is_the_likeliest_and_the_loss_its_cross_entropy(family: str) -> None:
    model = make_model(family)
    samples = samples_of(model, choice_records(24))
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    for row, value, loss in zip(samples.rows, scores.values, scores.losses, strict=True):
        totals = torch.stack([found.sum() for found in log_likelihoods(model, row)])
        assert value == (int(totals.argmax()) == row.label)
        expected = nn.functional.cross_entropy(totals[None], torch.tensor([row.label]))
        assert loss == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_the_choice_that_starts_with_the_token_that_always_wins_is_chosen(shared: bool) -> None:
    network = make_decoder("llama")
    head = nn.Linear(32, 128)
    with torch.no_grad():
        head.weight.copy_(network.lm_head.weight)
        head.bias.zero_()[make_tokenizer("llama").convert_tokens_to_ids("w7")] = 50.0
    network.lm_head = head
    model = replace(make_model("llama"), network=network)
    records = [
        {"context": "w1 w2", "choices": ["w3 w4", "w7 w5", "w6 w8"], "label": number % 3}
        for number in range(12)
    ]
    samples = samples_of(model, records)
    scores = model.task.score(model.answers(everything(model, samples, shared=shared)), samples)
    assert scores.values.tolist() == [0.0, 1.0, 0.0] * 4


# --- greedy generation ----------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [(), (1,)])
@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama", "opt"])
def test_an_answer_is_right_if_greedy_generation_gives_it(family: str, skipped: tuple[int, ...]) -> None:
    model = make_model(family, ANSWERS)
    samples = planted_answers(model, 20, skipped)
    with skipping(model, skipped):
        scores = model.task.score(model.answers(everything(model, samples)), samples)
    assert scores.values.tolist() == [1.0, 0.0] * 10
    values, losses = Probe(model, {"id": samples, "target": samples}).scores(skipped, (), np.arange(20))[None]
    assert np.array_equal(values, scores.values)
    np.testing.assert_allclose(losses, scores.losses, rtol=1e-5)


def test_the_value_is_what_generate_says_with_its_cache() -> None:
    model = make_model("llama", ANSWERS)
    samples = planted_answers(model, 20)
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    for row, value in zip(samples.rows, scores.values, strict=True):
        context, (answer,) = torch.tensor([row.features["context"]]), row.features["answers"]
        ids = model.network.generate(
            context, attention_mask=torch.ones_like(context), do_sample=False, eos_token_id=-1,
            max_new_tokens=len(answer),
        )  # fmt: skip
        assert value == (tuple(ids[0, context.shape[1] :].tolist()) == answer)


def test_the_loss_is_the_mean_over_the_answers_tokens() -> None:
    model = make_model("gpt2", ANSWERS)
    samples = planted_answers(model, 8)
    scores = model.task.score(model.answers(everything(model, samples)), samples)
    expected = [-float(log_likelihoods(model, row)[0].mean()) for row in samples.rows]
    np.testing.assert_allclose(scores.losses, expected, rtol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_a_model_says_of_padding_is_not_compared(side: str) -> None:
    model = make_model("llama", ANSWERS)
    samples = planted_answers(model, 8)
    inputs = model.task.encode(samples.rows, model.processor, side)
    logits = model.logits(inputs)
    wrong = np.where(inputs["attention_mask"][..., None] == 1, logits, np.nan)
    assert np.isnan(wrong).any()
    assert np.array_equal(model.task.compared(wrong, inputs), model.task.compared(logits, inputs))
    lengths = [len(row.features["context"]) + len(row.features["answers"][0]) for row in samples.rows]
    assert len(model.task.compared(logits, inputs)) == sum(lengths)


# --- layers left out ------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [(), (2,)])
@pytest.mark.parametrize(
    ("family", "task", "shares"),
    [("llama", CHOICES, True), ("qwen2", CHOICES, False), ("gpt2", ANSWERS, False)],
)
def test_replayed_candidates_equal_candidates_dropped_for_good(
    family: str, task: str, shares: bool, dropped: tuple[int, ...]
) -> None:
    model = make_model(family, task)
    samples = samples_of(model, choice_records(16)) if task == CHOICES else planted_answers(model, 16)
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=5)
    assert probe.processor.shares_context == shares
    layers = [layer for layer in range(NUM_LAYERS) if layer not in dropped]
    found = probe.scores(dropped, layers, np.arange(16))
    for layer in layers:
        small = drop_by_hand(model, (*dropped, layer))
        expected = small.task.score(small.answers(everything(small, samples)), samples)
        assert np.array_equal(found[layer][0], expected.values)
        np.testing.assert_allclose(found[layer][1], expected.losses, rtol=1e-5, atol=1e-5)


def test_a_profile_reads_the_last_token_of_each_context() -> None:
    model = make_model("llama")
    samples = samples_of(model, choice_records(12))
    stream: list[torch.Tensor] = []
    hook = model.layers[-1].register_forward_hook(lambda _, __, output: stream.append(output))
    for row in samples.rows:
        model.logits({"input_ids": np.asarray([row.features["context"]])})
    hook.remove()
    expected = np.mean([float(states[0, -1].norm()) for states in stream])
    profile = Probe(model, {"id": samples, "target": samples}).profile("id")
    assert profile.norms[-1] == pytest.approx(expected, rel=1e-5)


# --- rows -----------------------------------------------------------------------------------

GOOD = {"context": "w1 w2", "choices": ["w3", "w4"], "label": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": "w3 w4"}, "choices must be a list of at least two texts"),
        ({"choices": None}, "choices must be a list of at least two texts"),
        ({"choices": ["w3"]}, "choices must be a list of at least two texts"),
        ({"choices": ["w3", "w3"]}, "two choices are the same"),
        ({"choices": ["w3", ""]}, "a choice is empty"),
        ({"choices": ["w3", 4]}, "a choice is int, not a text"),
        ({"label": 2}, "label 2 is none of the 2 choices"),
        ({"label": -1}, "label -1 is none of the 2 choices"),
        ({"label": 0.5}, "label 0.5 is none of the 2 choices"),
        ({"label": True}, "label True is none of the 2 choices"),
        ({"label": "w5"}, "label 'w5' is none of the 2 choices"),
        ({"context": " "}, "context is empty"),
        ({"context": 7}, "context is int, not a text"),
        ({"choices": ["w3", "w4 " * 64]}, "an answer of 64 tokens leaves no room for the context within 64"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, {**GOOD, **change}])
    model = make_model("llama")
    with pytest.raises(LoadError, match=message) as caught:
        load_roles({"id": path}, model.task.rows({}, model.processor))
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("label", "choices", "expected"),
    [
        (0, ["w3", "w4"], 0), (1, ["w3", "w4"], 1), (1.0, ["w3", "w4"], 1), ("w4", ["w3", "w4"], 1),
        ("1", ["w3", "w4"], 1), ("1", ["1", "0"], 0), (1, ["1", "0"], 1), (np.int64(1), ["w3", "w4"], 1),
        (None, ["w3", "w4"], None), ("", ["w3", "w4"], None), (float("nan"), ["w3", "w4"], None),
    ],
)  # fmt: skip
def test_numbers_are_indices_and_texts_are_choices_first(
    label: Any, choices: list[str], expected: int | None
) -> None:
    record = {"context": "w1", "choices": choices, "label": label}
    assert samples_of(make_model("llama"), [record]).rows[0].label == expected


def test_tokens_are_a_context_with_its_first_special_token_and_answers_without() -> None:
    model = make_model("llama")
    (row,) = samples_of(model, [{"context": "w1 w2", "choices": ["w3", "w4 w5"]}]).rows
    ids = model.processor.tokenizer.convert_tokens_to_ids
    assert row.features["context"] == tuple(ids(["[CLS]", "w1", "w2"]))
    assert row.features["answers"] == (tuple(ids(["w3"])), tuple(ids(["w4", "w5"])))


@pytest.mark.parametrize("shared", [True, False])
def test_the_tokens_of_a_batch_are_those_of_all_its_answers(shared: bool) -> None:
    model = make_model("llama")
    samples = samples_of(model, choice_records(24))
    processor = replace(model.processor, shares_context=shared)
    most = 4 * max(model.task.lengths(samples.rows, processor))
    batches = model.task.length_sorted(samples, processor, 24, division=Division(0, most))
    shapes = [model.task.batch(samples, rows, processor).inputs["input_ids"].shape for rows in batches]
    assert max(map(len, batches)) > 1
    assert all(
        shape[0] * shape[1] <= most for shape, rows in zip(shapes, batches, strict=True) if len(rows) > 1
    )


@pytest.mark.parametrize("task", [CHOICES, ANSWERS])
def test_a_long_context_loses_its_beginning_but_not_its_first_special_token(task: str) -> None:
    text = " ".join(WORDS)
    columns = {"context": text, "choices": ["w1", "w2 w3"], "prompt": text, "answer": "w2 w3"}
    record = {name: columns[name] for name in columns if name in (*TASKS[task].columns, "answer")}
    model = make_model("llama", task)
    (row,) = samples_of(model, [record]).rows
    assert row.features["context"] == (1, *range(4 + 92 - 61, 4 + 92))
    assert model.task.encode([row], model.processor)["input_ids"].shape == (1, LONGEST)


@pytest.mark.parametrize("pad_token", ["[PAD]", None])
def test_a_tokenizer_needs_no_padding_token(tmp_path: Path, pad_token: str | None) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(tmp_path)
    make_network("llama").save_pretrained(tmp_path)
    model = load_model(tmp_path, CHOICES)
    assert model.processor.tokenizer.pad_token == pad_token
    samples = samples_of(model, choice_records(8))
    assert np.isfinite(model.answers(everything(model, samples))).all()


def test_answers_that_differ_in_every_row_are_split_by_chance(tmp_path: Path) -> None:
    model = make_model("llama", ANSWERS)
    records = [{"prompt": f"w{i % 90}", "answer": f"{i:03}"} for i in range(100)]
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    read_row = model.task.rows({}, model.processor)
    roles = [load_roles({"id": path}, read_row, seed=seed) for seed in (0, 1)]
    parts = (roles[0]["id-select"], roles[0]["id-report"], roles[1]["id-select"])
    chosen = [set(part.labels.tolist()) for part in parts]
    assert [len(labels) for labels in chosen] == [50, 50, 50]
    assert not chosen[0] & chosen[1]
    assert chosen[0] != chosen[2]
    assert 10 < sum(int(label) % 2 for label in chosen[0]) < 40


@pytest.mark.parametrize("task", [CHOICES, ANSWERS])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_is_refused_in_one_line(tmp_path: Path, family: str, task: str) -> None:
    config = transformers.AutoConfig.for_model(family)
    with pytest.raises(ConfigError, match=f"Model type {family} is no decoder"):
        TASKS[task].load_processor(tmp_path, config, ProcessorOptions())


# --- the whole job --------------------------------------------------------------------------


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("task", [CHOICES, ANSWERS])
def test_the_command_line_refuses_an_encoder_before_it_loads_it(tmp_path: Path, task: str) -> None:
    save_model(tmp_path / "model", "bert")
    path = write_jsonl(tmp_path / "rows.jsonl", choice_records(2 * MIN_ROWS))
    result = invoke(
        "select", "-m", tmp_path / "model", "-t", task, "--id", path, "--target", path, "-o", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert complaint(result)[0].startswith("Error: Model type bert is no decoder")
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama, each of whose tokens the tokenizer can write and read."""
    folder = tmp_path_factory.mktemp("llama")
    make_decoder("llama", vocab_size=96).save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder


def job_records(checkpoint: Path, task: str, seed: int) -> list[dict[str, Any]]:
    """Make 40 rows; the model generates the answer wanted in about half of them."""
    if task == CHOICES:
        return choice_records(40, seed)
    model, generator, records = load_model(checkpoint, ANSWERS), random.Random(seed), []
    for number in range(40):
        prompt, answer = words(generator, 1, 20), words(generator, 1, 3)
        (row,) = samples_of(model, [{"prompt": prompt, "answer": answer}]).rows
        ids = greedy(model, row.features["context"], 1 + number % 3)
        if number % 2 and min(ids) > 3:  # special tokens are no words
            answer = model.processor.tokenizer.decode(ids)
        records.append({"prompt": prompt, "answer": answer})
    return records


@pytest.fixture(scope="module", params=[CHOICES, ANSWERS])
def finished(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the run folder of a tiny Llama that lost two layers, for either task."""
    folder, task = tmp_path_factory.mktemp("run"), request.param
    files = {
        name: write_jsonl(folder / f"{name}.jsonl", job_records(checkpoint, task, seed))
        for seed, name in enumerate(("id", "target"))
    }
    result = invoke(
        "run", "-m", checkpoint, "-t", task, "--id", files["id"], "--target", files["target"],
        "-o", folder / "out", "--epsilon", 1, "--pick", 2, "--format", "torchscript", *FAST,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "out"


def config_of(run: Path) -> RunConfig:
    used = read(run / "run.json", Run).config
    return RunConfig(model=used["model"], task=used["task"], id=Path(used["id"]), target=Path(used["target"]))


@pytest.mark.slow
@pytest.mark.xdist_group("causal")
def test_the_accuracy_of_the_exported_files_is_that_of_pytorch(finished: Path) -> None:
    config, measured = config_of(finished), read(finished / "benchmark.json", Benchmark)
    original = load_model(config.model, config.task)
    pruned = load_model(finished / "pruned/checkpoint", config.task)
    roles = load_run_roles(config, original.task, original.processor)
    for name in ("id", "target"):
        rows, accuracy = roles[f"{name}-report"], measured.accuracy[name]
        assert accuracy.n == len(rows) > MIN_ROWS
        for model, reported in ((original, accuracy.original), (pruned, accuracy.pruned)):
            assert model.task.score(model.answers(everything(model, rows)), rows).values.mean() == reported
        assert accuracy.original > 0
    assert set(measured.accuracy) == {"id", "target"}


@pytest.mark.slow
@pytest.mark.xdist_group("causal")
def test_the_pruned_checkpoint_generates_with_its_cache_as_without(finished: Path) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(finished / "pruned/checkpoint").eval()
    assert network.config.num_hidden_layers == len(network.model.layers) == NUM_LAYERS - 2
    context = torch.tensor([[1, 7, 9, 30, 4, 61]])
    one, other = (
        network.generate(
            context, attention_mask=torch.ones_like(context), do_sample=False, eos_token_id=-1,
            max_new_tokens=12, use_cache=use_cache,
        )
        for use_cache in (True, False)
    )  # fmt: skip
    assert torch.equal(one, other)
    assert "pipeline_tag: text-generation" in (finished / "pruned/checkpoint/README.md").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("causal")
def test_each_command_on_its_own_agrees_with_the_run(finished: Path, tmp_path: Path) -> None:
    config = config_of(finished)
    model = ["-m", config.model, "-t", config.task, "--num-threads", 1]
    data = ["--id", config.id, "--target", config.target]
    steps = [
        ("prune", *model, "-o", tmp_path / "pruned", "--selection", finished / "selection.json"),
        ("export", *model, *data, "-o", tmp_path / "export", "--format", "torchscript"),
        (
            "benchmark", finished / "original/onnx", finished / "pruned/onnx", *data,
            "-o", tmp_path / "benchmark", *FAST,
        ),
    ]  # fmt: skip
    for step in steps:
        result = invoke(*step)
        assert result.exit_code == 0, result.output
    assert load_model(tmp_path / "pruned", config.task).num_layers == NUM_LAYERS - 2
    selections = [read(path / "selection.json", Selection) for path in (finished, tmp_path / "pruned")]
    assert replace(selections[1], proof=None) == selections[0]
    benchmarks = [read(path / "benchmark.json", Benchmark) for path in (finished, tmp_path / "benchmark")]
    assert benchmarks[0].accuracy == benchmarks[1].accuracy
