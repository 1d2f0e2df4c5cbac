"""Rows whose truth is known: two models' results a row, drawn without end.

Each population is a task's rows as a benchmark has them, (N,) or (N, k) values of the original and of the
pruned model, from distributions that are written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tapioca_export.domains import Domains
from tapioca_export.tasks import TASKS, Scores, Task
from tapioca_export.tasks.feature_extraction import PAIRS
from tapioca_export.tasks.text_generation import PERPLEXITY

Values = np.ndarray
# Draws so many rows: the original's values and the pruned model's.
Draw = Callable[[np.random.Generator, int], tuple[Values, Values]]
TRUTH_ROWS = 4_000_000


@dataclass(frozen=True)
class Population:
    """What rows may be drawn from.

    Args:
        name: In the table.
        task: Makes the metric.
        draws: What each target domain's rows come from; one, where there is one domain.
        objective: What the metrics of several domains become.
        has_effect: The models differ in truth.
        is_costly: A comparison takes a second: fewer are made, with the fewest rows.
    """

    name: str
    task: Task
    draws: tuple[Draw, ...]
    objective: str = "mean"
    has_effect: bool = True
    is_costly: bool = False

    def sample(self, generator: np.random.Generator, num_rows: int) -> tuple[Scores, Scores, Domains]:
        """Draw as many rows of each domain; returns both models' scores, and which row is whose."""
        parts = [draw(generator, num_rows) for draw in self.draws]
        sizes = {f"domain {number}": num_rows for number in range(len(parts))}
        values = (np.concatenate(model) for model in zip(*parts, strict=True))
        original, pruned = (Scores(model, np.zeros(len(model))) for model in values)
        return original, pruned, Domains.of(sizes, self.objective)

    @cached_property
    def truth(self) -> tuple[float, float]:
        """The metric of either model over rows without end: over four million."""
        generator, sums = np.random.default_rng(1), []
        for draw in self.draws:
            sums.append([float(self.task.aggregate(model)) for model in draw(generator, TRUTH_ROWS)])
        domains = Domains.of({str(number): 1 for number in range(len(sums))}, self.objective)
        better = self.task.higher_is_better
        original, pruned = (float(domains.combined(list(model), better)) for model in zip(*sums, strict=True))
        return original, pruned


def right_or_wrong(share: float, gained: float, lost: float) -> Draw:
    """Rows of which the original gets a share right, and the pruned one gains and loses some of all."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        kinds = generator.choice(4, num_rows, p=[share - lost, lost, gained, 1 - share - gained])
        return (kinds < 2).astype(float), np.isin(kinds, (0, 2)).astype(float)

    return draw


def squared_errors(change: float) -> Draw:
    """Squared errors that differ by orders of magnitude, and are multiplied by `change` on the whole."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        row, own = generator.normal(0, 1, num_rows), generator.normal(0, 0.4, (2, num_rows))
        return np.exp(row + own[0]), change * np.exp(row + own[1])

    return draw


def likelihoods(change: float) -> Draw:
    """Shares of the negative log-likelihood of all tokens, of texts of different lengths."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        row = generator.gamma(4, 0.8, num_rows)
        original, pruned = row * generator.lognormal(0, 0.1, (2, num_rows))
        return original, pruned * change

    return draw


def entities(right: float, pruned_right: float) -> Draw:
    """Counts of right, found and wanted entities: so many of those wanted are found, and some others."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        wanted, hard = generator.poisson(2, num_rows), generator.beta(4, 4, num_rows) - 0.5
        models = []
        for share in (right, pruned_right):
            found = generator.binomial(wanted, np.clip(share + 0.3 * hard, 0, 1))
            models.append(np.stack([found, found + generator.poisson(0.4, num_rows), wanted], axis=1))
        return models[0].astype(float), models[1].astype(float)

    return draw


def similarities(noise: float, pruned_noise: float) -> Draw:
    """Cosines that follow scores with some noise."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        wanted, shared = generator.normal(size=num_rows), generator.normal(size=num_rows)
        models = [
            np.stack([wanted + size * (shared + generator.normal(size=num_rows)), wanted], axis=1)
            for size in (noise, pruned_noise)
        ]
        return models[0], models[1]

    return draw


def speedups(generator: np.random.Generator, num_rounds: int) -> Values:
    """Ratios of times a round, (num_rounds,), of median 1.25, with a burst of something else at times."""
    ratios = 1.25 * generator.lognormal(0, 0.05, num_rounds)
    bursts = generator.choice([1.0, 2.0, 0.5], num_rounds, p=[0.94, 0.03, 0.03])
    return np.asarray(ratios * bursts)


def shares_of_words(right: float, pruned_right: float) -> Draw:
    """F1 of answers: all of most, nothing of some, and something of the others; the same rows are hard."""

    def draw(generator: np.random.Generator, num_rows: int) -> tuple[Values, Values]:
        hard, partly = generator.random(num_rows), generator.beta(3, 3, num_rows)
        models = [
            np.where(
                hard + generator.normal(0, 0.05, num_rows) < share, 1.0, np.where(hard < 0.9, partly, 0.0)
            )
            for share in (right, pruned_right)
        ]
        return models[0], models[1]

    return draw


CLASSIFICATION, REGRESSION = TASKS["text-classification"], TASKS["polynomial-regression"]
TAGGING, ANSWERING = TASKS["token-classification"], TASKS["question-answering"]
HARD, EASY = right_or_wrong(0.6, 0.09, 0.05), right_or_wrong(0.9, 0.02, 0.06)
_ALL = (
    Population("accuracy", CLASSIFICATION, (right_or_wrong(0.7, 0.08, 0.05),)),
    Population("accuracy, no effect", CLASSIFICATION, (right_or_wrong(0.9, 0.05, 0.05),), has_effect=False),
    Population("nmse", REGRESSION, (squared_errors(0.8),)),
    Population("nmse, no effect", REGRESSION, (squared_errors(1.0),), has_effect=False),
    Population("F1 a row", ANSWERING, (shares_of_words(0.75, 0.8),)),
    Population("log-perplexity", PERPLEXITY, (likelihoods(0.97),)),
    Population("entity F1", TAGGING, (entities(0.75, 0.8),), is_costly=True),
    Population("entity F1, no effect", TAGGING, (entities(0.75, 0.75),), has_effect=False, is_costly=True),
    Population("Spearman", PAIRS, (similarities(0.5, 0.4),), is_costly=True),
    Population("Spearman, no effect", PAIRS, (similarities(0.5, 0.5),), has_effect=False, is_costly=True),
    Population("accuracy, mean of two domains", CLASSIFICATION, (HARD, EASY), is_costly=True),
    Population("accuracy, worst of two domains", CLASSIFICATION, (HARD, EASY), "worst", is_costly=True),
    Population("accuracy, worst of two alike", CLASSIFICATION, (HARD, HARD), "worst", is_costly=True),
    Population("accuracy, worst of four alike", CLASSIFICATION, (HARD,) * 4, "worst", is_costly=True),
    Population("nmse, worst of two alike", REGRESSION, (squared_errors(0.8),) * 2, "worst", is_costly=True),
)
POPULATIONS: Mapping[str, Population] = {population.name: population for population in _ALL}
