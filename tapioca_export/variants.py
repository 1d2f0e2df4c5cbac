"""One weight file, many depths: the model is exported once, and each variant's graph cut out of that file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import graphs, provenance, reading, steps
from .artifacts import Export, Selection, read, sha256, staged, write
from .commands import loading_as_before, refuse_other_model
from .config import RunConfig
from .errors import ConfigError, UnsupportedModelError
from .exporting import SKIPPED, describe
from .models import load_model, mend_config_file
from .numbering import whole_layers

ORIGINAL = "original"
NOTE = "Cut out of the file of the whole model, whose weights it shares; generation was not compared."
_NAME = re.compile(r"\w[\w.-]*")
_AT = re.compile(r"(?P<file>.*?)(?:@(?P<depth>\d+))?", re.DOTALL)


@dataclass(frozen=True)
class Variant:
    """What is to be made: the name of its folder, and the selection that says which layers it lacks."""

    name: str
    selection: Selection


def read_variant(text: str) -> Variant:
    """Return the variant that a user names: a selection file, or FILE@K for the first K layers of its search.

    It is called as its file without "selection-", or as the folder of a file called "selection.json".

    Raises:
        ConfigError: If the search has no K layers, or something else than whole layers is dropped.
        LoadError: If the file cannot be read.
    """
    found = _AT.fullmatch(text)
    assert found is not None  # any text is a path
    path, depth = Path(found["file"]), found["depth"]
    selection = read(path, Selection)
    name = path.absolute().parent.name if path.stem == "selection" else path.stem.removeprefix("selection-")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path} gives a variant no name ({name!r}).", "Call it such as selection-airline.json."
        )
    damps = bool(selection.damp)
    if depth is not None:
        first = selection.steps[: int(depth)]
        if len(first) < int(depth):
            raise ConfigError(
                f"The search of {path} dropped {len(first)} layers, not {depth}.", "Name fewer."
            )
        damps = any(step.scale for step in first)
        drop = tuple(sorted(step.layer for step in first))
        metric = first[-1].metric if first else selection.baseline_metric
        selection = replace(selection, drop=drop, damp=(), pick=depth, selected_metric=metric, invalid=None)
        name = f"{name}-{depth}"
    if damps or len(whole_layers(selection.drop)) < len(selection.drop):
        raise ConfigError(
            f"{path} damps layers, or drops parts of them.",
            "Variants lack whole layers; use prune and export.",
        )
    return Variant(name, selection)


def export_variants(config: RunConfig, variants: Sequence[str]) -> dict[str, Export]:
    """Write an ONNX export folder for the whole model and for each variant; all share one weight file.

    Its names in the folders are hard links, so that all together take the room of one. Each graph is proven
    on the rows of `id` and `target`, against the model with the variant's layers skipped.

    Args:
        config: Model, samples, and where to write.
        variants: As `read_variant` takes them.

    Returns:
        The exports by their folders, "original" first.

    Raises:
        ConfigError: If no samples are given, two variants have one name, or one is for another model.
        TapiocaError: If the model cannot be exported, or a file computes something else.
    """
    if config.format != ("onnx",):
        raise ConfigError("Variants are ONNX graphs.", "Leave out --format.")
    if config.treatment:
        raise ConfigError(
            "Variants share the weights of one file, which is not optimised or quantised.",
            "Leave out --optimize and --quantize, or export each checkpoint alone.",
        )
    steps.check(config)
    reading.refuse_no_rows(config)
    chosen = [read_variant(text) for text in variants]
    names = [ORIGINAL, *(variant.name for variant in chosen)]
    used = {(variant.selection.metric, variant.selection.prompting) for variant in chosen}
    if len(used) > 1:
        raise ConfigError("The variants were chosen with different metrics or prompts.", "Export each alone.")
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two variants are called {double[0]!r}.", "Rename their files.")
    with staged(config.output, overwrite=config.overwrite) as folder, steps.using_threads(config):
        options = loading_as_before(config, chosen[0].selection if chosen else None, "The first variant")
        model = load_model(config.model, config.task, options)
        if model.task.generates and model.network.config.is_encoder_decoder:
            raise UnsupportedModelError(
                f"{config.model} is exported as several graphs, whose layers are numbered together.",
                "Prune it and export each checkpoint alone.",
            )
        for variant in chosen:
            refuse_other_model(config, variant.selection, model)
        rows = reading.given_rows(config, model.task, model.processor)
        assert rows is not None
        inputs = provenance.hash_inputs(config)
        whole = folder / ORIGINAL
        ((_, export),) = steps.export_each(config, model, rows, {"onnx": whole})
        (graph,) = (whole / name for name in export.files if name.endswith(".onnx"))
        exports = {ORIGINAL: _with_weights_beside(export, graph)}
        for variant in chosen:
            place, selection = folder / variant.name, variant.selection
            place.mkdir()
            graphs.prune_graph(
                graph, model.numbering.indices(selection.drop), place, made=None, proof="weights",
                mend_config=mend_config_file, selection=selection,
            )  # fmt: skip
            exports[variant.name] = describe(
                model, rows, place / graph.name, selection.drop, config.atol, reference=SKIPPED, note=NOTE
            )
            write(place / "selection.json", selection)
        for name, made in exports.items():
            provenance.record_folder(
                folder / name, "export", config, inputs, rows.fingerprint, known=made.files
            )
        return exports


def _with_weights_beside(export: Export, graph: Path) -> Export:
    """Move the weights of a graph into a file beside it, where they are not yet; returns the new record."""
    graphs.put_weights_beside(graph)
    files = (graph, *graphs.weight_paths(graph))
    export = replace(
        export,
        files={file.name: sha256(file) for file in files},
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=sha256(graph),
    )
    write(graph.with_name("export.json"), export)
    return export
