"""Which criterion without labels foretells best, by the bank that criteria.py measures.

Half of the bank's models choose it, and what it is worth is told on the other half; then each family in turn
has no say and is told. Knows nothing about how anything was measured.

A criterion is judged by Spearman's rank correlation, over the layers of a case, of its numbers with what
dropping each layer gains on fresh rows; and by its regret, how much more of the error is gone where TALE
chooses with labels than where the criterion does, for one layer and for a quarter of them. There gains are
cut off at -1: by how much a choice is worse than twice the error says nothing. Cases of a model count as one,
and models of a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tapioca_export.benchmarking.statistics import interval

from .label_free import order, with_pairs

Model = Mapping[str, Any]
Bank = Mapping[str, Sequence[Model]]  # models by family
WORST_GAIN = -1.0
NUM_REPLICATES = 2000
INFLUENCE = "influence on the target"
# References: no layer at all, and the mean of all layers.
NOTHING, ANY = "nothing is dropped", "any layer (mean)"


@dataclass(frozen=True)
class Worth:
    """How good a criterion is: its correlation, and its regret with one layer and with several."""

    correlation: float
    regret: float
    regret_of_several: float


def families(file: Mapping[str, Any]) -> dict[str, list[Model]]:
    """Return the models of the bank by what is asked of them."""
    found: dict[str, list[Model]] = {}
    for model in file["models"]:
        found.setdefault(model["task"], []).append(model)
    return found


def halves(bank: Bank) -> tuple[Bank, Bank]:
    """Return the models that choose and those that tell, by turns over sizes and seeds."""
    chooses: dict[str, list[Model]] = {}
    tells: dict[str, list[Model]] = {}
    for family, models in bank.items():
        sizes = sorted({model["num_layers"] for model in models})
        for model in models:
            is_even = (sizes.index(model["num_layers"]) + model["seed"]) % 2 == 0
            (chooses if is_even else tells).setdefault(family, []).append(model)
    return chooses, tells


def names(bank: Bank) -> list[str]:
    """Return the criteria that every case has: what needs logits, a regression has not."""
    cases = [case for models in bank.values() for model in models for case in model["cases"]]
    shared = set.intersection(*(set(case["scores"]) for case in cases))
    return list(with_pairs({name: np.zeros(1) for name in cases[0]["scores"] if name in shared}))


class Worths:
    """What every criterion is worth on every model, (criteria, models, numbers of a `Worth`)."""

    def __init__(self, bank: Bank, candidates: Sequence[str] | None = None) -> None:
        self.bank, self.names = bank, list(candidates or names(bank))
        self.of_model = {
            family: np.asarray([_worths(model, self.names) for model in models]).swapaxes(0, 1)
            for family, models in bank.items()
        }

    def mean(self) -> np.ndarray:
        """Return the worth of every criterion, (criteria, 3)."""
        return np.mean([found.mean(axis=1) for found in self.of_model.values()], axis=0)

    def of(self, name: str) -> Worth:
        """Return the worth of one."""
        return Worth(*self.mean()[self.names.index(name)].tolist())

    def places(self) -> np.ndarray:
        """Return the mean place of every criterion: by correlation, and by both regrets."""
        return np.asarray(rankdata(self.mean() * (-1, 1, 1), axis=0).mean(axis=1))

    def best(self) -> str:
        """Return the criterion of the best mean place."""
        return self.names[int(self.places().argmin())]

    def replicates(self, name: str) -> np.ndarray:
        """Return the worth of one criterion when models are drawn anew, (R, 3); the same models for all."""
        generator = np.random.default_rng(0)
        places: dict[tuple[Any, ...], np.ndarray] = {}
        drawn = []
        for family, found in self.of_model.items():
            own = found[self.names.index(name)]  # (models, 3)
            # The same networks judged in two ways are drawn once.
            networks = tuple((model["num_layers"], model["seed"]) for model in self.bank[family])
            if networks not in places:
                places[networks] = generator.integers(len(own), size=(NUM_REPLICATES, len(own)))
            drawn.append(own[places[networks]].mean(axis=1))
        return np.mean(drawn, axis=0)

    def interval(self, name: str, instead_of: str | None = None) -> list[tuple[float, float]]:
        """Return 95 % intervals of a criterion's numbers, or of how much more they are than another's."""
        found = self.replicates(name)
        if instead_of is not None:
            found = found - self.replicates(instead_of)
        return [interval(found[:, place]) for place in range(len(fields(Worth)))]


def _worths(model: Model, wanted: Sequence[str]) -> np.ndarray:
    return np.mean([_of_case(case, wanted) for case in model["cases"]], axis=0)


def _of_case(case: Mapping[str, Any], wanted: Sequence[str]) -> np.ndarray:
    """Return the numbers of every criterion in one case, (criteria, 3)."""
    tale = np.asarray(_gains(case, case["tale"]))
    candidates = with_pairs({name: np.asarray(numbers) for name, numbers in case["scores"].items()})
    numbers = np.stack([candidates[name] for name in wanted])  # (criteria, L)
    regrets = [tale - _gains(case, order(found)) for found in numbers]
    return np.column_stack([_correlations(numbers, np.asarray(case["gains"])), regrets])


def _gains(case: Mapping[str, Any], layers: Sequence[int]) -> tuple[float, float]:
    """Return what is gained by dropping the first of the layers, and the first several, cut off."""
    sets = {tuple(found["drop"]): found["gain"] for found in case["sets"]}
    several = sets[tuple(sorted(layers[: case["num_dropped"]]))]
    return max(case["gains"][layers[0]], WORST_GAIN), max(several, WORST_GAIN)


def references(bank: Bank) -> dict[str, Worth]:
    """Return what no criterion at all is worth: to drop nothing, or any layer."""
    means = []
    for models in bank.values():
        for_models = []
        for model in models:
            rows = []
            for case in model["cases"]:
                tale, several = _gains(case, case["tale"])
                rows.append((tale, several, tale - np.maximum(case["gains"], WORST_GAIN).mean()))
            for_models.append(np.mean(rows, axis=0))
        means.append(np.mean(for_models, axis=0))
    one, several, any_ = np.mean(means, axis=0).tolist()
    return {NOTHING: Worth(0.0, one, several), ANY: Worth(0.0, any_, float("nan"))}


def recall(bank: Bank, name: str, size: int) -> float:
    """Return in what share of the cases a shortlist of layers holds the one that TALE chooses first.

    Of models with more layers than the shortlist has.
    """
    cases = [c for models in bank.values() for m in models if m["num_layers"] > size for c in m["cases"]]
    singles = [{part: np.asarray(case["scores"][part]) for part in name.split(" + ")} for case in cases]
    orders = [order(with_pairs(numbers)[name]) for numbers in singles]
    hits = [case["tale"][0] in found[:size] for case, found in zip(cases, orders, strict=True)]
    return float(np.mean(hits))


def _correlations(numbers: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row of (criteria, L) with gains (L,); 0 if one is constant."""
    ranks, fixed = rankdata(numbers, axis=1), rankdata(gains)
    ranks, fixed = ranks - ranks.mean(axis=1, keepdims=True), fixed - fixed.mean()
    scale = np.linalg.norm(ranks, axis=1) * np.linalg.norm(fixed)
    return np.divide(ranks @ fixed, scale, out=np.zeros(len(ranks)), where=scale > 0)


def beats(change: np.ndarray, intervals: Sequence[tuple[float, float]]) -> bool:
    """Tell whether one criterion is better than another, by how much more its numbers are (3,)."""
    return bool(intervals[0][0] > 0 and change[1] <= 0 and change[2] <= 0)
