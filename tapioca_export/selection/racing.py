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
from ..domains import Domains
from .rounds import Round

# Beyond rounding, a sum that is larger is larger in any order of summation.
ROUNDING = 1e-9
# A race of few rows at a time starts the machine more often than it saves rows.
SMALLEST_WAVE = 16
# Rows other than the hardest that all candidates are scored on first.
NUM_OTHERS = 8
# By how much the rows of a statistical race grow from one look to the next.
GROWTH = 1.3


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


def statistical_race(round_: Round, by_loss: bool = False) -> tuple[Candidate, ...]:
    """Find a winner that, at the confidence asked for, is as good as the best within what rows can tell.

    Candidates are scored on the rows that the current model doubts most, which is where models differ,
    and on a growing random sample of the others. What a candidate will collect on rows that were not
    scored is estimated from the sample, shrunk towards what the candidates have in common (empirical
    Bayes: Efron and Morris 1975, JASA 70). A candidate is stopped once it is, at `confidence`, not
    better than the leader by more than one standard error of the leader's metric: less than that the
    rows that drive the search cannot tell (the one-standard-error rule of Breiman et al. 1984, CART).
    The confidence is of each comparison. When every row was scored, the comparison is exact.

    How much one row's change varies is estimated from all candidates together, as if alike: of those that
    are left, from the sample; or of those that were stopped too, and of the less doubtful half of the doubted
    rows, which are taken to change no less than rows that are doubted even less. The lower counts, but no
    less than the sample of those that are left has shown. On rows of real classifiers, sharing so missed no
    other winner than not sharing.

    Returns:
        Candidates in the order of layers, with estimates where not all rows were scored.
    """
    field, settings = Field(round_, by_loss), round_.settings
    doubted = np.argsort(-_doubt(field), kind="stable")
    shuffled = _shuffled(field.domains, settings.seed)
    num_doubted, num_sampled = (max(SMALLEST_WAVE, field.num_rows // part) for part in (16, 32))
    alive = list(round_.layers)
    while True:
        rows = np.union1d(doubted[:num_doubted], shuffled[:num_sampled])
        seen = np.isfinite(field.values[alive[0]])  # all that are left were scored on the same rows
        field.score(alive, rows[~seen[rows]])
        forecast = Forecast(field, alive, doubted[:num_doubted], shuffled[:num_sampled])
        leader = min(alive, key=lambda layer: (forecast.totals[layer], layer))
        rivals = [layer for layer in alive if layer != leader]
        for layer in rivals:
            bound = forecast.totals[layer] - forecast.error(settings.confidence)
            if bound > forecast.totals[leader] - forecast.standard_error(leader) or forecast.is_exact:
                field.finish(_estimated(field, forecast, layer, bound, leader))
        alive = [layer for layer in alive if layer not in field.finished]
        # Even alone, a winner is scored until its own total is known to a standard error.
        if alive == [leader] and forecast.deviation <= forecast.standard_error(leader):
            bound = forecast.totals[leader] - forecast.error(settings.confidence) / math.sqrt(2)
            field.finish(_estimated(field, forecast, leader, bound))
            return tuple(field.finished[layer] for layer in sorted(field.finished))
        num_doubted, num_sampled = (math.ceil(number * GROWTH) for number in (num_doubted, num_sampled))


def _shuffled(domains: Domains, seed: int) -> np.ndarray:
    """Return all rows in random order, of which any first part holds its share of each domain."""
    generator = np.random.default_rng(seed)
    rows = [place.start + generator.permutation(place.stop - place.start) for place in domains.parts]
    ranks = [(np.arange(size) + 0.5) / size for size in domains.sizes]
    return np.concatenate(rows)[np.argsort(np.concatenate(ranks), kind="stable")]


def _doubt(field: Field) -> np.ndarray:
    """Return how likely each row is to change with the model, (N,): probability on the other side.

    A row that is right changes with the probability left to wrong answers, one that is wrong with that
    of the right answer; where values are no rights and wrongs, large penalties move most.
    """
    penalties, losses = field.current_penalties(), field.round.current()[1]
    if not field.is_right_or_wrong:
        return penalties
    right = np.exp(-losses)
    return np.asarray(np.where(penalties == 0, 1 - right, right) * field.weights)


class Forecast:
    """What each candidate's penalties come to over all rows, from those that were scored.

    Args:
        field: Penalties seen so far.
        alive: Candidates scored on the same rows.
        doubted: Rows that were all scored.
        sampled: Rows drawn from all rows in random order.
    """

    def __init__(
        self, field: Field, alive: Collection[int], doubted: np.ndarray, sampled: np.ndarray
    ) -> None:
        sample = sampled[~np.isin(sampled, doubted)]
        seen = np.union1d(doubted, sample)
        self.field = field
        self.num_seen = len(seen)
        self.num_unseen = field.num_rows - len(seen)
        current = field.current_penalties()
        # Changes against the current model: what it gets wrong anyway is no difference.
        changes = field.penalties - current
        of_alive = changes[list(alive)]
        means = of_alive[:, sample].mean(axis=1) if len(sample) else np.zeros(len(of_alive))
        # One more change than was seen: a few rows without any do not prove that there are none.
        whole = field.weights if field.is_right_or_wrong else current
        largest = float(np.square(whole).max(initial=0.0))
        num_sample = max(1, len(sample))
        alone = (float(np.square(of_alive[:, sample]).sum()) + largest) / (len(means) * num_sample + 1)
        # Who was stopped tells as well, and so do doubted rows: those that were not seen are doubted less.
        telling = np.union1d(doubted[len(doubted) // 2 :], sample)
        squares = np.square(changes[:, telling])
        shared = (float(np.nansum(squares)) + largest) / (np.isfinite(squares).sum() + 1)
        # Who is left may change more than the others, and rows that were not seen more than doubted ones.
        least = float(np.square(of_alive[:, sample]).mean()) if len(sample) else 0.0
        self.variance = min(alone, max(shared, least))  # of one row's change
        noise = self.variance / num_sample
        spread = max(0.0, float(means.var(ddof=1)) - noise) if len(means) > 1 else 0.0
        shrinkage = spread / (spread + noise) if spread + noise > 0 else 0.0
        self.mean_variance = shrinkage * noise  # of a candidate's mean change, after shrinking
        expected = means.mean() + shrinkage * (means - means.mean())
        self.totals = {
            layer: float(current.sum() + changes[layer, seen].sum() + self.num_unseen * mean)
            for layer, mean in zip(alive, expected, strict=True)
        }

    @property
    def is_exact(self) -> bool:
        """Tell whether every row was scored."""
        return self.num_unseen == 0

    @property
    def deviation(self) -> float:
        """The standard deviation of a total, for the rows that were not scored."""
        return math.sqrt(self.num_unseen**2 * self.mean_variance + self.num_unseen * self.variance)

    def error(self, confidence: float) -> float:
        """Return the error of a difference of two totals that is not exceeded at the confidence."""
        from scipy.special import ndtri

        return float(ndtri(confidence)) * math.sqrt(2) * self.deviation

    def standard_error(self, layer: int) -> float:
        """Return the standard error of a candidate's total, as a sample of its domain."""
        mean = self.totals[layer] / self.field.num_rows
        seen = self.field.penalties[layer][np.isfinite(self.field.values[layer])]
        if self.field.is_right_or_wrong:  # rows of a domain are a sample of that domain
            spread = float(np.square(self.field.weights).mean())
            return math.sqrt(max(0.0, self.field.num_rows * mean * (1 - mean) * spread))
        return math.sqrt(self.field.num_rows) * float(seen.std())


def _estimated(
    field: Field, forecast: Forecast, layer: int, bound: float, leader: int | None = None
) -> Candidate:
    """Return a candidate with its estimate, or in full where every row was scored."""
    if forecast.is_exact:
        return field.whole(layer)
    seen = np.isfinite(field.values[layer])
    losses, current = (part * field.weights for part in (field.losses[layer], field.round.current()[1]))
    loss = float(losses[seen].sum() + np.nansum(current[~seen])) / field.num_rows
    total = forecast.totals[layer]
    metric = None if field.by_loss else field.at(total)
    return Candidate(
        layer,
        field.merit(total / field.num_rows if metric is None else metric),
        metric,
        total / field.num_rows if field.by_loss else loss,
        "estimated",
        rows=forecast.num_seen,
        bound=max(0.0, bound) / field.num_rows if field.by_loss else field.at(max(0.0, bound)),
        against=leader,
    )
