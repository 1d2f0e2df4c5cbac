"""What every task answers, and the table of tasks.

Shapes: N samples, B rows of a batch, T tokens, P positions where an answer is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import ConfigError, LoadError, SelectionError
from ..registry import Table
from ..samples import Row, Samples

Inputs = dict[str, np.ndarray]
Position = Literal["first-token", "last-token", "mean", "x-positions"]


@dataclass(frozen=True)
class Batch:
    """Rows `indices` of the samples, encoded; the values of `inputs` start with axis B."""

    indices: np.ndarray
    inputs: Inputs

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.indices)


@dataclass(frozen=True)
class Scores:
    """Results a sample, in the samples' order: the metric is the mean of `values`.

    `values` and `losses` have shape (N,).
    """

    values: np.ndarray
    losses: np.ndarray

    @property
    def metric(self) -> float:
        """The task metric."""
        return float(self.values.mean())

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class Processor:
    """What a checkpoint or export folder says about inputs and labels.

    `tokenizer` is None for tasks without text; `max_length` is in tokens (or prompt values);
    `position` is where the model's head reads the answer.
    """

    folder: str
    position: Position
    max_length: int
    tokenizer: Any = None
    id2label: Mapping[int, str] = field(default_factory=dict)
    # A fast tokenizer keeps the padding and truncation of its last call, and saves them.
    unused_tokenizer: Any = None

    def save(self, folder: Path) -> None:
        """Write the tokenizer as it was loaded, where the task has one."""
        if self.unused_tokenizer is not None:
            self.unused_tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class ProcessorOptions:
    """How to load a processor: safety switches and the user's `--max-length`."""

    max_length: int | None = None
    trust_remote_code: bool = False
    local_files_only: bool = False


class Task(ABC):
    """One kind of job; subclasses are stateless."""

    name: ClassVar[str]
    optimum_task: ClassVar[str]  # the name by which Optimum's TasksManager knows the auto class
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    columns: ClassVar[tuple[str, ...]]
    optional_columns: ClassVar[tuple[str, ...]] = ()
    is_right_or_wrong: ClassVar[bool]  # values are 0 or 1, so that McNemar's test applies

    @abstractmethod
    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load what encodes rows for the model in `folder`, with its transformers config."""

    @abstractmethod
    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Turn one record, its columns already renamed, into a row."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode rows as one batch, padded to its longest row."""

    @abstractmethod
    def length(self, row: Row, processor: Processor) -> int:
        """Return the row's length in characters (or prompt values): it orders rows as tokens do."""

    @abstractmethod
    def examples(self, processor: Processor) -> list[Inputs]:
        """Return batches for when there are no samples; the first is fit to trace with.

        That is: several rows, one of them padded, and no axis of length one.
        """

    @abstractmethod
    def readout(self, inputs: Inputs, processor: Processor) -> np.ndarray:
        """Return weights (B, P, T) that read the answer's states off hidden states (B, T, H)."""

    @abstractmethod
    def score(self, logits: np.ndarray, samples: Samples) -> Scores:
        """Score outputs of shape (N, ...) against the samples' labels."""

    @abstractmethod
    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same label; 1.0 where the task has none."""

    def check_labels(self, samples: Samples) -> None:  # noqa: B027  (most labels will do)
        """Refuse labels that no metric can be computed from."""

    def token_mask(self, inputs: Inputs) -> np.ndarray:
        """Return 1 for real tokens and 0 for padding, shape (B, T)."""
        if "attention_mask" in inputs:
            return inputs["attention_mask"]
        first = next(iter(inputs.values()))
        return np.ones(first.shape[:2], dtype=np.int64)

    def rows(
        self, columns: Mapping[str, str], processor: Processor
    ) -> Callable[[Mapping[str, Any], str], Row]:
        """Return the function that reads a record of a file whose columns may be named otherwise.

        Args:
            columns: This task's name of a column -> the file's.
            processor: What the model says about labels.

        Raises:
            ConfigError: If `columns` names something that the task does not read.
        """
        known = (*self.columns, *self.optional_columns)
        for name in columns:
            if name not in known:
                raise ConfigError(
                    f"--columns: task {self.name} has no column {name!r}.",
                    f"It has: {', '.join(known)}.",
                )

        def read(record: Mapping[str, Any], where: str) -> Row:
            renamed = {}
            for name in known:
                source = columns.get(name, name)
                if source in record:
                    renamed[name] = record[source]
                elif name in self.columns or name in columns:
                    raise LoadError(
                        f"{where} has no column {source!r}; it has: {', '.join(map(str, record))}.",
                        f"Name it with --columns {name}=...",
                    )
            return self.read_row(renamed, where, processor)

        return read

    def batches(
        self,
        samples: Samples,
        processor: Processor,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Encode the samples in batches of similar length, so that little work goes to padding."""
        lengths = [self.length(row, processor) for row in samples.rows]
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            rows = [samples.rows[i] for i in indices]
            yield Batch(indices, self.encode(rows, processor))


TASKS: Table[Task] = Table("task")


def check_finite(logits: np.ndarray, samples: Samples) -> None:
    """Refuse outputs that no metric can be computed from.

    Raises:
        SelectionError: If one is NaN or infinite; the message names the first such row.
    """
    finite = np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if not finite.all():
        row = samples.rows[int(np.argmin(finite))]
        raise SelectionError(
            f"The model's logits are not finite (NaN or infinite) for {row.where}.",
            "Check the checkpoint's weights.",
        )
