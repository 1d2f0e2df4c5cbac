"""How each of these commands ends: what was counted is printed and written, what does not hold named."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click


def write(found: Mapping[str, Any], output: Path) -> None:
    """Write what was found as JSON."""
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def finish(rows: Sequence[tuple[str, str]], broken: Sequence[str]) -> NoReturn:
    """Print what was counted and what does not hold; the exit code is 1 if there is any."""
    for what, number in rows:
        click.echo(f"{what}: {number}")
    for line in broken:
        click.echo(f"BROKEN: {line}", err=True)
    sys.exit(bool(broken))
