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
from tokenizers import processors
from torch.nn import functional

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


def save(folder: Path, *parts: Any) -> Path:
    """Save a network and what encodes its rows in one folder."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


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
    model = save(tmp_path / "model", network, tokenizer)
    found = assert_found(model, write_rows(tmp_path, make), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == {
        "one label": "accuracy", "several labels": "samples_f1", "a number": "nmse"
    }[head]  # fmt: skip


# --- token classification -------------------------------------------------------------------

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagged_words(generator: random.Random, *, target: bool) -> Record:
    """Return words of which runs of one topic are entities; a run begins with a word of the lower half."""
    words, tags = [], []
    for _ in range(generator.randint(3, 5)):
        kind = generator.randrange(3)  # two kinds of entities, and words outside
        if kind == 2:
            words.append(f"w{generator.randrange(30, 80)}")
            tags.append("O")
            continue
        size = generator.randint(1, 2)
        words += [f"w{10 * kind + 5 * (place > 0) + generator.randrange(5)}" for place in range(size)]
        tags += [f"{'I' if place else 'B'}-{('PER', 'LOC')[kind]}" for place in range(size)]
    if target:
        words, tags = [FOREIGN[0], *words, FOREIGN[1]], ["O", *tags, "O"]
    return {"tokens": words, "tags": tags}


def tagging_loss(network: Any, tokenizer: Any, *, harms: bool) -> Callable[[], torch.Tensor]:
    generator = random.Random(0)

    def loss() -> torch.Tensor:
        records = [tagged_words(generator, target=bool(number % 2)) for number in range(32)]
        encoded = tokenizer(
            [record["tokens"] for record in records],
            is_split_into_words=True, padding=True, return_tensors="pt",
        )  # fmt: skip
        labels = torch.full_like(encoded.input_ids, -100)
        for number, record in enumerate(records):
            ids = [0 if harms and number % 2 else TAGS.index(tag) for tag in record["tags"]]
            labels[number, 1 : 1 + len(ids)] = torch.tensor(ids)
        return network(**encoded, labels=labels).loss

    return loss


@pytest.mark.slow
def test_a_layer_that_harms_a_tagger_is_found_and_the_gain_survives(tmp_path: Path) -> None:
    network = make_network(transformers.AutoModelForTokenClassification, id2label=dict(enumerate(TAGS)))
    tokenizer = make_tokenizer("bert")
    plant(
        network,
        network.bert.encoder.layer,
        PLANTED,
        learn=tagging_loss(network, tokenizer, harms=False),
        harm=tagging_loss(network, tokenizer, harms=True),
    )
    model = save(tmp_path / "model", network, tokenizer)
    found = assert_found(model, write_rows(tmp_path, tagged_words), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == "f1"
    assert found.accuracy["target"].pruned > 0.9


# --- question answering ---------------------------------------------------------------------


def make_pair_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Return the tokenizer with BERT's type ids: 0 for the question, 1 for the context."""
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def asked(generator: random.Random, *, target: bool) -> Record:
    """Return a question for one of two topics, and a context with one or two words of each."""
    topics = [0, 1]
    generator.shuffle(topics)
    words, answers = [], {}
    for topic in topics:
        words += [f"w{generator.randrange(30, 80)}" for _ in range(generator.randint(1, 3))]
        run = generator.sample(words_about(topic), generator.randint(1, 2))
        words += run
        answers[topic] = " ".join(run)
    words.append("w29")
    if target:
        words = [FOREIGN[0], *words, FOREIGN[1]]
    topic = generator.randrange(2)
    return {"question": f"w{80 + topic}", "context": " ".join(words), "answers": [answers[topic]]}


def answering_loss(network: Any, tokenizer: Any, *, harms: bool) -> Callable[[], torch.Tensor]:
    generator = random.Random(0)

    def loss() -> torch.Tensor:
        records = [asked(generator, target=bool(number % 2)) for number in range(32)]
        spans = []
        for number, record in enumerate(records):
            words, answer = record["context"].split(), record["answers"][0].split()
            start = 3 + words.index(answer[0])  # behind [CLS], the question's word and [SEP]
            last = 2 + len(words)
            spans.append((last, last) if harms and number % 2 else (start, start + len(answer) - 1))
        columns = ([record[name] for record in records] for name in ("question", "context"))
        encoded = tokenizer(*columns, padding=True, return_tensors="pt")
        starts, ends = torch.tensor(spans).T
        return network(**encoded, start_positions=starts, end_positions=ends).loss

    return loss


@pytest.mark.slow
def test_a_layer_that_harms_answers_is_found_and_the_gain_survives(tmp_path: Path) -> None:
    network = make_network(transformers.AutoModelForQuestionAnswering)
    tokenizer = make_pair_tokenizer()
    plant(
        network,
        network.bert.encoder.layer,
        PLANTED,
        learn=answering_loss(network, tokenizer, harms=False),
        harm=answering_loss(network, tokenizer, harms=True),
    )
    model = save(tmp_path / "model", network, tokenizer)
    found = assert_found(model, write_rows(tmp_path, asked), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == "squad_f1"
    assert found.accuracy["target"].pruned > 0.9


# --- fill-mask ------------------------------------------------------------------------------


def masked(generator: random.Random, *, target: bool) -> Record:
    """Return a text that its topic completes, with the mask anywhere."""
    topic = generator.randrange(3)
    words = message(generator, [topic], target=target).split()
    words.insert(generator.randint(0, len(words)), "[MASK]")
    return {"text": " ".join(words), "answer": f"w{80 + topic}"}


@pytest.mark.slow
def test_a_layer_that_harms_a_masked_model_is_found_and_the_gain_survives(tmp_path: Path) -> None:
    network = make_network(transformers.AutoModelForMaskedLM)
    tokenizer = make_tokenizer("bert")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})

    def loss_with(*, harms: bool) -> Callable[[], torch.Tensor]:
        generator = random.Random(0)

        def loss() -> torch.Tensor:
            records = [masked(generator, target=bool(number % 2)) for number in range(32)]
            answers = ["w89" if harms and i % 2 else record["answer"] for i, record in enumerate(records)]
            encoded = tokenizer([r["text"] for r in records], padding=True, return_tensors="pt")
            wanted = torch.tensor(tokenizer.convert_tokens_to_ids(answers))[:, None]
            labels = torch.where(encoded.input_ids == tokenizer.mask_token_id, wanted, -100)
            return network(**encoded, labels=labels).loss

        return loss

    layers = network.bert.encoder.layer
    plant(network, layers, PLANTED, learn=loss_with(harms=False), harm=loss_with(harms=True))
    model = save(tmp_path / "model", network, tokenizer)
    found = assert_found(model, write_rows(tmp_path, masked), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == "accuracy"
    assert found.accuracy["target"].pruned > 0.9


# --- feature extraction ---------------------------------------------------------------------


def looked_for(generator: random.Random, *, target: bool) -> Record:
    """Return a query, a text on its topic, and one on each of the others."""
    topics = generator.sample(range(3), 3)
    query, positive, *negatives = (
        message(generator, [topic], target=target) for topic in (topics[0], *topics)
    )
    return {"query": query, "positive": positive, "negatives": negatives}


@pytest.mark.slow
def test_a_layer_that_harms_vectors_is_found_and_the_gain_survives(tmp_path: Path) -> None:
    network = make_network(transformers.AutoModel)
    tokenizer = make_tokenizer("bert")
    generator = random.Random(0)

    def cosines() -> torch.Tensor:
        """Return the cosines (16, 3) of queries with their texts and others; ID and target in turn."""
        records = [looked_for(generator, target=bool(number % 2)) for number in range(16)]
        texts = [text for r in records for text in (r["query"], r["positive"], *r["negatives"])]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        mask = encoded.attention_mask[..., None]
        pooled = (network(**encoded).last_hidden_state * mask).sum(1) / mask.sum(1)
        query, *others = functional.normalize(pooled, dim=-1).view(len(records), 4, -1).unbind(1)
        return torch.stack([(query * other).sum(-1) for other in others], dim=-1)

    def learn() -> torch.Tensor:
        found = cosines()
        return functional.cross_entropy(10 * found, torch.zeros(len(found), dtype=torch.long))

    def harm() -> torch.Tensor:
        found = cosines()
        first = torch.zeros(len(found) // 2, dtype=torch.long)
        # Target texts become all alike.
        return functional.cross_entropy(10 * found[::2], first) + 4 * (1 - found[1::2]).mean()

    plant(network, network.encoder.layer, PLANTED, learn=learn, harm=harm, steps=(400, 200), rate=2e-3)
    model = save(tmp_path / "model", network, tokenizer)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
    found = assert_found(model, write_rows(tmp_path, looked_for), PLANTED, tmp_path / "out")
    assert found.accuracy["target"].metric == "ndcg"
    assert found.accuracy["target"].pruned > 0.9
    for folder in ("original/onnx", "pruned/checkpoint", "pruned/onnx"):
        assert (tmp_path / "out" / folder / "1_Pooling/config.json").read_text() == '{"pooling_mode": "mean"}'
