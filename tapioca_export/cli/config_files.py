"""Config files as the defaults of a command's options: what a file may hold, and in which types.

Knows no option by itself: types are those of the configuration's fields, as in the published schema.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import plain_yaml
from ..config_keys import LISTS, PAIRS, TEXTS, TYPES, scalar_types
from ..errors import ConfigError, LoadError, UnknownNameError, first_line, reason, shortened

LARGEST_CONFIG = 1 << 20  # bytes
CONFIG_FILE = "tapioca_export.config_file"  # where a context keeps the file, and the context of the command
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make a file's values the defaults; a key that is no option of the command is an error."""
    if path is None:
        return
    known = {p.name: p for p in ctx.command.params if p.name in TYPES}
    values, seen = {}, set()
    for key, value in _parse_config(path).items():
        key = _text(key, f"a key in {path}")
        name = key.replace("-", "_")
        if name in seen:
            raise ConfigError(f"{path} sets {key} twice, with - and with _.", "Leave one of them out.")
        seen.add(name)
        if name not in known:
            _refuse_table(path, key, value, [name for name in PAIRS if name in known])
            names = [str(name).replace("_", "-") for name in known]
            raise UnknownNameError(f"key in {path}", key, names)
        if value is not None:  # YAML's way not to set something
            try:
                values[name] = _config_value(value, known[name], f"{path}: {key}")
            except click.UsageError as error:
                values[name] = partial(_refuse, error)  # unless a flag wins over it
    ctx.default_map = {**(ctx.default_map or {}), **values}
    ctx.meta[CONFIG_FILE] = path, ctx


def _refuse(error: click.UsageError) -> None:
    raise error


def _refuse_table(path: Path, key: str, value: Any, tables: Sequence[str]) -> None:
    """Refuse settings that stand in a table, or in a list of tables.

    Raises:
        ConfigError: Saying where they belong.
    """
    if any(isinstance(part, Mapping) for part in (value if isinstance(value, list) else [value])):
        names = ", ".join(name.replace("_", "-") for name in tables) or "none"
        raise ConfigError(
            f"{path} has a table {shortened(key)!r}, and settings stand in no table.",
            f"Move its keys to the top of the file, above any table. Settings that are tables: {names}.",
        )


def in_config_file(meta: Mapping[str, Any], message: str) -> str:
    """Return a message with the config file before it, if it begins with an option that the file sets.

    Args:
        meta: What contexts of the command share.
        message: One that is about an option's value begins with the option, or with what is unknown.
    """
    path, ctx = meta.get(CONFIG_FILE, (None, None))
    about = re.match(r"(?:Invalid value for ')?--([a-z-]+)|Unknown ([a-z]+) ", message)
    if ctx is None or about is None:
        return message
    name = (about[1] or about[2]).replace("-", "_")
    is_set = ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP
    return f"{path}: {message}" if is_set else message


def _config_value(value: Any, parameter: click.Parameter, where: str) -> Any:
    """Return a file's value as the command line would give it, for the option to check.

    Raises:
        ConfigError: If it is a list or a table where the option takes one value, or no text.
        click.UsageError: If it is of another type.
    """
    name = str(parameter.name)
    kinds = scalar_types(TYPES[name])
    if isinstance(value, Mapping) and name in PAIRS:
        table = {_text(key, where): _one_value(part, kinds, name, where) for key, part in value.items()}
        return [f"{key}={path}" for key, path in table.items()] if parameter.multiple else table
    if isinstance(value, list) and (parameter.multiple or name in LISTS):
        return [_one_value(item, kinds, name, where) for item in value]
    one = _one_value(value, kinds | {str} if name in TEXTS else kinds, name, where)
    return [one] if parameter.multiple else one


def _one_value(value: Any, kinds: Collection[type], name: str, where: str) -> str:
    """Return what is one value of these types, as text.

    Raises:
        ConfigError: If it is a list, a table, nothing, or no text.
        click.UsageError: If it is of another type.
    """
    for shape, what in ((list, "list"), (Mapping, "table"), (type(None), "missing value")):
        if isinstance(value, shape):
            raise ConfigError(f"{where} is a {what}.", "Give one value, as on the command line.")
    is_whole = isinstance(value, float) and value.is_integer() and float not in kinds
    kind = int if is_whole else type(value)
    if kind not in kinds and not (kind is int and float in kinds):
        shown = repr(shortened(value)) if isinstance(value, str) else _text(value, where)
        wanted = " or ".join(words for kind, words in WORDS.items() if kind in kinds)
        option = "--" + name.replace("_", "-")
        file = where.rpartition(": ")[0]
        raise click.UsageError(f"{file}: Invalid value for {option!r}: {shown} is not {wanted}.")
    return _text(int(value) if is_whole else value, where)


def _text(value: Any, where: str) -> str:
    """Return a value as text.

    Raises:
        ConfigError: If it has thousands of digits, or what no command line could hold.
    """
    try:
        text = str(value)
        text.encode("utf-8")
    except ValueError as error:
        raise ConfigError(f"{where} is no text: {first_line(error)}.", "Give a shorter one.") from error
    if "\0" in text:
        raise ConfigError(f"{where} holds a NUL character.", "Leave it out.")
    return text


def _parse_config(path: Path) -> Mapping[str, Any]:
    """Read TOML or YAML."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise LoadError(f"Config file {path} has more than {LARGEST_CONFIG >> 20} MiB.", "Name another.")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LoadError(f"Cannot read config file {path}: {reason(error)}.") from error
    try:
        values = (plain_yaml.load(text) or {}) if path.suffix in (".yaml", ".yml") else _parse_toml(text)
    except (ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise LoadError(
            f"Config file {path} is malformed: {what}.", "Write TOML, or YAML in a .yaml file."
        ) from error
    if not isinstance(values, Mapping):
        raise LoadError(
            f"Config file {path} is not a table of options.", "Write lines such as epsilon = 0.05."
        )
    return values


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(text)
    import tomli

    return tomli.loads(text)
