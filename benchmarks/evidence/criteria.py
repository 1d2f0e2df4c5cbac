"""A bank on which criteria without labels are compared: how well do they foretell what labels would say?

    python -m benchmarks.evidence.criteria --data FOLDER            # writes criteria.json beside this script
    python -m benchmarks.evidence.criteria --smoke                  # two untrained models: does it run?

A case is a trained model under one shift: the models of polynomial.py, language.py (judged by what they
write, and by the likelihood of choices) and encoder.py. Criteria look at unlabelled rows of ID
and of the shift, and TALE at the same rows of the shift with their labels; what dropping layers gains is
measured on other rows. Which criterion is best is judged elsewhere (`judging.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.evidence import encoder, language, polynomial
from benchmarks.evidence.label_free import FEW, Seen, order, scores, with_pairs
from benchmarks.evidence.measuring import Layers, error, least_error
from benchmarks.evidence.running import options, run
from benchmarks.evidence.shifts import ID, Shift, Subject, batch_size_on
from tapioca_export.models import DROPPED, LoadedModel, stand_ins
from tapioca_export.profiling import Probe, respond
from tapioca_export.profiling.gathering import read_states
from tapioca_export.profiling.replaying import changed_passes
from tapioca_export.samples import Samples
from tapioca_export.selection import SelectionSettings, select_layers
from tapioca_export.selection.search import LABEL_FREE_SHARE as SHARE
from tapioca_export.tasks import Batch

SCALES = "few"  # of the polynomials
ENCODER = "encoder"
SUBJECTS = {"polynomial": polynomial.subject, "language": language.subject, ENCODER: encoder.subject}
UNTRAINED = {"polynomial": polynomial.untrained, "language": language.untrained}


def subject(family: str, *member: Any) -> Subject:
    """Return a model of a family with its shifts."""
    return SUBJECTS[family](*member)


def untrained(family: str, *member: Any) -> Subject:
    """Return a small network of a family as it was drawn."""
    return UNTRAINED[family](*member)


def record(subject: Subject) -> dict[str, Any]:
    """Measure all criteria under all shifts, and return it as what a JSON file holds."""
    rows = subject.draw(ID, "id-select")
    id_seen = look(_probe(subject.model, rows, rows))
    return {
        "name": subject.name,
        "size": subject.size,
        "seed": subject.seed,
        "num_layers": subject.model.num_layers,
        "task": subject.model.task.name,
        "cases": [_case(subject, shift, rows, id_seen) for shift in subject.shifts],
    }


def _case(subject: Subject, shift: Shift, id_rows: Samples, id_seen: Seen) -> dict[str, Any]:
    model = subject.model
    probe = _probe(model, id_rows, subject.draw(shift.name, "target-select"))
    found = scores(id_seen, look(probe))
    several = max(1, int(model.num_layers * SHARE))
    chosen = _by_labels(subject.name, probe, several)
    orders = {name: order(numbers) for name, numbers in with_pairs(found).items()}
    sets = {tuple(sorted(part[:several])) for part in [chosen, *orders.values()]}
    report = _probe(model, id_rows, subject.draw(shift.name, "target-report"))
    gains = _gains(report, {(layer,) for layer in range(model.num_layers)} | sets)
    return {
        "name": shift.name,
        "error": float(error(model.task, report.metric().metric)),
        "num_dropped": several,
        "gains": [gains[(layer,)] for layer in range(model.num_layers)],
        "sets": [{"drop": layers, "gain": gains[layers]} for layers in sorted(sets)],
        "tale": chosen,
        "scores": {name: numbers.tolist() for name, numbers in found.items()},
    }


def _probe(model: LoadedModel, id_rows: Samples, rows: Samples) -> Probe:
    probe = Probe(model, {"id": id_rows, "target": rows}, batch_size=batch_size_on(model.device))
    probe.division = None  # networks this small are fastest in full batches
    return probe


def _by_labels(name: str, probe: Probe, num_layers: int) -> Layers:
    """Return the layers that TALE drops, first the one that goes first, whatever they cost."""
    settings = SelectionSettings(epsilon=None, max_drop_layers=num_layers, pick="final")
    found = select_layers(probe, settings, model=name, task=probe.model.task, num_samples=probe.num_rows)
    return tuple(int(step.layer) for step in found.steps)


def _gains(probe: Probe, sets: set[Layers]) -> dict[Layers, float]:
    """Return the share of the intact model's error that is gone with each set of layers."""
    task, singles = probe.model.task, [layers for layers in sets if len(layers) == 1]
    found = {(layer,): made.metric for layer, made in probe.metrics((), [n for (n,) in singles]).items()}
    found |= {layers: probe.metric(layers).metric for layers in {*sets, ()} - found.keys()}
    least = least_error(task, probe.num_rows)
    errors = {layers: max(float(error(task, metric)), least) for layers, metric in found.items()}
    return {layers: 1 - errors[layers] / errors[()] for layers in sets}


def look(probe: Probe) -> Seen:
    """Return what the rows that drive a probe show, with each layer dropped in turn; labels have no say."""
    model, samples = probe.model, probe.samples[probe.select_on]
    variants = [{}, *({layer: DROPPED} for layer in range(model.num_layers))]
    intact, *dropped = respond(probe, variants, 0)
    states: list[list[np.ndarray]] = [[] for _ in variants]
    outputs: list[list[np.ndarray]] = [[] for _ in variants]
    cosines, num_tokens = np.zeros(model.num_layers), 0
    with stand_ins(model) as places:
        for rows in probe.profile_batches(samples):
            batch = model.task.profile_batch(samples, rows, probe.processor)
            # Without readings, a language model returns the logits of every token.
            asked = replace(batch, readings=None)
            for number, trace in enumerate(changed_passes(model, places, asked, variants)):
                (found,), own, tokens = read_states(model, probe.processor, batch, trace.boundaries)
                if number == 0:
                    cosines, num_tokens = cosines + own, num_tokens + int(tokens.sum())
                kept = found if number == 0 else found[-1:]  # (boundaries, B, P, H)
                states[number].append(kept.flatten(1, 2).double().numpy())
                assert trace.answers is not None
                outputs[number].append(_outputs(model, batch, trace.answers))
    whole, *heads = (np.concatenate(parts, axis=1) for parts in states)
    before, *after = map(np.concatenate, outputs)
    return Seen(
        states=whole,
        influences=1 - cosines / num_tokens,
        turns=np.asarray(list(probe.turns(range(model.num_layers), FEW).values())),
        norms=intact.norms[0],
        distances=intact.distances[0],
        dropped_norms=np.stack([response.norms[0] for response in dropped]),
        dropped_distances=np.stack([response.distances[0] for response in dropped]),
        heads=np.concatenate(heads),
        outputs=before,
        dropped_outputs=np.stack(after),
        are_logits=_has_logits(model),
    )


def _has_logits(model: LoadedModel) -> bool:
    return model.task.name != "polynomial-regression"


def _outputs(model: LoadedModel, batch: Batch, answers: np.ndarray) -> np.ndarray:
    """Return the logits (B, K) where the answer begins, or the scored predictions of a regression."""
    if batch.readings is not None:
        answers = answers[np.arange(len(batch)), batch.readings.ends]
    if not _has_logits(model):
        answers = answers[:, model.task.FIRST_SCORED_POINT :]
    return answers.astype(np.float64)


@click.command(help=__doc__)
@options(Path(__file__).with_suffix(".json"))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The encoder's rows, as encoder.py has them.",
)
def main(smoke: bool, jobs: int, resume: Path | None, output: Path, data: Path | None) -> None:
    """Measure and write the JSON."""
    about = {"share": SHARE, "scales": polynomial.SCALES[SCALES], "data": data and data.name}
    if smoke:
        tiny = [("polynomial", "tiny", 0), ("language", "tiny", 0, "likelihood")]
        run(untrained, tiny, output, jobs=1, record=record, about=about)
        return
    if data is None:
        raise click.UsageError("Name the encoder's rows with --data FOLDER; encoder.py --help says which.")
    polynomial.train_all(jobs)
    language.train_all(jobs)
    members: list[Sequence[Any]] = [
        ("polynomial", size, seed, SCALES) for seed in polynomial.SEEDS for size in polynomial.TRAINED_HERE
    ]
    members += [
        ("language", size, seed, judged)
        for seed in language.SEEDS
        for size in language.SIZES
        for judged in language.TASKS
    ]
    encoder.train_all(data, jobs)
    members += [(ENCODER, str(data), seed) for seed in encoder.SEEDS]
    run(subject, members, output, jobs=jobs, resume=resume, record=record, about=about)


if __name__ == "__main__":
    main()
