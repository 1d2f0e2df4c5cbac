"""The claims on in-context polynomial transformers: three sizes, three seeds, a grid of shifts.

    python -m benchmarks.evidence.polynomial            # writes polynomial.json beside this script
    python -m benchmarks.evidence.polynomial --smoke    # one untrained model, few shifts: does it run?
    python -m benchmarks.evidence.polynomial --scales to-10 --output benchmarks/evidence/polynomial-to-10.json

`--scales full` is all from 1 to 10.

On a GPU, the shape of the papers' models:

    python -m benchmarks.evidence.polynomial --size 12x256 --scales few --device cuda --jobs 3 \
        --output benchmarks/evidence/polynomial-large.json

Models are those of benchmarks/polynomial/family.py, trained on first use. Shifts are scales of coefficients
and of inputs, degrees never trained on, and normal in place of uniform numbers. What is measured was fixed
before any of it was, but for the default scales: those were `to-10`, and were cut to end within half an hour
of two cores when its results were known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.evidence.protocol import record
from benchmarks.evidence.protocol import smoke as smoke_record
from benchmarks.evidence.running import options, run, train_each
from benchmarks.evidence.shifts import ID, Shift, Subject, as_samples, batch_size_on, last_line
from benchmarks.polynomial.family import CACHE, SEEDS, TRAINED_HERE, checkpoint
from benchmarks.polynomial.prompts import Distribution
from benchmarks.polynomial.train import Recipe
from tapioca_export.models import LoadedModel, LoadOptions, load_model
from tapioca_export.samples import Samples

SCALES = {"few": (1, 2, 5), "to-5": (1, 2, 3, 5), "to-10": (1, 2, 3, 5, 10), "full": tuple(range(1, 11))}
NORMAL = ((1, 1), (2, 1), (5, 1), (1, 2), (2, 2))
DEGREES = (1, 3, 4, 5)
COEFFICIENTS, INPUTS = "coefficient scale", "input scale"
REFERENCES = ("c=5 x=1", "c=2 x=2")
NUM_ROWS = {"id-select": 256, "id-report": 512, "target-select": 256, "target-report": 512}
Shifts = dict[str, tuple[Shift, Distribution]]


def grid(scales: Sequence[int]) -> Shifts:
    """Return the grid of scales but its corner, which is the training distribution."""
    found: Shifts = {}
    for row, c in enumerate(scales):
        for column, x in enumerate(scales):
            near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            inside = [(r, k) for r, k in near if min(r, k) >= 0 and max(r, k) < len(scales) and (r or k)]
            levels: dict[str, float] = {}
            if x == 1:
                levels[COEFFICIENTS] = c
            if c == 1:
                levels[INPUTS] = x
            neighbours = tuple(_name(scales[r], scales[k]) for r, k in inside)
            if row or column:
                found[_name(c, x)] = Shift(_name(c, x), levels, neighbours), Distribution(c, x)
    return found


def others() -> Shifts:
    """Return degrees that were not trained on, and normal numbers in place of uniform ones."""
    found = {f"degree {degree}": Distribution(degree=degree) for degree in DEGREES}
    found |= {f"normal {_name(c, x)}": Distribution(c, x, is_normal=True) for c, x in NORMAL}
    return {name: (Shift(name, {}), distribution) for name, distribution in found.items()}


def _name(c: int, x: int) -> str:
    return f"c={c} x={x}"


def subject(size: str, seed: int, scales: str, device: str = "cpu") -> Subject:
    """Return a member of the family with all its shifts; `scales` is a name of SCALES."""
    folder = checkpoint(size, seed, device=device)
    model = load_model(folder, "polynomial-regression", LoadOptions(device=device))
    found = _subject(size, seed, model, {**grid(SCALES[scales]), **others()}, NUM_ROWS)
    return replace(found, training=last_line(folder))


def untrained(size: str, seed: int, device: str = "cpu") -> Subject:
    """Return a small network as it was drawn, with few shifts and rows."""
    with TemporaryDirectory() as folder:
        Recipe(layers=4, width=16, heads=2, points=8, seed=seed).network().save_pretrained(folder)
        model = load_model(folder, "polynomial-regression", LoadOptions(device=device))
    shifts = {**grid((1, 5)), "degree 3": others()["degree 3"]}
    return _subject(size, seed, model, shifts, dict.fromkeys(NUM_ROWS, 32))


def _subject(size: str, seed: int, model: LoadedModel, shifts: Shifts, num_rows: dict[str, int]) -> Subject:
    names = (ID, *shifts)

    def draw(name: str, role: str) -> Samples:
        distribution = Distribution() if name == ID else shifts[name][1]
        key = (seed, names.index(name), list(NUM_ROWS).index(role))
        prompts = distribution.prompts(num_rows[role], model.network.config.n_positions // 2, key)
        return as_samples(model, ({"x": p[::2].tolist(), "y": p[1::2].tolist()} for p in prompts), role)

    return Subject(
        name=f"{size}-seed{seed}",
        size=size,
        seed=seed,
        model=model,
        batch_size=batch_size_on(model.device),
        shifts=tuple(shift for shift, _ in shifts.values()),
        origins={COEFFICIENTS: 1, INPUTS: 1},
        references=REFERENCES,
        draw=draw,
        # Scales are one shift; curves that no model was trained on are another task.
        unrelated=tuple(
            (scaled, name)
            for scaled in REFERENCES
            for name in shifts
            if scaled in shifts and name.startswith("degree")
        ),
    )


def train_all(
    jobs: int, sizes: Sequence[str] = TRAINED_HERE, seeds: Sequence[int] = SEEDS, device: str = "cpu"
) -> None:
    """Train what the cache lacks."""
    train_each(checkpoint, [(size, seed, CACHE, device) for size in sizes for seed in seeds], jobs)


@click.command(help=__doc__)
@options(Path(__file__).with_suffix(".json"))
@click.option("--scales", type=click.Choice(tuple(SCALES)), default="to-5", show_default=True)
@click.option("--size", "sizes", multiple=True, default=TRAINED_HERE, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where models are trained and measured.")
def main(
    smoke: bool, jobs: int, resume: Path | None, output: Path, scales: str, sizes: Sequence[str],
    seeds: Sequence[int], device: str,
) -> None:  # fmt: skip
    """Measure and write the JSON."""
    elsewhere = () if device == "cpu" else (device,)
    if smoke:
        tiny = [("tiny", 0, *elsewhere)]
        run(untrained, tiny, output, jobs=1, record=smoke_record, about={"family": "polynomial"})
        return
    members = [(size, seed, scales, *elsewhere) for size in sizes for seed in seeds]
    about = {"family": "polynomial", "scales": SCALES[scales], "num_rows": NUM_ROWS}
    train_all(jobs, sizes, seeds, device)
    run(subject, members, output, jobs=jobs, resume=resume, record=record, about=about)


if __name__ == "__main__":
    main()
