"""Frozen dataclasses, one JSON file each.

A layer index is always the 0-based index in the ORIGINAL model, in every field and file. Boundaries
are numbered 0..L: boundary 0 is the residual stream after the embedding, boundary l+1 the one after
layer l.

Of a model with several stacks, a layer is named `encoder:3`, its stack and its index there; `stacks`
maps their names to their depths, in the order in which a forward runs them. Lists with an entry a layer
or boundary then hold stack after stack, so that S stacks have L+S boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..numbering import LayerName
from .prompts import Prompting

SCHEMA_VERSION = 1
Interval = tuple[float, float]
Proof = Literal["logits", "weights"]


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
class Profile:
    """`profile.json`: ID and target, before and after pruning, on the same axes.

    `position` says where the answer is read. `deviation_removed` is the share of the target's mean
    deviation that pruning removed (1: all of it, 0: none, negative: it grew).
    """

    model: str
    task: str
    position: str
    layers: tuple[LayerName, ...]
    id: LayerProfile
    target: LayerProfile
    deviation: Deviation
    drop: tuple[LayerName, ...] = ()
    pruned_id: LayerProfile | None = None
    pruned_target: LayerProfile | None = None
    pruned_deviation: Deviation | None = None
    deviation_removed: float | None = None
    stacks: dict[str, int] = field(default_factory=dict)
    kind: Literal["profile"] = "profile"
    schema_version: int = SCHEMA_VERSION


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
    """One layer tried in one round.

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


@dataclass(frozen=True)
class Step:
    """One accepted round: the layer dropped, and every candidate it was chosen from."""

    layer: LayerName
    score: float
    metric: float | None
    loss: float | None
    candidates: tuple[Candidate, ...] = ()


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
class Selection:
    """`selection.json`: what to drop and why; replays without data (`prune --selection`).

    `steps` is the whole trajectory, `drop` (sorted) the part of it that `pick` names.
    `rejected` holds the candidates of the round that ended the search, if one did. `cut` tells that a
    budget ended it; `confidence` is that of a statistical race, None where every comparison is exact.
    Beside a checkpoint, `proof` says what was compared to prove it, and `note` what else is to be known.
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
    proof: Proof | None = None
    note: str | None = None
    kind: Literal["selection"] = "selection"
    schema_version: int = SCHEMA_VERSION


# --- export.json ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """`export.json`: an exported model and the proof that it computes what PyTorch computes.

    `files` maps each file to its SHA-256; `sha256` is that of the first, the graph that runs first.

    `shapes_checked` holds shapes of the first input, batch first; `label_agreement` is the share of rows
    whose label is the same (1.0 where the task has no labels to compare); sizes count the weights file.
    `cache` names the inputs that hold keys and values of earlier tokens, each with its number of heads
    and the size of one; what it generates with them, from prompts padded on the left, was compared for
    `prompts_continued` rows and `tokens_generated` tokens each.
    """

    model: str
    task: str
    format: str
    files: dict[str, str]
    exporter: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_abs_difference: float
    tolerance: float
    label_agreement: float
    rows_checked: int
    shapes_checked: tuple[tuple[int, ...], ...]
    padding_checked: tuple[str, ...]
    size_bytes: int
    sha256: str
    num_layers: int
    drop: tuple[LayerName, ...] = ()
    max_length: int | None = None
    metric: str | None = None
    prompting: Prompting = field(default_factory=Prompting)
    cache: dict[str, tuple[int, int]] = field(default_factory=dict)
    prompts_continued: int = 0
    tokens_generated: int = 0
    note: str | None = None
    kind: Literal["export"] = "export"
    schema_version: int = SCHEMA_VERSION


# --- benchmark.json -------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Both models on the same report rows; `difference` is pruned minus original.

    `interval` is a 95 % paired bootstrap interval of the difference; `p_value` is the exact McNemar
    test for right/wrong metrics, a paired permutation test otherwise. `gained` and `lost` count the
    rows that became better and worse.
    """

    metric: str
    higher_is_better: bool
    n: int
    original: float
    pruned: float
    difference: float
    interval: Interval
    p_value: float
    original_interval: Interval
    pruned_interval: Interval
    gained: int
    lost: int

    @property
    def gain(self) -> float:
        """Improvement of the pruned model: positive is better, whatever the metric."""
        return self.difference if self.higher_is_better else -self.difference

    @property
    def gain_interval(self) -> Interval:
        """Interval of `gain`."""
        low, high = self.interval
        return (low, high) if self.higher_is_better else (-high, -low)


Phase = Literal["forward", "prefill", "decode"]


@dataclass(frozen=True)
class Timing:
    """Latency of one model at one shape. `p90_ms` is None with fewer than 20 runs.

    `throughput_per_s` counts sequences; `tokens_per_s`, where a model generates, tokens read or made.
    """

    p50_ms: float
    p90_ms: float | None
    runs: int
    throughput_per_s: float
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: the median over interleaved rounds, with a 95 % bootstrap interval."""

    median: float
    interval: Interval


@dataclass(frozen=True)
class Latency:
    """Original against pruned at one shape, measured interleaved in one process.

    `ideal_speedup` is layers before / layers after, of all stacks: what would be seen if only layers took
    time, and all the same.
    `noise_floor` is the interval of the ratio between two sessions of the SAME original model.
    `phase` tells, where a model generates, what was timed: "prefill" reads a prompt of
    `sequence_length` tokens, "decode" makes one token more with that many cached.
    `unit` is what the sequence length counts.
    """

    runtime: str
    provider: str
    batch_size: int
    sequence_length: int
    threads: int
    original: Timing
    pruned: Timing
    speedup: Ratio
    ideal_speedup: float
    noise_floor: Interval
    phase: Phase = "forward"
    unit: str = "tokens"


@dataclass(frozen=True)
class Pair:
    """One quantity of the original and of the pruned model."""

    original: float
    pruned: float


@dataclass(frozen=True)
class Benchmark:
    """`benchmark.json`: original against pruned, both as exported files.

    `accuracy` is keyed by role, "id" and "target"; a role without labels is absent.
    `optimism_gap` is the gain on the select rows minus the gain on the report rows.
    `cache_bytes_per_token` is what keys and values of one token take; None where nothing is cached.
    `skipped` says in words what was asked for and could not be measured here.
    """

    task: str
    accuracy: dict[str, Accuracy]
    latency: tuple[Latency, ...]
    size_bytes: Pair
    peak_memory_bytes: Pair
    load_seconds: Pair
    drop: tuple[LayerName, ...] = ()
    optimism_gap: float | None = None
    cache_bytes_per_token: Pair | None = None
    skipped: tuple[str, ...] = ()
    kind: Literal["benchmark"] = "benchmark"
    schema_version: int = SCHEMA_VERSION


# --- comparison.json ------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One criterion: the layers it dropped, what that did on report rows, and what its search cost.

    `depth` counts the layers; where it is less than was asked for, `stop_reason` says why. The cost
    includes scoring the original and every accepted step on the rows that drive the search, which a
    criterion without labels has no need of.
    """

    criterion: str
    drop: tuple[LayerName, ...]
    depth: int
    stop_reason: str
    target: Accuracy
    id: Accuracy
    cost: Cost


@dataclass(frozen=True)
class Comparison:
    """`comparison.json`: criteria on one model, each asked to drop the same number of layers.

    `criteria` stand in the order of their gain on the target, the largest first. All chose on the
    same select rows and are scored on the same report rows, in PyTorch. Intervals and p-values are
    of one criterion each, not adjusted for how many there are.
    """

    model: str
    task: str
    num_layers: int
    max_drop_layers: int
    criteria: tuple[Compared, ...]
    search: str = "greedy"
    select_on: str = "target"
    num_samples: int = 0
    seed: int = 0
    stacks: dict[str, int] = field(default_factory=dict)
    kind: Literal["comparison"] = "comparison"
    schema_version: int = SCHEMA_VERSION


# --- run.json, report.json ------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """`run.json`: everything needed to do the run again and to tell whether a file changed.

    `inputs` and `outputs` map paths to SHA-256; outputs are relative to the run folder.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Report:
    """`report.json`: the verdict and everything it rests on."""

    verdict: str
    findings: tuple[str, ...]
    run: Run
    selection: Selection
    profile: Profile
    benchmark: Benchmark
    exports: dict[str, Export]
    kind: Literal["report"] = "report"
    schema_version: int = SCHEMA_VERSION
