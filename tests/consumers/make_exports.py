"""Export pruned models that generate, with the tokens that PyTorch generates, for `check_exports.py` to run.

    python tests/consumers/make_exports.py FOLDER

Runs in the project's own environment.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import test_whisper as whispers
from conftest import awaken
from test_generation import (
    CASES,
    DROPPED,
    ENCODER_DECODERS,
    TOKENS,
    make_encoder_decoder,
    make_model,
    make_rows,
    make_texts,
    prompts,
)

from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import LoadedModel, drop_layers, generated, load_model
from tapioca_export.samples import Samples
from tapioca_export.tasks import Inputs


def write(place: Path, model: LoadedModel, rows: Samples, drop: tuple[Any, ...], inputs: Inputs) -> None:
    """Write one export folder, with `expected.npz` in it."""
    place.mkdir(parents=True, exist_ok=True)
    export = export_model(model, rows, place, ExportSettings(), drop)
    # Where positions are few, Whisper's own `generate` leaves the last one free.
    num_tokens = export.tokens_generated - (export.tokens_generated < TOKENS)
    tokens = generated(model, inputs, num_tokens)
    np.savez(place / "expected.npz", tokens=tokens, **inputs)
    print(f"exported {place.name}", flush=True)


def begun(model: LoadedModel, inputs: Inputs) -> Inputs:
    """Return inputs with what an answer to each row begins with."""
    (length, *_) = (len(value) for value in inputs.values())
    return {**inputs, "decoder_input_ids": np.tile(model.processor.prompt, (length, 1))}


def main(folder: Path) -> None:
    """Write a folder for each model type."""
    transformers.logging.set_verbosity_error()
    for case in CASES:
        model = make_model(case)
        write(folder / case, model, make_rows(model), DROPPED, prompts(model))
    for family in ENCODER_DECODERS:
        model = make_encoder_decoder(family)
        write(folder / family, model, make_texts(model), whispers.DROPPED, begun(model, prompts(model)))
    with tempfile.TemporaryDirectory() as aside:
        network = awaken(whispers.make_recognizer())
        whole = load_model(whispers.save_recognizer(Path(aside), network))
        model = drop_layers(whole, whispers.dropped(whole))
        rows = whispers.make_recordings(model, Path(aside))
        heard = model.task.encode(rows.rows[:3], model.processor)["input_features"]
        write(folder / "whisper", model, rows, whispers.DROPPED, begun(model, {"input_features": heard}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
