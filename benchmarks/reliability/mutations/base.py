"""What a mutant is: the product with one thing broken, in a real run; and what became of it.

A scenario is one command on tiny models. Its control is the same command with nothing broken, which has to
succeed: else whatever stops its mutants proves nothing. A mutant is caught only by what the product itself
says: an error of its own tree, or a `check` or `verify` that fails. Any other exception is a crash, not a
proof, and counts as none.

Knows nothing about which mutants there are.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tapioca_export.artifacts import Verification
from tapioca_export.cli import main
from tapioca_export.errors import TapiocaError, first_line

from .models import HOME

Patch = pytest.MonkeyPatch


class NotPassedError(Exception):
    """A gate or a verification that was not passed; its text says why."""


@dataclass(frozen=True)
class Job:
    """What a scenario reads and writes: a folder of its own, and what was prepared in it by name."""

    folder: Path
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """Where the command writes."""
        return self.folder / "out"

    def __getitem__(self, name: str) -> Any:
        """Return what was prepared under a name."""
        return self.given[name]

    def copied(self, source: Path, name: str) -> Path:
        """Copy a folder into the job's own, so that it can be spoilt; files that are large are linked."""
        return shutil.copytree(source, self.folder / name)


@dataclass(frozen=True)
class Scenario:
    """A command on a tiny model; `prepare` puts what it reads into the job's folder, `run` runs it."""

    name: str
    command: str
    prepare: Callable[[Job], dict[str, Any]]
    run: Callable[[Job], None]
    is_quick: bool = True


@dataclass(frozen=True)
class Mutant:
    """One fault: `spoil` patches a function of the product, or a file of the job, before the command runs."""

    name: str
    broken: str
    scenario: Scenario
    spoil: Callable[[Patch, Job], None]

    @property
    def full_name(self) -> str:
        """Its name with that of its scenario."""
        return f"{self.scenario.name}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What became of a command: None where it succeeded; else what ended it, by its type and first line."""

    by: str | None = None
    message: str = ""
    is_proof: bool = True

    @property
    def is_caught(self) -> bool:
        """Tell whether the product itself refused."""
        return self.by is not None and self.is_proof


def attempt(scenario: Scenario, spoil: Callable[[Patch, Job], None] | None = None) -> Outcome:
    """Run a scenario's command once, with something broken or nothing."""
    with tempfile.TemporaryDirectory(prefix="tapioca-mutant-") as scratch, Patch.context() as patch:
        job = Job(Path(scratch))
        job.given.update(scenario.prepare(job))
        if spoil is not None:
            spoil(patch, job)
        torch.set_num_threads(1)
        try:
            scenario.run(job)
        except TapiocaError as error:
            return Outcome(type(error).__name__, shortened(error.message, scratch))
        except NotPassedError as error:
            return Outcome(scenario.command, shortened(str(error), scratch))
        except Exception as error:  # whatever a broken product raises that is no refusal
            return Outcome(type(error).__name__, shortened(first_line(error), scratch), is_proof=False)
    return Outcome()


def shortened(message: str, scratch: str) -> str:
    """Return the first line of a message, without the names of scratch folders."""
    line = message.strip().splitlines()[0]
    for folder in (scratch, str(HOME)):
        line = line.replace(f"{folder}/", "").replace(folder, ".")
    return line


def gate(*arguments: object) -> None:
    """Run `check` as a pipeline does.

    Raises:
        NotPassedError: If it exits with another code than 0.
    """
    from click.testing import CliRunner

    result = CliRunner().invoke(main, ["check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise NotPassedError(next((line for line in lines if "FAIL" in line or "Error" in line), lines[0]))


def passed(found: Verification) -> None:
    """Hold a verification to be passed.

    Raises:
        NotPassedError: With its verdict.
    """
    if not found.passed:
        raise NotPassedError(" ".join(found.verdict))


# --- breaking -------------------------------------------------------------------------------


def behind(patch: Patch, place: Any, name: str, spoil: Callable[..., Any]) -> None:
    """Let a function work, then `spoil(result, *arguments)`; what that returns counts, unless it is None."""
    own = getattr(place, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        found = own(*arguments, **named)
        instead = spoil(found, *arguments)
        return found if instead is None else instead

    patch.setattr(place, name, broken)


def before(patch: Patch, place: Any, name: str, spoil: Callable[..., tuple[Any, ...]]) -> None:
    """Let a function work on other arguments: those that `spoil(*arguments)` returns."""
    own = getattr(place, name)
    patch.setattr(place, name, lambda *arguments, **named: own(*spoil(*arguments), **named))


@contextmanager
def no_logging() -> Iterator[None]:
    """Keep what libraries say of broken models away from the results."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def controls(mutants: Iterable[Mutant]) -> list[Scenario]:
    """Return the scenarios of mutants, each once."""
    return list({mutant.scenario.name: mutant.scenario for mutant in mutants}.values())
