"""Does a run claim a gain where there is none?

    python -m benchmarks.reliability.nulls                # writes nulls.json: 200 runs
    python -m benchmarks.reliability.nulls --runs 6

Every run is the whole job on another random network, whose labels were drawn without looking at the texts:
no layer helps or harms, and whatever a search finds on the rows that choose is luck. Counted is how often
the verdict, on the report rows, is a gain; two-sided tests at 5 % leave 2.5 % for it. Beside it stands the
gain on the rows that chose, which is what a tool would claim that reports on them.

Proofs and measures of memory run in forks of one process that has imported the libraries, as in the tests.
Exit code 1 if more than 5 % of the runs claim a gain.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.recording import origin

from . import tiny

FOOLED = 0.05
ROWS = 400  # of each file, half of which choose
CHANGED_LAYERS = 2  # at most
OUTPUT = Path(__file__).with_suffix(".json")


@contextmanager
def forked() -> Iterator[None]:
    """Fork what a run starts anew, and pay once for what is the same at every export."""
    import pytest
    from forking import fork_measures, fork_proofs
    from quickening import quicken

    with pytest.MonkeyPatch.context() as patch:
        fork_proofs(patch)
        fork_measures(patch)
        quicken(patch)
        yield


def null_run(seed: int) -> dict[str, Any]:
    """Do the whole job on a random network and rows whose labels mean nothing; returns what it claims."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from tapioca_export import RunConfig, run
    from tapioca_export.reporting.wording import effect

    torch.set_num_threads(1)
    disable_progress_bar()
    generator = random.Random(seed)
    with TemporaryDirectory() as scratch, forked():
        folder = Path(scratch)
        network = tiny.conftest.make_model("bert")
        torch.manual_seed(seed)
        tiny.conftest.awaken(network).save_pretrained(folder / "model")
        tiny.conftest.make_tokenizer("bert").save_pretrained(folder / "model")
        files = {}
        for name in ("id", "target"):
            rows = tiny.conftest.text_records(ROWS, generator.randrange(10**9), labelled=False)
            labelled = [{**row, "label": generator.choice(tiny.conftest.LABELS)} for row in rows]
            files[name] = tiny.conftest.write_jsonl(folder / f"{name}.jsonl", labelled)
        config = RunConfig(
            model=str(folder / "model"), **files, output=folder / "out", seed=seed, iterations=2, warmup=0,
            num_threads=1, batch_size=(1,), max_drop_layers=CHANGED_LAYERS,
        )  # fmt: skip
        report = run(config)
    selection, accuracy = report.selection, report.benchmark.accuracy
    chosen = (selection.selected_metric or 0.0) - (selection.baseline_metric or 0.0)
    return {
        "seed": seed,
        "drop": list(selection.drop),
        "gain_where_chosen": chosen,
        "gain": accuracy["target"].gain,
        **{role: effect(accuracy[role]) if selection.drop else "unclear" for role in ("target", "id")},
    }


def share(found: dict[str, Any], role: str, effect: str) -> float:
    """Return the share of runs with an effect."""
    return statistics.fmean(run[role] == effect for run in found["runs"])


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the numbers in words."""
    runs = found["runs"]
    gains, luck = (statistics.fmean(run[key] for run in runs) for key in ("gain", "gain_where_chosen"))
    return [
        (
            f"{len(runs)} whole runs where labels mean nothing: a gain on the target is claimed in",
            f"{share(found, 'target', 'gain'):.1%}, a harm in {share(found, 'target', 'harm'):.1%}",
        ),
        (
            "Mean gain in these runs: on the rows that chose, on report rows",
            f"{luck:+.3f}, {gains:+.3f}",
        ),
    ]


def measure(runs: int, processes: int) -> list[dict[str, Any]]:
    """Do so many runs."""
    found = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for made in pool.map(null_run, range(runs)):
            found.append(made)
            click.echo(
                f"{made['seed']:3} {made['drop']} {made['gain']:+.3f} {made['target']}, ID {made['id']}"
            )
    return found


@click.command(help=__doc__)
@click.option("--runs", default=200, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
def main(runs: int, jobs: int, output: Path) -> None:
    """Measure, print and write."""
    clock = time.perf_counter()
    found = {**origin(), "rows": ROWS, "runs": measure(runs, jobs)}
    found["minutes"] = round((time.perf_counter() - clock) / 60, 1)
    for what, number in rows(found):
        click.echo(f"{what}: {number}")
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if share(found, "target", "gain") > FOOLED else 0)


if __name__ == "__main__":
    main()
