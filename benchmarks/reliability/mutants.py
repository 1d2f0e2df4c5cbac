"""The pipeline broken on purpose, one fault at a time: which of the product's own proofs caught each?

    python -m benchmarks.reliability.mutants             # all, some minutes on one core
    python -m benchmarks.reliability.mutants --quick     # what CI runs of it
    python -m benchmarks.reliability.mutants --only labels

Prints a line a mutant, and writes benchmarks/reliability/mutants.json. Exit code 1 if one survives, or a
command fails with nothing broken.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.recording import origin
from benchmarks.reliability.ending import finish, write

OUTPUT = Path(__file__).with_suffix(".json")


def all_mutants() -> list[Any]:
    """Return every mutant."""
    from .mutations import checkpoints, exports, graphs, runs

    return [*checkpoints.MUTANTS, *exports.MUTANTS, *graphs.MUTANTS, *runs.MUTANTS]


def quick(mutants: Sequence[Any]) -> list[Any]:
    """Return what CI runs: each kind of fault of each command once, where that takes no long run."""
    ready = (mutant for mutant in mutants if mutant.scenario.is_quick)
    return list(
        {(mutant.scenario.command, mutant.name): mutant for mutant in reversed(list(ready))}.values()
    )[::-1]


def measure(mutants: Sequence[Any], say: Any = click.echo) -> dict[str, Any]:
    """Run the control of each scenario, then every mutant; returns what the JSON says of them."""
    from .mutations import base, running

    started = time.perf_counter()
    with running.as_in_tests(), base.no_logging():
        controls = {}
        for scenario in base.controls(mutants):
            found = controls[scenario.name] = base.attempt(scenario)
            if found.by is not None:
                say(f"CONTROL FAILS  {scenario.name}: {found.by}: {found.message}")
        cases = []
        for mutant in mutants:
            clock = time.perf_counter()
            found = base.attempt(mutant.scenario, mutant.spoil)
            cases.append(
                {
                    "name": mutant.name,
                    "broken": mutant.broken,
                    "command": mutant.scenario.command,
                    "scenario": mutant.scenario.name,
                    "caught": found.is_caught,
                    "by": found.by,
                    "message": found.message,
                    "seconds": round(time.perf_counter() - clock, 1),
                }
            )
            word = "caught" if found.is_caught else "SURVIVES" if found.by is None else "CRASHES"
            say(f"{word:9} {mutant.full_name}: {found.by or 'nothing'}: {found.message[:120]}")
    proofs = Counter(case["by"] for case in cases if case["caught"])
    return {
        "mutants": len(cases),
        "caught": sum(case["caught"] for case in cases),
        "survivors": [f"{c['scenario']}: {c['name']}" for c in cases if not c["caught"]],
        "by": dict(sorted(proofs.items())),
        "controls": {name: found.by is None for name, found in controls.items()},
        "seconds": round(time.perf_counter() - started),
        "cases": cases,
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the number in words, a line of docs/reliability.md each."""
    by = ", ".join(f"{count} by {name}" for name, count in found["by"].items())
    return [
        ("Faults planted in the pipeline, one at a time", f"{found['mutants']}"),
        ("of these refused by the product itself", f"{found['caught']} ({by})"),
        ("that went out unnoticed", f"{len(found['survivors'])}"),
        (
            "The same commands with nothing broken",
            f"{sum(found['controls'].values())} of {len(found['controls'])} succeed",
        ),
    ]


def broken(found: dict[str, Any]) -> list[str]:
    """Name what went out unnoticed, and commands that fail with nothing broken."""
    failing = [name for name, succeeds in found["controls"].items() if not succeeds]
    return [f"unnoticed: {name}" for name in found["survivors"]] + [f"fails by itself: {n}" for n in failing]


@click.command()
@click.option("--quick", "is_quick", is_flag=True, help="What CI runs.")
@click.option("--only", default="", help="Mutants whose full name holds this.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT)
def main(is_quick: bool, only: str, output: Path) -> None:
    """Break the pipeline in every known way, and see that it refuses each time."""
    mutants = quick(all_mutants()) if is_quick else all_mutants()
    mutants = [mutant for mutant in mutants if only in mutant.full_name]
    found = measure(mutants)
    if not only and not is_quick:
        write({**origin(), **found}, output)
    finish(rows(found), broken(found))


if __name__ == "__main__":
    main()
