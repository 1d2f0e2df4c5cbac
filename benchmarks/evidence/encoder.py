"""The claims on a pretrained encoder that is fine-tuned on real data: three seeds, one shift.

    python -m benchmarks.evidence.encoder --data FOLDER            # writes encoder.json beside this script
    python -m benchmarks.evidence.encoder --data FOLDER --smoke    # one seed, few rows: does it run?

FOLDER holds `train.jsonl`, `id_test.jsonl`, `ood_select.jsonl` and `ood_test.jsonl`, rows with `text` and
`label`: labels are the same in all, and of the target's rows all are of kinds that were not trained on. The
six-layer MiniLM comes from an installed package and is trained on first use, one epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.evidence.protocol import record
from benchmarks.evidence.protocol import smoke as smoke_record
from benchmarks.evidence.running import options, run, train_each
from benchmarks.evidence.shifts import ID, Shift, Subject, as_samples
from tapioca_export.models import load_model
from tapioca_export.samples import Samples

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import search_models  # noqa: E402

CACHE = ROOT / ".cache" / "encoder-family"
SEEDS = (0, 1, 2)
TARGET = "unseen intents"
FILES = {
    (ID, "id-select"): "id", (ID, "id-report"): "id-report",
    (TARGET, "target-select"): "target", (TARGET, "target-report"): "target-report",
}  # fmt: skip


def trained(data: Path, seed: int) -> tuple[Path, dict[str, Path]]:
    """Return the fine-tuned classifier and its files of rows."""
    recipe = search_models.EncoderRecipe(copies=1, num_training_rows=0, num_epochs=1, seed=seed)
    return search_models.pair_encoder(CACHE, data, recipe)


def subject(data: str, seed: int, limit: int | None = None) -> Subject:
    """Return a classifier with its one shift; `limit` is the most rows of a role."""
    folder, files = trained(Path(data), seed)
    model = load_model(folder, "text-classification")

    def draw(name: str, role: str) -> Samples:
        lines = files[FILES[name, role]].read_text(encoding="utf-8").splitlines()[:limit]
        rows = [json.loads(line) for line in lines]
        return as_samples(model, ({"text": row["text"], "label": row["label"]} for row in rows), role)

    labels = [row.label for row in draw(TARGET, "target-report").rows]
    return Subject(
        name=f"MiniLM-seed{seed}",
        size="6",
        seed=seed,
        model=model,
        shifts=(Shift(TARGET, {}),),
        origins={},
        references=(TARGET,),
        draw=draw,
        constant_error=1 - max(labels.count(label) for label in set(labels)) / len(labels),
    )


def train_all(data: Path, jobs: int, seeds: Sequence[int] = SEEDS) -> None:
    """Train what the cache lacks."""
    train_each(trained, [(data, seed) for seed in seeds], jobs)


@click.command(help=__doc__)
@options(Path(__file__).with_suffix(".json"))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS, show_default=True)
def main(smoke: bool, jobs: int, resume: Path | None, output: Path, data: Path, seeds: Sequence[int]) -> None:
    """Measure and write the JSON."""
    about = {"family": "encoder", "data": data.name}
    if smoke:
        run(subject, [(str(data), seeds[0], 32)], output, jobs=1, record=smoke_record, about=about)
        return
    train_all(data, jobs, seeds)
    members = [(str(data), seed) for seed in seeds]
    run(subject, members, output, jobs=jobs, resume=resume, record=record, about=about)


if __name__ == "__main__":
    main()
