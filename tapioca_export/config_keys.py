"""What a config file may hold: its keys, and the types of their values.

Knows neither how a file is read nor how its schema is written; both go by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .config import Doses, RunConfig
from .numbering import LayerName

# `compare` is for `select`, the last ones are for `intervene`.
TYPES: dict[str, Any] = {
    **get_type_hints(RunConfig),
    "pick": int | str,  # a number needs no quotes
    "compare": tuple[str, ...],
    "layers": tuple[LayerName, ...],
    **{name: get_type_hints(Doses)[name] for name in ("draws", "scaling")},
}
# On the command line a text with commas, in a config file a list as well.
LISTS = ("drop", "compare", "layers", "alphas")
# Repeatable on the command line with NAME=PATH, in a config file a table as well.
TARGETS = ("target", "target_report")
# On the command line pairs, in a config file a table as well.
PAIRS = ("columns", "weights", *TARGETS)
# What a config file may hold as on the command line, whatever its type is.
TEXTS = (*LISTS, *PAIRS)


def scalar_types(annotation: Any) -> set[type]:
    """Return the types of the single values that a type is made of; a path is a text."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {type(part) for part in parts}
    if get_origin(annotation) is Mapping:
        parts = parts[1:]
    if not parts:
        return {str if annotation is Path else annotation} - {type(None), ...}
    return set().union(*map(scalar_types, parts))
