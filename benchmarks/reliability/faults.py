"""Every command that writes, killed, out of room, out of memory and interfered with: what is left of it?

    python -m benchmarks.reliability.faults            # all of it; writes faults.json beside this script
    python -m benchmarks.reliability.faults --quick    # a few of each kind, as CI does

Kills are at random instants of the seed's; disks are file systems in memory, which takes root. A case is a
problem where an output is neither the old one nor the new one, where something is left behind, where what is
said is not one line, or where the same command does not succeed afterwards.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.recording import origin
from benchmarks.reliability import filling, forks, interfering, killing, starving, subjects
from benchmarks.reliability.ending import finish, write
from benchmarks.reliability.subjects import Subject
from benchmarks.reliability.wholeness import Reference, reference

OUTPUT = Path(__file__).with_suffix(".json")
SEED = 0
Case = dict[str, Any]


class Trial:
    """All faults of all kinds, or of some, on commands and inputs that are made once."""

    def __init__(self, scratch: Path, *, quick: bool, only: Sequence[str]) -> None:
        self.world, self.rooms = scratch / "world", scratch / f"rooms-{os.getpid()}"
        self.quick, self.only = quick, only
        self.generator = random.Random(SEED)
        self._references: dict[str, Reference] = {}
        if not self.world.is_dir():
            subjects.put_inputs(self.world)
        forks.prepare(self.world, ("onnx",) if quick else ("onnx", "torchscript", "pt2"))
        self._make_runs(scratch)

    def _make_runs(self, scratch: Path) -> None:
        """Make the finished runs that commands are given, which are not there yet."""
        (subject,) = subjects.named("run")
        for number, name in enumerate(("run",) if self.quick else ("run", "run2")):
            if (self.world / name).is_dir():
                continue
            room = forks.Room(scratch / f"making-{number}")
            done = forks.run([*subject.command(self.world, "out"), "--seed", str(number)], room)
            if done.code:
                raise click.ClickException(done.said)
            (room.here / "out").rename(self.world / name)

    def of(self, subject: Subject) -> Reference:
        """Return what a command gives undisturbed, found out once."""
        if subject.name not in self._references:
            self._references[subject.name] = reference(subject, self.world, self.rooms)
        return self._references[subject.name]

    def chosen(self, *names: str) -> list[Subject]:
        """Return the subjects of these names that are asked for; all without any."""
        found = subjects.named(*names) if names else list(subjects.SUBJECTS)
        return [subject for subject in found if not self.only or subject.name in self.only]

    def kills(self) -> Iterator[Case]:
        """Kill each command at random instants: more often what is over soon."""
        for subject in self.chosen(*(QUICK_KILLS if self.quick else ())):
            wanted = self.of(subject)
            times = 4 if self.quick else TIMES.get(subject.name, MANY_TIMES)
            kinds = [killing.KINDS[number % len(killing.KINDS)] for number in range(times)]
            yield from killing.killed(subject, wanted, self.world, self.rooms, kinds, self.generator)

    def kills_at_calls(self) -> Iterator[Case]:
        """Kill each command just before calls that change the file system."""
        for subject in self.chosen(*(("prune --proof weights", "report") if self.quick else AT_CALLS)):
            most = 4 if self.quick else 8
            yield from killing.killed_at_calls(subject, self.of(subject), self.world, self.rooms, most)

    def fresh_kills(self) -> Iterator[Case]:
        """Kill processes that start Python."""
        for subject in self.chosen("prune --proof weights"):
            kinds = [killing.INT] if self.quick else [*killing.KINDS, killing.INT, killing.TERM] * 2
            yield from killing.killed_fresh(
                subject, self.of(subject), self.world, self.rooms, kinds, self.generator
            )

    def full_disks(self) -> Iterator[Case]:
        """Let each command run out of room."""
        if why := filling.why_not(self.rooms):
            yield {"command": "all", "skipped": why, "problem": ""}
            return
        for subject in self.chosen(*(QUICK_DISKS if self.quick else ())):
            if not subject.writes or subject.name == "demo":
                continue
            wanted = self.of(subject)
            points = 3 if self.quick else POINTS.get(subject.name, MANY_POINTS)
            yield from filling.filled(subject, wanted, self.world, self.rooms, points)
            if not self.quick:
                yield from filling.filled_temporary(subject, wanted, self.world, self.rooms)

    def folders(self) -> Iterator[Case]:
        """Let folders be read-only, vanish, and become files."""
        for subject in self.chosen(*(QUICK_KILLS[:1] if self.quick else BRIEF)):
            given = subject, self.of(subject), self.world, self.rooms
            if os.geteuid() == 0:
                yield from interfering.read_only(*given)
            if not subject.amends and not Path(subject.output).suffix:
                yield from interfering.vanishing(*given)
                yield from interfering.becoming_a_file(*given)

    def changing_inputs(self) -> Iterator[Case]:
        """Let weights and rows change while they are read."""
        for subject in self.chosen(*(QUICK_KILLS[:1] if self.quick else CHANGED)):
            yield from interfering.changing(subject, self.of(subject), self.world, self.rooms)

    def two_processes(self) -> Iterator[Case]:
        """Give commands twice at the same time."""
        for subject in self.chosen(*(("profile", "report", "check --junit") if self.quick else ())):
            if subject.writes and subject.name not in ("demo", "run", *MADE_ALIKE):
                yield from interfering.two_processes(subject, self.of(subject), self.world, self.rooms)

    def other_versions(self) -> Iterator[Case]:
        """Go on from, and read, what another version wrote."""
        if not self.quick:
            for subject in self.chosen("select"):
                yield from interfering.other_versions(subject, self.of(subject), self.world, self.rooms)
        yield from interfering.artifacts_of_newer_versions(self.world, self.rooms)

    def memory(self) -> Iterator[Case]:
        """Let memory run out, on a model that takes some."""
        for subject in self.chosen(*(QUICK_KILLS[:2] if self.quick else STARVED)):
            wide = subject.on_wide()
            steps = (8, 64) if self.quick else MEGABYTES
            yield from starving.starving(wide, self.of(wide), self.world, self.rooms, steps)

    def clocks(self) -> Iterator[Case]:
        """Let the clock jump."""
        for subject in self.chosen(*(("profile",) if self.quick else TIMED)):
            yield from starving.jumping(subject, self.of(subject), self.world, self.rooms)


BRIEF = (
    "profile", "select", "prune", "prune --proof weights", "prune FILE.onnx", "benchmark", "intervene",
    "intervene in a run", "report", "report --compare", "check --junit", "init", "export",
)  # fmt: skip
CHANGED = ("prune --proof weights", "prune", "export")
MADE_ALIKE = ("export --quantize", "export, PyTorch's")  # as `export` is
STARVED = ("profile", "select", "prune", "prune --proof weights", "intervene", "export")
TIMED = ("profile", "select", "benchmark", "intervene", "run")
MEGABYTES = (1, 16, 40, 64, 100, 160)
QUICK_KILLS = ("prune --proof weights", "profile", "report")
QUICK_DISKS = ("prune --proof weights", "check --junit")
AT_CALLS = (
    "select", "prune --proof weights", "prune FILE.onnx", "export", "report", "report --compare", "init",
    "intervene in a run", "check --junit",
)  # fmt: skip
# How often commands are killed, and run on disks that are too small: what takes long, less often.
MANY_TIMES, MANY_POINTS = 14, 8
TIMES = {
    "select": 8, "prune": 12, "export": 6, "export --quantize": 4, "export, PyTorch's": 4, "run": 4,
    "demo": 2,
}  # fmt: skip
POINTS = {"select": 3, "export": 4, "export --quantize": 3, "export, PyTorch's": 3, "run": 2}
KINDS = {
    "kills": Trial.kills,
    "kills at calls": Trial.kills_at_calls,
    "kills of fresh processes": Trial.fresh_kills,
    "full disks": Trial.full_disks,
    "folders": Trial.folders,
    "inputs that change": Trial.changing_inputs,
    "two processes": Trial.two_processes,
    "other versions": Trial.other_versions,
    "memory": Trial.memory,
    "clocks": Trial.clocks,
}


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what docs/reliability.md says of a record: what was counted, and the number in words."""
    lines = []
    for kind, cases in found["cases"].items():
        tried = [case for case in cases if "skipped" not in case]
        wrong = sum(bool(case["problem"]) for case in tried)
        outputs = Counter(case["output"] for case in tried if "output" in case)
        said = f"{len(tried)} over {len({case['command'] for case in tried})} commands, {wrong} problems"
        if outputs:
            said += "; outputs: " + ", ".join(f"{number} {name}" for name, number in sorted(outputs.items()))
        lines.append((f"Faults: {kind}", said))
    return lines


def broken(found: dict[str, Any]) -> list[str]:
    """Name every case that is a problem."""
    cases = [(kind, case) for kind, cases in found["cases"].items() for case in cases if case["problem"]]
    return [f"{kind}, {case['command']}: {' '.join(case['problem'].split())}" for kind, case in cases]


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="A few cases of each kind.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(list(KINDS)),
    help="Only these; of others, what the record says stays.",
)
@click.option("--command", "only", multiple=True, help="Only commands of these names.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where to work; inputs made there stay.")
def main(
    quick: bool, output: Path, kinds: tuple[str, ...], only: tuple[str, ...], scratch: Path | None
) -> None:
    """Inject the faults, print what came of them, and write the record."""
    os.environ["OMP_NUM_THREADS"] = "1"
    before = json.loads(output.read_text(encoding="utf-8"))["cases"] if kinds and output.exists() else {}
    found: dict[str, Any] = {**origin(), "seed": SEED, "cases": before}
    with tempfile.TemporaryDirectory(prefix="tapioca-faults-") as fresh:
        Path(fresh).chmod(0o755)  # what others may not read there is said where that is tried
        trial = Trial(scratch or Path(fresh), quick=quick, only=only)
        for kind in kinds or KINDS:
            cases = found["cases"][kind] = []
            for case in KINDS[kind](trial):
                cases.append(case)
                click.echo(f"{kind}: {json.dumps(case)}", err=True)
                found["cases"] = {name: found["cases"][name] for name in KINDS if name in found["cases"]}
                write(found, output)
    finish(rows(found), broken(found))


if __name__ == "__main__":
    main()
