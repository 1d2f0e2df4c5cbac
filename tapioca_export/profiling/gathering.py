"""Answer states of samples in several domains: one accumulator a domain, and what they come to together.

A proposal of this project, as the profiles are: the target's deviation is made of the domains' mean
deviations as its metric is made of theirs (mean, worst or weighted); its profile, which is only shown, is
the mean of the domains' profiles, weighted where the objective is.

Shapes: N samples, D domains, L layers of S stacks, L+S boundaries, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..artifacts import Curves, Deviation, LayerProfile, Numbering
from ..domains import Domains
from ..errors import SelectionError
from ..models import LoadedModel
from ..samples import Samples
from ..tasks import Batch, Processor
from .accumulating import Accumulator, log_ratios, mean_deviation, percentile_band
from .weighing import summed_cosines


@dataclass(frozen=True)
class Gathered:
    """A target's or ID's profile, that of each domain, and what halves of the first domain differ by."""

    profile: LayerProfile
    by_domain: tuple[LayerProfile, ...]
    noise_floor: Curves


class Gathering:
    """Accumulators of the domains of one sample set; batches hold rows of one domain.

    Args:
        samples: The rows that batches name.
        numbering: The model's layers.
        num_replicates: R; 0 where no band is asked for.
        seed: Seed of every resampling.
    """

    def __init__(self, samples: Samples, numbering: Numbering, num_replicates: int, seed: int) -> None:
        self.domains, self.numbering = samples.domains, numbering
        self.parts = [Accumulator(part, numbering, num_replicates, seed) for part in samples.by_domain]

    def add(
        self, batch: Batch, states: Sequence[torch.Tensor], cosines: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """Add a batch, as `Accumulator.add` does."""
        first = int(batch.indices[0])
        number = next(n for n, place in enumerate(self.domains.parts) if first < place.stop)
        within = replace(batch, indices=batch.indices - self.domains.parts[number].start)
        self.parts[number].add(within, states, cosines, num_tokens)

    def result(self, dropped: Collection[int]) -> Gathered:
        """Return what was added comes to, with the layers skipped."""
        by_domain = tuple(part.profile(dropped) for part in self.parts)
        whole = by_domain[0] if len(by_domain) == 1 else self._mean(by_domain, dropped)
        return Gathered(whole, by_domain, self.parts[0].noise_floor())

    def _mean(self, found: Sequence[LayerProfile], dropped: Collection[int]) -> LayerProfile:
        average = self.domains.average
        drawn = zip(*(part.replicates() for part in self.parts), strict=True)
        bands = [percentile_band(average(parts)) for parts in drawn]
        influences = average([[i or 0.0 for i in one.influences] for one in found]).tolist()
        return LayerProfile(
            norms=tuple(average([one.norms for one in found]).tolist()),
            distances=tuple(average([one.distances for one in found]).tolist()),
            influences=tuple(None if n in dropped else i for n, i in enumerate(influences)),
            norms_band=bands[0],
            distances_band=bands[1],
            num_samples=sum(one.num_samples for one in found),
            num_tokens=sum(one.num_tokens for one in found),
        )

    def mean_deviation(self, reference: LayerProfile, dropped: Collection[int]) -> float:
        """Return how far the target is from a reference, over the boundaries that are left."""
        profiles = [part.profile(dropped) for part in self.parts]
        found = deviations(profiles, reference, NOTHING, dropped, self.numbering)
        return together(found, self.domains).mean


NOTHING = Curves((), (), 0.0)


def deviations(
    profiles: Sequence[LayerProfile],
    reference: LayerProfile,
    floor: Curves,
    dropped: Collection[int],
    numbering: Numbering,
) -> tuple[Deviation, ...]:
    """Return how far each profile is from a reference; the mean is over what is left without `dropped`."""
    found = []
    for profile in profiles:
        norms, distances = log_ratios(profile, reference)
        mean = mean_deviation(norms, distances, dropped, numbering)
        found.append(Deviation(tuple(norms), tuple(distances), mean, floor))
    return tuple(found)


def together(found: Sequence[Deviation], domains: Domains) -> Deviation:
    """Return the target's deviation; where the worst domain counts, it is that domain's."""
    if domains.is_worst:
        return max(found, key=lambda deviation: deviation.mean)
    norms, distances = (
        domains.combined([getattr(part, name) for part in found], False) for name in ("norms", "distances")
    )
    mean = float(domains.combined([part.mean for part in found], False))
    return Deviation(tuple(norms.tolist()), tuple(distances.tolist()), mean, found[0].noise_floor)


def _refuse_padding(batch: Batch, mask: torch.Tensor) -> None:
    """Refuse to take padding for tokens, where a token is a state.

    Raises:
        SelectionError: If there is some among the states (B, T) that count.
    """
    given = batch.inputs.get("attention_mask")
    if given is not None and given.shape == tuple(mask.shape) and (mask.numpy() & (given == 0)).any():
        raise SelectionError("Padding would be profiled as tokens.", "Report this with the task.")


def _answer_stack(model: LoadedModel) -> int:
    """Return the place of the stack whose states the head reads: by default the last."""
    names = list(model.numbering.depths)
    return names.index(model.task.answer_stack) if model.task.answer_stack in names else len(names) - 1


def _read_answers(
    model: LoadedModel, processor: Processor, batch: Batch, streams: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the states (n, B, P, H) of n streams (B, T, H) where answers are read."""
    batch = replace(batch, num_states=streams[0].shape[1])
    at = torch.from_numpy(model.task.readout(batch, processor)).to(streams[0].device)
    return torch.stack([at @ stream.float() for stream in streams])


def head_states(
    model: LoadedModel, processor: Processor, batch: Batch, boundaries: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the states (B, P, H) that the head reads."""
    last = model.numbering.boundaries[_answer_stack(model)][-1]
    return _read_answers(model, processor, batch, [boundaries[last]])[0]


def read_states(
    model: LoadedModel, processor: Processor, batch: Batch, boundaries: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], np.ndarray, np.ndarray]:
    """Return answer states (D+1, B, P, H) of each stack, summed cosines (L,) and real tokens (S,).

    Here D is the depth of a stack.

    Raises:
        SelectionError: If padding would count.
    """
    task, numbering = model.task, model.numbering
    names = list(numbering.depths)
    read = names[_answer_stack(model)]
    states, cosines, num_tokens = [], [], []
    for name, part in zip(names, numbering.boundaries, strict=True):
        streams = [boundaries[number] for number in part]
        if name == read:
            counted = replace(batch, num_states=streams[0].shape[1])
            mask = torch.from_numpy(task.state_mask(counted, processor)).bool()
            _refuse_padding(batch, mask)
            states.append(_read_answers(model, processor, batch, streams))
        else:
            weights = task.readout_of(name, batch, (streams[0].shape[0], streams[0].shape[1]))
            mask = torch.from_numpy(weights.any(axis=0))  # weights: (B, S, T)
            rows = torch.from_numpy(weights).flatten(1).to(streams[0].device)
            found = torch.stack([rows @ stream.float().flatten(0, 1) for stream in streams])
            states.append(found[:, :, None])
        cosines += summed_cosines(streams, mask)
        num_tokens.append(int(mask.sum()))
    return states, np.asarray(cosines), np.asarray(num_tokens)
