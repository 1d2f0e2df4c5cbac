"""Files of every task are optimised and quantised, and what that loses is measured."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_speech_recognition as speech
import test_text2text as text2text
import test_zero_shot_images as zero_shot
import token_models
from conftest import make_decoder, make_tokenizer, write_jsonl
from media import save_media_model, write_media, write_sayings

from tapioca_export import RunConfig, export

Made = tuple[str, Path, Path]  # task and metric, model, rows


def of_tokens(kind: str, folder: Path) -> Made:
    _, _, make, metric = token_models.MODELS[kind]
    generator = random.Random(0)
    rows = write_jsonl(folder / "rows.jsonl", [make(generator) for _ in range(24)])
    return metric, token_models.save(folder / "model", kind), rows


def of_media(column: str, family: str, folder: Path) -> Made:
    kind = {"image": "image", "audio": "audio"}[column]
    rows = write_media(folder / "rows", column, 24, 0, is_target=False)
    return f"{kind}-classification", save_media_model(folder / "model", family), rows


def of_a_decoder(task: str, family: str, folder: Path) -> Made:
    make_decoder(family).save_pretrained(folder / "model")
    make_tokenizer(family).save_pretrained(folder / "model")
    answers: Callable[[int], dict[str, Any]] = {
        "text-generation": lambda n: {"prompt": f"w{n} w{n + 1}", "answer": f"w{2 * n}"},
        "multiple-choice": lambda n: {"context": f"w{n}", "choices": ["w1", "w2 w3"], "label": n % 2},
    }[task]
    rows = write_jsonl(folder / "rows.jsonl", [answers(number) for number in range(24)])
    return task, folder / "model", rows


def of_texts(family: str, folder: Path) -> Made:
    model = text2text.save(text2text.network_of(family), folder / "model")
    return "text2text-generation", model, text2text.write_rows(folder / "rows.jsonl", "id")


def of_speech(folder: Path) -> Made:
    rows = write_sayings(folder / "rows", 12, 0, is_target=False)
    model = speech.save(folder / "model", speech.make_network("wav2vec2"))
    return "automatic-speech-recognition", model, rows


def of_candidates(family: str, folder: Path) -> Made:
    rows = zero_shot.write_rows(folder / "rows", 24, 0)
    model = zero_shot.save(folder / "model", zero_shot.make_network(family))
    return "zero-shot-image-classification", model, rows


MADE: dict[str, Callable[[Path], Made]] = {
    **{kind: lambda folder, kind=kind: of_tokens(kind, folder) for kind in token_models.MODELS},
    "image": lambda folder: of_media("image", "vit", folder),
    "audio": lambda folder: of_media("audio", "wav2vec2", folder),
    "generation, positions": lambda folder: of_a_decoder("text-generation", "llama", folder),
    "choices, positions": lambda folder: of_a_decoder("multiple-choice", "llama", folder),
    "choices": lambda folder: of_a_decoder("multiple-choice", "bloom", folder),
    "text2text": lambda folder: of_texts("bart", folder),
    "speech": of_speech,
    "zero-shot images": lambda folder: of_candidates("clip", folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MADE)
def test_a_treated_file_of_any_task_says_what_it_loses(case: str, tmp_path: Path) -> None:
    what, model, rows = MADE[case](tmp_path)
    task, _, metric = what.partition(" ")
    settings: dict[str, Any] = {"metric": metric or None, "max_drop": 1000.0, "num_threads": 1}
    for treatment in ({"optimize": "O2"}, {"optimize": "O2", "quantize": "int8"}):
        output = tmp_path / "-".join(treatment.values())
        config = RunConfig(model=str(model), task=task, id=rows, output=output, **settings, **treatment)
        loss = export(config)["onnx"].loss
        assert loss is not None
        assert loss.rows == len(rows.read_text().splitlines())
        assert "quantize" in treatment or loss.drop == pytest.approx(0, abs=1e-4)
