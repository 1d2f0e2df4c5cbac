"""Expressions over a report's fields: a small grammar, read by Python's parser, and evaluated node by node.

    comparison   a < b, <=, >, >=, ==, !=, also in chains; joined by and, or, not and parentheses
    operand      a number, a text in quotes, a field, min(FIELD), max(FIELD), len(FIELD), abs(x); + - * /
    field        a key of report.json, target.difference.low, with [0] or ["name"] where no dot will do

A quantity with an interval has `low` and `high`. After a dot behind a list comes that field of each of its
entries. Nothing else is understood: no calls, no attributes of objects, nothing of Python's is in reach.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifacts import Accuracy, Ratio, Report, to_json
from ..errors import ConfigError, UnknownNameError
from .verdicts import Check, not_measured

LONGEST = 1000  # characters
COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"min": min, "max": max, "len": len, "abs": abs}
EXAMPLE = "Such as 'target.difference.low < 0' or 'speedup.low < 1.1 or size_ratio > 0.9'."


@dataclass(frozen=True)
class Quantity:
    """A number with a 95 % interval."""

    value: float
    low: float
    high: float


class _NotMeasuredError(Exception):
    """A field has no number."""


def fields_of(report: Report) -> dict[str, Any]:
    """Return what an expression may name: the report's keys, and short names for what is asked for most."""
    measured = report.benchmark
    roles = {role: _scored(measured.accuracy.get(role)) for role in ("target", "id")}
    short = {
        **roles,
        "worst_group": {
            role: _scored(measured.groups[role].worst if role in measured.groups else None)
            for role in ("target", "id")
        },
        "groups": {
            role: {name: _scored(row) for name, row in groups.each.items()}
            for role, groups in measured.groups.items()
        },
        "targets": {name: _scored(row) for name, row in measured.targets.items()},
        "speedup": _least([row.speedup for row in measured.served]),
        "size_ratio": _ratio(measured.size_bytes.pruned, measured.size_bytes.original),
        "memory_ratio": _ratio(measured.peak_memory_bytes.pruned, measured.peak_memory_bytes.original),
        "optimism_gap": measured.optimism_gap,
        "dropped": len(measured.drop),
    }
    return {**_bounded(json.loads(to_json(report))), **short}


def _scored(row: Accuracy | None) -> dict[str, Any] | None:
    """Return the fields of a role's row; `gain` is positive where it is better."""
    if row is None:
        return None
    plain = json.loads(to_json(row))
    return {**_bounded(plain), "gain": _quantity(row.gain, row.gain_interval)}


def _quantity(value: float, interval: Sequence[float]) -> Quantity:
    low, high = interval
    return Quantity(value, low, high)


def _least(speedups: Sequence[Ratio]) -> Quantity | None:
    """Return the least value, low bound and high bound of any setting, each for itself."""
    if not speedups:
        return None
    values = zip(*((part.median, *part.interval) for part in speedups), strict=True)
    return Quantity(*map(min, values))


def _ratio(one: float, other: float) -> float | None:
    return one / other if one > 0 and other > 0 else None


def _bounded(plain: Any) -> Any:
    """Make quantities of values that stand beside their interval."""
    if isinstance(plain, list):
        return [_bounded(value) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if set(plain) == {"median", "interval"} and isinstance(plain["median"], (int, float)):
        return _quantity(plain["median"], plain["interval"])
    found = {}
    for key, value in plain.items():
        interval = plain.get(f"{key}_interval") or (plain.get("interval") if key == "difference" else None)
        if isinstance(value, (int, float)) and interval:
            found[key] = _quantity(value, interval)
        else:
            found[key] = _bounded(value)
    return found


def failing(text: str, fields: Mapping[str, Any]) -> Check:
    """Return the check that an expression is not true of a report.

    Raises:
        ConfigError: If it is malformed, or compares what cannot be compared.
        UnknownNameError: If it names a field that the report does not have.
    """
    tree = _parsed(text)
    try:
        for field in _fields_in(tree):  # what does not exist is refused, also behind an `or`
            _field(field, fields)
        found = _value(tree, fields)
        named = {ast.unparse(node): _looked_up(node, fields) for node in _looked_up_in(tree)}
    except _NotMeasuredError as error:
        return not_measured(text, f"the report has no number for {error}")
    except ZeroDivisionError:
        raise ConfigError(f"--fail-if {text!r} divides by zero.", EXAMPLE) from None
    except OverflowError:
        raise ConfigError("--fail-if computes with a number that is too large.", EXAMPLE) from None
    except RecursionError:
        raise ConfigError("--fail-if is nested too deeply.", EXAMPLE) from None
    if not isinstance(found, bool):
        raise ConfigError(f"--fail-if {text!r} is no comparison.", EXAMPLE)
    if not named:
        raise ConfigError(f"--fail-if {text!r} names no field of the report.", EXAMPLE)
    values = ", ".join(f"{name} is {_shown(value)}" for name, value in named.items())
    return Check(text, not found, f"Fails if {text}: {values}.")


def _parsed(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise ConfigError(f"--fail-if has {len(text)} characters, more than {LONGEST}.", EXAMPLE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python would find odd
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"--fail-if {text!r} is no expression.", EXAMPLE) from None


def _fields_in(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the fields that an expression names."""
    holders = [node for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Subscript))]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    inner = {id(node.value) for node in holders} | {id(node.func) for node in calls}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript, ast.Name)) and id(node) not in inner:
            yield node


def _looked_up_in(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what an expression takes from a report: fields, and functions of them."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    within = {id(node) for call in calls for node in ast.walk(call)}
    yield from calls
    yield from (node for node in _fields_in(tree) if id(node) not in within)


def _looked_up(node: ast.expr, fields: Mapping[str, Any]) -> Any:
    return _value(node, fields) if isinstance(node, ast.Call) else _field(node, fields)


def _field(node: ast.expr, fields: Mapping[str, Any]) -> Any:
    """Return what a field holds; None where it was not measured."""
    if isinstance(node, ast.Name):
        return _entry("the report", node.id, fields)
    if isinstance(node, ast.Attribute):
        return _part(ast.unparse(node.value), node.attr, _field(node.value, fields))
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        holder, key = _field(node.value, fields), node.slice.value
        where = ast.unparse(node.value)
        if isinstance(holder, list) and isinstance(key, int) and not isinstance(key, bool):
            if key >= len(holder):
                raise ConfigError(f"--fail-if: {where} has {len(holder)} entries, counted from 0.", EXAMPLE)
            return holder[key]
        return _part(where, str(key), holder)
    raise _refused(node)


def _part(where: str, name: str, holder: Any) -> Any:
    if holder is None:
        return None
    if isinstance(holder, list):
        return [_part(where, name, each) for each in holder]
    if isinstance(holder, Quantity):
        return _entry(where, name, {"value": holder.value, "low": holder.low, "high": holder.high})
    if isinstance(holder, Mapping):
        return _entry(where, name, holder)
    raise ConfigError(f"--fail-if: {where} is {_shown(holder)}, and has no {name}.", EXAMPLE)


def _entry(where: str, name: str, holder: Mapping[str, Any]) -> Any:
    if name not in holder:
        raise UnknownNameError(f"field of {where} in --fail-if", name, holder)
    return holder[name]


def _value(node: ast.expr, fields: Mapping[str, Any]) -> Any:
    """Evaluate a node.

    Raises:
        ConfigError: If it is none of the grammar's, or its operands do not go together.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        return node.value
    if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
        return _scalar(node, _field(node, fields))
    if isinstance(node, ast.BoolOp):
        parts = [_truth(part, fields) for part in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _truth(node.operand, fields)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, fields)
    if isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        return COMPUTED[type(node.op)](_number(node.left, fields), _number(node.right, fields))
    if isinstance(node, ast.Compare):
        return _comparison(node, fields)
    if isinstance(node, ast.Call):
        return _call(node, fields)
    raise _refused(node)


def _comparison(node: ast.Compare, fields: Mapping[str, Any]) -> bool:
    values = [_value(part, fields) for part in (node.left, *node.comparators)]
    found = []
    for sign, left, right in zip(node.ops, values, values[1:], strict=False):
        if type(sign) not in COMPARED:
            raise _refused(node)
        if isinstance(left, str) != isinstance(right, str):
            raise ConfigError(f"--fail-if compares a text and a number: {ast.unparse(node)}.", EXAMPLE)
        found.append(COMPARED[type(sign)](left, right))
    return all(found)


def _call(node: ast.Call, fields: Mapping[str, Any]) -> Any:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS or len(node.args) != 1 or node.keywords:
        raise _refused(node)
    if name == "abs":
        return abs(_number(node.args[0], fields))
    found = _field(node.args[0], fields)
    if found is None or found == []:
        if name == "len" and found == []:
            return 0
        raise _NotMeasuredError(ast.unparse(node.args[0]))
    if not isinstance(found, (list, dict)) or (name != "len" and isinstance(found, dict)):
        raise ConfigError(f"--fail-if: {ast.unparse(node.args[0])} is no list.", EXAMPLE)
    if name == "len":
        return len(found)
    return FUNCTIONS[name]([_checked(node, _scalar(node, each)) for each in found])


def _truth(node: ast.expr, fields: Mapping[str, Any]) -> bool:
    found = _value(node, fields)
    if not isinstance(found, bool):
        raise ConfigError(f"--fail-if: {ast.unparse(node)} is no comparison.", EXAMPLE)
    return found


def _number(node: ast.expr, fields: Mapping[str, Any]) -> float:
    return _checked(node, _value(node, fields))


def _checked(node: ast.expr, found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise ConfigError(f"--fail-if: {ast.unparse(node)} is no number.", EXAMPLE)
    return found


def _scalar(node: ast.expr, found: Any) -> Any:
    """Return what can be compared.

    Raises:
        _NotMeasuredError: If there is no number.
        ConfigError: If it is several.
    """
    if isinstance(found, Quantity):
        found = found.value
    if found is None or (isinstance(found, float) and math.isnan(found)):
        raise _NotMeasuredError(ast.unparse(node))
    if isinstance(found, list):
        name = ast.unparse(node)
        raise ConfigError(f"--fail-if: {name} is a list.", f"Use min({name}), max({name}) or {name}[0].")
    if isinstance(found, dict):
        raise ConfigError(f"--fail-if: {ast.unparse(node)} holds {', '.join(found)}.", "Name one of them.")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Quantity):
        return f"{value.value:.6g} ({value.low:.6g} to {value.high:.6g})"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, dict)):
        return f"{len(value)} entries"
    return str(value)


def _refused(node: ast.AST) -> ConfigError:
    return ConfigError(f"--fail-if understands no {ast.unparse(node)!r}.", EXAMPLE)
