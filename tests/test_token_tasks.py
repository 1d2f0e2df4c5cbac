"""What must hold for every task whose answers stand at tokens."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import complaint, write_jsonl
from said import assert_changes, kl, of_classes
from scipy.spatial.distance import cosine
from token_models import (
    ASKED,
    MODELS,
    samples_of,
    save,
)

from tapioca_export.benchmarking import score_exported
from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, SelectionError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import LoadedModel, LoadOptions, load_model, skipping
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples
from tapioca_export.tasks import Scores


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save(tmp_path_factory.mktemp("model"), kind), kind)


def load(folder: Path, kind: str) -> LoadedModel:
    return load_model(
        folder, options=LoadOptions(metric={"pairs": "spearman", "exact answers": "exact_match"}.get(kind))
    )


@pytest.fixture(scope="module")
def rows(kind: str, model: LoadedModel) -> Samples:
    generator = random.Random(0)
    records = [MODELS[kind][2](generator) for _ in range(24)]
    return samples_of(model.task, records, model.processor)


def scores_of(model: LoadedModel, rows: Samples, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and losses of N rows, scored in batches of a size."""
    parts = [
        (batch.indices, model.task.score(model.answers(batch), rows, batch.indices))
        for batch in model.task.batches(rows, model.processor, batch_size)
    ]
    scores = Scores.joined(parts)
    return scores.values, scores.losses


def test_the_task_is_inferred_from_the_architecture(kind: str, model: LoadedModel) -> None:
    assert f"{model.task.name} {model.task.metric}" == MODELS[kind][3]


def test_scores_depend_on_neither_batch_size_nor_padding(model: LoadedModel, rows: Samples) -> None:
    alone, together = scores_of(model, rows, 1), scores_of(model, rows, 24)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-4, atol=1e-4)
    assert np.ptp(alone[1]) > 0


def test_what_is_said_of_tokens_changes_as_single_rows_say(model: LoadedModel, rows: Samples) -> None:
    def compare(one: Any, other: Any, inputs: Any) -> float:
        if model.task.name == "fill-mask":
            place = inputs["input_ids"][0] == model.processor.tokenizer.mask_token_id
            return float(kl(one.logits[0][place], other.logits[0][place])[0])
        if model.task.name == "question-answering":
            parts = ("start_logits", "end_logits")
            return float(np.mean([kl(one[name][0], other[name][0]) for name in parts]))
        if model.task.name == "feature-extraction":
            vectors = [np.asarray(part.last_hidden_state[0]).mean(axis=0) for part in (one, other)]
            return float(cosine(*vectors))
        return of_classes(one, other, inputs)

    assert_changes(model, rows, compare, (0, 2))


def test_scores_follow_the_order_of_rows(model: LoadedModel, rows: Samples) -> None:
    backwards = replace(rows, rows=rows.rows[::-1])
    pairs = zip(scores_of(model, backwards, 5), scores_of(model, rows, 5), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected[::-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_on_the_side_asked_for(model: LoadedModel, rows: Samples, side: str) -> None:
    inputs = model.task.encode(rows.rows[:8], model.processor, side)
    mask = inputs["attention_mask"]
    assert mask.shape[1] == max(mask.sum(axis=1)) > min(mask.sum(axis=1))
    assert (np.diff(mask, axis=1) >= 0).all() if side == "left" else (np.diff(mask, axis=1) <= 0).all()
    expected = model.task.lengths(rows.rows[:8], model.processor)
    assert mask.sum(axis=1).tolist() == expected


def test_replayed_candidates_score_as_the_skipped_network(model: LoadedModel, rows: Samples) -> None:
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=7)
    found = probe.metrics((2,), [0, 1, 3])
    for layer, evaluation in found.items():
        with skipping(model, [2, layer]):
            expected = scores_of(model, rows, 7)
        assert evaluation.metric == pytest.approx(float(model.task.aggregate(expected[0])), abs=1e-6)
        assert evaluation.loss == pytest.approx(expected[1].mean(), rel=1e-4)


def test_profiles_depend_on_neither_batch_size_nor_row_order(model: LoadedModel, rows: Samples) -> None:
    backwards = replace(rows, rows=rows.rows[::-1])
    one = Probe(model, {"id": rows, "target": rows}, batch_size=5).profile("id", (1,))
    other = Probe(model, {"id": backwards, "target": rows}, batch_size=64).profile("id", (1,))
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-5)
    np.testing.assert_allclose(one.distances, other.distances, rtol=1e-5)


def test_examples_have_several_rows_and_no_axis_of_length_one(model: LoadedModel) -> None:
    first, *others = (inputs["input_ids"].shape for inputs in model.task.examples(model.processor))
    assert min(first) > 1
    assert all(shape != first for shape in others)


@pytest.mark.slow
def test_an_exported_file_gives_each_row_the_value_that_pytorch_gives(
    model: LoadedModel, rows: Samples, tmp_path: Path
) -> None:
    export = export_model(model, rows, tmp_path, ExportSettings())
    assert set(model.task.outputs) <= set(export.outputs)
    assert set(export.padding_checked) == {"none", "left", "right"}
    exported = score_exported(tmp_path, model.task, rows, model.processor)
    expected = scores_of(model, rows, 7)
    np.testing.assert_allclose(exported.values, expected[0], atol=1e-6)
    np.testing.assert_allclose(exported.losses, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "modernbert"])
@pytest.mark.parametrize("kind", MODELS)
def test_other_families_do_these_tasks_too(kind: str, family: str, tmp_path: Path) -> None:
    model = load(save(tmp_path, kind, family), kind)
    generator = random.Random(0)
    rows = samples_of(model.task, [MODELS[kind][2](generator) for _ in range(12)], model.processor)
    for one, other in zip(scores_of(model, rows, 12), scores_of(model, rows, 1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    with skipping(model, [1]):
        assert np.abs(scores_of(model, rows, 12)[1] - scores_of(model, rows, 1)[1]).max() < 1e-3


def test_outputs_that_are_not_finite_are_refused_by_row(model: LoadedModel, rows: Samples) -> None:
    batch = model.task.batch(rows, np.arange(3), model.processor)
    outputs = model.answers(batch).copy()
    outputs[-1].flat[0] = math.nan
    with pytest.raises(SelectionError, match="line 3"):
        model.task.score(outputs, rows, batch.indices)


def test_losses_and_sensitivities_are_those_of_transformers_where_it_has_one_a_row(
    kind: str, model: LoadedModel, rows: Samples
) -> None:
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=5)
    if kind not in ("answers", "exact answers", "masks"):
        with pytest.raises(ConfigError, match=f"taylor is not there for {model.task.name}"):
            probe.sensitivities()
        return
    for index in range(6):  # one at a time, as transformers counts padding in for answers
        batch = model.task.batch(rows, np.array([index]), model.processor)
        inputs = {**batch.inputs, **model.task.training_inputs(batch, rows)}
        with torch.no_grad():
            loss = model.network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).loss
        found = model.task.score(model.answers(batch), rows, batch.indices).losses
        assert found == pytest.approx([float(loss)], rel=1e-4)
    assert min(probe.sensitivities()) > 0


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "spoilt", "message"),
    [
        ("entities", {"tokens": ["w1"], "tags": ["B-ORG"]}, "label 'B-ORG' is unknown to the model."),
        ("answers", {**ASKED, "answers": ["w7"]}, "the context does not have the answer 'w7'."),
        ("masks", {"text": "w1", "answer": "w2"}, "text has 0 mask tokens, not one."),
        ("vectors", {"query": "w1", "positive": "w2"}, "1 positives and 0 negatives; nothing can be ranked."),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    kind: str, spoilt: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model", kind)
    generator = random.Random(0)
    records = [MODELS[kind][2](generator) for _ in range(20)]
    good, bad = (tmp_path / f"{name}.jsonl" for name in ("id", "target"))
    write_jsonl(good, records)
    write_jsonl(bad, [*records[:2], spoilt, *records[3:]])
    arguments = ["select", "-m", model, "--id", good, "--target", bad, "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    first, second = complaint(result)
    assert first == f"Error: {bad}, line 3: {message}"
    assert second.startswith("Hint: ")
    assert not (tmp_path / "out").exists()
