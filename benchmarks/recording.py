"""Where a measurement comes from, as every JSON file of these benchmarks says first, and where it goes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tapioca_export.provenance import environment


def origin() -> dict[str, Any]:
    """Return the commit that is checked out here, versions and hardware."""
    asked = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {"commit": done.stdout.strip(), "environment": environment()}


def put_between(page: Path, begin: str, end: str, table: str) -> None:
    """Put a table between the markers of a page, in place of what stands there."""
    page.write_text(with_table(page.read_text(encoding="utf-8"), begin, end, table), encoding="utf-8")


def with_table(text: str, begin: str, end: str, table: str) -> str:
    """Return a text with a table between its markers."""
    before, rest = text.split(begin)
    after = rest.split(end, 1)[1]
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"
