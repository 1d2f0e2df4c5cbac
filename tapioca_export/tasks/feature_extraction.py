"""Feature extraction: vectors of texts, judged by whether a query's is closest to that of what it looks for.

Shapes: N samples, B rows of a batch, S texts of them, T tokens, H hidden size, K texts to rank of a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import (
    TASKS,
    Batch,
    Inputs,
    Position,
    Processor,
    ProcessorOptions,
    Task,
    all_rows,
    check_finite,
    no_training_loss,
)
from .beside import text_beside
from .labels import is_missing, listed, numbers
from .scoring import Scores
from .tokenizing import content_of, require_text, weights_at
from .tokens import TokenTask, model_inputs, padded, tokenized

# How sentence-transformers names what a vector is read off, in its present files and in older ones.
POOLINGS: dict[str, Position] = {
    "mean": "mean", "cls": "first-token", "lasttoken": "last-token", "mean_tokens": "mean",
    "cls_token": "first-token",
}  # fmt: skip
POOLING_FILE = "1_Pooling/config.json"
MODULES_FILE = "modules.json"
# Modules that leave the angle between two vectors as it is.
MODULES = ("Transformer", "Pooling", "Normalize")
# What cosines are multiplied by before they are likelihoods.
SCALE = 20.0


class FeatureExtraction(TokenTask):
    """A query, texts that answer it and texts that do not, ranked by the cosine of their vectors; nDCG.

    A text's vector is the mean of its tokens' last hidden states; or that of its first or last token,
    where a file of sentence-transformers beside the checkpoint says so. The metric is the mean over rows
    of scikit-learn's nDCG of each row's texts, of which the positives count 1 and the negatives 0. The
    loss is the negative log of the positives' share, in nats, by a softmax of the cosines times 20, as
    in sentence-transformers' MultipleNegativesRankingLoss.

    Source: Järvelin and Kekäläinen 2002, doi:10.1145/582415.582418.
    """

    name = "feature-extraction"
    optimum_task = "feature-extraction"
    metric = "ndcg"
    higher_is_better = True
    columns: ClassVar[tuple[str, ...]] = ("query",)
    optional_columns: ClassVar[tuple[str, ...]] = ("positive", "negatives")
    is_right_or_wrong = False
    outputs = ("last_hidden_state",)
    best_value: ClassVar[float | None] = 1.0
    profiles_while_scoring = False

    def metrics(self) -> Mapping[str, Task]:
        """Return nDCG of what is looked for, and Spearman's correlation with the scores of pairs."""
        return {self.metric: self, PAIRS.metric: PAIRS}

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load the tokenizer, and what sentence-transformers says of vectors.

        Raises:
            LoadError: If there is no tokenizer, or none that can pad or that fits the model.
            ConfigError: If vectors are made in a way that is not known here, or `--max-length` is out of
                the model's range.
        """
        processor = super().load_processor(folder, config, options)
        files = {
            name: text
            for name in (MODULES_FILE, POOLING_FILE)
            if (text := text_beside(folder, name, options)) is not None
        }
        position = _position(files, str(folder))
        return replace(processor, position=position, files=files)

    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return a query alone."""
        return {"query": text}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read a query, one text or several that answer it, and one or several that do not.

        Raises:
            LoadError: If there is one kind only, or a text is of both.
        """
        query = require_text(record["query"], "query", where)
        kinds = {}
        for name in ("positive", "negatives"):
            given = record.get(name)
            given = [] if is_missing(given) else listed(given, where)
            kinds[name] = [require_text(text, f"a text of {name}", where) for text in given]
        positives, negatives = kinds.values()
        if bool(positives) != bool(negatives):
            raise LoadError(
                f"{where}: {len(positives)} positives and {len(negatives)} negatives; nothing can be ranked.",
                "Give at least one of each, or none at all.",
            )
        if twice := set(positives) & set(negatives):
            raise LoadError(f"{where}: {min(twice)!r} is both a positive and a negative.", "Remove one.")
        row = _row((query, *positives, *negatives), positives[0] if positives else None, where, processor)
        return replace(row, features={**row.features, "num_positives": len(positives)}, layout="query")

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode each row's query, positives and negatives, in this order, a sequence a text."""
        texts = [text for i in indices for text in samples.rows[i].features["texts"]]
        return Batch(indices, padded(texts, processor))

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode the queries alone."""
        return Batch(indices, padded([samples.rows[i].features["texts"][0] for i in indices], processor))

    def num_answers(self, samples: Samples) -> int:
        """Return the most texts of any row."""
        return max(1, *(len(row.features["texts"]) for row in samples.rows))

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Refuse: the model has no loss of its own."""
        raise no_training_loss(self.name)

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return by how much each text's vector turns: 1 - cosine."""
        weights = self.readout(batch, processor)  # (B, 1, T)
        one, other = ((weights @ states)[:, 0].astype(np.float64) for states in (before, after))
        norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        cosines = np.divide((one * other).sum(axis=-1), norms, out=np.zeros(len(one)), where=norms > 0)
        return np.asarray(1 - cosines)

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return 1.0: vectors have no labels to agree on."""
        return 1.0

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score last hidden states (S, T, H) of the texts of N rows, padded on the right.

        Raises:
            SelectionError: If a state is not finite.
        """
        from scipy.special import logsumexp
        from sklearn.metrics import ndcg_score

        rows = all_rows(samples, rows)
        chosen = [samples.rows[i] for i in rows]
        counts = [len(row.features["texts"]) for row in chosen]
        check_finite(outputs, samples, np.repeat(rows, counts))
        values, losses = np.empty(len(rows)), np.empty(len(rows))
        starts = np.cumsum([0, *counts[:-1]])
        for number, (row, start, count) in enumerate(zip(chosen, starts, counts, strict=True)):
            query, *others = vectors(outputs[start : start + count], row)
            cosines = np.stack(others) @ query  # (K,)
            num_positives = row.features["num_positives"]
            relevance = np.arange(len(cosines)) < num_positives
            values[number] = ndcg_score([relevance.astype(int)], [cosines])
            losses[number] = logsumexp(SCALE * cosines) - logsumexp(SCALE * cosines[:num_positives])
        return Scores(values, losses)


class ScoredPairs(FeatureExtraction):
    """Pairs of texts with a score of how alike they are; Spearman's rank correlation with their cosines.

    A row's values are the cosine of its texts' vectors, and its score. The loss is the squared difference
    of the two, as in sentence-transformers' CosineSimilarityLoss, with the scores of the role stretched to
    0..1. Profiles are of the first texts.

    Source: Spearman 1904, doi:10.2307/1412159, as SciPy's spearmanr; 0 where all cosines are equal.
    """

    metric = "spearman"
    columns = ("text", "text_pair")
    optional_columns = ("score",)
    best_value = None

    def example(self, text: str, processor: Processor) -> Mapping[str, Any]:
        """Return a text beside itself."""
        return {"text": text, "text_pair": text}

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read two texts and how alike they are, whatever the scale.

        Raises:
            LoadError: If the score is no number.
        """
        texts = [require_text(record[name], name, where) for name in self.columns]
        try:
            score = numbers(record.get("score"), 1, where)
        except LoadError as error:
            raise LoadError(f"{where}: score {record['score']!r} is not a number.", "Such as 3.8.") from error
        return _row(texts, None if score is None else score[0], where, processor)

    def check_labels(self, samples: Samples) -> None:
        """Refuse scores that are all the same, as they put nothing in order.

        Raises:
            LoadError: If they are.
        """
        if samples.is_labelled and np.ptp(samples.labels) == 0:
            raise LoadError(
                f"{samples.source}: all {len(samples)} {samples.role} rows have the same score.",
                "Give pairs that are alike to different degrees.",
            )

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score last hidden states (S, T, H) of the two texts of N rows each, padded on the right.

        Raises:
            SelectionError: If a state is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, np.repeat(rows, 2))
        pairs = zip(outputs[::2], outputs[1::2], rows, strict=True)
        found = [vectors(np.stack([one, other]), samples.rows[i]) for one, other, i in pairs]
        cosines = np.asarray([one @ other for one, other in found])
        wanted, every = samples.labels[rows], samples.labels
        shares = (wanted - every.min()) / max(float(np.ptp(every)), np.finfo(np.float64).tiny)
        return Scores(np.stack([cosines, wanted], axis=1), np.square(cosines - shares))

    def aggregate(self, values: np.ndarray) -> np.ndarray:
        """Return Spearman's correlation of cosines and scores."""
        ranks = self.exchangeable(values)
        ranks = ranks - ranks.mean(axis=-2, keepdims=True)
        products = ranks.prod(axis=-1).sum(axis=-1)
        lengths = np.sqrt(np.square(ranks).sum(axis=-2).prod(axis=-1))
        return np.asarray(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))

    def exchangeable(self, values: np.ndarray) -> np.ndarray:
        """Return ranks: models may differ in how large their cosines are all over."""
        from scipy.stats import rankdata

        return np.asarray(rankdata(values, axis=-2))


PAIRS = ScoredPairs()
TASKS.add(FeatureExtraction.name)(FeatureExtraction())


def _row(texts: Sequence[str], label: Any, where: str, processor: Processor) -> Row:
    """Return a row of several texts, each a sequence of its own."""
    encoded = tuple(model_inputs(tokenized(processor, where, text), processor) for text in texts)
    features = {
        "tokens": max(encoded, key=lambda tokens: len(tokens["input_ids"])),
        "texts": encoded,
        "position": processor.position,
    }
    return Row(features, label, "\0".join(map(content_of, texts)), where, "text and text_pair")


def vectors(states: np.ndarray, row: Row) -> np.ndarray:
    """Return the vectors, of length one, of a row's texts (S, H), from their states (S, T, H)."""
    lengths = np.asarray([len(text["input_ids"]) for text in row.features["texts"]])
    mask = np.arange(states.shape[1]) < lengths[:, None]
    weights = weights_at(row.features["position"], mask).astype(np.float64)  # (S, 1, T)
    found = (weights @ states.astype(np.float64))[:, 0]
    lengths_of_vectors = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(lengths_of_vectors, np.finfo(np.float64).tiny))


# --- what stands beside a checkpoint --------------------------------------------------------


def _position(files: Mapping[str, str], folder: str) -> Position:
    """Return what a vector is read off, by the files of sentence-transformers; the mean without any.

    Raises:
        ConfigError: If vectors are read off, or changed, in a way that is not known here.
    """
    try:
        modules = [
            str(module["type"]).rpartition(".")[2] for module in json.loads(files.get(MODULES_FILE, "[]"))
        ]
        pooling = json.loads(files.get(POOLING_FILE, '{"pooling_mode": "mean"}'))
        named = pooling.get("pooling_mode")
        named = [named] if isinstance(named, str) else named
        # Older files have a switch a kind.
        prefix = "pooling_mode_"
        named = named or [key.removeprefix(prefix) for key, on in pooling.items() if on and prefix in key]
        named = [str(name) for name in named]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{folder}: {MODULES_FILE} or {POOLING_FILE} cannot be read: {error}") from error
    unknown = [module for module in modules if module not in MODULES]
    unknown += [] if len(named) == 1 and named[0] in POOLINGS else [f"Pooling by {', '.join(named)}"]
    if unknown:
        raise ConfigError(
            f"{folder} makes vectors with {unknown[0]}, which is not supported.",
            f"Supported: pooling by {', '.join(POOLINGS)}, and nothing behind it that turns vectors.",
        )
    return POOLINGS[named[0]]
