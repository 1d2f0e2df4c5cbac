"""`Probe`: profile, metric and loss of a model with any set of layers skipped, at the least cost.

Criteria ask a probe for numbers; they never touch the network. Candidates that drop one more layer
replay the prefix: batches are outermost, one pass a batch records what every layer returns, and a
candidate that drops layer l then computes only the layers above l. Memory is one batch times the
depth. Knows nothing about why a layer is chosen.

The papers' text was not to be had for the profiles, so these are this project's definitions:
`h_l(x)` is the residual stream at boundary l where the task reads its answer, before any final norm;
the norm profile is the mean of `||h_l(x)||` over samples, the distance profile the mean of
`||h_l(x) - h_l(x')||` over pairs of samples, the deviation `|log ratio|` against the ID profile.

Shapes: N samples, B rows of a batch, T tokens, P answer positions, H hidden size, L layers,
L+1 boundaries, R bootstrap replicates, M samples whose distances are measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from .artifacts import Curves, Deviation, Evaluation, Interval, LayerProfile
from .models import LoadedModel, StandIn, stand_ins, stream_of, with_stream
from .samples import Samples
from .tasks import Batch

# Samples whose pairwise distances are measured: the cost grows with the square.
NUM_DISTANCE_SAMPLES = 256
NUM_REPLICATES = 200


class Probe:
    """Measurements of one model on ID and target samples, with any layers skipped.

    Args:
        model: The network under study; left as it was found.
        samples: Select rows by "id" and "target".
        select_on: Which of them drives the search ("target" or "id").
        batch_size: Rows a forward.
        seed: Seed of every resampling.
        known: Evaluations by set of dropped layers, read before measuring and added to; a journal.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Mapping[str, Samples],
        *,
        select_on: str = "target",
        batch_size: int = 32,
        seed: int = 0,
        known: MutableMapping[frozenset[int], Evaluation] | None = None,
    ) -> None:
        self.model = model
        self.samples = samples
        self.select_on = select_on
        self.batch_size = batch_size
        self.seed = seed
        self.num_layers = model.num_layers
        self.num_evaluations = 0
        self.layer_forwards = 0
        self.plain_layer_forwards = 0
        self._known = {} if known is None else known
        self._measured: dict[tuple[str, frozenset[int]], tuple[LayerProfile, Curves]] = {}

    @property
    def is_labelled(self) -> bool:
        """Tell whether the rows that drive the search have labels."""
        return self.samples[self.select_on].is_labelled

    @property
    def higher_is_better(self) -> bool:
        """Tell which way the task metric improves."""
        return self.model.task.higher_is_better

    # --- metric ---------------------------------------------------------------------------

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        """Return metric and mean loss with the layers skipped, on the rows that drive the search."""
        key = frozenset(dropped)
        if key not in self._known or self._known[key].metric is None:
            self._sweep(self.select_on, key, (), with_states=False)
        return self._known[key]

    def metrics(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return metric and mean loss with `dropped` and one more layer skipped, layer by layer."""
        base = frozenset(dropped)
        unknown = [n for n in layers if self._known.get(base | {n}, Evaluation()).metric is None]
        if unknown:
            self._sweep(self.select_on, base, unknown, with_states=False)
        return {layer: self._known[base | {layer}] for layer in layers}

    # --- profiles -------------------------------------------------------------------------

    def profile(self, name: str, dropped: Collection[int] = ()) -> LayerProfile:
        """Return the profile on "id" or "target" samples with the layers skipped."""
        return self._measure(name, frozenset(dropped))[0]

    def deviation(self, dropped: Collection[int] = (), over: Collection[int] | None = None) -> Deviation:
        """Return how far the target's profile with the layers skipped is from the full model's on ID.

        The mean is over the boundaries that remain when the layers `over` (default: `dropped`) are
        gone; to compare two models, name the same layers for both.
        """
        reference, floor = self._measure("id", frozenset())
        norms, distances = _log_ratios(self.profile("target", dropped), reference)
        mean = _mean_deviation(norms, distances, dropped if over is None else over)
        return Deviation(tuple(norms), tuple(distances), mean, floor)

    def deviations(self, dropped: Collection[int], layers: Sequence[int]) -> dict[int, Evaluation]:
        """Return the target's mean deviation with `dropped` and one more layer skipped.

        Metric and loss come along where the target's labels drive the search.
        """
        base = frozenset(dropped)
        unknown = [n for n in layers if self._known.get(base | {n}, Evaluation()).deviation is None]
        if unknown:
            self._sweep("target", base, unknown, with_states=True)
        return {layer: self._known[base | {layer}] for layer in layers}

    # --- measuring ------------------------------------------------------------------------

    def _sweep(self, name: str, base: frozenset[int], layers: Sequence[int], *, with_states: bool) -> None:
        """Measure `base`, and `base` plus each layer, on all rows of a sample set."""
        samples = self.samples[name]
        reference = self._measure("id", frozenset())[0] if with_states else None
        keys: list[int | None] = [*layers] if layers else [None]
        logits: dict[int | None, list[np.ndarray]] = {key: [] for key in keys}
        states = {key: _Accumulator(samples, self.num_layers, 0, self.seed) for key in keys}
        order = []
        for batch, key, output, boundaries in self._passes(samples, base, layers):
            if key is None:
                order.append(batch.indices)
            if key in logits:
                logits[key].append(output)
                if with_states:
                    states[key].add(batch, *self._read(batch, boundaries))
        rows = np.argsort(np.concatenate(order))
        for key in keys:
            dropped = base if key is None else base | {key}
            found = self._known.get(dropped, Evaluation())
            if name == self.select_on and samples.is_labelled:
                scores = self.model.task.score(np.concatenate(logits[key])[rows], samples)
                found = replace(found, metric=scores.metric, loss=scores.loss)
            if reference is not None:
                norms, distances = _log_ratios(states[key].profile(dropped), reference)
                found = replace(found, deviation=_mean_deviation(norms, distances, dropped))
            self._known[dropped] = found
            self.num_evaluations += 1
            self.plain_layer_forwards += len(samples) * (self.num_layers - len(dropped))

    def _measure(self, name: str, dropped: frozenset[int]) -> tuple[LayerProfile, Curves]:
        """Return a profile with bands, and what random halves of its samples differ by."""
        if (name, dropped) not in self._measured:
            samples = self.samples[name]
            accumulator = _Accumulator(samples, self.num_layers, NUM_REPLICATES, self.seed)
            for batch, _, _, boundaries in self._passes(samples, dropped, ()):
                accumulator.add(batch, *self._read(batch, boundaries))
            profile = accumulator.profile(dropped)
            self._measured[name, dropped] = profile, accumulator.noise_floor()
        return self._measured[name, dropped]

    @torch.no_grad()
    def _passes(
        self, samples: Samples, base: frozenset[int], layers: Sequence[int]
    ) -> Iterator[tuple[Batch, int | None, np.ndarray, list[torch.Tensor]]]:
        """Yield, batch by batch, logits and boundary states (L+1 of (B, T, H)) of every pass.

        The pass with key None skips `base`, that with key l skips l too, replaying what is below.
        """
        task, processor = self.model.task, self.model.processor
        batches = task.batches(samples, processor, self.batch_size)
        total = -(-len(samples) // self.batch_size)
        with stand_ins(self.model) as places:
            for batch in tqdm(batches, total=total, disable=None, leave=False, unit="batch"):
                trace = self._forward(places, batch, {}, base)
                yield batch, None, trace.logits, trace.boundaries
                for layer in layers:
                    # Below the dropped layer nothing changes; the layer itself returns its input.
                    answers = {i: trace.outputs[i] for i in range(layer)}
                    answers[layer] = with_stream(trace.outputs[layer], trace.boundaries[layer])
                    replayed = self._forward(places, batch, answers, base)
                    yield batch, layer, replayed.logits, replayed.boundaries
            self.layer_forwards += sum(place.num_forwards for place in places)

    def _forward(
        self,
        places: Sequence[StandIn],
        batch: Batch,
        answers: Mapping[int, object],
        base: frozenset[int],
    ) -> _Trace:
        """Run the network's own forward with some layers answering from a recording."""
        outputs: list[object] = []
        boundaries: list[torch.Tensor] = []

        def see(stream: torch.Tensor, output: object) -> None:
            if not boundaries:
                boundaries.append(stream)
            boundaries.append(stream_of(output))
            outputs.append(output)

        for index, place in enumerate(places):
            place.answer, place.skips, place.see = answers.get(index), index in base, see
        return _Trace(self.model.logits(batch.inputs), outputs, boundaries)

    def _read(self, batch: Batch, boundaries: Sequence[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray, int]:
        """Return answer states (L+1, B, P, H), summed cosines (L,) and the number of real tokens."""
        task = self.model.task
        weights = torch.from_numpy(task.readout(batch.inputs, self.model.processor))
        mask = torch.from_numpy(task.token_mask(batch.inputs)).bool()
        device = boundaries[0].device
        states = torch.stack([weights.to(device) @ stream.float() for stream in boundaries])
        cosines = [
            functional.cosine_similarity(before.float(), after.float(), dim=-1)[mask.to(device)]
            .double()
            .sum()
            for before, after in pairwise(boundaries)
        ]
        return states, np.asarray([float(c) for c in cosines]), int(mask.sum())


@dataclass(frozen=True)
class _Trace:
    """One forward: logits, what each layer returned, and the residual stream at each boundary."""

    logits: np.ndarray
    outputs: list[object]
    boundaries: list[torch.Tensor]


class _Accumulator:
    """Streams answer states of one sample set into a profile; memory does not grow with N.

    Norms, their bootstrap replicates and their random halves are running sums. A sample's Poisson
    weights and its half are drawn from its own content (a streaming bootstrap, as in Hanley and
    MacGibbon 2006), so nothing depends on batch size or order. Distances are between the M samples
    of lowest hash, whose states are kept.
    """

    def __init__(self, samples: Samples, num_layers: int, num_replicates: int, seed: int) -> None:
        self.hashes = samples.hashes
        self.seed = seed
        self.num_replicates = num_replicates
        order = sorted(range(len(samples)), key=lambda i: (self.hashes[i], i))
        self.chosen = set(order[:NUM_DISTANCE_SAMPLES])
        shape = (num_replicates, num_layers + 1)
        self.norm_sum = np.zeros(num_layers + 1)
        self.cosine_sum = np.zeros(num_layers)
        self.num_samples = self.num_tokens = 0
        self.weight_sum, self.weighted_norm_sum = np.zeros(num_replicates), np.zeros(shape)
        self.half_count, self.half_norm_sum = np.zeros(num_replicates), np.zeros(shape)
        self.states: dict[int, torch.Tensor] = {}
        self._matrices: list[np.ndarray] = []

    def add(self, batch: Batch, states: torch.Tensor, cosines: np.ndarray, num_tokens: int) -> None:
        """Add a batch: states (L+1, B, P, H), summed cosines (L,), real tokens."""
        norms = states.double().norm(dim=-1).mean(dim=-1).T.cpu().numpy()  # (B, L+1)
        self.norm_sum += norms.sum(axis=0)
        self.cosine_sum += cosines
        self.num_samples += len(batch)
        self.num_tokens += num_tokens
        for position, index in enumerate(batch.indices.tolist()):
            if index in self.chosen:
                self.states[index] = states[:, position].cpu().clone()  # a view would keep the batch
        if self.num_replicates:
            weights, halves = self._draws(batch.indices.tolist())
            self.weight_sum += weights.sum(axis=0)
            self.weighted_norm_sum += weights.T @ norms
            self.half_count += halves.sum(axis=0)
            self.half_norm_sum += halves.T @ norms

    def profile(self, dropped: Collection[int]) -> LayerProfile:
        """Return the profile of what was added."""
        matrices = self._distance_matrices()
        pairs = len(matrices[0]) * (len(matrices[0]) - 1)
        cosines = self.cosine_sum / self.num_tokens
        return LayerProfile(
            norms=tuple((self.norm_sum / self.num_samples).tolist()),
            distances=tuple(float(matrix.sum() / pairs) for matrix in matrices),
            influences=tuple(None if i in dropped else float(1 - c) for i, c in enumerate(cosines)),
            norms_band=self._norms_band(),
            distances_band=self._distances_band(matrices),
            num_samples=self.num_samples,
            num_tokens=self.num_tokens,
        )

    def noise_floor(self) -> Curves:
        """Return the 95th percentile of the deviation between two random halves."""
        _, halves = self._draws(sorted(self.states))
        # A half needs a pair to have a distance; with few samples some halvings leave less.
        smallest = np.minimum(self.half_count, self.num_samples - self.half_count)
        usable = np.minimum(smallest, np.minimum(halves.sum(axis=0), (1 - halves).sum(axis=0))) >= 2
        halves, count = halves[:, usable], self.half_count[usable, None]
        means = self.half_norm_sum[usable] / count
        other_means = (self.norm_sum - self.half_norm_sum[usable]) / (self.num_samples - count)
        norms = _log_ratio(means, other_means, means)  # (R, L+1)
        sides = []
        for side in (halves.T, 1 - halves.T):  # (R, M)
            pairs = side.sum(axis=1) * (side.sum(axis=1) - 1)
            sides.append(
                [((side @ m) * side).sum(axis=1) / np.maximum(pairs, 1) for m in self._distance_matrices()]
            )
        distances = _log_ratio(np.asarray(sides[0]).T, np.asarray(sides[1]).T, means)
        mean = (norms.mean(axis=1) + distances.mean(axis=1)) / 2
        return Curves(
            tuple(np.percentile(norms, 95, axis=0).tolist()),
            tuple(np.percentile(distances, 95, axis=0).tolist()),
            float(np.percentile(mean, 95)),
        )

    def _draws(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return Poisson(1) weights and half membership (0 or 1), each of shape (B, R)."""
        weights = np.empty((len(indices), self.num_replicates))
        halves = np.empty((len(indices), self.num_replicates))
        for row, index in enumerate(indices):
            generator = np.random.default_rng([self.seed, self.hashes[index]])
            weights[row] = generator.poisson(1.0, self.num_replicates)
            halves[row] = generator.integers(0, 2, self.num_replicates)
        return weights, halves

    def _distance_matrices(self) -> list[np.ndarray]:
        """Return, a boundary, distances (M, M) between samples, averaged over answer positions."""
        if not self._matrices:
            stacked = torch.stack([self.states[index] for index in sorted(self.states)], dim=2)
            for states in stacked:  # (P, M, H)
                # Without the matrix-product shortcut, whose rounding makes equal states differ.
                pairs = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist")
                self._matrices.append(pairs.double().mean(dim=0).numpy())
        return self._matrices

    def _norms_band(self) -> tuple[Interval, ...]:
        if not self.num_replicates:
            return ()
        return _band(self.weighted_norm_sum / np.maximum(self.weight_sum, 1)[:, None])

    def _distances_band(self, matrices: Sequence[np.ndarray]) -> tuple[Interval, ...]:
        if not self.num_replicates:
            return ()
        weights = self._draws(sorted(self.states))[0].T  # (R, M)
        pairs = np.square(weights.sum(axis=1)) - np.square(weights).sum(axis=1)
        means = [((weights @ m) * weights).sum(axis=1) / np.maximum(pairs, 1) for m in matrices]
        return _band(np.asarray(means).T)


def _band(replicates: np.ndarray) -> tuple[Interval, ...]:
    """Return 95 % percentile intervals of replicates (R, L+1)."""
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _log_ratio(one: np.ndarray, other: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return |log(one / other)|; what is a millionth of the norm counts as zero.

    States can be equal for all samples (a first token after the embedding): both distances are then
    rounding errors, and their ratio is no deviation.
    """
    nothing = 1e-6 * norms
    ratio: np.ndarray = np.abs(np.log((one + nothing) / (other + nothing)))
    return ratio


def _log_ratios(profile: LayerProfile, reference: LayerProfile) -> tuple[list[float], list[float]]:
    """Return the deviation of norms and of distances, a boundary."""
    scale = np.asarray(reference.norms)
    norms = _log_ratio(np.asarray(profile.norms), scale, scale)
    distances = _log_ratio(np.asarray(profile.distances), np.asarray(reference.distances), scale)
    return norms.tolist(), distances.tolist()


def _mean_deviation(norms: Sequence[float], distances: Sequence[float], dropped: Collection[int]) -> float:
    """Average over the boundaries after surviving layers, the embedding's, and the last.

    The last is what the head reads, whether or not the last layer survives.
    """
    last = len(norms) - 1
    kept = [b for b in range(last + 1) if b in (0, last) or b - 1 not in dropped]
    return float(np.mean([(norms[b] + distances[b]) / 2 for b in kept]))
