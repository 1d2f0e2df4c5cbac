"""What a search has measured, row by row: in memory (`Ledger`), or on disk as well (`Journal`).

Knows nothing about how anything was measured or what it is for. Shapes: N rows, B of a batch; a row's
value is a number, or k of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, OutputError, reason
from ..numbering import Choices, Numbering
from .files import write_text
from .records import SCHEMA_VERSION


class Ledger:
    """Values and losses by set of dropped layers and row, deviations by set, and what they cost."""

    def __init__(self) -> None:
        self._rows: dict[frozenset[int], tuple[np.ndarray, np.ndarray]] = {}
        self._deviations: dict[frozenset[int], float] = {}
        self.layer_forwards = 0
        self.layer_tokens = 0

    @property
    def num_evaluations(self) -> int:
        """Count the sets of which anything was measured."""
        return len(self._rows.keys() | self._deviations.keys())

    def rows(self, dropped: Collection[int], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values and losses of the N rows, NaN where a row was not scored; do not write in them."""
        nothing = np.full(num_rows, np.nan)
        return self._rows.get(frozenset(dropped), (nothing, nothing))

    def is_unknown(self, dropped: Collection[int], num_rows: int) -> np.ndarray:
        """Return which of the N rows were not scored."""
        return _is_nan(self.rows(dropped, num_rows)[0])

    def deviation(self, dropped: Collection[int]) -> float | None:
        """Return the mean deviation, or None where it was not measured."""
        return self._deviations.get(frozenset(dropped))

    def add_rows(self, found: Mapping[str, Any], num_rows: int) -> None:
        """Add what one batch gave.

        Args:
            found: `sets` (the dropped layers of each candidate), `rows` (B indices), `values` and `losses`
                (a list of B for each set), `layer_forwards` and `layer_tokens`.
            num_rows: N.
        """
        rows = np.asarray(found["rows"])
        for dropped, values, losses in zip(found["sets"], found["values"], found["losses"], strict=True):
            key = frozenset(dropped)
            fresh_values = np.asarray(values)
            if key not in self._rows:
                shape = (num_rows, *fresh_values.shape[1:])
                self._rows[key] = np.full(shape, np.nan), np.full(num_rows, np.nan)
            # What is known stays: other padding would change its last digits, and what rests on them.
            fresh = _is_nan(self._rows[key][0][rows])
            self._rows[key][0][rows[fresh]] = fresh_values[fresh]
            self._rows[key][1][rows[fresh]] = np.asarray(losses)[fresh]
        self.add_cost(found["layer_forwards"], found["layer_tokens"])

    def add_deviations(self, found: Mapping[str, Any]) -> None:
        """Add mean deviations: `sets` and `deviations`, with their cost as in `add_rows`."""
        for dropped, deviation in zip(found["sets"], found["deviations"], strict=True):
            self._deviations[frozenset(dropped)] = deviation
        self.add_cost(found["layer_forwards"], found["layer_tokens"])

    def add_cost(self, layer_forwards: int, layer_tokens: int) -> None:
        """Count a measurement that every run makes anew."""
        self.layer_forwards += layer_forwards
        self.layer_tokens += layer_tokens

    def note(self, line: Mapping[str, Any]) -> None:
        """Keep what a reader of the journal wants to know; nothing rests on it."""


class Journal(Ledger):
    """A ledger whose every entry is a line of `search.jsonl` before it counts.

    A search that was killed, even in the middle of a line, reads its lines back, measures what is
    missing and ends as it would have ended: at most the batch under way is lost.

    Args:
        path: The JSON Lines file.
        fingerprint: By name, what must be equal for the numbers to be the same.
        num_rows: Rows that drive the search.
        discard: Begin anew where the file is the journal of another search.
        numbering: How the file names layers, or choices of them (default: by their numbers).

    Raises:
        OutputError: If the file is the journal of another search, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        num_rows: int,
        *,
        discard: bool = False,
        numbering: Numbering | Choices | None = None,
    ) -> None:
        super().__init__()
        self._numbering = numbering
        header = {"kind": "search", "schema_version": SCHEMA_VERSION, "fingerprint": dict(fingerprint)}
        lines, size = _whole_lines(path)
        if lines and lines[0] != header and not discard:
            _refuse_another(path, lines[0], header)
        if not lines or lines[0] != header:
            lines = []
            write_text(path, json.dumps(header) + "\n")
        self._notes = {json.dumps(line) for line in lines if line.get("kind") == "candidate"}
        for number, line in enumerate(lines[1:], start=2):
            try:
                self._replay(line, num_rows)
            except (LookupError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
                raise OutputError(
                    f"Cannot resume from {path}: line {number} is none that a search wrote.",
                    "Name another --output, or discard it with --overwrite.",
                ) from error
        self._path = path
        if lines and size < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(size)

    def _replay(self, line: Mapping[str, Any], num_rows: int) -> None:
        """Count what a line of the file says.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError, ConfigError: If no search writes such a line.
        """
        if not line.keys() & {"values", "deviations"}:
            return
        _check_numbers([line["layer_forwards"], line["layer_tokens"]], (2,), kinds="iu")
        if self._numbering is not None:
            line = {**line, "sets": [list(map(self._numbering.index, dropped)) for dropped in line["sets"]]}
        if "values" in line:
            _check_rows(line, num_rows)
            super().add_rows(line, num_rows)
        else:
            _check_numbers(line["deviations"], (len(line["sets"]),))
            super().add_deviations(line)

    def add_rows(self, found: Mapping[str, Any], num_rows: int) -> None:
        """Add what one batch gave, on disk first."""
        self._append(found)
        super().add_rows(found, num_rows)

    def add_deviations(self, found: Mapping[str, Any]) -> None:
        """Add mean deviations, on disk first."""
        self._append(found)
        super().add_deviations(found)

    def note(self, line: Mapping[str, Any]) -> None:
        """Write a line for readers, once: a resumed search comes by the same places again."""
        text = json.dumps(self._named(line))
        if text not in self._notes:
            self._notes.add(text)
            self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(self._named(line)).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"Cannot write {self._path}: {reason(error)}.") from error

    def _named(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return a line with the names of layers instead of their numbers."""
        named = dict(line)
        if self._numbering is not None:
            name, names = self._numbering.name, self._numbering.names
            named |= {key: name(line[key]) for key in ("layer", "against") if key in line}
            named |= {key: list(names(line[key])) for key in ("dropped",) if key in line}
            named |= {key: [list(names(layers)) for layers in line[key]] for key in ("sets",) if key in line}
        return named


def _check_rows(line: Mapping[str, Any], num_rows: int) -> None:
    """Refuse what a batch cannot have given: rows that there are not, or not a number for each.

    Raises:
        LookupError, TypeError, ValueError: Saying what.
    """
    rows = _check_numbers(line["rows"], (len(line["rows"]),), kinds="iu")
    if len(rows) and not (rows.min() >= 0 and rows.max() < num_rows):
        raise ValueError("there are no such rows")
    shape = (len(line["sets"]), len(rows))
    _check_numbers(line["values"], shape)
    _check_numbers(line["losses"], shape)


def _check_numbers(found: Any, shape: tuple[int, ...], kinds: str = "biuf") -> np.ndarray:
    """Return a list of numbers as an array, whose first axes are these."""
    numbers = np.asarray(found) if np.size(found) else np.empty(shape)
    if (numbers.dtype.kind not in kinds and numbers.size) or numbers.shape[: len(shape)] != shape:
        raise ValueError("there is not a number for each")
    return numbers


def _is_nan(values: np.ndarray) -> np.ndarray:
    """Return which rows have no values, (N,), of (N,) or (N, k)."""
    return np.asarray(np.isnan(values).reshape(len(values), -1).any(axis=1))


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects up to the first line that is not whole, and where that one begins."""
    lines: list[dict[str, Any]] = []
    size = 0
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break
            lines.append(entry)
            size += len(line)
    return lines, size


def _refuse_another(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a journal whose numbers are of something else.

    Raises:
        OutputError: Naming what differs.
    """
    there, here = found.get("fingerprint"), wanted["fingerprint"]
    if found.get("kind") != "search" or not isinstance(there, dict):
        reason = "it is no journal of a search"
    elif found.get("schema_version") != SCHEMA_VERSION:
        reason = f"it has schema version {found.get('schema_version')}, not {SCHEMA_VERSION}"
    else:
        names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
        shown = [f"{n} was {_short(there.get(n))} and is {_short(here.get(n))}" for n in names]
        reason = "it is of another search: " + "; ".join(shown)
    raise OutputError(
        f"Cannot resume from {path}: {reason}.",
        "Give the same model, rows and settings, name another --output, or discard it with --overwrite.",
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
