"""The configuration's fields as Click options, and config files as their defaults."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from .. import plain_yaml
from ..bars import DISABLED
from ..config import Doses, RunConfig
from ..errors import ConfigError, LoadError, UnknownNameError, first_line, reason, shortened
from ..numbering import LayerName
from .logs import show_logs

FIELDS = {item.name: item for item in fields(RunConfig)}
TYPES = get_type_hints(RunConfig)
# On the command line a text with commas, in a config file a list as well.
LISTS = ("drop", "compare", "layers", "alphas")
# On the command line pairs, in a config file a table as well.
TARGETS = ("target", "target_report")
PAIRS = ("columns", "weights", *TARGETS)
LARGEST_CONFIG = 1 << 20  # bytes
CONFIG_FILE = "tapioca_export.config_file"  # where a context keeps the file, and the context of the command
# What a config file may hold, where the command takes it.
SETTINGS = {*FIELDS, *LISTS, *(item.name for item in fields(Doses))}


def _layers(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[LayerName, ...]:
    """Parse `3,7`, `encoder:3,decoder:7` or `4.attention`, or a config file's list."""
    if value is None:
        return ()
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        return tuple(_layer(str(part)) for part in parts)
    except ValueError:
        raise click.BadParameter(
            "give layer numbers separated by commas, such as 3,7, or encoder:3,decoder:7, or 4.attention."
        ) from None


def _layer(text: str) -> LayerName:
    """Parse `3`, `encoder:3` or `4.attention`."""
    stack, colon, named = text.strip().rpartition(":")
    number, dot, part = named.partition(".")
    if dot and not part.isidentifier():
        raise ValueError(text)
    layer: LayerName = f"{stack}:{int(number)}" if colon else int(number)
    return f"{layer}.{part}" if dot else layer


def _scales(ctx: click.Context, parameter: click.Parameter, value: Any) -> dict[LayerName, float]:
    """Parse `4:0.5` or `encoder:3:0.5,decoder:7:0.25`."""
    parts = [part.rpartition(":") for part in str(value).split(",")] if value else []
    try:
        found = {_layer(layer): float(scale) for layer, _, scale in parts}
    except ValueError:
        raise click.BadParameter("give layers and factors such as 4:0.5, or encoder:3:0.5.") from None
    if len(found) < len(parts):
        raise click.BadParameter("a layer is named twice.")
    return found


def _names(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[str, ...] | None:
    """Parse `tale,random`, or a config file's list; None where the option is not given."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).split(",")
    return tuple(name for part in parts if (name := str(part).strip()))


def _numbers(ctx: click.Context, parameter: click.Parameter, value: Any) -> tuple[float, ...]:
    """Parse `0,0.5,1`, or a config file's list."""
    try:
        return tuple(float(part) for part in (value if isinstance(value, list) else str(value).split(",")))
    except ValueError:
        raise click.BadParameter("give numbers separated by commas, such as 0,0.5,1,1.5.") from None


def _columns(ctx: click.Context, parameter: click.Parameter, value: Any) -> dict[str, str]:
    """Parse `text=review,label=stars`, or a config file's table."""
    if isinstance(value, Mapping):
        pairs = [(str(name), str(column)) for name, column in value.items()]
    else:
        parts = [part.partition("=") for part in str(value).split(",")] if value else []
        pairs = [(name.strip(), column.strip()) for name, _, column in parts]
    if not all(name and column for name, column in pairs) or len(dict(pairs)) < len(pairs):
        raise click.BadParameter("give pairs such as text=review,label=stars, each name once.")
    return dict(pairs)


def _weights(ctx: click.Context, parameter: click.Parameter, value: Any) -> dict[str, float]:
    """Parse `airline=2,banking=1`, or a config file's table."""
    try:
        return {name: float(weight) for name, weight in _columns(ctx, parameter, value).items()}
    except (ValueError, click.BadParameter):
        raise click.BadParameter("give pairs such as airline=2,banking=1, each name once.") from None


def _targets(ctx: click.Context, parameter: click.Parameter, values: Any) -> Path | dict[str, Path] | None:
    """Parse one PATH, or NAME=PATH once for each domain; a path that is there may hold a `=`."""
    if not values:
        return None
    pairs: list[tuple[str, str]] = []
    for value in map(str, values):
        name, equals, path = value.partition("=")
        if equals and not os.path.lexists(value):
            pairs.append((name, path))
        elif len(values) == 1:
            return Path(value)
        else:
            pairs.append(("", value))
    option = parameter.opts[0]
    example = f"{option} airline=a.jsonl {option} banking=b.jsonl"
    for name, path in pairs:
        if not (name and path):
            raise click.BadParameter(f"each of several domains has a name and a path: {example}.")
    for name, _ in pairs:
        if [other for other, _ in pairs].count(name) > 1:
            raise click.BadParameter(f"{name!r} is given twice; name each domain once: {example}.")
    return {name: Path(path) for name, path in pairs}


def _option(name: str) -> Callable[[Any], Any]:
    """Build the Click option of one field of the configuration."""
    item, annotation = FIELDS[name], TYPES[name]
    settings: dict[str, Any] = {
        "help": item.metadata["help"],
        "metavar": item.metadata["metavar"],
        "default": None if item.default is MISSING else item.default,
    }
    if name == "drop":
        settings |= {"callback": _layers, "default": None, "type": click.UNPROCESSED}
    elif name == "columns":
        settings |= {"callback": _columns, "default": None, "type": click.UNPROCESSED}
    elif name == "alphas":
        default = ",".join(f"{alpha:g}" for alpha in RunConfig.alphas)
        settings |= {"callback": _numbers, "default": default, "type": click.UNPROCESSED}
    elif name == "weights":
        settings |= {"callback": _weights, "default": None, "type": click.UNPROCESSED}
    elif name in TARGETS:
        settings |= {"callback": _targets, "multiple": True, "type": click.UNPROCESSED}
    elif annotation is bool:
        settings |= {"is_flag": True, "metavar": None}
    elif getattr(annotation, "__origin__", None) is tuple:
        settings |= {"multiple": True, "type": annotation.__args__[0]}
    else:
        plain = [kind for kind in getattr(annotation, "__args__", (annotation,)) if kind is not type(None)]
        settings["type"] = click.Path(path_type=Path) if plain[0] is Path else plain[0]
    if name == "model":
        settings["required"] = True
        del settings["default"]  # to Click 8.3 and newer, a default of None is a value
    settings["show_default"] = annotation is not bool and settings.get("default") not in (
        None,
        (),
        "",
    )
    short = item.metadata["short"]
    return click.option(*([f"-{short}"] if short else []), "--" + name.replace("_", "-"), **settings)


def options(*names: str, prints: bool = True) -> Callable[[Any], Any]:
    """Add options of the configuration, the config file and, where a command prints an artifact, how."""
    from_file = click.option(
        "-c", "--config", type=click.Path(path_type=Path), is_eager=True, expose_value=False,
        callback=_read_config, help="TOML or YAML file with these options' names; flags win.",
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        command = from_file(printing(command) if prints else command)
        for name in reversed(names):
            command = _option(name)(command)
        return command

    return decorate


def printing(command: Any) -> Any:
    """Add how much to print, and how."""
    quiet = click.option(
        "-q", "--quiet", is_flag=True, is_eager=True, callback=_silence, help="Print nothing but errors."
    )
    verbose = click.option(
        "-v", "--verbose", is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
        help="Print what is found on the way, and what transformers warns of.",
    )  # fmt: skip
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the artifact, and nothing else.")
    return quiet(verbose(as_json(command)))


def _silence(ctx: click.Context, parameter: click.Parameter, quiet: bool) -> bool:
    """Keep progress away, in worker processes too."""
    if quiet:
        _refuse_both(ctx, "quiet")
        os.environ[DISABLED] = "1"
        show_logs(logging.ERROR)
    return quiet


def _show_all(ctx: click.Context, parameter: click.Parameter, verbose: bool) -> None:
    """Show all that is logged."""
    if verbose:
        _refuse_both(ctx, "verbose")
        show_logs(logging.DEBUG)


def _refuse_both(ctx: click.Context, asked: str) -> None:
    if ctx.meta.setdefault("tapioca_export.loudness", asked) != asked:
        raise click.UsageError("--quiet and --verbose exclude each other.")


def comparing(command: Any) -> Any:
    """Add which criteria to compare."""
    help_ = "Compare these at --max-drop-layers on report rows, such as tale,tapioca,random; see `list`."
    option = click.option(
        "--compare", metavar="NAMES", callback=_names, default=None, type=click.UNPROCESSED, help=help_
    )
    return option(command)


def planning(command: Any) -> Any:
    """Add a way to ask first."""
    help_ = "Predict layer forwards, operations, time, memory and disk; search nothing, write nothing."
    return click.option("--dry-run", is_flag=True, help=help_)(command)


def _read_config(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make a file's values the defaults; a key that is no option of the command is an error."""
    if path is None:
        return
    known = {p.name: p for p in ctx.command.params if p.name in SETTINGS}
    values = {}
    for key, value in _parse_config(path).items():
        key = _text(key, f"a key in {path}")
        name = key.replace("-", "_")
        if name not in known:
            _refuse_table(path, key, value, [name for name in PAIRS if name in known])
            names = [str(name).replace("_", "-") for name in known]
            raise UnknownNameError(f"key in {path}", key, names)
        if value is not None:  # YAML's way not to set something
            values[name] = _config_value(value, known[name], f"{path}: {key}")
    ctx.default_map = {**(ctx.default_map or {}), **values}
    ctx.meta[CONFIG_FILE] = path, ctx


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
    """
    if isinstance(value, Mapping) and parameter.name in PAIRS:
        table = {_text(name, where): _one_value(part, where) for name, part in value.items()}
        return [f"{name}={path}" for name, path in table.items()] if parameter.multiple else table
    if isinstance(value, list) and (parameter.multiple or parameter.name in LISTS):
        return [_one_value(item, where) for item in value]
    return [_one_value(value, where)] if parameter.multiple else _one_value(value, where)


def _one_value(value: Any, where: str) -> str:
    """Return what is one value, as text.

    Raises:
        ConfigError: If it is a list, a table, nothing, or no text.
    """
    for kind, name in ((list, "list"), (Mapping, "table"), (type(None), "missing value")):
        if isinstance(value, kind):
            raise ConfigError(f"{where} is a {name}.", "Give one value, as on the command line.")
    return _text(value, where)


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


VARIANTS = click.option(
    "--variants",
    metavar="SELECTIONS",
    help="Write the whole model and these variants over one weight file: selection files, comma-separated; "
    "FILE@K takes the first K layers of its search.",
)
