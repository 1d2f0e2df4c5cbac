"""JSON Schemas of every artifact and of the config file, from the very dataclasses that read and write them.

A schema says what a file must hold; keys that it does not name are allowed in artifacts, which later versions
may add to, and refused in a config file, where they would be misspelt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args

from . import artifacts
from .config import LEAST, OBJECTIVES, Doses, RunConfig, Scaling
from .engines import ENGINES
from .errors import UnknownNameError
from .exporting import FORMATS
from .numbering import GRANULARITIES
from .precision import DTYPES
from .selection import CRITERIA, SEARCHES
from .tasks import TASKS
from .treatments import KINDS, LEVELS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
CONFIG = "config"
CHOICES: dict[str, Iterable[str]] = {
    "task": ("auto", *TASKS), "criterion": CRITERIA, "search": SEARCHES, "engine": ENGINES, "format": FORMATS,
    "granularity": GRANULARITIES, "dtype": DTYPES, "optimize": LEVELS,
    "quantize": KINDS, "objective": OBJECTIVES, "scaling": get_args(Scaling),
    "tie_break": ("index", "loss"), "select_on": ("target", "id"),
}  # fmt: skip
# What a config file may hold besides the fields of the configuration, for `select` and for `intervene`.
BESIDES = {"compare": tuple[str, ...], "layers": tuple[artifacts.LayerName, ...]}
# On the command line a text with commas or pairs, which a config file may hold as well.
TEXTS = ("drop", "alphas", "compare", "layers", "columns", "weights")


def kinds() -> dict[str, type]:
    """Return the dataclass of every artifact by its kind."""
    classes = (getattr(artifacts, name) for name in artifacts.__all__)
    return {cls.kind: cls for cls in classes if isinstance(cls, type) and hasattr(cls, "kind")}


def schema(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of one kind of file, or of all by their kinds.

    Args:
        kind: An artifact's kind, or "config".

    Raises:
        UnknownNameError: If there is no such kind.
    """
    known = {CONFIG, *kinds()}
    if kind is None:
        return {name: schema(name) for name in sorted(known)}
    if kind not in known:
        raise UnknownNameError("kind", kind, known)
    return _config_schema() if kind == CONFIG else _artifact_schema(kinds()[kind])


def _artifact_schema(cls: Any) -> dict[str, Any]:
    found = _plain_schema(cls)
    found["required"] = sorted({*found.get("required", ()), "kind", "schema_version"})
    found["properties"]["schema_version"]["const"] = artifacts.SCHEMA_VERSION
    return {"$schema": DRAFT, **found}


def _plain_schema(annotation: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    found: dict[str, Any] = TypeAdapter(annotation).json_schema()
    return found


def _config_schema() -> dict[str, Any]:
    """Return the schema of a config file: option names as keys, and all ways to write a value."""
    whole = _plain_schema(RunConfig)
    properties = dict(whole["properties"])
    doses = _plain_schema(Doses)["properties"]
    properties |= {name: doses[name] for name in ("draws", "scaling")}
    properties |= {name: _plain_schema(annotation) for name, annotation in BESIDES.items()}
    help_ = {item.name: item.metadata["help"] for item in fields(RunConfig)}
    least = {name: number for number, names in LEAST.items() for name in names}
    written = {}
    for name, value in properties.items():
        written[name.replace("_", "-")] = _key(name, value, help_.get(name), least.get(name))
    return {
        "$schema": DRAFT,
        "title": "tapioca-export configuration",
        "type": "object",
        "properties": written,
        "additionalProperties": False,
    }


def _key(name: str, found: Mapping[str, Any], help_: str | None, least: int | None) -> dict[str, Any]:
    """Return the schema of one key."""
    value = {key: part for key, part in found.items() if key not in ("title", "default")}
    ways = [_limited(name, way, least) for way in value.pop("anyOf", [value])]
    if way := next((way["items"] for way in ways if way.get("type") == "array" and "items" in way), None):
        ways.append(way)  # one value of a repeatable option
    if name in TEXTS:
        ways.append({"type": "string"})
    if name == "pick":
        ways.append({"type": "integer"})
    unique = [way for number, way in enumerate(ways) if way not in ways[:number]]
    made = dict(unique[0]) if len(unique) == 1 else {"anyOf": unique}
    made |= {"description": help_} if help_ else {}
    return made | ({"default": found["default"]} if "default" in found else {})


def _limited(name: str, way: Mapping[str, Any], least: int | None) -> dict[str, Any]:
    """Return one way to write a value with what it may be."""
    if way.get("type") == "array":
        return {**way, "items": _limited(name, way["items"], least)} if "items" in way else dict(way)
    if way.get("type") == "string" and name in CHOICES:
        return {"enum": sorted(CHOICES[name])}
    if way.get("type") in ("integer", "number") and least is not None:
        return {**way, "minimum": least}
    return {key: part for key, part in way.items() if key != "format"}
