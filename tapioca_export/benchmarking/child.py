"""What runs in the fresh process that measures memory and load time.

    python -m tapioca_export.benchmarking.child FOLDER PROVIDER THREADS INPUTS.npz

Prints one JSON object. Nothing heavy may be imported here or above: it would be measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from ..errors import BenchmarkError
from ..memory import peak_resident_bytes
from .runtimes import RUNTIMES, resolve_provider
from .timing import RUNTIME


def main(arguments: list[str]) -> dict[str, object]:
    """Open the file, run the batch once, and return peak bytes and seconds to open."""
    folder, provider, num_threads, inputs_file = arguments
    with np.load(inputs_file, allow_pickle=False) as arrays:
        inputs = dict(arrays)
    try:
        resolve_provider(provider)  # imports the runtime, which is not part of opening a file
        start = perf_counter()
        session = RUNTIMES[RUNTIME](Path(folder), provider, int(num_threads))
        load_seconds = perf_counter() - start
        session(inputs)
        peak_bytes = peak_resident_bytes()
        if not peak_bytes:
            raise BenchmarkError(f"Peak memory cannot be read on {sys.platform}.")
        return {"peak_bytes": peak_bytes, "load_seconds": load_seconds}
    except BenchmarkError as error:
        return {"error": error.message, "hint": error.hint}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
