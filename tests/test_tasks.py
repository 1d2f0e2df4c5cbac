"""What a task makes of records, and how it scores: against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FAMILIES, make_tokenizer, prompt_records, save_model, text_records
from transformers import AutoConfig

from tapioca_export.errors import ConfigError, LoadError, SelectionError
from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import (
    TASKS,
    Batch,
    Division,
    PolynomialRegression,
    Position,
    Processor,
    ProcessorOptions,
    Task,
    TextClassification,
)
from tapioca_export.tasks.base import cheapest_starts

TEXTS, PROMPTS = TextClassification(), PolynomialRegression()
NAMES = {0: "negative", 1: "neutral", 2: "positive"}
TEXT = Processor("folder", "first-token", 64, make_tokenizer("bert"), NAMES)
PROMPT = Processor("folder", "x-positions", 40)


def samples_of(task: Task, records: list[dict[str, Any]], processor: Processor) -> Samples:
    read = task.rows({}, processor)
    rows = tuple(read(record, f"line {number}") for number, record in enumerate(records, start=1))
    return Samples("id-select", rows, "file", "")


def texts(*texts: str, **columns: list[Any]) -> Samples:
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    values = values or [{}] * len(texts)
    records = [{"text": text, **row} for text, row in zip(texts, values, strict=True)]
    return samples_of(TEXTS, records, TEXT)


def prompts(*ys: list[float]) -> Samples:
    return samples_of(PROMPTS, [{"x": list(range(len(y))), "y": y} for y in ys], PROMPT)


# --- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("neutral", 1), (" neutral ", 1), (1, 1), ("1", 1), (1.0, 1), (np.int64(1), 1), (np.int8(2), 2),
        (np.float64(2.0), 2), (0, 0), (None, None), ("", None), (math.nan, None), (np.nan, None),
    ],
)  # fmt: skip
def test_labels_are_names_or_ids(label: Any, expected: int | None) -> None:
    assert texts("w1", label=[label]).rows[0].label == expected


@pytest.mark.parametrize("label", ["Neutral", "LABEL_1", 3, -1, "-1", 1.5, True, False, [1], {}, "²"])
def test_unknown_labels_are_refused_with_those_known(label: Any) -> None:
    with pytest.raises(LoadError, match=r"line 1: label .* is unknown") as caught:
        texts("w1", label=[label])
    assert caught.value.hint == "It knows: 0=negative, 1=neutral, 2=positive."


@pytest.mark.parametrize("labels", [[1, 3], ["1", "3"], [1.0, 3.0]])
def test_where_names_are_numbers_numbers_are_names(labels: list[Any]) -> None:
    stars = replace(TEXT, id2label={i: str(i + 1) for i in range(3)})
    records = [{"text": "w1", "label": label} for label in labels]
    assert samples_of(TEXTS, records, stars).labels.tolist() == [0, 2]
    with pytest.raises(LoadError, match="label 0 is unknown"):
        samples_of(TEXTS, [{"text": "w1", "label": 0}], stars)


def test_where_names_are_the_ids_nothing_is_ambiguous() -> None:
    same = replace(TEXT, id2label={0: "0", 1: "1"})
    records = [{"text": "w1", "label": label} for label in (0, "1")]
    assert samples_of(TEXTS, records, same).labels.tolist() == [0, 1]


@pytest.mark.parametrize("label", [True, "True", np.True_])
def test_booleans_are_labels_where_names_say_so(label: Any) -> None:
    truth = replace(TEXT, id2label={0: "False", 1: "True"})
    assert samples_of(TEXTS, [{"text": "w1", "label": label}], truth).rows[0].label == 1


def test_one_class_only_is_refused() -> None:
    with pytest.raises(LoadError, match="all 2 id-select rows have the same label"):
        TEXTS.check_labels(texts("w1", "w2", label=[1, "neutral"]))
    TEXTS.check_labels(texts("w1", "w2", label=[0, 1]))
    TEXTS.check_labels(texts("w1", "w2"))


# --- rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [("Good film!", "good  film"), ("café", "cafe\u0301"), ("\uff27ood", "good"), ("straße", "STRASSE")],
)
def test_near_duplicates_have_one_key(one: str, other: str) -> None:
    first, second = texts(one, other).rows
    assert first.key == second.key


@pytest.mark.parametrize(
    ("one", "other"), [("fun 👍", "fun 👎"), ("की", "का"), ("C++", "C"), ("?!", "..."), ("a b", "a c")]
)
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    first, second = texts(one, other).rows
    assert first.key != second.key


def test_the_second_text_is_part_of_the_row() -> None:
    rows = texts("w1", "w1", text_pair=["w2", "w3"]).rows
    assert rows[0].key != rows[1].key
    assert rows[0].layout == "text and text_pair"
    assert "w1w2" not in {row.key for row in rows}


def test_columns_may_be_named_otherwise() -> None:
    read = TEXTS.rows({"text": "review", "label": "stars"}, TEXT)
    row = read({"review": "w1", "stars": 2, "text": "not this", "label": 0}, "line 1")
    assert (row.features, row.label) == ({"text": "w1"}, 2)


@pytest.mark.parametrize(
    ("columns", "record", "message"),
    [
        ({}, {"body": "w1"}, "has no column 'text'; it has: body"),
        ({"text": "review"}, {"text": "w1"}, "has no column 'review'"),
        ({"label": "stars"}, {"text": "w1", "label": 1}, "has no column 'stars'"),
    ],
)
def test_missing_columns_are_refused(
    columns: Mapping[str, str], record: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        TEXTS.rows(columns, TEXT)(record, "line 1")


@pytest.mark.parametrize(
    "record",
    [
        {"x": [1, 2, 3], "y": [1, 2, 3]},
        {"x": [1] * 21, "y": [1] * 21},
        {"x": [1, 2, 3, 4], "y": [1, 2, 3]},
        {"x": [[1, 2, 3, 4]], "y": [[1, 2, 3, 4]]},
        {"x": [1, 2, 3, [4]], "y": [1, 2, 3, 4]},
        {"x": [1, 2, 3, None], "y": [1, 2, 3, 4]},
        {"x": [1, 2, 3, "a"], "y": [1, 2, 3, 4]},
        {"x": [1, 2, 3, 1e39], "y": [1, 2, 3, 4]},
        {"x": [1, 2, 3, 10**400], "y": [1, 2, 3, 4]},
        {"x": "1 2 3 4", "y": "1 2 3 4"},
        {"x": None, "y": None},
    ],
)
def test_prompts_that_are_no_prompts_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="line 1: "):
        samples_of(PROMPTS, [record], PROMPT)


def test_prompts_that_never_vary_are_refused() -> None:
    PROMPTS.check_labels(prompts([0, 0, 0, 1], [0, 0, 0, 2]))
    with pytest.raises(LoadError, match="y is the same from the fourth point on"):
        PROMPTS.check_labels(prompts([0, 1, 2, 3], [3, 2, 1, 3]))


# --- encoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_to_the_longest_on_the_side_asked_for(side: str) -> None:
    inputs = TEXTS.encode(texts("w1", "w1 w2 w3").rows, TEXT, side)
    mask = inputs["attention_mask"]
    assert mask.shape == (2, 5)
    assert mask[0].tolist() == ([0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0])
    assert inputs["input_ids"][0][mask[0] == 1].tolist() == [1, 5, 2]


def test_long_rows_are_cut_with_their_special_tokens() -> None:
    ids = TEXTS.encode(texts("w1 " * 100).rows, TEXT)["input_ids"]
    assert ids.shape == (1, 64)
    assert ids[0, [0, -1]].tolist() == [1, 2]


def test_second_texts_are_encoded() -> None:
    rows = texts("w1", text_pair=["w2 w3"]).rows
    assert TEXTS.encode(rows, TEXT)["input_ids"].tolist() == [[1, 5, 2, 6, 7, 2]]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_batch_where_some_rows_have_a_second_text_is_refused(order: slice) -> None:
    rows = [*texts("w1").rows, *texts("w1", text_pair=["w2"]).rows][order]
    with pytest.raises(LoadError, match="one has a text_pair, the other has none"):
        TEXTS.encode(rows, TEXT)


def test_a_text_without_tokens_is_refused_by_name() -> None:
    class Blank:
        def __call__(self, *texts: Any, **options: Any) -> dict[str, np.ndarray]:
            return {"input_ids": np.zeros((2, 3)), "attention_mask": np.array([[1, 1, 0], [0, 0, 0]])}

    with pytest.raises(LoadError, match="line 2: the tokenizer finds no token"):
        TEXTS.encode(texts("w1", "\u200b x").rows, replace(TEXT, tokenizer=Blank()))


def test_prompts_interleave_x_and_y() -> None:
    inputs = PROMPTS.encode(prompts([4.0, 5.0, 6.0, 7.0]).rows, PROMPT)
    assert inputs["values"].tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]
    assert PROMPTS.token_mask(inputs).tolist() == [[1] * 8]


def test_prompts_of_two_lengths_are_refused() -> None:
    with pytest.raises(LoadError, match="equally many points"):
        PROMPTS.encode(prompts([1, 2, 3, 4], [1, 2, 3, 4, 5]).rows, PROMPT)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_hold_every_row_once(batch_size: int) -> None:
    samples = samples_of(TEXTS, list(text_records(30, 0)), TEXT)
    batches = list(TEXTS.batches(samples, TEXT, batch_size))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(30))
    for batch in batches:
        assert len(batch) <= batch_size
        for row, index in zip(batch.inputs["input_ids"], batch.indices, strict=True):
            alone = TEXTS.encode([samples.rows[index]], TEXT)["input_ids"][0]
            assert row[: len(alone)].tolist() == alone.tolist()


def test_rows_are_sorted_by_tokens_not_by_letters() -> None:
    short_words, long_words = "w1 " * 9, "w1" + "x" * 40
    samples = texts(short_words, long_words, "w1 " * 100, "w1")
    assert TEXTS.lengths(samples.rows, TEXT) == [11, 3, 64, 3]
    assert TEXTS.lengths(samples.rows * 400, TEXT) == [11, 3, 64, 3] * 400  # more than are held at once
    assert [batch.tolist() for batch in TEXTS.length_sorted(samples, TEXT, 2)] == [[1, 3], [0, 2]]


@pytest.mark.parametrize("batch_cost", [0, 1, 5, 40])
@pytest.mark.parametrize("batch_tokens", [10, 25, 1000])
def test_batches_are_divided_where_that_costs_least(batch_cost: int, batch_tokens: int) -> None:
    generator = np.random.default_rng(batch_cost)
    for num_rows in range(1, 9):
        lengths = np.sort(generator.integers(1, 20, num_rows))

        def cost(starts: Sequence[int], lengths: np.ndarray = lengths) -> float:
            parts = np.split(lengths, starts[1:])
            too_large = any(len(p) > 3 or (len(p) > 1 and len(p) * p[-1] > batch_tokens) for p in parts)
            return math.inf if too_large else sum(len(p) * p[-1] + batch_cost for p in parts)

        others = [[0, *cuts] for n in range(num_rows) for cuts in combinations(range(1, num_rows), n)]
        found = cheapest_starts(lengths, 3, Division(batch_cost, batch_tokens))
        assert cost(found) == min(map(cost, others)) < math.inf


def test_rows_without_tokens_have_a_batch_too() -> None:
    assert cheapest_starts(np.asarray([0, 0, 3]), 2, Division(0, 10)) == [0, 2]


def test_a_division_into_batches_holds_every_row_once() -> None:
    samples, division = samples_of(TEXTS, list(text_records(30, 0)), TEXT), Division(2, 1000)
    batches = TEXTS.length_sorted(samples, TEXT, 7, np.arange(3, 30), division)
    assert sorted(np.concatenate(batches)) == list(range(3, 30))
    assert len(batches) > 4
    assert max(map(len, batches)) <= 7
    assert TEXTS.length_sorted(samples, TEXT, 7, np.arange(0), division) == []


@pytest.mark.parametrize(("task", "processor"), [(TEXTS, TEXT), (PROMPTS, PROMPT)])
def test_examples_have_several_rows_and_no_axis_of_length_one(task: Task, processor: Processor) -> None:
    first, *others = (next(iter(inputs.values())).shape for inputs in task.examples(processor))
    assert min(first) > 1
    assert all(shape != first for shape in others)


# --- readout --------------------------------------------------------------------------------

LEFT, RIGHT = [[0, 0, 1, 1], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("position", "mask", "expected"),
    [
        ("first-token", RIGHT, [[1, 0, 0, 0], [1, 0, 0, 0]]),
        ("first-token", LEFT, [[0, 0, 1, 0], [1, 0, 0, 0]]),
        ("last-token", RIGHT, [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ("last-token", LEFT, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        ("mean", RIGHT, [[0.5, 0.5, 0, 0], [0.25] * 4]),
        ("mean", LEFT, [[0, 0, 0.5, 0.5], [0.25] * 4]),
    ],
)
def test_the_answer_is_read_off_real_tokens(
    position: Position, mask: list[list[int]], expected: list[list[float]]
) -> None:
    inputs = {"input_ids": np.ones((2, 4), dtype=np.int64), "attention_mask": np.array(mask)}
    weights = TEXTS.readout(
        Batch(np.arange(len(inputs["input_ids"])), inputs), replace(TEXT, position=position)
    )
    assert weights.shape == (2, 1, 4)
    assert weights[:, 0].tolist() == expected


def test_predictions_are_read_at_the_scored_x() -> None:
    weights = PROMPTS.readout(Batch(np.arange(2), {"values": np.zeros((2, 10), dtype=np.float32)}), PROMPT)
    assert weights.shape == (2, 2, 10)
    assert weights.argmax(axis=2).tolist() == [[6, 8]] * 2
    assert weights.sum(axis=2).tolist() == [[1, 1]] * 2


# --- scores ---------------------------------------------------------------------------------


def test_accuracy_and_cross_entropy_are_those_worked_out_by_hand() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).astype(np.float32)
    scores = TEXTS.score(logits + 5, texts("w1", "w2", "w3", label=[0, 1, 2]))
    assert scores.values.tolist() == [1, 0, 1]
    assert scores.values.mean() == pytest.approx(2 / 3)
    assert scores.losses == pytest.approx([-math.log(p) for p in (0.7, 0.25, 0.8)], abs=1e-6)
    assert scores.loss == pytest.approx(-math.log(0.7 * 0.25 * 0.8) / 3, abs=1e-6)


def test_extreme_logits_have_finite_losses() -> None:
    logits = np.array([[1e4, 0, -1e4], [0, 0, 0]], dtype=np.float32)
    losses = TEXTS.score(logits, texts("w1", "w2", label=[2, 0])).losses
    assert losses == pytest.approx([2e4, math.log(3)])


def test_nmse_is_that_worked_out_by_hand() -> None:
    samples = prompts([9, 9, 9, 1, 3], [9, 9, 9, 5, 7])
    predictions = np.array([[0, 0, 0, 2, 3], [0, 0, 0, 5, 4]], dtype=np.float32)
    scores = PROMPTS.score(predictions, samples)  # variance of 1, 3, 5, 7 is 5
    assert scores.losses.tolist() == [0.5, 4.5]
    assert scores.values == pytest.approx([0.1, 0.9])
    assert (scores.values.mean(), scores.loss) == pytest.approx((0.5, 2.5))


def test_the_best_constant_answer_has_an_nmse_of_one() -> None:
    samples = samples_of(PROMPTS, list(prompt_records(50, 0)), PROMPT)
    mean = samples.labels[:, 3:].mean()
    assert PROMPTS.score(np.full((50, 20), mean), samples).values.mean() == pytest.approx(1, abs=1e-6)
    assert PROMPTS.score(samples.labels, samples).values.mean() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_refused_by_row(value: float) -> None:
    logits = np.zeros((3, 3), dtype=np.float32)
    logits[1, 2] = value
    with pytest.raises(SelectionError, match="line 2"):
        TEXTS.score(logits, texts("w1", "w2", "w3", label=[0, 1, 2]))
    points = np.zeros((2, 4), dtype=np.float32)
    points[1, 3] = value
    with pytest.raises(SelectionError, match="line 2"):
        PROMPTS.score(points, prompts([1, 2, 3, 4], [1, 2, 3, 5]))


@pytest.mark.parametrize("task", [TEXTS, PROMPTS])
def test_scores_follow_the_order_of_rows(task: Task) -> None:
    if task is TEXTS:
        samples = samples_of(task, list(text_records(20, 0)), TEXT)
    else:
        samples = samples_of(task, list(prompt_records(20, 0)), PROMPT)
    shape = (20, 3) if task is TEXTS else (20, 20)
    logits = np.random.default_rng(0).normal(size=shape)
    order = np.random.default_rng(1).permutation(20)
    moved = replace(samples, rows=tuple(samples.rows[i] for i in order))
    expected, actual = task.score(logits, samples), task.score(logits[order], moved)
    assert actual.values == pytest.approx(expected.values[order])
    assert actual.losses == pytest.approx(expected.losses[order])


def test_agreement_counts_equal_labels() -> None:
    one = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    other = np.array([[0.9, 0.1], [1.0, 0.0], [5.0, 1.0]])
    assert TEXTS.agreement(one, other) == pytest.approx(2 / 3)
    assert PROMPTS.agreement(one, other) == 1.0


# --- what a checkpoint says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "position"),
    [
        ("bert", "first-token"),
        ("roberta", "first-token"),
        ("distilbert", "first-token"),
        ("modernbert", "first-token"),
        ("gpt2", "last-token"),
        ("llama", "last-token"),
        ("qwen2", "last-token"),
    ],
)
def test_the_head_reads_where_its_family_does(
    family: str, position: str, tiny: Callable[[str], Path]
) -> None:
    folder = tiny(family)
    processor = TEXTS.load_processor(folder, AutoConfig.from_pretrained(folder), ProcessorOptions())
    assert (processor.position, processor.max_length) == (position, 64)
    assert processor.id2label == NAMES


@pytest.mark.parametrize(("family", "places"), [("bert", 64), ("roberta", 65)])
def test_the_longest_text_is_what_the_model_can_place(family: str, places: int, tmp_path: Path) -> None:
    folder = save_model(tmp_path, family)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace('"model_max_length": 64', '"x": 64')
    )
    config = AutoConfig.from_pretrained(folder)
    assert FAMILIES[family]["max_position_embeddings"] == places + (family == "roberta")
    assert TEXTS.load_processor(folder, config, ProcessorOptions()).max_length == places


@pytest.mark.parametrize("max_length", [0, 2, 65])
def test_a_length_out_of_the_model_s_range_is_refused(max_length: int, tiny: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(tiny("bert"))
    with pytest.raises(ConfigError, match=f"--max-length {max_length} is outside 3..64"):
        TEXTS.load_processor(tiny("bert"), config, ProcessorOptions(max_length))


@pytest.mark.parametrize("max_length", [7, 41])
def test_a_prompt_length_out_of_the_model_s_range_is_refused(max_length: int) -> None:
    config = SimpleNamespace(model_type="polynomial_regression", n_positions=40)
    with pytest.raises(ConfigError, match=f"--max-length {max_length} is outside 8..40"):
        PROMPTS.load_processor("folder", config, ProcessorOptions(max_length))
    assert PROMPTS.load_processor("folder", config, ProcessorOptions(8)).max_length == 8


def test_every_task_is_named_by_its_entry() -> None:
    names = [
        "audio-classification", "automatic-speech-recognition", "feature-extraction", "fill-mask",
        "image-classification", "multiple-choice", "polynomial-regression", "question-answering",
        "text-classification", "text-generation", "text2text-generation", "token-classification",
        "zero-shot-image-classification",
    ]  # fmt: skip
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in names}


def test_rows_without_a_layout_fit_each_other() -> None:
    assert Row({}, None, "", "").layout == ""
