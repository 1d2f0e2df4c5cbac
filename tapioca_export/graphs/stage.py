"""The stage: cut layers out of an ONNX file, prove it, and put beside it what belongs to it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts import Export, Fusions, Proof, Selection, read, sha256, write, write_text
from ..errors import ConfigError, ParityError, UnsupportedModelError
from ..external import read_proto, weight_names
from .belonging import belongings, prove_belongings
from .counting import fused_operators
from .cutting import cut, find_layers
from .files import (
    GENAI,
    companions,
    genai_config,
    graph_of,
    named_sizes,
    refuse_misdescribed,
    weight_files,
    write_graph,
)
from .proving import prove_outputs

EXPORT = "export.json"
# By proof, what stands in the record of a cut file.
COMPARED = {
    "logits": "Cut out of an exported file; compared with that file run in pieces, on made-up inputs.",
    "weights": "Cut out of an exported file; its weights are that file's; nothing was run.",
}
# Writes the config of a model in a folder without layers.
MendConfig = Callable[[Path, Path, Sequence[int], int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """What is known of a file and of what was cut out of it, so that neither is parsed or hashed again.

    Attributes:
        num_layers: How many layers the source has.
        source_weights: Files with weights that the source names, relative to its folder.
        weights: Those that the new file names, relative to its own.
        files: The SHA-256 of the new file by its name; none where it was not taken.
    """

    num_layers: int
    source_weights: tuple[str, ...]
    weights: tuple[str, ...]
    files: Mapping[str, str]


def prune_graph(
    source: Path,
    drop: Sequence[int],
    folder: Path,
    *,
    made: Export | None,
    proof: Proof,
    mend_config: MendConfig,
    selection: Selection | None = None,
    tolerance: float | None = None,
) -> Cut:
    """Write an ONNX file without layers, with what stands beside it.

    Args:
        source: The file.
        drop: Indices of layers, counted from the input.
        folder: An existing folder; gets a file of the same name, its weights, and what belongs to it.
        made: What is known of the source's making, if it is one of ours.
        proof: "logits": outputs are compared with those of the source in pieces. "weights": names, places
            and sizes of the weights are compared.
        mend_config: Writes `config.json`, where there is one.
        selection: Where the layers come from, if not from the user.
        tolerance: Of the outputs (default: as in `prove_outputs`).

    Returns:
        What is known of both files then.

    Raises:
        ConfigError: If the selection is for another model, a layer does not exist or is named twice, or none
            would be left.
        LoadError: If the file cannot be read.
        UnsupportedModelError: If its layers cannot be told, or something needs what they compute.
        ParityError: If the file is not what was meant; it is then `<name>.invalid`.
        OutputError: If the folder cannot be written.
    """
    logger.info("Cutting layers out of %s, and proving it", source)
    proto = read_proto(source)
    model = graph_of(proto, source)
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    layers = find_layers(model.graph)
    if selection is not None and selection.num_layers != len(layers):
        raise ConfigError(
            f"The selection is for {selection.num_layers} layers ({selection.model}), "
            f"{source} has {len(layers)}."
        )
    belonged = belongings(model.graph, layers)
    cut(model, layers, drop)
    file = folder / source.name
    write_graph(model, file, source.parent)
    for companion in companions(source):
        shutil.copyfile(companion, folder / companion.name)
    if (source.parent / "config.json").is_file():
        mend_config(source.parent, folder, drop, len(layers))
    sizes = _mend_genai_config(folder, len(layers) - len(drop))
    written = read_proto(file)
    left = graph_of(written, file)
    difference, files = None, dict[str, str]()
    try:
        _prove_weights(weights, left, folder, source.parent)
        prove_belongings(belonged, left.graph, drop)
        refuse_misdescribed(folder, left.graph)
        if proof == "logits":
            whole = graph_of(proto, source)  # as it was before it was cut
            difference, tolerance = prove_outputs(source, file, sorted(drop), tolerance, sizes, whole)
    except ParityError:
        file.rename(file.with_name(f"{file.name}.invalid"))
        raise
    if made is not None:
        made = replace(made, note=COMPARED[proof])
        files = {file.name: _write_export(made, model, file, drop, difference, tolerance)}
    return Cut(len(layers), weight_names(proto), weight_names(written), files)


def export_of(source: Path) -> Export | None:
    """Return what is known of the file's making, if it is one of ours.

    Raises:
        ConfigError: If it is not the file that was proven, was pruned before, or is one of several.
    """
    record = source.parent / EXPORT
    if not record.is_file():
        return None
    export = read(record, Export)
    if export.drop or export.damp:
        raise ConfigError(
            f"{source} is of a model that was pruned before.", "Prune the file of the whole model."
        )
    if len([name for name in export.files if name.endswith(".onnx")]) > 1:
        raise UnsupportedModelError(
            f"{source} is one of several graphs of a model, whose layers are numbered together.",
            "Prune the checkpoint and export it again.",
        )
    if export.files.get(source.name) != sha256(source):
        raise ConfigError(f"{source} is not the file that {record} tells of.", "Export it again.")
    return export


def _prove_weights(weights: Mapping[str, Any], left: Any, folder: Path, source: Path) -> None:
    """Compare the weights of a written graph with those of its source, where each is stored.

    Raises:
        ParityError: If one is not in the source, or is another; or if a file with weights is another.
    """
    for name, value in left.graph.initializers.items():
        if name not in weights or _stored(weights[name]) != _stored(value.const_value):
            raise ParityError(
                f"the weight {name} is not that of the file it was cut from.", "Do not use the file."
            )
    for name in weight_files(left):
        if not (folder / name).samefile(source / name) and sha256(folder / name) != sha256(source / name):
            raise ParityError(f"{name} is not the file with weights of the source.", "Do not use the file.")


def _stored(tensor: Any) -> object:
    """Return what tells a weight: where it is beside the graph, or its bytes."""
    import onnx_ir

    if isinstance(tensor, onnx_ir.ExternalTensor):
        return (str(tensor.location), tensor.offset, tensor.length, tensor.dtype, tuple(tensor.shape))
    return (tensor.dtype, tuple(tensor.shape), tensor.tobytes())


def _mend_genai_config(folder: Path, depth: int) -> dict[str, int]:
    """Write the new depth where onnxruntime-genai looks for it; return sizes of axes that its graphs name."""
    described = genai_config(folder)
    if described is not None:
        described["model"]["decoder"]["num_hidden_layers"] = depth
        write_text(folder / GENAI, json.dumps(described, indent=1) + "\n")
    return named_sizes(described)


def _write_export(
    before: Export,
    model: Any,
    file: Path,
    drop: Sequence[int],
    difference: float | None,
    tolerance: float | None,
) -> str:
    """Write the record of a cut file; returns the file's SHA-256."""
    inputs = tuple(str(value.name) for value in model.graph.inputs)
    files = [file, *(file.with_name(name) for name in weight_files(model))]
    # Weights beside the graph are the source's, which are not read again.
    own = sha256(file)
    digests = {path.name: before.files.get(path.name) or sha256(path) for path in files[1:]}
    export = replace(
        before,
        files={file.name: own, **digests},
        sha256=own,
        inputs=inputs,
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        cache={name: shape for name, shape in before.cache.items() if name in inputs},
        max_abs_difference=difference,
        tolerance=tolerance,
        size_bytes=sum(path.stat().st_size for path in files),
        drop=tuple(sorted(drop)),
        fusions={name: _of_layers(found, model, drop) for name, found in before.fusions.items()},
        reference="the whole file, run in pieces on made-up inputs",
        loss=None, label_agreement=1.0, token_agreement=1.0, pytorch_difference=0.0,  # were the whole file's
        rows_checked=0, shapes_checked=(), padding_checked=(), prompts_continued=0, tokens_generated=0,
    )  # fmt: skip
    write(file.with_name(EXPORT), export)
    return own


def _of_layers(whole: Fusions, left: Any, drop: Sequence[int]) -> Fusions:
    """Return the fused operators of a graph that is left without layers; those of its layers stay."""
    layers = tuple(layer for index, layer in enumerate(whole.layers) if index not in drop)
    return Fusions(fused_operators(left.graph), layers)
