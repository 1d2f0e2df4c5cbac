"""Frozen dataclasses of how ONNX Runtime opens a file: the settings of a session, and how they were found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .records import SCHEMA_VERSION, Ratio


@dataclass(frozen=True)
class SessionSettings:
    """What a session is opened with, by ONNX Runtime's own names.

    `session_options` are attributes of `onnxruntime.SessionOptions`, a text being the name of a member of
    the attribute's enumeration; `config_entries` are its `add_session_config_entry`, `provider_options` go
    beside the first provider's name. With `io_binding`, runs go through `session.io_binding()`; with CUDA's
    `enable_cuda_graph` among the provider's options, through tensors that stay where they are, a graph
    a shape.
    """

    providers: tuple[str, ...]
    session_options: Mapping[str, bool | int | str]
    config_entries: Mapping[str, str] = field(default_factory=dict)
    io_binding: bool = False
    provider_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        """The execution provider that is asked for first."""
        return self.providers[0]

    @property
    def num_threads(self) -> int:
        """Threads of one operator."""
        return int(self.session_options["intra_op_num_threads"])


@dataclass(frozen=True)
class OrtSession(SessionSettings):
    """`ort_session.json`: the settings with which an exported file was fastest here, and the evidence.

    `tuned` is false where they are those that every benchmark begins with, since no others were shown to
    be faster. `speedup` is the time with those over the time with these, the geometric mean of `shapes`
    (batch size, sequence length, phase), in `rounds` rounds that took no part in choosing; None where none
    were better while choosing. `candidates` counts the settings that were tried, of `planned`.
    `max_abs_difference` is the largest of any output from that with the former settings, on all batches
    that were timed.
    """

    tuned: bool = False
    speedup: Ratio | None = None
    rounds: int = 0
    candidates: int = 0
    planned: int = 0
    shapes: tuple[tuple[int, int, str], ...] = ()
    max_abs_difference: float = 0.0
    tolerance: float = 0.0
    onnxruntime: str = ""
    sha256: str = ""
    kind: Literal["ort_session"] = "ort_session"
    schema_version: int = SCHEMA_VERSION
