"""What every file format answers, and the table of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ExportError
from ..generation import CacheShapes, Session
from ..models import LoadedModel
from ..registry import Table
from ..tasks import Inputs

OLDEST_OPSET = 18


@dataclass(frozen=True)
class Written:
    """What an exporter says about the files it wrote.

    `inputs` and `outputs` are those of all files taken as one, `cache` names inputs that hold keys and
    values.
    """

    exporter: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    files: tuple[str, ...]
    cache: CacheShapes = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One file format: how to write it, and how to run it back.

    `write(model, example, folder, opset)` traces the model on the example and writes its files;
    `open(folder, written)` returns a function from inputs to outputs, by name.
    """

    write: Callable[[LoadedModel, Inputs, Path, int | None], Written]
    open: Callable[[Path, Written], Session]
    help: str
    note: str | None = None


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how closely it must agree; `tolerance` is absolute, on logits."""

    format: str = "onnx"
    opset: int | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse a name or an opset that cannot be written.

        Raises:
            UnknownNameError: If there is no such format.
            ExportError: If the opset is older than the exporter writes.
        """
        FORMATS[self.format]
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise ExportError(
                f"Opset {self.opset} is too old: the exporter writes {OLDEST_OPSET} and newer.",
                "Leave out --opset.",
            )


FORMATS: Table[Format] = Table("format")
