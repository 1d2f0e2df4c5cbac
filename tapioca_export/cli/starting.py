"""Commands to begin with: `init` writes a config file, `schema` says what files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import tapioca_export as library

from .commands import (
    EXPORT,
    LOADING,
    OUTPUT,
    PROBING,
    PROMPTS,
    SAMPLES,
    SEARCH,
    TIMING,
    _config,
    _prepare_libraries,
    main,
)
from .options import options


@main.command()
@click.argument("file", type=click.Path(path_type=Path), default="tapioca.toml")
@options(*LOADING, *SAMPLES, *PROMPTS, *OUTPUT, *PROBING, *SEARCH, *EXPORT, *TIMING, prints=False)
def init(file: Path, **flags: Any) -> None:
    """Write a commented config FILE [default: tapioca.toml] for a model and its data, to `run -c`."""
    written = library.init(_config(flags, fills=False), file)
    click.echo(f"{written}: read it, then tapioca-export run -c {written}")


@main.command()
@click.argument("kind", required=False)
def schema(kind: str | None) -> None:
    """Print the JSON Schema of a KIND of artifact, of the config file (config), or of all."""
    _prepare_libraries()
    click.echo(json.dumps(library.schema(kind), indent=1))
