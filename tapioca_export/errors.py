"""Everything a user can cause, in one tree.

    TapiocaError                      message, and a hint that says what to do
    ├── ConfigError                   values that do not go together
    │   └── UnknownNameError          a name that is in no table: did-you-mean and the full list
    ├── LoadError                     a model, tokenizer, sample file or artifact cannot be read
    ├── UnsupportedModelError         no unique layer stack, shared layers, a failed round trip
    ├── SelectionError                nothing left to drop
    │   └── NotFiniteError            NaN or infinity: behind which layer, for which row
    ├── ExportError
    │   └── ParityError               the exported file does not compute what PyTorch computes
    ├── EngineError                   workers are lost, and new ones too
    ├── BenchmarkError                the runtime refuses the file or the provider
    ├── OutOfMemoryError              the machine has not the memory that the work takes
    └── OutputError                   the output folder cannot be written or is not empty

A message says what happened and what was found; the hint says what to do next. The command line
prints both and exits with 1. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable

LONGEST_NAME = 100  # characters of a name that is in no table
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def shortened(name: str) -> str:
    """Return a name of any length as a message shows it."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's type where it has none.

    A line that ends with a colon only announces the next one. Colours are for terminals alone.
    """
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 1 + lines[0].endswith(":")])


def reason(error: OSError | ValueError) -> str:
    """Return why the system refused, or a text is none, in words that not every library passes on."""
    return getattr(error, "strerror", None) or first_line(error)


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its own exceptions have no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    classes = (value for value in vars(state).values() if inspect.isclass(value))
    own = (value for value in classes if issubclass(value, Exception))
    return (*own, OSError, RuntimeError, ValueError)


class TapiocaError(Exception):
    """Base of every error a user can cause and mend.

    Args:
        message: One line: what happened, what was found.
        hint: One line: what to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint as the command line prints them."""
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(TapiocaError):
    """Values that do not go together."""


class UnknownNameError(ConfigError):
    """A name that is in no table."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names, name = sorted(known), shortened(name)
        close = difflib.get_close_matches(name, names, n=1)
        guess = f"Did you mean {close[0]!r}? " if close else ""
        super().__init__(f"Unknown {what} {name!r}.", f"{guess}Known: {', '.join(names) or 'none'}.")


class LoadError(TapiocaError):
    """A model, tokenizer, sample file or artifact cannot be read."""


class UnsupportedModelError(TapiocaError):
    """A model whose layers cannot be removed with proof."""


class SelectionError(TapiocaError):
    """No layers can be chosen: nothing left to drop, or scores that are not finite."""


class NotFiniteError(SelectionError):
    """A model that computes NaN or infinity.

    Args:
        what: What is not finite ("The model's logits are").
        where: For which row.
    """

    def __init__(self, what: str, where: str) -> None:
        super().__init__(
            f"{what} not finite (NaN or infinite) for {where}.", "Check the checkpoint's weights."
        )


class ExportError(TapiocaError):
    """The exporter refuses the model."""


class ParityError(ExportError):
    """The exported file does not compute what PyTorch computes."""


class EngineError(TapiocaError):
    """The workers are lost, and starting new ones does not help."""


class BenchmarkError(TapiocaError):
    """The runtime refuses the exported file, or a provider is missing."""


class OutOfMemoryError(TapiocaError):
    """The machine has not the memory that the work takes."""


class OutputError(TapiocaError):
    """The output folder cannot be written, or holds something already."""
