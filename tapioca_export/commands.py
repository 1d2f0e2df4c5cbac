"""One stage at a time, on files: a function for each command, of the same name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import (
    checkpoints,
    comparing,
    intervening,
    measuring,
    provenance,
    reading,
    reporting,
    steps,
    trading,
)
from .artifacts import (
    Benchmark,
    Comparison,
    Damping,
    Export,
    Intervention,
    LayerName,
    Numbering,
    Profile,
    Prompting,
    Proof,
    Run,
    Selection,
    locked,
    read,
    refuse_inside,
    staged,
    to_json,
    write,
)
from .benchmarking import SESSION_FILE, fastest_sessions
from .benchmarking import benchmark as compare_exports
from .config import Doses, RunConfig
from .errors import ConfigError, LoadError, OutputError
from .graphs import is_graph
from .models import (
    LoadedModel,
    LoadOptions,
    find_task,
    load_config,
    load_model,
    outline_model,
    refuse_larger_than_memory,
)
from .numbering import lone_parts, part_of
from .pipeline import JOURNAL
from .programs import PROGRAMS
from .renewing import INTERVENTION, render_again
from .samples import Split

logger = logging.getLogger(__name__)


def profile(config: RunConfig, drop: Sequence[LayerName] = ()) -> Profile:
    """Write `profile.json`: ID and target profiles, and those without `drop` on the same axes."""
    steps.check(config)
    with staged(config.output, overwrite=config.overwrite) as folder, steps.using_threads(config):
        model, roles = reading.load_with_roles(config, ("select",))
        model.units.indices(drop)  # what does not exist is refused before anything is measured
        with steps.probing(config, model, roles) as probe:
            result = measuring.measure(model, probe, drop)
        write(folder / "profile.json", result)
    return result


def select(config: RunConfig) -> Selection:
    """Write `selection.json` and `search.jsonl`: which layers to drop, and why."""
    steps.check(config, searches=True)
    with (
        staged(config.output, overwrite=config.overwrite, keep=JOURNAL) as folder,
        steps.using_threads(config),
    ):
        model, roles = reading.load_with_roles(config, ("select",))
        with steps.probing(config, model, roles, folder / JOURNAL) as probe:
            selection = trading.choose(config, model, probe, roles)
        write(folder / "selection.json", selection)
    return selection


def compare(config: RunConfig, criteria: Sequence[str]) -> Comparison:
    """Write `comparison.json`: what each criterion costs, and what it does on rows that it never saw.

    Every criterion drops `config.max_drop_layers` layers in the one loop, with no floor in its way
    (`criterion`, `epsilon` and `pick` have no say), in a search of its own, so that its cost is its
    own too: `selection-NAME.json` and `search-NAME.jsonl`. Only `tapioca`, `realignment` and a budget end
    earlier.

    Raises:
        ConfigError: If the criteria cannot be compared, or rows that are needed have no labels.
    """
    comparing.check(config, criteria)
    labelled = (f"{config.select_on}-select", "target-report", "id-report")
    with (
        staged(config.output, overwrite=config.overwrite, keep="search-*.jsonl") as folder,
        steps.using_threads(config),
    ):
        journals = {name: folder / f"search-{name}.jsonl" for name in criteria}
        for left_over in set(folder.iterdir()) - set(journals.values()):  # of a comparison of others
            if left_over.is_file():
                left_over.unlink()
        model, roles = reading.load_with_roles(config, ("select", "report"), labelled)
        comparing.check_depth(config, model)
        selections = []
        for name, journal in journals.items():
            logger.info("Selecting layers by %s", name)
            alike = comparing.at_equal_depth(config, name)
            with steps.probing(alike, model, roles, journal) as probe:
                selections.append(steps.choose(alike, model, probe, roles))
            write(folder / f"selection-{name}.json", selections[-1])
        result = comparing.on_report_rows(config, model, roles, selections)
        write(folder / "comparison.json", result)
    return result


def prune_checkpoint(
    config: RunConfig, selection: Selection | None, proof: Proof, scale: Mapping[LayerName, float]
) -> Selection:
    """Write a checkpoint without layers, and with others damped, as named or as selected earlier.

    Raises:
        ConfigError: If layers and proof do not fit the model.
    """
    if proof == "weights" and (scale or (selection and selection.damp)):
        raise ConfigError(
            "--proof weights loads no weights, and a layer is damped by its weights.", "Leave out --proof."
        )
    if proof == "weights" and (config.id or config.target):
        raise ConfigError("--proof weights computes nothing on samples.", "Leave out --id and --target.")
    if config.atol is not None:
        raise ConfigError(
            "A checkpoint is proven bit for bit; --atol is for ONNX files.", "Leave out --atol."
        )
    if proof == "weights" and lone_parts(selection.drop if selection else config.drop):
        raise ConfigError(
            "--proof weights compares tensors with the original's, and a layer that stays without its "
            "attention or MLP has zeros instead.",
            "Use --proof logits.",
        )
    steps.check(config)
    steps.refuse_pruned(config)
    with (
        staged(config.output, overwrite=config.overwrite) as folder,
        steps.using_threads(config),
        provenance.unchanged(config),
    ):
        options = loading_as_before(config, selection, "The selection")
        model = outline_model(config.model, config.task, options)
        if proof == "logits":
            refuse_larger_than_memory(model)
            model = load_model(config.model, model.task.name, options)
        if selection is None:
            selection = _as_named(config, model, scale)
        refuse_other_model(config, selection, model)
        inputs = provenance.hash_inputs(config, weights=proof != "weights")
        rows = batches = None
        if proof == "logits":
            rows = reading.given_rows(config, model.task, model.processor)
            batches = checkpoints.proof_batches(model, rows)
        selection, known = checkpoints.save_checkpoint(folder, model, selection, batches)
        fingerprint = rows.fingerprint if rows else ""
        provenance.record_folder(folder, "prune", config, inputs, fingerprint, known=known)
        return selection


def _as_named(config: RunConfig, model: LoadedModel, scale: Mapping[LayerName, float]) -> Selection:
    """Return the selection of the layers that the user named."""
    units = model.units
    scales = {units.index(layer): float(factor) for layer, factor in scale.items()}
    named = units.indices(config.drop)
    drop = [*named, *(layer for layer, scale in scales.items() if scale == 0)]
    damp = {layer: scale for layer, scale in sorted(scales.items()) if scale not in (0, 1)}
    if both := sorted(set(scales) & set(named)):
        raise ConfigError(f"Layer {units.name(both[0])} is to be dropped and damped.", "Name it once.")
    return Selection(
        model=config.model,
        task=model.task.name,
        criterion="fixed",
        num_layers=model.num_layers,
        metric=config.metric and model.task.metric,
        prompting=model.processor.prompting,
        drop=units.names(sorted(units.checked(drop))),
        damp=tuple(Damping(units.name(layer), scale) for layer, scale in damp.items()),
        steps=(),
        stop_reason="the layers were named by the user",
        stacks=units.stacks,
    )


def export(config: RunConfig) -> dict[str, Export]:
    """Write an export folder for each format, proven on the rows of `id` and `target`.

    With one format the folder is `config.output` itself, with several it is one below it a format.

    Raises:
        ConfigError: If no samples are given to prove parity on.
    """
    if is_graph(config.model):
        raise ConfigError(f"{config.model} is exported already.", "Cut layers out of it with: prune.")
    steps.check(config)
    reading.refuse_no_rows(config)
    with staged(config.output, overwrite=config.overwrite) as folder, steps.using_threads(config):
        chosen = steps.selection_of(config.model)
        with provenance.unchanged(config):
            model = load_model(config.model, config.task, loading_as_before(config, chosen, config.model))
            rows = reading.given_rows(config, model.task, model.processor)
            inputs = provenance.hash_inputs(config)
        assert rows is not None
        several = len(config.format) > 1
        places = {name: folder / name if several else folder for name in config.format}
        split = Split(reading.calibration_rows(config, model.task, model.processor))
        exports = {}
        with steps.exporting_bar(model.num_layers * len(places)) as progress:
            for name, made in steps.export_each(config, model, rows, places, chosen, split):
                exports[name] = made
                progress.update(model.num_layers)
        for name, place in places.items():
            if chosen:  # says on which rows the layers were chosen, so that they are never reported
                write(place / "selection.json", chosen)
            known = exports[name].files
            provenance.record_folder(place, "export", config, inputs, rows.fingerprint, known=known)
        return exports


def benchmark(original: Path, pruned: Path, config: RunConfig) -> Benchmark:
    """Write `benchmark.json`: two export folders against each other, on report rows."""
    for folder in (original, pruned):
        if not folder.is_dir():
            raise LoadError(f"Export folder {folder} does not exist.")
    steps.check(config)
    refuse_inside(config.output, (original, pruned))
    first = read(original / "export.json", Export)
    _refuse_untrusted(config, original, pruned)
    _refuse_read_only(config, original, pruned)
    chosen = steps.selection_of(str(pruned))
    _refuse_other_split(config, chosen)
    config = replace(config, model=str(original), task=first.task)
    if config.max_length is None:
        config = replace(config, max_length=first.max_length)
    with staged(config.output, overwrite=config.overwrite) as folder, steps.using_threads(config):
        task, processor = reading.load_task(config, loading_as_before(config, first, original))
        roles = reading.load_roles(config, task, processor, ("report",))
        rows = {name: roles[f"{name}-report"] for name in ("id", "target")}
        result = compare_exports(original, pruned, task, rows, processor, steps.benchmark_settings(config))
        write(folder / "benchmark.json", result)
    for place, session in fastest_sessions(result, original, pruned).items():
        provenance.record_added(place, SESSION_FILE, to_json(session))
    return result


def _refuse_untrusted(config: RunConfig, *folders: Path) -> None:
    """Refuse to run files that hold code, unless the user trusts them.

    Raises:
        ConfigError: Naming the folder.
    """
    for folder in folders:
        format_ = read(folder / "export.json", Export).format
        if format_ in PROGRAMS and not config.trust_remote_code:
            raise ConfigError(
                f"{folder} is a {format_} export: PyTorch runs whatever code such a file holds, while it is "
                "opened.",
                "Add --trust-remote-code if it is your own or you trust who made it, or benchmark the ONNX "
                "exports.",
            )


def _refuse_read_only(config: RunConfig, *folders: Path) -> None:
    """Refuse at once to tune what the result cannot be written to.

    Raises:
        OutputError: Naming the folder.
    """
    for folder in folders:
        if config.tune and not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{folder} cannot be written, and --tune puts {SESSION_FILE} there.", "Copy it first."
            )


def intervene(
    config: RunConfig,
    layers: Sequence[LayerName] = (),
    selection: Selection | None = None,
    doses: Doses | None = None,
) -> Intervention:
    """Write `intervention.json`: what scaling layers does on report rows, beside random layers.

    In a run folder it is added to what is there, and the report is rendered again with it.

    Args:
        config: Model, samples, and where to write.
        layers: The layers to scale, unless a selection names them.
        selection: A selection made earlier (default, without `layers`: that of the run folder).
        doses: Alphas, how many random sets to draw, and how far ID may move and be called flat.

    Raises:
        ConfigError: If no layers are named, or twice; or they do not fit the model or the rows.
    """
    doses = doses or Doses()
    run_folder = config.output if (config.output / "run.json").is_file() else None
    if not layers and selection is None and run_folder is not None:
        selection = steps.selection_of(str(run_folder))
    if bool(layers) == (selection is not None):
        raise ConfigError("Give either --layers or --selection.", "For instance --layers 3,7.")
    if config.has_sublayers or any(map(part_of, layers)) or (selection and selection.has_sublayers):
        raise ConfigError("Whole layers are scaled, not attention or MLP alone.", "Name layers.")
    if selection is not None and not selection.num_changed:
        raise ConfigError("The selection drops no layer.", "Name layers, for instance --layers 3,7.")
    if run_folder is not None:
        known = read(run_folder / provenance.RUN, Run).inputs
        if provenance.hash_model(config.model) not in known.values():
            raise ConfigError(
                f"{run_folder} is the run of another model than {config.model}.", "Name another --output."
            )
    steps.check(config, replaces=run_folder is None)
    steps.refuse_pruned(config)
    _refuse_other_split(config, selection)
    options = replace(loading_as_before(config, selection, "The selection"), device=config.device)
    with _kept_or_staged(config, run_folder, INTERVENTION) as folder, steps.using_threads(config):
        task, processor = reading.load_task(config, options)
        roles = reading.load_roles(config, task, processor, ("report",))
        model = load_model(config.model, task.name, options)
        if selection is not None:
            refuse_other_model(config, selection, model)
        named = (*selection.drop, *selection.scales) if selection else layers
        chosen = model.numbering.indices(named)
        result = intervening.intervene(config, model, roles, chosen, doses)
        result = replace(result, verdict=reporting.intervention_verdict(result))
        if run_folder is None:
            write(folder / INTERVENTION, result)
        else:
            render_again(folder, result)
    return result


@contextmanager
def _kept_or_staged(config: RunConfig, run_folder: Path | None, name: str) -> Iterator[Path]:
    """Give the run folder that a file is added to, or a new folder.

    Raises:
        OutputError: If there is such a file already, and it may not be replaced.
    """
    if run_folder is None:
        with staged(config.output, overwrite=config.overwrite) as folder:
            yield folder
    elif (run_folder / name).exists() and not config.overwrite:
        raise OutputError(f"{run_folder / name} is there already.", "Add --overwrite.")
    else:
        with locked(run_folder, run_folder):
            yield run_folder


def _refuse_other_split(config: RunConfig, chosen: Selection | None) -> None:
    """Refuse to report rows that drove a choice.

    Raises:
        ConfigError: Naming the seed by which rows were split then.
    """
    if chosen is not None and chosen.num_samples and chosen.seed != config.seed:
        raise ConfigError(
            f"The layers were chosen on rows split with --seed {chosen.seed}; with --seed {config.seed} "
            "some of them would be reported.",
            f"Use --seed {chosen.seed}.",
        )


def refuse_other_model(config: RunConfig, selection: Selection, model: LoadedModel) -> None:
    """Refuse a selection of layers that the model does not have, or that were chosen in another model.

    Raises:
        ConfigError: Saying what layers either has, or how to drop the same of this one.
    """
    of, here = Numbering.of(selection.stacks, selection.num_layers), model.numbering
    if of != here:
        raise ConfigError(f"The selection is for {of} ({selection.model}), {config.model} has {here}.")
    own = steps.weights_fingerprint(config) if selection.fingerprint else None
    if own is not None and own != selection.fingerprint:
        raise ConfigError(
            f"The selection was made for other weights ({selection.model}) than those of {config.model}.",
            "Select layers of this model; name them with --drop if it is a copy in another precision, say.",
        )


def loading_as_before(
    config: RunConfig, earlier: Selection | Export | None, where: Path | str
) -> LoadOptions:
    """Return how to load: metric and prompts are those of an earlier step on the same task.

    Args:
        config: What the user asks for now; it may leave both out.
        earlier: What that step recorded; None if there was none.
        where: Its folder or file, for messages.

    Raises:
        ConfigError: If the user asks for others.
    """
    options = replace(reading.load_options(config), device="cpu")  # where files are written and proven
    if earlier is None:
        return options
    if isinstance(earlier, Selection) and earlier.has_sublayers:
        options = replace(options, granularity="sublayer")
    plain = replace(options, prompting=Prompting())
    asked = find_task(load_config(config.model, options), config.task, plain)
    if asked.name != earlier.task:
        return options
    if options.metric and earlier.metric not in (None, asked.metric):
        raise ConfigError(
            f"{where} was made with --metric {earlier.metric}, not {asked.metric}.", "Leave out --metric."
        )
    if options.prompting not in (Prompting(), earlier.prompting):
        raise ConfigError(
            f"{where} was made with other prompts or another rule for answers.",
            "Leave out --prompt-template, --chat-template, --few-shot, --max-new-tokens and --extract.",
        )
    return replace(options, metric=options.metric or earlier.metric, prompting=earlier.prompting)
