"""Criteria against each other: what may be compared, at which depth, and how it does on report rows.

Knows nothing about how a criterion chooses: each goes through the loop that `select` goes through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import steps
from .artifacts import Accuracy, Compared, Comparison, LayerName, Selection
from .bars import progress_bar
from .benchmarking import compare as compare_scores
from .config import RunConfig
from .errors import ConfigError
from .models import LoadedModel
from .profiling import Probe
from .samples import Samples
from .selection import CRITERIA, beyond_reach
from .tasks import Scores

# Any criterion can take part in these; the others hold sets of layers against each other by a metric.
SEARCHES = ("greedy", "racing")


def check(config: RunConfig, criteria: Sequence[str]) -> None:
    """Refuse before any work what cannot be compared.

    Raises:
        ConfigError: If names are unknown, too few or given twice, or no depth is given.
    """
    for name in criteria:
        CRITERIA[name]
        if name == "fixed":
            raise ConfigError(
                "Criterion fixed chooses nothing that could be compared.", "Leave it out of --compare."
            )
        if name == "damp":
            raise ConfigError(
                "Criterion damp keeps what it damps: it drops no given number of layers to compare at.",
                "Leave it out of --compare.",
            )
        if criteria.count(name) > 1:
            raise ConfigError(f"--compare names {name} twice.", "Name each criterion once.")
    if len(criteria) < 2:
        raise ConfigError(
            f"--compare needs two criteria or more, and was given {len(criteria)}.",
            "Such as --compare tale,tapioca,random.",
        )
    if not config.max_drop_layers:
        given = "was not given" if config.max_drop_layers is None else "is 0"
        raise ConfigError(
            f"--compare holds criteria against each other at equal depth, and --max-drop-layers {given}.",
            "Name the number of layers to drop, such as --max-drop-layers 2.",
        )
    steps.check(at_equal_depth(config, criteria[0]), searches=True)
    if config.search not in SEARCHES:
        raise ConfigError(
            f"--compare takes all criteria through one search, and --search {config.search} has no use "
            "for those that rank single layers.",
            f"Use --search {' or '.join(SEARCHES)}.",
        )


def check_depth(config: RunConfig, model: LoadedModel) -> None:
    """Refuse a depth that no criterion can reach.

    Raises:
        ConfigError: Saying how many layers may be dropped.
    """
    if beyond := beyond_reach(steps.selection_settings(config, model), model.units.num_units):
        raise ConfigError(f"{beyond}.", "Lower it, or protect fewer layers.")


def at_equal_depth(config: RunConfig, criterion: str) -> RunConfig:
    """Return the configuration by which a criterion drops as many layers as any other."""
    return replace(config, criterion=criterion, epsilon=None, pick="final")


def on_report_rows(
    config: RunConfig, model: LoadedModel, roles: Mapping[str, Samples], selections: Sequence[Selection]
) -> Comparison:
    """Score what each criterion dropped on the report rows, and order the criteria by that."""
    sets = tuple(dict.fromkeys(selection.drop for selection in selections))
    target, id_ = (_accuracies(config, model, roles, name, sets) for name in ("target", "id"))
    rows = []
    for found in selections:
        assert found.cost is not None
        drop, reason = found.drop, found.stop_reason
        rows.append(Compared(found.criterion, drop, len(drop), reason, target[drop], id_[drop], found.cost))
    return Comparison(
        model=config.model,
        task=model.task.name,
        num_layers=model.num_layers,
        max_drop_layers=config.max_drop_layers or 0,
        criteria=tuple(sorted(rows, key=lambda row: -row.target.gain)),
        search=config.search,
        select_on=config.select_on,
        num_samples=selections[0].num_samples,
        seed=config.seed,
        stacks=model.numbering.stacks,
        objective=config.objective if roles["target-report"].domains.are_named else None,
    )


def _accuracies(
    config: RunConfig,
    model: LoadedModel,
    roles: Mapping[str, Samples],
    name: str,
    sets: Sequence[tuple[LayerName, ...]],
) -> dict[tuple[LayerName, ...], Accuracy]:
    """Compare the model without each set of layers with the original, on "id" or "target" report rows."""
    with steps.probing(replace(config, select_on=name), model, roles, side="report") as probe:
        original, domains = _scores(probe, ()), probe.domains
        bar = progress_bar(sets, desc=f"Scoring {name} report rows", unit="set", leave=False)
        return {drop: compare_scores(model.task, original, _scores(probe, drop), domains) for drop in bar}


def _scores(probe: Probe, drop: tuple[LayerName, ...]) -> Scores:
    """Score all rows with the layers skipped."""
    return probe.all_scores(probe.units.indices(drop))
