"""The embedded example's task: regression in context.

Shapes: N samples, B rows of a batch, T prompt values, P scored positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError
from ..samples import Row, Samples
from .base import TASKS, Batch, Inputs, Processor, ProcessorOptions, Task, all_rows, check_finite
from .changing import square
from .scoring import Scores


class PolynomialRegression(Task):
    """Predict every y of a prompt x1, y1, x2, y2, ... from what precedes it.

    The metric is the normalised mean squared error: the squared error, averaged over the points
    from the fourth on, divided by the variance of y over the samples. 0 is perfect, 1 is what the
    best constant answer gets. The loss is the squared error itself.
    """

    name = "polynomial-regression"
    optimum_task = "feature-extraction"  # the auto class is the plain AutoModel
    metric = "nmse"
    higher_is_better = False
    columns = ("x", "y")
    is_right_or_wrong = False
    best_value = 0.0
    padding_sides = ("none",)
    is_prompt = True
    MODEL_TYPE = "polynomial_regression"
    FIRST_SCORED_POINT = 3  # three points determine a parabola

    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Take the longest prompt from the model's positions.

        Raises:
            ConfigError: If the model reads no prompts, or `--max-length` is out of its range.
        """
        if config.model_type != self.MODEL_TYPE:
            raise ConfigError(
                f"Model type {config.model_type} does not do {self.name}.",
                f"Name another -t/--task: {', '.join(TASKS)}.",
            )
        longest = config.n_positions
        least = 2 * (self.FIRST_SCORED_POINT + 1)
        if options.max_length is not None and not least <= options.max_length <= longest:
            raise ConfigError(
                f"--max-length {options.max_length} is outside {least}..{longest}, "
                "the model's range in prompt values."
            )
        return Processor(str(folder), "x-positions", options.max_length or longest)

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Read two lists of numbers of equal length; y is both prompt and label."""
        try:
            with np.errstate(over="ignore"):  # an overflow shows as an infinity below
                x, y = (np.asarray(record[name], dtype=np.float32) for name in ("x", "y"))
        except (TypeError, ValueError, OverflowError) as error:
            raise LoadError(
                f"{where}: x and y must be lists of numbers.",
                'Such as {"x": [0.1, ...], "y": [0.5, ...]}; CSV cannot hold lists.',
            ) from error
        least, longest = self.FIRST_SCORED_POINT + 1, processor.max_length // 2
        if x.ndim != 1 or x.shape != y.shape or not least <= len(x) <= longest:
            raise LoadError(
                f"{where}: x has shape {x.shape}, y {y.shape}; both must be lists of equal length, "
                f"{least} to {longest} points."
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise LoadError(f"{where}: x or y holds a value that is not finite.")
        values = np.stack([x, y], axis=-1).reshape(-1)
        key = hashlib.sha256(values.tobytes()).hexdigest()
        # Prompts cannot be padded: the model has no notion of it.
        return Row({"values": values}, y, key, where, layout=f"{len(x)} points")

    def check_labels(self, samples: Samples) -> None:
        """Refuse samples whose y never varies: nothing can be normalised by their variance.

        Raises:
            LoadError: If all scored values of y are equal.
        """
        if not np.ptp(samples.labels[:, self.FIRST_SCORED_POINT :]):
            raise LoadError(
                f"{samples.source}: y is the same from the fourth point on in all "
                f"{len(samples)} {samples.role} rows.",
                "Give samples whose y varies.",
            )

    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Stack prompts of one length.

        Raises:
            LoadError: If the prompts differ in length.
        """
        lengths = {len(row.features["values"]) for row in rows}
        if len(lengths) > 1:
            raise LoadError(f"{rows[0].where}: all prompts must have equally many points.")
        return {"values": np.stack([row.features["values"] for row in rows])}

    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return the number of prompt values of each row."""
        return [len(row.features["values"]) for row in rows]

    def examples(self, processor: Processor) -> list[Inputs]:
        """Return random prompts of four points, then of as many as fit."""
        generator = np.random.default_rng(0)
        shapes = ((2, 8), (3, processor.max_length // 2 * 2))
        return [{"values": generator.uniform(-1, 1, shape).astype(np.float32)} for shape in shapes]

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the scored x positions."""
        num_rows, num_values = batch.inputs["values"].shape
        positions = np.arange(2 * self.FIRST_SCORED_POINT, num_values, 2)
        weights = np.zeros((num_rows, len(positions), num_values), dtype=np.float32)
        weights[:, np.arange(len(positions)), positions] = 1.0
        return weights

    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Squared error from the fourth point on, and the same relative to the variance of y.

        Raises:
            SelectionError: If a prediction is not finite.
        """
        rows = all_rows(samples, rows)
        check_finite(outputs, samples, rows)
        scored = slice(self.FIRST_SCORED_POINT, None)
        labels = samples.labels.astype(np.float64)[:, scored]
        error = np.square(outputs.astype(np.float64)[:, scored] - labels[rows]).mean(axis=1)
        return Scores(error / labels.var(), error)

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return the squared change, mean over the scored points."""
        scored = slice(self.FIRST_SCORED_POINT, None)
        return square(before[:, scored], after[:, scored])

    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return 1.0: a regression has no labels to agree on."""
        return 1.0


TASKS.add(PolynomialRegression.name)(PolynomialRegression())
