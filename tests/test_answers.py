"""Answers in words: what each task says of a model's outputs, and that they prove whose results are whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmarking import CLASSIFICATION, QUICK, TEXT, make_text_export, text_samples

from tapioca_export.artifacts import Accuracy, Prompting
from tapioca_export.benchmarking import benchmark, score_exported, scoring
from tapioca_export.benchmarking.scoring import Scoring
from tapioca_export.domains import Domains
from tapioca_export.errors import BenchmarkError
from tapioca_export.generation import Evaluation
from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import TASKS, Processor, Scores, Task
from tapioca_export.tasks.encoder_choices import EncoderMultipleChoice
from tapioca_export.tasks.multiple_choice import NORMALISED
from tapioca_export.tasks.speech_generation import SpeechGeneration
from tapioca_export.tasks.text_classification import MultiLabelClassification, TextRegression
from tapioca_export.tasks.token_classification import WordTagging
from tapioca_export.tasks.writing import WrittenAnswer

NAMES = Processor("", "mean", 32, id2label={1: "yes", 0: "no"})


class Letters:
    """A tokenizer that writes token 0 as "a" and so on, and 25 not at all."""

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return "".join(chr(ord("a") + token) for token in ids if token != 25)


def samples(*rows: Mapping[str, Any], label: Any = 0) -> Samples:
    made = tuple(Row(features, label, str(n), f"row {n}") for n, features in enumerate(rows))
    return Samples("target-report", made, "rows", "")


WORDS: dict[str, Any] = {
    "context": "the red house",
    "offsets": np.array([[0, 3], [4, 7], [8, 13]]),
    "begins": 1,
    "span": (2, 2),
    "tokens": {"input_ids": [9, 1, 2, 3]},
}
CHOICES: dict[str, Any] = {"answers": ((1,), (2, 3)), "texts": ("cat", "a dog")}
WRITER: dict[str, Any] = {"tokenizer": Letters(), "answers": ((1,),), "wanted": "b", "words": 1}
HEARER: dict[str, Any] = {**WRITER, "frames": 2, "tokens": (1,)}
CASES: dict[str, tuple[Task, Samples, Any, list[str | None]]] = {
    "label": (CLASSIFICATION, samples({}, {}), [[0.1, 0.2], [0.3, 0.2]], ["yes", "no"]),
    "labels": (
        MultiLabelClassification(), samples({}, {}, {}), [[1, 2], [-1, 2], [-1, 0]],
        ["no, yes", "yes", "(none)"],
    ),
    "numbers": (TextRegression(), samples({}), [[0.5, 12345.678]], ["0.5, 1.235e+04"]),
    "tags": (
        WordTagging(["N", "V"]), samples({"words": (2, -1, 0)}), [[[0, 1], [5, 0], [3, 2]]], ["N - V"]
    ),
    "span": (
        TASKS["question-answering"],
        samples(WORDS, label=("red",)),
        [[[0, 0], [0, 0], [5, 1], [1, 5], [99, 99]]],  # the last is padding
        ["red house"],
    ),
    "no span": (TASKS["question-answering"], samples(WORDS, label=()), [[[9, 9], [0, 0], [5, 1], [1, 5]]],
                ["(no answer)"]),
    "likeliest choice": (TASKS["multiple-choice"], samples(CHOICES), [[[-3, 0], [-2, 0], [-2, 0]]], ["cat"]),
    "likeliest for its length": (NORMALISED, samples(CHOICES), [[[-3, 0], [-2, 0], [-2, 0]]], ["a dog"]),
    "one of fewer choices": (
        EncoderMultipleChoice(), samples({"choices": ("x", "y")}, {"choices": ("x", "y", "z")}),
        [[1, 2, 3], [1, 2, 3]], ["y", "z"],
    ),
    "candidate": (
        TASKS["zero-shot-image-classification"], samples({"texts": ("a cat", "a dog")}), [[0.1, 0.3]],
        ["a dog"],
    ),
    "written": (
        WrittenAnswer(Prompting(max_new_tokens=3, extract="(b)")), samples(WRITER),
        [[[-1, 0, 0], [7, 0, -1]]], ["ha"],
    ),
    "transcript": (TASKS["automatic-speech-recognition"], samples(HEARER), [np.eye(26)[[7, 8, 3]]], ["hi"]),
    "written transcript": (SpeechGeneration(), samples(WRITER), [[[-1, 0, 0], [7, 25, -1]]], ["h"]),
    "none": (TASKS["polynomial-regression"], samples({}, {}), [[1.0], [2.0]], [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_task_puts_its_answers_into_words(case: str) -> None:
    task, rows, outputs, expected = CASES[case]
    given = np.asarray(outputs, dtype=np.float64)
    assert task.answers(given, rows, np.arange(len(rows)), NAMES) == expected
    last = np.array([len(rows) - 1])  # of some rows only
    assert task.answers(given[-1:], rows, last, NAMES) == expected[-1:]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return make_text_export(folder / "original"), make_text_export(folder / "pruned", drop=(1, 2))


ROWS = text_samples(60)


@pytest.fixture(scope="module")
def scored(exports: tuple[Path, Path]) -> tuple[Scores, Scores]:
    one, other = (score_exported(folder, CLASSIFICATION, ROWS, TEXT, QUICK) for folder in exports)
    return one, other


SCORING = Scoring(Evaluation(CLASSIFICATION, ROWS, TEXT), QUICK)


def test_flips_say_what_either_file_answers(exports: tuple[Path, Path]) -> None:
    flips = benchmark(*exports, CLASSIFICATION, {"target": ROWS}, TEXT, QUICK).flips["target"]
    assert flips
    for flip in flips:
        right = TEXT.id2label[ROWS.rows[int(flip.where.removeprefix("row "))].label]
        assert (flip.original_answer == right) is (flip.original == 1)
        assert (flip.pruned_answer == right) is (flip.pruned == 1)
        assert flip.original_answer != flip.pruned_answer


def test_rows_that_stay_wrong_with_another_answer_are_counted_of_all_and_of_each_domain(
    exports: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where answers are logits, which no two models have alike: then all rows that stay wrong count."""

    def answers(self: Task, outputs: np.ndarray, *given: Any) -> list[str | None]:
        return [str(row) for row in outputs.round(3).tolist()]

    def both_wrong(accuracy: Accuracy) -> int:
        assert accuracy.gained is not None
        return round(accuracy.n * (1 - accuracy.original)) - accuracy.gained

    with monkeypatch.context() as patch:
        patch.setattr(type(CLASSIFICATION), "answers", answers)
        rows = replace(ROWS, named=Domains.of({"a": 20, "b": 40}))
        found = benchmark(*exports, CLASSIFICATION, {"target": rows}, TEXT, replace(QUICK, redact=True))
    counted = [both_wrong(accuracy) for accuracy in found.targets.values()]
    assert [accuracy.still_wrong for accuracy in found.targets.values()] == counted
    assert found.accuracy["target"].still_wrong == sum(counted)
    assert min(counted) > 0
    plain = benchmark(*exports, CLASSIFICATION, {"target": ROWS}, TEXT, QUICK)
    assert plain.accuracy["target"].still_wrong == 0, "of two labels there is one wrong answer"


def test_answers_stand_in_the_order_of_the_rows_and_not_of_their_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model that tells even lengths from odd ones: every second row is longer by a word."""

    def lengths(self: Task, rows: Sequence[Row], processor: Processor) -> list[int]:
        return [len(row.features["text"].split()) for row in rows]

    monkeypatch.setattr(type(CLASSIFICATION), "lengths", lengths)
    evaluation = Evaluation(CLASSIFICATION, ROWS, TEXT)
    found, said = evaluation.answer(
        lambda inputs: {"logits": np.eye(2)[inputs["attention_mask"].sum(axis=1) % 2]}, {}
    )
    assert np.concatenate(evaluation.batches).tolist() != list(range(len(ROWS)))
    assert said == [TEXT.id2label[row % 2] for row in range(len(ROWS))]
    assert found.values.tolist() == [1.0] * len(ROWS)


def test_results_of_the_other_file_are_refused(
    exports: tuple[Path, Path], scored: tuple[Scores, Scores]
) -> None:
    SCORING.prove(exports, scored)
    with pytest.raises(BenchmarkError, match=r"scored of .*original on the target-report rows is not what"):
        SCORING.prove(exports, scored[::-1])


def test_files_that_are_the_same_cannot_be_mistaken_for_each_other(
    exports: tuple[Path, Path], scored: tuple[Scores, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rounding is all that tells losses apart, the wrong way round; nothing is opened for it."""
    nearly = Scores(scored[0].values, scored[0].losses * (1 + 1e-6))
    monkeypatch.delattr(scoring, "read_export_folder")
    SCORING.prove((exports[0], exports[0]), (nearly, scored[0]))


def test_the_proof_scores_a_batch_as_it_was(
    exports: tuple[Path, Path], scored: tuple[Scores, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose results depend on the rows beside a row, as in 8 bits, is no other file."""
    own: Callable[..., Scores] = Evaluation.score
    given: list[list[int]] = []

    def score(self: Evaluation, *arguments: Any) -> Scores:
        given.extend(rows.tolist() for rows in arguments[-1])
        return own(self, *arguments)

    monkeypatch.setattr(Evaluation, "score", score)
    SCORING.prove(exports, scored)
    assert len(SCORING.evaluation.batches) > 1
    assert len(given) == 2
    assert given[0] == given[1]
    assert given[0] in [rows.tolist() for rows in SCORING.evaluation.batches]


def test_whether_there_may_be_no_answer_is_decided_a_domain() -> None:
    task = TASKS["question-answering"]
    answered, unanswerable = samples(WORDS, label=("red",)), samples(WORDS, label=())
    both = replace(
        answered, rows=(*answered.rows, *unanswerable.rows), named=Domains.of({"all": 1, "some": 1})
    )
    logits = np.asarray([[[9, 9], [0, 0], [5, 1], [1, 5]]] * 2, dtype=np.float64)
    rows = np.array([1, 0])
    assert task.answers_by_domain(logits, both, rows, NAMES) == ["(no answer)", "red house"]
    assert task.score_by_domain(logits, both, rows).values[0] == 1.0
