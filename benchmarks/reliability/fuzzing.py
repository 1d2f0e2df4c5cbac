"""Every reader of the product, fed with files that are nearly right: does anything break?

    python -m benchmarks.reliability.fuzzing             # a quarter of an hour of one core
    python -m benchmarks.reliability.fuzzing --quick     # as CI runs it, without coverage
    make fuzz                                            # the first, with coverage (atheris)

Every file that is made is either read, or refused with one line, within 5 seconds and 500 MB; meanwhile
nothing is opened out of its folder, nothing written, no process started, no connection made, no pickle read.
Files are made by hypothesis out of valid ones: trees with other nodes, messages with other fields, texts with
other words, other bytes. Then coverage guides what is made of files that are parsed in
Python. Prints a table, writes JSON with environment and commit; exit code 1 if a promise was broken.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.recording import origin
from benchmarks.reliability.ending import finish, write

from .feeding import PROCESSES, Found, feed, feed_guided
from .readers import READERS
from .seeds import make
from .watching import BYTES, SECONDS

RESULT = Path(__file__).with_suffix(".json")
# Files of a round for a reader that takes about a millisecond for each, and seconds of guided ones.
FULL, QUICK, GUIDED = 600, 25, 15
ROUNDS = 4
LEAST = 5  # files for any reader
TRIES = 3  # processes for a reader, where a library takes one with it
MOST_SECONDS = 120.0  # for a reader, by the clock
PRELOADED = ("benchmarks.reliability.readers", "transformers.generation", "pyarrow.parquet", "datasets")


def executions_of(name: str, many: int) -> int:
    """Return how many files a reader gets, where the fastest get so many."""
    return max(LEAST, round(many * READERS[name].share))


def fed(name: str, valid: Path, many: int, number: int) -> Found:
    """Feed a reader, in another process again where one does not survive it."""
    found, wanted = Found(), executions_of(name, many)
    for attempt in range(TRIES):
        left = wanted - found.executions
        if left <= 0 or (attempt and "the process" not in " ".join(found.broken)):
            break
        found.join(feed({name: left}, valid, number + attempt * ROUNDS, MOST_SECONDS)[name])
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the numbers in words, of the JSON that this command writes."""
    readers = found["readers"]
    files = sum(row["executions"] + row["guided_executions"] for row in readers)
    guided = sum(row["guided_executions"] for row in readers)
    seconds = sum(row["seconds"] + row["guided_seconds"] for row in readers)
    lines = [
        ("readers fed", str(len(readers))),
        (
            "files read, in all",
            f"{files:,} in {seconds / 60:.0f} minutes of a core, {guided:,} guided by coverage",
        ),
        ("files that once broke a reader, fed again", f"{sum(len(row['known']) for row in readers)}"),
        ("promises broken", str(len(broken(found)))),
    ]
    for row in readers:
        count, minutes = (
            row["executions"] + row["guided_executions"],
            (row["seconds"] + row["guided_seconds"]) / 60,
        )
        shown = f"{count:,} files, of which {row['read']:,} could be read; {minutes:.1f} minutes"
        lines.append(
            (f"fuzzed: {row['name']}", shown + (f"; {len(row['broken'])} broke it" if row["broken"] else ""))
        )
    return lines


def broken(found: dict[str, Any]) -> list[str]:
    """Return each promise that was broken: by which reader, and how."""
    return [
        f"{row['name']}: {what}: {' '.join(case['detail'].split())}"
        for row in found["readers"]
        for what, case in row["broken"].items()
    ]


def _row(name: str, plain: Found, guided: Found) -> dict[str, Any]:
    both = Found()
    both.join(plain)
    both.join(guided)
    return {
        "name": name,
        "file": READERS[name].file,
        "executions": plain.executions,
        "seconds": plain.seconds,
        "guided_executions": guided.executions,
        "guided_seconds": guided.seconds,
        "read": both.read,
        "refused": both.refused,
        **{key: asdict(both)[key] for key in ("broken", "known")},
    }


def _written(
    output: Path, quick: bool, plain: Mapping[str, Found], guided: Mapping[str, Found]
) -> list[dict[str, Any]]:
    """Write what was found so far, print it, and return a row a reader."""
    made = [_row(name, plain[name], guided[name]) for name in plain]
    found = {**origin(), "quick": quick, "bounds": {"seconds": SECONDS, "bytes": BYTES}, "readers": made}
    write(found, output)
    click.echo("\n".join(f"{what}: {words}" for what, words in rows(found)[:4]))
    return made


@click.command()
@click.option("--quick", is_flag=True, help="One round of few files, as CI feeds them.")
@click.option("--only", help="Readers whose name holds this.", default="")
@click.option("--output", type=click.Path(path_type=Path), default=RESULT)
def main(quick: bool, only: str, output: Path) -> None:
    """Feed every reader, in rounds; what was found is written after each."""
    PROCESSES.set_forkserver_preload(list(PRELOADED))
    guides = not quick and importlib.util.find_spec("atheris") is not None
    names = [name for name in READERS if only in name]
    plain, guided = ({name: Found() for name in names} for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="tapioca-fuzz-valid-") as folder:
        valid = Path(folder) / "valid"
        make(valid)
        for number in range(1 if quick else ROUNDS):
            for name in names:
                plain[name].join(fed(name, valid, QUICK if quick else FULL, number))
            made = _written(output, quick, plain, guided)
        for name in (name for name in names if guides and READERS[name].is_guided):
            guided[name].join(feed_guided(name, valid, GUIDED))
            made = _written(output, quick, plain, guided)
    finish(rows({"readers": made})[4:], broken({"readers": made}))


if __name__ == "__main__":
    main()
