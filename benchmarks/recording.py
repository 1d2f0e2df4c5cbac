"""Where a measurement comes from: what every JSON file of these benchmarks begins with."""

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
