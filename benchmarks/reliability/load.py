"""A million rows, 64 layers, a long journal: what grows, and with what.

    python -m benchmarks.reliability.load                 # writes load.json; needs a Chromium
    python -m benchmarks.reliability.load --rows 10000 --rows 30000 --output /tmp/load.json

Whole runs on ID and target files of a tiny network of 64 layers, each run in a process of its own: seconds
of each stage, and the process's peak memory. Rows are held in memory, and what one takes is measured apart;
beyond that nothing may grow with them. Then a search of 500 candidates is done, and done again from its
journal.

Exit code 1 if the stages that read rows take more than 1.25 times their share of time with the most rows,
if memory grows beyond the rows themselves by more than 10 %, if the report does not open, or if
resuming takes a second or more.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.recording import origin

from . import tiny
from .ending import finish, write

NUM_LAYERS, DEEP_LAYERS = 64, 40
CANDIDATES = 500
SIZES = (100_000, 1_000_000)
STAGES = ("load", "select", "profile", "benchmark")
SLOWER, LARGER, RESUMED = 1.25, 1.1, 1.0
CHILD = "--child"
OUTPUT = Path(__file__).with_suffix(".json")


def save_network(folder: Path, num_layers: int) -> Path:
    """Save a classifier that is deep and otherwise as small as may be."""
    return tiny.conftest.save_model(
        folder,
        "bert",
        num_hidden_layers=num_layers,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
    )


def write_rows(file: Path, num_rows: int, seed: int) -> Path:
    """Write rows of a few words, no two alike."""
    generator = random.Random(seed)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(num_rows):
            words = [generator.choice(tiny.conftest.WORDS) for _ in range(3)]
            label = generator.choice(tiny.conftest.LABELS)
            lines.write(json.dumps({"text": f"{' '.join(words)} {file.stem}{number}", "label": label}) + "\n")
    return file


def peak() -> int:
    """Return the most memory, in bytes, that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(what: str, model: str, id_: str, target: str, output: str) -> None:
    """Do the whole job, or only read its rows, and print what memory that took."""
    from tapioca_export import RunConfig, run
    from tapioca_export.reading import load_roles, load_task

    config = RunConfig(
        model=model, id=Path(id_), target=Path(target), output=Path(output), criterion="fixed",
        drop=(10, 20, 30), eval_batch_size=1024, num_threads=1, iterations=5, warmup=1, batch_size=(1,),
    )  # fmt: skip
    if what == "run":
        run(config)
        print(json.dumps({"peak": peak()}))
        return
    task, processor = load_task(config)
    before = peak()
    roles = load_roles(config, task, processor)
    print(json.dumps({"rows": peak() - before, "num_rows": sum(map(len, roles.values()))}))


def in_a_process(what: str, *arguments: object) -> dict[str, Any]:
    """Run `child` in a fresh process; returns what it printed last."""
    command = [sys.executable, "-m", "benchmarks.reliability.load", CHILD, what, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_with(num_rows: int, model: Path, folder: Path) -> dict[str, Any]:
    """Do the whole job on so many rows, half of them ID."""
    files = [write_rows(folder / f"{name}.jsonl", num_rows // 2, seed) for seed, name in enumerate("it")]
    output = folder / "out"
    held = in_a_process("rows", model, *files, output)["rows"]
    found = in_a_process("run", model, *files, output)
    seconds = json.loads((output / "run.json").read_text(encoding="utf-8"))["seconds"]
    case = {"num_rows": num_rows, "rows_bytes": held, "peak_bytes": found["peak"], "seconds": seconds}
    said = ", ".join(f"{name} {seconds[name]:.0f} s" for name in STAGES)
    click.echo(f"{num_rows:,} rows: {said}; peak {found['peak'] / 1e6:.0f} MB, rows {held / 1e6:.0f} MB")
    return {**case, **opened(output / "report.html")}


def opened(report: Path) -> dict[str, Any]:
    """Open a report in a headless browser; returns its size and how long it took until it showed."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "consumers"))
    from check_browser import open_page

    page = open_page(report)
    is_whole = page.drawn == page.plots > 0 and not page.errors and not page.requests
    return {"report_bytes": report.stat().st_size, "opened": page.opened, "is_whole": is_whole}


def resume(folder: Path) -> dict[str, Any]:
    """Search, and do the same again from the journal alone."""
    from tapioca_export import RunConfig, select

    rows = [write_rows(folder / f"{name}.jsonl", 64, seed) for seed, name in enumerate("it")]
    settings: dict[str, Any] = {
        "model": str(save_network(folder / "deep", DEEP_LAYERS)), "id": rows[0], "target": rows[1],
        "epsilon": 1.0, "full_scores": True, "max_drop_layers": 16, "num_threads": 1,
    }  # fmt: skip
    first = select(RunConfig(**settings, output=folder / "first"))
    partial = folder / ".again.tapioca-partial"
    partial.mkdir()
    (folder / "first" / "search.jsonl").rename(partial / "search.jsonl")
    clock = time.perf_counter()
    again = select(RunConfig(**settings, output=folder / "again"))
    seconds = time.perf_counter() - clock
    assert first.cost is not None
    assert (again.drop, again.steps) == (first.drop, first.steps)
    click.echo(f"{first.cost.evaluations} candidates again from the journal in {seconds:.2f} s")
    return {"candidates": first.cost.evaluations, "seconds": seconds, "searched_in": first.cost.seconds}


def broken(found: dict[str, Any]) -> list[str]:
    """Name what does not hold, if anything."""
    lines = []
    most, before = found["runs"][-1], found["runs"][-2]
    if (share := slower(found)) > SLOWER:
        lines.append(f"a row takes {share:.2f} times as long of {most['num_rows']:,} as of fewer")
    if (share := larger(found)) > LARGER:
        lines.append(f"memory grows by {share:.2f} times what the rows take")
    for case in (before, most):
        if not case["is_whole"]:
            lines.append(f"the report of {case['num_rows']:,} rows does not open whole")
    if found["journal"]["seconds"] >= RESUMED or found["journal"]["candidates"] < CANDIDATES:
        lines.append(f"a journal resumes in {found['journal']['seconds']:.2f} s")
    return lines


def slower(found: dict[str, Any]) -> float:
    """Return the time a row of the largest run, over that of the one before."""
    one, other = (
        sum(run["seconds"][name] for name in STAGES) / run["num_rows"] for run in found["runs"][-2:]
    )
    return float(other / one)


def larger(found: dict[str, Any]) -> float:
    """Return by how much memory grows from one run to the largest, over what the rows take more."""
    one, other = found["runs"][-2:]
    return float((other["peak_bytes"] - one["peak_bytes"]) / (other["rows_bytes"] - one["rows_bytes"]))


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the numbers in words."""
    one, other = found["runs"][-2:]
    peaks = " and ".join(f"{run['peak_bytes'] / 1e6:,.0f} MB" for run in (one, other))
    return [
        (
            f"Whole runs of {one['num_rows']:,} and {other['num_rows']:,} rows, {NUM_LAYERS} layers: peak",
            f"{peaks}; growth is {larger(found):.2f} of what the rows take, "
            f"{other['rows_bytes'] / other['num_rows']:.0f} bytes each",
        ),
        ("Time a row, of the larger over the smaller", f"{slower(found):.2f}"),
        (
            "The report of the larger",
            f"{other['report_bytes'] / 1e6:.1f} MB, opens in {other['opened']:.2f} s",
        ),
        (
            f"A search of {found['journal']['candidates']} candidates, again from its journal",
            f"{found['journal']['seconds']:.2f} s",
        ),
    ]


@click.command(help=__doc__)
@click.option("--rows", "sizes", multiple=True, type=int, default=SIZES, show_default=True)
@click.option(
    "--part", type=click.Choice(["runs", "journal"]), help="Measure this one alone, and keep the other."
)
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
def main(sizes: Sequence[int], part: str | None, output: Path) -> None:
    """Measure, print and write."""
    clock, runs = time.perf_counter(), []
    found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    with TemporaryDirectory() as scratch:
        if part in (None, "runs"):
            model = save_network(Path(scratch) / "model", NUM_LAYERS)
            for size in sizes:
                with TemporaryDirectory(dir=scratch) as folder:
                    runs.append(run_with(size, model, Path(folder)))
            minutes = round((time.perf_counter() - clock) / 60, 1)
            found |= {"runs": runs, "of_runs": {**origin(), "minutes": minutes}}
        if part in (None, "journal"):
            found |= {"journal": resume(Path(scratch)), "of_journal": origin()}
    write(found, output)
    if not {"runs", "journal"} <= found.keys():
        return
    finish(rows(found), broken(found))


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
    else:
        main()
