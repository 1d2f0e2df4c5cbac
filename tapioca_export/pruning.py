"""Prune a checkpoint, or an ONNX file: which of the two it is decides what has to be loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from . import graphs, provenance
from .artifacts import (
    Export,
    LayerName,
    Proof,
    Selection,
    read,
    refuse_inside,
    sha256,
    staged,
    write,
    write_text,
)
from .config import RunConfig
from .config_layers import mended_text
from .errors import ConfigError
from .numbering import part_of


def prune(
    config: RunConfig,
    selection: Selection | None = None,
    proof: Proof = "logits",
    scale: Mapping[LayerName, float] | None = None,
) -> Selection:
    """Write a model without layers, and with others damped, as named or as selected earlier.

    A model that is an ONNX file is cut itself, without PyTorch and without a new export; its layers are
    not damped.

    Args:
        config: The model, the layers to drop, and where to write.
        selection: Which layers to drop and to damp, unless they are named.
        proof: "logits": a fresh process computes what the model with the layers skipped computes; an ONNX
            file computes what the file that it was cut from does, run in pieces.
            "weights": names, shapes and bytes are compared; nothing is run.
        scale: Layers to damp, each with what its branches are multiplied by; 0 drops the layer.

    Raises:
        ConfigError: If neither or both are given, or they do not fit the model or the proof.
    """
    scale = scale or {}
    for layer, factor in scale.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise ConfigError(f"--scale {layer}:{factor} must be a number from 0 up.", "Such as 4:0.5.")
    if (selection is None) == (not config.drop and not scale):
        raise ConfigError("Give either --drop or --selection.", "For instance --drop 3,7, or --scale 4:0.5.")
    if scale and (config.has_sublayers or any(map(part_of, scale))):
        raise ConfigError("Only whole layers are damped, not attention or MLP alone.", "Name layers.")
    if graphs.is_graph(config.model):
        if scale or (selection and selection.damp):
            raise ConfigError("Layers of an ONNX file are cut, not damped.", "Prune the checkpoint.")
        return _prune_graph(config, selection, proof)
    from .commands import prune_checkpoint

    return prune_checkpoint(config, selection, proof, scale)


def _prune_graph(config: RunConfig, selection: Selection | None, proof: Proof) -> Selection:
    """Write an ONNX file without layers, and beside it what goes with it.

    Raises:
        ConfigError: If samples are given, the file was pruned before, or the selection is for another model.
    """
    source = Path(config.model)
    if config.id or config.target:
        raise ConfigError("An ONNX file is proven on made-up inputs.", "Leave out --id and --target.")
    refuse_inside(config.output, [source])
    _refuse_pruned(source)
    layers = selection.drop if selection else config.drop
    if named := [layer for layer in layers if not isinstance(layer, int)]:
        raise ConfigError(f"{source} is one graph, and has no layer {named[0]}.", "Prune the checkpoint.")
    with staged(config.output, overwrite=config.overwrite) as folder, provenance.unchanged(config):
        made = graphs.export_of(source)
        cut = graphs.prune_graph(
            source, layers, folder, made=made, proof=proof, mend_config=_mend_config, selection=selection,
            tolerance=config.atol,
        )  # fmt: skip
        chosen = selection or Selection(
            model=config.model,
            task=made.task if made else config.task,
            criterion="fixed",
            num_layers=cut.num_layers,
            drop=tuple(sorted(layers)),
            steps=(),
            stop_reason="the layers were named by the user",
        )
        chosen = replace(chosen, proof=proof, note=None)
        write(folder / "selection.json", chosen)
        beside = [folder / name for name in cut.weights]
        own = {source.name: made.files[source.name]} if made else {}  # taken by `export_of`
        if proof == "weights":
            known = _of_unread(beside, made)
            inputs = provenance.hash_inputs(config, weights=False, known=own, beside=cut.source_weights)
        else:
            known = _of_linked([path for path in beside if path.parent == folder], source.parent)
            inputs = provenance.hash_inputs(config, known={**known, **own}, beside=cut.source_weights)
        provenance.record_folder(folder, "prune", config, inputs, known={**known, **cut.files})
    return chosen


def _of_unread(beside: Sequence[Path], made: Export | None) -> dict[str, str]:
    """Return what is recorded of linked weights that were not read: the exporter's hash, or their size."""
    exported = made.files if made else {}
    return {path.name: exported.get(path.name, provenance.size_of(path)) for path in beside}


def _of_linked(beside: Sequence[Path], source: Path) -> dict[str, str]:
    """Return the hashes of weights that are the source's own files, which are read once for both."""
    return {path.name: sha256(path) for path in beside if path.samefile(source / path.name)}


def _refuse_pruned(source: Path) -> None:
    """Refuse a file that was cut: layers are counted in the original.

    Raises:
        ConfigError: Naming the layers that it lacks, or that are damped in it.
    """
    record = source.with_name("selection.json")
    before = read(record, Selection) if record.is_file() else None
    if before is not None and before.proof and before.num_changed:  # without a proof it is to be applied
        layers = ", ".join(map(str, (*before.drop, *before.scales)))
        raise ConfigError(
            f"{source} was pruned before (layers {layers} are gone or damped).",
            "Start from the original file and name all layers to drop.",
        )


def _mend_config(source: Path, folder: Path, drop: Sequence[int], num_layers: int) -> None:
    """Write the config of the model without layers.

    transformers is imported only where nothing else knows what the config says of each layer.
    """
    file, mended = source / "config.json", None
    # Of what cannot be read, or makes no sense, transformers says what it is.
    with suppress(OSError, ValueError, TypeError, AttributeError, LookupError):
        keep = [layer for layer in range(num_layers) if layer not in drop]
        mended = mended_text(file.read_text(encoding="utf-8"), keep, num_layers)
    if mended is not None:
        write_text(folder / file.name, mended)
        return
    from .models import mend_config_file

    mend_config_file(source, folder, drop, num_layers)
