"""Frozen dataclasses of what came out: exports, benchmarks, comparisons, runs; one file each.

Layers are named as in `records`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..external import leads_out
from ..numbering import LayerName
from ..showing import Shown
from ..treatments import Treatment
from .prompts import Prompting
from .records import SCHEMA_VERSION, SPARSE, Cost, Damping, Interval, Pair, Ratio
from .sessions import OrtSession

# --- export.json ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """What a file that was optimised or quantised loses on labelled rows.

    `float32` is the metric of the same network's graph before it was treated, `treated` that of the file.
    `drop` is how much worse that is, in the metric's unit (negative: better); at most `max_drop` is allowed.
    """

    metric: str
    rows: int
    float32: float
    treated: float
    drop: float
    max_drop: float


@dataclass(frozen=True)
class Fusions:
    """The operators of one graph that ONNX Runtime computes at once, and products that are left.

    `total` counts them in the whole graph, `layers` in each layer from the input to the output; empty where
    the layers cannot be told. `unfused` names layers that have other ones than most that were alike before
    they were fused: which operators are missing, which nodes stand there instead.
    """

    total: dict[str, int]
    layers: tuple[dict[str, int], ...] = ()
    unfused: tuple[str, ...] = field(default=(), metadata=SPARSE)


@dataclass(frozen=True)
class Export(Shown):
    """`export.json`: an exported model and the proof that it computes what PyTorch computes.

    `files` maps each file to its SHA-256; `sha256` is that of the first, the graph that runs first.

    `dtype` is the precision of the file: fp32, fp16 or bf16. `max_abs_difference` is the file's from PyTorch
    in float32, on rows and, in half precision, on the tokens generated; None where it was not run.
    `pytorch_difference` is PyTorch's own
    in the file's precision, on the same (0 in fp32).

    `shapes_checked` holds shapes of the first input, batch first; `label_agreement` is the share of rows
    whose label is the same (1.0 where the task has no labels to compare); sizes count the weights file.
    `cache` names the inputs that hold keys and values of earlier tokens, each with its number of heads
    and the size of one; what it generates with them, from prompts padded on the left, was compared for
    `prompts_continued` rows and `tokens_generated` tokens each; `token_agreement` is the share of tokens that
    are PyTorch's. `reference` is what the file was held against, wherever that is not PyTorch.

    `treatment` is how graphs were optimised and quantised, and `loss` what that costs on labelled rows. Where
    they then compute something else, there is no `tolerance`, unless the user gave one. `fusions` has the
    fused operators of each graph that was optimised.
    """

    model: str
    task: str
    format: str
    files: dict[str, str]
    exporter: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_abs_difference: float | None
    tolerance: float | None
    label_agreement: float
    rows_checked: int
    shapes_checked: tuple[tuple[int, ...], ...]
    padding_checked: tuple[str, ...]
    size_bytes: int
    sha256: str
    num_layers: int
    drop: tuple[LayerName, ...] = ()
    damp: tuple[Damping, ...] = field(default=(), metadata=SPARSE)
    max_length: int | None = None
    metric: str | None = None
    prompting: Prompting = field(default_factory=Prompting)
    cache: dict[str, tuple[int, int]] = field(default_factory=dict)
    prompts_continued: int = 0
    tokens_generated: int = 0
    dtype: str = "fp32"
    pytorch_difference: float = 0.0
    token_agreement: float = 1.0
    reference: str = field(default="PyTorch", metadata=SPARSE)
    note: str | None = None
    treatment: Treatment = field(default=Treatment(), metadata=SPARSE)
    loss: Loss | None = field(default=None, metadata=SPARSE)
    fusions: dict[str, Fusions] = field(default_factory=dict, metadata=SPARSE)
    kind: Literal["export"] = "export"
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse files elsewhere: the record says what is opened."""
        for name in self.files:
            if leads_out(name):
                raise ValueError(f"{name!r} is outside its own folder")


# --- benchmark.json -------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """Both models on the same report rows; `difference` is pruned minus original.

    `interval` is a 95 % paired bootstrap interval of the difference; `p_value` is the exact McNemar
    test for right/wrong metrics, a paired permutation test otherwise. `gained` and `lost` count the
    rows that became better and worse; None where the metric is no mean over rows. `invalid` counts the
    rows in whose answers `--extract` found nothing; None where there is no such rule. `still_wrong` counts
    the rows that went from one wrong answer to another, which is no change of the metric; None where rows are
    neither right nor wrong, or answers are not known in words.
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
    gained: int | None
    lost: int | None
    invalid: Pair | None = None
    still_wrong: int | None = field(default=None, metadata=SPARSE)

    @property
    def gain(self) -> float:
        """Improvement of the pruned model: positive is better, whatever the metric."""
        return self.difference if self.higher_is_better else -self.difference

    @property
    def gain_interval(self) -> Interval:
        """Interval of `gain`."""
        low, high = self.interval
        return (low, high) if self.higher_is_better else (-high, -low)


# Rows that became worse, and rows that became better, which are named: a report is read.
MOST_FLIPS = 50


@dataclass(frozen=True)
class Flip:
    """A report row whose result is another with the pruned model.

    `where` is its place in its file, `sample` the beginning of its columns (None with `--redact`);
    `original` and `pruned` are the values of the metric on it. Answers are what the models say, in words,
    where the task has any; not with `--redact`.
    """

    where: str
    sample: str | None
    original: float
    pruned: float
    original_answer: str | None = field(default=None, metadata=SPARSE)
    pruned_answer: str | None = field(default=None, metadata=SPARSE)


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
class Latency:
    """Original against pruned at one shape, measured interleaved in one process.

    `ideal_speedup` is layers before / layers after, of all stacks: what would be seen if only layers took
    time, and all the same; one without attention or MLP counts as half.
    `noise_floor` is the interval of the ratio between two sessions of the SAME original model.
    `phase` tells, where a model generates, what was timed: "prefill" reads a prompt of
    `sequence_length` tokens, "decode" makes one token more with that many cached.
    `unit` is what the sequence length counts. `threads` are the pruned model's, and where the original was
    faster with others (`--tune`), those are `original_threads`.
    `provider` is ONNX Runtime's; with another runtime, the device.
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
    original_threads: int | None = field(default=None, metadata=SPARSE)

    @property
    def setting(self) -> str:
        """What was timed, in words."""
        what = {"forward": "", "prefill": "prompts, ", "decode": "one token more, "}[self.phase]
        cached = " cached" if self.phase == "decode" else ""
        return f"{what}batch {self.batch_size}, {self.sequence_length} {self.unit}{cached}"


@dataclass(frozen=True)
class Groups:
    """The rows of a role, group by group.

    `worst` compares the metric of the group on which each model is worst, which may be another for either.
    `each` is empty where rows were not to be shown. `nmse` is divided by the variance of all rows.
    """

    worst: Accuracy
    each: dict[str, Accuracy]


@dataclass(frozen=True)
class Benchmark(Shown):
    """`benchmark.json`: original against pruned, both as exported files.

    `accuracy` is keyed by role, "id" and "target"; a role without labels is absent.
    Of several targets, "target" is the objective's row, and `targets` has each domain's by its name. `groups`
    has, of each role whose rows have a column `group`, the groups of at least 30 rows.
    `flips` has, of "id" and "target", the rows whose result changed most, at most 50 that became
    worse, then at most 50 that became better.
    `optimism_gap` is the gain on the select rows minus the gain on the report rows.
    `cache_bytes_per_token` is what keys and values of one token take; None where nothing is cached.
    `skipped` says in words what was asked for and could not be measured here. `sessions` has, with `--tune`,
    the settings with which "original" and "pruned" were timed on each provider, the fastest first.
    """

    task: str
    accuracy: dict[str, Accuracy]
    latency: tuple[Latency, ...]
    size_bytes: Pair
    peak_memory_bytes: Pair
    load_seconds: Pair
    drop: tuple[LayerName, ...] = ()
    damp: tuple[Damping, ...] = field(default=(), metadata=SPARSE)
    optimism_gap: float | None = None
    cache_bytes_per_token: Pair | None = None
    skipped: tuple[str, ...] = ()
    objective: str | None = field(default=None, metadata=SPARSE)
    targets: dict[str, Accuracy] = field(default_factory=dict, metadata=SPARSE)
    groups: dict[str, Groups] = field(default_factory=dict, metadata=SPARSE)
    flips: dict[str, tuple[Flip, ...]] = field(default_factory=dict, metadata=SPARSE)
    sessions: dict[str, tuple[OrtSession, ...]] = field(default_factory=dict, metadata=SPARSE)
    kind: Literal["benchmark"] = "benchmark"
    schema_version: int = SCHEMA_VERSION

    @property
    def served(self) -> tuple[Latency, ...]:
        """The rows of the runtime that stands first; what others take is there for reference."""
        return tuple(row for row in self.latency if row.runtime == self.latency[0].runtime)

    @property
    def slowest(self) -> Latency | None:
        """The served row whose speed-up has the lowest bound; None where none was timed."""
        return min(self.served, key=lambda row: row.speedup.interval[0], default=None)

    @property
    def rows(self) -> dict[str, Accuracy]:
        """All that was scored, each by what it is in words: roles, each target domain, and worst groups."""
        words = {} if self.objective is None else {"target": f"target ({self.objective})"}
        found = {words.get(role, role): accuracy for role, accuracy in self.accuracy.items()}
        found |= {f"target {name}": accuracy for name, accuracy in self.targets.items()}
        return found | {f"{role}, worst group": groups.worst for role, groups in self.groups.items()}


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
class Comparison(Shown):
    """`comparison.json`: criteria on one model, each asked to drop the same number of layers.

    `criteria` stand in the order of their gain on the target, the largest first. All chose on the
    same select rows and are scored on the same report rows, in PyTorch. Intervals and p-values are
    of one criterion each, not adjusted for how many there are.
    Of several targets, `target` is by `objective`.
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
    objective: str | None = field(default=None, metadata=SPARSE)
    kind: Literal["comparison"] = "comparison"
    schema_version: int = SCHEMA_VERSION


# --- run.json ------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """`run.json`: everything needed to do the run again and to tell whether a file changed.

    `inputs` and `outputs` map paths to SHA-256; outputs are all files of the run folder but this one,
    relative to it. `sha256` is that of this file with zeros in its place; `report.json` has the record
    without it.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sha256: str = field(default="", metadata=SPARSE)
    kind: Literal["run"] = "run"
    schema_version: int = SCHEMA_VERSION
