"""Heads of text classification that say several labels, or numbers: rows, metrics, and bad rows."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import FAMILIES, complaint, make_tokenizer, write_jsonl
from said import assert_changes, kl, of_numbers
from sklearn.metrics import f1_score, log_loss, mean_squared_error, r2_score
from transformers import AutoConfig, AutoModelForSequenceClassification

from tapioca_export.cli import main
from tapioca_export.errors import LoadError, SelectionError
from tapioca_export.models import load_model
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples, read_samples
from tapioca_export.tasks import Processor, Task
from tapioca_export.tasks.text_classification import MultiLabelClassification, TextRegression

SETS, NUMBERS = MultiLabelClassification(), TextRegression()
NAMES = {0: "rude", 1: "spam", 2: "threat"}
TEXT = Processor("folder", "first-token", 64, make_tokenizer("bert"), NAMES)
ONE_NUMBER = replace(TEXT, id2label={0: "LABEL_0"})


def samples_of(task: Task, labels: list[Any], processor: Processor = TEXT) -> Samples:
    read = task.rows({}, processor)
    records = [{"text": f"w1 n{number}", "label": label} for number, label in enumerate(labels)]
    rows = tuple(read(record, f"line {number}") for number, record in enumerate(records, start=1))
    return Samples("id-select", rows, "file", "")


def save(folder: Path, **overrides: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **FAMILIES["bert"], initializer_range=0.15, **overrides)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


# --- which head -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "metric", "higher_is_better"),
    [
        ({"num_labels": 3}, "accuracy", True),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "accuracy", True),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "samples_f1", True),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "samples_f1", True),
        ({"num_labels": 1}, "nmse", False),
        ({"num_labels": 1, "problem_type": "regression"}, "nmse", False),
        ({"num_labels": 2, "problem_type": "regression"}, "nmse", False),
    ],
)
def test_the_task_is_inferred_with_the_metric_of_the_head(
    settings: dict[str, Any], metric: str, higher_is_better: bool, tmp_path: Path
) -> None:
    task = load_model(save(tmp_path, **settings)).task
    assert (task.name, task.metric) == ("text-classification", metric)
    assert task.higher_is_better == higher_is_better


# --- rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["spam"], (0, 1, 0)), ([2, "rude"], (1, 0, 1)), (("1",), (0, 1, 0)), ([], (0, 0, 0)),
        ("threat", (0, 0, 1)), (2, (0, 0, 1)), ('["rude", "spam"]', (1, 1, 0)), ("[]", (0, 0, 0)),
        ([2.0], (0, 0, 1)), (None, None), ("", None), (math.nan, None),
    ],
)  # fmt: skip
def test_labels_are_lists_of_names_or_ids(labels: Any, expected: tuple[int, ...] | None) -> None:
    assert samples_of(SETS, [labels]).rows[0].label == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["insult"], "line 1: label 'insult' is unknown to the model"),
        ([3], "line 1: label 3 is unknown"),
        ([0, 1, 0], "line 1: labels .* name a label twice"),  # no list of one number a label
        (["spam", 1], "line 1: labels .* name a label twice"),
        ([None], "line 1: labels .* name a label twice, or none"),
        ("[rude]", r"line 1: '\[rude\]' is not a list in JSON"),
        ({"rude": 1}, "line 1: label .* is unknown"),
    ],
)
def test_lists_that_are_no_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        samples_of(SETS, [labels])


@pytest.mark.parametrize(
    ("label", "expected"),
    [(3, (3.0,)), (-0.5, (-0.5,)), ("1e-3", (0.001,)), (" 4 ", (4.0,)), ([2], (2.0,)), ("[2.5]", (2.5,)),
     (None, None), ("", None), (math.nan, None)],
)  # fmt: skip
def test_numbers_may_be_written_as_texts(label: Any, expected: tuple[float, ...] | None) -> None:
    assert samples_of(NUMBERS, [label], ONE_NUMBER).rows[0].label == expected


@pytest.mark.parametrize("label", ["good", True, [1, 2], [], "inf", math.inf, {}, "1,5", [None]])
def test_what_is_no_number_is_refused(label: Any) -> None:
    with pytest.raises(LoadError, match=r"line 1: label .* is not a number"):
        samples_of(NUMBERS, [label], ONE_NUMBER)


def test_a_head_with_several_outputs_needs_as_many_numbers() -> None:
    assert samples_of(NUMBERS, [[1, 2, 3], "[4, 5, 6]"]).labels.tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(LoadError, match="line 1: label 1 is not a list of 3 numbers"):
        samples_of(NUMBERS, [1])


def test_samples_that_are_all_labelled_alike_are_refused() -> None:
    SETS.check_labels(samples_of(SETS, [[0], [0, 1]]))
    SETS.check_labels(samples_of(SETS, [None, None]))
    NUMBERS.check_labels(samples_of(NUMBERS, [None, None]))
    with pytest.raises(LoadError, match="all 2 id-select rows have the same label"):
        SETS.check_labels(samples_of(SETS, [[0, 1], ["spam", "rude"]]))
    NUMBERS.check_labels(samples_of(NUMBERS, [[1, 2, 3], [2, 3, 1]]))
    with pytest.raises(LoadError, match="all 2 id-select rows have the same number"):
        NUMBERS.check_labels(samples_of(NUMBERS, [[1, 2, 3], [2, 3, 3]]))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_bad_label_is_named_by_file_and_row_at_the_command_line(suffix: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", num_labels=1)
    records = [{"text": f"w{number}", "label": number} for number in range(20)]
    good = write_jsonl(tmp_path / "id.jsonl", records)
    bad = tmp_path / f"target.{suffix}"
    records[2]["label"] = "many"
    if suffix == "csv":
        with bad.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(records)
    else:
        write_jsonl(bad, records)
    arguments = ["select", "-m", model, "--id", good, "--target", bad, "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    place = f"{bad}, row 3" if suffix == "csv" else f"{bad}, line 3"
    assert result.exit_code == 1
    assert complaint(result)[0] == f"Error: {place}: label 'many' is not a number."
    assert not (tmp_path / "out").exists()


# --- scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 2, 40])
@pytest.mark.parametrize("num_labels", [1, 2, 5])
@pytest.mark.filterwarnings("ignore:Precision:UserWarning", "ignore:Recall:UserWarning")
def test_f1_of_a_row_is_scikit_learns_and_the_metric_its_average_over_samples(
    num_rows: int, num_labels: int
) -> None:
    generator = np.random.default_rng(num_rows)
    truth = generator.integers(0, 2, (num_rows, num_labels))
    logits = generator.normal(size=(num_rows, num_labels))
    processor = replace(TEXT, id2label={i: f"l{i}" for i in range(num_labels)})
    samples = samples_of(SETS, [np.flatnonzero(row).tolist() for row in truth], processor)
    scores = SETS.score(logits, samples)
    expected = [
        f1_score(row, found, zero_division=1.0)
        for row, found in zip(truth, (logits > 0).astype(int), strict=True)
    ]
    assert scores.values == pytest.approx(expected)
    if num_labels > 1:
        found = (logits > 0).astype(int)
        expected = f1_score(truth, found, average="samples", zero_division=1.0)
        assert scores.values.mean() == pytest.approx(expected)
    shares = 1 / (1 + np.exp(-logits))
    losses = [
        np.mean([log_loss([t], [p], labels=[0, 1]) for t, p in zip(*pair, strict=True)])
        for pair in zip(truth, shares, strict=True)
    ]
    assert scores.losses == pytest.approx(losses)


def test_a_row_without_labels_is_right_where_none_is_predicted() -> None:
    samples = samples_of(SETS, [[], [], ["rude"]])
    logits = np.array([[-1.0, -1, -1], [1, -1, -1], [-1, -1, -1]])
    assert SETS.score(logits, samples).values.tolist() == [1, 0, 0]


def test_extreme_logits_have_finite_losses() -> None:
    losses = SETS.score(np.array([[1e4, -1e4, 0.0]]), samples_of(SETS, [["spam"]])).losses
    assert losses == pytest.approx([(2e4 + math.log(2)) / 3])


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_nmse_is_one_minus_scikit_learns_r2(num_outputs: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(30, num_outputs)) * [1.0, 10.0, 0.1][:num_outputs]
    found = labels + generator.normal(size=labels.shape)
    processor = ONE_NUMBER if num_outputs == 1 else TEXT
    samples = samples_of(NUMBERS, labels.tolist(), processor)
    scores = NUMBERS.score(found, samples)
    assert scores.values.mean() == pytest.approx(1 - r2_score(labels, found))
    assert scores.loss == pytest.approx(mean_squared_error(labels, found))
    # A row's value does not depend on which rows it is scored with.
    rows = np.array([7, 3])
    assert NUMBERS.score(found[rows], samples, rows).values == pytest.approx(scores.values[rows])


@pytest.mark.parametrize("task", [SETS, NUMBERS])
def test_outputs_that_are_not_finite_are_refused_by_row(task: Task) -> None:
    labels: list[Any] = [[0], [1], [2]] if task is SETS else [[1, 2, 3], [4, 5, 6], [7, 8, 8]]
    outputs = np.zeros((3, 3), dtype=np.float32)
    outputs[1, 2] = math.nan
    with pytest.raises(SelectionError, match="line 2"):
        task.score(outputs, samples_of(task, labels))


def test_labels_change_one_by_one_and_numbers_by_squares(tmp_path: Path) -> None:
    def of_labels(one: Any, other: Any, inputs: Any) -> float:
        pairs = (np.stack([np.asarray(part.logits[0]), np.zeros(3)], axis=-1) for part in (one, other))
        return float(kl(*pairs).mean())

    several = {"num_labels": 3, "problem_type": "multi_label_classification"}
    for settings, label, compare in ((several, [0], of_labels), ({"num_labels": 1}, 0.5, of_numbers)):
        model = load_model(save(tmp_path / str(settings["num_labels"]), **settings))
        rows = samples_of(model.task, [label] * 7, model.processor)
        assert_changes(model, rows, compare, (0, 2))


def test_agreement_compares_sets_of_labels() -> None:
    one = np.array([[1.0, -1.0], [1.0, 1.0]])
    assert SETS.agreement(one, one * 2) == 1.0
    assert SETS.agreement(one, np.array([[1.0, -1.0], [1.0, -1.0]])) == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "regression"},
    ],
)
def test_loss_and_sensitivities_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(save(tmp_path / "model", **settings))
    generator = np.random.default_rng(0)
    records = []
    for number in range(9):
        label: Any = generator.normal(size=settings["num_labels"]).round(2).tolist()
        if "multi" in settings.get("problem_type", ""):
            label = np.flatnonzero(np.asarray(label) > 0).tolist()
        records.append({"text": f"w{number} w{number + 1}", "label": label})
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    rows = read_samples(path, model.task.rows({}, model.processor), role="id-select")
    batch = model.task.batch(rows, np.arange(9), model.processor)
    labels = torch.from_numpy(model.task.training_inputs(batch, rows)["labels"])
    tensors = {name: torch.from_numpy(value) for name, value in batch.inputs.items()}
    with torch.no_grad():
        loss = model.network(**tensors, labels=labels).loss
    assert model.task.score(model.answers(batch), rows).loss == pytest.approx(float(loss), rel=1e-5)
    probes = [Probe(model, {"id": rows, "target": rows}, batch_size=size) for size in (1, 9)]
    one, other = (probe.sensitivities() for probe in probes)
    assert one == pytest.approx(other, rel=1e-3)
    assert min(one) > 0
