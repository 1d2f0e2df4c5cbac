"""What every file format answers, and the table of formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import Export, sha256
from ..errors import ConfigError, ExportError
from ..generation import CacheShapes, Session
from ..models import LoadedModel
from ..precision import FULL
from ..registry import Table
from ..tasks import Inputs
from ..treatments import Treatment

OLDEST_OPSET = 18


@dataclass(frozen=True)
class Dialect:
    """The ONNX that is written: its opset, and the newest IR version; None leaves it to the exporter."""

    opset: int | None = None
    ir_version: int | None = None


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


def recorded(model: LoadedModel, written: Written, files: Sequence[Path], **more: Any) -> Export:
    """Return the record of an export.

    Args:
        model: The model that it is of.
        written: What the exporter says of it.
        files: Its files, the graph that runs first at the beginning.
        more: The rest of the record: format, precision, layers, proof.
    """
    digests = {file.name: sha256(file) for file in files}
    return Export(
        model=model.source,
        task=model.task.name,
        files=digests,
        exporter=written.exporter,
        opset=written.opset,
        inputs=written.inputs,
        outputs=written.outputs,
        cache=dict(written.cache),
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=digests[files[0].name],
        max_length=model.processor.max_length,
        metric=model.task.metric,
        prompting=model.processor.prompting,
        **more,
    )


def _refuse_nothing(dtype: str) -> None:
    """Any precision can be run."""


@dataclass(frozen=True)
class Format:
    """One file format: how to write it, and how to run it back.

    `write(model, example, folder, dialect)` traces the model on the example and writes its files;
    `open(folder, written)` returns a function from inputs to outputs, by name. Both raise an `ExportError`
    where the model is refused. `refuse(dtype)` raises one where no file of that precision can be run here.
    `is_treated`: files are ONNX graphs, which can be optimised and quantised.
    """

    write: Callable[[LoadedModel, Inputs, Path, Dialect], Written]
    open: Callable[[Path, Written], Session]
    help: str
    note: str | None = None
    refuse: Callable[[str], None] = _refuse_nothing
    is_treated: bool = False


@dataclass(frozen=True)
class ExportSettings:
    """What to export, in which precision, and how closely it must agree with PyTorch in float32.

    `tolerance` is absolute, on logits; None stands for what the precision allows. `ir_version` is the newest
    version of ONNX's file format that may be written; None leaves it to the exporter. By `treatment` the
    metric may become worse by `max_drop`, in its unit, on rows with labels.
    """

    format: str = "onnx"
    opset: int | None = None
    tolerance: float | None = None
    dtype: str = FULL
    ir_version: int | None = None
    treatment: Treatment = field(default_factory=Treatment)
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a name, an opset or a precision that cannot be written and run.

        Raises:
            UnknownNameError: If there is no such format.
            ExportError: If the opset is older than the exporter writes, or the precision cannot be run.
            ConfigError: If the format, or the precision, cannot be treated so.
        """
        FORMATS[self.format].refuse(self.dtype)
        if self.treatment and not FORMATS[self.format].is_treated:
            raise ConfigError(
                f"--optimize and --quantize are for ONNX files, not for {self.format}.", "Add --format onnx."
            )
        self.treatment.check_dtype(self.dtype)
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise ExportError(
                f"Opset {self.opset} is too old: the exporter writes {OLDEST_OPSET} and newer.",
                "Leave out --opset.",
            )


FORMATS: Table[Format] = Table("format")
