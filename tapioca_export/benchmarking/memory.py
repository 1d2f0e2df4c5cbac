"""Peak memory and load time of one exported file, each measured in a process of its own.

In this process the libraries, the samples and the other model would be counted too. Knows nothing
about tasks or statistics.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from statistics import median

import numpy as np

from ..artifacts import SessionSettings
from ..errors import BenchmarkError
from ..tasks import Inputs

NUM_CHILDREN = 3
_CHILD = f"{__package__}.child"
_SETTINGS = [item.name for item in fields(SessionSettings)]


def measure_memory_and_load(folder: Path, settings: SessionSettings, inputs: Inputs) -> tuple[int, float]:
    """Open a file and run one batch in fresh processes; return the medians.

    Args:
        folder: Export folder.
        settings: What it is opened with.
        inputs: The batch to run, the largest one.

    Returns:
        Peak resident memory in bytes, of the whole process (interpreter and runtime included; not
        the memory of a GPU), and the seconds it took to open the file.

    Raises:
        BenchmarkError: If the process fails.
    """
    packed = io.BytesIO()
    np.savez(packed, **inputs)  # type: ignore[arg-type]
    opened_with = json.dumps({name: getattr(settings, name) for name in _SETTINGS})
    arguments = [str(folder.resolve()), opened_with]
    results = [_run_child(arguments, packed.getvalue()) for _ in range(NUM_CHILDREN)]
    peaks, seconds = zip(*results, strict=True)
    return int(median(peaks)), float(median(seconds))


def _run_child(arguments: list[str], inputs: bytes) -> tuple[int, float]:
    """Run `child` once on the bytes of an npz file; return bytes and seconds."""
    # The child finds this package where this process found it, installed or not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", _CHILD, *arguments],
        env=environment,
        input=inputs,
        capture_output=True,
        check=False,
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode == 0 and lines:
        result = json.loads(lines[-1])
        if "error" in result:
            raise BenchmarkError(result["error"], result["hint"])
        return result["peak_bytes"], result["load_seconds"]
    what = (done.stderr.decode(errors="replace").strip() or "it wrote nothing").splitlines()[-1]
    raise BenchmarkError(
        f"The process that measures memory of {arguments[0]} ended with code {done.returncode}: {what}",
        "A negative code is a signal; -9 mostly means that memory ran out.",
    )
