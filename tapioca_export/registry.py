"""Named extension points: one table, one decorated function an entry.

Knows nothing about what the entries do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from .errors import UnknownNameError

T = TypeVar("T")


class Table(Mapping[str, T]):
    """Name -> entry, sorted; an unknown name is an error with a suggestion.

        CRITERIA: Table[Criterion] = Table("criterion")

        @CRITERIA.add("tale")
        def tale(...): ...

    Args:
        what: What an entry is, for messages ("criterion").
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Register the decorated entry under `name`."""

        def register(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.what} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        """Return the entry.

        Raises:
            UnknownNameError: If there is none of that name.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.what, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an entry of that name."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in alphabetical order."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)
