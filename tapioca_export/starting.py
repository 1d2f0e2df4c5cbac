"""A commented config file for a model and its data, to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any

from . import graph_files, reading, steps
from .artifacts import write_text
from .config import RunConfig
from .errors import OutputError
from .models import LoadedModel, outline_model
from .samples import Samples

# Written whatever they are: what a user will want to change first.
SHOWN = ("model", "task", "id", "target", "output")
# What chooses layers where no row has a label.
LABEL_FREE = "tapioca"
# Belongs to the command line.
LEFT_OUT = ("overwrite",)


def init(config: RunConfig, file: Path = Path("tapioca.toml")) -> Path:
    """Write a config file for `run`: what is given, and every other setting as a comment with its default.

    The model and the samples are looked at, and what `run` would refuse of them is refused. No weights are
    loaded.

    Args:
        config: The model, its samples, and any other setting.
        file: Where to write; `config.overwrite` says whether it may be replaced.

    Raises:
        OutputError: If the file is there already, or cannot be written.
        TapiocaError: If the model or the samples cannot be used.
    """
    if file.exists() and not config.overwrite:
        raise OutputError(f"{file} is there already.", "Name another file, or add --overwrite.")
    steps.check(config, searches=True)
    graph_files.check(config)
    task, processor = reading.load_task(config)
    roles = reading.load_roles(config, task, processor)
    model = outline_model(config.model, task.name, reading.load_options(config))
    known = replace(config, task=task.name)
    if not roles[f"{config.select_on}-select"].is_labelled and config.criterion == RunConfig.criterion:
        known = replace(known, criterion=LABEL_FREE)
    write_text(file, "\n".join((*_head(file, model, roles, config.select_on), "", *_settings(known), "")))
    return file


def _head(file: Path, model: LoadedModel, roles: Mapping[str, Samples], select_on: str) -> Iterator[str]:
    """Say what was looked at."""
    kind = model.network.config.model_type
    yield f"# tapioca-export run -c {file.name}"
    yield "#"
    yield f"# {model.source}: {kind}, {model.task.name}, {model.numbering}, metric {model.task.metric}."
    for name in ("id", "target"):
        chosen, reported = len(roles[f"{name}-select"]), len(roles[f"{name}-report"])
        yield f"# {name} samples: {chosen} rows choose layers, {reported} are kept for the report."
    if not roles[f"{select_on}-select"].is_labelled:
        yield f"# The {select_on} rows have no labels: a criterion that needs none is set."
    yield "#"
    yield "# Keys are the options of `tapioca-export run`; flags win over this file. Paths start where the"
    yield "# command is given. A key behind # has its default, or none; take # away to set it."
    yield "# `tapioca-export schema config` prints the schema of this file."


def _settings(config: RunConfig) -> Iterator[str]:
    """Yield each setting with its help; commented out where it has its default."""
    for item in fields(RunConfig):
        if item.name in LEFT_OUT:
            continue
        value, default = getattr(config, item.name), _default(item)
        key = item.name.replace("_", "-")
        yield f"# {item.metadata['help']}"
        if value != default or (item.name in SHOWN and value is not None):
            yield f"{key} = {_toml(value)}"
        elif default is None:
            yield f"#{key} ="
        else:
            yield f"#{key} = {_toml(default)}"
        yield ""


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _toml(value: Any) -> str:
    """Return a value as TOML writes it: its texts are JSON's, but for the one character it wants escaped."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml(str(name))} = {_toml(part)}" for name, part in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
