"""The profiles of a model before and after layers are dropped, of the whole target and of each domain.

Knows what is held against what, and nothing of how a profile is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from .artifacts import Damping, Deviation, DomainProfile, LayerName, Profile
from .models import LoadedModel
from .profiling import Probe

logger = logging.getLogger(__name__)


def measure(
    model: LoadedModel, probe: Probe, drop: Sequence[LayerName], damp: Sequence[Damping] = ()
) -> Profile:
    """Profile ID and target, before and after layers are dropped, and damped to scales of the probe's."""
    sizes = [len(probe.samples[name]) for name in ("id", "target")]
    logger.info("Profiling %d ID and %d target rows", *sizes)
    before, numbering = probe.deviation(), model.numbering
    result = Profile(
        model=model.source,
        task=model.task.name,
        position=model.processor.position,
        layers=numbering.names(range(model.num_layers)),
        id=probe.profile("id"),
        target=probe.profile("target"),
        deviation=before,
        stacks=numbering.stacks,
    )
    domains = probe.samples["target"].domains
    layers = sorted(probe.choices.chosen(drop, {part.layer: part.scale for part in damp}))
    if domains.are_named:
        found = zip(domains.names, _measure_domains(probe, layers), strict=True)
        result = replace(result, objective=domains.objective, targets=dict(found))
    if not layers:
        return result
    after, comparable = probe.deviation(layers), probe.deviation(over=layers)
    return replace(
        result,
        drop=probe.choices.units.names(probe.choices.dropped(layers)),
        damp=tuple(damp),
        pruned_id=probe.profile("id", layers),
        pruned_target=probe.profile("target", layers),
        pruned_deviation=after,
        deviation_removed=_removed(comparable, after),
    )


def _measure_domains(probe: Probe, layers: Sequence[int]) -> list[DomainProfile]:
    """Profile each target domain, before and after the layers are dropped."""
    before = zip(probe.domain_profiles(), probe.domain_deviations(), strict=True)
    if not layers:
        return [DomainProfile(*parts) for parts in before]
    after, comparable = probe.domain_deviations(layers), probe.domain_deviations(over=layers)
    pruned = zip(probe.domain_profiles(layers), after, comparable, strict=True)
    return [
        DomainProfile(*parts, profile, deviation, _removed(least, deviation))
        for parts, (profile, deviation, least) in zip(before, pruned, strict=True)
    ]


def _removed(before: Deviation, after: Deviation) -> float | None:
    """Return the share of a deviation that is gone, over the same boundaries."""
    return 1 - after.mean / before.mean if before.mean else None
