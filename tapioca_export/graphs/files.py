"""ONNX files: read without their weights, and written beside weights that stay where they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, OutputError, ParityError, UnsupportedModelError, first_line, reason
from ..external import read_proto, refuse_link_out, weight_names

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

# What goes with a graph: settings, tokenizer, what makes inputs of images and sound, licence.
COMPANIONS = (
    "config.json", "generation_config.json", "genai_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
GENAI = "genai_config.json"


def is_graph(source: str | Path) -> bool:
    """Tell whether a model is named by its ONNX file."""
    return Path(source).suffix.lower() == ".onnx"


def weight_paths(file: Path) -> list[Path]:
    """Return the files with weights beside a graph.

    Raises:
        LoadError: If the graph cannot be read.
    """
    return [file.parent / name for name in weight_names(read_proto(file))]


def read_graph(file: Path) -> ir.Model:
    """Read a graph; weights in files beside it are not read.

    Raises:
        LoadError: If the file is missing or is no ONNX model, or weights beside it are missing or too short.
        UnsupportedModelError: If its weights are elsewhere than beside it.
    """
    return graph_of(read_proto(file), file)


def graph_of(proto: onnx.ModelProto, file: Path) -> ir.Model:
    """Return the graph of a file that was parsed; its tensors are the file's, not copies.

    Raises:
        LoadError: If it is no ONNX model.
    """
    import onnx_ir

    try:
        model = onnx_ir.from_proto(proto)
    except onnx_ir.serde.SerdeError as error:
        raise LoadError(f"{file} is not an ONNX model: {first_line(error)}", "Name an ONNX file.") from error
    onnx_ir.external_data.set_base_dir(model.graph, file.parent)
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
        raise _not_written(file, error) from error


def copy_graph(file: Path, folder: Path) -> None:
    """Put a graph into a folder as it is, with what stands beside it; its weights are linked.

    Raises:
        LoadError: If it cannot be read.
        OutputError: If the folder cannot be written.
    """
    try:
        for path in weight_paths(file):
            new = folder / path.relative_to(file.parent)
            new.parent.mkdir(parents=True, exist_ok=True)
            _link(path, new)
        for path in (file, *companions(file)):
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder}: {reason(error)}.", "Make room, or name another."
        ) from error


def put_weights_beside(file: Path) -> None:
    """Move weights out of a graph, into one file beside it; those that are there already stay.

    Raises:
        LoadError: If the graph cannot be read.
        OutputError: If the folder cannot be written.
        ParityError: If a weight is another one afterwards.
    """
    import onnx_ir

    proto = read_proto(file)
    if weight_names(proto):
        return
    model = graph_of(proto, file)
    try:
        onnx_ir.save(model, file, external_data=f"{file.name}_data")
    except OSError as error:
        raise _not_written(file, error) from error
    before, after = (found.graph.initializers for found in (model, read_graph(file)))
    for name, value in before.items():
        if name not in after or after[name].const_value.tobytes() != value.const_value.tobytes():
            raise ParityError(
                f"{file}: the weight {name} changed on its way out of the graph.", "Export again."
            )


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"Cannot write {path}: {reason(error)}.", "Make room, or name another.")


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)
    except OSError:
        shutil.copyfile(old, new)


def companions(file: Path) -> Iterator[Path]:
    """Yield what stands beside a graph and belongs to it, by the names of the ecosystem.

    Raises:
        UnsupportedModelError: If one is a link to elsewhere: what it leads to is not for others to see.
    """
    found = {path for pattern in COMPANIONS for path in file.parent.glob(pattern) if path.is_file()}
    for path in sorted(found):
        refuse_link_out(path, file)
        yield path


def genai_config(folder: Path) -> dict[str, Any] | None:
    """Return what onnxruntime-genai is told of a graph in a folder, if it is.

    Raises:
        UnsupportedModelError: If the file is there, and tells of no decoder.
    """
    file = folder / GENAI
    if not file.is_file():
        return None
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if int(described["model"]["decoder"]["head_size"]) <= 0:
            raise ValueError("head_size is not above 0")
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise UnsupportedModelError(
            f"{GENAI} beside the graph tells of no decoder: {type(error).__name__}, {first_line(error)}.",
            "Move it away to use the graph alone.",
        ) from error
    return described


def refuse_misdescribed(folder: Path, graph: ir.Graph) -> None:
    """Refuse a graph whose caches are not those that onnxruntime-genai is told of, if it is.

    Raises:
        UnsupportedModelError: Saying how many layers are told of.
    """
    described = genai_config(folder)
    if described is None:
        return
    decoder = described["model"]["decoder"]
    depth, inputs = decoder.get("num_hidden_layers"), decoder.get("inputs", {})
    names = [inputs[key] for key in ("past_key_names", "past_value_names") if key in inputs]
    told = {name.replace("%d", str(layer)) for name in names for layer in range(depth or 0)}
    heads = tuple(name.split("%d")[0] for name in names)
    found = {str(v.name) for v in graph.inputs if heads and str(v.name).startswith(heads)}
    if told != found:
        raise UnsupportedModelError(
            f"{GENAI} tells of {depth} layers with {len(told)} cached inputs, the graph has {len(found)}.",
            "Export again.",
        )


def named_sizes(described: dict[str, Any] | None) -> dict[str, int]:
    """Return the sizes of axes that graphs for onnxruntime-genai name, and that do not vary."""
    return {"kv_cache_dim": int(described["model"]["decoder"]["head_size"])} if described else {}
