"""What TALE's search finds on the embedded example, shift by shift.

    python -m benchmarks.polynomial.shifts
    python -m benchmarks.polynomial.shifts --model FOLDER --output FILE

For every shift, layers are chosen on 512 prompts of that shift and reported on 1,000 others of the
same shift and on 1,000 of the training distribution; no prompt is used twice. Prints a table and
writes JSON with environment and commit. The shifts were fixed before any was measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from tqdm import tqdm

from benchmarks.evidence.results import shifts_table
from benchmarks.recording import origin
from tapioca_export.benchmarking import compare
from tapioca_export.models import load_model, skipping
from tapioca_export.pipeline import write_prompts
from tapioca_export.polynomial import WEIGHTS, sample_prompts
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples, read_samples
from tapioca_export.selection import SelectionSettings, select_layers

HERE = Path(__file__).parent
# (coefficient scale, input scale)
SHIFTS = ((1, 1), (2, 1), (3, 1), (5, 1), (10, 1), (1, 1.5), (1, 2), (2, 2))


def draw(model, role: str, count: int, seed: tuple[int, ...], shift: tuple[float, float]) -> Samples:
    """Draw prompts of a shift as samples."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_prompts(path, sample_prompts(count, seed, *shift))
        return read_samples(path, model.task.rows({}, model.processor), role=role)


def measure(model, number: int, shift: tuple[float, float]) -> dict:
    """Select on fresh rows of a shift, report on others."""
    select = draw(model, "target-select", 512, (7, number, 1), shift)
    report = {
        "target": draw(model, "target-report", 1000, (7, number, 2), shift),
        "id": draw(model, "id-report", 1000, (7, number, 3), (1, 1)),
    }
    probe = Probe(model, {"id": report["id"], "target": select})
    selection = select_layers(
        probe, SelectionSettings(), model=model.source, task=model.task, num_samples=len(select)
    )
    first = selection.steps[0].candidates if selection.steps else selection.rejected
    row = {
        "coefficient_scale": shift[0],
        "input_scale": shift[1],
        "drop": selection.drop,
        "single_drop_ratios": [round(c.metric / selection.baseline_metric, 3) for c in first],
    }
    for name, samples in report.items():
        scores = [scored(model, samples, drop) for drop in ((), selection.drop)]
        accuracy = compare(model.task, *scores)
        row[name] = {
            "original": accuracy.original,
            "pruned": accuracy.pruned,
            "difference": accuracy.difference,
            "interval": accuracy.interval,
        }
    return row


def scored(model, samples: Samples, drop: tuple[int, ...]):
    """Score report rows one by one, without the layers."""
    inputs = model.task.encode(samples.rows, model.processor)
    with skipping(model, drop):
        return model.task.score(model.logits(inputs), samples)


@click.command(help=__doc__)
@click.option("--model", default=str(WEIGHTS), help="Checkpoint folder.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "shifts.json")
def main(model: str, output: Path) -> None:
    """Measure every shift, print the table, write the JSON."""
    loaded = load_model(model)
    rows = [measure(loaded, number, shift) for number, shift in enumerate(tqdm(SHIFTS, disable=None))]
    click.echo(shifts_table(rows))
    record = {**origin(), "model": Path(model).name, "rows": rows}
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
