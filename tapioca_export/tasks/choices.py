"""The columns of rows that have several answers of which one is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import LoadError
from .labels import is_missing, listed
from .tokenizing import require_text


def read_choices(record: Mapping[str, Any], where: str) -> tuple[list[str], int | None]:
    """Return two or more choices, and the index of the right one, None where it is not told.

    Raises:
        LoadError: If they are no list of different texts, or the label is none of them.
    """
    choices = listed(record["choices"], where)
    if len(choices) < 2:
        raise LoadError(
            f"{where}: choices must be a list of at least two texts.",
            'Such as {"context": "2 + 2 =", "choices": ["3", "4"], "label": 1}; in CSV the list as JSON.',
        )
    choices = [require_text(choice, "a choice", where) for choice in choices]
    if len(set(choices)) < len(choices):
        raise LoadError(f"{where}: two choices are the same.", "Give each choice once.")
    return choices, _choice(record.get("label"), choices, where)


def _choice(label: Any, choices: Sequence[str], where: str) -> int | None:
    """Return the index of the right choice: a number is an index, a text a choice or its index."""
    if is_missing(label):
        return None
    if isinstance(label, (float, np.floating)) and label.is_integer():
        label = int(label)
    if isinstance(label, str) and label in choices:
        return list(choices).index(label)
    if not isinstance(label, bool) and str(label).isdecimal() and int(label) < len(choices):
        return int(label)
    raise LoadError(
        f"{where}: label {label!r} is none of the {len(choices)} choices.", "Give its index, counted from 0."
    )
