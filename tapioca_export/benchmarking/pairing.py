"""Two export folders that may be compared: made alike, and fused alike, layer by layer.

A layer that is fused in one file and not in the other makes the faster one look better than fewer layers
are worth.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..artifacts import Export, sha256
from ..errors import BenchmarkError
from ..numbering import layer_of, layers_text, lone_parts, whole_layers
from ..tasks import Task
from .runtimes import ONNXRUNTIME, ExportFolder, read_export_folder
from .sessions import CPU, resolve_provider
from .timing import BenchmarkSettings


def open_pair(
    original: Path, pruned: Path, task: Task, settings: BenchmarkSettings
) -> tuple[ExportFolder, ExportFolder]:
    """Check that two folders are usable, about the same task, and made alike.

    Raises:
        BenchmarkError: If they are not, saying what differs.
    """
    before, after = read_export_folder(original), read_export_folder(pruned)
    for folder in (before, after):
        if folder.export.task != task.name:
            raise BenchmarkError(
                f"{folder.path} was exported for task {folder.export.task}, not {task.name}.",
                f"Both {before.path} and {after.path} must be of the task that is measured.",
            )
    if before.export.format != after.export.format:
        raise BenchmarkError(
            f"{before.path} is {before.export.format}, {after.path} is {after.export.format}.",
            "Export both with the same --format: the layers' part could not be told from the format's.",
        )
    if before.runtime != ONNXRUNTIME:
        _refuse_providers(before, settings)
    if before.export.dtype != after.export.dtype:
        raise BenchmarkError(
            f"{before.path} was exported in {before.export.dtype}, {after.path} in {after.export.dtype}.",
            "Export both with the same --dtype: the layers' part could not be told from the precision's.",
        )
    if before.export.treatment != after.export.treatment:
        raise BenchmarkError(
            f"{before.path} was exported with other settings of --optimize and --quantize "
            f"({before.export.treatment}) than {after.path} ({after.export.treatment}).",
            "Export both with the same: the layers' part could not be told from theirs.",
        )
    if (before.export.metric, before.export.prompting) != (after.export.metric, after.export.prompting):
        raise BenchmarkError(
            f"{before.path} and {after.path} were exported with different metrics or prompts "
            f"({before.export.metric}, {after.export.metric}).",
            "Export both with the same --metric, prompts and rule for answers.",
        )
    _refuse_wrong_way_round(before, after)
    _refuse_other_labels(before, after)
    for folder in (before, after):  # which reads them whole, and so comes last
        _refuse_other_files(folder)
    return before, after


def _refuse_other_files(folder: ExportFolder) -> None:
    """Refuse files that are not those that were exported and proven: numbers would be told of another model.

    Raises:
        BenchmarkError: Naming one.
    """
    for name, digest in folder.export.files.items():
        if sha256(folder.path / name) != digest:
            raise BenchmarkError(
                f"{folder.path / name} is not the file that export.json tells of.", "Export the model again."
            )


def _refuse_wrong_way_round(before: ExportFolder, after: ExportFolder) -> None:
    """Refuse two files of which the second is not what is left of the first.

    Raises:
        BenchmarkError: Saying what does not fit.
    """
    one, other = before.export, after.export
    if one.num_layers != other.num_layers:
        raise BenchmarkError(
            f"{before.path} is of a model with {one.num_layers} layers, {after.path} is what is left of one "
            f"with {other.num_layers}.",
            "Name the export of the original that was pruned.",
        )
    back = [name for name in one.drop if name not in other.drop and layer_of(name) not in other.drop]
    if back:
        raise BenchmarkError(
            f"{before.path} lacks {layers_text(back)}, and {after.path} has what the original lacks.",
            "Name the original first, then the pruned one.",
        )
    changed = (one.drop, one.damp) != (other.drop, other.damp)
    if changed and one.files == other.files:
        raise BenchmarkError(
            f"{before.path} and {after.path} hold the same files, and differ by what they are said to lack.",
            "Export both again.",
        )


def _refuse_other_labels(before: ExportFolder, after: ExportFolder) -> None:
    """Refuse two files whose outputs have other names: one would be scored by the labels of the other.

    Raises:
        BenchmarkError: Naming both orders.
    """
    one, other = (_labels(folder.path / "config.json") for folder in (before, after))
    if one is not None and other is not None and one != other:
        raise BenchmarkError(
            f"{before.path} has labels {one}, {after.path} has {other}.",
            "Export both from models with the same.",
        )


def _labels(config: Path) -> Any:
    """Return what a config calls the outputs; None where it says nothing, or there is none."""
    if not config.is_file():
        return None
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return fields.get("id2label") if isinstance(fields, dict) else None


def _refuse_providers(folder: ExportFolder, settings: BenchmarkSettings) -> None:
    """Refuse what only ONNX Runtime has.

    Raises:
        BenchmarkError: Naming the option.
    """
    what = f"{folder.path} is a {folder.export.format} file, which PyTorch runs"
    if set(map(resolve_provider, settings.providers)) != {CPU}:
        raise BenchmarkError(f"{what}: --provider is for ONNX files.", "Leave out --provider.")
    if settings.tune_seconds is not None:
        raise BenchmarkError(f"{what}: --tune is for ONNX files.", "Leave out --tune.")


def compare_fusions(before: ExportFolder, after: ExportFolder) -> str | None:
    """Check that every layer that both files have is fused alike in both.

    Returns:
        Why that could not be compared; None where it was, or neither file was optimised.

    Raises:
        BenchmarkError: Naming the layer, and the operators that it lacks.
    """
    unknown = []
    for name in before.export.fusions:
        one, other = (_by_layer(folder.export, name) for folder in (before, after))
        if one is None or other is None:
            unknown.append(name)
            continue
        for layer in sorted(one.keys() & other.keys()):
            if one[layer] == other[layer]:
                continue
            lacks = [
                f"{folder.path} lacks {', '.join(f'{count} {operator}' for operator, count in gone.items())}"
                for folder, gone in ((after, one[layer] - other[layer]), (before, other[layer] - one[layer]))
                if gone
            ]
            raise BenchmarkError(
                f"Layer {layer} is not fused alike in both files: in {name}, {'; '.join(lacks)}.",
                "Export both with the same versions of the libraries; if it stays so, without --optimize.",
            )
    if not unknown:
        return None
    names = ", ".join(unknown)
    return f"Layers of {names} cannot be told in the graph: whether both are fused alike was not compared."


def _by_layer(export: Export, name: str) -> dict[int, Counter[str]] | None:
    """Return the fused operators of a file by the index that each layer has in the original model."""
    fused = export.fusions.get(name)
    if fused is None or not fused.layers or lone_parts(export.drop):
        return None
    # Of several stacks, layers are named `encoder:3`, and files `encoder_model.onnx`, `decoder_...`.
    stack = "encoder" if name.startswith("encoder") else "decoder"
    dropped = {
        int(number)
        for own, _, number in (str(layer).rpartition(":") for layer in whole_layers(export.drop))
        if own in ("", stack)
    }
    depth = len(fused.layers) + len(dropped)
    if len(export.fusions) == 1 and depth != export.num_layers:
        return None
    kept = [layer for layer in range(depth) if layer not in dropped]
    return {layer: Counter(operators) for layer, operators in zip(kept, fused.layers, strict=True)}
