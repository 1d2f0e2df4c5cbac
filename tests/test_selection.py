"""The selection loop: published rules on published numbers, and a plain search as the judge."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import NUM_LAYERS, THREE_FAMILIES
from scipy.stats import rankdata
from test_laws import drop_by_hand

from tapioca_export.artifacts import Curves, Deviation, Evaluation, LayerProfile, Ledger
from tapioca_export.cli.results import show_selection
from tapioca_export.domains import Domains
from tapioca_export.errors import ConfigError, SelectionError, UnknownNameError
from tapioca_export.measuring import measure
from tapioca_export.models import LoadedModel, load_model
from tapioca_export.profiling import Probe
from tapioca_export.reporting import about_prediction
from tapioca_export.samples import MIN_ROWS, Samples, read_samples
from tapioca_export.selection import CRITERIA, SelectionSettings, beyond_reach, select_layers

ACCURACY = SimpleNamespace(name="text-classification", metric="accuracy", higher_is_better=True)


class FakeProbe:
    """Answers from hand-written numbers: metric and loss by set of dropped layers."""

    def __init__(
        self,
        num_layers: int,
        metric: Callable[[frozenset[int]], float],
        loss: Callable[[frozenset[int]], float] = len,
        labelled: bool = True,
        deviation: Callable[[frozenset[int]], float] = lambda dropped: 1.0,
    ) -> None:
        self.num_layers, self.select_on, self.is_labelled = num_layers, "target", labelled
        self.higher_is_better = True
        self.num_rows, self.num_answers, self.ledger = 10, 1, Ledger()
        self.domains = Domains.of({"": self.num_rows})
        self._metric, self._loss, self._deviation = metric, loss, deviation

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        key = frozenset(dropped)
        self.ledger.add_deviations(
            {"sets": [key], "deviations": [0.0], "layer_forwards": 0, "layer_tokens": 0}
        )
        return Evaluation(self._metric(key), float(self._loss(key)))

    def metrics(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        return {layer: self.metric({*dropped, layer}) for layer in layers}

    def deviation(self, dropped: Collection[int] = (), over: Collection[int] | None = None) -> Deviation:
        floor = Curves((0.1,), (0.1,), 0.1)
        return Deviation((0.0,), (0.0,), self._deviation(frozenset(dropped)), floor)

    def deviations(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        found = {}
        for layer in layers:
            key = frozenset({*dropped, layer})
            metric = self._metric(key) if self.is_labelled else None
            found[layer] = Evaluation(metric, deviation=self._deviation(key))
        return found

    def turns(self, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        return {layer: float((7 * layer) % self.num_layers) for layer in layers}

    output_changes = turns

    def magnitudes(self) -> tuple[float, ...]:
        return tuple(self.turns(range(self.num_layers), 1).values())

    sensitivities = magnitudes

    def angular_distances(self, num_layers: int) -> tuple[float, ...]:
        return self.magnitudes()[: self.num_layers - num_layers + 1]

    def profile(self, name: str, dropped: Collection[int] = ()) -> LayerProfile:
        influences = tuple(float((7 * i) % self.num_layers) for i in range(self.num_layers))
        return LayerProfile((), (), influences, (), (), 10, 10)


def search(probe: object, **settings: object):
    chosen = SelectionSettings(**{"full_scores": True, **settings})
    return select_layers(probe, chosen, model="m", task=ACCURACY, num_samples=10)


def plain_greedy(model: LoadedModel, samples: Samples, epsilon: float) -> list[dict[int, float]]:
    """Score every candidate by a deep copy without the layers and a full forward of every row."""
    task, sign = model.task, 1 if model.task.higher_is_better else -1

    def metric(layers: tuple[int, ...]) -> float:
        copy = drop_by_hand(model, layers)
        logits = [copy.logits(task.encode([row], model.processor))[0] for row in samples.rows]
        return float(task.aggregate(task.score(np.stack(logits), samples).values))

    dropped, rounds, base = (), [], metric(())
    while len(dropped) < model.num_layers - 1:
        rounds.append({n: metric((*dropped, n)) for n in range(model.num_layers) if n not in dropped})
        best = max(rounds[-1], key=lambda n: (sign * rounds[-1][n], -n))
        if sign * rounds[-1][best] < sign * base - epsilon:
            break
        dropped = (*dropped, best)
    return rounds


@pytest.mark.parametrize("family", THREE_FAMILIES)
@pytest.mark.parametrize("epsilon", [0.08, 10.0])
def test_tale_equals_a_plain_greedy_search_in_every_score(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    family: str,
    epsilon: float,
) -> None:
    model = load_model(tiny(family))
    rows = read_samples(sample_files(family)["target"], model.task.rows({}, model.processor), role="target")
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=16)
    settings = SelectionSettings(epsilon=epsilon, pick="final", full_scores=True)
    selection = select_layers(probe, settings, model="m", task=model.task, num_samples=len(rows))
    rounds = [step.candidates for step in selection.steps] + [selection.rejected] * bool(selection.rejected)
    expected = plain_greedy(model, rows, epsilon)
    assert len(rounds) == len(expected)
    for candidates, scores in zip(rounds, expected, strict=True):
        assert [c.layer for c in candidates] == list(scores)
        assert [c.metric for c in candidates] == pytest.approx(list(scores.values()), rel=1e-5)
    sign = 1 if model.task.higher_is_better else -1
    order = [max(scores, key=lambda n: (sign * scores[n], -n)) for scores in expected]
    assert [step.layer for step in selection.steps] == order[: len(selection.steps)]
    assert selection.drop == tuple(sorted(order[: len(selection.steps)]))


def test_the_floor_is_fixed_and_a_candidate_on_it_is_accepted() -> None:
    by_count = {0: 1.0, 1: 0.95, 2: 0.9, 3: 0.8}
    selection = search(FakeProbe(5, lambda dropped: by_count.get(len(dropped), 0.0)), epsilon=0.1)
    assert [step.metric for step in selection.steps] == [0.95, 0.9]
    assert selection.floor == pytest.approx(0.9)
    assert "beyond the floor" in selection.stop_reason


def test_ties_go_to_the_lowest_index_or_to_the_lowest_loss() -> None:
    probe = FakeProbe(4, lambda dropped: 0.5, lambda dropped: -sum(dropped))
    assert [s.layer for s in search(probe, pick="final").steps] == [0, 1, 2]
    assert [s.layer for s in search(probe, pick="final", tie_break="loss").steps] == [3, 2, 1]


def test_the_number_of_evaluations_is_one_and_the_layers_left_of_every_round() -> None:
    probe = FakeProbe(6, lambda dropped: 1.0 if len(dropped) < 3 else 0.0)
    assert search(probe).cost.evaluations == 1 + 6 + 5 + 4


def test_every_candidate_has_its_loss_recorded() -> None:
    probe = FakeProbe(4, lambda dropped: 0.5, lambda dropped: sum(dropped))
    assert [c.loss for c in search(probe, max_drop_layers=1).steps[0].candidates] == [0, 1, 2, 3]


def test_protected_and_held_layers_stay() -> None:
    probe = FakeProbe(6, lambda dropped: 0.5)
    selection = search(probe, protect_first=1, protect_last=2, held=(2,), pick="final")
    assert selection.drop == (1, 3)
    with pytest.raises(SelectionError, match="No layer may be dropped"):
        search(probe, protect_first=3, protect_last=3)


def test_best_keeps_everything_when_no_drop_improves() -> None:
    selection = search(FakeProbe(4, lambda dropped: 0.9 - 0.01 * len(dropped)))
    assert selection.drop == ()
    assert len(selection.steps) == 3


def test_a_pick_beyond_the_search_says_how_far_it_went() -> None:
    with pytest.raises(ConfigError, match="dropped 3 layers only"):
        search(FakeProbe(6, lambda dropped: float(len(dropped) <= 3)), pick="4")


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(SelectionError, match="score of layer 0 is nan"):
        search(FakeProbe(3, lambda dropped: float("nan") if dropped else 1.0))


@pytest.mark.parametrize("criterion", ["tale", "loss"])
def test_criteria_that_need_labels_say_so(criterion: str) -> None:
    with pytest.raises(SelectionError, match="needs labels"):
        search(FakeProbe(4, lambda dropped: 1.0, labelled=False), criterion=criterion, max_drop_layers=1)


def test_an_unknown_criterion_is_met_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError) as caught:
        search(FakeProbe(4, lambda dropped: 1.0), criterion="tapoica")
    assert "Did you mean 'tapioca'?" in str(caught.value)


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {"fixed"}))
def test_every_criterion_scores_each_layer_left_and_repeats_itself(criterion: str) -> None:
    def run():
        probe = FakeProbe(6, lambda d: 0.9 + 0.01 * len(d), sum, deviation=lambda d: 2.0 - 0.1 * sum(d))
        return search(probe, criterion=criterion, max_drop_layers=3, pick="final", seed=3)

    one, other = run(), run()
    assert one.steps == other.steps
    sizes = [5, 5, 4] if criterion == "tapioca+tale" else [6, 5, 4]  # it tries a shortlist of five
    assert [len(step.candidates) for step in one.steps] == sizes


@pytest.mark.parametrize("hundredths", range(9, 100, 7))
def test_a_candidate_on_the_floor_is_accepted_whatever_the_rounding(hundredths: int) -> None:
    base, floor = hundredths / 100, (hundredths - 8) / 100
    selection = search(FakeProbe(3, lambda dropped: floor if dropped else base), epsilon=0.08)
    assert [step.metric for step in selection.steps] == [floor, floor]


def test_fixed_drops_what_was_named_whatever_the_metric() -> None:
    selection = search(FakeProbe(6, lambda d: 1.0 - len(d)), criterion="fixed", drop=(4, 1))
    assert [step.layer for step in selection.steps] == [4, 1]
    assert selection.drop == (1, 4)


def test_realignment_stops_at_the_noise_floor_and_when_nothing_helps() -> None:
    within = FakeProbe(4, lambda d: 1.0, labelled=False, deviation=lambda d: 0.1)
    stopped = search(within, criterion="realignment").stop_reason
    assert stopped.startswith("the target deviates from ID no more")
    worse = FakeProbe(4, lambda d: 1.0, labelled=False, deviation=lambda d: 1.0 + len(d))
    selection = search(worse, criterion="realignment")
    assert selection.drop == ()
    assert "no removal" in selection.stop_reason


def test_realignment_on_unlabelled_rows_keeps_its_whole_trajectory() -> None:
    probe = FakeProbe(4, lambda d: 1.0, labelled=False, deviation=lambda d: 1.0 - 0.4 * len(d))
    selection = search(probe, criterion="realignment")
    assert len(selection.drop) == 3
    assert (selection.pick, selection.metric, selection.baseline_metric) == ("final", None, None)


def test_realignment_with_labels_reports_how_well_it_predicted() -> None:
    probe = FakeProbe(5, lambda d: 0.5 + sum(d) / 100, deviation=lambda d: 2.0 - 0.1 * sum(d))
    selection = search(probe, criterion="realignment")
    assert selection.prediction.spearman == pytest.approx(1.0)
    assert selection.prediction.num_candidates == 5


def test_tapioca_drops_first_what_changes_the_head_least() -> None:
    probe = FakeProbe(5, lambda d: 1.0, labelled=False)
    assert probe.magnitudes() == (0, 2, 4, 1, 3)
    selection = search(probe, criterion="tapioca", max_drop_layers=4)
    assert [step.layer for step in selection.steps] == [0, 3, 1, 4]
    scores = {candidate.layer: candidate.score for candidate in selection.steps[1].candidates}
    assert scores == {1: -3, 2: -5, 3: -2, 4: -4}  # ranks among all, layer 0 has the first


def test_tapiocas_score_is_the_mean_of_two_ranks() -> None:
    probe = FakeProbe(4, lambda d: 1.0, labelled=False)
    asked = []

    def turns(layers: Sequence[int], num_samples: int) -> dict[int, float]:
        asked.append(num_samples)
        return dict(enumerate((0.1, 0.2, 0.2, 0.9)))

    def output_changes(layers: Sequence[int], num_samples: int) -> dict[int, float]:
        asked.append(num_samples)
        return dict(enumerate((5.0, 4.0, 0.0, 9.0)))

    probe.turns, probe.output_changes = turns, output_changes
    step = search(probe, criterion="tapioca", max_drop_layers=1).steps[0]
    assert {c.layer: c.score for c in step.candidates} == {0: -2, 1: -2.25, 2: -1.75, 3: -4}
    assert step.layer == 2
    assert asked == [32, 256]  # rows of each, as the bank has them


@pytest.mark.parametrize(("num_layers", "dropped"), [(3, 1), (4, 1), (12, 3)])
def test_tapioca_without_labels_drops_a_quarter_unless_told_otherwise(num_layers: int, dropped: int) -> None:
    probe = FakeProbe(num_layers, lambda d: 1.0, labelled=False)
    selection = search(probe, criterion="tapioca")
    assert (len(selection.drop), selection.pick) == (dropped, "final")
    assert "unless --max-drop-layers says otherwise" in selection.stop_reason
    told = search(probe, criterion="tapioca", max_drop_layers=2)
    assert len(told.drop) == 2
    assert told.stop_reason.endswith("the most that was asked for")


@pytest.mark.parametrize("criterion", ["tale", "damp", "loss", "taylor", "tapioca+tale"])
def test_a_criterion_that_needs_labels_says_so_before_it_asks_for_a_depth(criterion: str) -> None:
    probe = FakeProbe(4, lambda d: 1.0, labelled=False)
    with pytest.raises(SelectionError, match=f"^Criterion {re.escape(criterion)} needs labels"):
        search(probe, criterion=criterion)


def test_tapioca_with_labels_is_stopped_by_the_floor_and_says_how_well_it_foretold() -> None:
    best_first = FakeProbe(6, lambda d: 0.9 - 0.012 * sum(7 * n % 6 for n in d))
    selection = search(best_first, criterion="tapioca", epsilon=0.08)
    assert selection.prediction.spearman > 0.9
    assert selection.prediction.num_candidates == 6
    assert selection.steps[-1].metric >= 0.82
    assert "beyond the floor" in selection.stop_reason
    # Only the first round's candidates are scored by the metric; of the others, what is dropped.
    assert all(candidate.metric is None for candidate in selection.steps[1].candidates)


def test_select_prints_how_well_the_score_foretold_the_metric(capsys: pytest.CaptureFixture[str]) -> None:
    probe = FakeProbe(6, lambda d: 0.9 - 0.012 * sum(7 * n % 6 for n in d))
    show_selection(search(probe, criterion="tapioca"), as_json=False, quiet=False)
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("The label-free score")
    ]
    assert line.startswith("The label-free score predicted the metric in the first round: Spearman +1")
    show_selection(search(probe, criterion="tale"), as_json=False, quiet=False)
    assert "label-free" not in capsys.readouterr().out


def test_tapioca_drops_nothing_where_there_is_no_shift() -> None:
    within = FakeProbe(4, lambda d: 1.0, labelled=False, deviation=lambda d: 0.1)
    selection = search(within, criterion="tapioca")
    assert (selection.drop, selection.steps) == ((), ())
    assert selection.stop_reason.startswith("the target deviates from ID no more")
    # What pruning does to the deviation is no reason to end.
    probe = FakeProbe(8, lambda d: 1.0, labelled=False, deviation=lambda d: 0.05 if d else 1.0)
    assert len(search(probe, criterion="tapioca").drop) == 2


def test_tapioca_tale_proposes_what_turns_the_head_least_and_asks_nothing_else() -> None:
    labelled, asked = FakeProbe(8, lambda d: 1.0), []
    labelled.output_changes = lambda layers, num_samples: asked.append(layers)
    first = search(labelled, criterion="tapioca+tale", shortlist=3, max_drop_layers=1, pick="final").steps[0]
    turns = labelled.turns(range(8), 32)
    assert {candidate.layer for candidate in first.candidates} == set(sorted(turns, key=turns.get)[:3])
    assert asked == []


@pytest.mark.parametrize(
    ("num_layers", "gains", "why"),
    [
        (2, lambda d: 0.9 - 0.1 * sum(d), "fewer than 3 layers were scored in full"),
        (6, lambda d: 0.9, "all 6 layers that were tried have the same metric"),
    ],
)
def test_why_it_cannot_be_told_how_well_a_score_foretold_is_told(
    num_layers: int, gains: Callable[..., float], why: str
) -> None:
    found = search(FakeProbe(num_layers, gains), criterion="tapioca", max_drop_layers=1, epsilon=1.0)
    assert (found.prediction, found.unpredicted) == (None, why)
    assert about_prediction(found) == [
        f"How well the label-free score predicts the metric cannot be told: {why}."
    ]
    assert search(FakeProbe(num_layers, gains), criterion="tale", epsilon=1.0).unpredicted is None
    blind = FakeProbe(num_layers, gains, labelled=False)
    assert search(blind, criterion="tapioca", max_drop_layers=1).unpredicted is None


def test_tapioca_tale_says_how_well_what_it_proposed_was_ranked() -> None:
    probe = FakeProbe(8, lambda d: 0.9 - 0.01 * sum(7 * n % 8 for n in d))
    found = search(probe, criterion="tapioca+tale", shortlist=4).prediction
    assert (found.num_candidates, found.spearman) == (4, pytest.approx(1.0))
    against = FakeProbe(8, lambda d: 0.9 + 0.01 * sum(7 * n % 8 for n in d))
    assert search(against, criterion="tapioca+tale", shortlist=4).prediction.spearman == pytest.approx(-1.0)


@pytest.mark.parametrize("select_on", ["id", "target"])
def test_tapioca_looks_at_target_rows_whichever_rows_judge_it(
    select_on: str,
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tapioca_export.selection.criteria._no_shift", lambda round_: None)
    model = load_model(tiny("bert"))
    reader = model.task.rows({}, model.processor)
    rows = {name: read_samples(path, reader, role=name) for name, path in sample_files("bert").items()}
    probe = Probe(model, rows, select_on=select_on)
    settings = SelectionSettings(criterion="tapioca", max_drop_layers=1, epsilon=None, pick="final")
    found = select_layers(probe, settings, model="m", task=model.task, num_samples=probe.num_rows)
    again, layers = Probe(model, {"target": rows["target"]}), range(model.num_layers)
    seen = (again.turns(layers, 32), again.output_changes(layers, 256))
    ranks = sum(rankdata(list(numbers.values())) for numbers in seen) / 2
    candidates = found.steps[0].candidates
    assert [-c.score for c in candidates] == ranks.tolist()
    judged = Probe(model, {"target": rows[select_on]}).metrics((), range(model.num_layers))
    assert {c.layer: c.metric for c in candidates} == {n: one.metric for n, one in judged.items()}


def test_what_is_no_number_is_refused_with_its_layer_and_row(
    tiny: Callable[[str], Path],
    sample_files: Callable[[str], dict[str, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["target"], model.task.rows({}, model.processor), role="target")
    calls = []

    def changes(task: object, before: object, after: object, batch: Any, processor: object) -> np.ndarray:
        calls.append(batch)
        found = np.zeros(len(batch))
        found[1] = np.nan if len(calls) == 2 else 0
        return found

    monkeypatch.setattr(type(model.task), "output_changes", changes)
    with pytest.raises(SelectionError, match=r"without layer 1 is not finite .* for .*line \d+"):
        Probe(model, {"target": rows, "id": rows}).output_changes((0, 1), 16)


def test_identical_samples_give_tapioca_nothing_to_drop(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]]
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["id"], model.task.rows({}, model.processor), role="id")
    probe = Probe(model, {"id": rows, "target": rows})
    settings = SelectionSettings(criterion="tapioca")
    assert select_layers(probe, settings, model="m", task=model.task, num_samples=64).drop == ()


def test_block_influence_finds_the_planted_identity_first(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]]
) -> None:
    model = load_model(tiny("llama"))
    planted = model.layers[2]
    for projection in (planted.self_attn.o_proj, planted.mlp.down_proj):
        projection.weight.data.zero_()
    rows = read_samples(sample_files("llama")["id"], model.task.rows({}, model.processor), role="id")
    probe = Probe(model, {"id": rows, "target": rows})
    settings = SelectionSettings(criterion="block-influence", max_drop_layers=1, pick="final")
    selection = select_layers(probe, settings, model="m", task=model.task, num_samples=64)
    assert selection.drop == (2,)
    assert probe.profile("id").influences[2] == pytest.approx(0.0, abs=1e-6)


def test_dropping_an_identity_removes_no_deviation(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]]
) -> None:
    model = load_model(tiny("llama"))
    for projection in (model.layers[2].self_attn.o_proj, model.layers[2].mlp.down_proj):
        projection.weight.data.zero_()
    reader = model.task.rows({}, model.processor)
    rows = {name: read_samples(path, reader, role=name) for name, path in sample_files("llama").items()}
    probe = Probe(model, rows)
    assert probe.deviation((2,)).mean == pytest.approx(probe.deviation(over=(2,)).mean, rel=1e-6)
    assert measure(model, probe, (2,)).deviation_removed == pytest.approx(0.0, abs=1e-6)


def test_the_noise_floor_is_a_number_with_the_fewest_rows_allowed(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]]
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["id"], model.task.rows({}, model.processor), role="id")
    few = replace(rows, rows=rows.rows[:MIN_ROWS])
    for seed in range(5):
        floor = Probe(model, {"id": few, "target": few}, seed=seed).deviation().noise_floor
        assert np.isfinite([*floor.norms, *floor.distances, floor.mean]).all()
        assert floor.mean < 3


def test_replay_costs_less_than_plain_search(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]]
) -> None:
    model = load_model(tiny("bert"))
    rows = read_samples(sample_files("bert")["id"], model.task.rows({}, model.processor), role="id")
    probe = Probe(model, {"id": rows, "target": rows})
    settings = SelectionSettings(epsilon=1.0, pick="final", max_drop_layers=1, full_scores=True)
    cost = select_layers(probe, settings, model="m", task=model.task, num_samples=64).cost
    assert cost.plain_layer_forwards == 64 * (NUM_LAYERS + NUM_LAYERS * (NUM_LAYERS - 1))
    # The baseline, one recorded pass below the last layer, and for each candidate the layers above it.
    assert cost.layer_forwards == 64 * (2 * NUM_LAYERS - 1 + NUM_LAYERS * (NUM_LAYERS - 1) // 2)


# --- depths that no search can reach --------------------------------------------------------

# Settings of a search among 4 layers -> the most that can go, of how many.
MOST: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({}, 3, "3 of 4 layers"),
    ({"protect_first": 1, "protect_last": 1}, 2, "2 of 4 layers"),
    ({"held": (0,), "protect_last": 1}, 2, "2 of 4 layers"),
    ({"stacks": {"encoder": 2, "decoder": 2}}, 2, "2 of 4 layers"),
    ({"criterion": "damp", "scales": (0.0, 0.5)}, 4, "4 of 4 layers"),
    ({"criterion": "damp", "scales": (0.0, 0.5), "protect_first": 2}, 2, "2 of 4 layers"),
    ({"parts": ("attention", "mlp")}, 7, "7 of 8 sublayers"),
)


@pytest.mark.parametrize(("settings", "most", "counted"), MOST, ids=str)
def test_a_depth_is_beyond_reach_where_more_is_asked_for_than_can_go(
    settings: dict[str, Any], most: int, counted: str
) -> None:
    num_units = 8 if "parts" in settings else 4
    said = [
        beyond_reach(SelectionSettings(max_drop_layers=depth, **settings), num_units)
        for depth in (None, 0, most, most + 1, most + 9)
    ]
    assert said[:3] == [None] * 3
    assert said[3:] == [f"--max-drop-layers {n} is more than can go: {counted}" for n in (most + 1, most + 9)]


@pytest.mark.parametrize(
    "settings", [{"criterion": "fixed", "drop": (1,)}, {"criterion": "angular-distance"}]
)
def test_criteria_that_refuse_another_depth_themselves_are_left_to_it(settings: dict[str, Any]) -> None:
    assert beyond_reach(SelectionSettings(max_drop_layers=9, **settings), 4) is None


def test_layers_that_are_named_are_no_more_than_may_go() -> None:
    SelectionSettings(criterion="fixed", drop=(1, 2), max_drop_layers=2)
    with pytest.raises(ConfigError, match="--drop names 2, and --max-drop-layers 1 allows fewer"):
        SelectionSettings(criterion="fixed", drop=(1, 2), max_drop_layers=1)
