"""Races: a round's candidates scored a few rows at a time, each until it can no longer win.

Rows are scored as penalties, how far a value falls short of the best value there is. Penalties are
never negative, so what a candidate has collected only grows: once it is more than a rival's total,
the candidate has lost, and no other row need be scored. Which rows decide earliest is a guess (those
that the current model finds hardest, and a few of the others, as a broken model may do well on the
hardest); the order of rows and the choice of the leader change what a race costs, never who wins.

Source of the idea: Maron and Moore 1994, "Hoeffding Races", NIPS 6. Theirs stops on statistical
bounds only; `exact_race` stops on certainties, `statistical_race` also on the normal bound of a
paired difference under stratified sampling (Cochran 1977, "Sampling Techniques", section 5).

Knows nothing about how a row is scored. Shapes: N rows, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from ..artifacts import Candidate
from .rounds import Round

# Beyond rounding, a sum that is larger is larger in any order of summation.
ROUNDING = 1e-9
# A race of few rows at a time starts the machine more often than it saves rows.
SMALLEST_WAVE = 16


class Field:
    """What is known of a round's candidates: penalties and losses by row, NaN where not scored."""

    def __init__(self, round_: Round, by_loss: bool) -> None:
        self.round = round_
        self.by_loss = by_loss
        self.num_rows = round_.probe.num_rows
        self.difficulty = round_.current()[1]
        shape = (round_.probe.num_layers, self.num_rows)
        self.values, self.losses = np.full(shape, np.nan), np.full(shape, np.nan)
        self.finished: dict[int, Candidate] = {}

    @property
    def penalties(self) -> np.ndarray:
        """Penalties (num_layers, N) of the number that the criterion compares."""
        return self.losses if self.by_loss else np.abs(self.round.probe.best_value - self.values)

    def score(self, layers: Collection[int], rows: np.ndarray) -> None:
        """Score rows of some candidates."""
        found = self.round.probe.scores(self.round.dropped, sorted(layers), rows)
        for layer in layers:
            self.values[layer, rows], self.losses[layer, rows] = found[layer]

    def unseen(self, layer: int) -> np.ndarray:
        """Return the rows of which a candidate was not scored, hardest first."""
        rows = np.flatnonzero(np.isnan(self.values[layer]))
        return rows[np.argsort(-self.difficulty[rows], kind="stable")]

    def partial(self, layer: int) -> float:
        """Return the penalties that a candidate has collected so far."""
        return float(np.nansum(self.penalties[layer]))

    def finish(self, candidate: Candidate) -> None:
        """Record a candidate that is done, in the journal as well."""
        self.finished[candidate.layer] = candidate
        self.round.on_finished(candidate)

    def whole(self, layer: int) -> Candidate:
        """Return a candidate that was scored on all rows."""
        metric, loss = float(self.values[layer].mean()), float(self.losses[layer].mean())
        return Candidate(layer, self.merit(loss if self.by_loss else metric), metric, loss)

    def abandoned(self, layer: int, leader: int) -> Candidate:
        """Return a candidate that has lost, with the best that it could still have reached."""
        rows = int(np.isfinite(self.values[layer]).sum())
        partial = self.partial(layer)
        bound = partial / self.num_rows if self.by_loss else self.at(partial)
        return Candidate(
            layer, self.merit(bound), outcome="abandoned", rows=rows, bound=bound, against=leader
        )

    def at(self, penalty: float) -> float:
        """Return the metric at a total penalty."""
        best, mean = self.round.probe.best_value, penalty / self.num_rows
        return best - mean if self.round.probe.higher_is_better else best + mean

    def merit(self, number: float) -> float:
        """Return the score of a metric, or of a loss where losses are compared."""
        higher = self.round.probe.higher_is_better and not self.by_loss
        return number if higher else -number


def exact_race(round_: Round, by_loss: bool = False) -> tuple[Candidate, ...]:
    """Find the winner that scoring every candidate in full would find, ties included.

    Returns:
        Candidates in the order of layers: the winner, and whoever came close, scored in full; the
        others abandoned, each with the bound by which it had lost.
    """
    field = Field(round_, by_loss)
    hardest, others = _opening(field)
    field.score(round_.layers, np.concatenate([hardest, others]))
    leader = _likeliest(field, hardest, others)
    field.score([leader], field.unseen(leader))
    field.finish(field.whole(leader))
    # What the leader finds hard as well decides soonest.
    field.difficulty = field.difficulty + field.losses[leader]
    alive = [layer for layer in round_.layers if layer != leader]
    while True:
        for layer in alive:
            if _has_lost(field, layer, leader):
                field.finish(field.abandoned(layer, leader))
        alive = [layer for layer in alive if layer not in field.finished]
        if not alive:
            break
        unseen = field.unseen(alive[0])
        if len(unseen) == 0:
            for layer in alive:
                field.finish(field.whole(layer))
            break
        shortfall = min(field.partial(leader) - field.partial(layer) for layer in alive)
        field.score(alive, unseen[: _wave(field, shortfall)])
    return tuple(field.finished[layer] for layer in sorted(field.finished))


def _opening(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that all candidates are scored on: the hardest, and every so-manieth of the others.

    As many of the hardest as the current model has whole mistakes: fewer cannot decide between
    models about as good.
    """
    order = np.argsort(-field.difficulty, kind="stable")
    values, losses = field.round.current()
    penalties = losses if field.by_loss else np.abs(field.round.probe.best_value - values)
    largest = float(penalties.max(initial=0.0))
    mistakes = math.ceil(float(penalties.sum()) / largest) if largest > 0 else 0
    num_hardest = min(field.num_rows, max(SMALLEST_WAVE, mistakes))
    others = order[num_hardest:]
    step = max(1, len(others) // SMALLEST_WAVE)
    return order[:num_hardest], others[step // 2 :: step][:SMALLEST_WAVE]


def _likeliest(field: Field, hardest: np.ndarray, others: np.ndarray) -> int:
    """Return the candidate with the least penalty, sampled rows weighing as those they stand for."""
    totals = []
    for numbers in (field.penalties, field.losses):
        total = numbers[:, hardest].sum(axis=1)
        if len(others):
            total = total + numbers[:, others].mean(axis=1) * (field.num_rows - len(hardest))
        totals.append(total)
    return min(field.round.layers, key=lambda layer: (totals[0][layer], totals[1][layer], layer))


def _has_lost(field: Field, layer: int, leader: int) -> bool:
    """Tell whether a candidate can no longer win, under the tie rule."""
    partial, total = field.partial(layer), field.partial(leader)
    if partial > total * (1 + ROUNDING):
        return True
    is_tie_lost = layer > leader and field.round.settings.tie_break == "index"
    return partial == total and is_tie_lost


def _wave(field: Field, shortfall: float) -> int:
    """Return how many rows to score next: as many as the closest to losing needs to lose."""
    largest = float(np.nanmax(field.penalties, initial=1.0))
    return max(SMALLEST_WAVE, math.ceil(shortfall / largest) + 1)


def statistical_race(round_: Round, by_loss: bool = False) -> tuple[Candidate, ...]:
    """Find a winner that, at the confidence asked for, no other candidate beats by a real difference.

    The hardest rows are all scored, the others by a growing random sample. A candidate is stopped
    when the bound of its paired difference to the leader says that it is not better by more than
    half a standard error of the leader's own metric: less than that the rows that drive the search
    cannot tell. The bound is one-sided, normal, and shared out over the candidates (Bonferroni). When
    every row was scored, the comparison is exact.

    Returns:
        Candidates in the order of layers, with estimates where not all rows were scored.
    """
    field, settings = Field(round_, by_loss), round_.settings
    order = np.argsort(-field.difficulty, kind="stable")
    shuffled = np.random.default_rng(settings.seed).permutation(field.num_rows)
    num_hardest = num_sampled = max(SMALLEST_WAVE, field.num_rows // 16)
    alive = list(round_.layers)
    while True:
        strata = Strata(order[:num_hardest], shuffled[:num_sampled], field.num_rows)
        seen = np.isfinite(field.values[alive[0]])  # all that are left were scored on the same rows
        field.score(alive, strata.rows[~seen[strata.rows]])
        estimates = {layer: strata.total(field.penalties[layer]) for layer in alive}
        leader = min(alive, key=lambda layer: (estimates[layer], layer))
        margins = _margins(field, strata, alive, leader)
        for layer, (difference, error) in margins.items():
            indifference = strata.deviation(field.penalties[leader]) / 2
            if difference - error > -indifference or strata.is_everything:
                field.finish(_estimated(field, strata, layer, estimates[leader] + difference - error))
        alive = [layer for layer in alive if layer not in field.finished]
        if alive == [leader]:
            field.finish(_estimated(field, strata, leader, estimates[leader]))
            return tuple(field.finished[layer] for layer in sorted(field.finished))
        num_hardest, num_sampled = math.ceil(num_hardest * 1.5), math.ceil(num_sampled * 1.5)


class Strata:
    """The hardest rows, all of them scored, and a uniform sample of the others.

    Args:
        hardest: Indices of the hardest rows.
        sampled: Indices drawn from all rows in random order.
        num_rows: N.
    """

    def __init__(self, hardest: np.ndarray, sampled: np.ndarray, num_rows: int) -> None:
        self.hardest = hardest
        self.sample = sampled[~np.isin(sampled, hardest)]
        self.num_others = num_rows - len(hardest)
        self.num_rows = num_rows
        if not len(self.sample) and self.num_others:
            # Chance drew none but hard rows: nothing can be said of the others, so all are hard.
            others = np.setdiff1d(np.arange(num_rows), hardest)
            self.hardest, self.num_others = np.concatenate([hardest, others]), 0

    @property
    def rows(self) -> np.ndarray:
        """All rows scored."""
        return np.concatenate([self.hardest, self.sample])

    @property
    def is_everything(self) -> bool:
        """Tell whether every row is scored."""
        return len(self.sample) == self.num_others

    def total(self, numbers: np.ndarray) -> float:
        """Estimate the sum over all rows of numbers (N,), NaN where not scored."""
        total = float(numbers[self.hardest].sum())
        return total + (float(numbers[self.sample].mean()) * self.num_others if len(self.sample) else 0.0)

    def deviation(self, numbers: np.ndarray) -> float:
        """Estimate the standard error that the sum over N such rows has as a sample of its domain."""
        mean = self.total(numbers) / self.num_rows
        return math.sqrt(max(0.0, self.total(np.square(numbers - mean))))

    def error(self, variance: float) -> float:
        """Return the standard error of `total` where the others' numbers have this variance."""
        if self.is_everything:
            return 0.0
        share = len(self.sample) / self.num_others
        return self.num_others * math.sqrt(variance * (1 - share) / len(self.sample))


def _margins(
    field: Field, strata: Strata, alive: Collection[int], leader: int
) -> dict[int, tuple[float, float]]:
    """Return each rival's penalty beyond the leader's, and the error bound of it."""
    from scipy.stats import norm

    settings, rivals = field.round.settings, [layer for layer in alive if layer != leader]
    if not rivals:
        return {}
    differences = {layer: field.penalties[layer] - field.penalties[leader] for layer in rivals}
    squares = {layer: float(np.square(d[strata.sample]).sum()) for layer, d in differences.items()}
    # One more disagreement than was seen: a few rows without any do not prove that there are none.
    largest = float(np.nanmax(field.penalties, initial=0.0)) ** 2
    pooled = (sum(squares.values()) + largest) / (len(rivals) * len(strata.sample) + 1)
    quantile = float(norm.ppf(1 - (1 - settings.confidence) / (len(field.round.layers) - 1)))
    margins = {}
    for layer, difference in differences.items():
        variance = max(pooled, squares[layer] / max(1, len(strata.sample)))
        margins[layer] = strata.total(difference), quantile * strata.error(variance)
    return margins


def _estimated(field: Field, strata: Strata, layer: int, bound: float) -> Candidate:
    """Return a candidate with its estimate, or in full where every row was scored."""
    if strata.is_everything:
        return field.whole(layer)
    metric = field.at(strata.total(np.abs(field.round.probe.best_value - field.values[layer])))
    loss = strata.total(field.losses[layer]) / field.num_rows
    return Candidate(
        layer,
        field.merit(loss if field.by_loss else metric),
        metric,
        loss,
        "estimated",
        rows=len(strata.rows),
        bound=bound / field.num_rows if field.by_loss else field.at(bound),
    )
