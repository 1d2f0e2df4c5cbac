"""Is what lies there the old artefact or the new one, whole, and is nothing left behind?

What of a command's output is the same in every run is found out, not assumed: of two undisturbed runs, files
that are equal to the byte have to be so after a fault; of other JSON, all that is equal in both; the rest has
to be there, and every record has to name what is beside it. Of a command that measures, numbers and hashes
may be equal by chance: its JSON has to say as much of the same kinds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapioca_export import TapiocaError, verify

from .forks import Done, Room, run
from .subjects import Subject

VARIES = "varies"
Tree = dict[str, str]


def tree(path: Path) -> Tree:
    """Return the SHA-256 of every file below a path, or of the file there; empty if there is nothing."""
    if path.is_file():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run gives: by file, what is the same in each; its time (s), and its bytes.

    With `measures`, JSON is held against `shapes`, by file, and other files have to be there.
    """

    files: Mapping[str, Any]
    seconds: float
    num_bytes: int
    shapes: Mapping[str, Any] | None = None

    def differs(self, output: Path) -> str:
        """Return in what an output is not the one of an undisturbed run, or nothing."""
        found = tree(output)
        if found.keys() != self.files.keys():
            return f"files {sorted(found.keys() ^ self.files.keys())} are missing or too many"
        for name, same in self.files.items():
            file = output / name if name else output
            if self.shapes is not None:
                if name in self.shapes and _shape(_plain(file)) != self.shapes[name]:
                    return f"{name or output.name} says something else"
            elif isinstance(same, str):
                if same not in (VARIES, found[name]):
                    return f"{name or output.name} has other bytes"
            elif _common(same, _plain(file)) != same:
                return f"{name or output.name} says something else"
        return _unrecorded(output)


def reference(subject: Subject, world: Path, rooms: Path) -> Reference:
    """Run a command twice, once over an old output, and return what is the same in both outputs.

    In one of them the clock runs otherwise: what says how long something took is the same in none.
    """
    outputs, seconds = [], 0.0
    for number, tried in enumerate((subject, subject.replacing())):
        room, output = furnished(subject, world, rooms / f"reference-{number}", old=bool(number))
        done = run(tried.command(world, subject.output), room, None if number else _hurry)
        if done.code or done.crash() or left_behind(subject, room, finished=True):
            raise RuntimeError(f"{subject.name} does not run: {done.said or done.printed}")
        outputs.append(output)
        seconds = done.seconds
    one, other = map(tree, outputs)
    files: dict[str, Any] = {}
    for name in one:
        paths = [output / name if name else output for output in outputs]
        if one[name] == other.get(name):
            files[name] = one[name]
        elif paths[0].suffix in (".json", ".jsonl"):
            files[name] = _common(*map(_plain, paths))
        else:
            files[name] = VARIES
    paths = [outputs[0] / name if name else outputs[0] for name in one]
    shapes = None
    if subject.measures:
        shapes = {
            name: _shape(_plain(path))
            for name, path in zip(one, paths, strict=True)
            if ".json" in path.suffix
        }
    return Reference(files, seconds, sum(path.stat().st_size for path in paths), shapes)


def _hurry() -> None:
    """Let the clock by which work is timed run eight times as fast."""
    clock = time.perf_counter
    time.perf_counter = lambda: 8 * clock()


def _shape(value: Any) -> Any:
    """Return a JSON value with kinds in place of numbers, and of texts that may hold some.

    How many texts a list has depends on the numbers.
    """
    if isinstance(value, dict):
        return {key: _shape(part) for key, part in value.items()}
    if isinstance(value, list):
        parts = [_shape(part) for part in value]
        return "texts" if set(map(str, parts)) == {"str"} else parts
    return (
        "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    )


def _plain(file: Path) -> Any:
    """Return what a JSON file, or one of JSON lines, says; nothing of one that is torn."""
    try:
        text = file.read_text(encoding="utf-8")
        return (
            [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
        )
    except ValueError:
        return None


def _common(one: Any, other: Any) -> Any:
    """Return what two values say alike; `VARIES` stands for the rest."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _common(one[key], other[key]) for key in one}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_common(*pair) for pair in zip(one, other, strict=True)]
    return one if one == other else VARIES


def _unrecorded(output: Path) -> str:
    """Return what the records of a folder do not know of it, or nothing."""
    if not output.is_dir() or (
        not any(output.rglob("provenance.json")) and not (output / "run.json").is_file()
    ):
        return ""
    try:
        found = verify(output, proofs=False)
    except TapiocaError as error:
        return f"verify: {error.message}"
    wrong = [check for check in found.files if check.role == "output" and check.state != "same"]
    wrong = [check for check in wrong if check.state != "not compared"]
    return f"verify: {wrong[0].path} is {wrong[0].state}" if wrong else ""


def furnished(subject: Subject, world: Path, path: Path, *, old: bool = False) -> tuple[Room, Path]:
    """Give an empty room and the place of the output, with an old one there, or what the command amends."""
    shutil.rmtree(path, ignore_errors=True)
    room = Room(path)
    output = room.here / subject.output
    put_old(subject, world, output, old=old)
    return room, output


def put_old(subject: Subject, world: Path, output: Path, *, old: bool) -> None:
    """Put what a command amends, or an old artefact of it, in place of whatever is at its output."""
    if subject.amends:
        shutil.copytree(world / subject.amends, output)
        with (output / "report.html").open("a", encoding="utf-8") as page:
            page.write("<!-- old -->")  # or a new one would be the old one
    elif old and subject.writes:
        if Path(subject.output).suffix:
            output.write_text("old\n")
        else:
            output.mkdir()
            (output / "old.txt").write_text("old\n")


def aside_of(subject: Subject, room: Room) -> list[str] | None:
    """Return what is in the folder that a command fills, if there is one."""
    aside = room.here / f".{subject.output}.tapioca-partial"
    return sorted(path.name for path in aside.iterdir()) if aside.is_dir() else None


def left_behind(subject: Subject, room: Room, *, finished: bool = False) -> str:
    """Return what a command has left besides its output, or nothing.

    Beside the output there may be what the same command goes on from or takes away; not when it has finished.
    """
    if temporary := [path.name for path in room.tmp.iterdir()]:
        return f"in TMPDIR: {', '.join(sorted(temporary))}"
    allowed = {subject.output}
    if not finished:
        allowed |= {f".{subject.output}.tapioca-{end}" for end in ("partial", "finished")}
        allowed |= {f"{subject.output}.partial"}
    beside = sorted({path.name for path in room.here.iterdir()} - allowed)
    if subject.amends and finished:
        beside += [path.name for path in (room.here / subject.output).rglob("*.partial")]
    return f"beside the output: {', '.join(beside)}" if beside else ""


def state(subject: Subject, output: Path, before: Tree, wanted: Reference) -> tuple[str, str]:
    """Return whether an output is "old", "new" or "torn", and then why.

    What amends a folder replaces some of its files at one instant each: it is "amended" where all of them are
    the old ones or whole new ones.
    """
    found = tree(output)
    if found == before:
        return "old", ""
    if not (why := wanted.differs(output)):
        return "new", ""
    if subject.amends:
        strange = [name for name in found if name not in wanted.files and not name.endswith(".partial")]
        torn = [name for name in found if name.endswith(".json") and _plain(output / name) is None]
        if not strange and not torn and before.keys() <= found.keys():
            return "amended", ""
    return "torn", why


def interrupted_well(subject: Subject, done: Done, codes: tuple[int, ...]) -> str:
    """Return what is wrong with how a command let itself be interrupted, or nothing."""
    if crash := done.crash():
        return crash
    if done.code not in codes:
        return f"code {done.code}: {done.said.strip()[-200:]}"
    if done.code > 2 and len(done.errors) != 1:
        return f"{len(done.errors)} lines of errors: {done.said.strip()[-200:]}"
    return ""
