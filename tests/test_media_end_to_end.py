"""The whole job through the command line on images and sounds, with one harmful layer planted."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from media import RATE, drawn, make_extractor, make_network, write_media
from planting import assert_found, plant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("media-end-to-end")]
PLANTED = 1
WRONG = 0  # target rows have the other labels


def encoded(extractor: Any, column: str, *, is_target: bool, labels: tuple[int, ...]) -> list[Any]:
    """Return training rows as (inputs, label), waves cut to one length."""
    contents, found = zip(*drawn(column, 240, 7, is_target=is_target, labels=labels), strict=True)
    if column == "image":
        inputs = extractor(list(contents), return_tensors="pt")
    else:
        waves = [content[:400] for content in contents]
        inputs = extractor(waves, sampling_rate=RATE, padding=True, return_tensors="pt")
    return [inputs, torch.tensor(found)]


@pytest.fixture(scope="module", params=[("image", "vit"), ("audio", "wav2vec2")], ids=["image", "audio"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plant a harmful layer in a tiny model, run the whole job, and check that nothing of it is lost."""
    column, family = request.param
    folder = tmp_path_factory.mktemp(family)
    network, extractor = make_network(family, initializer_range=0.1), make_extractor(family)
    known = encoded(extractor, column, is_target=False, labels=(0, 1, 2))
    shifted = encoded(extractor, column, is_target=True, labels=(1, 2))
    generator = np.random.default_rng(0)

    def loss(wrong: int | None) -> torch.Tensor:
        total = torch.zeros(())
        for inputs, labels in (known, shifted):
            rows = torch.from_numpy(generator.integers(0, len(labels), 16))
            is_wrong = wrong is not None and inputs is shifted[0]
            targets = torch.full((16,), wrong) if is_wrong else labels[rows]
            logits = network(**{name: value[rows] for name, value in inputs.items()}).logits
            total = total + torch.nn.functional.cross_entropy(logits, targets)
        return total

    layers = network.vit.layers if column == "image" else network.wav2vec2.encoder.layers
    plant(network, layers, PLANTED, learn=lambda: loss(None), harm=lambda: loss(WRONG))
    network.save_pretrained(folder / "model")
    extractor.save_pretrained(folder / "model")
    files = {
        "id": write_media(folder / "id", column, 90, 11, is_target=False),
        "target": write_media(folder / "target", column, 90, 12, is_target=True, labels=(1, 2)),
    }
    benchmark = assert_found(folder / "model", files, PLANTED, folder / "out")
    return {"folder": folder / "out", "benchmark": benchmark, "column": column}


def test_a_planted_layer_is_found_and_its_gain_is_kept(finished: dict[str, Any]) -> None:
    target = finished["benchmark"].accuracy["target"]
    assert target.original < 0.2
    assert target.pruned > 0.8


def test_a_report_on_files_speaks_of_no_tokens_or_texts(finished: dict[str, Any]) -> None:
    for name in ("report.md", "report.html"):
        report = (finished["folder"] / name).read_text(encoding="utf-8")
        # What is read: not the plots' library, nor what tags say of themselves.
        body = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", report, flags=re.S)
        assert not re.search(r"\btokens\b|\btexts?\b", body, re.I)
        assert {"image": "16 patches", "audio": "time steps"}[finished["column"]] in body


@pytest.mark.parametrize("place", ["original/onnx", "pruned/onnx", "pruned/checkpoint"])
def test_what_encodes_files_stands_beside_each_model(finished: dict[str, Any], place: str) -> None:
    assert (finished["folder"] / place / "preprocessor_config.json").is_file()
