"""Tiny networks and rows to run commands on, made by the tests' own recipes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import conftest


@dataclass(frozen=True)
class Job:
    """A model and its rows, as a command line names them."""

    name: str
    arguments: tuple[str, ...]


def jobs(folder: Path, num_rows: int = 96) -> list[Job]:
    """Make a classifier that reads both ways, one that reads on, and the polynomial network."""
    made = []
    for family in conftest.THREE_FAMILIES:
        model = conftest.save_model(folder / "models" / family, family)
        files = {}
        for seed, name in enumerate(("id", "target")):
            if family == "polynomial":
                rows = conftest.prompt_records(num_rows, seed, coefficient_scale=1.0 + 2.0 * seed)
            else:
                rows = conftest.text_records(num_rows, seed)
            files[name] = conftest.write_jsonl(folder / f"{family}-{name}.jsonl", rows)
        named = ("--model", model, "--id", files["id"], "--target", files["target"])
        made.append(Job(family, tuple(map(str, named))))
    return made
