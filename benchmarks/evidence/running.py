"""What the commands have in common: models measured in processes of their own, and the JSON they make."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.recording import origin

from .shifts import Subject

DIGITS = 6
Make = Callable[..., Subject]
Record = Callable[[Subject], dict[str, Any]]


def each(function: Callable[..., Any], arguments: Sequence[Sequence[Any]], jobs: int) -> Iterator[Any]:
    """Call a function with each of the arguments, in processes of one thread, and yield what it returns.

    Function and arguments have to be found by another process: those of a module are.
    """
    # A process that has run PyTorch cannot be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for future in [pool.submit(function, *given) for given in arguments]:
            yield future.result()


def train_each(train: Callable[..., Any], arguments: Sequence[Sequence[Any]], jobs: int) -> None:
    """Train models in processes of their own.

    Here and in `run` the last come first: families name their largest models last, and all processes end at
    about the same time if those do not begin last.
    """
    for _ in each(train, arguments[::-1], jobs):
        pass


def measure(make: Make, member: Sequence[Any], record: Record, folder: Path | None) -> dict[str, Any]:
    """Measure one model on one thread.

    Args:
        make: Makes the subject of `member`; a function of a module, so that another process finds it.
        member: What tells the models of a family apart.
        record: Measures it, and returns what is kept.
        folder: Where to keep the record, and look for it first; None keeps nothing.
    """
    torch.set_num_threads(1)
    kept = None if folder is None else folder / f"{'-'.join(Path(str(part)).name for part in member)}.json"
    if kept is not None and kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    clock = time.perf_counter()
    made: dict[str, Any] = rounded(record(make(*member)))
    made["seconds"] = round(time.perf_counter() - clock, 1)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(made), encoding="utf-8")
    return made


def run(
    make: Make,
    members: Sequence[Sequence[Any]],
    output: Path,
    *,
    jobs: int,
    record: Record,
    resume: Path | None = None,
    about: dict[str, Any],
) -> None:
    """Measure all models of a family and write the JSON.

    Args:
        make: Makes the subject of a member.
        members: What tells the models of the family apart; the records have their order.
        output: The JSON file.
        jobs: Processes.
        record: Measures a subject.
        resume: Folder of finished records.
        about: What else the file says.
    """
    started, records = time.perf_counter(), []
    work = [(make, member, record, resume) for member in members[::-1]]
    for made in itertools.starmap(measure, work) if jobs == 1 else each(measure, work, jobs):
        records.append(made)
        click.echo(f"{made['name']}: {made['seconds']} s")
    records.reverse()
    seconds = round(time.perf_counter() - started, 1)
    # What was finished before took its time then: each model says its own.
    took = {} if resume else {"seconds": seconds}
    head = json.dumps({**origin(), **about, "jobs": jobs, **took}, indent=1).removesuffix("\n}")
    models = ",\n".join(map(json.dumps, records))  # a line a model
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    aside.write_text(f'{head},\n "models": [\n{models}\n]}}\n', encoding="utf-8")
    aside.replace(output)


def rounded(value: Any) -> Any:
    """Return a value as JSON has it, its numbers with six significant digits."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def options(output: Path) -> Callable[[Any], Any]:
    """Return a decorator with the options that all commands take."""

    def add(function: Any) -> Any:
        for option in (
            click.option("--smoke", is_flag=True, help="A minute's worth on untrained models: does it run?"),
            click.option("--jobs", default=2, show_default=True, help="Models measured at a time."),
            click.option("--resume", type=click.Path(path_type=Path), help="Folder of finished models."),
            click.option("--output", type=click.Path(path_type=Path), default=output),
        ):
            function = option(function)
        return function

    return add
