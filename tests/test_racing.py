"""Races: the winner is that of a full comparison, whatever the rows; and it costs less."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import THREE_FAMILIES

from tapioca_export.artifacts import Candidate, Evaluation, Ledger, Selection
from tapioca_export.domains import Domains
from tapioca_export.models import load_model
from tapioca_export.profiling import Probe
from tapioca_export.samples import read_samples
from tapioca_export.selection import Round, SelectionSettings, select_layers
from tapioca_export.selection.forecasting import Forecast, statistical_race
from tapioca_export.selection.racing import Field, exact_race
from tapioca_export.selection.searches import best_of

NUM_LAYERS = 8


class TableProbe:
    """Answers from tables (layers, rows) of one round's candidates, and from the model's own rows."""

    def __init__(
        self, values: np.ndarray, losses: np.ndarray, current: tuple[np.ndarray, np.ndarray], best: float
    ) -> None:
        self.values, self.losses, self.current = values, losses, current
        self.num_layers, self.num_rows = values.shape
        self.domains = Domains.of({"": self.num_rows})
        self.best_value, self.higher_is_better = best, best > 0
        self.num_scored = 0

    def scores(
        self, dropped: Sequence[int], layers: Sequence[int], rows: np.ndarray
    ) -> Mapping[int, tuple[np.ndarray, np.ndarray]]:
        self.num_scored += len(layers) * len(rows)
        return {layer: (self.values[layer, rows], self.losses[layer, rows]) for layer in layers}

    def known(self, dropped: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        return self.current


def classifier(seed: int, num_rows: int = 400, spread: float = 0.6) -> TableProbe:
    """A model whose candidates move its margins, each by its own amount and in its own way."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(1.5, 1.2, num_rows)
    shifts = np.abs(generator.normal(0, spread, NUM_LAYERS))[:, None]
    moved = margins - shifts + generator.normal(0, 0.2 + shifts / 2, (NUM_LAYERS, num_rows))
    values, losses = (
        ((m > 0).astype(float) for m in (moved, margins)),
        (np.logaddexp(0, -2 * m) for m in (moved, margins)),
    )
    (value, current), (loss, current_loss) = values, losses
    return TableProbe(value, loss, (current, current_loss), best=1.0)


def stretched(seed: int, num_rows: int = 400) -> TableProbe:
    """A classifier whose candidates are less sure of everything, or surer, besides being shifted."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(1.5, 1.2, num_rows)
    scales, shifts = generator.uniform(0.3, 1.2, (NUM_LAYERS, 1)), generator.normal(0, 0.3, (NUM_LAYERS, 1))
    moved = margins * scales + shifts + generator.normal(0, 0.3, (NUM_LAYERS, num_rows))
    (value, current), (loss, current_loss) = (
        [(m > 0).astype(float) for m in (moved, margins)],
        [np.logaddexp(0, -2 * m) for m in (moved, margins)],
    )
    return TableProbe(value, loss, (current, current_loss), best=1.0)


def regression(seed: int, num_rows: int = 200) -> TableProbe:
    """A model with heavy-tailed errors, as under a shift."""
    generator = np.random.default_rng(seed)
    errors = generator.lognormal(0, 1.5, num_rows)
    factors = generator.lognormal(0.2, 0.3, (NUM_LAYERS, 1)) * generator.lognormal(
        0, 0.2, (NUM_LAYERS, num_rows)
    )
    return TableProbe(errors * factors, errors * factors, (errors, errors), best=0.0)


def round_of(probe: Any, **settings: Any) -> Round:
    return Round(probe, (), tuple(range(NUM_LAYERS)), SelectionSettings(**settings))


def full_winner(probe: TableProbe, *, by_loss: bool = False, tie_break: str = "index") -> int:
    """Compare means over all rows, ties by the rule."""
    sign = -1 if by_loss or not probe.higher_is_better else 1
    numbers = (probe.losses if by_loss else probe.values).mean(axis=1)
    losses = probe.losses.mean(axis=1) if tie_break == "loss" else np.zeros(NUM_LAYERS)
    return min(range(NUM_LAYERS), key=lambda n: (-sign * numbers[n], losses[n], n))


@pytest.mark.parametrize("tie_break", ["index", "loss"])
@pytest.mark.parametrize("make", [classifier, regression])
def test_an_exact_race_always_finds_the_winner_of_a_full_comparison(
    make: Callable[[int], TableProbe], tie_break: str
) -> None:
    for seed in range(150):
        probe = make(seed)
        candidates = exact_race(round_of(probe, tie_break=tie_break))
        assert best_of(candidates, tie_break).layer == full_winner(probe, tie_break=tie_break)
        assert [c.layer for c in candidates] == list(range(NUM_LAYERS))


def test_a_race_on_losses_finds_the_lowest() -> None:
    for seed in range(100):
        probe = classifier(seed)
        candidates = exact_race(round_of(probe, criterion="loss"), by_loss=True)
        assert best_of(candidates, "index").layer == full_winner(probe, by_loss=True)


def test_ties_are_honoured_where_all_candidates_are_alike() -> None:
    for seed in range(20):
        probe = classifier(seed)
        probe.values[:] = probe.values[3]
        assert best_of(exact_race(round_of(probe)), "index").layer == 0
        expected = int(np.argmin(probe.losses.mean(axis=1)))
        assert best_of(exact_race(round_of(probe, tie_break="loss")), "loss").layer == expected


@pytest.mark.parametrize("make", [classifier, regression])
def test_what_a_race_says_of_each_candidate_is_true(make: Callable[[int], TableProbe]) -> None:
    sign = 1 if make is classifier else -1
    for seed in range(50):
        probe = make(seed)
        candidates = {c.layer: c for c in exact_race(round_of(probe))}
        for layer, candidate in candidates.items():
            metric = probe.values[layer].mean()
            if candidate.outcome == "full":
                assert candidate.metric == metric
                assert candidate.loss == probe.losses[layer].mean()
            else:
                assert candidate.rows is not None
                assert candidate.rows < probe.num_rows
                assert sign * metric <= sign * candidate.bound + 1e-9
                rival = candidates[candidate.against]
                assert rival.outcome == "full"
                assert sign * candidate.bound <= sign * rival.metric + 1e-9


@pytest.mark.parametrize(
    ("make", "most", "led"), [(classifier, 0.3, 0.9), (stretched, 0.255, 0.9), (regression, 0.36, 0.98)]
)
def test_an_exact_race_costs_far_less_than_a_full_comparison(
    make: Callable[[int], TableProbe], most: float, led: float
) -> None:
    shares, is_led_by_winner = [], []
    for seed in range(50):
        probe, told = make(seed), []
        layers = tuple(range(NUM_LAYERS))
        exact_race(Round(probe, (), layers, SelectionSettings(), told.append))
        shares.append(probe.num_scored / probe.values.size)
        is_led_by_winner.append(told[0].layer == full_winner(probe))
    assert np.mean(shares) < most
    assert np.mean(is_led_by_winner) > led  # one in eight by chance


@pytest.mark.parametrize("make", [classifier, regression])
def test_an_exact_race_scores_no_row_again_and_records_no_prefix_a_third_time(
    make: Callable[[int], TableProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan's most (costing) rests on two recordings of a row's prefix."""
    for seed in range(50):
        probe = make(seed)
        scored = np.zeros(probe.values.shape, dtype=int)
        recorded = np.zeros(probe.num_rows, dtype=int)
        look_up = probe.scores

        def scores(
            dropped: Sequence[int],
            layers: Sequence[int],
            rows: np.ndarray,
            scored: np.ndarray = scored,
            recorded: np.ndarray = recorded,
            look_up: Callable[..., Any] = look_up,
        ) -> Any:
            scored[np.ix_(list(layers), rows)] += 1
            recorded[rows] += 1
            return look_up(dropped, layers, rows)

        monkeypatch.setattr(probe, "scores", scores)
        exact_race(round_of(probe))
        assert scored.max() == 1
        assert recorded.max() <= 2


def test_close_candidates_are_scored_together_until_one_is_expected_to_win() -> None:
    """The winner is all but always the one that is scored in full first, so that no whole pass is in vain."""
    num_full = []
    for seed in range(100):
        candidates = exact_race(round_of(stretched(seed)))
        num_full.append(sum(candidate.outcome == "full" for candidate in candidates))
    assert np.mean(num_full) < 1.25


def test_who_does_well_on_hard_rows_only_does_not_lead() -> None:
    """A broken model guesses right where the current one errs; it is the easy rows that tell."""
    for seed in range(30):
        probe, generator, told = classifier(seed), np.random.default_rng(seed), []
        guesses = generator.normal(0, 1, probe.num_rows)
        probe.values[0], probe.losses[0] = (guesses > 0).astype(float), np.logaddexp(0, -2 * guesses)
        exact_race(Round(probe, (), tuple(range(NUM_LAYERS)), SelectionSettings(), told.append))
        assert told[0].layer != 0


def test_every_candidate_is_told_once_and_as_it_finishes() -> None:
    told: list[Candidate] = []
    probe = classifier(0)
    layers = tuple(range(NUM_LAYERS))
    candidates = exact_race(Round(probe, (), layers, SelectionSettings(), told.append))
    assert sorted(told, key=lambda c: c.layer) == list(candidates)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_a_statistical_race_keeps_its_confidence(confidence: float) -> None:
    num_misses, num_races = 0, 400
    for seed in range(num_races):
        probe = classifier(seed, spread=0.3)
        winner = best_of(
            statistical_race(round_of(probe, search="racing", confidence=confidence, seed=seed)), "index"
        ).layer
        metrics = probe.values.mean(axis=1)
        indifference = probe.values[winner].std() / np.sqrt(probe.num_rows)
        num_misses += metrics.max() - metrics[winner] > indifference + 1e-9
    assert num_misses / num_races <= 1 - confidence + 2 * np.sqrt((1 - confidence) * confidence / num_races)


def sure(seed: int, num_rows: int = 500) -> TableProbe:
    """A classifier on rows that it knows: few are wrong or change, whatever is dropped."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(4, 1.8, num_rows)
    shifts = np.abs(generator.normal(0, 0.3, (NUM_LAYERS, 1)))
    moved = margins - shifts + generator.normal(0, 0.3, (NUM_LAYERS, num_rows))
    (value, current), (loss, current_loss) = (
        [(m > 0).astype(float) for m in (moved, margins)],
        [np.logaddexp(0, -2 * m) for m in (moved, margins)],
    )
    return TableProbe(value, loss, (current, current_loss), best=1.0)


def test_where_little_changes_a_statistical_race_is_soon_over() -> None:
    """All candidates and doubted rows tell how little: the last two's few sampled rows alone would not."""
    shares, num_misses = [], 0
    for seed in range(100):
        probe = sure(seed)
        winner = best_of(statistical_race(round_of(probe, search="racing", seed=seed)), "index").layer
        shares.append(probe.num_scored / probe.values.size)
        metrics = probe.values.mean(axis=1)
        indifference = probe.values[winner].std() / np.sqrt(probe.num_rows)
        num_misses += metrics.max() - metrics[winner] > indifference + 1e-9
    assert np.mean(shares) < 0.22
    assert num_misses <= 2


def test_candidates_that_change_more_are_not_taken_for_as_steady_as_those_that_were_stopped() -> None:
    probe, rows = sure(0), np.arange(60)
    probe.values[:], probe.losses[:] = probe.current
    probe.values[:2, 1:60:2] = 1 - probe.values[:2, 1:60:2]
    field = Field(round_of(probe), False)
    field.score(range(NUM_LAYERS), rows)
    # Of the two that are left, every second row changes: on what tells of them, half the rows.
    changed = Forecast(field, [0, 1], rows[:20], rows[20:])
    assert changed.variance == pytest.approx(0.5, abs=0.02)
    steady = Forecast(field, [2, 3], rows[:20], rows[20:])
    assert steady.variance == pytest.approx(1 / (2 * 40 + 1))


def test_rows_that_were_not_doubted_may_change_more_than_those_that_were() -> None:
    """Of an over-confident model: what the sample shows of those that are left is the least."""
    probe, rows = sure(0), np.arange(60)
    probe.values[:], probe.losses[:] = probe.current
    probe.values[:2, 20:60:2] = 1 - probe.values[:2, 20:60:2]  # of the sample alone, every second row
    field = Field(round_of(probe), False)
    field.score(range(NUM_LAYERS), rows)
    assert Forecast(field, [0, 1], rows[:20], rows[20:]).variance == pytest.approx(0.5, abs=0.02)


def test_rows_that_are_doubted_less_tell_more() -> None:
    """Changes on the more doubtful half say nothing; without others, all rows tell, and one change more."""
    probe, rows = sure(0), np.arange(60)
    probe.values[:], probe.losses[:] = probe.current
    probe.values[:, :10] = 1 - probe.values[:, :10]
    field = Field(round_of(probe), False)
    field.score(range(NUM_LAYERS), rows)
    assert Forecast(field, [2, 3], rows[:20], rows[20:]).variance == pytest.approx(1 / (8 * 50 + 1))


def test_a_statistical_race_costs_less_than_an_exact_one() -> None:
    shares = {}
    for name, race in (("exact", exact_race), ("statistical", statistical_race)):
        probes = [classifier(seed, num_rows=1000) for seed in range(40)]
        for probe in probes:
            race(round_of(probe, search="racing" if race is statistical_race else "greedy"))
        shares[name] = np.mean([probe.num_scored / probe.values.size for probe in probes])
    assert shares["statistical"] < 0.9 * shares["exact"]


def test_what_a_statistical_race_says_of_its_winner_is_about_right() -> None:
    errors = []
    for seed in range(100):
        probe = classifier(seed)
        candidates = statistical_race(round_of(probe, search="racing", seed=seed))
        assert {candidate.outcome for candidate in candidates} <= {"full", "estimated"}
        winner = best_of(candidates, "index")
        errors.append(winner.metric - probe.values[winner.layer].mean())
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.03


# --- on networks ----------------------------------------------------------------------------


def searched(tiny: Callable[[str], Path], files: dict[str, Path], family: str, **settings: Any) -> Selection:
    model = load_model(tiny(family))
    reader = model.task.rows({}, model.processor)
    rows = {name: read_samples(path, reader, role=name) for name, path in files.items()}
    probe = Probe(model, rows, batch_size=8)
    chosen = SelectionSettings(epsilon=10.0, pick="final", **settings)
    return select_layers(probe, chosen, model="m", task=model.task, num_samples=64)


@pytest.mark.parametrize("criterion", ["tale", "loss"])
@pytest.mark.parametrize("family", THREE_FAMILIES)
def test_racing_and_full_scores_walk_the_same_way(
    tiny: Callable[[str], Path], sample_files: Callable[[str], dict[str, Path]], family: str, criterion: str
) -> None:
    files = sample_files(family)
    raced = searched(tiny, files, family, criterion=criterion)
    full = searched(tiny, files, family, criterion=criterion, full_scores=True)
    assert [step.layer for step in raced.steps] == [step.layer for step in full.steps]
    assert [s.metric for s in raced.steps] == pytest.approx([s.metric for s in full.steps], rel=1e-5)
    assert raced.drop == full.drop
    assert all(c.outcome == "full" for step in full.steps for c in step.candidates)
    # Where no candidate can be abandoned, the leader's rows pay for their prefix twice.
    assert raced.cost.layer_forwards <= full.cost.layer_forwards + 64 * sum(range(1, 4))
    assert raced.cost.plain_layer_forwards == full.cost.plain_layer_forwards


class Constant:
    """Metrics by set of layers alone, for searches over sets."""

    def __init__(self, num_layers: int, metric: Callable[[frozenset[int]], float]) -> None:
        self.num_layers, self.num_rows, self.num_answers = num_layers, 10, 1
        self.select_on, self.is_labelled, self.higher_is_better = "target", True, True
        self.domains = Domains.of({"": self.num_rows})
        self.ledger, self.asked, self.noted = Ledger(), set(), 0
        self._metric = metric
        self.ledger.note = self.note

    def note(self, line: Mapping[str, Any]) -> None:
        self.noted += 1

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        self.asked.add(frozenset(dropped))
        return Evaluation(self._metric(frozenset(dropped)), 1.0)

    def metrics(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        return {layer: self.metric({*dropped, layer}) for layer in layers}


def trap(dropped: frozenset[int]) -> float:
    """Greedy takes layer 0 first and never sees that 2 and 3 together are best."""
    good = {frozenset({0}): 0.6, frozenset({2, 3}): 0.9, frozenset({2}): 0.5, frozenset({3}): 0.5}
    return good.get(dropped, 0.4 if dropped else 0.45)


def over_sets(search: str, metric: Callable[[frozenset[int]], float] = trap, **settings: Any) -> Any:
    task = type("Task", (), {"name": "t", "metric": "accuracy", "higher_is_better": True})
    probe = Constant(5, metric)
    chosen = SelectionSettings(**{"search": search, "full_scores": True, "epsilon": 1.0, **settings})
    return select_layers(probe, chosen, model="m", task=task, num_samples=10), probe


def test_greedy_falls_into_the_trap_that_beam_and_exhaustive_see() -> None:
    assert over_sets("greedy")[0].drop == (0,)
    for search in ("beam", "exhaustive"):
        selection, _ = over_sets(search)
        assert selection.drop == (2, 3)
        assert selection.selected_metric == 0.9
        assert [step.layer for step in selection.steps] == [2, 3]


def test_exhaustive_scores_every_set_once() -> None:
    selection, probe = over_sets("exhaustive", max_drop_layers=3)
    assert len(probe.asked) == 1 + 5 + 10 + 10
    assert "all 25 sets" in selection.stop_reason


def test_a_beam_of_one_is_greedy() -> None:
    generator = np.random.default_rng(0)
    table: dict[frozenset[int], float] = {}
    metric = lambda dropped: table.setdefault(dropped, float(generator.integers(0, 9)) / 10)  # noqa: E731
    greedy, beam = (
        over_sets("greedy", metric, pick="final")[0],
        over_sets("beam", metric, pick="final", width=1)[0],
    )
    assert [s.layer for s in greedy.steps] == [s.layer for s in beam.steps]


def test_a_wide_beam_is_exhaustive() -> None:
    generator = np.random.default_rng(1)
    table: dict[frozenset[int], float] = {}
    metric = lambda dropped: table.setdefault(dropped, float(generator.random()))  # noqa: E731
    assert over_sets("beam", metric, width=99)[0].drop == over_sets("exhaustive", metric)[0].drop


@pytest.mark.parametrize("search", ["greedy", "beam", "exhaustive"])
def test_a_budget_of_evaluations_ends_the_search_with_the_best_so_far(search: str) -> None:
    selection, _ = over_sets(search, budget_evaluations=6)
    assert selection.cut
    assert "cut by --budget-evaluations 6" in selection.stop_reason
    assert selection.drop == (0,)


def test_a_budget_that_is_just_enough_cuts_nothing() -> None:
    selection, _ = over_sets("greedy", budget_evaluations=5, max_drop_layers=1)
    assert not selection.cut
    assert "the most that was asked for" in selection.stop_reason


@pytest.mark.parametrize("search", ["beam", "exhaustive"])
def test_a_cut_search_over_sets_keeps_the_best_set_that_was_scored(search: str) -> None:
    def metric(dropped: frozenset[int]) -> float:
        return 0.9 if dropped == {0, 1} else 0.5 - 0.01 * len(dropped)

    selection, _ = over_sets(search, metric, budget_evaluations=9)
    assert (selection.cut, selection.drop) == (True, (0, 1))


def test_label_free_criteria_keep_to_a_budget_and_to_the_journal() -> None:
    selection, probe = over_sets("greedy", criterion="random", budget_evaluations=6)
    assert selection.cut
    assert len(selection.steps) == 1
    assert probe.noted == 6


def test_whoever_was_stopped_early_is_not_taken_for_a_better_looking_estimate() -> None:
    winner = Candidate(3, 0.80, 0.80, outcome="estimated", rows=200)
    stopped = Candidate(1, 0.85, 0.85, outcome="estimated", rows=40, against=3)
    assert best_of((stopped, winner), "index") == winner


def test_a_budget_of_time_ends_the_search_before_it_begins() -> None:
    selection, _ = over_sets("greedy", budget_seconds=1e-9)
    assert (selection.cut, selection.drop) == (True, ())
    assert "cut by --budget-seconds" in selection.stop_reason


def test_without_a_budget_nothing_is_cut() -> None:
    assert not over_sets("greedy")[0].cut
