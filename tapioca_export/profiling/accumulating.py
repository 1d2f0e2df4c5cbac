"""Running sums that turn answer states into a profile; memory does not grow with the samples.

Knows nothing about networks or batches of tokens.

Shapes: N samples, B rows of a batch, P answer positions, H hidden size (of each stack its own), L layers
of S stacks, D layers of one of them, L+S boundaries, R bootstrap replicates, M samples whose distances
are measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from ..artifacts import Curves, Interval, LayerProfile, Numbering
from ..errors import NotFiniteError
from ..samples import Samples
from ..tasks import Batch

# Samples whose pairwise distances are measured: the cost grows with the square.
NUM_DISTANCE_SAMPLES = 256
NUM_REPLICATES = 200


class Accumulator:
    """Streams answer states of one sample set into a profile; memory does not grow with N.

    Norms, their bootstrap replicates and their random halves are running sums. A sample's Poisson
    weights and its half are drawn from its own content (a streaming bootstrap, as in Hanley and
    MacGibbon 2006), so nothing depends on batch size or order. Distances are between the M samples
    of lowest hash, whose states are kept.
    """

    def __init__(self, samples: Samples, numbering: Numbering, num_replicates: int, seed: int) -> None:
        self.rows, self.numbering = samples.rows, numbering
        self.hashes = samples.hashes
        self.seed = seed
        self.num_replicates = num_replicates
        order = sorted(range(len(samples)), key=lambda i: (self.hashes[i], i))
        self.chosen = set(order[:NUM_DISTANCE_SAMPLES])
        self.depths = tuple(numbering.depths.values())
        num_boundaries = numbering.num_layers + len(self.depths)
        shape = (num_replicates, num_boundaries)
        self.norm_sum = np.zeros(num_boundaries)
        self.cosine_sum = np.zeros(numbering.num_layers)
        self.num_samples, self.num_tokens = 0, np.zeros(len(self.depths), dtype=np.int64)
        self.weight_sum, self.weighted_norm_sum = np.zeros(num_replicates), np.zeros(shape)
        self.half_count, self.half_norm_sum = np.zeros(num_replicates), np.zeros(shape)
        self.states: dict[int, list[torch.Tensor]] = {}
        self._matrices: list[np.ndarray] = []

    def add(
        self, batch: Batch, states: Sequence[torch.Tensor], cosines: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """Add a batch: states (D+1, B, P, H) of each stack, summed cosines (L,), real tokens (S,).

        Raises:
            NotFiniteError: If a state is NaN or infinite.
        """
        norms = norms_of(states)
        refuse_not_finite(norms, [self.rows[index].where for index in batch.indices], self.numbering)
        self.norm_sum += norms.sum(axis=0)
        self.cosine_sum += cosines
        self.num_samples += len(batch)
        self.num_tokens += num_tokens
        for position, index in enumerate(batch.indices.tolist()):
            if index in self.chosen:
                # A view would keep the batch.
                self.states[index] = [part[:, position].cpu().clone() for part in states]
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
        cosines = self.cosine_sum / np.repeat(self.num_tokens, self.depths)
        bands = map(percentile_band, self.replicates()) if self.num_replicates else ((), ())
        norms_band, distances_band = bands
        return LayerProfile(
            norms=tuple((self.norm_sum / self.num_samples).tolist()),
            distances=tuple(float(matrix.sum() / pairs) for matrix in matrices),
            influences=tuple(None if i in dropped else float(1 - c) for i, c in enumerate(cosines)),
            norms_band=norms_band,
            distances_band=distances_band,
            num_samples=self.num_samples,
            num_tokens=int(self.num_tokens.sum()),
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
        norms = log_ratio(means, other_means, means)  # (R, L+S)
        sides = []
        for side in (halves.T, 1 - halves.T):  # (R, M)
            pairs = side.sum(axis=1) * (side.sum(axis=1) - 1)
            sides.append(
                [((side @ m) * side).sum(axis=1) / np.maximum(pairs, 1) for m in self._distance_matrices()]
            )
        distances = log_ratio(np.asarray(sides[0]).T, np.asarray(sides[1]).T, means)
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
            for part in zip(*(self.states[index] for index in sorted(self.states)), strict=True):
                self._matrices += [distances_between(states) for states in torch.stack(part, dim=2)]
        return self._matrices

    def replicates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return bootstrap replicates of the norm and of the distance profile, each (R, L+S).

        Replicate r of every accumulator of the same rows and seed draws the same rows.
        """
        norms = self.weighted_norm_sum / np.maximum(self.weight_sum, 1)[:, None]
        weights = self._draws(sorted(self.states))[0].T  # (R, M)
        pairs = np.square(weights.sum(axis=1)) - np.square(weights).sum(axis=1)
        means = [
            ((weights @ m) * weights).sum(axis=1) / np.maximum(pairs, 1) for m in self._distance_matrices()
        ]
        return norms, np.asarray(means).T


def distances_between(states: torch.Tensor) -> np.ndarray:
    """Return the distances (M, M) between samples, averaged over positions, from states (P, M, H).

    By matrix products, which cost less than differences. What they lose to rounding is half of the digits
    beside the spread of the states: in float64, and around their mean, less than float32 states have.
    """
    states = states.double()
    states = states - states.mean(dim=1, keepdim=True)
    pairs = torch.cdist(states, states, compute_mode="use_mm_for_euclid_dist").mean(dim=0)
    return np.asarray(pairs.fill_diagonal_(0.0).numpy())


def norms_of(states: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the norm of each row at each boundary, (B, L+S), from states (D+1, B, P, H) of each stack."""
    each = [part.double().norm(dim=-1).mean(dim=-1).T.cpu().numpy() for part in states]
    return np.concatenate(each, axis=1)


def refuse_not_finite(
    norms: np.ndarray, places: Sequence[str], numbering: Numbering, skipped: str = ""
) -> None:
    """Refuse states that are NaN or infinite.

    Args:
        norms: Of each row at each boundary, (B, L+S).
        places: Where the rows stand.
        numbering: Names the layers.
        skipped: What the model is run without, in words, if anything.

    Raises:
        NotFiniteError: Naming the first row with such a state, and the first layer behind which it is.
    """
    finite = np.isfinite(norms)
    if finite.all():
        return
    row = int(np.argmin(finite.all(axis=1)))
    boundary = int(np.argmin(finite[row]))
    stack = next(n for n, part in enumerate(numbering.boundaries) if boundary in part)
    place = boundary - numbering.boundaries[stack].start
    layer = numbering.ranges[stack].start + place - 1
    where = f"behind layer {numbering.names([layer])[0]}" if place else "before the first layer"
    raise NotFiniteError(f"The states {where}{skipped} are", places[row])


def percentile_band(replicates: np.ndarray) -> tuple[Interval, ...]:
    """Return 95 % percentile intervals of replicates (R, L+S)."""
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def log_ratio(one: np.ndarray, other: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return |log(one / other)|; what is a millionth of the norm counts as zero.

    States can be equal for all samples (a first token after the embedding): both distances are then
    rounding errors, and their ratio is no deviation.
    """
    nothing = 1e-6 * norms
    ratio: np.ndarray = np.abs(np.log((one + nothing) / (other + nothing)))
    return ratio


def log_ratios(profile: LayerProfile, reference: LayerProfile) -> tuple[list[float], list[float]]:
    """Return the deviation of norms and of distances, a boundary."""
    scale = np.asarray(reference.norms)
    norms = log_ratio(np.asarray(profile.norms), scale, scale)
    distances = log_ratio(np.asarray(profile.distances), np.asarray(reference.distances), scale)
    return norms.tolist(), distances.tolist()


def mean_deviation(
    norms: Sequence[float], distances: Sequence[float], dropped: Collection[int], numbering: Numbering
) -> float:
    """Average over the boundaries that `surviving_boundaries` names."""
    kept = surviving_boundaries(dropped, numbering)
    return float(np.mean([(norms[b] + distances[b]) / 2 for b in kept]))


def surviving_boundaries(dropped: Collection[int], numbering: Numbering) -> list[int]:
    """Return the boundaries after surviving layers, and each stack's first and last one.

    The last is what the head, or the next stack, reads, whether or not the last layer survives.
    """
    return [
        boundaries[place]
        for layers, boundaries in zip(numbering.ranges, numbering.boundaries, strict=True)
        for place in range(len(boundaries))
        if place in (0, len(layers)) or layers[place - 1] not in dropped
    ]
