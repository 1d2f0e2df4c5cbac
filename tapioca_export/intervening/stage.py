"""The sweep over doses of some layers on the report rows, and its controls in the same run.

Knows which numbers are asked for, and nothing of how they are measured or put into words.

Shapes: A alphas, L+S boundaries, R bootstrap replicates.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from .. import steps
from ..artifacts import (
    Accuracy,
    Dose,
    Flatness,
    Intervention,
    LayerDoses,
    NormControl,
    RandomLayers,
    RandomSet,
    Rank,
    Trend,
)
from ..benchmarking import compare
from ..benchmarking.statistics import interval, replicates
from ..config import Doses, RunConfig
from ..domains import Domains
from ..models import DROPPED, Change, Damped, LoadedModel, Rescaled, Scaled, damping_weights, droppable_layers
from ..profiling import Probe, Response, respond, surviving_boundaries
from ..samples import Samples
from .controls import random_sets
from .judging import flatness, rank, trend

logger = logging.getLogger(__name__)


def intervene(
    config: RunConfig,
    model: LoadedModel,
    roles: Mapping[str, Samples],
    layers: Sequence[int],
    doses: Doses,
) -> Intervention:
    """Scale what layers add to the stream by each alpha, jointly and one by one, on ID and target rows.

    Args:
        config: Batch size, seed, and which layers no search would drop.
        model: The intact network.
        roles: Samples by role; report rows are measured. Rows without labels give the geometry alone.
        layers: The layers, at least one.
        doses: Alphas, draws and epsilon.

    Returns:
        Everything but the verdict in words.
    """
    logger.info("Scaling what layers add, on report rows")
    started = time.perf_counter()
    here = replace(config, engine="local", num_workers=1)
    with ExitStack() as open_probes:
        probes = {
            name: open_probes.enter_context(
                steps.probing(replace(here, select_on=name), model, roles, side="report")
            )
            for name in ("id", "target")
        }
        found = _Sweep(model, probes, tuple(sorted(layers)), doses, config).result()
    forwards = sum(probe.ledger.layer_forwards for probe in probes.values())
    return replace(found, layer_forwards=forwards, seconds=round(time.perf_counter() - started, 2))


class _Sweep:
    """One intervention: what was measured is kept by role and group of layers, and then by alpha."""

    def __init__(
        self,
        model: LoadedModel,
        probes: Mapping[str, Probe],
        layers: tuple[int, ...],
        doses: Doses,
        config: RunConfig,
    ) -> None:
        self.model, self.task, self.numbering = model, model.task, model.numbering
        self.probes, self.layers, self.doses, self.config = probes, layers, doses, config
        self.weights = damping_weights(model, layers) if doses.scaling == "branches" else {}
        self.sign = 1.0 if self.task.higher_is_better else -1.0
        self.alone = layers if doses.by_layer else ()
        self.groups = list(dict.fromkeys([layers, *((layer,) for layer in self.alone)]))
        self.found = {name: self._measured(probe) for name, probe in probes.items()}

    def _measured(self, probe: Probe) -> dict[tuple[int, ...], dict[float, Response]]:
        """Measure all alphas of the layers together, and of each alone."""
        pairs = [(group, alpha) for group in self.groups for alpha in self.doses.alphas]
        responses = respond(probe, [{n: self._scaled(n, alpha) for n in group} for group, alpha in pairs])
        found: dict[tuple[int, ...], dict[float, Response]] = {group: {} for group in self.groups}
        for (group, alpha), response in zip(pairs, responses, strict=True):
            found[group][alpha] = response
        return found

    def _scaled(self, layer: int, alpha: float) -> Change:
        """Return what becomes of a layer; dropped and intact it is the same in either way of scaling."""
        if self.doses.scaling == "block" or alpha in (0, 1):
            return Scaled(alpha)
        return Damped(alpha, self.weights[layer])

    def result(self) -> Intervention:
        """Judge what was measured, and measure the controls."""
        layers, names = self.layers, self.numbering.names(self.layers)
        domains = self._intact("target").domains
        id_, target = (self._curve(name, layers) for name in ("id", "target"))
        floor, kept = self._intact("id").noise_floor, surviving_boundaries(layers, self.numbering)
        assert floor is not None
        alone = [
            LayerDoses(
                self.numbering.name(layer), self._curve("id", (layer,)), self._curve("target", (layer,))
            )
            for layer in self.alone
        ]
        return Intervention(
            model=self.config.model,
            task=self.task.name,
            num_layers=self.numbering.num_layers,
            layers=names,
            alphas=self.doses.alphas,
            id=id_,
            target=target,
            by_layer=tuple(alone),
            random=self._random(),
            norms=self._norms(),
            deviation_trend=self._deviation_trend(),
            noise_floor=(
                float(np.mean([floor.norms[boundary] for boundary in kept])),
                float(np.mean([floor.distances[boundary] for boundary in kept])),
            ),
            metric=self.task.metric,
            higher_is_better=self.task.higher_is_better,
            dropped=self._dropped(),
            metric_trend=self._metric_trend(),
            flatness=self._flatness(id_),
            num_id=self.probes["id"].num_rows,
            num_target=self.probes["target"].num_rows,
            seed=self.config.seed,
            scaling=self.doses.scaling,
            stacks=self.numbering.stacks,
            objective=domains.objective if domains.are_named else None,
            targets=self._by_domain(),
        )

    def _intact(self, name: str) -> Response:
        return self.found[name][self.layers][1.0]

    # --- doses ----------------------------------------------------------------------------

    def _curve(self, name: str, group: tuple[int, ...]) -> tuple[Dose, ...]:
        """Return the doses of a group of layers, with intervals."""
        kept = surviving_boundaries(group, self.numbering)
        found = self.found[name][group]
        return self._doses(found, kept)

    def _doses(self, found: Mapping[float, Response], kept: Sequence[int]) -> tuple[Dose, ...]:
        doses = [self._geometry(alpha, response, kept) for alpha, response in found.items()]
        return self._scored(doses, list(found.values()), self.doses.alphas.index(1.0))

    def _by_domain(self) -> dict[str, tuple[Dose, ...]]:
        """Return the doses of the layers together on each named target domain."""
        found = self.found["target"][self.layers]
        domains, kept = found[1.0].domains, surviving_boundaries(self.layers, self.numbering)
        if not domains.are_named:
            return {}
        apart = {alpha: response.split() for alpha, response in found.items()}
        return {
            name: self._doses({alpha: parts[name] for alpha, parts in apart.items()}, kept)
            for name in domains.names
        }

    def _geometry(self, alpha: float, response: Response, kept: Sequence[int]) -> Dose:
        reference = self._intact("id")
        norm, distance = response.deviations(reference, kept).tolist()
        drawn = response.deviation_replicates(reference, kept)
        return Dose(alpha, norm, distance, interval(drawn[0]), interval(drawn[1]))

    def _scored(self, doses: Sequence[Dose], responses: Sequence[Response], intact: int) -> tuple[Dose, ...]:
        """Add metric and loss to doses, and the difference to the one at place `intact`."""
        values, losses = _values(responses), _losses(responses)
        if not values:
            return tuple(doses)
        domains = responses[0].domains
        metrics = [self._metric(part, domains) for part in values]
        drawn, drawn_losses = self._drawn(values, domains), replicates(losses, _mean, domains, False)
        return tuple(
            replace(
                dose,
                metric=metrics[n],
                metric_interval=interval(drawn[n]),
                loss=domains.metric(losses[n], np.mean, False),
                loss_interval=interval(drawn_losses[n]),
                difference=metrics[n] - metrics[intact],
                difference_interval=interval(drawn[n] - drawn[intact]),
            )
            for n, dose in enumerate(doses)
        )

    def _metric(self, values: np.ndarray, domains: Domains) -> float:
        return domains.metric(values, self.task.aggregate, self.task.higher_is_better)

    def _drawn(self, values: Sequence[np.ndarray], domains: Domains) -> np.ndarray:
        """Return the metric of each of several variants on rows drawn anew, (A, R)."""
        return replicates(values, self.task.aggregate, domains, self.task.higher_is_better)

    # --- what they show -------------------------------------------------------------------

    def _dropped(self) -> dict[str, Accuracy]:
        """Compare the model without the layers with the intact one, where rows have labels."""
        compared = {}
        for name in ("id", "target"):
            before, after = self._intact(name).scores, self.found[name][self.layers][0.0].scores
            if before is not None and after is not None:
                compared[name] = compare(self.task, before, after, self._intact(name).domains)
        return compared

    def _metric_trend(self) -> Trend | None:
        values = _values(list(self.found["target"][self.layers].values()))
        if not values:
            return None
        domains = self._intact("target").domains
        metrics = np.asarray([self._metric(part, domains) for part in values])
        return trend(self.doses.alphas, metrics, self._drawn(values, domains))

    def _deviation_trend(self) -> Trend:
        reference, kept = self._intact("id"), surviving_boundaries(self.layers, self.numbering)
        found = self.found["target"][self.layers].values()
        values = [response.deviations(reference, kept).mean() for response in found]
        drawn = [response.deviation_replicates(reference, kept).mean(axis=0) for response in found]
        return trend(self.doses.alphas, np.asarray(values), np.asarray(drawn))

    def _flatness(self, curve: Sequence[Dose]) -> Flatness | None:
        differences = [dose.difference for dose in curve if dose.difference is not None]
        intervals = [dose.difference_interval for dose in curve if dose.difference_interval is not None]
        if not differences:
            return None
        return flatness(self.doses.alphas, differences, intervals, self.doses.epsilon)

    # --- controls -------------------------------------------------------------------------

    def _random(self) -> RandomLayers:
        """Drop as many other layers, drawn from those that a search could have dropped, on the target."""
        config, numbering = self.config, self.numbering
        unprotected = numbering.unprotected(config.protect_first, config.protect_last)
        allowed = [n for n in droppable_layers(self.model) if n in unprotected and n not in self.layers]
        sets, num_possible = random_sets(numbering, allowed, len(self.layers), self.doses.draws, config.seed)
        responses = respond(self.probes["target"], [dict.fromkeys(s, DROPPED) for s in sets], 0)
        dropped = self.found["target"][self.layers][0.0]
        removed = [self._removed(found, chosen) for found, chosen in zip(responses, sets, strict=True)]
        gains: list[float | None] = [*self._gains(responses)] or [None] * len(sets)
        known = [share for share in removed if share is not None]
        own = self._removed(dropped, self.layers)
        return RandomLayers(
            tuple(
                RandomSet(numbering.names(chosen), gain, share)
                for chosen, gain, share in zip(sets, gains, removed, strict=True)
            ),
            num_possible,
            self._metric_rank(dropped, responses, has_all=len(sets) == num_possible),
            None if own is None else rank(own, known, (), has_all=False),
        )

    def _gains(self, responses: Sequence[Response]) -> list[float]:
        """Return what each gains in the metric over the intact model; nothing without labels."""
        values = _values([self._intact("target"), *responses])
        domains = self._intact("target").domains
        metrics = [self._metric(part, domains) for part in values]
        return [self.sign * (metric - metrics[0]) for metric in metrics[1:]]

    def _metric_rank(self, dropped: Response, others: Sequence[Response], *, has_all: bool) -> Rank | None:
        """Rank the selected layers among random ones, and hold them against the best of these by rows."""
        gains = self._gains(others)
        if not gains:
            return None
        rivals = list(others) if has_all else [others[int(np.argmax(gains))]]
        drawn = self.sign * self._drawn(_values([dropped, *rivals]), dropped.domains)
        margins = [interval(drawn[0] - other) for other in drawn[1:]]
        return rank(self._gains([dropped])[0], gains, margins, has_all=has_all)

    def _removed(self, response: Response, layers: Sequence[int]) -> float | None:
        """Return the share of the target's deviation that is gone, over the boundaries that are left."""
        reference, kept = self._intact("id"), surviving_boundaries(layers, self.numbering)
        before, after = (
            float(found.deviations(reference, kept).mean()) for found in (self._intact("target"), response)
        )
        return 1 - after / before if before else None

    def _norms(self) -> NormControl:
        """Give the target the norms of ID behind the selected layers, from the lowest up; remove nothing.

        A proposal of this project: behind layer l, the stream of all target rows is multiplied by one
        factor, N_ID / N_target, where N is the norm profile at that boundary: of the intact model on ID
        rows, and of the model on target rows with the factors below l in place. The norm profiles are then
        equal there; directions, and what tokens and rows have to each other, stay.
        """
        reference, response = self._intact("id"), self._intact("target")
        changes: dict[int, Rescaled] = {}
        for layer in self.layers:
            behind = layer + self.numbering.stack_of(layer) + 1
            # Of several domains, the mean of their norms.
            norms = [found.domains.average(found.norms) for found in (reference, response)]
            changes[layer] = Rescaled(float(norms[0][behind] / norms[1][behind]))
            (response,) = respond(self.probes["target"], [changes])
        kept = surviving_boundaries(self.layers, self.numbering)
        both = [self._intact("target"), response]
        dose = self._scored([self._geometry(1.0, found, kept) for found in both], both, 0)[1]
        factors = tuple((self.numbering.name(layer), change.factor) for layer, change in changes.items())
        values = _values([self.found["target"][self.layers][0.0], response])
        if not values:
            return NormControl(factors, dose)
        domains = response.domains
        drawn = self.sign * self._drawn(values, domains)
        low, high = found = interval(drawn[0] - drawn[1])
        excess = self.sign * (self._metric(values[0], domains) - self._metric(values[1], domains))
        return NormControl(
            factors, dose, excess, found, "more" if low > 0 else "less" if high < 0 else "undecided"
        )


def _mean(losses: np.ndarray) -> np.ndarray:
    """Average the losses of rows, (..., N)."""
    return np.asarray(losses.mean(axis=-1))


def _values(responses: Sequence[Response]) -> list[np.ndarray]:
    """Return what each scores on the rows, (N,) or (N, k); nothing where they have no labels."""
    return [response.scores.values for response in responses if response.scores is not None]


def _losses(responses: Sequence[Response]) -> list[np.ndarray]:
    return [response.scores.losses for response in responses if response.scores is not None]
