"""Frozen dataclasses of `intervention.json`: what scaling layers' updates does, and controls beside it.

Layers are named as in `records`. alpha is the dose: 0 drops the layers, 1 leaves them as they are. A
deviation is the mean |log ratio| to the ID profile of the intact model, over the boundaries that are
left when the layers are gone. Intervals are 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..config import Scaling
from ..numbering import LayerName
from ..showing import Shown
from .records import SCHEMA_VERSION, SPARSE, Interval
from .results import Accuracy


@dataclass(frozen=True)
class Dose:
    """One alpha on the report rows of one distribution; what needs labels is None without.

    `difference` is the metric minus that of the intact model on the same rows, paired row by row.
    """

    alpha: float
    norm_deviation: float
    distance_deviation: float
    norm_deviation_interval: Interval
    distance_deviation_interval: Interval
    metric: float | None = None
    metric_interval: Interval | None = None
    loss: float | None = None
    loss_interval: Interval | None = None
    difference: float | None = None
    difference_interval: Interval | None = None

    @property
    def deviation(self) -> float:
        """The mean of the deviations of norms and of distances."""
        return (self.norm_deviation + self.distance_deviation) / 2


@dataclass(frozen=True)
class LayerDoses:
    """One layer alone at every alpha."""

    layer: LayerName
    id: tuple[Dose, ...]
    target: tuple[Dose, ...]


@dataclass(frozen=True)
class Trend:
    """How a quantity goes with alpha from 0 to 1: Spearman's correlation, and whether it goes one way.

    `change` is what dropping does: the quantity at alpha 0 minus that at alpha 1. "rises" or "falls":
    that is shown, and no step from one alpha to the next is shown to go the other way. "not monotone":
    steps either way are shown.
    """

    spearman: float
    interval: Interval
    change: float
    change_interval: Interval
    judgement: Literal["rises", "falls", "not monotone", "undecided"]


@dataclass(frozen=True)
class Flatness:
    """Whether ID stays within +-epsilon of the intact model at every alpha from 0 to 1.

    "flat": every interval of the difference lies within (each one a two one-sided test at 2.5 %).
    "not flat": one lies outside. `alpha` is where the difference is largest.
    """

    epsilon: float
    alpha: float
    difference: float
    interval: Interval
    judgement: Literal["flat", "not flat", "undecided"]


@dataclass(frozen=True)
class RandomSet:
    """As many other layers, dropped, on the target: gain in metric and share of the deviation removed."""

    layers: tuple[LayerName, ...]
    gain: float | None
    deviation_removed: float | None


@dataclass(frozen=True)
class Rank:
    """The selected layers among random ones; `selected`, `median` and `best` are what `RandomSet` holds.

    `num_as_good` random sets do as well or better; p = (1 + num_as_good) / (1 + num_sets).
    "distinguishable": p <= 0.05; or all sets there are were tried, and the selected one is better than
    each of them, the interval of the difference being above zero. `margin` is that interval, to the
    strongest of those compared. "undecided": fewer than 19 sets can show nothing by rank.
    """

    selected: float
    median: float
    best: float
    num_as_good: int
    num_sets: int
    p_value: float
    judgement: Literal["distinguishable", "not distinguishable", "undecided"]
    margin: Interval | None = None


@dataclass(frozen=True)
class RandomLayers:
    """Sets of layers drawn from those not selected, dropped jointly on the target.

    `num_possible` counts the sets that there are. Ranks are None where nothing could be compared.
    """

    sets: tuple[RandomSet, ...]
    num_possible: int
    metric: Rank | None = None
    deviation: Rank | None = None


@dataclass(frozen=True)
class NormControl:
    """The target with its norms behind the selected layers made those of ID; nothing is removed.

    `factors` are what the streams behind the layers were multiplied by. `excess` is the gain of dropping
    the layers minus the gain of this. "more": dropping gains more, its interval being above zero; "less":
    below.
    """

    factors: tuple[tuple[LayerName, float], ...]
    target: Dose
    excess: float | None = None
    excess_interval: Interval | None = None
    judgement: Literal["more", "less", "undecided"] | None = None


@dataclass(frozen=True)
class Intervention(Shown):
    """`intervention.json`: a dose-response of some layers, on report rows, with its controls.

    `id` and `target` are of all `layers` scaled together. `dropped` compares the model without the layers
    with the intact one by role, as `benchmark.json` does; a role without labels is absent. `noise_floor`
    is what two random halves of ID differ by, over the same boundaries: of norms, and of distances.
    `scaling` says what alpha multiplies: "block", what the layer adds as a whole; "branches", what each of
    its branches adds, which `prune --scale` can keep.

    Of several target domains, all numbers of the target are the objective's over the domains, and
    `targets` has the doses of each, by its name.
    """

    model: str
    task: str
    num_layers: int
    layers: tuple[LayerName, ...]
    alphas: tuple[float, ...]
    id: tuple[Dose, ...]
    target: tuple[Dose, ...]
    by_layer: tuple[LayerDoses, ...]
    random: RandomLayers
    norms: NormControl
    deviation_trend: Trend
    noise_floor: tuple[float, float]
    metric: str
    higher_is_better: bool
    dropped: dict[str, Accuracy] = field(default_factory=dict)
    metric_trend: Trend | None = None
    flatness: Flatness | None = None
    verdict: tuple[str, ...] = ()
    num_id: int = 0
    num_target: int = 0
    seed: int = 0
    scaling: Scaling = field(default="block", metadata=SPARSE)
    stacks: dict[str, int] = field(default_factory=dict)
    layer_forwards: int = 0
    seconds: float = 0.0
    objective: str | None = field(default=None, metadata=SPARSE)
    targets: dict[str, tuple[Dose, ...]] = field(default_factory=dict, metadata=SPARSE)
    kind: Literal["intervention"] = "intervention"
    schema_version: int = SCHEMA_VERSION

    def removed(self, dose: Dose) -> float | None:
        """Return the share of the target's deviation that a dose removes; None where there is none."""
        intact = next(found for found in self.target if found.alpha == 1).deviation
        return 1 - dose.deviation / intact if intact else None
