"""Tiny models of the tasks whose answers stand at tokens, and rows for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import FAMILIES, awaken, make_tokenizer
from tokenizers import processors

from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import TASKS, Processor, Task
from tapioca_export.tasks.token_classification import TokenClassification

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
KINDS = ("NOUN", "VERB", "OTHER")


def make_text_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """Return a tokenizer with BERT's type ids and a mask."""
    tokenizer = make_tokenizer("bert")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


TEXT = Processor("folder", "mean", 64, make_text_tokenizer(), dict(enumerate(TAGS)))
TAGGER = TokenClassification(TAGS)
QA, MASKS, VECTORS = (TASKS[name] for name in ("question-answering", "fill-mask", "feature-extraction"))
ASKED = {"question": "w9", "context": "w1 w2 w3 w4", "answers": ["w2 w3"]}


def samples_of(task: Task, records: list[dict[str, Any]], processor: Processor = TEXT) -> Samples:
    read = task.rows({}, processor)
    rows = tuple(read(record, f"line {number}") for number, record in enumerate(records, start=1))
    return Samples("id-select", rows, "file", "")


def row_of(task: Task, record: dict[str, Any], processor: Processor = TEXT) -> Row:
    return samples_of(task, [record], processor).rows[0]


# --- tiny models of every task --------------------------------------------------------------


def tagged(generator: random.Random, names: tuple[str, ...] = KINDS) -> dict[str, Any]:
    words = [f"w{generator.randrange(92)}" for _ in range(generator.randint(1, 12))]
    return {"tokens": words, "tags": [generator.choice(names) for _ in words]}


def entities(generator: random.Random) -> dict[str, Any]:
    return tagged(generator, ("O", "B-PER", "B-LOC"))


def asked(generator: random.Random) -> dict[str, Any]:
    words = [f"w{generator.randrange(92)}" for _ in range(generator.randint(3, 12))]
    start = generator.randrange(len(words) - 1)
    answers = [" ".join(words[start : start + 2])] if generator.random() < 0.8 else []
    return {"question": f"w{generator.randrange(92)}", "context": " ".join(words), "answers": answers}


def masked(generator: random.Random) -> dict[str, Any]:
    words = [f"w{generator.randrange(92)}" for _ in range(generator.randint(1, 12))]
    answer = words[0]
    words[0] = "[MASK]"
    generator.shuffle(words)
    return {"text": " ".join(words), "answer": answer}


def looked_for(generator: random.Random) -> dict[str, Any]:
    def text() -> str:
        return " ".join(f"w{generator.randrange(92)}" for _ in range(generator.randint(1, 12)))

    negatives = [text() + f" w{number}" for number in range(generator.randint(1, 4))]
    return {"query": text(), "positive": text(), "negatives": negatives}


def scored_pair(generator: random.Random) -> dict[str, Any]:
    texts = [[f"w{generator.randrange(92)}" for _ in range(generator.randint(1, 12))] for _ in range(2)]
    one, other = map(" ".join, texts)
    return {"text": one, "text_pair": other, "score": generator.randrange(11) / 2}


Make = Callable[[random.Random], dict[str, Any]]
# By what is inferred: the class, what of its config differs, rows, and the metric.
MODELS: dict[str, tuple[Any, dict[str, Any], Make, str]] = {
    "entities": (
        transformers.AutoModelForTokenClassification,
        {"id2label": dict(enumerate(TAGS))},
        entities,
        "token-classification f1",
    ),
    "kinds of words": (
        transformers.AutoModelForTokenClassification,
        {"id2label": dict(enumerate(KINDS))},
        tagged,
        "token-classification tag_accuracy",
    ),
    "answers": (transformers.AutoModelForQuestionAnswering, {}, asked, "question-answering squad_f1"),
    "exact answers": (
        transformers.AutoModelForQuestionAnswering,
        {},
        asked,
        "question-answering exact_match",
    ),
    "masks": (transformers.AutoModelForMaskedLM, {}, masked, "fill-mask accuracy"),
    "vectors": (transformers.AutoModel, {}, looked_for, "feature-extraction ndcg"),
    "pairs": (transformers.AutoModel, {}, scored_pair, "feature-extraction spearman"),
}


def save(folder: Path, kind: str, family: str = "bert") -> Path:
    auto_class, overrides, _, _ = MODELS[kind]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
    awaken(auto_class.from_config(config)).save_pretrained(folder)
    tokenizer = make_text_tokenizer()
    if family != "bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder
