"""Is a selection the same bytes, whatever of the run is none of its business?

    python -m benchmarks.reliability.sameness             # writes sameness.json
    python -m benchmarks.reliability.sameness --quick     # what CI runs: one model, fewer variations

`select` runs on tiny networks, each time in a process of its own: again, with other seeds of Python's
hashes, other batch sizes, other numbers of threads, on Ray's workers. `selection.json` holds one number
that no two runs share, `cost.seconds`; beside it every byte is compared. Batches of other sizes and workers
do other work for the same result, which `cost` counts, and matrix products of other shapes are rounded
otherwise: where a file differs, it is said in what, and by how much at most.

Exit code 1 if the same command gives other bytes, or anything gives other layers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.recording import origin

from .ending import finish, write
from .tiny import Job, jobs

HASH_SEED = "PYTHONHASHSEED"
OUTPUT = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Variation:
    """What another run is told, and whether its bytes have to be the same to the last."""

    name: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    is_same_command: bool = False


VARIATIONS = (
    Variation("again", is_same_command=True),
    Variation("hashes seeded 1", environment={HASH_SEED: "1"}, is_same_command=True),
    Variation("hashes seeded 2", environment={HASH_SEED: "2"}, is_same_command=True),
    Variation("two threads", ("--num-threads", "2")),
    Variation("batches of 1", ("--eval-batch-size", "1")),
    Variation("batches of 7", ("--eval-batch-size", "7")),
    Variation("batches of 64", ("--eval-batch-size", "64")),
    Variation("two Ray workers", ("--engine", "ray", "--num-workers", "2")),
)
QUICK = ("hashes seeded 1", "batches of 7")
PLAIN = ("--num-threads", "1", "--eval-batch-size", "16", "--epsilon", "1", "--full-scores")


def select(job: Job, output: Path, variation: Variation) -> dict[str, Any]:
    """Run `select` in a fresh process; returns what it wrote, but for the time it took."""
    command = [sys.executable, "-m", "tapioca_export", "select", *job.arguments, *PLAIN, *variation.options]
    environment = {**os.environ, HASH_SEED: "0", **(variation.environment or {})}
    subprocess.run([*command, "-q", "-o", str(output)], check=True, env=environment)
    found: dict[str, Any] = json.loads((output / "selection.json").read_text(encoding="utf-8"))
    del found["cost"]["seconds"]
    return found


def numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a JSON value, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Say in what two selections differ."""
    costs = one.pop("cost"), other.pop("cost")
    pairs = list(zip(numbers(one), numbers(other), strict=False))
    return {
        "is_same": (one, costs[0]) == (other, costs[1]),
        "is_same_but_cost": one == other,
        "is_same_choice": all(one[key] == other[key] for key in ("drop", "stop_reason"))
        and [step["layer"] for step in one["steps"]] == [step["layer"] for step in other["steps"]],
        "largest_difference": max((abs(a - b) for a, b in pairs), default=0.0),
    }


def measure(quick: bool) -> list[dict[str, Any]]:
    """Run every variation of every job."""
    found = []
    with TemporaryDirectory() as scratch:
        for job in jobs(Path(scratch))[: 1 if quick else None]:
            for variation in VARIATIONS:
                if quick and variation.name not in QUICK:
                    continue
                folder = Path(scratch) / job.name
                if not (folder / "plain").exists():
                    select(job, folder / "plain", Variation("plain"))
                plain = json.loads((folder / "plain" / "selection.json").read_text(encoding="utf-8"))
                del plain["cost"]["seconds"]
                other = select(job, folder / variation.name.replace(" ", "-"), variation)
                case = {"job": job.name, "variation": variation.name, **difference(plain, other)}
                found.append({**case, "is_same_command": variation.is_same_command})
                click.echo(sentence(found[-1]))
    return found


def sentence(case: Mapping[str, Any]) -> str:
    """Say of one variation what became of it."""
    if case["is_same"]:
        said = "the same bytes"
    elif case["is_same_but_cost"]:
        said = "the same bytes, but for what `cost` counts"
    else:
        choice = "the same" if case["is_same_choice"] else "OTHER"
        said = f"{choice} layers, numbers differ by {case['largest_difference']:.0e} at most"
    return f"{case['job']}, {case['variation']}: {said}"


def broken(found: Mapping[str, Any]) -> list[str]:
    """Name what does not hold, if anything."""
    return [
        sentence(case)
        for case in found["cases"]
        if not case["is_same_choice"] or (case["is_same_command"] and not case["is_same"])
    ]


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the numbers in words."""
    cases = found["cases"]
    same = sum(case["is_same_but_cost"] for case in cases)
    others = [case for case in cases if not case["is_same_but_cost"]]
    said = f"{same} of {len(cases)} the same bytes"
    if others:
        where = sorted({case["variation"] for case in others})
        most = max(case["largest_difference"] for case in others)
        said += (
            f"; the same layers in the rest ({', '.join(where)}), losses within {most:.0e}: "
            "products of other shapes are rounded otherwise"
        )
    return [
        (
            "Selections run again, with other hash seeds, threads, batch sizes and workers, beside "
            "`cost`, which counts the work",
            said,
        )
    ]


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="What CI runs.")
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
def main(quick: bool, output: Path) -> None:
    """Measure, print and write."""
    clock = time.perf_counter()
    found = {**origin(), "cases": measure(quick)}
    found["minutes"] = round((time.perf_counter() - clock) / 60, 1)
    write(found, output)
    finish(rows(found), broken(found))


if __name__ == "__main__":
    main()
