"""The reference: commands, options, files and Python functions, as the code has them.

python docs/reference.py            # print it
python docs/reference.py --write    # write docs/reference.md; a test checks that it is up to date
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import tapioca_export
from tapioca_export import artifacts, treatments
from tapioca_export.cli import main as command_line
from tapioca_export.schemas import kinds, schema

PAGE = Path(__file__).with_name("reference.md")


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = (_intro, _commands, _options, _files, _functions)
    return "\n".join(line for part in parts for line in (*part(), "")).rstrip() + "\n"


def _intro() -> Iterator[str]:
    yield "# Reference"
    yield ""
    yield "Made of the code by `python docs/reference.py --write`. Config files (`-c FILE`, TOML or YAML)"
    yield "take the options' names with underscores; flags win. Exit codes: 0 done, 1 input that can be"
    yield "mended, 2 wrong usage, 3 a gate missed or something not as recorded, 130 stopped by Ctrl-C,"
    yield "143 by SIGTERM."


def _listed() -> dict[str, click.Command]:
    context = click.Context(command_line)
    return {name: command_line.commands[name] for name in command_line.list_commands(context)}


def _commands() -> Iterator[str]:
    yield "## Commands"
    yield ""
    yield "| command | arguments | what it does |"
    yield "| --- | --- | --- |"
    for name, command in _listed().items():
        arguments = " ".join(p.make_metavar(click.Context(command)) for p in _of(command, click.Argument))
        words = inspect.cleandoc(command.help or "").splitlines()[0]
        yield f"| `{name}` | {_code(arguments)} | {_cell(words)} |"


def _options() -> Iterator[str]:
    """Every option once for each help text that it has, with the commands that take it."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, command in _listed().items():
        context = click.Context(command)
        for option in _of(command, click.Option):
            record = option.get_help_record(context)
            if record is not None:
                found[record].append(name)
    yield "## Options"
    yield ""
    yield "| option | meaning | commands |"
    yield "| --- | --- | --- |"
    for (names, words), commands in sorted(found.items(), key=lambda item: item[0][0].split("--")[-1]):
        yield f"| {_code(names)} | {_cell(words)} | {', '.join(commands)} |"


def _of(command: click.Command, kind: type[click.Parameter]) -> list[Any]:
    return [parameter for parameter in command.params if isinstance(parameter, kind)]


def _files() -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "`tapioca-export schema KIND` prints the whole JSON Schema of each. Keys marked * are left out"
    yield "where they say nothing."
    parts: dict[str, Any] = {}
    for kind, cls in sorted(kinds().items()):
        described = schema(kind)
        parts |= described.get("$defs", {})
        sparse = {item.name for item in fields(cls) if item.metadata}
        yield from _object(kind, inspect.cleandoc(cls.__doc__ or ""), described["properties"], sparse)
    yield ""
    yield "## Parts of files"
    for name, described in sorted(parts.items()):
        part = next(vars(module)[name] for module in (artifacts, treatments) if name in vars(module))
        sparse = {item.name for item in fields(part) if item.metadata}
        yield from _object(name, inspect.cleandoc(part.__doc__ or ""), described["properties"], sparse)


def _object(name: str, words: str, properties: dict[str, Any], sparse: set[str]) -> Iterator[str]:
    yield ""
    yield f"### {name}"
    yield ""
    yield " ".join(words.split())
    yield ""
    yield "| key | type |"
    yield "| --- | --- |"
    for key, described in properties.items():
        yield f"| `{key}`{'*' if key in sparse else ''} | {_cell(_type(described))} |"


def _type(described: dict[str, Any]) -> str:
    """Return a JSON Schema's type in words."""
    if "$ref" in described:
        return str(described["$ref"]).rpartition("/")[2]
    if "const" in described:
        return repr(described["const"]).replace("'", '"')
    if "enum" in described:
        return " or ".join(f'"{value}"' for value in described["enum"])
    if "anyOf" in described:
        return " or ".join(dict.fromkeys(map(_type, described["anyOf"])))
    kind = str(described.get("type", "any"))
    if kind == "array":
        inner = described.get("items")
        if inner is None and (places := described.get("prefixItems")):
            return f"[{', '.join(map(_type, places))}]"
        return f"list of {_type(inner)}" if inner else "list"
    if kind == "object" and isinstance(inner := described.get("additionalProperties"), dict):
        return f"object of {_type(inner)}"
    return kind


def _functions() -> Iterator[str]:
    yield "## Python"
    yield ""
    yield "| name | what it is |"
    yield "| --- | --- |"
    for name in tapioca_export.__all__:
        found = getattr(tapioca_export, name)
        arguments = "" if inspect.isclass(found) else f"({', '.join(inspect.signature(found).parameters)})"
        words = " ".join(inspect.cleandoc(found.__doc__ or "").split("\n\n")[0].split())
        yield f"| `{name}{arguments}` | {_cell(words)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text.strip() else ""


@click.command(help=__doc__)
@click.option("--write", is_flag=True, help="Write docs/reference.md.")
def main(write: bool) -> None:
    """Print the page, or write it."""
    if write:
        PAGE.write_text(reference(), encoding="utf-8")
    else:
        click.echo(reference(), nl=False)


if __name__ == "__main__":
    main()
