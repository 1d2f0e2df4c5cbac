"""Tasks whose rows are files, pictures or sounds: where a file is, what it is known by, what the head reads.

A file is checked when its row is read and decoded whenever the row is encoded: a data set need not fit
in memory. Knows nothing about any format of files.

A relative path starts at the folder of the sample file and must stay inside it, links followed: a
sample file from elsewhere cannot name what lies around it. An absolute path goes where it says.

Shapes: B rows of a batch, T positions of the residual stream.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..artifacts import sha256
from ..errors import ConfigError, LoadError, first_line
from ..samples import Place, Row, Samples
from .base import Batch, Position, Processor, Task
from .classifying import SingleLabel
from .labels import label_id

# Model types whose head reads the class token, which stands first, and no other. The heads of all others
# read the mean of all positions, or hardly less: some leave out a few special ones.
READ_THE_CLASS_TOKEN = ("audio-spectrogram-transformer", "deit", "vit", "vit_msn")
Source = Path | bytes


class FileTask(Task):
    """A file a row.

    Where the answer is read for profiles is this project's own rule: at the class token if that is
    what the head reads, else at the mean of all real positions of the residual stream.
    """

    column: ClassVar[str]

    @abstractmethod
    def look(self, source: Source, processor: Processor) -> Mapping[str, Any]:
        """Read a file's head; return what a row needs to know of it. May raise anything."""

    @abstractmethod
    def decode(self, features: Mapping[str, Any]) -> Any:
        """Decode a row's file. May raise anything."""

    @abstractmethod
    def read_label(self, record: Mapping[str, Any], where: str, processor: Processor) -> Any:
        """Return what a row is scored against; None where the record has nothing of the kind."""

    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Find a file, or take its bytes, and read an optional label.

        Raises:
            LoadError: If there is no such file, it is of another kind, or the label does not fit.
        """
        source = source_of(record[self.column], self.column, where)
        label = self.read_label(record, where, processor)
        with self.reading(source, where):
            # Two copies of one file are one row; two encodings of one picture are not known to be.
            key = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256(source)
            found = self.look(source, processor)
        return Row({self.column: source, **found}, label, key, where)

    def decoded(self, row: Row) -> Any:
        """Decode a row's file.

        Raises:
            LoadError: If that fails, in whatever way.
        """
        with self.reading(row.features[self.column], row.where):
            return self.decode(row.features)

    @contextmanager
    def reading(self, source: Source, where: str) -> Iterator[None]:
        """Turn whatever a file's decoder raises into one error that names the row."""
        try:
            yield
        except Exception as error:  # decoders raise what they please
            is_named = isinstance(source, bytes) or where == str(source)
            subject = f"the {self.column}" if is_named else f"{self.column} {source!s}"
            reason = first_line(error).rstrip(".")
            raise LoadError(
                f"{where}: {subject} cannot be read: {reason}.", "Mend the file or remove the row."
            ) from error

    def check_labels(self, samples: Samples) -> None:
        """Refuse what no metric can be computed from; and broken files, now and not amid a search.

        Raises:
            LoadError: If a file cannot be decoded.
        """
        super().check_labels(samples)
        for row in samples.rows:
            self.decoded(row)

    def state_mask(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Take all positions for real."""
        assert batch.num_states is not None, "a forward tells it"
        return np.ones((len(batch), batch.num_states), dtype=np.int64)

    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Read the first position, or the mean of all real ones."""
        mask: np.ndarray = self.state_mask(batch, processor).astype(np.float32)
        if processor.position == "first-token":
            mask[:, 1:] = 0
        return np.expand_dims(mask / mask.sum(axis=1, keepdims=True), axis=1)

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return None: how many positions there are is not known before a forward."""
        return None


class FileClassification(FileTask, SingleLabel):
    """One label a file."""

    optional_columns: ClassVar[tuple[str, ...]] = ("label",)

    def read_label(self, record: Mapping[str, Any], where: str, processor: Processor) -> Any:
        """Read a label of the model's, a name or an id."""
        return label_id(record.get("label"), where, processor.id2label)


def source_of(value: Any, column: str, where: str) -> Source:
    """Return the file that a record names, or its bytes (as `datasets` keeps them).

    Raises:
        LoadError: If it names none, or one that a relative path may not lead to.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        if value.get("bytes"):
            return bytes(value["bytes"])
        value = value.get("path")
    if value is None or value == "":
        raise LoadError(f"{where}: {column} is empty.", "Remove the row or fill it in.")
    if not isinstance(value, str):
        raise LoadError(f"{where}: {column} is {type(value).__name__}, not the path of a file.")
    folder = where.folder if isinstance(where, Place) else Path()
    path = folder / value
    if not os.path.isfile(path):
        raise LoadError(f"{where}: {column} file {path} does not exist.", "Paths start at the sample file.")
    if not os.path.isabs(value) and not path.resolve().is_relative_to(folder.resolve()):
        raise LoadError(
            f"{where}: {column} {value!r} leads out of {folder}, the folder of the sample file.",
            "Name it by its absolute path.",
        )
    return path


def head_position(config: Any) -> Position:
    """Tell where a head of this model type reads the answer."""
    return "first-token" if config.model_type in READ_THE_CLASS_TOKEN else "mean"


def require(library: str, package: str, extra: str, task: str) -> Any:
    """Import a library that an extra brings.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(library)
    except (ImportError, OSError) as error:  # soundfile raises OSError where libsndfile is not there
        raise ConfigError(
            f"The task {task} needs {package}, which is not installed.",
            f"pip install 'tapioca-export[{extra}]'",
        ) from error
