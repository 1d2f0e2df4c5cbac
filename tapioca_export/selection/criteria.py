"""Criteria: with these layers gone, how good is it to drop each of the others?

To add one, write a function and register it in `CRITERIA`; its first docstring line is its help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..artifacts import Candidate, Deviation, Evaluation, LayerProfile
from ..errors import ConfigError, SelectionError
from ..registry import Table

PICKS = ("best", "bsba", "final")


class Prober(Protocol):
    """What a criterion may ask; `profiling.Probe` is the real one."""

    num_layers: int
    select_on: str
    num_evaluations: int
    layer_forwards: int
    plain_layer_forwards: int

    @property
    def is_labelled(self) -> bool:
        """Tell whether the rows that drive the search have labels."""

    @property
    def higher_is_better(self) -> bool:
        """Tell which way the task metric improves."""

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        """Return metric and mean loss with the layers skipped."""

    def metrics(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return the same with one more layer skipped, layer by layer."""

    def profile(self, name: str, dropped: Collection[int] = ()) -> LayerProfile:
        """Return the profile on "id" or "target" samples."""

    def deviation(self, dropped: Collection[int] = (), over: Collection[int] | None = None) -> Deviation:
        """Return how far the target's profile is from the full model's ID profile."""

    def deviations(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return the target's mean deviation with one more layer skipped, layer by layer."""


@dataclass(frozen=True)
class SelectionSettings:
    """How to search.

    `epsilon` is absolute, in units of the metric (0.08 is eight points of accuracy). `pick` is
    "best", "bsba", "final" or a number of layers. `drop` names the layers of criterion "fixed";
    `held` are layers that the architecture cannot do without.
    """

    criterion: str = "tale"
    epsilon: float = 0.08
    pick: str = "best"
    max_drop_layers: int | None = None
    protect_first: int = 0
    protect_last: int = 0
    tie_break: str = "index"
    drop: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, before any work."""
        if self.pick not in PICKS and not self.pick.isdecimal():
            raise ConfigError(f"--pick {self.pick!r} is neither {', '.join(PICKS)} nor a number of layers.")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ConfigError(f"--epsilon {self.epsilon} must be a number of at least 0.")
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 0.")
        if self.max_drop_layers is not None and self.max_drop_layers < 0:
            raise ConfigError("--max-drop-layers must be at least 0.")
        if bool(self.drop) != (self.criterion == "fixed"):
            raise ConfigError("--drop and --criterion fixed go together.", "Give both, or neither.")


@dataclass(frozen=True)
class Round:
    """The state a criterion is asked in: layers dropped so far, in order, and layers left to try."""

    probe: Prober
    dropped: tuple[int, ...]
    layers: tuple[int, ...]
    settings: SelectionSettings


@dataclass(frozen=True)
class Scored:
    """A criterion's answer: its candidates, or the reason to stop before dropping any of them."""

    candidates: tuple[Candidate, ...]
    stop: str | None = None


Criterion = Callable[[Round], Scored]
CRITERIA: Table[Criterion] = Table("criterion")


def _need_labels(round_: Round, name: str) -> None:
    if not round_.probe.is_labelled:
        raise SelectionError(
            f"Criterion {name} needs labels, and the {round_.probe.select_on} rows have none.",
            "Label them, use --select-on id, or choose --criterion tapioca.",
        )


def _candidates(evaluations: Mapping[int, Evaluation], score: Callable[[Evaluation], float]) -> Scored:
    return Scored(
        tuple(Candidate(layer, score(e), e.metric, e.loss) for layer, e in sorted(evaluations.items()))
    )


@CRITERIA.add("tale")
def tale(round_: Round) -> Scored:
    """Drop the layer whose removal leaves the best task metric (needs labels).

    Every candidate is scored with what is dropped so far plus itself removed. The search ends when
    the best candidate falls below a floor fixed at baseline - epsilon.

    Source: Naim et al. 2025, "TALE", arXiv:2510.22767, algorithm as in the released search code.
    """
    _need_labels(round_, "tale")
    sign = 1 if round_.probe.higher_is_better else -1
    evaluations = round_.probe.metrics(round_.dropped, round_.layers)
    return _candidates(evaluations, lambda e: sign * e.metric if e.metric is not None else math.nan)


@CRITERIA.add("loss")
def loss(round_: Round) -> Scored:
    """Drop the layer whose removal leaves the lowest mean loss (needs labels).

    Deviation from the source: the task's own loss instead of next-token loss, and no layer is
    protected unless --protect-first and --protect-last say so.

    Source: Song et al. 2024, "SLEB", arXiv:2402.09025, algorithm 1.
    """
    _need_labels(round_, "loss")
    evaluations = round_.probe.metrics(round_.dropped, round_.layers)
    return _candidates(evaluations, lambda e: -e.loss if e.loss is not None else math.nan)


@CRITERIA.add("tapioca")
def tapioca(round_: Round) -> Scored:
    """Drop the layer whose removal brings the target's geometry closest to ID (needs no labels).

    The score is by how much the target's mean deviation from the ID norm and distance profiles
    falls. Ends when the deviation is within the ID noise floor, or no removal lowers it.

    Source: this project's definition. Sharma et al. 2026, arXiv:2605.14738, observe the deviation and
    its repair by pruning; they propose no selection rule, and the paper's formulas were not available.
    """
    probe = round_.probe
    now = probe.deviation(round_.dropped)
    if now.mean <= now.noise_floor.mean:
        return Scored((), "the target deviates from ID no more than two halves of ID do")
    evaluations = probe.deviations(round_.dropped, round_.layers)
    if probe.is_labelled:
        # The metric has no say in the score; it is there so that the report can check the choice.
        checked = probe.metrics(round_.dropped, round_.layers)
        evaluations = {
            n: Evaluation(checked[n].metric, checked[n].loss, e.deviation) for n, e in evaluations.items()
        }
    # A fall counts on the boundaries that both models have: dropping an identity scores nothing.
    scores = {
        n: probe.deviation(round_.dropped, over={*round_.dropped, n}).mean - (e.deviation or 0.0)
        for n, e in evaluations.items()
    }
    scored = Scored(tuple(Candidate(n, scores[n], e.metric, e.loss) for n, e in sorted(evaluations.items())))
    if max(candidate.score for candidate in scored.candidates) <= 0:
        return Scored(scored.candidates, "no removal brings the target's profiles closer to ID")
    return scored


@CRITERIA.add("block-influence")
def block_influence(round_: Round) -> Scored:
    """Drop the layer that changes the residual stream least (needs no labels).

    The score is minus the block influence, 1 - mean over real tokens of cos(input, output), measured
    once on the full model.

    Source: Men et al. 2024, "ShortGPT", arXiv:2403.03853, definition of Block Influence.
    """
    influences = round_.probe.profile(round_.probe.select_on).influences
    return Scored(tuple(Candidate(n, -float(influences[n] or 0.0)) for n in round_.layers))


@CRITERIA.add("random")
def random(round_: Round) -> Scored:
    """Drop layers in a seeded random order: the baseline every criterion has to beat.

    Source: a control, as used throughout the depth-pruning literature.
    """
    order = np.random.default_rng(round_.settings.seed).permutation(round_.probe.num_layers)
    return Scored(tuple(Candidate(n, float(order[n])) for n in round_.layers))


@CRITERIA.add("last")
def last(round_: Round) -> Scored:
    """Drop the deepest layer first.

    Source: Gromov et al. 2024, arXiv:2403.17887, the simple variant (theirs keeps the very last
    layer: --protect-last 1).
    """
    return Scored(tuple(Candidate(n, float(n)) for n in round_.layers))


@CRITERIA.add("fixed")
def fixed(round_: Round) -> Scored:
    """Drop the layers named by --drop, in that order.

    Source: the user.
    """
    order = round_.settings.drop
    return Scored(tuple(Candidate(n, -float(order.index(n))) for n in round_.layers))
