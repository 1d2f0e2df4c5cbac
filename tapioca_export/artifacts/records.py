"""Frozen dataclasses of profiles and selections, one JSON file each.

A layer index is always the 0-based index in the ORIGINAL model, in every field and file. Boundaries
are numbered 0..L: boundary 0 is the residual stream after the embedding, boundary l+1 the one after
layer l.

Of a model with several stacks, a layer is named `encoder:3`, its stack and its index there; `stacks`
maps their names to their depths, in the order in which a forward runs them. Lists with an entry a layer
or boundary then hold stack after stack, so that S stacks have L+S boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..numbering import PARTS, LayerName, Numbering, part_of
from ..showing import Shown
from .prompts import Prompting

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
Interval = tuple[float, float]
Proof = Literal["logits", "weights"]
# Of a field that stands in the file only where it holds something else than its default.
SPARSE = {"sparse": True}


@dataclass(frozen=True)
class Damping:
    """A layer that stays, and adds `scale` times what it did to the residual stream, branch by branch.

    x1 = x + scale A(x), x2 = x1 + scale M(x1), for a layer of attention A and feed-forward part M.
    """

    layer: LayerName
    scale: float


# --- profile.json ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerProfile:
    """Statistics of the residual stream of one model on one set of samples.

    `norms` and `distances` have L+1 entries (boundaries), `influences` L (layers); `num_tokens` counts
    those of all stacks. The boundary after a dropped layer repeats its predecessor; a dropped layer's
    influence is None. Bands are 95 % percentile bootstrap intervals over samples.
    """

    norms: tuple[float, ...]
    distances: tuple[float, ...]
    influences: tuple[float | None, ...]
    norms_band: tuple[Interval, ...]
    distances_band: tuple[Interval, ...]
    num_samples: int
    num_tokens: int


@dataclass(frozen=True)
class Curves:
    """One non-negative number a boundary for norms and distances, and the mean over all of them."""

    norms: tuple[float, ...]
    distances: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class Deviation:
    """How far a profile is from the ID profile: |log ratio| a boundary.

    `noise_floor` is what two random halves of the ID samples show between them: the 95th
    percentile over many halvings, a boundary and for the mean.
    """

    norms: tuple[float, ...]
    distances: tuple[float, ...]
    mean: float
    noise_floor: Curves


@dataclass(frozen=True)
class DomainProfile:
    """One of several target domains, before and after pruning, as in `Profile`."""

    target: LayerProfile
    deviation: Deviation
    pruned_target: LayerProfile | None = None
    pruned_deviation: Deviation | None = None
    deviation_removed: float | None = None


@dataclass(frozen=True)
class Profile(Shown):
    """`profile.json`: ID and target, before and after pruning, on the same axes.

    `position` says where the answer is read. `deviation_removed` is the share of the target's mean
    deviation that pruning removed (1: all of it, 0: none, negative: it grew).

    Of several targets, `targets` has each by its name. `target` is then the mean of their profiles
    (weighted where the objective is), `deviation` the objective's: mean, weighted mean or worst domain.
    """

    model: str
    task: str
    position: str
    layers: tuple[LayerName, ...]
    id: LayerProfile
    target: LayerProfile
    deviation: Deviation
    drop: tuple[LayerName, ...] = ()
    damp: tuple[Damping, ...] = field(default=(), metadata=SPARSE)
    pruned_id: LayerProfile | None = None
    pruned_target: LayerProfile | None = None
    pruned_deviation: Deviation | None = None
    deviation_removed: float | None = None
    stacks: dict[str, int] = field(default_factory=dict)
    objective: str | None = field(default=None, metadata=SPARSE)
    targets: dict[str, DomainProfile] = field(default_factory=dict, metadata=SPARSE)
    kind: Literal["profile"] = "profile"
    schema_version: int = SCHEMA_VERSION

    @property
    def numbering(self) -> Numbering:
        """How layers and boundaries are counted and named."""
        return Numbering.of(self.stacks, len(self.layers))

    @property
    def series(self) -> dict[str, LayerProfile]:
        """The profiles that were measured, by their names, in reading order."""
        parts = {
            "ID": self.id,
            "ID, pruned": self.pruned_id,
            "target": self.target,
            "target, pruned": self.pruned_target,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each boundary of each series: "ID", "target", each domain, "..., pruned".

        Columns: `series`; `boundary` and the `layer` before it (missing at the first boundary of a stack),
        by their names; that layer's `influence`; `norm` and `distance` with the bounds of their bands
        (`norm_low`, `norm_high`), and of targets the deviation from ID (`norm_deviation`) beside its
        `norm_noise_floor`. What was not measured is missing.
        """
        from .frames import profile_frame

        return profile_frame(self)


# --- selection.json -------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What is known of the model without some layers; None where it was not measured."""

    metric: float | None = None
    loss: float | None = None
    deviation: float | None = None


Outcome = Literal["full", "abandoned", "estimated"]


@dataclass(frozen=True)
class Candidate:
    """One layer tried in one round: dropped, or with `scale` damped (0 drops it).

    `score` is the criterion's own number (higher is dropped first); metric and mean loss are those
    of the model with this layer dropped too, on the rows that drive the search.

    `outcome` says how it was scored. "full": on all rows. "abandoned": after `rows` rows it could no
    longer win against layer `against`, as the best it could still reach is `bound`; its metric is not
    known, and its score is that bound's. "estimated" (statistical racing): metric and score are
    estimates from `rows` rows, and at the confidence asked for the metric is no better than `bound`.
    """

    layer: LayerName
    score: float
    metric: float | None = None
    loss: float | None = None
    outcome: Outcome = "full"
    rows: int | None = None
    bound: float | None = None
    against: LayerName | None = None
    scale: float | None = field(default=None, metadata=SPARSE)
    against_scale: float | None = field(default=None, metadata=SPARSE)


@dataclass(frozen=True)
class Step:
    """One accepted round: the layer dropped, or damped to `scale`, and every candidate it was chosen from."""

    layer: LayerName
    score: float
    metric: float | None
    loss: float | None
    candidates: tuple[Candidate, ...] = ()
    scale: float | None = field(default=None, metadata=SPARSE)


@dataclass(frozen=True)
class Cost:
    """What the search cost, in layer forwards (one sequence through one layer).

    `evaluations` counts the sets of layers of which anything was measured. `plain_layer_forwards` is
    what scoring every candidate with a full forward of every remaining layer would have taken, one
    sequence an answer. `layer_tokens` counts tokens through one layer, padding included. All but
    `seconds` are the same whether or not a search was interrupted.
    """

    evaluations: int
    layer_forwards: int
    plain_layer_forwards: int
    seconds: float
    layer_tokens: int = 0


@dataclass(frozen=True)
class Prediction:
    """How well a label-free score predicted the metric over the first round's candidates.

    `spearman` is positive where a higher score went with a better metric, whatever the metric.
    """

    spearman: float
    p_value: float
    num_candidates: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: the median over interleaved rounds, with a 95 % bootstrap interval."""

    median: float
    interval: Interval


@dataclass(frozen=True)
class Pair:
    """One quantity of the original and of the pruned model."""

    original: float
    pruned: float


@dataclass(frozen=True)
class Point:
    """The best set of one size that a search found, and what it trades, on all select rows.

    `target` is the objective's metric, `domains` each domain's, `id` that of ID. `gain` is what the target
    gains over the original, `id_loss` what ID loses, better and worse being positive. `is_on_front`: no
    other point gains as much, loses as little and drops as many layers, and one of them more so.
    """

    drop: tuple[LayerName, ...]
    target: float
    domains: dict[str, float]
    id: float
    gain: float
    id_loss: float
    is_on_front: bool
    damp: tuple[Damping, ...] = field(default=(), metadata=SPARSE)

    @property
    def num_changed(self) -> int:
        """Count the layers that are dropped or damped."""
        return len(self.drop) + len(self.damp)


@dataclass(frozen=True)
class Selection(Shown):
    """`selection.json`: what to drop and why; replays without data (`prune --selection`).

    `steps` is the whole trajectory, `drop` and `damp` (sorted) the part of it that `pick` names; `damp` is
    written only where a layer is damped.
    `rejected` holds the candidates of the round that ended the search, if one did. `cut` tells that a
    budget ended it; `confidence` is that of a statistical race, None where every comparison is exact.
    `invalid` counts the rows that drive the search in whose answers `--extract` found nothing; None where
    there is no such rule, or not all rows were scored.
    `unpredicted` says why there is no `prediction` though candidates were scored by labels and the score that
    ranked them needs none.
    Of several targets, metrics are those of the `objective`, and `points` say what each number of layers
    trades, from none on; `weights` are there with objective "weights".
    Beside a checkpoint, `proof` says what was compared to prove it, and `note` what else is to be known.
    `fingerprint` tells the checkpoint that was searched from others: a hash of parts of its tensors.
    """

    model: str
    task: str
    criterion: str
    num_layers: int
    drop: tuple[LayerName, ...]
    steps: tuple[Step, ...]
    stop_reason: str
    metric: str | None = None
    higher_is_better: bool | None = None
    baseline_metric: float | None = None
    baseline_loss: float | None = None
    selected_metric: float | None = None
    invalid: Pair | None = None
    floor: float | None = None
    epsilon: float | None = None
    pick: str = "best"
    tie_break: str = "index"
    select_on: str = "target"
    num_samples: int = 0
    seed: int = 0
    rejected: tuple[Candidate, ...] = ()
    search: str = "greedy"
    confidence: float | None = None
    cut: bool = False
    prediction: Prediction | None = None
    cost: Cost | None = None
    stacks: dict[str, int] = field(default_factory=dict)
    prompting: Prompting = field(default_factory=Prompting)
    damp: tuple[Damping, ...] = field(default=(), metadata=SPARSE)
    unpredicted: str | None = field(default=None, metadata=SPARSE)
    proof: Proof | None = None
    note: str | None = None
    objective: str | None = field(default=None, metadata=SPARSE)
    weights: dict[str, float] = field(default_factory=dict, metadata=SPARSE)
    points: tuple[Point, ...] = field(default=(), metadata=SPARSE)
    fingerprint: str | None = field(default=None, metadata=SPARSE)
    kind: Literal["selection"] = "selection"
    schema_version: int = SCHEMA_VERSION

    @property
    def num_changed(self) -> int:
        """Count the layers that are dropped or damped."""
        return len(self.drop) + len(self.damp)

    @property
    def scales(self) -> dict[LayerName, float]:
        """The scale of each layer that is damped."""
        return {part.layer: part.scale for part in self.damp}

    @property
    def has_sublayers(self) -> bool:
        """Tell whether attention and MLP of a layer were dropped, or tried, one without the other."""
        tried = (candidate.layer for candidate in self.rejected)
        return any(map(part_of, (*self.drop, *(step.layer for step in self.steps), *tried)))

    @property
    def units(self) -> Numbering:
        """How what may be dropped is counted and named."""
        return Numbering.of(self.stacks, self.num_layers, PARTS if self.has_sublayers else ())
