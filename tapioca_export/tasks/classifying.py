"""What tasks with one label a row have in common: the head, the label, accuracy and cross-entropy.

Knows nothing about what a row is made of.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Samples
from .base import Processor, Task, all_rows, check_finite
from .scoring import Scores


class SingleLabel(Task):
    """One label a row; the metric is accuracy, the loss cross-entropy."""

    metric = "accuracy"
    higher_is_better = True
    is_right_or_wrong = True
    best_value = 1.0

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples that are all labelled alike: no metric on them means anything.

        Raises:
            LoadError: If all rows have the same label.
        """
        if samples.is_labelled and len(np.unique(samples.labels, axis=0)) < 2:
            raise LoadError(
                f"{samples.source}: all {len(samples)} {samples.role} rows have the same label.",
                "Give samples whose labels differ.",
            )

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Right or wrong, and cross-entropy in nats.

        Raises:
            SelectionError: If a logit is not finite.
        """
        from scipy.special import log_softmax

        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        labels = samples.labels[rows]
        right = outputs.argmax(axis=-1) == labels
        losses = -log_softmax(outputs.astype(np.float64), axis=-1)[np.arange(len(labels)), labels]
        return Scores(right.astype(np.float64), losses)

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return the names of the labels."""
        return [processor.id2label[int(label)] for label in outputs.argmax(axis=-1)]

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same arg max."""
        return float((expected.argmax(axis=-1) == actual.argmax(axis=-1)).mean())


def check_head(config: Any, task: str, what: str) -> None:
    """Refuse a head that does not give one of several labels.

    Raises:
        ConfigError: Saying what the head gives; `what` is a row in words, "a text".
    """
    problem = config.problem_type
    if config.num_labels < 2 or problem not in (None, "single_label_classification"):
        raise ConfigError(
            f"The model has {config.num_labels} label(s), problem type {problem!r}; "
            f"{task} needs one of several labels {what}."
        )


def label_names(config: Any) -> dict[int, str]:
    """Return the model's names of labels by their ids."""
    return {int(i): str(label) for i, label in config.id2label.items()}
