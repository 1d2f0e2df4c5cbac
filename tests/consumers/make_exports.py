"""Export pruned models, with what they have to answer, for `check_exports.py` to run.

    python tests/consumers/make_exports.py FOLDER

Of models that generate, these are the tokens that PyTorch generates; of a classifier, which is pruned by a
whole run, the accuracy that its benchmark recorded. Runs in the project's own environment.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent))
import corpus
import test_whisper as whispers
from conftest import awaken
from finetuning import finetuned_minilm
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

from tapioca_export import RunConfig, run
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import LoadedModel, drop_layers, generated, load_model
from tapioca_export.samples import Samples
from tapioca_export.tasks import Inputs

CACHE = Path(__file__).parents[2] / ".cache"


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


def write_run(place: Path) -> None:
    """Write the folder of a run on a classifier, with its report rows and the accuracy on them beside it."""
    texts = corpus.rows("target", 240, 1)
    rows = {"id": corpus.rows("id", 120, 1), "target": texts[:120], "target_report": texts[120:]}
    files = {name: place / f"{name}.jsonl" for name in rows}
    for name, file in files.items():
        corpus.write_jsonl(file, rows[name])
    config = RunConfig(
        model=str(finetuned_minilm(CACHE)), **files, output=place / "run", epsilon=1.0, pick="1",
        iterations=2, warmup=0, batch_size=(1,), num_threads=1, max_length=128,
    )  # fmt: skip
    measured = run(config).benchmark
    flips = {int(flip.where.rpartition(" ")[2]): flip.pruned for flip in measured.flips["target"]}
    recorded = {"accuracy": measured.accuracy["target"].pruned, "rows": texts[120:], "flips": flips}
    (place / "recorded.json").write_text(json.dumps(recorded), encoding="utf-8")
    print(f"run in {place.name}", flush=True)


def main(folder: Path) -> None:
    """Write a folder for each model type."""
    transformers.logging.set_verbosity_error()
    (folder / "classifier").mkdir(parents=True, exist_ok=True)
    write_run(folder / "classifier")
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
