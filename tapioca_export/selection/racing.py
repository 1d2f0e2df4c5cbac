"""Races: a round's candidates scored a few rows at a time, each until it can no longer win.

Rows are scored as penalties, how far a value falls short of the best value there is. Penalties are
never negative, so what a candidate has collected only grows: once it is more than a rival's total,
the candidate has lost, and no other row need be scored. Which rows decide earliest is a guess (those
that the current model finds hardest, and a few of the others, as a broken model may do well on the
hardest); the order of rows and the choice of the leader change what a race costs, never who wins.

Source of the idea: Maron and Moore 1994, "Hoeffding Races", NIPS 6. Theirs stops on statistical
bounds only; `exact_race` stops on certainties.

Of several target domains, a row's penalty is weighted (`Domains.row_weights`) so that what has been
collected bounds the objective: the sum over rows for a mean of domains, the largest of the domains' sums
for the worst of them. Either only grows.

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
# Rows other than the hardest that all candidates are scored on first.
NUM_OTHERS = 8


class Field:
    """What is known of a round's candidates: penalties and losses by row, NaN where not scored."""

    def __init__(self, round_: Round, by_loss: bool) -> None:
        self.round = round_
        self.by_loss = by_loss
        best_value = round_.probe.best_value
        assert best_value is not None, "what is no mean over rows is scored in full"
        self.best_value = best_value
        self.num_rows = round_.probe.num_rows
        self.domains = round_.probe.domains
        self.weights = self.domains.row_weights
        self.difficulty = round_.current()[1]
        shape = (max(round_.layers) + 1, self.num_rows)
        self.values, self.losses = np.full(shape, np.nan), np.full(shape, np.nan)
        self.finished: dict[int, Candidate] = {}

    @property
    def penalties(self) -> np.ndarray:
        """Weighted penalties (choices, N) of the number that the criterion compares."""
        return self._weighted(self.values, self.losses)

    @property
    def is_right_or_wrong(self) -> bool:
        """Tell whether penalties are 0 or all of a row's weight."""
        penalties = self.current_penalties()
        return bool(((penalties == 0) | (penalties == self.weights)).all())

    def current_penalties(self) -> np.ndarray:
        """Return the weighted penalties (N,) of the model as it stands."""
        return self._weighted(*self.round.current())

    def _weighted(self, values: np.ndarray, losses: np.ndarray) -> np.ndarray:
        penalties = losses if self.by_loss else np.abs(self.best_value - values)
        return np.asarray(penalties * self.weights)

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
        return self.domains.total(self.sums(layer))

    def sums(self, layer: int) -> np.ndarray:
        """Return what a candidate has collected so far in each domain, (D,)."""
        return np.asarray([np.nansum(part) for part in self.domains.split(self.penalties[layer])])

    def finish(self, candidate: Candidate) -> None:
        """Record a candidate that is done, in the journal as well."""
        self.finished[candidate.layer] = candidate
        self.round.on_finished(candidate)

    def whole(self, layer: int) -> Candidate:
        """Return a candidate that was scored on all rows."""
        metric = self.domains.metric(self.values[layer], np.mean, self.round.probe.higher_is_better)
        loss = self.domains.metric(self.losses[layer], np.mean, False)
        return Candidate(layer, self.merit(loss if self.by_loss else metric), metric, loss)

    def beaten(self, layer: int, leader: int) -> Candidate:
        """Return a candidate that has lost, with the best that it could still have reached."""
        rows = int(np.isfinite(self.values[layer]).sum())
        if rows == self.num_rows:
            return self.whole(layer)
        partial = self.partial(layer)
        bound = partial / self.num_rows if self.by_loss else self.at(partial)
        return Candidate(
            layer, self.merit(bound), outcome="abandoned", rows=rows, bound=bound, against=leader
        )

    def at(self, penalty: float) -> float:
        """Return the metric at a total penalty."""
        best, mean = self.best_value, penalty / self.num_rows
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
    field.score(round_.layers, _opening(field))
    leader = _leader(field)
    field.score([leader], field.unseen(leader))
    field.finish(field.whole(leader))
    # What the leader finds hard as well decides soonest.
    field.difficulty = field.difficulty + field.losses[leader]
    alive = [layer for layer in round_.layers if layer != leader]
    while True:
        for layer in alive:
            if _has_lost(field, layer, leader):
                field.finish(field.beaten(layer, leader))
        alive = [layer for layer in alive if layer not in field.finished]
        if not alive:
            break
        behind, rows = _furthest_behind(field, alive)
        if len(rows) == 0:
            for layer in alive:
                field.finish(field.whole(layer))
            break
        shortfall = min(field.partial(leader) - field.partial(layer) for layer in behind)
        field.score(behind, rows[: _wave(field, shortfall)])
    return tuple(field.finished[layer] for layer in sorted(field.finished))


def _furthest_behind(field: Field, alive: Collection[int]) -> tuple[list[int], np.ndarray]:
    """Return the candidates scored on the fewest rows, and rows for them: first those that the next have.

    So no row is scored with these candidates now and with those later, each time with a prefix.
    """
    unseen = {layer: field.unseen(layer) for layer in alive}
    counts = sorted({len(rows) for rows in unseen.values()}, reverse=True)
    behind = [layer for layer in alive if len(unseen[layer]) == counts[0]]
    rows = unseen[behind[0]]
    if len(counts) > 1:
        ahead = next(layer for layer in alive if len(unseen[layer]) == counts[1])
        rows = rows[~np.isin(rows, unseen[ahead])]
    return behind, rows


def _opening(field: Field) -> np.ndarray:
    """Return the rows that all candidates are scored on: the hardest, and every so-manieth of the others.

    As many of the hardest as the current model has whole mistakes: fewer cannot decide between
    models about as good.
    """
    order = np.argsort(-field.difficulty, kind="stable")
    penalties = field.current_penalties()
    largest = float(penalties.max(initial=0.0))
    mistakes = math.ceil(float(penalties.sum()) / largest) if largest > 0 else 0
    num_hardest = min(field.num_rows, max(SMALLEST_WAVE, mistakes))
    others = order[num_hardest:]
    step = max(1, len(others) // NUM_OTHERS)
    return np.concatenate([order[:num_hardest], others[step // 2 :: step][:NUM_OTHERS]])


def _leader(field: Field) -> int:
    """Return the candidate to score in full first; whoever may be it is scored on more rows before.

    A leader that does not win costs the rows of a whole pass, and holds the others to a worse total. Who has
    not yet collected the total that is expected of the best has to be scored on more rows in any case: such
    candidates are scored together, on one recording of a row's prefix, until one of them is left.
    """
    close = list(field.round.layers)
    while True:
        expected = {layer: _expected(field, layer) for layer in close}
        best = min(close, key=lambda layer: (expected[layer], layer))
        close = [layer for layer in close if field.partial(layer) <= expected[best] or layer == best]
        unseen = field.unseen(best)
        if len(close) == 1 or len(unseen) == 0:
            return best
        shortfall = min(expected[best] - field.partial(layer) for layer in close)
        field.score(close, unseen[: _wave(field, shortfall)])


def _expected(field: Field, layer: int) -> float:
    """Return a guess at a candidate's total penalty, from the rows that it was scored on.

    Dropping a layer shifts and stretches the current model's numbers, by about as much on one row as
    on another: a straight line through the margins of the rows seen gives the others, and right and
    wrong answers are its side of a threshold, a line's scatter away. Other penalties are taken to grow in
    proportion to the current model's.
    """
    from scipy.special import ndtr  # scipy.stats takes longer to import than some races take

    current, seen = field.current_penalties(), np.isfinite(field.values[layer])
    if not field.is_right_or_wrong:
        share = float(current[seen].sum()) / max(float(current.sum()), ROUNDING)
        return field.partial(layer) / max(share, ROUNDING)
    margins, own = _margins(field.round.current()[1]), _margins(field.losses[layer])
    line = np.stack([np.ones(field.num_rows), margins], axis=1)
    # The change is what is fitted: where rows say little, the line of least norm is no change.
    change = np.linalg.lstsq(line[seen], (own - margins)[seen], rcond=None)[0]
    guesses = margins + line @ change
    scatter = math.sqrt((float(np.square(own - guesses)[seen].sum()) + 1) / seen.sum())
    # Below the threshold are as many rows as the model gets wrong.
    threshold = np.quantile(margins, (current > 0).mean())
    wrong = ndtr((threshold - guesses) / scatter) * field.weights
    split = zip(field.domains.split(wrong), field.domains.split(seen), strict=True)
    unseen = np.asarray([part[~known].sum() for part, known in split])
    return field.domains.total(field.sums(layer) + unseen)


def _margins(losses: np.ndarray) -> np.ndarray:
    """Return the log-odds of the right answer whose negative log-likelihood is the loss."""
    right = np.clip(np.exp(-losses), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(right / (1 - right)))


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
