"""The points of a search on several targets: what each number of layers gains, loses and saves.

Knows which rows a point is scored on, and nothing of how a point was found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from . import steps
from .artifacts import Point, Selection
from .bars import progress_bar
from .config import RunConfig
from .domains import DIGITS
from .models import LoadedModel
from .profiling import Probe
from .samples import Samples
from .selection import are_on_front, changed

logger = logging.getLogger(__name__)


def choose(config: RunConfig, model: LoadedModel, probe: Probe, roles: Mapping[str, Samples]) -> Selection:
    """Search for the layers to drop; of named targets, weigh the best set of every size as well.

    Points are scored on all select rows of target and ID, where both have labels, and in this process.

    Raises:
        ConfigError: If `drop` names layers that the model does not have.
        SelectionError: If the criterion cannot be applied.
    """
    target, id_ = roles["target-select"], roles["id-select"]
    is_weighed = target.domains.are_named and target.is_labelled and id_.is_labelled
    num_rows = len(roles[f"{config.select_on}-select"])
    logger.info("Selecting layers by %s on %d %s rows", config.criterion, num_rows, config.select_on)

    def weigh(sets: Sequence[tuple[int, ...]]) -> tuple[Point, ...]:
        here = replace(config, engine="local", num_workers=1)
        with ExitStack() as opened:
            probes = {
                name: probe
                # What a race has only estimated is scored here, so that the search's journal is the search's.
                if name == config.select_on and config.search != "racing"
                else opened.enter_context(steps.probing(replace(here, select_on=name), model, roles))
                for name in ("id", "target")
            }
            return _points(probes, sets)

    steps.warn_beyond_reach(config, model)
    found = steps.choose(config, model, probe, roles, weigh if is_weighed else None)
    logger.info("Search ended: %s", found.stop_reason)
    return found


def _points(probes: Mapping[str, Probe], sets: Sequence[tuple[int, ...]]) -> tuple[Point, ...]:
    """Score sets of layers, the first of them none, on target and ID."""
    domains, task = probes["target"].domains, probes["target"].model.task
    each, ids = [], []
    for drop in progress_bar(sets, desc="Weighing points", unit="point", leave=False):
        values = probes["target"].all_scores(drop).values
        each.append([float(task.aggregate(part)) for part in domains.split(values)])
        id_metric = probes["id"].metric(drop).metric
        assert id_metric is not None, "points are weighed where ID has labels"
        ids.append(float(id_metric))
    targets = [float(domains.combined(metrics, task.higher_is_better)) for metrics in each]
    sign = 1 if task.higher_is_better else -1
    # Beyond rounding, or a point would dominate another by nothing.
    gains = np.round(sign * (np.asarray(targets) - targets[0]), DIGITS).tolist()
    losses = np.round(sign * (ids[0] - np.asarray(ids)), DIGITS).tolist()
    done = [changed(chosen, probes["target"].choices) for chosen in sets]
    on_front = are_on_front(gains, losses, [len(drop) for drop, _ in done])
    return tuple(
        Point(drop, targets[n], dict(zip(domains.names, each[n], strict=True)), *parts, damp)
        for n, ((drop, damp), parts) in enumerate(
            zip(done, zip(ids, gains, losses, on_front, strict=True), strict=True)
        )
    )
