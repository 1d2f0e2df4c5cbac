"""Does a run claim a gain where there is none, and does a process that does many runs keep anything of them?

    python -m benchmarks.reliability.nulls                # writes nulls.json: 200 runs
    python -m benchmarks.reliability.nulls --runs 6

Every run is the whole job on a random network and fresh rows, whose labels were drawn without looking at the
texts: one run in ten on a checkpoint, the others on a file exported of one. No layer helps or harms, and
whatever a search finds on the rows that choose is luck. Counted is how often the verdict, on the report
rows, is a gain; two-sided tests at 5 % leave 2.5 % for it. Beside it stands the gain on the rows that
chose, which is what a tool would claim that reports on them.

All runs are calls of `run` in one process, one after another: after each, its memory and its open files are
counted. Proofs and measures of memory, which are processes of their own, are forked from one that has
imported the libraries, as in the tests.

Exit code 1 if more than 5 % of the runs claim a gain, the process holds more files at the end than when it
was warm, or its memory has grown by more than half a megabyte a run since then.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import psutil

from benchmarks.recording import origin

from . import tiny
from .ending import finish, write

FOOLED, GROWTH = 0.05, 0.5e6  # bytes a run
WARM = 20  # runs until what libraries keep once is there
NETWORKS = 10
ROWS = 400  # of each file, half of which choose
CHANGED_LAYERS = 2  # at most
OUTPUT = Path(__file__).with_suffix(".json")


@contextmanager
def forked() -> Iterator[None]:
    """Fork the processes that a run starts."""
    import pytest
    from forking import fork_measures, fork_proofs

    with pytest.MonkeyPatch.context() as patch:
        fork_proofs(patch)
        fork_measures(patch)
        yield


def save_network(folder: Path, seed: int) -> Path:
    """Save a random network, and export it beside."""
    import torch

    from tapioca_export import RunConfig, export

    network = tiny.conftest.make_model("bert")
    torch.manual_seed(seed)
    tiny.conftest.awaken(network).save_pretrained(folder / "checkpoint")
    tiny.conftest.make_tokenizer("bert").save_pretrained(folder / "checkpoint")
    settings: dict[str, Any] = {"model": str(folder / "checkpoint"), "output": folder / "exported"}
    export(
        RunConfig(**settings, id=write_rows(folder / "rows.jsonl", 16, random.Random(seed)), num_threads=1)
    )
    return folder


def write_rows(file: Path, num_rows: int, generator: random.Random) -> Path:
    """Write rows with labels that were drawn without looking at them."""
    rows = tiny.conftest.text_records(num_rows, generator.randrange(10**9), labelled=False)
    labelled = [{**row, "label": generator.choice(tiny.conftest.LABELS)} for row in rows]
    return tiny.conftest.write_jsonl(file, labelled)


def null_run(network: Path, seed: int) -> dict[str, Any]:
    """Do the whole job on rows whose labels mean nothing; returns what it claims."""
    from tapioca_export import RunConfig, run
    from tapioca_export.reporting.wording import effect

    model = network / ("exported/model.onnx" if seed % NETWORKS else "checkpoint")
    generator = random.Random(seed)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {name: write_rows(folder / f"{name}.jsonl", ROWS, generator) for name in ("id", "target")}
        config = RunConfig(
            model=str(model), **files, output=folder / "out", seed=seed, iterations=2, warmup=0,
            num_threads=1, batch_size=(1,), max_drop_layers=CHANGED_LAYERS,
        )  # fmt: skip
        report = run(config)
    selection, accuracy = report.selection, report.benchmark.accuracy
    gc.collect()
    process = psutil.Process()
    chosen = (selection.selected_metric or 0.0) - (selection.baseline_metric or 0.0)
    return {
        "seed": seed,
        "drop": list(selection.drop),
        "gain_where_chosen": chosen,
        "gain": accuracy["target"].gain,
        "memory": process.memory_info().rss,
        "open_files": process.num_fds(),
        **{role: effect(accuracy[role]) if selection.drop else "unclear" for role in ("target", "id")},
    }


def share(found: dict[str, Any], role: str, effect: str) -> float:
    """Return the share of runs with an effect."""
    return statistics.fmean(run[role] == effect for run in found["runs"])


def growth(found: dict[str, Any]) -> tuple[float, int]:
    """Return the bytes that memory grows by a run, once warm (Theil-Sen), and the files opened since."""
    from scipy.stats import theilslopes

    warm = found["runs"][WARM:] if len(found["runs"]) > 2 * WARM else found["runs"]
    memory = [run["memory"] for run in warm]
    return float(theilslopes(memory)[0]), warm[-1]["open_files"] - warm[0]["open_files"]


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
        (
            "Of these runs, all in one process: growth of its memory a run, files left open",
            f"{growth(found)[0] / 1e3:.0f} kB, {growth(found)[1]}",
        ),
    ]


def broken(found: dict[str, Any]) -> list[str]:
    """Name what does not hold, if anything."""
    lines = []
    if share(found, "target", "gain") > FOOLED:
        lines.append("more than 5 % of the runs claim a gain")
    more_bytes, more_files = growth(found)
    if more_bytes > GROWTH:
        lines.append(f"the process grows by {more_bytes / 1e3:.0f} kB a run")
    if more_files > 0:
        lines.append(f"the process keeps {more_files} files open")
    return lines


def measure(runs: int) -> list[dict[str, Any]]:
    """Do so many runs, one after another."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    found = []
    torch.set_num_threads(1)
    disable_progress_bar()
    with warnings.catch_warnings(), forked(), TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        networks = [save_network(Path(scratch) / str(seed), seed) for seed in range(min(NETWORKS, runs))]
        for seed in range(runs):
            found.append(null_run(networks[(seed // NETWORKS + seed) % len(networks)], seed))
            made = found[-1]
            click.echo(
                f"{made['seed']:3} {made['drop']} {made['gain']:+.3f} {made['target']}, ID {made['id']}"
            )
    return found


@click.command(help=__doc__)
@click.option("--runs", default=200, show_default=True)
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
def main(runs: int, output: Path) -> None:
    """Measure, print and write."""
    clock = time.perf_counter()
    found = {**origin(), "rows": ROWS, "runs": measure(runs)}
    found["minutes"] = round((time.perf_counter() - clock) / 60, 1)
    write(found, output)
    finish(rows(found), broken(found))


if __name__ == "__main__":
    main()
