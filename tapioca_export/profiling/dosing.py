"""What a model with some layers changed does on the rows of a probe: profile, values and losses.

One pass of a batch is recorded; each variant computes only what is above the lowest layer it changes.
Knows nothing about which layers are changed, or why.

Shapes: N samples of D domains, L layers of S stacks, L+S boundaries, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifacts import Curves
from ..bars import progress_bar
from ..config import UNNAMED
from ..domains import Domains
from ..models import INTACT, Change, stand_ins
from ..tasks import Batch, Scores
from .accumulating import NUM_REPLICATES, log_ratio
from .gathering import Gathering, read_states
from .probe import Probe
from .replaying import Trace, changed_passes, forwards_of

# Each variant keeps the states of up to 256 samples until all rows have passed: so many at a time.
NUM_AT_ONCE = 16

Variant = Mapping[int, Change]


@dataclass(frozen=True)
class Response:
    """One variant on all rows: norms, distances (D, L+S), their replicates (D, R, L+S), scores if labelled.

    Replicate r draws the same rows for every variant. `noise_floor` is what random halves of the rows of
    the first domain differ by, None where a layer is changed.
    """

    norms: np.ndarray
    distances: np.ndarray
    norm_replicates: np.ndarray
    distance_replicates: np.ndarray
    noise_floor: Curves | None
    scores: Scores | None
    domains: Domains

    def deviations(self, reference: Response, boundaries: Sequence[int]) -> np.ndarray:
        """Return the mean |log ratio| to a reference over boundaries: (2,), of norms and of distances.

        Of several domains, it is the objective's of each of the two.
        """
        pairs = ((self.norms, reference.norms), (self.distances, reference.distances))
        ratios = [log_ratio(one, other, reference.norms) for one, other in pairs]
        found = np.asarray(ratios)[:, :, boundaries].mean(axis=-1)  # (2, D)
        return self.domains.combined(found.swapaxes(0, 1), False)

    def deviation_replicates(self, reference: Response, boundaries: Sequence[int]) -> np.ndarray:
        """Return `deviations` of each replicate of both, (2, R)."""
        pairs = (
            (self.norm_replicates, reference.norm_replicates),
            (self.distance_replicates, reference.distance_replicates),
        )
        ratios = [log_ratio(one, other, reference.norm_replicates) for one, other in pairs]
        found = np.asarray(ratios)[:, :, :, boundaries].mean(axis=-1)  # (2, D, R)
        return self.domains.combined(found.swapaxes(0, 1), False)

    def split(self) -> dict[str, Response]:
        """Return the response of each domain, by its name."""
        found = {}
        for n, (name, size) in enumerate(self.domains.sizes_by_name.items()):
            found[name] = Response(
                self.norms[n : n + 1],
                self.distances[n : n + 1],
                self.norm_replicates[n : n + 1],
                self.distance_replicates[n : n + 1],
                None,
                self.scores and self.scores.split(self.domains)[n],
                Domains.of({UNNAMED: size}),
            )
        return found


def respond(
    probe: Probe, variants: Sequence[Variant], num_replicates: int = NUM_REPLICATES
) -> list[Response]:
    """Measure each variant on the rows that drive the probe.

    Args:
        probe: Says which rows, and how they are batched.
        variants: What becomes of which layers; of the others, nothing.
        num_replicates: R; 0 where no interval is asked for.

    Returns:
        A response a variant. A layer dropped or left as it is takes the path on which nothing is rounded.
    """
    asked = [{layer: c for layer, c in changes.items() if c != INTACT} for changes in variants]
    found: list[Response] = []
    for start in range(0, len(asked), NUM_AT_ONCE):
        found += _respond(probe, asked[start : start + NUM_AT_ONCE], num_replicates)
    return found


def _respond(probe: Probe, variants: Sequence[Variant], num_replicates: int) -> list[Response]:
    """Measure a few variants."""
    samples, task = probe.samples[probe.select_on], probe.model.task
    sums = [Gathering(samples, probe.numbering, num_replicates, probe.seed) for _ in variants]
    scored: list[list[tuple[np.ndarray, Scores]]] = [[] for _ in variants]

    def score(batch: Batch, number: int, trace: Trace) -> None:
        assert trace.answers is not None
        scored[number].append((batch.indices, task.score_by_domain(trace.answers, samples, batch.indices)))

    for batch, number, trace in _passes(probe, variants, task.profile_batch):
        sums[number].add(batch, *read_states(probe.model, probe.processor, batch, trace.boundaries))
        if samples.is_labelled and task.profiles_while_scoring:
            score(batch, number, trace)
    if samples.is_labelled and not task.profiles_while_scoring:
        for batch, number, trace in _passes(probe, variants, task.batch):
            score(batch, number, trace)
    return [_response(*parts) for parts in zip(variants, sums, scored, strict=True)]


def _passes(
    probe: Probe, variants: Sequence[Variant], encode: Callable[..., Batch]
) -> Iterator[tuple[Batch, int, Trace]]:
    """Yield batch, number of the variant and its pass; what they cost goes to the probe's ledger."""
    samples = probe.samples[probe.select_on]
    divided = probe.profile_batches(samples)
    with stand_ins(probe.model) as places:
        for indices in progress_bar(
            divided, desc=f"Measuring {samples.role} rows", unit="batch", leave=False
        ):
            batch = encode(samples, indices, probe.processor)
            for number, trace in enumerate(changed_passes(probe.model, places, batch, variants)):
                yield batch, number, trace
        probe.ledger.add_cost(*forwards_of(places))


def _response(changes: Variant, sums: Gathering, scored: Sequence[tuple[np.ndarray, Scores]]) -> Response:
    """Put together what was measured of a variant."""
    profiles = [part.profile(()) for part in sums.parts]
    has_replicates = bool(sums.parts[0].num_replicates)
    nothing = np.zeros((0, len(profiles[0].norms)))
    drawn = [part.replicates() if has_replicates else (nothing, nothing) for part in sums.parts]
    return Response(
        np.asarray([profile.norms for profile in profiles]),
        np.asarray([profile.distances for profile in profiles]),
        np.asarray([norms for norms, _ in drawn]),
        np.asarray([distances for _, distances in drawn]),
        sums.parts[0].noise_floor() if has_replicates and not changes else None,
        Scores.joined(scored) if scored else None,
        sums.domains,
    )
