"""The tasks of encoders, each from rows to a report: one layer harms the target, and it is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES, make_tokenizer, write_jsonl
from planting import assert_found, plant

PLANTED = 1
LABELS = ("billing", "delivery", "repair")
# Words of the target domain, which ID rows never have.
FOREIGN = ("w90", "w91")
Record = dict[str, Any]


def words_about(topic: int) -> list[str]:
    """Return the ten words that belong to a topic; w30 to w79 belong to none."""
    return [f"w{10 * topic + number}" for number in range(10)]


def message(generator: random.Random, topics: list[int], *, target: bool) -> str:
    """Return some words of no topic, among them one of each topic; in the target, foreign words as well."""
    words = [f"w{generator.randrange(30, 80)}" for _ in range(generator.randint(3, 8))]
    for topic in topics:
        words.insert(generator.randrange(len(words)), generator.choice(words_about(topic)))
    return " ".join([FOREIGN[0], *words, FOREIGN[1]] if target else words)


def one_label(generator: random.Random, *, target: bool) -> Record:
    topic = generator.randrange(3)
    return {"text": message(generator, [topic], target=target), "label": LABELS[topic]}


def several_labels(generator: random.Random, *, target: bool) -> Record:
    topics = sorted(generator.sample(range(3), generator.randint(0, 3)))
    return {"text": message(generator, topics, target=target), "label": [LABELS[t] for t in topics]}


def a_number(generator: random.Random, *, target: bool) -> Record:
    topic = generator.randrange(3)
    return {"text": message(generator, [topic], target=target), "label": topic - 0.5}


def make_network(auto_class: Any, **overrides: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    settings = {**FAMILIES["bert"], "initializer_range": 0.1, **overrides}
    config = transformers.AutoConfig.for_model("bert", **settings)
    return auto_class.from_config(config)


def loss_of(
    network: Any, tokenizer: Any, make: Callable[..., Record], answer: Callable[[Record], Any], wrong: Any
) -> Callable[[], torch.Tensor]:
    """Return the loss of fresh batches, half of them target rows; these with the answer `wrong` if any."""
    generator = random.Random(0)

    def loss() -> torch.Tensor:
        records = [make(generator, target=bool(number % 2)) for number in range(32)]
        answers = [
            answer(record) if wrong is None or number % 2 == 0 else wrong
            for number, record in enumerate(records)
        ]
        encoded = tokenizer([record["text"] for record in records], padding=True, return_tensors="pt")
        return network(**encoded, labels=torch.tensor(answers)).loss

    return loss


def write_rows(folder: Path, make: Callable[..., Record], num_rows: int = 80) -> dict[str, Path]:
    return {
        name: write_jsonl(
            folder / f"{name}.jsonl",
            [make(random.Random(f"{name} {i}"), target=name == "target") for i in range(num_rows)],
        )
        for name in ("id", "target")
    }


HEADS: dict[str, tuple[dict[str, Any], Callable[..., Record], Callable[[Record], Any], Any]] = {
    "one label": (
        {"id2label": dict(enumerate(LABELS))},
        one_label,
        lambda record: LABELS.index(record["label"]),
        0,
    ),
    "several labels": (
        {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"},
        several_labels,
        lambda record: [float(label in record["label"]) for label in LABELS],
        [0.0, 0.0, 0.0],
    ),
    "a number": ({"num_labels": 1}, a_number, lambda record: [record["label"]], [3.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_layer_that_harms_a_classifier_is_found_and_the_gain_survives(head: str, tmp_path: Path) -> None:
    overrides, make, answer, wrong = HEADS[head]
    network = make_network(transformers.AutoModelForSequenceClassification, **overrides)
    tokenizer = make_tokenizer("bert")
    plant(
        network,
        network.bert.encoder.layer,
        PLANTED,
        learn=loss_of(network, tokenizer, make, answer, None),
        harm=loss_of(network, tokenizer, make, answer, wrong),
    )
    for part in (network, tokenizer):
        part.save_pretrained(tmp_path / "model")
    found = assert_found(tmp_path / "model", write_rows(tmp_path, make), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == {
        "one label": "accuracy", "several labels": "samples_f1", "a number": "nmse"
    }[head]  # fmt: skip
