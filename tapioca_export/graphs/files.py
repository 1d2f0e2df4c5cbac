"""ONNX files: read without their weights, and written beside weights that stay where they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import LoadError, OutputError, UnsupportedModelError, first_line

if TYPE_CHECKING:
    import onnx_ir as ir

# What goes with a graph: settings, tokenizer, what makes inputs of images and sound, licence.
COMPANIONS = (
    "config.json", "generation_config.json", "genai_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def read_graph(file: Path) -> ir.Model:
    """Read a graph; weights in files beside it are not read.

    Raises:
        LoadError: If the file is missing or is no ONNX model, or weights beside it are missing.
        UnsupportedModelError: If its weights are elsewhere than beside it.
    """
    import onnx_ir

    if not file.is_file():
        raise LoadError(f"There is no file {file}.", "Name an ONNX file.")
    try:
        model = onnx_ir.load(file)
    # protobuf raises its own errors, onnx_ir a few more; they have no common base.
    except Exception as error:
        raise LoadError(f"{file} is not an ONNX model: {first_line(error)}", "Name an ONNX file.") from error
    for name in weight_files(model):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UnsupportedModelError(
                f"{file} has its weights in {name}, outside its own folder.", "Put them beside it."
            )
        if not (file.parent / name).is_file():
            raise LoadError(
                f"{file} has its weights in {name}, which is not there.", "Put it beside the graph."
            )
    return model


def weight_files(model: ir.Model) -> tuple[str, ...]:
    """Return the files with weights, relative to the graph's folder."""
    import onnx_ir

    tensors = (value.const_value for value in model.graph.initializers.values())
    found = {str(t.location) for t in tensors if isinstance(t, onnx_ir.ExternalTensor)}
    return tuple(sorted(found))


def write_graph(model: ir.Model, file: Path, source: Path) -> None:
    """Write a graph; weights that were beside the one it comes from are linked, not copied.

    A link is another name of the same file: it takes no room, and stays when the first name goes. Where
    the file system has none, or the folders are on two, the weights are copied.

    Args:
        model: What to write.
        file: Where.
        source: The folder of the graph that it comes from.

    Raises:
        OutputError: If the folder cannot be written.
    """
    import onnx_ir

    try:
        for name in weight_files(model):
            (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
            if not (file.parent / name).exists():
                _link(source / name, file.parent / name)
        onnx_ir.save(model, file)
    except OSError as error:
        raise OutputError(f"Cannot write {file}: {error.strerror}.", "Make room, or name another.") from error


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)
    except OSError:
        shutil.copyfile(old, new)


def companions(folder: Path) -> Iterator[Path]:
    """Yield what stands beside a graph and belongs to it, by the names of the ecosystem."""
    found = {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    yield from sorted(found)
