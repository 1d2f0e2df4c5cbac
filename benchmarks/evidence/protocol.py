"""One model under all its shifts: layers are chosen on some rows of a shift and judged on others.

Every choice is by TALE, the library's own search; every number is of rows that took no part in a choice.
Knows nothing about kinds of models, or about what the numbers say.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tapioca_export.artifacts import Intervention
from tapioca_export.config import Doses, RunConfig
from tapioca_export.intervening import intervene
from tapioca_export.intervening.controls import random_sets
from tapioca_export.models import DROPPED, Scaled
from tapioca_export.profiling import Probe, Response, respond
from tapioca_export.samples import Samples
from tapioca_export.selection import SelectionSettings, select_layers

from .measuring import (
    Gains,
    Layers,
    deviation,
    effect,
    error,
    rank_correlation,
    realignment,
    removed,
    removed_drawn,
)
from .shifts import ID, Shift, Subject

# The other choice of one bit a layer: half as much again of what it adds, instead of nothing.
AMPLIFIED = Scaled(1.5)
MOST_SHARE = 0.5  # of the layers, that a search may drop


@dataclass(frozen=True)
class Effort:
    """How much is measured: random sets beside the chosen one, and alphas of a dose-response."""

    draws: int = 50
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


SMOKE = Effort(draws=5, alphas=(0.0, 0.5, 1.0, 1.5))


def record(subject: Subject, effort: Effort = Effort()) -> dict[str, Any]:
    """Measure everything, and return it as what a JSON file holds."""
    return Protocol(subject, effort).record()


def smoke(subject: Subject) -> dict[str, Any]:
    """Do the same with a minute's worth."""
    return record(subject, SMOKE)


@dataclass(frozen=True)
class Choice:
    """What a search chose on the rows it saw; `first` is the best single layer, `gain` what it saw."""

    layers: Layers
    first: int
    gain: float
    num_evaluations: int


class Protocol:
    """All measurements of one subject."""

    def __init__(self, subject: Subject, effort: Effort) -> None:
        self.subject, self.effort, self.model = subject, effort, subject.model
        self.task = subject.model.task
        self.most = max(1, int(self.model.num_layers * MOST_SHARE))
        self.id_select, self.id_report = (subject.draw(ID, f"id-{side}") for side in ("select", "report"))
        self.select = {shift.name: subject.draw(shift.name, "target-select") for shift in subject.shifts}
        self.probes: dict[str, Probe] = {}
        self.choices = {ID: self._choose(self._probe(self.id_select))}
        for name, rows in self.select.items():
            self.probes[name] = self._probe(rows)
            self.choices[name] = self._choose(self.probes[name])
        self.id_probe = self._probe(self.id_report)
        (self.id_response,) = respond(self.id_probe, [{}])

    def record(self) -> dict[str, Any]:
        """Measure everything, and return it as what a JSON file holds."""
        own = self.choices[ID].layers
        single = (self.choices[ID].first,)
        gains = self._gains(self.id_probe, {own, single, *(c.layers for c in self.choices.values())})
        id_ = {
            "drop": own,
            "error": gains.errors[()],
            "select_gain": self.choices[ID].gain,
            "gain": gains.of(own),
            "single": {"layer": single[0], "gain": gains.of(single)},
        }
        return {
            "name": self.subject.name,
            "size": self.subject.size,
            "seed": self.subject.seed,
            "num_layers": self.model.num_layers,
            "metric": self.task.metric,
            "training": dict(self.subject.training),
            "constant_error": self.subject.constant_error,
            "origins": dict(self.subject.origins),
            "id": id_,
            "shifts": [self._shift(shift, gains) for shift in self.subject.shifts],
            "unrelated": [found for pair in self.subject.unrelated if (found := self._unrelated(*pair))],
        }

    # --- choosing -------------------------------------------------------------------------

    def _probe(self, rows: Samples) -> Probe:
        probe = Probe(self.model, {"id": self.id_report, "target": rows}, batch_size=self.subject.batch_size)
        probe.division = None  # networks this small are fastest in full batches
        return probe

    def _choose(self, probe: Probe) -> Choice:
        settings = SelectionSettings(max_drop_layers=self.most)
        found = select_layers(
            probe, settings, model=self.subject.name, task=self.task, num_samples=probe.num_rows
        )
        first = found.steps[0].layer if found.steps else _best(found.rejected)
        assert found.cost is not None
        before, after = error(self.task, found.baseline_metric), error(self.task, found.selected_metric)
        gain = float(1 - after / before) if before else 0.0
        return Choice(tuple(map(int, found.drop)), int(first), gain, found.cost.evaluations)

    def _by_influence(self, probe: Probe, num_layers: int) -> Layers:
        settings = SelectionSettings(
            criterion="block-influence", max_drop_layers=num_layers, epsilon=None, pick="final"
        )
        found = select_layers(
            probe, settings, model=self.subject.name, task=self.task, num_samples=probe.num_rows
        )
        return tuple(map(int, found.drop))

    def _by_chance(self, probe: Probe, num_tries: int) -> Layers:
        """Return the best of at most as many random sets as a search scored, or nothing if none is better."""
        generator = random.Random(self.subject.seed)
        layers, tried = range(self.model.num_layers), {()}
        for _ in range(num_tries):
            size = generator.randint(1, self.most)
            tried.add(tuple(sorted(generator.sample(layers, size))))
        ranked = sorted(tried)  # so that ties go the same way in every process
        return min(ranked, key=lambda chosen: error(self.task, probe.metric(chosen).metric))

    def _by_amplifying(self, probe: Probe, num_rounds: int) -> Layers:
        """Return the layers that a greedy search of as many rounds amplifies."""
        (intact,) = respond(probe, [{}], 0)
        chosen, best = (), self._error_of(intact)
        for _ in range(num_rounds):
            left = [layer for layer in range(self.model.num_layers) if layer not in chosen]
            found = respond(probe, [dict.fromkeys((*chosen, layer), AMPLIFIED) for layer in left], 0)
            errors = [self._error_of(response) for response in found]
            if min(errors) >= best:
                break
            best, chosen = min(errors), (*chosen, left[int(np.argmin(errors))])
        return chosen

    def _error_of(self, response: Response) -> float:
        assert response.scores is not None
        return float(error(self.task, self.task.aggregate(response.scores.values)))

    # --- one shift ------------------------------------------------------------------------

    def _shift(self, shift: Shift, id_gains: Gains) -> dict[str, Any]:
        choice, chosen_on_id = self.choices[shift.name], self.choices[ID].layers
        own, single = choice.layers, (choice.first,)
        report = self.subject.draw(shift.name, "target-report")
        probe = self._probe(report)
        neighbours = {name: self.choices[name].layers for name in shift.neighbours}
        extra: dict[str, Layers] = {}
        if shift.name in self.subject.references and own:
            select = self.probes[shift.name]
            extra["influence"] = self._by_influence(select, len(own))
            extra["chance"] = self._by_chance(select, choice.num_evaluations - 1)
        sets = {own, single, chosen_on_id, *neighbours.values(), *extra.values()}
        gains = self._gains(probe, sets)
        intact, pruned = respond(probe, [{}, dict.fromkeys(own, DROPPED)])
        record = {
            "name": shift.name,
            "levels": dict(shift.levels),
            "drop": own,
            "error": gains.errors[()],
            "evaluations": choice.num_evaluations,
            "select_gain": choice.gain,
            "gain": gains.of(own),
            "single": {"layer": single[0], "gain": gains.of(single)},
            "invalid": self._invalid(probe, own),
            "chosen_on_id": gains.of(chosen_on_id),
            "over_chosen_on_id": gains.of(own, chosen_on_id),
            "on_id": id_gains.of(own),
            "transfer": {
                name: {"drop": layers, **gains.of(layers)} for name, layers in neighbours.items() if layers
            },
            "deviation": deviation(intact, self.id_response),
            "realignment": realignment(intact, pruned, self.id_response, own) if own else None,
        }
        if shift.name in self.subject.references:
            record["singles"] = self._singles(probe, intact)
            if own:
                over = {f"over_{name}": {"drop": s, **gains.of(own, s)} for name, s in extra.items()}
                record |= over | self._dear(shift, report, choice, intact)
                record |= self._geometry(probe, own, extra["influence"], intact)
        return record

    def _unrelated(self, chosen_on: str, tried_on: str) -> dict[str, Any] | None:
        """Return what layers chosen on one task gain on another; None where none are chosen."""
        if chosen_on not in self.choices:
            probe = self._probe(self.subject.draw(chosen_on, "target-select"))
            self.choices[chosen_on] = self._choose(probe)
        if not (layers := self.choices[chosen_on].layers):
            return None
        gains = self._gains(self._probe(self.subject.draw(tried_on, "target-report")), {layers})
        return {"chosen_on": chosen_on, "tried_on": tried_on, "drop": layers, **gains.of(layers)}

    def _gains(self, probe: Probe, sets: set[Layers]) -> Gains:
        wanted = [(), *sorted(sets - {()})]
        return Gains(self.task, {layers: probe.all_scores(layers) for layers in wanted})

    def _invalid(self, probe: Probe, layers: Layers) -> list[int] | None:
        """Count answers without a valid form, of the intact and of the pruned model."""
        counts = [self.task.num_invalid(probe.all_scores(part).values) for part in ((), layers)]
        return None if counts[0] is None else [count for count in counts if count is not None]

    def _singles(self, probe: Probe, intact: Response) -> dict[str, Any]:
        """Drop each layer alone: does what removes more deviation remove more error?"""
        layers = range(self.model.num_layers)
        found = respond(probe, [{layer: DROPPED} for layer in layers], 0)
        before = self._error_of(intact) or np.finfo(np.float64).tiny
        gains = [1 - self._error_of(response) / before for response in found]
        shares = [
            removed(intact, response, self.id_response, (n,))
            for n, response in zip(layers, found, strict=True)
        ]
        return {"gains": gains, "removed": shares, **rank_correlation(shares, gains)}

    def _geometry(self, probe: Probe, own: Layers, influence: Layers, intact: Response) -> dict[str, Any]:
        """Return how much more chosen layers realign than those of least influence; and amplified ones.

        These over the boundaries that are left without the layers, as the dose-response from 1 to 0 is.
        """
        dropped, others = (dict.fromkeys(layers, DROPPED) for layers in (own, influence))
        found = respond(probe, [dropped, others, dict.fromkeys(own, AMPLIFIED)])
        pairs = list(zip(found, (own, influence, own), strict=True))
        shares = [removed(intact, response, self.id_response, layers) for response, layers in pairs]
        drawn = [removed_drawn(intact, response, self.id_response, layers) for response, layers in pairs]
        return {
            "realigns_over_influence": effect(shares[0] - shares[1], drawn[0] - drawn[1]),
            "amplified_deviation": effect(-shares[2], -drawn[2]),
        }

    def _dear(self, shift: Shift, report: Samples, choice: Choice, intact: Response) -> dict[str, Any]:
        """Return the dose-response with its controls, and what amplifying layers instead gains."""
        amplified = self._by_amplifying(self.probes[shift.name], len(choice.layers))
        probe = self._probe(report)
        variants = [dict.fromkeys(amplified, AMPLIFIED), dict.fromkeys(choice.layers, DROPPED)]
        scores = [response.scores for response in respond(probe, variants, 0)]
        assert intact.scores is not None
        assert scores[0] is not None
        assert scores[1] is not None
        # -1 stands for what is amplified: names of sets are only told apart here.
        gains = Gains(self.task, {(): intact.scores, (-1,): scores[0], choice.layers: scores[1]})
        others = [n for n in range(self.model.num_layers) if n not in choice.layers]
        sets, _ = random_sets(self.model.numbering, others, len(choice.layers), 1, self.subject.seed)
        return {
            "over_amplified": {"amplified": amplified, **gains.of(choice.layers, (-1,))},
            "intervention": self._sweep(report, choice.layers, self.effort.draws),
            "other_layers": self._sweep(report, sets[0], 0) if sets else None,
        }

    def _sweep(self, report: Samples, layers: Layers, draws: int) -> dict[str, Any]:
        config = RunConfig(
            model=self.subject.name,
            eval_batch_size=self.subject.batch_size,
            seed=self.subject.seed,
            num_threads=1,
        )
        roles = {"id-report": self.id_report, "target-report": report}
        return _brief(
            intervene(config, self.model, roles, layers, Doses(self.effort.alphas, draws, by_layer=False))
        )


def _best(candidates: Any) -> Any:
    """Return the layer of the best of the candidates that a search turned down."""
    return min(candidates, key=lambda candidate: (-candidate.score, candidate.layer)).layer


def _brief(found: Intervention) -> dict[str, Any]:
    """Keep of an intervention what is judged, and its curves."""
    random_ = found.random
    return {
        "layers": found.layers,
        "id": [asdict(dose) for dose in found.id],
        "target": [asdict(dose) for dose in found.target],
        "metric_trend": None if found.metric_trend is None else asdict(found.metric_trend),
        "deviation_trend": asdict(found.deviation_trend),
        "higher_is_better": found.higher_is_better,
        "num_possible_sets": random_.num_possible,
        "metric_rank": None if random_.metric is None else asdict(random_.metric),
        "deviation_rank": None if random_.deviation is None else asdict(random_.deviation),
        "over_norms": {"effect": found.norms.excess, "interval": found.norms.excess_interval},
    }
