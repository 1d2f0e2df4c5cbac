"""docs/reliability.md, from the JSON that each part wrote: every line below the command that makes it again.

python -m benchmarks.reliability.page
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ABOUT = """# Reliability

What was done to find this tool wrong, and what came of it. Made by `python -m benchmarks.reliability.page` of
what each command below wrote into [benchmarks/reliability](../benchmarks/reliability), case by case, with
versions, hardware and commit. `make test` runs a quick version of each. What is promised, and what is not,
stands in [SECURITY.md](../SECURITY.md).
"""
# Of each module: a heading, and what is done.
PARTS = {
    "mutants": """No silently wrong artefact
The pipeline is broken on purpose, one fault at a time, in a run that is otherwise the product's own. The
product's own proofs have to refuse what comes out: tests do not count.
""",
    "faults": """Nothing is lost
Every command that writes is killed, starved of room and memory, and interfered with. Afterwards there has
to be the old artefact or the new one, whole, one clear line, and nothing left behind; and the same command
again has to end as if nothing had happened.
""",
    "fuzzing": """Nothing gets in
Every reader is fed with what no honest program writes. It has to read it, or to refuse it in one line, within
bounds of time and memory, and to touch no file outside the folders that were named.
""",
    "intervals": """Intervals and tests
Two models' results are drawn from populations whose truth is known, and compared as benchmarks compare them.
""",
    "nulls": """No gain where there is none
Whole runs on random networks, with labels that were drawn without looking at the texts, in one process.
""",
    "sameness": """The same inputs, the same bytes
Selections on tiny networks, each in a process of its own.
""",
    "load": """Load
Whole runs on a tiny network of 64 layers, on up to a million rows.
""",
}


def found_by(part: str) -> dict[str, Any]:
    """Return what a part has written, nothing where it has not been run."""
    path = Path(__file__).with_name(f"{part}.json")
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lines() -> Iterator[str]:
    """Yield the page line by line."""
    yield ABOUT
    for part, about in PARTS.items():
        module, found = importlib.import_module(f"benchmarks.reliability.{part}"), found_by(part)
        yield f"## {about.replace(chr(10), chr(10) * 2, 1)}"
        if not found:
            yield f"`python -m benchmarks.reliability.{part}` was not run to its end yet.\n"
            continue
        yield f"| `python -m benchmarks.reliability.{part}` | |"
        yield "| --- | --- |"
        for what, number in module.rows(found):
            yield f"| {what} | {number} |"
        yield ""
        if broken := module.broken(found):
            yield "**Does not hold:**\n"
            yield from (f"- {line}" for line in broken)
            yield ""


def main() -> None:
    """Write the page."""
    PAGE.write_text("\n".join(lines()), encoding="utf-8")


if __name__ == "__main__":
    main()
