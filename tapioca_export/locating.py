"""Where the paths of a record lead, and whether what is there is what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .artifacts import FileState, combined
from .provenance import HEADERS, HUB, hash_model


@dataclass(frozen=True)
class Places:
    """Where the paths of a record lead: from its folder first, else from the current one.

    Attributes:
        folder: The record's.
        hashed: SHA-256 of files that were hashed already, by resolved path.
    """

    folder: Path
    hashed: Mapping[Path, str] = field(default_factory=dict)

    def find(self, name: str, digest: str) -> Path | None:
        """Return where an input is, of two places the one with the recorded hash; None if nowhere."""
        places = (self.folder / name, Path(name))
        # No devices and pipes, whose content has no end: a record may name what it likes.
        found = [path for path in places if path.is_file() or path.is_dir()]
        same = [path for path in found if self._hash(path, digest) == digest]
        return next(iter([*same, *found]), None)

    def state(self, name: str, digest: str) -> FileState:
        """Tell whether an input is what it was."""
        if digest.startswith(HUB):
            here = hash_model(name)
            if "@" not in digest or "@" not in here:
                return "not compared"
            return "same" if here == digest else "changed"
        path = self.find(name, digest)
        if path is None:
            return "missing"
        return "same" if self._hash(path, digest) == digest else "changed"

    def _hash(self, path: Path, like: str) -> str:
        """Return the hash of a path, of the kind of a recorded one."""
        if like.startswith(HEADERS):
            return hash_model(str(path), weights=False)
        path = path.resolve()
        if path in self.hashed:
            return self.hashed[path]
        below = {p.relative_to(path).as_posix(): h for p, h in self.hashed.items() if path in p.parents}
        return combined(below) if below else hash_model(str(path))
