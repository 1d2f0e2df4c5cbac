"""Token classification: a tag for each word of a text.

Shapes: N samples, B rows of a batch, T tokens, W words of a row, C tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ..errors import LoadError
from ..samples import Row, Samples
from .base import TASKS, Batch, Inputs, Processor, Task, all_rows, check_finite, no_training_loss
from .labels import is_missing, label_id, listed
from .scoring import Scores
from .tokenizing import content_of, require_text
from .tokens import TokenTask, model_inputs, tokenized

OUTSIDE = "O"
# Prefixes that a scheme of seqeval has; the first that has all of a model's is its scheme.
SCHEMES = {"IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}


class TokenClassification(TokenTask):
    """A tag for each word. Tags such as B-PER: F1 of the entities of all rows together; others: accuracy.

    A word's tag is read at its first token; words that are cut off by `--max-length` count as outside of
    any entity. The metric is seqeval's F1 over all kinds of entities (`average="micro"`) in its strict mode,
    with the scheme that the model's tags have: IOB2, IOBES or BILOU. A row's values are how many of its
    entities are right, are found, and are wanted. The loss is the cross-entropy in nats, averaged over the
    words of a row.

    Source: Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040, for the tags; seqeval for their reading.

    Args:
        names: The model's tags by id (C); none before the model is known.
    """

    name = "token-classification"
    optimum_task = "token-classification"
    metric = "f1"
    higher_is_better = True
    columns = ("tokens",)
    optional_columns = ("tags",)
    is_right_or_wrong = False
    best_value: ClassVar[float | None] = None

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self.scheme = scheme_of(self.names)

    def for_model(self, config: Any) -> Task:
        """Return the task with the model's tags, whose kind decides on the metric."""
        names = [str(config.id2label[i]).strip() for i in sorted(config.id2label)]
        return TokenClassification(names) if scheme_of(names) else WordTagging(names)

    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return the words of a text."""
        return {"tokens": text.split()}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read words, and a tag for each, by name or id.

        Raises:
            LoadError: If they are not as many, a tag is unknown or begins no entity where one has to.
        """
        words = listed(record["tokens"], where)
        words = [require_text(word, "a token", where) for word in words]
        if not words:
            raise LoadError(f"{where}: tokens is empty.", "Remove the row or fill it in.")
        encoded = tokenized(processor, where, words, is_split_into_words=True)
        places = encoded.word_ids()
        firsts = tuple(places.index(word) if word in places else -1 for word in range(len(words)))
        tags = self._tags(record.get("tags"), words, where, processor)
        key = "\0".join(map(content_of, words))
        return Row({"tokens": model_inputs(encoded, processor), "words": firsts}, tags, key, where, "tokens")

    def _tags(
        self, tags: Any, words: Sequence[str], where: str, processor: Processor
    ) -> tuple[int, ...] | None:
        if is_missing(tags):
            return None
        ids = [label_id(tag, where, processor.id2label) for tag in listed(tags, where)]
        if len(ids) != len(words) or None in ids:
            raise LoadError(
                f"{where}: {len(words)} tokens and {len(ids) - ids.count(None)} tags.",
                'Give each token a tag, such as {"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}.',
            )
        found = tuple(number for number in ids if number is not None)
        self.check_scheme([self.names[number] for number in found], where)
        return found

    def check_scheme(self, tags: Sequence[str], where: str) -> None:
        """Refuse an entity that begins with I- where B- begins one: it would be none.

        Raises:
            LoadError: If there is one.
        """
        for before, tag in zip((OUTSIDE, *tags), tags, strict=False):
            if self.scheme == "IOB2" and tag[:1] == "I" and before[1:] != tag[1:]:
                raise LoadError(
                    f"{where}: tag {tag} follows {before}, and entities begin with B- in the model's tags.",
                    f"Write B{tag[1:]} (IOB2).",
                )

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples that have one and the same tag all over: no metric on them means anything.

        Raises:
            LoadError: If there is one tag only.
        """
        if samples.is_labelled and len({tag for row in samples.rows for tag in row.label}) < 2:
            raise LoadError(
                f"{samples.source}: all tokens of {len(samples)} {samples.role} rows have the same tag.",
                "Give samples with at least two tags.",
            )

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Refuse: the model's own loss is a mean over the tokens of a batch, whichever rows it has."""
        raise no_training_loss(self.name)

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score logits (N, T, C) of rows padded on the right.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        values, losses = [], np.empty(len(rows))
        for number, row in enumerate(samples.rows[i] for i in rows):
            places, truth = np.asarray(row.features["words"]), np.asarray(row.label)
            logits = outputs[number, places].astype(np.float64)  # (W, C); a place of -1 is looked at below
            found = np.where(places < 0, -1, logits.argmax(axis=-1))
            values.append(self.value(truth, found))
            likelihoods = log_softmax(logits, axis=-1)[np.arange(len(truth)), truth]
            losses[number] = -likelihoods[places >= 0].mean()
        return Scores(np.asarray(values, dtype=np.float64), losses)

    def value(self, truth: np.ndarray, found: np.ndarray) -> float | tuple[int, int, int]:
        """Return how many entities of a row are right, are found, and are wanted.

        Args:
            truth: Ids of the tags (W,).
            found: Ids of the tags predicted (W,), -1 for words that the model did not see.
        """
        names = (*self.names, OUTSIDE)  # -1 is the last
        wanted, answer = (_entities(tuple(names[i] for i in ids), self.scheme) for ids in (truth, found))
        return len(wanted & answer), len(answer), len(wanted)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the tags of each row's words, "-" for words that the model did not see."""
        found = []
        for logits, row in zip(outputs, (samples.rows[i] for i in rows), strict=True):
            tags = [
                self.names[logits[place].argmax()] if place >= 0 else "-" for place in row.features["words"]
            ]
            found.append(" ".join(tags))
        return list(found)

    def row_values(self, values: np.ndarray) -> np.ndarray | None:
        """Return F1 of each row's own entities, 1 where there are none and none is found."""
        right, found, wanted = values.T
        return np.where(found + wanted == 0, 1.0, 2 * right / np.maximum(found + wanted, 1))

    def aggregate(self, values: np.ndarray) -> np.ndarray:
        """Return F1 of all rows' entities together, 0 where there are none, as seqeval has it."""
        right, found, wanted = np.moveaxis(values.sum(axis=-2), -1, 0)
        return np.asarray(2 * right / np.maximum(found + wanted, 1))


class WordTagging(TokenClassification):
    """A tag for each word, none of which says where entities begin; the metric is accuracy.

    It is the mean over rows of the share of a row's words whose tag is right; words that are cut off
    by `--max-length` are wrong.
    """

    metric = "tag_accuracy"
    best_value = 1.0
    aggregate = Task.aggregate
    row_values = Task.row_values

    def value(self, truth: np.ndarray, found: np.ndarray) -> float:
        """Return the share of words whose tag is right."""
        return float((truth == found).mean())


def scheme_of(names: Sequence[str]) -> str:
    """Return the scheme of seqeval by which these tags mark entities, "" if they do not."""
    tags = [name for name in names if name != OUTSIDE]
    if not tags or not all(re.fullmatch(r"[BIESLU]-.+", tag) for tag in tags):
        return ""
    prefixes = {tag[0] for tag in tags}
    fitting = (name for name, known in SCHEMES.items() if prefixes <= set(known))
    return next(fitting, "") if prefixes != {"I"} else ""


@lru_cache(maxsize=100_000)
def _entities(tags: tuple[str, ...], scheme: str) -> frozenset[tuple[str, int, int]]:
    """Return a row's entities: what, from where, to where. Most rows are tagged alike by most candidates."""
    from seqeval import scheme as schemes

    (found,) = schemes.Entities([list(tags)], getattr(schemes, scheme)).entities
    return frozenset((entity.tag, entity.start, entity.end) for entity in found)


TASKS.add(TokenClassification.name)(TokenClassification())
