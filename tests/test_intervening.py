"""A dose of some layers on report rows: what it shows, beside random layers and norms alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import LABELS, WORDS, make_model, make_tokenizer, prompt_records, write_jsonl
from planting import plant
from test_text_tasks import HEADS, loss_of, make_network, save, write_rows
from tokenizers import processors
from transformers import AutoModelForSequenceClassification

from tapioca_export import Doses, RunConfig, intervene, reading
from tapioca_export.artifacts import Intervention, Numbering, read
from tapioca_export.benchmarking.statistics import NUM_RESAMPLES, interval, replicates
from tapioca_export.cli import main
from tapioca_export.intervening import stage
from tapioca_export.intervening.controls import random_sets
from tapioca_export.intervening.judging import flatness, rank, trend
from tapioca_export.models import LoadedModel, Rescaled, Scaled, changing, load_model
from tapioca_export.profiling import Probe, respond
from tapioca_export.reporting.doses import dose_figures
from tapioca_export.samples import Samples

Tiny = Callable[[str], Path]
Planted = tuple[Path, dict[str, Path]]


# --- controls -------------------------------------------------------------------------------

ONE, TWO = Numbering({"": 12}), Numbering({"encoder": 3, "decoder": 4})


def test_random_sets_are_seeded_different_and_of_equal_size() -> None:
    allowed = [0, 1, 2, 4, 5, 6, 8, 9, 11]
    sets, num_possible = random_sets(ONE, allowed, 3, 50, 7)
    assert num_possible == 84
    assert len(set(sets)) == len(sets) == 50
    assert all(len(set(chosen)) == 3 and set(chosen) <= set(allowed) for chosen in sets)
    assert random_sets(ONE, allowed, 3, 50, 7)[0] == sets
    assert random_sets(ONE, allowed, 3, 50, 8)[0] != sets
    counts = np.bincount(np.concatenate(random_sets(ONE, allowed, 3, 80, 1)[0]), minlength=12)
    assert counts[allowed].min() > 20, "some layers are hardly drawn"


def test_all_random_sets_are_taken_where_there_are_no_more() -> None:
    assert random_sets(ONE, [1, 5, 9], 2, 50, 0) == ([(1, 5), (1, 9), (5, 9)], 3)
    assert random_sets(ONE, [1, 5, 9], 2, 3, 0) == ([(1, 5), (1, 9), (5, 9)], 3)
    assert random_sets(ONE, [1, 5], 3, 50, 0) == ([], 0)
    assert random_sets(ONE, [1, 5, 9], 2, 0, 0) == ([], 3)


@pytest.mark.parametrize("draws", [20, 50])
def test_random_sets_leave_a_layer_in_every_stack(draws: int) -> None:
    sets, num_possible = random_sets(TWO, range(7), 4, draws, 0)
    assert num_possible == 35 - 4 - 1  # all of the encoder and one more, all of the decoder
    assert len(set(sets)) == min(draws, num_possible)
    assert all(set(chosen) - {0, 1, 2} and {0, 1, 2} - set(chosen) for chosen in sets)
    assert all({3, 4, 5, 6} - set(chosen) for chosen in sets)


# --- the law --------------------------------------------------------------------------------

DEEP, PLANTED, MARK = 20, 5, 31  # layers; the one that does harm; the place in the stream it goes by


def plant_by_hand(folder: Path) -> LoadedModel:
    """Save a random network, one layer of which does nothing but overwrite the stream of one foreign word.

    Only the embedding of that word, w91, has a number at the place MARK of the stream, and only the
    planted layer reads it: by that it is, on ID rows, an exact identity.
    """
    network, tokenizer = make_model("llama", num_hidden_layers=DEEP), make_tokenizer("llama")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with torch.no_grad():
        embedding = network.model.embed_tokens.weight
        embedding[:, MARK] = 0
        embedding[tokenizer.convert_tokens_to_ids("w91"), MARK] = 0.5
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[MARK] = layer.mlp.down_proj.weight[MARK] = 0
        planted = network.model.layers[PLANTED]
        planted.self_attn.o_proj.weight.zero_()
        for part in (planted.mlp.gate_proj, planted.mlp.up_proj):
            part.weight.zero_()
            part.weight[:, MARK] = 3.0
        planted.mlp.down_proj.weight.mul_(30)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


def write_planted_rows(model: LoadedModel, folder: Path, num_rows: int = 80) -> dict[str, Path]:
    """Write rows labelled with what the network without the planted layer says of them."""
    generator, files = random.Random(0), {}
    for name, tail in (("id", "w1"), ("target", "w91")):
        words = [
            [generator.choice(WORDS[:90]) for _ in range(generator.randint(2, 12))] for _ in range(num_rows)
        ]
        texts = [" ".join([*part, tail]) for part in words]
        encoded = model.processor.tokenizer(texts, padding=True, return_tensors="np")
        with changing(model, {PLANTED: Scaled(0.0)}):
            labels = model.logits(dict(encoded)).argmax(axis=-1)
        records = [{"text": text, "label": LABELS[label]} for text, label in zip(texts, labels, strict=True)]
        files[name] = write_jsonl(folder / f"{name}.jsonl", records)
    return files


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The folder of a planted model, and its rows."""
    folder = tmp_path_factory.mktemp("planted")
    return folder / "model", write_planted_rows(plant_by_hand(folder / "model"), folder)


def sweep(planted: Planted, output: Path, layers: Sequence[int], **doses: Any) -> Intervention:
    config = RunConfig(model=str(planted[0]), output=output, **planted[1])
    return intervene(config, layers, doses=Doses(**{"alphas": (0, 0.5, 1), "draws": 20, **doses}))


@pytest.fixture(scope="module")
def found(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Intervention:
    return sweep(planted, tmp_path_factory.mktemp("found") / "out", [PLANTED])


def test_the_planted_layer_is_found_and_dropping_it_gives_back_the_clean_metric(found: Intervention) -> None:
    assert found.dropped["target"].pruned == 1.0
    assert found.dropped["target"].gain_interval[0] > 0.2
    ranked = found.random.metric
    assert (ranked.judgement, ranked.num_as_good, ranked.num_sets) == ("distinguishable", 0, DEEP - 1)
    assert ranked.p_value == 1 / DEEP
    assert ranked.margin[0] > 0
    assert found.metric_trend.judgement == "falls"
    assert found.random.num_possible == len({drawn.layers for drawn in found.random.sets}) == DEEP - 1


def test_id_is_flat_under_a_layer_that_leaves_it_alone(found: Intervention) -> None:
    assert found.flatness.judgement == "flat"
    assert {dose.difference for dose in found.id} == {0.0}
    assert {dose.deviation for dose in found.id} == {0.0}
    assert "ID: flat within +-0.010" in " ".join(found.verdict)


def test_dropping_the_planted_layer_takes_the_deviation_away(found: Intervention) -> None:
    by_alpha = {dose.alpha: dose for dose in found.target}
    assert by_alpha[0].deviation < 0.5 * by_alpha[1].deviation
    assert by_alpha[0].norm_deviation_interval[1] < by_alpha[1].norm_deviation_interval[0]
    assert found.deviation_trend.judgement == "rises"
    assert found.random.deviation.judgement == "distinguishable"


def test_the_norms_of_id_alone_do_not_give_the_metric_back(found: Intervention) -> None:
    ((layer, factor),) = found.norms.factors
    assert layer == PLANTED
    assert factor < 0.5
    assert found.norms.judgement == "more"
    assert found.norms.excess == pytest.approx(
        found.dropped["target"].gain - (found.norms.target.metric - found.dropped["target"].original)
    )


def test_another_layer_is_not_called_the_one(planted: Planted, tmp_path: Path) -> None:
    other = sweep(planted, tmp_path / "out", [12])
    assert other.random.metric.judgement == "not distinguishable"
    assert other.dropped["target"].gain < 0.2
    assert other.random.metric.best == pytest.approx(1 - other.dropped["target"].original)


@pytest.mark.slow
def test_a_layer_that_was_trained_to_do_harm_is_found_from_the_command_line(tmp_path: Path) -> None:
    overrides, make, answer, wrong = HEADS["one label"]
    network, tokenizer = make_network(AutoModelForSequenceClassification, **overrides), make_tokenizer("bert")
    plant(
        network,
        network.bert.encoder.layer,
        1,
        learn=loss_of(network, tokenizer, make, answer, None),
        harm=loss_of(network, tokenizer, make, answer, wrong),
    )
    files = write_rows(tmp_path, make, 200)
    rows = [
        "-m",
        save(tmp_path / "model", network, tokenizer),
        "--id",
        files["id"],
        "--target",
        files["target"],
    ]
    select = ["select", *rows, "-o", tmp_path / "selection", "--max-drop-layers", 1]
    chosen = ["--selection", tmp_path / "selection/selection.json", "--epsilon", 0.05]
    for command in (select, ["intervene", *rows, "-o", tmp_path / "out", *chosen]):
        result = CliRunner().invoke(main, [str(argument) for argument in command])
        assert result.exit_code == 0, result.output
    found = read(tmp_path / "out/intervention.json", Intervention)
    assert found.layers == (1,)
    assert found.dropped["target"].pruned > 0.9 > found.dropped["target"].original + 0.3
    assert found.random.metric.judgement == "distinguishable"
    assert found.metric_trend.judgement == "falls"
    assert found.flatness.judgement == "flat"
    assert found.norms.judgement == "more"


# --- what numbers show ----------------------------------------------------------------------

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def shifted(means: Sequence[float], noise: float = 0.1, num_rows: int = 400) -> list[np.ndarray]:
    """Return values of rows with these means, each row with a level of its own that all models share."""
    generator = np.random.default_rng(3)
    level = generator.normal(size=num_rows)
    found = [level + generator.normal(scale=noise, size=num_rows) for _ in means]
    return [part - part.mean() + mean for part, mean in zip(found, means, strict=True)]


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def trend_of(means: Sequence[float], alphas: Sequence[float] = ALPHAS, noise: float = 0.1) -> Any:
    return trend(alphas, np.asarray(means), replicates(shifted(means, noise), mean))


def test_one_row_can_be_drawn_in_one_way_only() -> None:
    assert replicates(np.asarray([[1.0], [0.25]]), mean).T.tolist() == [[1.0, 0.25]] * NUM_RESAMPLES


def test_replicates_are_paired_and_seeded_and_of_the_right_width() -> None:
    values = shifted([0.0, 1.0], noise=0.0)
    drawn = replicates(values, mean)
    assert drawn.shape == (2, 9999)
    np.testing.assert_allclose(drawn[1] - drawn[0], 1.0, atol=1e-9)
    assert drawn[0].std() == pytest.approx(values[0].std() / np.sqrt(400), rel=0.05)
    assert np.array_equal(drawn, replicates(values, mean))
    low, high = interval(drawn[0])
    assert (low, high) == (np.percentile(drawn[0], 2.5), np.percentile(drawn[0], 97.5))


@pytest.mark.parametrize(
    ("means", "judgement"),
    [
        ([0.9, 0.8, 0.6, 0.5, 0.3, 9.0], "falls"),  # what is above 1 has no say
        ([0.3, 0.5, 0.6, 0.8, 0.9, -9.0], "rises"),
        ([0.9, 0.3, 0.3, 0.3, 0.3, 0.3], "falls"),
        ([0.5, 0.9, 0.6, 0.3, 0.0, 0.0], "not monotone"),
        ([0.5, 0.501, 0.5, 0.501, 0.5, 0.5], "undecided"),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], "undecided"),
    ],
)
def test_a_trend_is_called_monotone_only_where_steps_agree(means: list[float], judgement: str) -> None:
    found = trend_of(means)
    assert found.judgement == judgement
    assert found.interval[0] <= found.spearman <= found.interval[1]


def test_a_trend_has_the_sign_and_the_size_of_spearmans_correlation() -> None:
    from scipy.stats import spearmanr

    means = [0.9, 0.8, 0.82, 0.5, 0.3, 9.0]
    assert trend_of(means).spearman == pytest.approx(spearmanr(ALPHAS[:5], means[:5]).statistic)
    constant = trend(ALPHAS, np.zeros(6), np.zeros((6, 10)))
    assert (constant.spearman, constant.interval, constant.judgement) == (0.0, (0.0, 0.0), "undecided")


def test_the_change_is_what_dropping_does() -> None:
    found = trend_of([0.9, 0.8, 0.6, 0.5, 0.3, 9.0])
    assert found.change == pytest.approx(0.6)
    assert found.change_interval[0] < 0.6 < found.change_interval[1]
    assert found.change_interval[1] - found.change_interval[0] < 0.1, "not paired"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_that_goes_the_other_way_leaves_a_change_undecided(sign: int) -> None:
    noise = np.random.default_rng(0).normal(scale=0.5, size=1000)  # no step to or from alpha 0.5 is shown
    values = sign * np.asarray([1.0, 1.1, 0.8, 0.5])
    drawn = np.repeat(values[:, None], 1000, axis=1)
    drawn[2] += noise
    found = trend((0.0, 0.25, 0.5, 1.0), values, drawn)
    assert found.change_interval == (sign * 0.5, sign * 0.5)
    assert found.judgement == "undecided"
    drawn[1] = values[1] = sign * 0.9
    expected = "falls" if sign > 0 else "rises"
    assert trend((0.0, 0.25, 0.5, 1.0), values, drawn).judgement == expected


def test_two_alphas_show_no_trend() -> None:
    assert trend_of([0.9, 0.3, 0.1], (0.0, 1.0, 1.5)).judgement == "undecided"


def test_noise_is_no_trend() -> None:
    means = [0.52, 0.51, 0.50, 0.49, 0.48, 0.5]
    assert trend_of(means, noise=1.0).judgement == "undecided"
    assert trend_of(means, noise=0.01).judgement == "falls"


@pytest.mark.parametrize(
    ("differences", "half", "judgement"),
    [
        ((0.002, -0.003, 0.0), 0.005, "flat"),
        ((0.002, -0.003, 0.0), 0.008, "undecided"),  # one interval leaves the margin
        ((0.03, -0.003, 0.0), 0.005, "not flat"),
        ((-0.03, -0.003, 0.0), 0.005, "not flat"),
        ((0.012, 0.0, 0.0), 0.005, "undecided"),
    ],
)
def test_id_is_flat_only_where_every_interval_is_within_epsilon(
    differences: tuple[float, ...], half: float, judgement: str
) -> None:
    intervals = [(value - half, value + half) for value in differences]
    found = flatness((0.0, 0.5, 1.0, 1.5), (*differences, 9.0), [*intervals, (8.0, 10.0)], 0.01)
    assert found.judgement == judgement
    assert abs(found.difference) == max(map(abs, differences))
    assert found.alpha == (0.0 if found.difference == differences[0] else 0.5)


@pytest.mark.parametrize(
    ("selected", "others", "margins", "has_all", "judgement", "p_value"),
    [
        (0.5, [0.1] * 19, [(-0.1, 0.2)], False, "distinguishable", 1 / 20),
        (0.5, [0.1] * 18, [(-0.1, 0.2)], True, "undecided", 1 / 19),
        (0.5, [0.1] * 18, [(0.1, 0.2)], False, "undecided", 1 / 19),  # other sets were not drawn
        (0.5, [0.1] * 3, [(0.1, 0.2), (0.2, 0.3)], True, "distinguishable", 1 / 4),
        (0.5, [0.1] * 3, [(0.1, 0.2), (-0.2, 0.3)], True, "undecided", 1 / 4),
        (0.5, [0.5, *[0.1] * 18], [], False, "not distinguishable", 2 / 20),  # a tie is as good
        (0.5, [0.9] * 50, [], False, "not distinguishable", 1.0),
        (0.5, [], [], True, None, None),
    ],
)
def test_a_rank_is_judged_by_how_many_random_sets_do_as_well(
    selected: float, others: list[float], margins: list[Any], has_all: bool, judgement: str, p_value: float
) -> None:
    found = rank(selected, others, margins, has_all=has_all)
    if judgement is None:
        assert found is None
        return
    assert (found.judgement, found.p_value) == (judgement, p_value)
    assert found.margin == (min(margins) if margins else None)
    assert (found.best, found.num_sets) == (max(others), len(others))


# --- where lower is better ------------------------------------------------------------------


@pytest.fixture(scope="module")
def errors(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Intervention, LoadedModel, Any]:
    """An intervention on two layers of the tiny regression, its model, and its rows by role."""
    folder = tmp_path_factory.mktemp("errors")
    files = {
        name: write_jsonl(folder / f"{name}.jsonl", prompt_records(64, seed, scale))
        for seed, (name, scale) in enumerate((("id", 1.0), ("target", 3.0)))
    }
    config = RunConfig(model=str(tiny("polynomial")), output=folder / "out", **files)
    found = intervene(config, [0, 2], doses=Doses(alphas=(0, 1), draws=5))
    return found, *reading.load_with_roles(config, ("report",))


def test_layers_are_scaled_alone_unless_that_is_not_asked_for(
    errors: tuple[Intervention, LoadedModel, Any], tmp_path: Path
) -> None:
    found, model, roles = errors
    doses = Doses(alphas=(0, 1), draws=5, by_layer=False)
    jointly = stage.intervene(RunConfig(model=model.source), model, roles, [0, 2], doses)
    assert [alone.layer for alone in found.by_layer] == [0, 2]
    assert jointly.by_layer == ()
    assert (jointly.id, jointly.target, jointly.random) == (found.id, found.target, found.random)
    assert jointly.layer_forwards < found.layer_forwards
    assert len(dose_figures(jointly)) == len(dose_figures(found)) - 1


def values_of(model: LoadedModel, rows: Samples, changes: dict[int, Any]) -> np.ndarray:
    with changing(model, changes):
        return model.task.score(model.logits(model.task.encode(rows.rows, model.processor)), rows).values


def test_a_gain_is_an_error_that_falls(errors: tuple[Intervention, LoadedModel, Any]) -> None:
    found, model, roles = errors
    assert not found.higher_is_better
    rows = roles["target-report"]
    intact = values_of(model, rows, {}).mean()
    dropped = values_of(model, rows, {0: Scaled(0.0), 2: Scaled(0.0)}).mean()
    assert found.random.metric.selected == pytest.approx(intact - dropped, rel=1e-4)
    (other,) = found.random.sets
    assert other.layers == (1, 3)
    expected = intact - values_of(model, rows, {1: Scaled(0.0), 3: Scaled(0.0)}).mean()
    assert other.gain == pytest.approx(expected, rel=1e-4)
    assert found.target[0].difference == pytest.approx(dropped - intact, rel=1e-4)
    low, high = found.random.metric.margin
    assert low < found.random.metric.selected - other.gain < high
    # One other set is all there is: rows decide, where a rank could not.
    assert found.random.metric.judgement == ("distinguishable" if low > 0 else "undecided")
    assert abs(low) > 0.01
    excess = found.norms.target.metric - dropped
    assert found.norms.excess == pytest.approx(excess, rel=1e-4)
    assert found.norms.excess_interval[0] < excess < found.norms.excess_interval[1]


def test_the_norms_of_the_target_become_those_of_id_behind_each_layer_in_turn(
    errors: tuple[Intervention, LoadedModel, Any],
) -> None:
    found, model, roles = errors
    samples = {name: roles[f"{name}-report"] for name in ("id", "target")}
    (reference,) = respond(Probe(model, samples, select_on="id"), [{}])
    changes = {layer: Rescaled(factor) for layer, factor in found.norms.factors}
    assert list(changes) == [0, 2]
    (rescaled,) = respond(Probe(model, samples), [changes])
    for boundary in (1, 3):
        assert rescaled.norms[0][boundary] == pytest.approx(reference.norms[0][boundary], rel=1e-5)
    assert rescaled.norms[0][2] != pytest.approx(reference.norms[0][2], rel=1e-3)
    assert found.norms.target.metric == pytest.approx(
        values_of(model, samples["target"], changes).mean(), rel=1e-4
    )


def test_deviations_are_from_the_intact_model_on_id_over_the_boundaries_that_are_left(
    errors: tuple[Intervention, LoadedModel, Any],
) -> None:
    found, model, roles = errors
    samples = {name: roles[f"{name}-report"] for name in ("id", "target")}
    probe = Probe(model, samples)
    left = [0, 2, 4]  # behind layers 1 and 3; layers 0 and 2 are gone
    for dose, dropped in ((found.target[0], (0, 2)), (found.target[1], ())):
        deviation = probe.deviation(dropped)
        assert dose.norm_deviation == pytest.approx(np.mean([deviation.norms[b] for b in left]))
        assert dose.distance_deviation == pytest.approx(np.mean([deviation.distances[b] for b in left]))
    floor = probe.deviation().noise_floor
    assert found.noise_floor[0] == pytest.approx(np.mean([floor.norms[b] for b in left]))
    assert found.noise_floor[1] == pytest.approx(np.mean([floor.distances[b] for b in left]))
    assert {dose.deviation for dose in found.id if dose.alpha == 1} == {0.0}
    after, before = probe.deviation((1, 3)).mean, probe.deviation(over=(1, 3)).mean
    assert found.random.sets[0].deviation_removed == pytest.approx(1 - after / before)
    share = 1 - found.target[0].deviation / found.target[1].deviation
    assert found.random.deviation.selected == pytest.approx(share)


def test_a_metric_that_is_no_mean_over_rows_is_made_of_all_rows(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", prompt_records(64, seed, scale))
        for seed, (name, scale) in enumerate((("id", 1.0), ("target", 3.0)))
    }
    config = RunConfig(model=str(tiny("polynomial")), output=tmp_path / "out", **files)
    model, roles = reading.load_with_roles(config, ("report",))
    monkeypatch.setattr(type(model.task), "aggregate", lambda self, values: np.median(values, axis=-1))
    found = intervene(config, [0, 2], doses=Doses(alphas=(0, 1), draws=5))
    intact, dropped, other = (
        np.median(values_of(model, roles["target-report"], dict.fromkeys(layers, Scaled(0.0))))
        for layers in ((), (0, 2), (1, 3))
    )
    assert found.target[0].metric == pytest.approx(dropped, rel=1e-4)
    assert found.target[0].metric_interval[0] <= dropped <= found.target[0].metric_interval[1]
    assert found.metric_trend.change == pytest.approx(dropped - intact, rel=1e-4)
    assert found.random.metric.selected == pytest.approx(intact - dropped, rel=1e-4)
    assert found.random.sets[0].gain == pytest.approx(intact - other, rel=1e-4)
    assert found.norms.excess == pytest.approx(found.norms.target.metric - dropped, rel=1e-4)
