"""Several target domains: their objective is what is searched, exactly, and each stays in sight."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_tokenizer, prompt_records, write_jsonl
from reports import GAIN, HARM
from reports import benchmark as a_benchmark
from reports import profile as a_profile
from reports import report as a_report
from reports import selection as a_selection
from test_costing import short_calibration  # noqa: F401  (a fixture)
from test_racing import NUM_LAYERS, TableProbe, classifier, regression, round_of
from transformers import LlamaConfig, LlamaForSequenceClassification

from tapioca_export import RunConfig, commands, gating, planning, reporting
from tapioca_export.artifacts import DomainProfile, Point, Selection, read, to_json
from tapioca_export.benchmarking.statistics import compare, replicates
from tapioca_export.cli import main
from tapioca_export.config import OBJECTIVES
from tapioca_export.domains import Domains
from tapioca_export.errors import ConfigError, LoadError, OutputError
from tapioca_export.models import load_model
from tapioca_export.profiling import Probe
from tapioca_export.reading import load_options
from tapioca_export.reporting.tradeoffs import trade_off_figure
from tapioca_export.samples import Samples, load_roles, read_samples
from tapioca_export.selection import SelectionSettings, are_on_front, select_layers
from tapioca_export.selection.forecasting import _shuffled, statistical_race
from tapioca_export.selection.racing import exact_race
from tapioca_export.selection.searches import best_of
from tapioca_export.tasks import TASKS, Scores

Tiny = Callable[[str], Path]
WEIGHTS = {"a": 2.0, "b": 0.0, "c": 1.0}


def three(num_rows: int, objective: str) -> Domains:
    """Divide rows among three domains, none as large as another."""
    first, second = num_rows // 5, num_rows // 3
    return Domains.of({"a": first, "b": second, "c": num_rows - first - second}, objective, WEIGHTS)


def plainly(domains: Domains, values: np.ndarray, higher_is_better: bool) -> float:
    """Combine the domains' means in words of the definition."""
    means = [float(np.mean(part)) for part in np.split(values, np.cumsum(domains.sizes)[:-1])]
    if domains.objective == "worst":
        return min(means) if higher_is_better else max(means)
    counts = [WEIGHTS[name] for name in domains.names] if domains.objective == "weights" else [1, 1, 1]
    return sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)


# --- the objective --------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objective_is_of_domains_and_not_of_rows(objective: str, higher: bool) -> None:
    values = np.random.default_rng(0).lognormal(size=90)
    domains = three(90, objective)
    assert domains.metric(values, np.mean, higher) == pytest.approx(
        plainly(domains, values, higher), abs=1e-11
    )
    assert domains.metric(values, np.mean, higher) != pytest.approx(values.mean(), rel=1e-3)


def test_a_target_without_a_name_is_not_touched() -> None:
    values, one = np.random.default_rng(0).normal(size=77), Domains.of({"": 77})
    assert not one.are_named
    assert one.metric(values, np.mean, True) == values.mean()
    assert (one.row_weights == 1).all()
    assert one.total(np.asarray([values.sum()])) == values.sum()
    assert (one.average(values[None]) == values).all()


def test_the_mean_of_two_equal_domains_and_a_weight_on_one_are_that_domain() -> None:
    values = np.random.default_rng(0).normal(size=40)
    for objective, weights in (("mean", None), ("worst", None), ("weights", {"a": 1.0, "b": 0.0})):
        twice = Domains.of({"a": 40, "b": 40}, objective, weights)
        for higher in (True, False):
            found = twice.metric(np.concatenate([values, values]), np.mean, higher)
            assert found == pytest.approx(values.mean(), abs=1e-12)


def test_the_worst_is_never_better_than_the_mean() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.normal(size=30)
        worst, mean = three(30, "worst"), three(30, "mean")
        assert worst.metric(values, np.mean, True) <= mean.metric(values, np.mean, True)
        assert worst.metric(values, np.mean, False) >= mean.metric(values, np.mean, False)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_collected_row_by_row_bounds_the_objective_and_reaches_it(objective: str) -> None:
    generator, domains = np.random.default_rng(1), three(60, objective)
    penalties = generator.lognormal(size=60)
    whole = plainly(domains, penalties, False)
    collected, order = np.zeros(60), generator.permutation(60)
    before = 0.0
    for row in order:
        collected[row] = penalties[row] * domains.row_weights[row]
        sums = np.asarray([part.sum() for part in domains.split(collected)])
        assert before <= domains.total(sums) / 60 <= whole + 1e-9
        before = domains.total(sums) / 60
    assert before == pytest.approx(whole)


# --- races ----------------------------------------------------------------------------------


def of_domains(probe: TableProbe, objective: str) -> TableProbe:
    probe.domains = three(probe.num_rows, objective)
    return probe


def full_winner(probe: TableProbe, *, by_loss: bool = False) -> int:
    """Compare the objective over all rows; equals go to the lowest index."""
    higher = probe.higher_is_better and not by_loss
    numbers = [plainly(probe.domains, row, higher) for row in (probe.losses if by_loss else probe.values)]
    sign = -1 if higher else 1
    return min(range(NUM_LAYERS), key=lambda layer: (round(sign * numbers[layer], 12), layer))


@pytest.mark.parametrize("by_loss", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_exact_race_of_domains_has_the_winner_of_full_scores(objective: str, by_loss: bool) -> None:
    scored = 0
    for seed in range(12):
        for make in (classifier, regression):
            probe = of_domains(make(seed, 120), objective)
            candidates = exact_race(round_of(probe), by_loss)
            assert best_of(candidates, "index").layer == full_winner(probe, by_loss=by_loss)
            for candidate in candidates:
                higher = probe.higher_is_better and not by_loss
                numbers = (probe.losses if by_loss else probe.values)[candidate.layer]
                whole = plainly(probe.domains, numbers, higher)
                if candidate.outcome == "full":
                    found = candidate.loss if by_loss else candidate.metric
                    assert found == pytest.approx(whole, abs=1e-11)
                else:  # what it could still have reached is no worse than what it comes to
                    sign = 1 if higher else -1
                    assert sign * candidate.bound >= sign * whole - 1e-9
            scored += probe.num_scored
    assert scored < 0.9 * 12 * 2 * NUM_LAYERS * 120


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_candidates_go_to_the_lowest_index_in_a_race_of_domains(objective: str) -> None:
    """Of few rows, most candidates tie, some by gaining in one domain what they lose in another."""
    generator = np.random.default_rng(3)
    for _ in range(60):
        values = (generator.random((NUM_LAYERS, 20)) < 0.7).astype(float)
        probe = TableProbe(values, 1 - values, (values[0], 1 - values[0]), best=1.0)
        probe.domains = Domains.of({"a": 10, "b": 5, "c": 5}, objective, WEIGHTS)
        assert best_of(exact_race(round_of(probe)), "index").layer == full_winner(probe)


def harder_first(probe: TableProbe) -> TableProbe:
    """Move the rows that the current model finds hard towards the front, into domain "a"."""
    generator = np.random.default_rng(0)
    order = np.argsort(-probe.current[1] - 0.2 * generator.lognormal(size=probe.num_rows))
    return TableProbe(
        probe.values[:, order], probe.losses[:, order], tuple(part[order] for part in probe.current), 1.0
    )


@pytest.mark.parametrize("objective", ["mean", "weights"])
def test_a_statistical_race_estimates_the_mean_of_domains(objective: str) -> None:
    errors = []
    for seed in range(12):
        probe = of_domains(harder_first(classifier(seed, 2000, 1.5)), objective)
        found = best_of(statistical_race(round_of(probe, search="racing")), "index")
        assert found.layer == full_winner(probe)
        whole = plainly(probe.domains, probe.values[found.layer], True)
        errors.append(found.metric - whole)
        assert abs(probe.values[found.layer].mean() - whole) > 0.05  # rows alike would be far off
        assert probe.num_scored < 0.3 * NUM_LAYERS * 2000
    assert abs(np.mean(errors)) < 0.015
    assert np.max(np.abs(errors)) < 0.06


def test_a_statistical_races_first_rows_hold_their_share_of_each_domain() -> None:
    domains = Domains.of({"a": 100, "b": 300})
    order = _shuffled(domains, 0)
    assert sorted(order) == list(range(400))
    for num in (40, 200, 360):
        assert np.count_nonzero(order[:num] < 100) == num // 4
    alone = np.random.default_rng(5).permutation(50)
    assert (_shuffled(Domains.of({"": 50}), 5) == alone).all()


# --- a real search --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ID and two target domains of unequal shift, size and variance."""
    folder = tmp_path_factory.mktemp("domains")
    shifts = {"id": (48, 1.0), "near": (40, 2.0), "far": (64, 6.0)}
    return {
        name: write_jsonl(folder / f"{name}.jsonl", prompt_records(num, seed, scale))
        for seed, (name, (num, scale)) in enumerate(shifts.items())
    }


@pytest.fixture
def config(tiny: Tiny, files: dict[str, Path], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(**settings: Any) -> RunConfig:
        target = {name: files[name] for name in ("near", "far")}
        chosen = {"target": target, "epsilon": None, "eval_batch_size": 8, "output": tmp_path / "out"}
        return RunConfig(model=str(tiny("polynomial")), id=files["id"], **(chosen | settings))

    return make


def pooled(model: Any, sets: dict[str, Path], objective: str = "mean", **weights: float) -> Samples:
    reader = model.task.rows({}, model.processor)
    parts = {name: read_samples(path, reader, role="target-select") for name, path in sets.items()}
    rows = tuple(row for part in parts.values() for row in part.rows)
    sizes = {name: len(part) for name, part in parts.items()}
    return Samples("target-select", rows, "", "", Domains.of(sizes, objective, weights))


def trajectory(model: Any, samples: Samples, **settings: Any) -> list[tuple[int, float]]:
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=16)
    chosen = SelectionSettings(epsilon=None, **settings)
    found = select_layers(probe, chosen, model="m", task=model.task, num_samples=len(samples))
    return [(step.layer, step.metric) for step in found.steps]


def alike(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    layers = [layer for layer, _ in one] == [layer for layer, _ in other]
    return layers and np.allclose([m for _, m in one], [m for _, m in other], rtol=1e-5)


def test_equal_domains_or_a_weight_on_one_search_as_that_one_alone(
    tiny: Tiny, files: dict[str, Path]
) -> None:
    model = load_model(str(tiny("polynomial")), "polynomial-regression")
    near, far = files["near"], files["far"]
    single = trajectory(model, pooled(model, {"x": near}))
    assert alike(single, trajectory(model, pooled(model, {"a": near, "b": near})))
    assert alike(single, trajectory(model, pooled(model, {"a": near, "b": near}, "worst")))
    assert alike(single, trajectory(model, pooled(model, {"a": near, "b": far}, "weights", a=1.0, b=0.0)))
    assert not alike(single, trajectory(model, pooled(model, {"a": near, "b": far})))


@pytest.mark.parametrize("criterion", ["tale", "loss"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_race_drops_what_full_scores_drop(
    tiny: Tiny, files: dict[str, Path], objective: str, criterion: str
) -> None:
    model = load_model(str(tiny("polynomial")), "polynomial-regression")
    samples = pooled(model, {"near": files["near"], "far": files["far"]}, objective, near=1.0, far=3.0)
    full = trajectory(model, samples, criterion=criterion, full_scores=True)
    assert alike(full, trajectory(model, samples, criterion=criterion))


def test_a_domains_error_is_relative_to_its_own_variance(tiny: Tiny, files: dict[str, Path]) -> None:
    model = load_model(str(tiny("polynomial")), "polynomial-regression")
    alone = [Probe(model, {"target": pooled(model, {"x": files[name]})}).metric() for name in ("near", "far")]
    mean = Probe(model, {"target": pooled(model, {"a": files["near"], "b": files["far"]})}).metric()
    worst = Probe(model, {"target": pooled(model, {"a": files["near"], "b": files["far"]}, "worst")}).metric()
    assert mean.metric == pytest.approx(np.mean([found.metric for found in alone]), rel=1e-5)
    assert mean.loss == pytest.approx(np.mean([found.loss for found in alone]), rel=1e-5)
    assert worst.metric == pytest.approx(max(found.metric for found in alone), rel=1e-5)


def test_the_order_in_which_domains_are_named_changes_nothing(
    config: Callable[..., RunConfig], files: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for number, names in enumerate((("near", "far"), ("far", "near"))):
        output = tmp_path / str(number)
        commands.select(config(target={name: files[name] for name in names}, output=output))
        found.append(
            [line for line in (output / "selection.json").read_text().splitlines() if "seconds" not in line]
        )
        found[-1].append((output / "search.jsonl").read_text())
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "worst"},
        {"search": "beam"},
        {"search": "racing"},
        {"granularity": "sublayer", "max_drop_layers": 3},
    ],
)
def test_points_are_what_each_number_of_layers_trades(
    config: Callable[..., RunConfig], settings: dict[str, Any], tmp_path: Path
) -> None:
    chosen = config(**settings)
    found = commands.select(chosen)
    assert [len(point.drop) for point in found.points] == list(range(len(found.points)))
    assert len(found.points) > 2
    roles = load_all(chosen)
    model = load_model(chosen.model, "polynomial-regression", load_options(chosen))
    for point in found.points:
        alone = {
            part.role: Probe(model, {"target": part}).metric(model.units.indices(point.drop)).metric
            for part in (roles["id-select"], *roles["target-select"].by_domain)
        }
        assert point.id == pytest.approx(alone["id-select"], rel=1e-4)
        for name in ("near", "far"):
            assert point.domains[name] == pytest.approx(alone[f"target-select ({name})"], rel=1e-4)
        worst, mean = max(point.domains.values()), np.mean(list(point.domains.values()))
        assert point.target == pytest.approx(worst if settings.get("objective") else mean)
        assert point.gain == pytest.approx(found.points[0].target - point.target)  # lower is better
        assert point.id_loss == pytest.approx(point.id - found.points[0].id)
    if "search" not in settings:
        metrics = [found.baseline_metric, *(step.metric for step in found.steps)]
        assert [point.target for point in found.points] == pytest.approx(metrics)
    again = commands.select(replace(chosen, pick="2", overwrite=True, output=tmp_path / "again"))
    assert again.drop == found.points[2].drop
    assert (tmp_path / "out" / "selection.json").read_text() == to_json(found)
    assert read(tmp_path / "out" / "selection.json", Selection) == found


def load_all(config: RunConfig) -> dict[str, Samples]:
    from tapioca_export.reading import load_roles, load_task

    return load_roles(config, *load_task(config))


def test_full_scores_of_domains_take_what_was_planned(
    config: Callable[..., RunConfig],
    short_calibration: None,  # noqa: F811
) -> None:
    for criterion in ("tale", "tapioca", "tapioca+tale"):
        chosen = config(
            full_scores=True, criterion=criterion, pick="final", max_drop_layers=2, overwrite=True
        )
        plan, cost = planning.plan(chosen), commands.select(chosen).cost
        if criterion != "tapioca":  # which may end by itself
            assert plan.layer_forwards.least == plan.layer_forwards.most == cost.layer_forwards
        assert plan.layer_forwards.least <= cost.layer_forwards <= plan.layer_forwards.most


@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_turns_are_the_objective_of_those_of_the_domains(
    objective: str, config: Callable[..., RunConfig]
) -> None:
    rows = load_all(config(objective=objective))["target-select"]
    model = load_model(config().model, "polynomial-regression")
    layers = range(model.num_layers)
    apart = [list(Probe(model, {"target": part}).turns(layers, 8).values()) for part in rows.by_domain]
    expected = np.mean(apart, axis=0) if objective == "mean" else np.max(apart, axis=0)
    found = Probe(model, {"target": rows}).turns(layers, 8)
    assert list(found.values()) == pytest.approx(expected.tolist())


def test_criteria_are_compared_by_the_objective(config: Callable[..., RunConfig]) -> None:
    chosen = config(objective="worst", max_drop_layers=1)
    found = commands.compare(chosen, ("tale", "random"))
    assert "target (worst)" in reporting.comparison_table(found).columns
    model = load_model(chosen.model, "polynomial-regression")
    for row in found.criteria:
        parts = load_all(chosen)["target-report"].by_domain
        metrics = [Probe(model, {"target": part}).metric(row.drop).metric for part in parts]
        assert row.target.pruned == pytest.approx(max(metrics), rel=1e-4)


def test_a_journal_of_another_objective_is_refused(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    commands.select(config())
    aside = tmp_path / ".second.tapioca-partial"
    aside.mkdir()
    (tmp_path / "out" / "search.jsonl").rename(aside / "search.jsonl")
    with pytest.raises(OutputError, match="objective was mean and is worst"):
        commands.select(config(objective="worst", output=tmp_path / "second"))


def test_domains_are_profiled_without_the_attention_of_a_layer(config: Callable[..., RunConfig]) -> None:
    found = commands.profile(config(granularity="sublayer"), ["0.mlp", "1.attention", 2])
    assert found.drop == ("0.mlp", "1.attention", "2.attention", "2.mlp")
    gone = [
        [n for n, i in enumerate(part.pruned_target.influences) if i is None]
        for part in found.targets.values()
    ]
    assert gone == [[2], [2]]  # only that layer is not run
    assert all(part.pruned_target.norms != part.target.norms for part in found.targets.values())


def test_one_unnamed_target_says_nothing_of_domains(
    config: Callable[..., RunConfig], files: dict[str, Path], tmp_path: Path
) -> None:
    found = commands.select(config(target=files["near"]))
    text = (tmp_path / "out" / "selection.json").read_text()
    assert not {"objective", "weights", "points"} & set(json.loads(text))
    assert (found.objective, found.points) == (None, ())
    header = json.loads((tmp_path / "out" / "search.jsonl").read_text().splitlines()[0])
    assert not {"objective", "weights", "domains"} & set(header["fingerprint"])
    profile = commands.profile(config(target=files["near"], output=tmp_path / "profile"), [1])
    assert profile.targets == {}
    assert not {"objective", "targets"} & set(json.loads((tmp_path / "profile" / "profile.json").read_text()))


# --- one layer for the mean, another for the worst ------------------------------------------

# Words of the tiny tokenizer, each with what it puts in the stream: evidence, mark 1, mark 2.
FINE, FIRST, SECOND, WRONG = (1, 0, 0), (1, 1, 0), (1, 0, 1), (-1, 0, 0)
NEEDED = (-1, 0, 1)
KINDS = (FINE, FIRST, SECOND, WRONG, NEEDED)


def plant_two_layers(folder: Path) -> Path:
    """Save a classifier by hand: layer 1 turns the evidence of rows with mark 1, layer 2 with mark 2.

    Layer 0 carries the evidence to the last token, layer 3 does nothing.
    """
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=8,
        num_hidden_layers=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    network = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        words = network.model.embed_tokens.weight
        words[:, 31] = 1.0  # a stream without a norm deviates from nothing
        for kind, (evidence, *marks) in enumerate(KINDS):
            for answer in (0, 1):
                words[4 + 2 * kind + answer, :3] = torch.tensor([evidence * (2.0 * answer - 1), *marks])
        attention = network.model.layers[0].self_attn  # no query: the mean of all tokens
        for place in range(3):
            attention.v_proj.weight[place, place] = attention.o_proj.weight[place, place] = 1.0
        for layer in (1, 2):
            mlp = network.model.layers[layer].mlp
            mlp.gate_proj.weight[0, layer], mlp.up_proj.weight[0, 0] = 10.0, 1.0
            mlp.down_proj.weight[0, 0] = -10.0
        network.score.weight[:, 0] = torch.tensor([-1.0, 1.0])
    network.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder


def planted_rows(path: Path, seed: int, **counts: int) -> Path:
    """Write so many rows of each kind, half of either answer, told apart by words that mean nothing."""
    rows = []
    for kind, count in counts.items():
        for number in range(count):
            word = f"w{2 * KINDS.index(globals()[kind]) + number % 2}"
            noise = (
                f"w{20 + number // 8} w{30 + number % 8} w{40 + seed} w{60 + KINDS.index(globals()[kind])}"
            )
            rows.append({"text": f"{word} {noise}", "label": ("no", "yes")[number % 2]})
    return write_jsonl(path, rows)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The model, and files of 40 rows: of A 40 % are right, B loses a tenth without layer 2."""
    folder = tmp_path_factory.mktemp("planted")
    airline, banking = {"FINE": 16, "FIRST": 8, "SECOND": 16}, {"FINE": 20, "NEEDED": 4, "WRONG": 16}
    rows: dict[str, Any] = {"id": planted_rows(folder / "id.jsonl", 0, FINE=32)}
    for side, seed in (("target", 1), ("target_report", 5)):
        rows[side] = {
            "airline": planted_rows(folder / f"a-{side}.jsonl", seed, **airline),
            "banking": planted_rows(folder / f"b-{side}.jsonl", seed + 1, **banking),
        }
    return plant_two_layers(folder / "model"), rows


@pytest.mark.parametrize(
    ("settings", "drop", "front"),
    [
        # Layer 3 does nothing: without it, all is as well with one layer less.
        ({}, (1, 2), [(1, 2, 3)]),
        ({"pick": "1"}, (2,), [(1, 2, 3)]),
        ({"objective": "worst"}, (1,), [(1, 3), (0, 1, 3)]),
        ({"objective": "weights", "weights": {"airline": 1, "banking": 4}}, (1,), [(1, 2, 3)]),
        ({"objective": "weights", "weights": {"airline": 4, "banking": 1}}, (1, 2), [(1, 2, 3)]),
    ],
)
def test_mean_and_worst_drop_different_layers(
    planted: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    settings: dict[str, Any],
    drop: tuple[int, ...],
    front: list[tuple[int, ...]],
) -> None:
    model, rows = planted
    found = commands.select(RunConfig(model=str(model), **rows, output=tmp_path / "out", **settings))
    assert found.drop == drop
    assert [point.drop for point in found.points if point.is_on_front] == front
    assert found.points[0].domains == {"airline": 0.4, "banking": 0.6}
    gains = {(): (0.4, 0.6), (1,): (0.6, 0.6), (2,): (0.8, 0.5), (1, 2): (1.0, 0.5)}
    for point in found.points:
        if point.drop in gains:
            assert tuple(point.domains.values()) == pytest.approx(gains[point.drop])


@pytest.mark.slow
def test_a_run_reports_every_domain_and_the_one_that_falls(
    planted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, rows = planted
    report = commands_run(
        RunConfig(model=str(model), **rows, output=tmp_path / "out", iterations=3, warmup=1)
    )
    target, targets = report.benchmark.accuracy["target"], report.benchmark.targets
    assert (target.original, target.pruned) == pytest.approx((0.5, 0.75))
    assert (targets["airline"].pruned, targets["banking"].pruned) == (1.0, 0.5)
    assert target.difference == pytest.approx(np.mean([part.difference for part in targets.values()]))
    assert report.benchmark.optimism_gap == pytest.approx(0.0)
    assert "mean of targets airline and banking accuracy from 0.500 to 0.750" in report.verdict
    assert report.run.config["target"].keys() == {"airline", "banking"}
    assert len(report.run.inputs) == 6
    page = (tmp_path / "out" / "report.html").read_text()
    assert "target banking" in page
    assert "Target gain against ID loss" in page
    assert gating.check(report, gating.Thresholds(min_target_gain=0.0)).passed


def commands_run(config: RunConfig) -> Any:
    from tapioca_export import run

    return run(config)


# --- the front ------------------------------------------------------------------------------


def test_the_front_is_what_no_other_point_beats() -> None:
    generator = np.random.default_rng(0)
    for num_points in [1, 2, *[12] * 100]:
        gains, losses = generator.integers(-3, 4, (2, num_points)) / 10  # few values, so that many are equal
        depths = generator.integers(0, 4, num_points).tolist()
        points = list(zip(gains.tolist(), losses.tolist(), depths, strict=True))

        def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
            at_least = one[0] >= other[0] and one[1] <= other[1] and one[2] >= other[2]
            return at_least and one != other

        expected = [not any(beats(other, point) for other in points) for point in points]
        assert are_on_front(gains.tolist(), losses.tolist(), depths) == expected


# --- samples --------------------------------------------------------------------------------


def text_rows(tmp_path: Path, **files: range) -> dict[str, Path]:
    return {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"row {n}", "label": n % 2} for n in numbers])
        for name, numbers in files.items()
    }


def read_row(record: Any, where: str) -> Any:
    from tapioca_export.samples import Row

    return Row(record, record["label"], record["text"], where)


def test_each_domain_is_dealt_out_as_a_target_alone_is(tmp_path: Path) -> None:
    files = text_rows(tmp_path, id=range(40), a=range(100, 150), b=range(200, 230))
    both = load_roles({"id": files["id"], "target": {"b": files["b"], "a": files["a"]}}, read_row, seed=3)
    for side in ("select", "report"):
        joined = both[f"target-{side}"]
        assert joined.domains.names == ("a", "b")
        for name, part in zip("ab", joined.by_domain, strict=True):
            alone = load_roles({"id": files["id"], "target": files[name]}, read_row, seed=3)[f"target-{side}"]
            assert part.rows == alone.rows


@pytest.mark.parametrize("other", ["a", "id"])
def test_a_row_of_two_domains_is_refused_or_removed(tmp_path: Path, other: str) -> None:
    files = text_rows(tmp_path, id=range(40), a=range(100, 150), b=range(200, 250))
    given = {"id": files["id"], "target": {"a": files["a"], "b": files["b"]}}
    row = {"text": "row 5" if other == "id" else "row 105", "label": 1}
    with files["b"].open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    with pytest.raises(
        LoadError, match=rf"same row is in two roles: .*{other}.jsonl.*b.jsonl.*\(target-.*\(b\)"
    ):
        load_roles(given, read_row)
    roles = load_roles(given, read_row, drop_leaks=True)
    assert sum(row["text"] == r.key for samples in roles.values() for r in samples.rows) == 1


def test_domains_with_too_few_rows_or_labels_for_some_are_refused(tmp_path: Path) -> None:
    files = text_rows(tmp_path, id=range(40), a=range(100, 150), b=range(200, 210), c=range(300, 340))
    with pytest.raises(LoadError, match=r"b.jsonl gives 5 target-select \(b\) rows"):
        load_roles({"id": files["id"], "target": {"a": files["a"], "b": files["b"]}}, read_row)
    write_jsonl(files["c"], [{"text": f"row {n}", "label": None} for n in range(300, 340)])
    with pytest.raises(LoadError, match=r"c.jsonl has no labels, .*a.jsonl has labels"):
        load_roles({"id": files["id"], "target": {"a": files["a"], "c": files["c"]}}, read_row)


# --- statistics -----------------------------------------------------------------------------

ACCURACY, F1 = TASKS["text-classification"], TASKS["token-classification"]


def scores(seed: int, num_rows: int, share: float) -> Scores:
    values = (np.random.default_rng(seed).random(num_rows) < share).astype(float)
    return Scores(values, 1 - values)


def test_rows_are_drawn_within_domains() -> None:
    """One domain of two does not change at all: the interval is half as wide as the other's alone."""
    still, before, after = scores(0, 400, 0.5), scores(1, 100, 0.5), scores(2, 100, 0.7)
    domains = Domains.of({"a": 400, "b": 100})
    both = [Scores(np.concatenate([still.values, one.values]), np.zeros(500)) for one in (before, after)]
    found, alone = compare(ACCURACY, *both, domains), compare(ACCURACY, before, after)
    assert found.difference == pytest.approx(alone.difference / 2)
    assert found.interval == pytest.approx([bound / 2 for bound in alone.interval], abs=0.01)
    assert (found.gained, found.lost, found.n) == (alone.gained, alone.lost, 500)
    assert found.p_value == pytest.approx(alone.p_value, abs=0.02)
    assert found.original_interval[0] < found.original < found.original_interval[1]


def test_the_worst_of_two_is_compared_with_the_worst_of_two() -> None:
    """What was worse gains, and what was better falls: the objective moves from one domain to the other."""
    one = Scores(np.concatenate([scores(0, 300, 0.4).values, scores(1, 300, 0.9).values]), np.zeros(600))
    other = Scores(np.concatenate([scores(2, 300, 0.9).values, scores(3, 300, 0.6).values]), np.zeros(600))
    found = compare(ACCURACY, one, other, Domains.of({"a": 300, "b": 300}, "worst"))
    assert found.original == pytest.approx(one.values[:300].mean())
    assert found.pruned == pytest.approx(other.values[300:].mean())
    assert found.interval[0] > 0
    assert found.p_value < 0.01


def test_a_metric_that_is_no_mean_is_made_of_each_domains_rows() -> None:
    generator = np.random.default_rng(0)
    values = [
        np.stack([generator.integers(0, 3, 40), generator.integers(3, 6, 40)], axis=1) for _ in range(2)
    ]

    class Ratio(type(F1)):  # type: ignore[misc]
        best_value = None

        def aggregate(self, values: np.ndarray) -> np.ndarray:
            return values[..., 0].sum(axis=-1) / values[..., 1].sum(axis=-1)

        def exchangeable(self, values: np.ndarray) -> np.ndarray:
            return values

    domains = Domains.of({"a": 10, "b": 30})
    found = compare(Ratio(), *(Scores(v, np.zeros(40)) for v in values), domains)
    parts = [np.mean([v[:10, 0].sum() / v[:10, 1].sum(), v[10:, 0].sum() / v[10:, 1].sum()]) for v in values]
    assert (found.original, found.pruned) == pytest.approx(parts)
    assert found.gained is None
    assert found.interval[0] < found.difference < found.interval[1]


@pytest.mark.parametrize("num_domains", [2, 3])
def test_the_worst_domains_interval_is_made_of_those_of_each(num_domains: int) -> None:
    from scipy.stats import binomtest

    right, sizes = (48, 40, 45)[:num_domains], (80, 60, 70)[:num_domains]
    values = np.concatenate([np.arange(size) < count for count, size in zip(right, sizes, strict=True)])
    before = Scores(values.astype(float), np.zeros(len(values)))
    named = dict(zip("abc", sizes, strict=False))
    found = compare(ACCURACY, before, before, Domains.of(named, "worst"))

    def ends(level: float) -> list[tuple[float, float]]:
        shares = map(binomtest, right, sizes)
        return [tuple(share.proportion_ci(level, "wilson")) for share in shares]

    # Alike, all their better ends hold together 95 times in 100; the worst one alone says how bad it may be.
    jointly = 1 - 2 * (1 - 0.95 ** (1 / num_domains))
    expected = min(low for low, _ in ends(0.95)), min(high for _, high in ends(jointly))
    assert found.original_interval == found.pruned_interval == pytest.approx(expected)
    assert found.interval == (0.0, 0.0)


def test_the_worst_of_several_losses_is_the_largest() -> None:
    values = np.random.default_rng(0).lognormal(size=90) * np.repeat([1.0, 1.0, 3.0], 30)
    before = Scores(values, values)
    named, regression = {"a": 30, "b": 30, "c": 30}, TASKS["polynomial-regression"]
    found = compare(regression, before, before, Domains.of(named, "worst"))
    alone = [
        compare(regression, Scores(part, part), Scores(part, part)).original_interval
        for part in values.reshape(3, 30)
    ]
    assert found.original_interval[1] == max(high for _, high in alone)
    assert max(low for low, _ in alone) > found.original_interval[0] > 1.0


def test_replicates_of_one_domain_are_those_without_domains() -> None:
    values = [scores(seed, 50, 0.5).values for seed in range(3)]
    mean = lambda drawn: drawn.mean(axis=-1)  # noqa: E731
    assert (replicates(values, mean) == replicates(values, mean, Domains.of({"x": 50}))).all()


# --- profiles and doses ---------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_profiles_of_domains_are_those_of_each_alone(
    config: Callable[..., RunConfig], files: dict[str, Path], tmp_path: Path, objective: str
) -> None:
    weights = {"near": 1.0, "far": 3.0} if objective == "weights" else {}
    found = commands.profile(config(objective=objective, weights=weights), [2])
    alone = {
        name: commands.profile(config(target=files[name], output=tmp_path / name), [2])
        for name in ("near", "far")
    }
    for name, one in alone.items():
        part = found.targets[name]
        for quantity in ("norms", "distances"):
            assert getattr(part.target, quantity) == pytest.approx(getattr(one.target, quantity), rel=1e-4)
        assert part.deviation.mean == pytest.approx(one.deviation.mean, rel=1e-3)
        assert part.pruned_deviation.mean == pytest.approx(one.pruned_deviation.mean, rel=1e-3)
        assert part.deviation_removed == pytest.approx(one.deviation_removed, rel=1e-2)
    means = [found.targets[name].deviation.mean for name in ("near", "far")]
    expected = {"mean": np.mean(means), "worst": max(means), "weights": np.average(means, weights=[1, 3])}
    assert found.deviation.mean == pytest.approx(expected[objective])
    if objective == "worst":
        assert (
            found.deviation.norms
            == max(found.targets.values(), key=lambda t: t.deviation.mean).deviation.norms
        )
    assert found.targets.keys() == read(tmp_path / "out" / "profile.json", type(found)).targets.keys()


@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_tapioca_brings_the_objectives_deviation_down(
    tiny: Tiny, files: dict[str, Path], objective: str
) -> None:
    model = load_model(str(tiny("polynomial")), "polynomial-regression")
    target = pooled(model, {"far": files["far"], "near": files["near"]}, objective)
    samples = {"id": pooled(model, {"": files["id"]}), "target": target}
    probe = Probe(model, samples)
    swept = probe.deviations((), range(4))
    for layer in range(4):
        assert swept[layer].deviation == pytest.approx(probe.deviation((layer,)).mean, rel=1e-5)
    combine = max if objective == "worst" else np.mean
    assert probe.deviation().mean == pytest.approx(combine([part.mean for part in probe.domain_deviations()]))


def test_doses_of_domains_are_those_of_each_alone(
    config: Callable[..., RunConfig], files: dict[str, Path], tmp_path: Path
) -> None:
    from tapioca_export import Doses

    doses = Doses((0.0, 1.0), draws=2)
    found = commands.intervene(config(objective="worst"), [1], doses=doses)
    assert found.targets.keys() == {"near", "far"}
    for name in ("near", "far"):
        alone = commands.intervene(config(target=files[name], output=tmp_path / name), [1], doses=doses)
        for one, other in zip(found.targets[name], alone.target, strict=True):
            assert one.metric == pytest.approx(other.metric, rel=1e-4)
            assert one.difference_interval == pytest.approx(other.difference_interval, rel=1e-2, abs=1e-9)
            assert one.norm_deviation == pytest.approx(other.norm_deviation, rel=1e-3)
    for number, dose in enumerate(found.target):
        parts = [found.targets[name][number] for name in ("near", "far")]
        assert dose.metric == pytest.approx(max(part.metric for part in parts))
        assert dose.norm_deviation == pytest.approx(max(part.norm_deviation for part in parts))
    assert found.dropped["target"].pruned == pytest.approx(found.target[0].metric)


# --- the report -----------------------------------------------------------------------------


def several(objective: str = "mean", **targets: Any) -> Any:
    """Return a report of two domains."""
    point = Point((), 0.7, {"airline": 0.8, "banking": 0.6}, 0.9, 0.0, 0.0, True)
    points = (
        point,
        replace(point, drop=(4,), gain=0.05, id_loss=0.01),
        replace(point, drop=(4, 7), is_on_front=False),
    )
    base = a_profile()
    parts = {name: DomainProfile(base.target, base.deviation) for name in targets}
    measured = a_benchmark(accuracy={"target": GAIN, "id": GAIN}, objective=objective, targets=targets)
    chosen = replace(a_selection(), objective=objective, points=points)
    return reporting.make_report(
        a_report().run, chosen, replace(base, objective=objective, targets=parts), measured, {}
    )


def test_a_domain_that_falls_stands_in_the_verdict_though_the_objective_rises() -> None:
    report = several(airline=GAIN, banking=HARM)
    assert "the mean of targets airline and banking accuracy from" in report.verdict
    assert "it harms target banking, accuracy from 0.712 to 0.640" in report.verdict
    assert "it harms target" not in several(airline=GAIN, banking=GAIN).verdict
    assert "harm on banking" in reporting.render_html(report)
    message = gating.check(report, gating.Thresholds(min_target_gain=0.0)).checks[0].message
    assert f"banking {HARM.gain:+.6g}" in message


def test_page_and_text_show_every_domain_and_the_points() -> None:
    report = several("worst", airline=GAIN, banking=HARM)
    page, text = reporting.render_html(report), reporting.render_markdown(report)
    for shown in (page, text):
        assert "target (worst)" in shown
        assert "target airline" in shown
        assert "target banking" in shown
        assert "--pick" in shown
    table = reporting.trade_off_table(report.selection)
    assert [(row[0], row[2], row[-2]) for row in table.rows] == [
        ("0", "0.000", "yes"), ("1", "+0.050", "yes"), ("2", "0.000", "no"),
    ]  # fmt: skip
    assert "for every number of layers" in table.caption
    halves = replace(report.selection, drop=("4.attention",))
    assert "for every number of sublayers" in reporting.trade_off_table(halves).caption
    assert "those that --pick can name" in trade_off_figure(halves).caption
    assert reporting.domain_table(report.profile).rows[0][0] == "airline"
    assert "harms target" not in reporting.render_html(a_report())


# --- the command line -----------------------------------------------------------------------


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--target a=x --target a=y", 2, "'a' is given twice"),
        ("--target x --target y", 2, "has a name and a path"),
        ("--target a=x --target y", 2, "has a name and a path"),
        ("--target a=", 2, "has a name and a path"),
        ("--target =x", 2, "has a name and a path"),
        ("--target a/b=x", 1, "'a/b' is no name of a domain"),
        ("--target -a=x", 1, "'-a' is no name of a domain"),
        ("--target a=x --target b=i/../x", 1, "--target a and --target b are the same file"),
        ("--target a=x --target b=y --target-report a=x", 1, "are the same file"),
        ("--target a=x --target-report b=y", 1, "--target names a, --target-report b"),
        ("--target a=x --target-report y", 1, "--target names a, --target-report no domain"),
        ("--target x --target-report a=y", 1, "--target names no domain, --target-report a"),
        ("--target x --objective worst", 1, "none is named"),
        ("--target a=x --objective best", 1, "Unknown objective 'best'"),
        ("--target a=x --target b=y --objective weights", 1, "--weights has none for domain a"),
        ("--target a=x --target b=y --objective weights --weights a=1", 1, "--weights has none for domain b"),
        ("--target a=x --objective weights --weights a=1,c=2", 1, "Unknown domain in --weights 'c'"),
        ("--target a=x --objective weights --weights a=-1", 1, "must be a number of at least 0"),
        ("--target a=x --objective weights --weights a=nan", 1, "must be a number of at least 0"),
        ("--target a=x --objective weights --weights a=0", 1, "no domain would count"),
        ("--target a=x --objective weights --weights a=much", 2, "give pairs such as airline=2"),
        ("--target a=x --objective weights --weights a=1,a=2", 2, "each name once"),
        ("--target a=x --weights a=1", 1, "have no say in --objective mean"),
        ("--target a=x --target b=nowhere.jsonl", 1, "does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "i", [])
    for name in ("x", "y"):
        write_jsonl(tmp_path / name, [])
    result = call("select", "-m", "m", "--id", "i", *arguments.split(), "-o", "out")
    assert result.exit_code == code, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert lines[1].startswith("Hint: ")
    assert not (tmp_path / "out").exists()


def test_the_worst_domain_is_no_mean_that_a_race_could_estimate(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match="the worst domain's nmse is none"):
        commands.select(config(objective="worst", search="racing"))


@pytest.mark.parametrize("as_table", [True, False])
def test_a_config_file_names_targets_in_a_table(
    tiny: Tiny, files: dict[str, Path], tmp_path: Path, as_table: bool
) -> None:
    near, far = files["near"], files["far"]
    target = f'{{near = "{near}", far = "{far}"}}' if as_table else f'["near={near}", "far={far}"]'
    lines = [
        f'model = "{tiny("polynomial")}"', f'id = "{files["id"]}"', f"target = {target}",
        "objective = 'weights'",
        "weights = {near = 2, far = 1}" if as_table else "weights = 'near=2,far=1'", "max-drop-layers = 1",
    ]  # fmt: skip
    (tmp_path / "tapioca.toml").write_text("\n".join(lines))
    result = call("select", "-c", tmp_path / "tapioca.toml", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "target (weights)" in result.output
    found = read(tmp_path / "out" / "selection.json", Selection)
    assert (found.objective, found.weights) == ("weights", {"near": 2.0, "far": 1.0})


def test_a_config_file_still_takes_one_path_and_a_path_may_hold_an_equals_sign(
    tiny: Tiny, files: dict[str, Path], tmp_path: Path
) -> None:
    odd = tmp_path / "a=b.jsonl"
    odd.write_bytes(files["near"].read_bytes())
    (tmp_path / "tapioca.toml").write_text(f'target = "{odd}"\nmax-drop-layers = 1\n')
    common = ("select", "-m", tiny("polynomial"), "--id", files["id"], "--json")
    for number, given in enumerate((("-c", tmp_path / "tapioca.toml"), ("--target", odd))):
        result = CliRunner().invoke(main, [*map(str, (*common, *given, "-o", tmp_path / str(number)))])
        assert result.exit_code == 0, result.output
        assert "objective" not in json.loads(result.stdout)
