"""Export pruned decoders, with the tokens that PyTorch generates, for `check_exports.py` to run.

    python tests/consumers/make_exports.py FOLDER

Runs in the project's own environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
from test_generation import CASES, DROPPED, TOKENS, make_model, make_rows, prompts

from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import generated


def main(folder: Path) -> None:
    """Write one export folder a model type, with `expected.npz` in it."""
    transformers.logging.set_verbosity_error()
    for case in CASES:
        place = folder / case
        place.mkdir(parents=True, exist_ok=True)
        model = make_model(case)
        export_model(model, make_rows(model), place, ExportSettings(), DROPPED)
        inputs = prompts(model)
        np.savez(place / "expected.npz", tokens=generated(model, inputs, TOKENS), **inputs)
        print(f"exported {case}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
