"""Frozen dataclasses of where a folder came from, and of what was found when that was held against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..showing import Shown
from .records import SCHEMA_VERSION, SPARSE

Command = Literal["run", "prune", "export"]
Role = Literal["input", "output"]
FileState = Literal["same", "changed", "missing", "added", "not compared"]
ProofState = Literal["holds", "fails", "not run"]


@dataclass(frozen=True)
class Provenance:
    """`provenance.json`: what a folder that is handed on was made of, and how; it lies in that folder.

    `model` is what was exported, or pruned. Paths of what lies in the same run folder are relative to this
    folder, others as they were given. `inputs` and `outputs` map paths to SHA-256; outputs are all files of
    this folder but this one. `rows` is the fingerprint of the rows that a proof was made on, "" without any.
    `sha256` is that of this file with zeros in its place.
    """

    command: Command
    model: str
    config: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str]
    rows: str = ""
    sha256: str = field(default="", metadata=SPARSE)
    kind: Literal["provenance"] = "provenance"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class FileCheck:
    """One file or folder that a record names, or that lies among those it names.

    "not compared": the record has a name on the hub and no hash.
    """

    path: str
    role: Role
    state: FileState


@dataclass(frozen=True)
class ProofCheck:
    """A proof, made again: a checkpoint equals its original with layers skipped, a file its checkpoint.

    `recorded` and `found` are the largest differences, then and here; None where there is no such number.
    """

    folder: str
    state: ProofState
    message: str
    recorded: float | None = None
    found: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Verification(Shown):
    """What `verify` found; printed, never written.

    `versions` holds, of each library whose version is not the recorded one, that one and the one here.
    """

    folder: str
    passed: bool
    verdict: tuple[str, ...]
    files: tuple[FileCheck, ...]
    proofs: tuple[ProofCheck, ...]
    versions: dict[str, tuple[str, str]]
    kind: Literal["verification"] = "verification"
    schema_version: int = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """0 when all that was looked at is as recorded, else 3."""
        return 0 if self.passed else 3
