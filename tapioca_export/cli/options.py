"""The configuration's fields as Click options."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import click

from ..bars import DISABLED
from ..config import RunConfig
from ..config_keys import TARGETS
from ..numbering import LayerName
from .config_files import read_config
from .logs import show_logs

FIELDS = {item.name: item for item in fields(RunConfig)}
TYPES = get_type_hints(RunConfig)


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
        callback=read_config, help="TOML or YAML file with these options' names; flags win.",
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
        "-q",
        "--quiet",
        is_flag=True,
        is_eager=True,
        callback=_silence,
        help="Print nothing but errors, and with --json the artifact.",
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


VARIANTS = click.option(
    "--variants",
    metavar="SELECTIONS",
    help="Write the whole model and these variants over one weight file: selection files, comma-separated; "
    "FILE@K takes the first K layers of its search.",
)
