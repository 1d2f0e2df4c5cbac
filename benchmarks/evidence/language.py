"""The claims on small language models: three depths, three seeds, lists longer than any that was trained on.

    python -m benchmarks.evidence.language            # writes language.json beside this script
    python -m benchmarks.evidence.language --smoke    # one untrained model, one shift: does it run?

On a GPU, larger ones:

    python -m benchmarks.evidence.language --size 12x256 --device cuda --jobs 6 \
        --output benchmarks/evidence/language-large.json

Models are those of benchmarks/language/family.py, trained on first use on lists of 2 to 8 letters. Every one
is judged twice, and layers are chosen for each: by answers that it writes (exact match, answers of no valid
form counted apart) and by the likelihood of four choices. What is measured was fixed before any of it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.evidence.protocol import record
from benchmarks.evidence.protocol import smoke as smoke_record
from benchmarks.evidence.running import options, run, train_each
from benchmarks.evidence.shifts import ID, Shift, Subject, as_samples, batch_size_on, last_line
from benchmarks.language import lists
from benchmarks.language.family import CACHE, SEEDS, TRAINED_HERE, Recipe, checkpoint, network
from tapioca_export.artifacts import Prompting
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.samples import Samples

AXIS = "letters in the list"
LENGTHS = {
    ID: lists.TRAINED_LENGTHS,
    "9-10": (9, 10),
    "11-13": (11, 13),
    "14-17": (14, 17),
    "18-22": (18, 22),
}
REFERENCES = ("14-17", "18-22")
# Some of the functions alone, by what follows the lengths in a name.
ASKED = {"": lists.FUNCTIONS, "by place": lists.BY_PLACE, "by order": lists.BY_ORDER}
NUM_ROWS = {"id-select": 256, "id-report": 512, "target-select": 256, "target-report": 512}
# An answer is one letter or two, and then the end.
WRITTEN = Prompting(max_new_tokens=3, extract=r"^[a-z](?: [a-z])?$")
COLUMNS = {"generated": ("prompt", "answer"), "likelihood": ("context", "choices", "label")}
TASKS = {"generated": "text-generation", "likelihood": "multiple-choice"}
# Of the best constant answer: hardly one list in 26 has it; one of four choices is right.
CONSTANT_ERRORS = {"generated": 1.0, "likelihood": 1 - 1 / lists.NUM_CHOICES}


def subject(size: str, seed: int, judged: str, device: str = "cpu") -> Subject:
    """Return a member of the family with all its shifts, judged by a name of TASKS."""
    folder = checkpoint(size, seed, device=device)
    found = _subject(size, seed, judged, _load(folder, judged, device), LENGTHS, NUM_ROWS)
    return replace(found, training=last_line(folder))


def untrained(size: str, seed: int, judged: str, device: str = "cpu") -> Subject:
    """Return a small network as it was drawn, with one shift and few rows."""
    with TemporaryDirectory() as folder:
        network(Recipe(layers=4, width=16, heads=2, seed=seed)).save_pretrained(folder)
        lists.tokenizer().save_pretrained(folder)
        lengths = {ID: LENGTHS[ID], "14-17": LENGTHS["14-17"]}
        model = _load(Path(folder), judged, device)
    return _subject(size, seed, judged, model, lengths, dict.fromkeys(NUM_ROWS, 32))


def _load(folder: Path, judged: str, device: str) -> LoadedModel:
    prompting = WRITTEN if judged == "generated" else Prompting()
    return load_model(folder, TASKS[judged], LoadOptions(device=device, prompting=prompting))


def _subject(
    size: str,
    seed: int,
    judged: str,
    model: LoadedModel,
    lengths: dict[str, tuple[int, int]],
    num_rows: dict[str, int],
) -> Subject:
    names = list(lengths)

    def draw(name: str, role: str) -> Samples:
        # Select and report rows come from one draw, in which all questions differ.
        side, (of_length, _, asked) = role.partition("-")[0], name.partition(" ")
        count = num_rows[f"{side}-select"] + num_rows[f"{side}-report"]
        drawn = lists.questions(count, lengths[of_length], f"{seed} {name}", ASKED[asked])
        first = num_rows[f"{side}-select"]
        rows: Sequence[dict[str, Any]] = drawn[:first] if role.endswith("select") else drawn[first:]
        return as_samples(model, ({key: row[key] for key in COLUMNS[judged]} for row in rows), role)

    shifts = []
    for place, name in enumerate(names[1:], start=1):
        neighbours = tuple(names[n] for n in (place - 1, place + 1) if 0 < n < len(names))
        shifts.append(Shift(name, {AXIS: sum(lengths[name]) / 2}, neighbours))
    return Subject(
        name=f"{size}-seed{seed}-{judged}",
        size=size,
        seed=seed,
        model=model,
        batch_size=batch_size_on(model.device),
        shifts=tuple(shifts),
        origins={AXIS: sum(lengths[ID]) / 2},
        references=REFERENCES,
        draw=draw,
        constant_error=CONSTANT_ERRORS[judged],
        unrelated=tuple(
            (f"{name} {asked}", f"{name} {other}")
            for name in REFERENCES
            for asked, other in permutations(("by place", "by order"))
            if name in lengths
        ),
    )


def train_all(
    jobs: int, sizes: Sequence[str] = TRAINED_HERE, seeds: Sequence[int] = SEEDS, device: str = "cpu"
) -> None:
    """Train what the cache lacks."""
    train_each(checkpoint, [(size, seed, CACHE, device) for size in sizes for seed in seeds], jobs)


@click.command(help=__doc__)
@options(Path(__file__).with_suffix(".json"))
@click.option("--size", "sizes", multiple=True, default=TRAINED_HERE, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where models are trained and measured.")
def main(
    smoke: bool, jobs: int, resume: Path | None, output: Path, sizes: Sequence[str], seeds: Sequence[int],
    device: str,
) -> None:  # fmt: skip
    """Measure and write the JSON."""
    elsewhere = () if device == "cpu" else (device,)
    if smoke:
        tiny = [("tiny", 0, judged, *elsewhere) for judged in TASKS]
        run(untrained, tiny, output, jobs=1, record=smoke_record, about={"family": "language"})
        return
    members = [(size, seed, judged, *elsewhere) for size in sizes for seed in seeds for judged in TASKS]
    about = {"family": "language", "lengths": LENGTHS, "num_rows": NUM_ROWS}
    train_all(jobs, sizes, seeds, device)
    run(subject, members, output, jobs=jobs, resume=resume, record=record, about=about)


if __name__ == "__main__":
    main()
