"""Statistical races: a round's candidates scored until they are, at a confidence, as good as beaten.

What a candidate would collect on rows that were not scored is a forecast from a sample of them. Knows
nothing about how a row is scored. Shapes: N rows, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from ..artifacts import Candidate
from ..domains import Domains
from .racing import SMALLEST_WAVE, Field
from .rounds import Round

# By how much the rows grow from one look to the next.
GROWTH = 1.3


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
    less than the sample of those that are left has shown.

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
