"""Metrics of all rows together: rank correlation and F1 are made of rows, and are no means over them."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import make_tokenizer, write_jsonl
from planting import assert_found, plant
from test_text_tasks import PLANTED, make_network, message, write_rows
from test_text_tasks import save as save_network
from token_models import MODELS, TAGGER, samples_of, save, scored_pair
from torch.nn import functional

from tapioca_export import RunConfig, commands, planning
from tapioca_export.artifacts import Comparison, Journal, Ledger, Report, Selection, read
from tapioca_export.benchmarking import compare
from tapioca_export.cli import main
from tapioca_export.errors import LoadError
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.profiling import Probe
from tapioca_export.tasks import Scores
from tapioca_export.tasks.feature_extraction import PAIRS

NUM_LAYERS = 4


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- rank correlation -----------------------------------------------------------------------


def drawn(seed: int, shape: tuple[int, ...] = (30,), levels: int = 6) -> np.ndarray:
    """Return cosines and scores (..., N, 2) that go together a little, with ties among the scores."""
    generator = np.random.default_rng(seed)
    wanted = generator.integers(0, levels, shape)
    return np.stack([wanted + generator.normal(0, 3, shape), wanted], axis=-1)


def test_the_correlation_is_scipys_for_every_set_of_rows() -> None:
    values = drawn(0, (4, 5, 30))
    values[0, 0, :7, 0] = 1.0  # ties among the cosines as well
    found = PAIRS.aggregate(values)
    assert found.shape == (4, 5)
    for place in product(range(4), range(5)):
        assert found[place] == pytest.approx(scipy.stats.spearmanr(*values[place].T).statistic, abs=1e-12)


def test_cosines_that_are_all_equal_put_nothing_in_order() -> None:
    values = drawn(0)
    values[:, 0] = 0.5
    assert PAIRS.aggregate(values) == 0
    values[:, 1] = 3
    assert PAIRS.aggregate(values) == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save(tmp_path_factory.mktemp("model"), "pairs")
    return load_model(folder, options=LoadOptions(metric="spearman"))


def test_a_row_is_the_cosine_of_its_texts_and_its_score(model: LoadedModel) -> None:
    generator = random.Random(0)
    rows = samples_of(model.task, [scored_pair(generator) for _ in range(8)], model.processor)
    batch = model.task.batch(rows, np.asarray([5, 2, 6]), model.processor)
    scores = model.task.score(model.answers(batch), rows, batch.indices)
    lowest, highest = min(rows.labels), max(rows.labels)
    for index, (cosine, wanted), loss in zip(batch.indices, scores.values, scores.losses, strict=True):
        one, other = (
            model.logits({name: np.asarray([ids]) for name, ids in text.items()})[0].mean(axis=0)
            for text in rows.rows[index].features["texts"]
        )
        expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert cosine == pytest.approx(expected, abs=1e-5)
        assert wanted == rows.labels[index]
        assert loss == pytest.approx((expected - (wanted - lowest) / (highest - lowest)) ** 2, abs=1e-5)


def test_columns_of_other_names_are_read_and_what_is_no_score_is_refused(model: LoadedModel) -> None:
    read_row = model.task.rows({"text": "sentence1", "text_pair": "sentence2"}, model.processor)
    record = {"sentence1": "w1", "sentence2": "w2 w3", "score": 3.8}
    assert read_row(record, "line 1").label == 3.8
    assert read_row({**record, "score": None}, "line 1").label is None
    with pytest.raises(LoadError, match="line 1: score 'much' is not a number"):
        read_row({**record, "score": "much"}, "line 1")
    with pytest.raises(LoadError, match="line 1 has no column 'sentence2'"):
        read_row({"sentence1": "w1"}, "line 1")


def test_scores_that_are_all_the_same_are_refused(model: LoadedModel) -> None:
    same = [{"text": f"w{number}", "text_pair": "w1", "score": 2.5} for number in range(8)]
    with pytest.raises(LoadError, match="all 8 id-select rows have the same score"):
        model.task.check_labels(samples_of(model.task, same, model.processor))


# --- paired statistics ----------------------------------------------------------------------


def of(values: np.ndarray) -> Scores:
    return Scores(np.asarray(values, dtype=np.float64), np.zeros(len(values)))


def counts(seed: int, num_rows: int, share: float) -> np.ndarray:
    """Return right, found and wanted entities of rows, of which about a share is right."""
    generator = np.random.default_rng(seed)
    wanted = generator.integers(0, 5, num_rows)
    found = generator.integers(0, 5, num_rows)
    right = np.floor(np.minimum(wanted, found) * generator.uniform(share, 1, num_rows))
    return np.stack([right, found, wanted], axis=1)


def f1(values: np.ndarray) -> float:
    return float(2 * values[:, 0].sum() / (values[:, 1].sum() + values[:, 2].sum()))


def test_intervals_are_of_the_metric_of_rows_drawn_in_pairs() -> None:
    original = counts(0, 60, 0.9)
    pruned = original.copy()  # right where the original is, and a little more: pairs tell most
    pruned[::8, 0] = np.minimum(pruned[::8, 1], pruned[::8, 2])
    accuracy = compare(TAGGER, of(original), of(pruned))
    assert (accuracy.original, accuracy.pruned) == pytest.approx((f1(original), f1(pruned)))
    assert accuracy.difference == accuracy.pruned - accuracy.original
    generator = np.random.default_rng(5)
    draws = [generator.integers(0, 60, 60) for _ in range(4000)]
    for interval, one in (
        (accuracy.interval, lambda rows: f1(pruned[rows]) - f1(original[rows])),
        (accuracy.original_interval, lambda rows: f1(original[rows])),
        (accuracy.pruned_interval, lambda rows: f1(pruned[rows])),
    ):
        assert interval == pytest.approx(np.percentile([one(rows) for rows in draws], [2.5, 97.5]), abs=0.01)
    assert np.ptp(accuracy.interval) < 0.5 * np.ptp(accuracy.original_interval)
    assert (accuracy.gained, accuracy.lost, accuracy.invalid) == (None, None, None)


@pytest.mark.parametrize("task", [TAGGER, PAIRS], ids=lambda task: str(task.metric))
def test_the_p_value_is_that_of_all_ways_to_swap_rows(task: Any) -> None:
    made = (counts(0, 6, 0), counts(3, 6, 0.9)) if task is TAGGER else (drawn(0, (6,)), drawn(1, (6,)))
    original, pruned = made
    pruned[:, -1] = original[:, -1]
    found = compare(task, of(original), of(pruned)).p_value
    swappable = original, pruned
    if task is PAIRS:
        swappable = tuple(np.stack([scipy.stats.rankdata(c) for c in v.T], axis=1) for v in swappable)
    differences = []
    for swaps in product((False, True), repeat=6):
        one, other = (np.where(np.asarray(swaps)[:, None] ^ flip, *swappable) for flip in (True, False))
        differences.append(float(task.aggregate(other) - task.aggregate(one)))
    differences = np.asarray(differences)
    seen = task.aggregate(pruned) - task.aggregate(original)
    tails = (np.mean(differences >= seen - 1e-12), np.mean(differences <= seen + 1e-12))
    assert found == pytest.approx(min(1.0, 2 * min(tails)))


def test_how_large_cosines_are_all_over_changes_nothing() -> None:
    original, pruned = drawn(0), drawn(1)
    pruned[:, 1] = original[:, 1]
    stretched = np.stack([np.exp(pruned[:, 0]) + 50, pruned[:, 1]], axis=1)
    one, other = (compare(PAIRS, of(original), of(found)) for found in (pruned, stretched))
    assert one == other
    assert 0 < one.p_value < 1


@pytest.mark.parametrize("task", [TAGGER, PAIRS], ids=lambda task: str(task.metric))
def test_equal_results_are_no_evidence(task: Any) -> None:
    values = of(counts(0, 20, 0.5) if task is TAGGER else drawn(0))
    accuracy = compare(task, values, values)
    assert (accuracy.interval, accuracy.p_value, accuracy.difference) == ((0.0, 0.0), 1.0, 0.0)
    low, high = accuracy.original_interval
    assert low < accuracy.original < high


# --- searches -------------------------------------------------------------------------------


def test_a_journal_gives_back_several_numbers_a_row(tmp_path: Path) -> None:
    line = {"sets": [[1], [2]], "rows": [2, 0], "values": [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [0, 0, 1]]],
            "losses": [[0.1, 0.2], [0.3, 0.4]], "layer_forwards": 1, "layer_tokens": 1}  # fmt: skip
    Journal(tmp_path / "search.jsonl", {}, 3).add_rows(line, 3)
    for ledger in (Journal(tmp_path / "search.jsonl", {}, 3), Ledger()):
        if type(ledger) is Ledger:
            ledger.add_rows(line, 3)
        ledger.add_rows({**line, "values": np.full((2, 2, 3), 99.0).tolist()}, 3)  # what is known stays
        values, losses = ledger.rows([2], 3)
        np.testing.assert_array_equal(values, [[0, 0, 1], [math.nan] * 3, [7, 8, 9]])
        np.testing.assert_array_equal(losses, [0.4, math.nan, 0.3])
        assert ledger.is_unknown([2], 3).tolist() == [False, True, False]
        assert ledger.is_unknown([1, 2], 3).all()


def config_of(folder: Path, kind: str, **settings: Any) -> RunConfig:
    """Save a model and rows; return the configuration of a search."""
    model, files = save(folder / "model", kind), {}
    for name in ("id", "target"):
        generator = random.Random(name)
        records = [MODELS[kind][2](generator) for _ in range(40)]
        files[name] = write_jsonl(folder / f"{name}.jsonl", records)
    metric = "spearman" if kind == "pairs" else None
    chosen = {"epsilon": None, "pick": "final", "max_drop_layers": 2, "metric": metric, **settings}
    return RunConfig(model=str(model), output=folder / "out", **files, **chosen)


@pytest.mark.parametrize("kind", ["entities", "pairs"])
@pytest.mark.parametrize("criterion", ["tale", "loss"])
def test_candidates_are_scored_in_full_and_the_best_is_dropped(
    kind: str, criterion: str, tmp_path: Path
) -> None:
    selection = commands.select(config_of(tmp_path, kind, criterion=criterion))
    assert len(selection.steps) == 2
    for step in selection.steps:
        assert {candidate.outcome for candidate in step.candidates} == {"full"}
        numbers = [c.metric if criterion == "tale" else -(c.loss or 0) for c in step.candidates]
        assert step.layer == step.candidates[int(np.argmax(numbers))].layer
    config = config_of(tmp_path / "again", kind, criterion=criterion, full_scores=True)
    again = commands.select(config)
    assert [step.candidates for step in again.steps] == [step.candidates for step in selection.steps]


@pytest.mark.parametrize("kind", ["entities", "pairs"])
def test_a_search_takes_exactly_what_was_planned(kind: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, kind)
    plan, cost = planning.plan(config), commands.select(config).cost
    assert cost is not None
    for name in ("evaluations", "layer_forwards", "layer_tokens"):
        bounds = getattr(plan, name)
        assert bounds.least == bounds.most == getattr(cost, name)


def test_statistical_races_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "entities")
    result = invoke(
        "select", "-m", config.model, "--id", config.id, "--target", config.target, "-o", config.output,
        "--search", "racing",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "Error: --search racing estimates means over rows, and f1 is none." in result.stderr


def test_a_search_that_was_interrupted_resumes(tmp_path: Path) -> None:
    config = config_of(tmp_path, "pairs")
    whole = commands.select(config)
    lines = (config.output / "search.jsonl").read_bytes().splitlines(keepends=True)
    assert any(len(np.shape(json.loads(line).get("values", ()))) == 3 for line in lines)
    aside = tmp_path / ".out.tapioca-partial"
    aside.mkdir()
    (aside / "search.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    (config.output / "search.jsonl").unlink()
    (config.output / "selection.json").unlink()
    config.output.rmdir()
    again = commands.select(config)
    assert (again.steps, again.drop) == (whole.steps, whole.drop)
    assert again.cost is not None
    assert whole.cost is not None
    assert again.cost.layer_forwards == whole.cost.layer_forwards


def test_criteria_are_compared_by_the_metric_of_all_report_rows(tmp_path: Path) -> None:
    config = config_of(tmp_path, "entities", max_drop_layers=1)
    commands.compare(config, ["tale", "last"])
    found = read(config.output / "comparison.json", Comparison)
    model = load_model(config.model)
    _, roles = commands.reading.load_with_roles(config, ("report",))
    rows = roles["target-report"]
    probe = Probe(model, {"id": rows, "target": rows})
    for row in found.criteria:
        assert row.target.original == pytest.approx(probe.metric().metric)
        assert row.target.pruned == pytest.approx(probe.metric(model.numbering.indices(row.drop)).metric)


# --- the whole job --------------------------------------------------------------------------


def alike(generator: random.Random, *, target: bool) -> dict[str, Any]:
    """Return two texts on the same topics or others: alike to the degree of the topics they share."""
    topics = [generator.sample(range(3), 2) for _ in range(2)]
    one, other = (message(generator, chosen, target=target) for chosen in topics)
    return {"text": one, "text_pair": other, "score": float(len({*topics[0]} & {*topics[1]}))}


@pytest.mark.slow
def test_a_layer_that_harms_the_order_of_pairs_is_found_and_the_gain_survives(tmp_path: Path) -> None:
    network = make_network(transformers.AutoModel)
    tokenizer, generator = make_tokenizer("bert"), random.Random(0)

    def found_and_wanted() -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and scores (32,); ID and target in turn."""
        records = [alike(generator, target=bool(number % 2)) for number in range(32)]
        encoded = tokenizer(
            [r[name] for r in records for name in ("text", "text_pair")], padding=True, return_tensors="pt"
        )
        mask = encoded.attention_mask[..., None]
        pooled = (network(**encoded).last_hidden_state * mask).sum(1) / mask.sum(1)
        one, other = functional.normalize(pooled, dim=-1).view(len(records), 2, -1).unbind(1)
        return (one * other).sum(-1), torch.tensor([record["score"] for record in records])

    def learn() -> torch.Tensor:
        found, wanted = found_and_wanted()
        return functional.mse_loss(found, wanted - 1)

    def harm() -> torch.Tensor:
        found, wanted = found_and_wanted()
        right = functional.mse_loss(found[::2], wanted[::2] - 1)
        return right + 4 * (1 - found[1::2]).mean()  # target texts become all alike

    plant(network, network.encoder.layer, PLANTED, learn=learn, harm=harm, steps=(400, 200), rate=2e-3)
    model = save_network(tmp_path / "model", network, tokenizer)
    files = write_rows(tmp_path, alike)
    found = assert_found(model, files, PLANTED, tmp_path / "out", metric="spearman")
    target = found.accuracy["target"]
    assert (target.metric, target.gained) == ("spearman", None)
    assert target.pruned > target.original + 0.1
    assert read(tmp_path / "out/selection.json", Selection).metric == "spearman"
    said = [text for text in read(tmp_path / "out/report.json", Report).findings if "spearman" in text]
    assert said
    assert not any("became better" in text for text in said)
