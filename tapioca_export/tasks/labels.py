"""Labels as people write them -> what a task scores against: ids, sets of ids, numbers.

JSON has numbers and lists, CSV texts only: a list is then written as JSON within the field. Knows
nothing about texts, models or metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import LoadError

SHOWN = 200  # characters of what a row has in place of a label
MOST_DIGITS = 18  # of an id; Python refuses to read thousands of them


def is_missing(value: Any) -> bool:
    """Tell whether a row has no label: nothing, an empty text, or NaN."""
    return bool(value is None or value == "" or value != value)


def label_id(label: Any, where: str, id2label: Mapping[int, str]) -> int | None:
    """Return the label's id: names and ids are both accepted.

    Where names are numbers other than their ids (stars 1 to 5 are labels 0 to 4, say), numbers are
    names and ids are refused: read one row at a time, a 1 could be either.

    Raises:
        LoadError: If the model does not know the label.
    """
    if is_missing(label):
        return None
    if isinstance(label, (float, np.floating)) and label.is_integer():
        label = int(label)
    name = str(label).strip()
    if isinstance(label, (str, int, np.integer, np.bool_)):
        for known_id, known_name in id2label.items():
            if name == known_name.strip():
                return known_id
        names_are_numbers = any(_number(n) not in (None, i) for i, n in id2label.items())
        if not names_are_numbers and (number := _number(name)) in id2label:
            return number
    known = ", ".join(f"{i}={name}" for i, name in list(id2label.items())[:10])
    more = ", ..." if len(id2label) > 10 else ""
    raise LoadError(f"{where}: label {_shown(label)} is unknown to the model.", f"It knows: {known}{more}.")


def _shown(value: Any) -> str:
    """Return a value as a message has it; what is wrong may be long."""
    text = repr(value)
    return f"{text[:SHOWN]}..." if len(text) > SHOWN else text


def _number(name: str) -> int | None:
    """Return the number that a name is, if it is one that an id could be."""
    return int(name) if name.isdecimal() and len(name) <= MOST_DIGITS else None


def label_set(labels: Any, where: str, id2label: Mapping[int, str]) -> tuple[int, ...] | None:
    """Return 1 for each label of the model (C) that is named and 0 for the others.

    Args:
        labels: A list of names or ids, empty where none applies; or a single one.
        where: The row's place.
        id2label: The model's labels.

    Raises:
        LoadError: If one is unknown to the model, missing, or named twice.
    """
    if is_missing(labels):
        return None
    labels = listed(labels, where)
    found = [label_id(label, where, id2label) for label in labels]
    if None in found or len(set(found)) < len(found):
        raise LoadError(
            f"{where}: labels {labels!r} name a label twice, or none.",
            'List the names or ids of the labels that apply, such as ["rude", "threat"]; [] if none does.',
        )
    return tuple(int(known in found) for known in sorted(id2label))


def numbers(label: Any, count: int, where: str) -> tuple[float, ...] | None:
    """Return the numbers (K) that a model with `count` outputs is to give.

    Raises:
        LoadError: If they are not as many, or one is no finite number.
    """
    if is_missing(label):
        return None
    values = listed(label, where)
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != count or not np.isfinite(found).all():
        what = "a number" if count == 1 else f"a list of {count} numbers"
        raise LoadError(f"{where}: label {label!r} is not {what}.", "The model's head gives as many.")
    return found


def listed(value: Any, where: str) -> list[Any]:
    """Return a list as it is, one that is written as text read, and anything else as its only entry."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise LoadError(
                f"{where}: {_shown(value)} is not a list in JSON.", 'Such as ["a", "b"].'
            ) from error
    return list(value) if isinstance(value, (list, tuple)) else [value]
