"""Steps of the job, shared by the whole pipeline and by the single commands.

Each takes the configuration and what earlier steps made, and calls one stage. Knows which setting
goes where, and nothing of any stage's inside.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import provenance
from .artifacts import (
    Benchmark,
    Choices,
    Export,
    Journal,
    Pair,
    Selection,
    read,
    refuse_inside,
    to_json,
)
from .bars import progress_bar
from .benchmarking import BenchmarkSettings, resolve_provider
from .config import RunConfig
from .engines import ENGINES, Engine, EngineSettings, open_engine
from .errors import ConfigError, ExportError, first_line
from .exporting import FORMATS, Dialect, ExportSettings, dialect_for, export_model, refuse_opset_beside
from .graphs import is_graph
from .models import (
    SPREAD,
    LoadedModel,
    droppable_layers,
    fingerprint_of,
    load_model,
)
from .numbering import PARTS, layers_text, whole_layers
from .profiling import Changes, MakeReplayer, Probe, division_on
from .reading import load_options
from .samples import NO_SPLIT, Samples, Side, Split, check_exists
from .selection import CRITERIA, SEARCHES, SelectionSettings, Weigh, beyond_reach, select_layers
from .tasks import TASKS
from .treatments import Treatment

logger = logging.getLogger(__name__)

# Settings that decide what a search measures; a budget and a pick do not.
SEARCH_SETTINGS = (
    "criterion", "search", "epsilon", "max_drop_layers", "protect_first", "protect_last", "tie_break",
    "full_scores", "confidence", "width", "shortlist", "seed",
)  # fmt: skip

# Criteria that read or change the weights of layers.
OF_WEIGHTS = ("magnitude", "taylor", "damp")


def check(config: RunConfig, *, searches: bool = False, replaces: bool = True) -> None:
    """Refuse at once what can be refused: an hour's search must not end on a misspelt word.

    Args:
        config: What the user asks for.
        searches: Layers are to be searched for.
        replaces: The output folder is to be replaced, so that no input may be inside it.

    Raises:
        TapiocaError: If a name is in no table, settings do not go together, a sample file is missing,
            or a device or provider is not there.
    """
    given = [path for *_, path in config.files(*provenance.SAMPLE_FILES)]
    for path in given:
        check_exists(path)
    if replaces:
        refuse_inside(config.output, [Path(config.model), *given] if config.model else given)
    if config.task != "auto":
        TASKS[config.task]
    if searches:
        CRITERIA[config.criterion]
        SEARCHES[config.search]
        ENGINES[config.engine]
        if config.engine == "local" and (config.num_workers != 1 or config.ray_address):
            option = "--ray-address" if config.ray_address else f"--num-workers {config.num_workers}"
            raise ConfigError(f"{option} has no meaning for --engine local.", "Add --engine ray.")
        selection_settings(config)
        refuse_pruned(config)
        if is_graph(config.model) and config.criterion in OF_WEIGHTS:
            raise ConfigError(
                f"The criterion {config.criterion} needs the weights of each layer, and {config.model} is a "
                "graph.",
                "Choose another --criterion, or name the checkpoint.",
            )
    for name in config.format:
        _export_settings(config, name, config.format)
    for name in config.provider:
        resolve_provider(name)
    benchmark_settings(config)
    if config.device == SPREAD:
        return
    try:
        torch.empty(0, device=config.device)
    # PyTorch built without CUDA raises AssertionError, other devices RuntimeError.
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {config.device!r} cannot be used: {first_line(error)}",
            "Use cpu, or see tapioca-export doctor.",
        ) from error


def selection_settings(config: RunConfig, model: LoadedModel | None = None) -> SelectionSettings:
    """Return what of the configuration, and of the model's layers, concerns the search.

    Raises:
        ConfigError: If values do not go together, or `drop` names layers that the model does not have.
    """
    drop, stacks = config.drop, {}
    held: tuple[int, ...] = ()
    if model is not None:
        units, droppable = model.units, droppable_layers(model)
        drop, stacks = units.indices(config.drop), units.stacks
        held = tuple(unit for unit in range(units.num_units) if units.layer_of(unit) not in droppable)
    return SelectionSettings(
        criterion=config.criterion,
        epsilon=config.epsilon,
        pick=config.pick,
        max_drop_layers=config.max_drop_layers,
        protect_first=config.protect_first,
        protect_last=config.protect_last,
        tie_break=config.tie_break,
        drop=drop,
        held=held,
        stacks=stacks,
        parts=PARTS if config.has_sublayers else (),
        seed=config.seed,
        search=config.search,
        full_scores=config.full_scores,
        confidence=config.confidence,
        width=config.width,
        shortlist=config.shortlist,
        scales=scales_of(config),
        budget_seconds=config.budget_seconds,
        budget_evaluations=config.budget_evaluations,
    )


def warn_beyond_reach(config: RunConfig, model: LoadedModel) -> None:
    """Say that more layers are asked for than can go, and what is taken instead."""
    if beyond := beyond_reach(selection_settings(config, model), model.units.num_units):
        logger.warning("%s, which is taken instead.", beyond)


def scales_of(config: RunConfig) -> tuple[float, ...]:
    """Return what a search may multiply a layer by: 0 drops it."""
    return config.alphas if config.criterion == "damp" else (0.0,)


@contextmanager
def probing(
    config: RunConfig,
    model: LoadedModel,
    roles: Mapping[str, Samples],
    journal: Path | None = None,
    side: Side = "select",
) -> Iterator[Probe]:
    """Give a probe on the select rows, and let its workers go at the end.

    Args:
        config: Which rows drive the search, and where they are scored.
        model: The network.
        roles: Samples by role.
        journal: Where to keep what was measured, so that a killed search resumes (default: nowhere).
        side: "report" for a probe on the report rows.

    Raises:
        OutputError: If the journal is of another search.
        ConfigError: If the engine cannot be had.
    """
    samples = {name: roles[f"{name}-{side}"] for name in ("id", "target")}
    rows = samples[config.select_on]
    ledger = None
    if journal is not None:
        # A journal's numbers rank candidates one way only.
        direction = {"higher_is_better": model.task.higher_is_better}
        mark, discard = fingerprint(config, roles) | direction, config.overwrite
        choices = Choices(model.units, scales_of(config))
        ledger = Journal(journal, mark, len(rows), discard=discard, numbering=choices)
    with nullcontext() if config.engine == "local" else _engine(config, model, rows) as engine:
        probe = Probe(
            model,
            samples,
            select_on=config.select_on,
            batch_size=config.eval_batch_size,
            seed=config.seed,
            ledger=ledger,
            engine=engine,
        )
        probe.changes = Changes(model, scales_of(config))
        probe.division = division_on(model.device, worker_threads(config))
        yield probe


def worker_threads(config: RunConfig) -> int:
    """Return PyTorch's threads of each worker; workers share those of this process."""
    num_workers = 1 if config.engine == "local" else config.num_workers
    return max(1, torch.get_num_threads() // num_workers)


def _engine(config: RunConfig, model: LoadedModel, rows: Samples) -> Engine:
    """Return the engine asked for; each worker loads the model for itself."""
    options, threads = load_options(config), worker_threads(config)
    make = MakeReplayer(model.source, model.task.name, options, rows, threads, scales_of(config))
    return open_engine(
        config.engine, make, EngineSettings(config.num_workers, config.ray_address, config.device)
    )


def choose(
    config: RunConfig,
    model: LoadedModel,
    probe: Probe,
    roles: Mapping[str, Samples],
    weigh: Weigh | None = None,
) -> Selection:
    """Search for the layers to drop; `weigh` says what the best set of every size trades.

    Raises:
        ConfigError: If `drop` names layers that the model does not have.
        SelectionError: If the criterion cannot be applied.
    """
    settings = selection_settings(config, model)
    num_samples = len(roles[f"{config.select_on}-select"])
    found = select_layers(
        probe, settings, model=config.model, task=model.task, num_samples=num_samples, weigh=weigh
    )
    invalid = [probe.num_invalid(chosen) for chosen in ((), probe.choices.chosen(found.drop, found.scales))]
    known = [count for count in invalid if count is not None]
    pair = Pair(*known) if len(known) == 2 else None
    if roles["target-select"].domains.are_named:
        found = replace(found, objective=config.objective, weights=dict(config.weights))
    # What was loaded is here: the hub is not asked for something newer.
    own = weights_fingerprint(replace(config, local_files_only=True))
    return replace(found, prompting=model.processor.prompting, invalid=pair, fingerprint=own)


def weights_fingerprint(config: RunConfig) -> str | None:
    """Return what tells a checkpoint from others with as many layers; None of an ONNX file.

    A file's weights may be fused, cast or quantised, and its layers still be those of its checkpoint.

    Raises:
        LoadError: If there are no weights that could be read.
    """
    if is_graph(config.model):
        return None
    return fingerprint_of(config.model, local_files_only=config.local_files_only)


def exporting_bar(num_layers: int) -> Any:
    """Return tqdm's bar of files that are exported: each takes about as long as it has layers."""
    return progress_bar(total=num_layers, desc="Exporting", unit="layer")


def export_each(
    config: RunConfig,
    model: LoadedModel,
    rows: Samples,
    folders: Mapping[str, Path],
    chosen: Selection | None = None,
    split: Split = NO_SPLIT,
) -> Iterator[tuple[str, Export]]:
    """Export a model, on the CPU, in every format, each into its folder, and prove each; yields it then.

    `chosen` is what the model was pruned by, if it was: files lack what that dropped of layers that stayed.
    `split` has rows to calibrate on, and to measure on what a treated file loses.

    Raises:
        ExportError: If a format cannot be written, or differs from PyTorch; or the model is not what is left.
    """
    drop, damp = (chosen.drop, chosen.damp) if chosen else ((), ())
    if chosen and model.num_layers + len(whole_layers(drop)) != chosen.num_layers:
        raise ExportError(
            f"{model.source} has {model.num_layers} layers; its selection.json is of {chosen.num_layers}, of "
            f"which {layers_text(drop) or 'none'} went.",
            "Prune the original with that selection, and export what comes out.",
        )
    silent = chosen.units.left_of(chosen.units.indices(drop)) if chosen else {}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        settings = _export_settings(config, name, folders)
        yield name, export_model(model, rows, folder, settings, drop, damp, silent, split)


def _export_settings(config: RunConfig, format_: str, formats: Collection[str]) -> ExportSettings:
    """Return what of the configuration concerns an export; refuses what cannot be written or run.

    What is done to ONNX files is not done to those of other formats that are written beside them.
    """
    dialect = Dialect(config.opset)
    if config.target_ort is not None:
        dialect = dialect_for(config.target_ort)
        refuse_opset_beside(config.target_ort, config.opset)
        if "onnx" not in config.format:
            raise ConfigError(
                f"--target-ort is for ONNX files, and --format is {', '.join(config.format)}.",
                "Leave out --target-ort, or add --format onnx.",
            )
    is_beside = not FORMATS[format_].is_treated and any(FORMATS[name].is_treated for name in formats)
    return ExportSettings(
        format_,
        dialect.opset,
        config.atol,
        config.dtype,
        dialect.ir_version,
        Treatment() if is_beside else config.treatment,
        config.max_drop,
    )


def selection_of(folder: str) -> Selection | None:
    """Return the selection that a checkpoint or export of ours was made by."""
    path = Path(folder) / "selection.json"
    return read(path, Selection) if path.is_file() else None


def refuse_pruned(config: RunConfig) -> None:
    """Refuse a checkpoint that was pruned before: layers are counted, and scaled, in the original model.

    Raises:
        ConfigError: Naming the layers that it lacks, or that are damped in it.
    """
    before = selection_of(config.model)
    if before is None:
        return
    for layers, what in ((before.drop, "gone"), ([part.layer for part in before.damp], "damped")):
        if layers:
            raise ConfigError(
                f"{config.model} was pruned before (layers {', '.join(map(str, layers))} are {what}).",
                "Start from the original model and name all layers to drop or damp.",
            )


def optimism_gap(selection: Selection, measured: Benchmark) -> float | None:
    """Return the gain on select rows minus the gain on report rows of the same distribution."""
    reported = measured.accuracy.get(selection.select_on)
    if reported is None or selection.baseline_metric is None or selection.selected_metric is None:
        return None
    gain = selection.selected_metric - selection.baseline_metric
    return (gain if reported.higher_is_better else -gain) - reported.gain


def on_cpu(config: RunConfig, model: LoadedModel) -> LoadedModel:
    """Return the model with its weights in memory, where they are exported and proven equal."""
    if config.device == SPREAD:  # what accelerate has spread cannot be gathered, only loaded anew
        return load_model(config.model, model.task.name, replace(load_options(config), device="cpu"))
    return replace(model, network=model.network.to("cpu"))


def benchmark_settings(config: RunConfig) -> BenchmarkSettings:
    """Return what of the configuration concerns the benchmark.

    Raises:
        ConfigError: If a number is out of its range.
    """
    return BenchmarkSettings(
        providers=config.provider,
        batch_sizes=config.batch_size,
        sequence_lengths=config.sequence_length,
        num_threads=config.num_threads,
        warmup=config.warmup,
        iterations=config.iterations,
        seed=config.seed,
        tune_seconds=config.tune_seconds if config.tune else None,
        redact=config.redact,
    )


def fingerprint(config: RunConfig, roles: Mapping[str, Samples]) -> dict[str, Any]:
    """Return what must be equal for a journal's numbers to hold."""
    scales = {"alphas": list(config.alphas)} if config.criterion == "damp" else {}
    domains = roles["target-select"].domains
    named = {
        "domains": domains.sizes_by_name,
        "objective": domains.objective,
        "weights": list(domains.weights),
    }
    return {
        "model": provenance.hash_model(config.model),
        "samples": {name: roles[name].fingerprint for name in sorted(roles) if name.endswith("select")},
        **(named if domains.are_named else {}),
        "select_on": config.select_on,
        "device": config.device,
        "max_length": config.max_length,
        "metric": config.metric,
        "prompting": to_json(load_options(config).prompting),
        "eval_batch_size": config.eval_batch_size,
        "search": {name: getattr(config, name) for name in SEARCH_SETTINGS}
        | ({"granularity": "sublayer"} if config.has_sublayers else {}),
        "versions": provenance.versions(),
        **scales,
    }


@contextmanager
def using_threads(config: RunConfig) -> Iterator[None]:
    """Use the asked number of PyTorch threads, and give back what was set before."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
