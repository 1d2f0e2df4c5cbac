"""What a run reads: the task and what encodes its rows, the sample files, the model.

Knows which setting goes where, and nothing of what is done with any of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .config import RunConfig
from .errors import ConfigError
from .models import (
    LoadedModel,
    LoadOptions,
    find_task,
    load_config,
    load_model,
    load_processor,
)
from .samples import Samples, Side, halves, read_samples
from .samples import load_roles as read_roles
from .tasks import Processor, Task, load_prompting


def load_task(config: RunConfig, options: LoadOptions | None = None) -> tuple[Task, Processor]:
    """Load what reads and encodes samples, without the weights."""
    options = options or load_options(config)
    model_config = load_config(config.model, options)
    task = find_task(model_config, config.task, options)
    return task, load_processor(task, config.model, model_config, options)


def load_with_roles(
    config: RunConfig, sides: Sequence[Side], labelled: Sequence[str] = ()
) -> tuple[LoadedModel, dict[str, Samples]]:
    """Load samples, then the model: what is cheap to refuse is refused first.

    Raises:
        ConfigError: If the rows of a role in `labelled` have no labels.
    """
    task, processor = load_task(config)
    roles = load_roles(config, task, processor, sides)
    for role in labelled:
        if not roles[role].is_labelled:
            raise ConfigError(f"The {role} rows ({roles[role].source}) have no labels.", "Label them.")
    return load_model(config.model, task.name, load_options(config)), roles


def load_roles(
    config: RunConfig,
    task: Task,
    processor: Processor,
    sides: Sequence[Side] = ("select", "report"),
) -> dict[str, Samples]:
    """Read the sample files and deal their rows out to the roles.

    Raises:
        ConfigError: If ID or target samples are missing.
        LoadError: If a file cannot be read, or its rows cannot be used.
    """
    files = {
        "id": config.id,
        "target": config.target,
        "id-report": config.id_report,
        "target-report": config.target_report,
    }
    for name in ("id", "target"):
        if not files[name]:
            raise ConfigError(f"No {name} samples were given.", f"Add --{name} PATH.")
    roles = read_roles(
        files,
        task.rows(config.columns, processor),
        sides=sides,
        seed=config.seed,
        limit=config.limit,
        drop_leaks=config.drop_leaks,
        objective=config.objective,
        weights=config.weights,
    )
    for samples in roles.values():
        for part in samples.by_domain:
            task.check_labels(part)
    return roles


def given_rows(config: RunConfig, task: Task, processor: Processor) -> Samples | None:
    """Return all rows of the sample files that were given, for a proof that needs no roles."""
    reader = task.rows(config.columns, processor)
    files = config.files("id", "target", "id_report", "target_report")
    parts = [read_samples(path, reader, role="parity") for *_, path in files]
    return _joined(parts) if parts else None


def refuse_no_rows(config: RunConfig) -> None:
    """Refuse to prove a file on nothing.

    Raises:
        ConfigError: If no sample file was given.
    """
    if config.id is None and config.target is None:
        raise ConfigError(
            "Parity is proven on your own samples, and none were given.", "Add --id or --target."
        )


def calibration_rows(config: RunConfig, task: Task, processor: Processor) -> Samples | None:
    """Return the ID rows that may choose, where files are calibrated on some: the others are reported.

    Raises:
        ConfigError: If none were given.
    """
    if config.calibration_samples is None:
        return None
    if config.id is None:
        raise ConfigError("--calibration-samples are taken from ID samples.", "Add --id.")
    rows = read_samples(config.id, task.rows(config.columns, processor), role="calibration")
    return rows if config.id_report else halves(rows, config.seed)[0]


def parity_rows(roles: Mapping[str, Samples]) -> Samples:
    """Return the rows of all roles: parity is proven on any of the user's rows."""
    return _joined(list(roles.values()))


def report_rows(roles: Mapping[str, Samples]) -> Samples:
    """Return the rows of both domains on which nothing was chosen."""
    return _joined([roles[f"{name}-report"] for name in ("id", "target")], "report")


def _joined(parts: Sequence[Samples], role: str = "parity") -> Samples:
    rows = tuple(row for part in parts for row in part.rows)
    return Samples(role, rows, ", ".join(dict.fromkeys(p.source for p in parts)), "")


def load_options(config: RunConfig) -> LoadOptions:
    """Return what of the configuration concerns loading."""
    prompting = load_prompting(
        config.prompt_template, config.chat_template, config.few_shot, config.num_fewshot, config.seed
    )
    return LoadOptions(
        config.trust_remote_code,
        config.local_files_only,
        config.max_length,
        config.device,
        config.metric,
        replace(
            prompting,
            max_new_tokens=config.max_new_tokens,
            extract=config.extract,
            extract_last=config.extract_last,
        ),
        config.max_memory,
        "sublayer" if config.has_sublayers else "block",
    )
