"""JSON Schemas of every artifact and of the config file, from the very dataclasses that read and write them.

A schema says what a file must hold; keys that it does not name are allowed in artifacts, which later versions
may add to, and refused in a config file, where they would be misspelt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args

from . import artifacts
from .config import LARGEST_SEED, LEAST, OBJECTIVES, RunConfig, Scaling
from .config_keys import TARGETS, TEXTS, TYPES
from .engines import ENGINES
from .errors import UnknownNameError
from .exporting import FORMATS, OLDEST_OPSET
from .numbering import GRANULARITIES
from .precision import DTYPES
from .selection import CRITERIA, PICKS, SEARCHES
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
FROM_0: dict[str, Any] = {"minimum": 0}
ABOVE_0: dict[str, Any] = {"exclusiveMinimum": 0}
# What numbers in a config file are limited to.
LIMITS: dict[str, dict[str, Any]] = {
    **{name: {"minimum": number} for number, names in LEAST.items() for name in names},
    **dict.fromkeys(("alphas", "draws", "epsilon", "max_drop", "pick", "weights"), FROM_0),
    **dict.fromkeys(("atol", "budget_seconds", "tune_seconds"), ABOVE_0),
    "confidence": {"minimum": 0.5, "exclusiveMaximum": 1},
    "opset": {"minimum": OLDEST_OPSET},
    "seed": {"minimum": 0, "maximum": LARGEST_SEED},
}
# Repeatable options of which one value is needed.
NEEDED = ("batch_size", "provider")
# What texts in a config file are limited to.
PATTERNS = {
    "pick": f"^({'|'.join(PICKS)}|[0-9]+)$",
    "target_ort": r"^[0-9]+\.[0-9]+(\.[0-9]+)?$",
}


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
    properties = _plain_schema(RunConfig)["properties"]
    help_ = {item.name: item.metadata["help"] for item in fields(RunConfig)}
    written, spelt = {}, {}
    for name, annotation in TYPES.items():
        key = name.replace("_", "-")
        written[key] = _key(name, _plain_schema(annotation), properties.get(name, {}), help_.get(name))
        if key != name:
            spelt[f"^{name.replace('_', '[-_]')}$"] = {"$ref": f"#/properties/{key}"}
    return {
        "$schema": DRAFT,
        "title": "tapioca-export configuration",
        "type": "object",
        "properties": written,
        "patternProperties": spelt,  # underscores are as good as dashes
        "additionalProperties": False,
    }


def _key(name: str, found: Mapping[str, Any], field: Mapping[str, Any], help_: str | None) -> dict[str, Any]:
    """Return the schema of one key: `found` is that of its type, `field` that of its field."""
    ways = [_limited(name, way) for way in found.get("anyOf", [found])]
    if way := next((way["items"] for way in ways if way.get("type") == "array" and "items" in way), None):
        ways.append(way)  # one value of a repeatable option
    if name in TEXTS:
        ways.append({"type": "string"})
    if name in TARGETS:
        ways.append({"type": "array", "items": {"type": "string"}})
    ways.append({"type": "null"})  # sets nothing
    unique = [way for number, way in enumerate(ways) if way not in ways[:number]]
    described = {"description": help_} if help_ else {}
    return {"anyOf": unique, **described, **({"default": field["default"]} if "default" in field else {})}


def _limited(name: str, way: Mapping[str, Any]) -> dict[str, Any]:
    """Return one way to write a value with what it may be."""
    kind = way.get("type")
    for inner in ("items", "additionalProperties"):
        if inner in way:
            least = {"minItems": 1} if name in NEEDED else {}
            return {**way, inner: _limited(name, way[inner]), **least}
    if kind == "string" and name in CHOICES:
        return {"enum": sorted(CHOICES[name])}
    if kind == "string" and name in PATTERNS:
        return {**way, "pattern": PATTERNS[name]}
    if kind in ("integer", "number"):
        return {**way, **LIMITS.get(name, {})}
    return {key: part for key, part in way.items() if key != "format"}
