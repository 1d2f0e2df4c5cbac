"""Somebody else at the same files: folders go, inputs change, a second process writes, another version wrote.

What the other one does is done at a call of the command's own, not after a time: so it happens at the same
place in every trial.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .forks import Done, Injury, Room, run, start
from .killing import judged
from .subjects import Subject
from .wholeness import Reference, furnished, left_behind, tree

NOBODY = 65534
Case = dict[str, Any]
Call = Callable[[], object]


def at_event(event: str, ending: str, call: Call, skip: int = 0) -> Injury:
    """Return what makes a process call something once, before it opens or renames a path that ends so."""

    def injure() -> None:
        own, left = os.getpid(), [skip + 1]

        def hook(found: str, arguments: tuple[Any, ...]) -> None:
            if found != event or not left[0] or os.getpid() != own or not arguments:
                return
            is_path = isinstance(arguments[0], (str, bytes, os.PathLike))
            if is_path and os.fsdecode(arguments[0]).endswith(ending):
                left[0] -= 1
                if not left[0]:
                    call()

        sys.addaudithook(hook)

    return injure


def _refused(subject: Subject, room: Room, done: Done, words: str) -> str:
    """Return what is wrong with a refusal, or nothing."""
    if done.code != 1 or len(done.errors) != 1 or words not in done.errors[0]:
        return f"code {done.code}: {done.said.strip()[-300:]}"
    return left_behind(subject, room, finished=True)


# --- folders ----------------------------------------------------------------------------------


def read_only(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Run a command as somebody who may not write there."""
    for what, words in (("read-only", "Cannot write"), ("inputs unreadable", "")):
        room, output = furnished(subject, world, rooms / "read-only", old=True)
        weights = world / "model" / "model.safetensors"
        weights.chmod(0o644 if words else 0o600)
        before = tree(output)
        room.tmp.chmod(0o777)
        if not words:
            if "{world}/model" not in subject.arguments:
                continue
            for path in (room.here, output, *output.rglob("*")):
                path.chmod(0o777)
        done = run(subject.replacing().command(world, subject.output), room, _become_nobody)
        case = {"command": subject.name, "what": what} | judged(subject, wanted, room, before, done, (1,))
        is_outline = not words and done.code == 0  # `init` reads no weights
        yield case | {"problem": case["problem"] or (not is_outline and _refused(subject, room, done, words))}


def _become_nobody() -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def vanishing(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Take the folder away that a command fills, early and late."""
    for share in (0.3, 0.9):
        room, output = furnished(subject, world, rooms / "vanishing", old=True)
        before, aside = tree(output), room.here / f".{subject.output}.tapioca-partial"
        running = start(subject.replacing().command(world, subject.output), room)
        time.sleep(wanted.seconds * share)
        was_there = aside.is_dir()
        shutil.rmtree(aside, ignore_errors=True)
        done = running.wait()
        case = {"command": subject.name, "what": "vanished", "was_there": was_there}
        yield case | judged(subject, wanted, room, before, done, (1,))


def becoming_a_file(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Put a file where a command's output is going to be, while it is at work."""
    room, output = furnished(subject, world, rooms / "a-file")

    def put() -> None:
        output.write_text("theirs\n")

    first = at_event("open", "", put, skip=3)
    done = run(subject.command(world, subject.output), room, first)
    problem = "" if output.is_file() and output.read_text() == "theirs\n" else "their file is gone"
    if done.code != 1 or len(done.errors) != 1 or done.crash():
        problem = problem or f"code {done.code}: {done.said.strip()[-300:]}"
    yield {"command": subject.name, "what": "became a file", "code": done.code, "problem": problem}


# --- two processes ------------------------------------------------------------------------------


def two_processes(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Give a command twice; the first is stopped while it holds its output, until the second has ended."""
    room, output = furnished(subject, world, rooms / "first", old=True)
    before = tree(output)
    stopping = at_event("os.rename", ".partial", lambda: os.kill(os.getpid(), signal.SIGSTOP))
    tried = subject.replacing().command(world, subject.output)
    first = start(tried, room, stopping)
    while not (ended := os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)):
        pass
    second = Room(rooms / "second")
    second.here = room.here
    done = run(tried, second)
    problem = "" if ended.si_code == os.CLD_STOPPED else "the first was not stopped"
    if done.code != 1 or len(done.errors) != 1 or "Another process is writing" not in done.errors[0]:
        problem = problem or f"the second: code {done.code}: {done.said.strip()[-300:]}"
    if {name: digest for name, digest in tree(output).items() if not name.endswith(".partial")} != before:
        problem = problem or "the second changed the output"
    first.send(signal.SIGCONT)
    case = {"command": subject.name, "what": "two processes"}
    case |= judged(subject, wanted, room, before, first.wait(), ())
    yield case | {"problem": problem or case["problem"]}


# --- inputs -------------------------------------------------------------------------------------


def changing(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Write an input anew, just before a command opens it for the second time and later ones.

    Either it is refused, or the output is that of the input as it was, or as it is then.
    """
    own = rooms / "inputs"
    for name in ("model/model.safetensors", "id.jsonl"):
        if name == "id.jsonl" and "{world}/id.jsonl" not in subject.arguments:
            continue
        for skip in (1, 2, 3):
            shutil.rmtree(own, ignore_errors=True)
            shutil.copytree(world, own)
            room, output = furnished(subject, own, rooms / "changing")

            def write(file: Path = own / name) -> None:
                _change(file)

            done = run(
                subject.command(own, subject.output), room, at_event("open", str(own / name), write, skip)
            )
            case: Case = {"command": subject.name, "what": f"{name} at its opening {skip + 1}"}
            case |= {"code": done.code, "problem": done.crash() or left_behind(subject, room, finished=True)}
            if done.code == 1 and len(done.errors) == 1:
                case["output"] = "old" if not output.exists() else "torn"
            elif done.code == 0:
                case["output"] = "new"
                case["problem"] = case["problem"] or _neither(subject, own, output, rooms)
            else:
                case["problem"] = case["problem"] or f"code {done.code}: {done.said.strip()[-300:]}"
            yield case


def _change(file: Path) -> None:
    """Write other weights of the same sizes, or the rows in another order, in place of those there."""
    if file.suffix == ".safetensors":
        content = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[start:] = content[start + 4 :] + content[start : start + 4]
        file.write_bytes(content)
    else:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")


def _neither(subject: Subject, own: Path, output: Path, rooms: Path) -> str:
    """Return whether an output is of neither input: of a fresh run on the changed or on the unchanged one."""
    found = tree(output)
    for number in (0, 1):
        room, again = furnished(subject, own, rooms / f"again-{number}")
        run(subject.command(own, subject.output), room)
        fresh = tree(again)
        if all(found.get(name) == digest for name, digest in fresh.items() if name.endswith(".safetensors")):
            return ""
        _change(own / "model" / "model.safetensors")
    return "it is of neither input"


# --- other versions -----------------------------------------------------------------------------


def other_versions(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[Case]:
    """Interrupt a search, say in its journal that another version made it, and give the command again."""
    for what, edit in _EDITS.items():
        room, output = furnished(subject, world, rooms / "versions")
        journal = room.here / f".{subject.output}.tapioca-partial" / "search.jsonl"
        running = start(subject.command(world, subject.output), room)
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 3:
            time.sleep(0.001)
        running.send(signal.SIGKILL)
        running.wait()
        header, _, rest = journal.read_text(encoding="utf-8").partition("\n")
        found = json.loads(header)
        edit(found)
        journal.write_text(json.dumps(found) + "\n" + rest, encoding="utf-8")
        kept = journal.read_bytes()
        done = run(subject.command(world, subject.output), room)
        problem = ""
        if (
            done.code != 1
            or len(done.errors) != 1
            or "Cannot resume" not in done.errors[0]
            or output.exists()
        ):
            problem = f"code {done.code}: {done.said.strip()[-300:]}"
        if journal.read_bytes() != kept:
            problem = problem or "the other version's journal was changed"
        again = run([*subject.command(world, subject.output), "--overwrite"], room)
        if again.code or (why := wanted.differs(output)):
            problem = problem or f"--overwrite: code {again.code}: {again.said.strip()[-200:] or why}"
        yield {"command": subject.name, "what": what, "code": done.code, "problem": problem}


_EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "journal of another tapioca-export": lambda found: found["fingerprint"]["versions"].update(
        {"tapioca-export": "0.0.9"}
    ),
    "journal of another schema version": lambda found: found.update(schema_version=999),
}
# Artifacts that commands read, and the command that reads each.
READ = {
    "selection.json": ("prune", "-m", "{world}/model", "--selection", "{file}", "-o", "{out}"),
    "run.json": ("report", "{folder}"),
    "profile.json": ("report", "{folder}"),
    "benchmark.json": ("report", "{folder}"),
    "report.json": ("check", "{folder}", "--min-speedup", "0.001", "--junit", "{out}"),
    "original/onnx/export.json": (
        "benchmark", "{folder}/original/onnx", "{folder}/pruned/onnx", "--id", "{world}/id.jsonl",
        "-o", "{out}",
    ),
    "original/onnx/provenance.json": ("verify", "{folder}/original/onnx", "--hashes-only"),
}  # fmt: skip


def artifacts_of_newer_versions(world: Path, rooms: Path) -> Iterator[Case]:
    """Let each artifact that a command reads be of a schema version that is not known yet."""
    for name, words in READ.items():
        room = Room(rooms / "newer")
        shutil.rmtree(room.path)
        room = Room(rooms / "newer")
        folder = room.here / "run"
        shutil.copytree(world / "run", folder)
        file = folder / name
        file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 999', 1))
        given = {"world": world, "file": file, "folder": folder, "out": "out"}
        before = tree(folder)
        done = run([word.format(**given) for word in words], room)
        problem = done.crash()
        # The version is named, or before it that the run's record knows another file.
        is_said = len(done.errors) == 1 and any(word in done.errors[0] for word in ("999", "is not what"))
        if done.code != 1 or not is_said:
            problem = problem or f"code {done.code}: {(done.said or done.printed).strip()[-300:]}"
        if tree(folder) != before or (room.here / "out").exists():
            problem = problem or "something was written"
        what = f"{name} of schema version 999"
        yield {"command": words[0], "what": what, "code": done.code, "problem": problem}
