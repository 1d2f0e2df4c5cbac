"""The job on an ONNX file: the file as it was given, and the file without layers."""

from __future__ import annotations

from pathlib import Path

from . import graphs
from .artifacts import Export, Selection, read, write
from .config import RunConfig
from .errors import ConfigError
from .exporting import describe
from .models import LoadedModel, mend_config_file
from .samples import Samples


def check(config: RunConfig) -> None:
    """Refuse what cannot be made of an ONNX file.

    Raises:
        ConfigError: If a checkpoint, another format or other operators are asked for.
    """
    if not graphs.is_graph(config.model):
        return
    dialect = (config.opset, config.target_ort)
    is_changed = dialect != (None, None) or config.dtype != RunConfig.dtype or bool(config.treatment)
    if config.format != ("onnx",) or is_changed:
        raise ConfigError(
            f"{config.model} is a graph already, and stays ONNX of its opset and precision.",
            "Leave out --format, --opset, --target-ort, --dtype, --optimize and --quantize, or name another.",
        )


def export_pair(
    config: RunConfig, model: LoadedModel, rows: Samples, selection: Selection, folder: Path
) -> dict[str, Export]:
    """Write `original/onnx` and `pruned/onnx` of a run folder: the file, and the file without layers.

    Both are proven on the rows: they compute what the file's layers compute one by one.

    Raises:
        TapiocaError: If a file cannot be read, cut or run, or computes something else.
    """
    source, names = Path(config.model), ("original/onnx", "pruned/onnx")
    original, pruned = (folder / name for name in names)
    for place in (original, pruned):
        place.mkdir(parents=True)
    made = graphs.export_of(source)
    graphs.copy_graph(source, original)
    layers = [layer for layer in selection.drop if isinstance(layer, int)]
    graphs.prune_graph(
        source, layers, pruned, made=made, proof="logits", mend_config=mend_config_file,
        selection=selection, tolerance=config.atol,
    )  # fmt: skip
    write(pruned / "selection.json", selection)  # `benchmark` asks it which rows may be reported
    left = read(pruned / graphs.EXPORT, Export) if made else None
    return {
        name: describe(model, rows, folder / name / source.name, drop, config.atol, like=like)
        for name, drop, like in zip(names, ((), selection.drop), (made, left), strict=True)
    }
