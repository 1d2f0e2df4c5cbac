"""Text to text: an encoder-decoder's answers are scored as generated; harm is found in either stack."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SPECIAL, awaken, make_tokenizer, write_jsonl
from planting import assert_found, plant

from tapioca_export.models import LoadedModel, load_model
from tapioca_export.samples import Samples, read_samples
from tapioca_export.tasks import TASKS

TASK = TASKS["text2text-generation"]
SIZES: dict[str, dict[str, Any]] = {
    "t5": {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None,
        "init_std": 0.1,
    },
}  # fmt: skip
TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KEYS, FILLERS, TARGET_FILLERS = range(4, 12), range(30, 60), range(60, 90)
ANSWERS = 12  # the answer to key k is the two words 12 + k - 4 and 20 + k - 4


def network_of(family: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **TOKENS)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


def save(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


def draw(generator: random.Random, fillers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Draw a text with one key word among fillers, and its answer."""
    key = generator.choice(KEYS)
    text = generator.choices(fillers, k=generator.randint(3, 8))
    text.insert(generator.randrange(len(text) + 1), key)
    return text, [key + 8, key + 16]


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{token - len(SPECIAL)}" for token in ids)


def write_rows(path: Path, name: str, num_rows: int = 120) -> Path:
    generator = random.Random(f"{name} rows")
    pairs = [draw(generator, FILLERS if name == "id" else TARGET_FILLERS) for _ in range(num_rows)]
    return write_jsonl(path, [{"text": words(text), "answer": words(answer)} for text, answer in pairs])


def losses(network: Any, *, harmful: bool) -> Callable[[], torch.Tensor]:
    """Return the loss of fresh batches of ID and target rows; the harm is one answer to all targets."""
    generator = random.Random(harmful)

    def loss() -> torch.Tensor:
        pairs = [draw(generator, FILLERS if row % 2 else TARGET_FILLERS) for row in range(32)]
        texts = [[1, *text, 2] for text, _ in pairs]
        wrong = [harmful and row % 2 == 0 for row in range(32)]
        labels = [
            [1, *([12, 20] if bad else answer), 2] for bad, (_, answer) in zip(wrong, pairs, strict=True)
        ]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        found: torch.Tensor = network(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels)).loss
        return found

    return loss


def samples_of(model: LoadedModel, records: list[dict[str, Any]], path: Path) -> Samples:
    return read_samples(
        write_jsonl(path, records), model.task.rows({}, model.processor), role="target-select"
    )


@pytest.fixture(params=SIZES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load_model(save(awaken(network_of(request.param)), tmp_path / "model"))


# --- a planted layer ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("family", "planted"), [("t5", "encoder:1"), ("bart", "decoder:1")])
def test_the_layer_that_harms_the_target_is_found_in_either_stack(
    family: str, planted: str, tmp_path: Path
) -> None:
    network = network_of(family)
    stack, _, number = planted.partition(":")
    parent = getattr(network if family == "t5" else network.model, stack)
    layers = parent.block if family == "t5" else parent.layers
    learn, harm = losses(network, harmful=False), losses(network, harmful=True)
    plant(network, layers, int(number), learn=learn, harm=harm, steps=(300, 300))
    folder = save(network, tmp_path / "model")
    files = {name: write_rows(tmp_path / f"{name}.jsonl", name) for name in ("id", "target")}
    benchmark = assert_found(folder, files, planted, tmp_path / "run")  # type: ignore[arg-type]
    assert benchmark.accuracy["target"].difference > 0.5
    run = tmp_path / "run"
    selection = json.loads((run / "selection.json").read_text())
    names = [f"{name}:{layer}" for name in ("encoder", "decoder") for layer in range(3)]
    assert selection["stacks"] == {"encoder": 3, "decoder": 3}
    assert sorted(c["layer"] for c in selection["steps"][0]["candidates"]) == sorted(names)
    profile = json.loads((run / "profile.json").read_text())
    assert (profile["layers"], len(profile["id"]["norms"])) == (names, 8)
    assert profile["pruned_target"]["influences"][names.index(planted)] is None
    for folder in ("pruned/onnx/export.json", "benchmark.json"):
        assert json.loads((run / folder).read_text())["drop"] == [planted]
    lines = (run / "search.jsonl").read_text().splitlines()
    assert any([planted] in json.loads(line).get("sets", []) for line in lines)
    for page in ("report.md", "report.html", "pruned/checkpoint/README.md"):
        assert planted in (run / page).read_text()
