"""The journal of a search: every round's evaluations on disk as soon as they are known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..artifacts import SCHEMA_VERSION, Evaluation, write_text


class Journal(MutableMapping[frozenset[int], Evaluation]):
    """Evaluations by set of dropped layers, each appended to a file as soon as it is known.

    A search that was killed reads them back and goes on from its last whole round; a last line cut
    short by the kill is dropped. A journal of another search (other model, rows or device) is begun
    anew.

    Args:
        path: The JSON Lines file.
        fingerprint: What must be equal for the numbers to be the same.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self._entries: dict[frozenset[int], Evaluation] = {}
        header = {
            "kind": "search",
            "schema_version": SCHEMA_VERSION,
            "fingerprint": dict(fingerprint),
        }
        lines = _whole_lines(path)
        if lines and lines[0] == header:
            for line in lines[1:]:
                numbers = {name: line[name] for name in ("metric", "loss", "deviation")}
                self._entries[frozenset(line["drop"])] = Evaluation(**numbers)
        self._path = path
        write_text(path, json.dumps(header) + "\n" + "".join(map(self._line, self._entries)))

    def _line(self, key: frozenset[int]) -> str:
        return json.dumps({"drop": sorted(key), **asdict(self._entries[key])}) + "\n"

    def __getitem__(self, key: frozenset[int]) -> Evaluation:
        """Return what is known of the model without these layers."""
        return self._entries[key]

    def __setitem__(self, key: frozenset[int], value: Evaluation) -> None:
        """Record, on disk too."""
        self._entries[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(key))

    def __delitem__(self, key: frozenset[int]) -> None:
        """Refuse: the journal is append-only."""
        raise TypeError("a journal is append-only")

    def __iter__(self) -> Iterator[frozenset[int]]:
        """Iterate over the sets measured."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Count the sets measured."""
        return len(self._entries)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file up to the first line that is not whole."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines
