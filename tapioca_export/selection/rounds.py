"""What a search is asked to do, what it may ask, and the round that a criterion is asked in.

Knows nothing about any criterion, or how numbers are measured. Shapes: N rows that drive the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..artifacts import Candidate, Choices, Deviation, Evaluation, LayerProfile, Numbering
from ..domains import Domains
from ..errors import ConfigError

PICKS = ("best", "bsba", "final")
# Criteria without a meaning for a part of a layer.
OF_WHOLE_LAYERS = ("block-influence", "angular-distance")


class Prober(Protocol):
    """What a criterion may ask; `profiling.Probe` is the real one.

    What is called a layer here is what may be dropped one by one: a layer, or its attention or MLP.
    """

    num_layers: int
    num_rows: int
    num_answers: int
    select_on: str
    ledger: Any
    watch: Callable[[int], None]

    @property
    def is_labelled(self) -> bool:
        """Tell whether the rows that drive the search have labels."""

    @property
    def higher_is_better(self) -> bool:
        """Tell which way the task metric improves."""

    @property
    def best_value(self) -> float | None:
        """What no row's value can be better than; None where the metric is no mean over rows."""

    @property
    def domains(self) -> Domains:
        """Where the rows of each domain stand, and how the domains' numbers become one."""

    def scores(
        self, dropped: Sequence[int], layers: Sequence[int], rows: np.ndarray
    ) -> Mapping[Any, tuple[np.ndarray, np.ndarray]]:
        """Return values and losses of rows with `dropped` and one more layer skipped, layer by layer.

        A domain's metric is the mean of its values, if it is a mean over rows.
        """

    def known(self, dropped: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return values and losses (N,) with the layers skipped, NaN where a row was not scored."""

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

    def turns(self, layers: Sequence[int], num_samples: int) -> Mapping[int, float]:
        """Return by how much the state that the head reads turns without each layer, on target samples."""

    def output_changes(self, layers: Sequence[int], num_samples: int) -> Mapping[int, float]:
        """Return by how much what the head says changes without each layer, on target samples."""

    def angular_distances(self, num_layers: int) -> tuple[float, ...]:
        """Return the mean angle between entering layer l and num_layers on, in half turns, for each l."""

    def magnitudes(self) -> tuple[float, ...]:
        """Return each layer's sum of absolute weights."""

    def sensitivities(self) -> tuple[float, ...]:
        """Return each layer's sum of |weight x gradient of the loss|."""


@dataclass(frozen=True)
class SelectionSettings:
    """How to search.

    `epsilon` is absolute, in units of the metric (0.08 is eight points of accuracy); None is no floor.
    `pick` is "best", "bsba", "final" or a number of layers. `drop` names the layers of criterion "fixed";
    `held` are layers that the architecture cannot do without. `search` is "greedy" (exact), "racing"
    (statistical, at `confidence`), "beam" (of `width`) or "exhaustive"; `full_scores` has every
    candidate scored on all rows. `shortlist` is how many layers tapioca proposes a round. A budget
    cuts the search: seconds, or candidates that were scored. `stacks` are the depths of a model's stacks
    by name, in the order in which they are counted; nothing where there is one. `scales` are what a layer
    may be multiplied by; with 0 alone, layers are dropped or stay. `parts` are those of a layer, where they
    are dropped one by one. What a search counts and combines are `Choices`: layers, or parts, at scales.
    """

    criterion: str = "tale"
    epsilon: float | None = 0.08
    pick: str = "best"
    max_drop_layers: int | None = None
    protect_first: int = 0
    protect_last: int = 0
    tie_break: str = "index"
    drop: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    seed: int = 0
    search: str = "greedy"
    full_scores: bool = False
    confidence: float = 0.99
    width: int = 3
    shortlist: int = 5
    budget_seconds: float | None = None
    budget_evaluations: int | None = None
    stacks: Mapping[str, int] = field(default_factory=dict)
    scales: tuple[float, ...] = (0.0,)
    parts: tuple[str, ...] = ()

    def choices(self, num_units: int) -> Choices:
        """Return how what may be done to layers, or parts, is named, and what may be done together."""
        num_layers = num_units // max(1, len(self.parts))
        return Choices(Numbering.of(self.stacks, num_layers, self.parts), self.scales)

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, before any work."""
        if self.pick not in PICKS and not self.pick.isdecimal():
            raise ConfigError(f"--pick {self.pick!r} is neither {', '.join(PICKS)} nor a number of layers.")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ConfigError(f"--epsilon {self.epsilon} must be a number of at least 0.")
        for name in ("protect_first", "protect_last"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 0.")
        if self.max_drop_layers is not None and self.max_drop_layers < 0:
            raise ConfigError("--max-drop-layers must be at least 0.")
        if bool(self.drop) != (self.criterion == "fixed"):
            raise ConfigError("--drop and --criterion fixed go together.", "Give both, or neither.")
        if self.max_drop_layers is not None and len(self.drop) > self.max_drop_layers:
            raise ConfigError(
                f"--drop names {len(self.drop)}, and --max-drop-layers {self.max_drop_layers} allows fewer.",
                "Leave one of them out.",
            )
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"--confidence {self.confidence} must be from 0.5 to below 1, such as 0.99.")
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise ConfigError(f"--budget-seconds {self.budget_seconds} must be above 0.")
        if self.parts and self.criterion in OF_WHOLE_LAYERS:
            raise ConfigError(
                f"Criterion {self.criterion} reads the residual stream between layers; "
                "between the parts of one there is none to read.",
                "Choose another --criterion, or --granularity block.",
            )
        if self.search == "racing" and self.full_scores:
            raise ConfigError("--full-scores and --search racing exclude each other.", "Give one of them.")


@dataclass(frozen=True)
class Round:
    """The state a criterion is asked in: layers dropped so far, in order, and layers left to try.

    `on_finished` is told each candidate as soon as it is scored.
    """

    probe: Prober
    dropped: tuple[int, ...]
    layers: tuple[int, ...]
    settings: SelectionSettings
    on_finished: Callable[[Candidate], None] = lambda candidate: None

    def current(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values and losses (N,) of the model as it stands.

        Rows that it was not scored on are those of the last model that was.
        """
        values, losses = self.probe.known(self.dropped)
        for depth in range(len(self.dropped) - 1, -1, -1):
            if not (missing := np.isnan(losses)).any():
                break
            before = self.probe.known(self.dropped[:depth])
            values, losses = (
                np.where(missing, old, new) for old, new in zip(before, (values, losses), strict=True)
            )
        return values, losses


@dataclass(frozen=True)
class Scored:
    """A criterion's answer: its candidates, or the reason to stop before dropping any of them."""

    candidates: tuple[Candidate, ...]
    stop: str | None = None
