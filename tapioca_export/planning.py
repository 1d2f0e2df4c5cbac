"""What a search, or a whole run, would cost: asked before it is begun."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from . import graph_files, provenance, reading, steps, trying
from .artifacts import Bounds, Plan, Selection, check_output
from .config import RunConfig
from .costing import PlanSettings, predict, run_bytes
from .errors import ConfigError, OutputError, TapiocaError
from .graphs import is_graph
from .memory import peak_resident_bytes
from .models import LoadedModel
from .precision import DTYPES
from .samples import Samples, Side
from .stopping import stopping_over_errors


def plan(config: RunConfig, command: Literal["select", "run"] = "select") -> Plan:
    """Return what a command would cost here, and refuse what it would refuse; the output is not written.

    Of `run`, a model of few layers is exported, proven and timed as well, and what that took is in `stages`.
    """
    steps.check(config, searches=True)
    if command == "run":
        graph_files.check(config)
    check_output(config.output, overwrite=config.overwrite)
    with steps.using_threads(config):
        sides: Sequence[Side] = ("select",) if command == "select" else ("select", "report")
        clock = time.perf_counter()
        model, roles = reading.load_with_roles(config, sides)
        loaded = time.perf_counter() - clock
        found = of_search(config, model, roles)
        found = replace(found, config=provenance.resolved(config, config.output))
        return found if command == "select" else _of_run(config, model, roles, found, loaded)


def of_search(config: RunConfig, model: LoadedModel, roles: Mapping[str, Samples]) -> Plan:
    """Predict what `steps.choose` would cost, with a worker's threads; a budget of seconds is left out.

    Raises:
        TapiocaError: What `steps.choose` would raise before it has measured anything.
    """
    if config.criterion == "damp":
        raise ConfigError(
            "What --criterion damp costs is not predicted.",
            "Predict --criterion tale, for the scale 0 alone.",
        )
    if config.has_sublayers:
        raise ConfigError(
            "--dry-run predicts searches among whole layers, not among their attentions and MLPs.",
            "Use --granularity block.",
        )
    steps.warn_beyond_reach(config, model)
    samples = {name: roles[f"{name}-select"] for name in ("id", "target")}
    unhurried = replace(config, budget_seconds=None)
    can_race = model.task.best_value is not None
    is_race = can_race and config.search in ("greedy", "racing") and not config.full_scores
    in_full = replace(unhurried, full_scores=True, search="greedy") if is_race else unhurried
    num_workers = 1 if config.engine == "local" else config.num_workers
    settings = PlanSettings(
        select_on=config.select_on,
        batch_size=config.eval_batch_size,
        engine=config.engine,
        num_workers=num_workers,
        full_scores=config.full_scores,
        races=is_race,
        is_statistical=config.search == "racing",
        seed=config.seed,
    )

    def search(probe: Any, full: bool) -> Selection:
        return steps.choose(in_full if full else unhurried, model, probe, roles)

    with steps.using_threads(replace(config, num_threads=steps.worker_threads(config))):
        return predict(model, samples, search, settings)


def _of_run(
    config: RunConfig, model: LoadedModel, roles: Mapping[str, Samples], searched: Plan, load_seconds: float
) -> Plan:
    """Return the plan of a search as that of a run, with what comes after it."""
    config = replace(config, format=tuple(dict.fromkeys(("onnx", *config.format))))
    width, deepest = DTYPES[config.dtype].num_bytes, min(searched.rounds, model.num_layers - 1)
    written = run_bytes(model, config.format, width, config.quantize, deepest)
    journal = searched.disk_bytes
    disk = Bounds(journal.least + written.least, journal.most + written.most)
    stages = {"load": Bounds(load_seconds, load_seconds), "select": searched.seconds}
    untold = None
    if is_graph(config.model):
        untold = "An ONNX file is not exported anew: what follows its search was not timed."
    else:
        try:
            with stopping_over_errors():  # what a stop is turned into is no failure of the trial
                stages |= trying.seconds_after_search(config, model, roles, deepest)
        except OutputError:
            raise
        except TapiocaError as error:
            untold = (
                "What follows the search was tried on a model of few layers. That failed, perhaps for them "
                f"alone: {error}"
            )
    return replace(
        searched,
        command="run",
        disk_bytes=disk,
        stages=stages,
        untold=untold,
        advice=f"The search: {searched.advice}",
        run_peak_memory_bytes=peak_resident_bytes() or None,
    )
