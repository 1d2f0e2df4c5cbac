"""What runs in the fresh process that measures memory and load time.

    python -m tapioca_export.benchmarking.child FOLDER SETTINGS < INPUTS.npz

SETTINGS is a JSON object of what the file is opened with. Prints one JSON object. Nothing heavy may be
imported here or above: it would be measured.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from ..artifacts import SessionSettings
from ..errors import BenchmarkError, TapiocaError
from ..memory import peak_resident_bytes
from .runtimes import ONNXRUNTIME, RUNTIMES, described, runtime_of

# What a runtime imports, at the latest when it opens its first file; that is no part of opening a file.
_LIBRARIES = {
    ONNXRUNTIME: "onnxruntime",
    "torchscript": "torch",
    "pt2": "torch.export.pt2_archive._package",
}


def main(arguments: list[str]) -> dict[str, object]:
    """Open the file, run the batch once, and return peak bytes and seconds to open."""
    folder, settings = Path(arguments[0]), SessionSettings(**json.loads(arguments[1]))
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as arrays:
        inputs = dict(arrays)
    try:
        runtime = runtime_of(described(folder)["format"])
        importlib.import_module(_LIBRARIES[runtime])
        start = perf_counter()
        session = RUNTIMES[runtime](folder, settings)
        load_seconds = perf_counter() - start
        session(inputs)
        peak_bytes = peak_resident_bytes()
        if not peak_bytes:
            raise BenchmarkError(f"Peak memory cannot be read on {sys.platform}.")
        return {"peak_bytes": peak_bytes, "load_seconds": load_seconds}
    except TapiocaError as error:
        return {"error": error.message, "hint": error.hint}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
