"""`Probe`: profile, metric and loss of a model with any set of layers skipped, at the least cost.

Criteria ask a probe for numbers; they never touch the network. Knows nothing about why a layer is
chosen.

The papers' text was not to be had for the profiles, so these are this project's definitions:
`h_l(x)` is the residual stream at boundary l where the task reads its answer, before any final norm (in
a stack that the head does not read, as the task says, by default the mean over tokens);
the norm profile is the mean of `||h_l(x)||` over samples, the distance profile the mean of
`||h_l(x) - h_l(x')||` over pairs of samples, the deviation `|log ratio|` against the ID profile.

Shapes: N samples, B rows of a batch, T tokens, P answer positions, H hidden size, L layers of S stacks,
D layers of one of them, L+S boundaries, R bootstrap replicates, M samples whose distances are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..artifacts import Choices, Deviation, Evaluation, LayerProfile, Ledger
from ..bars import progress_bar
from ..domains import Domains
from ..engines import Engine, open_engine
from ..models import LoadedModel, stand_ins
from ..samples import Samples
from ..tasks import Batch, Scores
from ..tasks.scoring import averaged
from .accumulating import NUM_REPLICATES
from .filling import division_on
from .gathering import Gathered, Gathering, deviations, read_states, together
from .removals import Compare, refuse_undefined, said_otherwise, turned
from .replaying import Changes, Found, Replayer, Trace, Work, forwards_of, passes
from .sharing import shares_context
from .weighing import angular_distance, magnitudes, sensitivities

Fixed = TypeVar("Fixed")


class Probe:
    """Measurements of one model on ID and target samples, with any layers skipped.

    Args:
        model: The network under study; left as it was found.
        samples: Select rows by "id" and "target".
        select_on: Which of them drives the search ("target" or "id").
        batch_size: Rows a forward.
        seed: Seed of every resampling.
        ledger: What is known already, read before measuring and added to; a journal, say.
        engine: Where rows are scored (default: here).

    What may be dropped one by one has a number: a layer, or, of a model whose branches are known, attention
    or MLP of one. Arguments called `dropped` and `layers` hold such numbers, and `num_layers` counts them.

    `watch` is told, whenever some were scored, of how many candidates times rows; an exception from it
    ends the measurement, and what was measured is kept. `division` is how batches are divided: for the
    threads of this process, until whoever brings an engine whose workers have others says so. `changes` are
    what the layers named below come to: they are dropped, until someone has them be `choices` of scales.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Mapping[str, Samples],
        *,
        select_on: str = "target",
        batch_size: int = 32,
        seed: int = 0,
        ledger: Ledger | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.model = model
        self.samples = samples
        self.select_on = select_on
        self.batch_size = batch_size
        self.seed = seed
        self.numbering = model.numbering
        self.units = model.units
        self.num_layers = self.units.num_units
        self.num_rows = len(samples[select_on])
        self.num_answers = model.task.num_answers(samples[select_on])
        self.ledger = Ledger() if ledger is None else ledger
        rows = samples[select_on]
        self.processor = shares_context(model, rows)
        self.division = division_on(model.device, torch.get_num_threads())
        self.changes = Changes(model)
        self._engine = engine or open_engine(
            "local", lambda: Replayer(model, rows, self.processor, self.changes)
        )
        self._measured: dict[tuple[str, frozenset[int]], Gathered] = {}
        self._fixed: dict[tuple[object, ...], Any] = {}
        self.watch: Callable[[int], None] = lambda num_scores: None

    @property
    def choices(self) -> Choices:
        """What may be done to layers."""
        return self.changes.choices

    @property
    def is_labelled(self) -> bool:
        """Tell whether the rows that drive the search have labels."""
        return self.samples[self.select_on].is_labelled

    @property
    def higher_is_better(self) -> bool:
        """Tell which way the task metric improves."""
        return self.model.task.higher_is_better

    @property
    def best_value(self) -> float | None:
        """What no row's value can be better than; None where the metric is no mean over rows."""
        return self.model.task.best_value

    @property
    def domains(self) -> Domains:
        """Where the rows of each domain stand, and how the domains' numbers become one."""
        return self.samples[self.select_on].domains

    # --- metric ---------------------------------------------------------------------------

    def scores(
        self, dropped: Sequence[int], layers: Sequence[int], rows: np.ndarray
    ) -> dict[int | None, tuple[np.ndarray, np.ndarray]]:
        """Score rows with `dropped` and one of `layers` skipped, layer by layer, as races do.

        Candidates may share forwards, and score as they would alone but for rounding.

        Args:
            dropped: Layers skipped in every pass.
            layers: One more to skip; none: the model without `dropped` itself (key None).
            rows: Indices of rows that drive the search; those known already cost nothing.

        Returns:
            Values, of which the metric is the mean, and losses, each (len(rows),), by layer.
        """
        found = self._scores(dropped, layers, rows, together=True)
        return {layer: (averaged(values), losses) for layer, (values, losses) in found.items()}

    def _scores(
        self, dropped: Sequence[int], layers: Sequence[int], rows: np.ndarray, *, together: bool = False
    ) -> dict[int | None, tuple[np.ndarray, np.ndarray]]:
        """Return the same with values as the task has them, (len(rows), ...)."""
        keys: dict[int | None, frozenset[int]] = {layer: frozenset({*dropped, layer}) for layer in layers}
        keys = keys or {None: frozenset(dropped)}
        work = self._work(tuple(dropped), keys, rows, together)
        group = self._engine.num_workers
        for start in range(0, len(work), group):
            items = work[start : start + group]
            for item, found in zip(items, self._engine.map(items), strict=True):
                self._record(item, found)
            self.watch(sum(max(1, len(item.layers)) * len(item.rows) for item in items))
        known = {key: self.ledger.rows(dropped, self.num_rows) for key, dropped in keys.items()}
        return {key: (values[rows], losses[rows]) for key, (values, losses) in known.items()}

    def _work(
        self,
        base: tuple[int, ...],
        keys: Mapping[int | None, frozenset[int]],
        rows: np.ndarray,
        together: bool,
    ) -> list[Work]:
        """Return what is not known yet: batches of similar length, dealt out to all workers."""
        samples = self.samples[self.select_on]
        unknown_rows = [self.ledger.is_unknown(dropped, self.num_rows)[rows] for dropped in keys.values()]
        rows = rows[np.any(unknown_rows, axis=0)]
        batches = self.length_sorted(samples, rows)
        # With fewer batches than workers, candidates are dealt out as well; each then records its prefix.
        parts = -(-self._engine.num_workers // max(1, len(batches)))
        work = []
        for indices in batches:
            unknown = [
                key
                for key, dropped in keys.items()
                if self.ledger.is_unknown(dropped, self.num_rows)[indices].any()
            ]
            layers = [key for key in unknown if key is not None]
            for part in range(min(parts, len(unknown))):
                work.append(Work(base, tuple(layers[part::parts]), indices, together))
        return work

    def length_sorted(self, samples: Samples, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the indices of each batch of rows (default: all), divided as it pays on this device."""
        task, size = self.model.task, self.batch_size
        return task.length_sorted(samples, self.processor, size, rows, self.division)

    def profile_batches(self, samples: Samples, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the indices of each batch that is profiled: its rows (default: all) are of one domain."""
        within = np.arange(len(samples)) if rows is None else rows
        places = samples.domains.parts
        parts = [within[(within >= place.start) & (within < place.stop)] for place in places]
        return [batch for part in parts for batch in self.length_sorted(samples, part)]

    def _record(self, work: Work, found: Found) -> None:
        sets = [sorted({*work.base, layer}) for layer in work.layers] or [sorted(work.base)]
        line = _line(sets, work.rows, found.values, found.losses, found.layer_forwards, found.layer_tokens)
        self.ledger.add_rows(line, self.num_rows)

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        """Return metric and mean loss with the layers skipped, on the rows that drive the search."""
        scores = self.all_scores(dropped)
        return self._evaluation(scores.values, scores.losses)

    def all_scores(self, dropped: Collection[int] = ()) -> Scores:
        """Return what the task makes of every row that drives the search, with the layers skipped."""
        return Scores(*self._scores(sorted(dropped), (), np.arange(self.num_rows))[None])

    def num_invalid(self, dropped: Collection[int] = ()) -> int | None:
        """Count the rows without a valid answer; None where any will do, or not all rows were scored."""
        values = self.ledger.rows(dropped, self.num_rows)[0]
        known = self.is_labelled and not self.ledger.is_unknown(dropped, self.num_rows).any()
        return self.model.task.num_invalid(values) if known else None

    def metrics(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return metric and mean loss with `dropped` and one more layer skipped, layer by layer."""
        found = self._scores(tuple(dropped), layers, np.arange(self.num_rows))
        return {layer: self._evaluation(*found[layer]) for layer in layers}

    def _evaluation(self, values: np.ndarray, losses: np.ndarray) -> Evaluation:
        task = self.model.task
        metric = self.domains.metric(values, task.aggregate, task.higher_is_better)
        return Evaluation(metric, self.domains.metric(losses, np.mean, False))

    def known(self, dropped: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return values and losses (N,) with the layers skipped, NaN where a row was not scored."""
        values, losses = self.ledger.rows(dropped, self.num_rows)
        return averaged(values), losses

    # --- profiles -------------------------------------------------------------------------

    def profile(self, name: str, dropped: Collection[int] = ()) -> LayerProfile:
        """Return the profile on "id" or "target" samples with the layers skipped."""
        return self._measure(name, frozenset(dropped)).profile

    def domain_profiles(self, dropped: Collection[int] = ()) -> tuple[LayerProfile, ...]:
        """Return the profile of each target domain with the layers skipped."""
        return self._measure("target", frozenset(dropped)).by_domain

    def deviation(self, dropped: Collection[int] = (), over: Collection[int] | None = None) -> Deviation:
        """Return how far the target's profile with the layers skipped is from the full model's on ID.

        The mean is over the boundaries that remain when the layers `over` (default: `dropped`) are
        gone; to compare two models, name the same layers for both.
        """
        return together(self.domain_deviations(dropped, over), self.samples["target"].domains)

    def domain_deviations(
        self, dropped: Collection[int] = (), over: Collection[int] | None = None
    ) -> tuple[Deviation, ...]:
        """Return the same of each target domain."""
        reference = self._measure("id", frozenset())
        gone = self.choices.whole(dropped if over is None else over)
        profiles, floor = self.domain_profiles(dropped), reference.noise_floor
        return deviations(profiles, reference.profile, floor, gone, self.numbering)

    def deviations(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return the target's mean deviation with `dropped` and one more layer skipped.

        Metric and loss stand beside it where there are labels: they have no say in the deviation.
        """
        base = frozenset(dropped)
        unknown = [layer for layer in layers if self.ledger.deviation(base | {layer}) is None]
        if unknown:
            self._sweep(base, unknown)
        found = {layer: self.ledger.deviation(base | {layer}) for layer in layers}
        if not self.is_labelled:
            return {layer: Evaluation(deviation=found[layer]) for layer in layers}
        metrics = self.metrics(dropped, layers)
        return {n: Evaluation(metrics[n].metric, metrics[n].loss, found[n]) for n in layers}

    def turns(self, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        """Return by how much the state that the head reads turns without each layer, or part of one.

        1 - cosine of the state with and without it where answers are read, mean over target rows: at most
        `num_samples` of each domain, those of lowest hash. What was measured costs nothing.

        Raises:
            NotFiniteError: If one is no number.
        """
        return self._without_each("turns", layers, num_samples, turned)

    def output_changes(self, layers: Sequence[int], num_samples: int) -> dict[int, float]:
        """Return by how much what the head says changes without each layer, on rows chosen alike.

        In the task's unit (`Task.output_changes`); of language models, by the token that is profiled: the
        first of an answer.

        Raises:
            NotFiniteError: If one is no number.
        """
        return self._without_each("output changes", layers, num_samples, said_otherwise, says=True)

    def _without_each(
        self, name: str, layers: Sequence[int], num_samples: int, compare: Compare, *, says: bool = False
    ) -> dict[int, float]:
        """Compare passes without each layer with the intact one: mean over some target rows."""
        known: dict[int, float] = self._once((name, num_samples), dict)
        if missing := [layer for layer in layers if layer not in known]:
            target, found = self.samples["target"], []
            for part in (domain.lowest(num_samples) for domain in target.by_domain):
                total = dict.fromkeys(missing, 0.0)
                for batch, layer, trace in self._passes(part, (), missing, says=says):
                    if layer is None:
                        intact = trace
                        continue
                    changes = compare(self.model, self.processor, batch, intact, trace)
                    (unit,) = self.units.names([self.choices.unit(layer)])
                    refuse_undefined(changes, part, batch, unit)
                    total[layer] += float(changes.sum())
                self.ledger.add_cost(self._layer_forwards, self._layer_tokens)
                found.append(np.asarray([total[layer] / len(part) for layer in missing]))
            known |= zip(missing, target.domains.combined(found, False).tolist(), strict=True)
        return {layer: known[layer] for layer in layers}

    def angular_distances(self, num_layers: int) -> tuple[float, ...]:
        """Return the mean angle between entering layer l and num_layers on, in half turns, for each l.

        Measured on the rows that drive the search, where the answer is read; NaN where a stack ends before.
        """
        return self._once(("angles", num_layers), lambda: self._angles(num_layers))

    def _angles(self, num_layers: int) -> tuple[float, ...]:
        samples, total = self.samples[self.select_on], np.full(self.num_layers, np.nan)
        within = [layers[: max(0, len(layers) - num_layers + 1)] for layers in self.numbering.ranges]
        for layers in within:
            total[list(layers)] = 0.0
        for batch, _, trace in self._passes(samples, (), ()):
            found = read_states(self.model, self.processor, batch, trace.boundaries)[0]
            for layers, states in zip(within, found, strict=True):
                angles = angular_distance(states[:-num_layers], states[num_layers:])  # (len(layers), B, P)
                total[list(layers)] += angles.double().mean(dim=-1).sum(dim=-1).cpu().numpy()
        self.ledger.add_cost(self._layer_forwards, self._layer_tokens)
        return tuple((total / len(samples)).tolist())[: self.num_layers - num_layers + 1]

    # --- weights --------------------------------------------------------------------------

    def magnitudes(self) -> tuple[float, ...]:
        """Return the sum of absolute weights of each layer, or branch of one."""
        return self._once(("magnitudes",), lambda: magnitudes(self.model))

    def sensitivities(self) -> tuple[float, ...]:
        """Return the sum of |weight x gradient of the loss| of each layer, or branch, on the driving rows.

        Counted as three forwards a row: a backward costs about two.
        """
        rows = self.samples[self.select_on]
        return self._once(("taylor",), lambda: self._sensitivities(rows))

    def _sensitivities(self, rows: Samples) -> tuple[float, ...]:
        found = sensitivities(self.model, rows, self.batch_size)
        self.ledger.add_cost(3 * len(rows) * self.num_layers, 0)
        return found

    def _once(self, key: tuple[object, ...], measure: Callable[[], Fixed]) -> Fixed:
        """Measure what is the same in every round once."""
        if key not in self._fixed:
            self._fixed[key] = measure()
        found: Fixed = self._fixed[key]
        return found

    # --- measuring ------------------------------------------------------------------------

    def _sweep(self, base: frozenset[int], layers: Sequence[int]) -> None:
        """Measure the target's deviation without `base` and each layer; metrics come along for nothing."""
        samples, task = self.samples["target"], self.model.task
        reference = self.profile("id")
        states = {key: Gathering(samples, self.numbering, 0, self.seed) for key in layers}
        scored = self.select_on == "target" and samples.is_labelled and task.profiles_while_scoring
        sets = {key: sorted(base | {key}) for key in layers}
        for batch, key, trace in self._passes(samples, tuple(sorted(base)), layers):
            if key is None:
                continue
            states[key].add(batch, *read_states(self.model, self.processor, batch, trace.boundaries))
            if scored and trace.answers is not None:
                found = task.score_by_domain(trace.answers, samples, batch.indices)
                line = _line([sets[key]], batch.indices, found.values[None], found.losses[None])
                self.ledger.add_rows(line, self.num_rows)
        self.ledger.add_deviations(
            {
                "sets": list(sets.values()),
                "deviations": [
                    states[key].mean_deviation(reference, self.choices.whole(sets[key])) for key in layers
                ],
                "layer_forwards": self._layer_forwards,
                "layer_tokens": self._layer_tokens,
            }
        )

    def _measure(self, name: str, dropped: frozenset[int]) -> Gathered:
        """Return profiles with bands, and what random halves of the samples differ by."""
        if (name, dropped) not in self._measured:
            samples = self.samples[name]
            states = Gathering(samples, self.numbering, NUM_REPLICATES, self.seed)
            for batch, _, trace in self._passes(samples, tuple(sorted(dropped)), ()):
                states.add(batch, *read_states(self.model, self.processor, batch, trace.boundaries))
            self.ledger.add_cost(self._layer_forwards, self._layer_tokens)
            self._measured[name, dropped] = states.result(self.choices.whole(dropped))
        return self._measured[name, dropped]

    def _passes(
        self, samples: Samples, base: Sequence[int], layers: Sequence[int], *, says: bool = False
    ) -> Iterator[tuple[Batch, int | None, Trace]]:
        """Yield batch, key and pass: first without `base` (key None), then without each layer too.

        If `says`, answers of language models are the logits of all tokens, where answers begin.
        """
        task = self.model.task
        self._layer_forwards = self._layer_tokens = 0
        with stand_ins(self.model) as places:
            batches = self.profile_batches(samples)
            for indices in progress_bar(batches, desc=f"Profiling {samples.role}", unit="batch", leave=False):
                batch = task.profile_batch(samples, indices, self.processor)
                if says and batch.readings is not None:
                    batch = replace(batch, readings=batch.readings.at_ends())
                for key, trace in passes(self.model, places, batch, base, layers, self.changes, whole=True):
                    yield batch, key, trace
                self.watch(0)
            self._layer_forwards, self._layer_tokens = forwards_of(places)


def _line(
    sets: list[list[int]],
    rows: np.ndarray,
    values: np.ndarray,
    losses: np.ndarray,
    layer_forwards: int = 0,
    layer_tokens: int = 0,
) -> dict[str, object]:
    """Return what the ledger takes; values and losses have shape (sets, B)."""
    return {
        "sets": sets,
        "rows": rows.tolist(),
        "values": values.tolist(),
        "losses": losses.tolist(),
        "layer_forwards": layer_forwards,
        "layer_tokens": layer_tokens,
    }
