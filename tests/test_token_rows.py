"""Rows, decoding and values of tasks whose answers stand at tokens, against the libraries' own."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import torch
import transformers
from conftest import make_tokenizer
from sklearn.metrics import ndcg_score
from token_models import (
    ASKED,
    KINDS,
    MASKS,
    QA,
    TAGGER,
    TAGS,
    TEXT,
    VECTORS,
    looked_for,
    row_of,
    samples_of,
    save,
    tagged,
)
from torch.nn import functional

from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.models import load_model
from tapioca_export.samples import Samples
from tapioca_export.tasks import TASKS
from tapioca_export.tasks.question_answering import answer_in, squad_value
from tapioca_export.tasks.token_classification import TokenClassification, scheme_of

# --- token classification -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (TAGS, "IOB2"), (("O", "B-X", "I-X", "E-X", "S-X"), "IOBES"), (("O", "B-X", "L-X", "U-X"), "BILOU"),
        (("B-X", "I-X"), "IOB2"), (KINDS, ""), (("O", "B-X", "NOUN"), ""), (("O", "I-X"), ""), (("O",), ""),
        (("B-X", "S-X", "U-X"), ""),
    ],
)  # fmt: skip
def test_the_scheme_follows_from_the_tags(names: tuple[str, ...], scheme: str) -> None:
    assert scheme_of(names) == scheme


def logits_of(tags: list[list[str]], rows: Samples, names: tuple[str, ...]) -> np.ndarray:
    """Return logits (N, T, C) by which words are tagged so, and all other tokens at random."""
    longest = max(len(row.features["tokens"]["input_ids"]) for row in rows.rows)
    logits = np.random.default_rng(0).normal(size=(len(rows), longest, len(names)))
    for number, (row, wanted) in enumerate(zip(rows.rows, tags, strict=True)):
        for place, tag in zip(row.features["words"], wanted, strict=True):
            if place >= 0:
                logits[number, place, names.index(tag)] = 9
    return logits


@pytest.mark.parametrize(
    "names", [TAGS, ("O", "B-X", "I-X", "E-X", "S-X"), ("O", "B-X", "I-X", "L-X", "U-X")]
)
@pytest.mark.filterwarnings("ignore")  # seqeval's, of undefined scores
def test_f1_of_all_rows_is_seqevals(names: tuple[str, ...]) -> None:
    generator, scheme = random.Random(0), getattr(seqeval.scheme, scheme_of(names))
    task, processor = TokenClassification(names), replace(TEXT, id2label=dict(enumerate(names)))
    records = [tagged(generator, ("O", "O", "B-PER", "B-LOC") if names == TAGS else names) for _ in range(40)]
    rows = samples_of(task, records, processor)
    truth = [record["tags"] for record in records]
    found = [[tag if generator.random() < 0.7 else generator.choice(names) for tag in tags] for tags in truth]
    values = task.score(logits_of(found, rows, names), rows).values
    drawn = np.random.default_rng(0).integers(0, 40, (5, 40))  # all rows drawn anew, as intervals have it
    for metric, chosen in zip(task.aggregate(values[drawn]), drawn, strict=True):
        one, other = ([tags[i] for i in chosen] for tags in (truth, found))
        expected = seqeval.metrics.f1_score(one, other, mode="strict", scheme=scheme)
        assert metric == pytest.approx(expected, abs=1e-12)
        assert 0 < expected < 1
    nothing = [i for i, tags in enumerate(truth) if set(tags) == {"O"} == set(found[i])]
    assert task.aggregate(values[nothing]) == 0


def test_an_entity_counts_only_as_a_whole_and_with_its_beginning() -> None:
    rows = samples_of(TAGGER, [{"tokens": ["w1", "w2", "w3"], "tags": ["B-PER", "I-PER", "O"]}] * 4)
    found = [
        ["B-PER", "I-PER", "O"],
        ["I-PER", "I-PER", "O"],
        ["B-PER", "O", "O"],
        ["B-PER", "I-PER", "B-LOC"],
    ]
    values = TAGGER.score(logits_of(found, rows, TAGS), rows).values
    assert values.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1], [1, 2, 1]]  # right, found, wanted


def test_long_rows_weigh_as_many_entities_as_they_have() -> None:
    long, short = ({"tokens": ["w1"] * n, "tags": ["B-PER"] * n} for n in (8, 1))
    rows = samples_of(TAGGER, [long, short])
    values = TAGGER.score(logits_of([["B-PER"] * 8, ["O"]], rows, TAGS), rows).values
    assert TAGGER.aggregate(values) == pytest.approx(2 * 8 / (8 + 9))  # the mean of rows would be a half


def test_a_tag_is_read_at_the_first_token_of_its_word() -> None:
    row = row_of(TAGGER, {"tokens": ["w1-w2", "w3"], "tags": ["B-PER", "O"]})
    assert row.features["tokens"]["input_ids"] == [1, 5, 3, 6, 7, 2]
    assert row.features["words"] == (1, 4)


def test_words_that_are_cut_off_are_outside_of_entities() -> None:
    short = replace(TEXT, max_length=4)
    record = {"tokens": ["w1", "w2", "w3"], "tags": ["B-PER", "O", "B-LOC"]}
    rows = samples_of(TAGGER, [record], short)
    assert rows.rows[0].features["words"] == (1, 2, -1)
    logits = logits_of([record["tags"]], rows, TAGS)
    scores = TAGGER.score(logits, rows)
    assert scores.values.tolist() == [[1, 1, 2]]
    seen = samples_of(TAGGER, [{name: values[:2] for name, values in record.items()}], short)
    assert scores.losses == pytest.approx(TAGGER.score(logits, seen).losses)
    plain = TASKS["token-classification"].for_model(
        transformers.AutoConfig.for_model("bert", id2label=dict(enumerate(KINDS)))
    )
    record = {"tokens": ["w1", "w2", "w3"], "tags": ["VERB", "NOUN", "OTHER"]}
    rows = samples_of(plain, [record], replace(short, id2label=dict(enumerate(KINDS))))
    assert plain.score(logits_of([record["tags"]], rows, KINDS), rows).values == pytest.approx([2 / 3])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": [], "tags": []}, "tokens is empty"),
        ({"tokens": ["w1", ""]}, "a token is empty"),
        ({"tokens": ["w1", 3]}, "a token is int, not a text"),
        ({"tokens": ["w1", "w2"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["w1"], "tags": []}, "1 tokens and 0 tags"),
        ({"tokens": ["w1"], "tags": [None]}, "1 tokens and 0 tags"),
        ({"tokens": ["w1"], "tags": ["B-ORG"]}, "label 'B-ORG' is unknown to the model"),
        ({"tokens": ["w1", "w2"], "tags": ["O", "I-PER"]}, "tag I-PER follows O, and entities begin with B-"),
        ({"tokens": ["w1", "w2"], "tags": ["B-LOC", "I-PER"]}, "tag I-PER follows B-LOC"),
    ],
)
def test_rows_that_are_not_tagged_words_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=f"line 1: {message}"):
        row_of(TAGGER, record)


def test_tags_are_names_or_ids_and_lists_may_be_written_as_texts() -> None:
    row = row_of(TAGGER, {"tokens": '["w1", "w2"]', "tags": "[1, 2]"})
    assert row.label == row_of(TAGGER, {"tokens": ["w1", "w2"], "tags": ["B-PER", "I-PER"]}).label == (1, 2)
    assert row_of(TAGGER, {"tokens": ["w1"]}).label is None


# --- question answering ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "answers", "f1", "exact"),
    [
        ("the Red fox!", ("a red fox",), 1.0, 1.0), ("red fox jumps", ("fox",), 0.5, 0.0),
        ("red", ("fox", "Red."), 1.0, 1.0), ("", (), 1.0, 1.0), ("fox", (), 0.0, 0.0),
        ("", ("fox",), 0.0, 0.0), ("red fox", ("fox hole",), 0.5, 0.0),
    ],
)  # fmt: skip
def test_answers_are_worth_what_squad_says(
    found: str, answers: tuple[str, ...], f1: float, exact: float
) -> None:
    assert squad_value("f1", found, answers) == pytest.approx(f1)
    assert squad_value("exact_match", found, answers) == exact


def test_the_answer_is_the_span_of_the_context_with_the_highest_sum() -> None:
    row = row_of(QA, ASKED)
    assert row.features["tokens"]["token_type_ids"] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert row.features["span"] == (4, 5)
    logits = np.zeros((8, 2))
    logits[1] = 99  # the question is no answer
    logits[6, 0], logits[3, 1] = 9, 9  # nor is what ends before it starts
    logits[4, 0], logits[5, 1] = 8, 4
    assert answer_in(logits, row, may_decline=False) == "w2 w3"


def test_no_answer_is_an_answer_only_where_rows_have_none() -> None:
    logits = np.zeros((2, 8, 2))
    logits[:, 0] = 9
    logits[:, 4, 0], logits[:, 5, 1] = 8, 8
    nothing = {**ASKED, "context": "w5 w6 w7 w8", "answers": []}
    assert QA.score(logits, samples_of(QA, [ASKED, nothing])).values.tolist() == [0, 1]
    assert QA.score(logits, samples_of(QA, [ASKED, ASKED])).values.tolist() == [1, 1]


def test_an_answer_has_at_most_thirty_tokens() -> None:
    words = [f"w{number}" for number in range(40)]
    row = row_of(QA, {"question": "w9", "context": " ".join(words), "answers": ["w1"]})
    logits = np.zeros((44, 2))
    logits[3, 0], logits[33, 1], logits[32, 1] = 9, 9, 5
    assert answer_in(logits, row, may_decline=False) == " ".join(words[:30])


def test_answers_may_be_texts_or_squads_and_the_first_is_learnt() -> None:
    twice = {"question": "w9", "context": "w1 w2 w1 w3"}
    assert row_of(QA, {**twice, "answers": ["w1", "w3"]}).features["span"] == (3, 3)
    squad = {"text": ["w1", "w3"], "answer_start": [6, 9]}
    row = row_of(QA, {**twice, "answers": squad})
    assert (row.features["span"], row.label) == ((5, 5), ("w1", "w3"))
    assert row_of(QA, {**twice, "answers": {"text": [], "answer_start": []}}).label == ()
    assert row_of(QA, {**twice, "answers": "w3"}).label == ("w3",)
    assert row_of(QA, twice).label is None


def test_an_answer_that_is_cut_off_is_learnt_at_the_first_token_and_still_wanted() -> None:
    short = replace(TEXT, max_length=6)  # [CLS] w9 [SEP] w1 w2 [SEP]
    rows = samples_of(QA, [{**ASKED, "answers": ["w2 w3"]}, {**ASKED, "answers": ["w4"]}, ASKED], short)
    assert [row.features["span"] for row in rows.rows] == [(0, 0)] * 3
    assert rows.rows[0].label == ("w2 w3",)
    logits = np.zeros((3, 6, 2))
    logits[:, 4] = 9
    values = QA.score(logits, rows).values
    assert values == pytest.approx([2 / 3, 0, 2 / 3])


def test_a_long_question_stays_whole_and_its_context_is_cut() -> None:
    record = {"question": "w1 w2 w3 w4 w5 w6", "context": "w7 w8 w9", "answers": ["w7"]}
    tokens = row_of(QA, record, replace(TEXT, max_length=10)).features["tokens"]["input_ids"]
    assert tokens == [1, 5, 6, 7, 8, 9, 10, 2, 11, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "question is empty"),
        ({"context": 3}, "context is int, not a text"),
        ({"answers": ["w7"]}, "the context does not have the answer 'w7'"),
        ({"answers": ["W2"]}, "the context does not have the answer 'W2'"),
        ({"answers": [""]}, "an answer is empty"),
        ({"answers": {"text": ["w2"], "answer_start": [0]}}, "does not have the answer 'w2' at character 0"),
        ({"answers": {"text": ["w2"], "answer_start": []}}, "1 answers and 0 places"),
        ({"answers": {"text": ["w2"]}}, "answers holds text, not text and answer_start"),
        ({"question": "w1 " * 62}, "a question of 62 tokens leaves no room"),
    ],
)
def test_rows_that_are_no_questions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=f"line 1: .*{message}"):
        row_of(QA, {**ASKED, **change})


def test_samples_without_any_answer_are_refused() -> None:
    QA.check_labels(samples_of(QA, [ASKED, {**ASKED, "answers": []}]))
    with pytest.raises(LoadError, match="none of 1 id-select rows has an answer"):
        QA.check_labels(samples_of(QA, [{**ASKED, "answers": []}]))


# --- fill-mask ------------------------------------------------------------------------------


def test_the_answer_is_the_token_that_stands_at_the_mask() -> None:
    row = row_of(MASKS, {"text": "w1 [MASK] w3", "answer": "w2"})
    assert (row.features["place"], row.features["answer"], row.label) == (2, 6, "w2")


def test_the_space_before_the_mask_is_part_of_the_answer_where_the_tokenizer_has_it_so() -> None:
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "b", "a", "Ġa", "Ġb"]
    tokenizer = transformers.RobertaTokenizer(
        vocab={token: number for number, token in enumerate([*vocabulary, "Ġ", "<mask>"])},
        merges=[("Ġ", "a"), ("Ġ", "b")],
        mask_token=transformers.AddedToken("<mask>", lstrip=True),
        model_max_length=64,
    )
    processor = replace(TEXT, tokenizer=tokenizer)
    row = row_of(MASKS, {"text": "b <mask> b", "answer": "a"}, processor)
    assert vocabulary[row.features["answer"]] == "Ġa"
    assert vocabulary[row_of(MASKS, {"text": "<mask> b", "answer": "a"}, processor).features["answer"]] == "a"


def test_a_mask_is_right_where_the_answer_is_likeliest() -> None:
    records = [{"text": "w1 [MASK]", "answer": "w2"}, {"text": "[MASK] w1 w3", "answer": "w3"}]
    rows = samples_of(MASKS, records)
    batch = MASKS.batch(rows, np.arange(2), TEXT)
    logits = np.random.default_rng(0).normal(size=(2, 5, 97))
    logits[0, 2, 6], logits[1, 1, 8] = 9, 9  # w2 and w4
    scores = MASKS.score(MASKS.evidence(logits, batch), rows)
    assert scores.values.tolist() == [1, 0]
    expected = functional.cross_entropy(
        torch.from_numpy(logits[[0, 1], [2, 1]]), torch.tensor([6, 7]), reduction="none"
    )
    assert scores.losses == pytest.approx(expected.numpy())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "w1 w2", "answer": "w3"}, "text has 0 mask tokens, not one"),
        ({"text": "[MASK] [MASK]", "answer": "w3"}, "text has 2 mask tokens, not one"),
        ({"text": "w1 " * 70 + "[MASK]", "answer": "w3"}, "the mask is not among the first 64 tokens"),
        ({"text": "w1 [MASK]", "answer": "w3 w4"}, "the answer 'w3 w4' is 2 tokens, not one"),
        ({"text": "w1 [MASK]", "answer": "zebra"}, "the answer 'zebra' is unknown to the tokenizer"),
        ({"text": "w1 [MASK]", "answer": 3}, "answer is int, not a text"),
    ],
)
def test_rows_that_are_no_masked_texts_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=f"line 1: {message}"):
        row_of(MASKS, record)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "masks")
    make_tokenizer("bert").save_pretrained(folder)
    with pytest.raises(LoadError, match="has no mask token"):
        load_model(folder)


# --- feature extraction ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "position"),
    [
        (None, "mean"), ({"pooling_mode": "cls"}, "first-token"),
        ({"pooling_mode": "lasttoken"}, "last-token"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first-token"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)  # fmt: skip
def test_vectors_are_read_where_sentence_transformers_reads_them(
    pooling: dict[str, Any] | None, position: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", "vectors")
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    model = load_model(folder)
    assert model.processor.position == position
    rows = samples_of(model.task, [looked_for(random.Random(0)) for _ in range(2)], model.processor)
    batch = model.task.batch(rows, np.arange(2), model.processor)
    states = model.answers(batch)
    mask = batch.inputs["attention_mask"]
    number = 0
    for row, value in zip(rows.rows, model.task.score(states, rows).values, strict=True):
        read = []
        for _ in row.features["texts"]:
            real = states[number][mask[number] == 1].astype(np.float64)
            read.append({"mean": real.mean(0), "first-token": real[0], "last-token": real[-1]}[position])
            number += 1
        cosines = [one @ read[0] / np.linalg.norm(one) for one in read[1:]]
        assert value == pytest.approx(ndcg_score([[1, *[0] * (len(cosines) - 1)]], [cosines]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1_Pooling/config.json": '{"pooling_mode": "max"}'}, "Pooling by max"),
        ({"1_Pooling/config.json": '{"pooling_mode": ["mean", "cls"]}'}, "Pooling by mean, cls"),
        ({"modules.json": '[{"type": "sentence_transformers.models.Dense"}]'}, "makes vectors with Dense"),
        ({"modules.json": "{"}, "cannot be read"),
    ],
)
def test_vectors_that_are_made_otherwise_are_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", "vectors")
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": ""}, "query is empty"),
        ({"query": "w1", "positive": "w2"}, "1 positives and 0 negatives"),
        ({"query": "w1", "negatives": ["w2"]}, "0 positives and 1 negatives"),
        ({"query": "w1", "positive": "w2", "negatives": ["w2"]}, "'w2' is both a positive and a negative"),
        ({"query": "w1", "positive": "w2", "negatives": ["w3", None]}, "a text of negatives is empty"),
        ({"query": "w1", "positive": 3, "negatives": ["w3"]}, "a text of positive is int, not a text"),
    ],
)
def test_rows_that_cannot_be_ranked_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=f"line 1: {message}"):
        row_of(VECTORS, record)
