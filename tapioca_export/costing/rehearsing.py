"""A probe that computes nothing: a search asks it as it would ask the real one, and it counts.

So the count holds for any criterion and any way of searching. What a search asks next may depend on
the numbers that it was given, and these are made up, in two ways. In the case "least", any rows show
that all but the lowest candidate have lost, and layers are dropped from below. In the case "most",
candidates hardly differ, nothing ends early, and layers are dropped from above.

Shapes: N rows, B of a batch, S sequences, T tokens, L layers, C candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from ..artifacts import Curves, Deviation, Evaluation, LayerProfile, Ledger
from ..engines import Engine
from ..models import EndOfForward, LoadedModel, stand_ins
from ..profiling import Probe
from ..profiling.replaying import Found, Work
from ..profiling.stacking import stacks_of
from ..samples import Samples
from ..tasks import Batch, Processor

Shape = tuple[int, int]  # S sequences of T tokens
Case = Literal["least", "most"]
CASES: tuple[Case, ...] = ("least", "most")
# Hardly anything, so that no floor is in the way of the number of rounds that was asked for.
TRIFLE = 1e-3


@dataclass(frozen=True)
class Item:
    """One batch: `rows` encoded, and S sequences of T tokens that pass through parts of the network.

    `starts` counts forwards begun (embeddings, masks), `layers` layers run, `heads` answers read.
    `narrowed` of the layers are the last one of a forward, which need not do all of its work. `along` are the
    starts, layers and heads that go along with others, in one forward of several candidates. `through`
    are the sequences and the tokens that pass through layers; of several stacks, S and T are the first's,
    and `through` counts each stack's own.
    """

    rows: int
    sequences: int
    tokens: int
    starts: int
    layers: int
    heads: int
    narrowed: int = 0
    along: tuple[int, int, int] = (0, 0, 0)
    through: Shape = (0, 0)


class Shapes:
    """Sequences and tokens of any batch of some rows, known from each row alone.

    Exact where a batch is padded to its longest row, as all tasks do. Tokens are those that layers
    see, told by the embedding of one row of each length.

    Args:
        model: The network; nothing above its embeddings is run.
        samples: The rows.
        processor: What encodes them.
        is_profile: Rows are encoded as for a profile, not as for scoring.
    """

    def __init__(
        self, model: LoadedModel, samples: Samples, processor: Processor, *, is_profile: bool = False
    ) -> None:
        self.model = model
        self.samples = samples
        self.processor = processor
        self._encode = model.task.profile_batch if is_profile else model.task.batch

    def of(self, rows: np.ndarray) -> tuple[Shape, ...]:
        """Return S and T, in each stack, of a batch of these rows."""
        names, shared = self.model.numbering.depths, self.model.task.shared_stacks
        return tuple(
            (int((np.max if name in shared else np.sum)(part[0, rows])), int(part[1, rows].max()))
            for name, part in zip(names, self._each, strict=True)
        )

    @cached_property
    def _each(self) -> np.ndarray:
        """Sequences and tokens of each row alone, in each stack, (stacks, 2, N)."""
        found = np.zeros((len(self.model.stacks), 2, len(self.samples)), dtype=np.int64)
        seen: dict[tuple[tuple[int, ...], ...], list[Shape]] = {}
        for row in range(len(self.samples)):
            batch = self._encode(self.samples, np.asarray([row]), self.processor)
            shapes = tuple(values.shape for values in batch.inputs.values())
            if shapes not in seen:
                seen[shapes] = self._stream_shapes(batch)
            found[:, :, row] = seen[shapes]
        return found

    def _stream_shapes(self, batch: Batch) -> list[Shape]:
        """Return the sequences and tokens that enter each stack; no layer is run that can be passed by."""
        shapes: list[Shape] = []
        starts = [layers.start for layers in self.model.numbering.ranges]
        with stand_ins(self.model) as places:
            for place in places:
                place.skips = True
            for start in starts:
                places[start].see = lambda stream, _: shapes.append(_shape(stream))
            places[starts[-1]].ends = True
            try:
                self.model.answers(batch)
            except EndOfForward as end:
                return [*shapes, _shape(end.stream)]
        raise AssertionError("a forward that passes no layer")


def _shape(stream: torch.Tensor) -> Shape:
    return int(stream.shape[0]), int(stream.shape[1])


class Rehearsal:
    """Stands for `profiling.Probe` in a search, and counts; `ledger` and `groups` have what it would cost.

    Scores go through a real probe, whose engine is made of paper: batches, their padding and how they
    are dealt to workers are those of the real search. Profiles are counted here, by the same passes.

    Args:
        model: The network under study; one short row is run, to see how its layers answer.
        samples: Select rows by "id" and "target".
        select_on: Which of them drives the search.
        batch_size: Rows a forward.
        num_workers: Batches at a time.
        case: How the search fares: "least" or "most" work.
        recordings: Times that the prefix of a batch with candidates is counted: a race that scores
            its leader apart from the others records it for both.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Mapping[str, Samples],
        *,
        select_on: str = "target",
        batch_size: int = 32,
        num_workers: int = 1,
        case: Case = "most",
        recordings: int = 1,
    ) -> None:
        self.model = model
        self.samples = samples
        self.case = case
        self.recordings = recordings
        self.seed = 0  # of the search: a statistical race draws rows by it
        self.most_tokens = 0  # of the search's replayer: candidates that fit go through one forward
        self.ledger = Ledger()
        self.groups: list[list[Item]] = []  # items of one group are worked on at the same time
        self._engine = _PaperEngine(self, num_workers)
        self.probe = _PaperProbe(
            model,
            samples,
            select_on=select_on,
            batch_size=batch_size,
            ledger=self.ledger,
            engine=self._engine,
        )
        self.select_on = select_on
        self.num_layers, self.num_rows = self.probe.num_layers, self.probe.num_rows
        self.num_answers, self.is_labelled = self.probe.num_answers, self.probe.is_labelled
        self.higher_is_better, self.best_value = self.probe.higher_is_better, self.probe.best_value
        self.domains = self.probe.domains
        self.scores, self.known = self.probe.scores, self.probe.known
        self.metric, self.metrics = self.probe.metric, self.probe.metrics
        self.num_invalid, self.choices = self.probe.num_invalid, self.probe.choices
        self.watch = lambda num_scores: None
        self.shapes = Shapes(model, samples[select_on], self.probe.processor)
        self._profiled = {
            name: Shapes(model, rows, self.probe.processor, is_profile=True) for name, rows in samples.items()
        }
        self._done: set[tuple[object, ...]] = set()

    @cached_property
    def skip_costs(self) -> tuple[int, ...]:
        """1 for each layer that is run though it is skipped: its answer is more than hidden states."""
        kinds: dict[type, bool] = {}
        rows, task = self.samples[self.select_on], self.model.task
        shortest = task.length_sorted(rows, self.probe.processor, 1)[0]
        with torch.no_grad(), stand_ins(self.model, kinds):
            self.model.answers(task.batch(rows, shortest, self.probe.processor))
        return tuple(int(not kinds[type(layer)]) for layer in self.model.layers)

    def work(self, shapes: Sequence[Shape], work: Work, *, whole: bool = False) -> Item:
        """Return what one batch costs: a pass that records, and each candidate's layers above it."""
        costs = [self.skip_costs[n] if n in work.base else 1 for n in range(self.num_layers)]
        end = self.num_layers if whole or not work.layers else max(work.layers)
        times = self.recordings if work.layers and not whole else 1
        runs = [times * cost if n < end else 0 for n, cost in enumerate(costs)]
        highest = max((n for n in range(self.num_layers) if n not in work.base), default=-1)
        most = self.most_tokens // (shapes[0][0] * shapes[0][1]) if work.together and not whole else 0
        stacks = list(stacks_of(work.layers, highest, most))
        for layer in work.layers:
            if (layer,) in stacks:  # in a forward with others, nobody runs what it lacks
                runs[layer] += self.skip_costs[layer]
            runs[layer + 1 :] = [ran + cost for ran, cost in zip(runs, costs, strict=True)][layer + 1 :]
        each = [sum(runs[part.start : part.stop]) for part in self.model.numbering.ranges]
        through = (
            sum(ran * sequences for ran, (sequences, _) in zip(each, shapes, strict=True)),
            sum(ran * sequences * tokens for ran, (sequences, tokens) in zip(each, shapes, strict=True)),
        )
        heads = len(work.layers) + (end == self.num_layers)
        narrowed = 0 if whole else sum(layer < highest for layer in work.layers) or heads - len(work.layers)
        starts = times + len(work.layers)
        others = len(work.layers) - len(stacks)
        joint = sum(_num_along(stack, n) * cost for stack in stacks for n, cost in enumerate(costs))
        along = (others, joint, others)
        return Item(times * len(work.rows), *shapes[0], starts, sum(runs), heads, narrowed, along, through)

    # --- profiles -------------------------------------------------------------------------

    def profile(self, name: str, dropped: Collection[int] = ()) -> LayerProfile:
        """Count a profile, once; every number in it is as good as another."""
        self._pass_once(("profile", name, frozenset(dropped)), name, dropped)
        num_boundaries = self.num_layers + len(self.model.stacks)
        nothing = ((0.0, 0.0),) * num_boundaries
        ones, ranks = (1.0,) * num_boundaries, self._ranks()
        return LayerProfile(ones, ones, ranks, nothing, nothing, len(self.samples[name]), 0)

    def deviation(self, dropped: Collection[int] = (), over: Collection[int] | None = None) -> Deviation:
        """Count both profiles: the target's is ID's at once, or each layer that goes brings it closer."""
        self.profile("id")
        self.profile("target", dropped)
        nothing = (0.0,) * (self.num_layers + len(self.model.stacks))
        return Deviation(nothing, nothing, self._mean(dropped), Curves(nothing, nothing, 0.0))

    def deviations(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Count one sweep, and scores where it does not bring them along."""
        self.profile("id")
        base = tuple(sorted(dropped))
        self._pass("target", base, layers)
        found = {layer: Evaluation(deviation=self._mean({*base, layer})) for layer in layers}
        if not self.is_labelled:
            return found
        if self.select_on == "target" and self.model.task.profiles_while_scoring:
            rows = np.arange(self.num_rows)
            self.ledger.add_rows(_line(Work(base, tuple(layers), rows), self._engine), self.num_rows)
        metrics = self.metrics(dropped, layers)
        return {n: replace(metrics[n], deviation=found[n].deviation) for n in layers}

    def turns(self, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        """Count a sweep over some rows, once a layer."""
        return self._without_each("turns", layers, num_samples)

    def output_changes(self, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        """Count a sweep over some rows, once a layer."""
        return self._without_each("output changes", layers, num_samples)

    def _without_each(self, name: str, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        if missing := [layer for layer in layers if (name, num_samples, layer) not in self._done]:
            self._done |= {(name, num_samples, layer) for layer in missing}
            self._pass("target", (), missing, num_samples)
        return dict(enumerate(self._ranks()))

    def angular_distances(self, num_layers: int) -> tuple[float, ...]:
        """Count one pass over the rows that drive the search, once for each number of layers."""
        self._pass_once(("angles", num_layers), self.select_on, ())
        return self._ranks()[: self.num_layers - num_layers + 1]

    def magnitudes(self) -> tuple[float, ...]:
        """Weights are read, not run."""
        return self._ranks()

    def sensitivities(self) -> tuple[float, ...]:
        """Count three forwards a row, once, as the real probe does."""
        if ("taylor",) not in self._done:
            self._done.add(("taylor",))
            rows = np.arange(self.num_rows)
            for start in range(0, self.num_rows, self.probe.batch_size):
                part = rows[start : start + self.probe.batch_size]
                item = self.work(self._profiled[self.select_on].of(part), Work((), (), part))
                self.groups.append([replace(item, layers=3 * item.layers)])
            self.ledger.add_cost(3 * self.num_rows * self.num_layers, 0)
        return self._ranks()

    def _ranks(self) -> tuple[float, ...]:
        """Rank layers: replaying a high layer's prefix saves the most, so the least work wants it."""
        order = tuple(float(n) for n in range(self.num_layers))
        return order if self.case == "most" else order[::-1]

    def _mean(self, dropped: Collection[int]) -> float:
        return 1.0 + self.num_layers - len(dropped) if self.case == "most" else 0.0

    def _pass_once(
        self, key: tuple[object, ...], name: str, dropped: Collection[int], num_rows: int | None = None
    ) -> None:
        if key not in self._done:
            self._done.add(key)
            self._pass(name, tuple(sorted(dropped)), (), num_rows)

    def _pass(
        self, name: str, base: tuple[int, ...], layers: Sequence[int], num_rows: int | None = None
    ) -> None:
        rows = self.samples[name]
        found = zip(rows.domains.parts, rows.by_domain, strict=True)
        few = [place.start + np.argsort(part.hashes, kind="stable")[:num_rows] for place, part in found]
        for part in self.probe.profile_batches(rows, np.sort(np.concatenate(few))):
            shapes = self._profiled[name].of(part)
            item = self.work(shapes, Work(base, tuple(layers), part), whole=True)
            self.groups.append([item])
            self.ledger.add_cost(*item.through)


def _num_along(stack: Sequence[int], layer: int) -> int:
    """Return how many candidates of a stack go through a layer beside the first."""
    return max(0, sum(dropped < layer for dropped in stack) - 1)


class _PaperProbe(Probe):
    """A probe to which the metric is a mean over rows, as made-up scores are nothing else."""

    def _evaluation(self, values: np.ndarray, losses: np.ndarray) -> Evaluation:
        return Evaluation(float(values.mean()), float(losses.mean()))


class _PaperEngine(Engine):
    """Answers with made-up scores, and says what real ones would have cost."""

    def __init__(self, rehearsal: Rehearsal, num_workers: int) -> None:
        self.num_workers = num_workers
        self.rehearsal = rehearsal
        self._winners: dict[tuple[int, ...], int] = {}

    def map(self, items: Sequence[Work]) -> list[Found]:
        """Count one group of batches."""
        group, found = [], []
        for work in items:
            item = self.rehearsal.work(self.rehearsal.shapes.of(work.rows), work)
            group.append(item)
            found.append(Found(*self.numbers(work), *item.through))
        self.rehearsal.groups.append(group)
        return found

    def close(self) -> None:
        """Nothing is held."""

    def numbers(self, work: Work) -> tuple[np.ndarray, np.ndarray]:
        """Return values and losses, (C, B), made up."""
        probe = self.rehearsal.probe
        layers = work.layers or (None,)
        penalties = np.zeros(len(layers))
        if self.rehearsal.case == "most":
            ranks = [1.0 if layer is None else (1 - layer / probe.num_layers) / 2 for layer in layers]
            penalties = TRIFLE * np.asarray(ranks)
        elif work.layers:
            winner = self._winners.setdefault(work.base, min(work.layers))
            penalties = np.asarray([float(layer != winner) for layer in layers])
        penalties = np.repeat(penalties[:, None], len(work.rows), axis=1)
        sign = 1 if probe.higher_is_better else -1
        # Losses say the same, that one row is harder than all others (no race starts wide), and that the
        # others are hard in the order in which a race draws them: the hardest are those drawn first.
        places = np.argsort(np.random.default_rng(self.rehearsal.seed).permutation(probe.num_rows))[work.rows]
        hardness = (places == 0) + TRIFLE * (probe.num_rows - places) / probe.num_rows**2
        losses = hardness + 10 * penalties
        return (probe.best_value or 0.0) - sign * penalties, losses


def _line(work: Work, engine: _PaperEngine) -> dict[str, object]:
    """Return what the ledger takes of scores that cost nothing more."""
    values, losses = engine.numbers(work)
    return {
        "sets": [sorted({*work.base, layer}) for layer in work.layers],
        "rows": work.rows.tolist(),
        "values": values.tolist(),
        "losses": losses.tolist(),
        "layer_forwards": 0,
        "layer_tokens": 0,
    }
