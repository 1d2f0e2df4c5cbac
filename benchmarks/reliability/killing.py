"""Commands killed at random instants, and at the calls that change the file system."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .forks import Done, Injury, Room, Running, run, start, start_fresh
from .subjects import Subject
from .wholeness import (
    Reference,
    Tree,
    aside_of,
    furnished,
    interrupted_well,
    left_behind,
    put_old,
    state,
    tree,
)

KILL, TERM, INT, TWICE = "SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice"
KINDS = (KILL, TERM, INT, KILL, TWICE)
# The codes of a command that was stopped: its own; or, before and after it can tell, the signal's.
CODES = {
    KILL: (-signal.SIGKILL,),
    TERM: (128 + signal.SIGTERM, -signal.SIGTERM),
    INT: (128 + signal.SIGINT, -signal.SIGINT),
    TWICE: (128 + signal.SIGINT, -signal.SIGINT),
}
CHAIN = 4  # kills in a row, each of a command that finds what the one before left, then one that may finish
# Calls that Python reports before it makes them, and that change which files there are.
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree", "tempfile.mkdtemp")
FRESH_S = 12.0  # a process that starts Python is imported and at work by then


def kill(running: Running, kind: str, generator: random.Random) -> Done:
    """Send the signals of a kind now."""
    number = getattr(signal, kind.split()[0])
    running.send(number, to_all=kind in (INT, TWICE))
    if kind == TWICE:
        time.sleep(generator.choice((0.0, 0.002, 0.02, 0.2)))
        running.send(number, to_all=True)
    return running.wait()


def killed(
    subject: Subject, wanted: Reference, world: Path, rooms: Path, kinds: list[str], generator: random.Random
) -> Iterator[dict[str, Any]]:
    """Kill a command once for each kind at a random instant; yield each case, with what was wrong."""
    for first in range(0, len(kinds), CHAIN):
        old = bool(first // CHAIN % 2)
        tried = subject.replacing() if old else subject
        room, output = furnished(subject, world, rooms / "killed", old=old)
        before = tree(output)
        chain: list[dict[str, Any]] = []
        for kind in kinds[first : first + CHAIN]:
            delay = generator.uniform(0, wanted.seconds)
            earlier = aside_of(subject, room)
            running = start(tried.command(world, subject.output), room)
            time.sleep(delay)
            done = kill(running, kind, generator)
            case = {"command": subject.name, "signal": kind, "after_s": round(delay, 3), "over": old}
            chain.append(case | judged(subject, wanted, room, before, done, CODES[kind], earlier))
            _renew(subject, world, output, before, chain[-1], old=old)
        chain[-1]["problem"] = chain[-1]["problem"] or completed(tried, wanted, world, room)
        yield from chain


def _renew(
    subject: Subject, world: Path, output: Path, before: Tree, case: dict[str, Any], *, old: bool
) -> None:
    """Put the old output back, where a command had finished before its signal came."""
    if case["output"] != "new" or not subject.writes:
        return
    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    put_old(subject, world, output, old=old)


def judged(
    subject: Subject,
    wanted: Reference,
    room: Room,
    before: Tree,
    done: Done,
    codes: tuple[int, ...],
    earlier: list[str] | None = None,
) -> dict[str, Any]:
    """Return how a command ended, what its output is then, and what is wrong with that, if anything.

    Args:
        subject: The command.
        wanted: What it gives undisturbed.
        room: Where it ran.
        before: What was at its output.
        done: How it ended.
        codes: With which codes it may, beside 0.
        earlier: What one that was killed before it had left of a folder that was being filled.
    """
    found, why = state(subject, room.here / subject.output, before, wanted)
    problem = interrupted_well(subject, done, (0, *codes))
    if found == "torn":
        problem = problem or f"the output is torn: {why}"
    if done.code == 0 and found != "new" and subject.writes:
        problem = problem or f"it ended well, and its output is {found} {why}"
    problem = problem or left_behind(subject, room, finished=done.code == 0)
    stays = aside_of(subject, room)
    is_resumed = subject.resumes and stays == ["search.jsonl"]
    if done.code > 0 and stays is not None and not is_resumed and stays != earlier:  # it had time to clean up
        problem = problem or f"the folder that was filled stays, with {stays}"
    return {"code": done.code, "output": found, "problem": problem}


def completed(subject: Subject, wanted: Reference, world: Path, room: Room) -> str:
    """Give the same command again, undisturbed; return what is wrong with that, or nothing."""
    done = run(subject.command(world, subject.output), room)
    if done.code or done.crash():
        return f"the same command again: code {done.code}: {done.said.strip()[-300:]}"
    why = wanted.differs(room.here / subject.output) if subject.writes else ""
    return f"after the same command again: {why}" if why else left_behind(subject, room, finished=True)


def killed_fresh(
    subject: Subject, wanted: Reference, world: Path, rooms: Path, kinds: list[str], generator: random.Random
) -> Iterator[dict[str, Any]]:
    """Do the same to processes that start Python: at most instants they import."""
    for kind in kinds:
        room, _ = furnished(subject, world, rooms / "fresh")
        delay = generator.uniform(0.2, FRESH_S)
        running = start_fresh(subject.command(world, subject.output), room)
        time.sleep(delay)
        done = kill(running, kind, generator)
        case = {"command": subject.name, "signal": kind, "after_s": round(delay, 3), "fresh": True}
        yield case | judged(subject, wanted, room, {}, done, CODES[kind])


# --- at calls ---------------------------------------------------------------------------------


def _at_call(number: int) -> Injury:
    """Return what makes a process kill itself just before so many calls have changed the file system."""

    def injure() -> None:
        own, left = os.getpid(), [number]

        def hook(event: str, _: tuple[Any, ...]) -> None:
            if event in CHANGING and os.getpid() == own:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(own, signal.SIGKILL)

        sys.addaudithook(hook)

    return injure


def _counting(path: Path) -> Injury:
    def injure() -> None:
        own = os.getpid()

        def hook(event: str, _: tuple[Any, ...]) -> None:
            if event in CHANGING and os.getpid() == own:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(event + "\n")

        sys.addaudithook(hook)

    return injure


def killed_at_calls(
    subject: Subject, wanted: Reference, world: Path, rooms: Path, most: int
) -> Iterator[dict[str, Any]]:
    """Kill a command that replaces an old output before its last calls, and as many of the rest."""
    tried = subject.replacing()
    room, output = furnished(subject, world, rooms / "counted", old=True)
    run(tried.command(world, subject.output), room, _counting(room.path / "calls"))
    events = (room.path / "calls").read_text().split() if (room.path / "calls").exists() else []
    last = list(range(max(1, len(events) - most // 2 + 1), len(events) + 1))
    rest = list(range(1, last[0])) if last else []
    spread = rest[:: max(1, len(rest) // (most - len(last)))][: most - len(last)] if rest else []
    for number in (*spread, *last):
        room, output = furnished(subject, world, rooms / "called", old=True)
        before = tree(output)
        done = run(tried.command(world, subject.output), room, _at_call(number))
        case = {"command": subject.name, "call": f"{number} of {len(events)}, {events[number - 1]}"}
        case |= judged(subject, wanted, room, before, done, CODES[KILL])
        if number in last[-3:]:
            case["problem"] = case["problem"] or completed(tried, wanted, world, room)
        yield case
