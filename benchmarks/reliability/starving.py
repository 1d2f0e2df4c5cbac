"""Memory that runs out, and a clock that jumps."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .forks import Injury, run
from .killing import judged
from .subjects import Subject
from .wholeness import Reference, furnished, tree

MB = 1 << 20
DAY_S = 86400.0
# A command takes less than an hour here, whatever the clock says.
MOST_S = 3600.0
TIMES = ("seconds", "_s", "_ms")


def starving(
    subject: Subject, wanted: Reference, world: Path, rooms: Path, megabytes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Let a process have only so much memory more than it has at first."""
    for number in megabytes:
        room, output = furnished(subject, world, rooms / "starving", old=True)
        before = tree(output)
        done = run(subject.replacing().command(world, subject.output), room, _limited(number * MB))
        case = {"command": subject.name, "megabytes": number}
        case |= judged(subject, wanted, room, before, done, (1,))
        if done.code == 1 and (len(done.errors) != 1 or "emory" not in done.errors[0]):
            case["problem"] = case["problem"] or f"it says: {done.said.strip()[-300:]}"
        yield case | {"said": done.errors[0] if done.errors else ""}


def _limited(num_bytes: int) -> Injury:
    def injure() -> None:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return injure


def jumping(subject: Subject, wanted: Reference, world: Path, rooms: Path) -> Iterator[dict[str, Any]]:
    """Let the clock of the wall go a day forward or back whenever it is read."""
    room, output = furnished(subject, world, rooms / "jumping", old=True)
    before = tree(output)

    def injure() -> None:
        generator, now, now_ns = random.Random(0), time.time, time.time_ns
        time.time = lambda: now() + generator.choice((-DAY_S, 0.0, DAY_S))
        time.time_ns = lambda: now_ns() + int(generator.choice((-DAY_S, 0.0, DAY_S)) * 1e9)

    done = run(subject.replacing().command(world, subject.output), room, injure)
    case = {"command": subject.name, "what": "clock"} | judged(subject, wanted, room, before, done, ())
    if wrong := [said for file in output.rglob("*.json") for said in _odd(json.loads(file.read_text()))]:
        case["problem"] = case["problem"] or f"times of {wrong[0]}"
    yield case


def _odd(value: Any, name: str = "") -> Iterator[str]:
    """Yield times that are negative, or longer than anything took."""
    if isinstance(value, dict):
        for key, part in value.items():
            is_time = str(key).endswith(TIMES) or name.endswith(TIMES)
            yield from _odd(part, f"{key}" if not is_time else f"{key} seconds")
    elif isinstance(value, list):
        for part in value:
            yield from _odd(part, name)
    elif name.endswith(TIMES) and isinstance(value, (int, float)) and not 0 <= value < MOST_S * 1000:
        yield f"{name}: {value}"
