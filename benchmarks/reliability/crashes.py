"""What once broke a reader, by name: fed first, whenever that reader is fed."""

from __future__ import annotations

# name: (reader, file)
CRASHES: dict[str, tuple[str, bytes]] = {}
