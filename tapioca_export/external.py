"""Files that a model names: those elsewhere than beside it are refused before they are opened.

A model is from whoever wrote it, and libraries open what it names: ONNX Runtime follows a graph to its
weights. So whoever opens a graph asks here first. Knows nothing about what a graph computes.

Source: onnx.proto, `TensorProto.external_data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .errors import LoadError, UnsupportedModelError, first_line

if TYPE_CHECKING:
    import onnx


def leads_out(name: str) -> bool:
    """Tell whether a relative name, as it is written, leads out of the folder that it is taken from."""
    return any(
        path.is_absolute() or path.drive or path.root or ".." in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def refuse_link_out(path: Path, main: Path) -> None:
    """Refuse a link to elsewhere than the folder of a model's main file.

    Where the main file is a link itself, as in the cache of the Hugging Face hub, others may lead there too.

    Raises:
        UnsupportedModelError: If the file is elsewhere.
    """
    real = path.resolve()
    if not any(real.is_relative_to(home) for home in (main.parent.resolve(), main.resolve().parent)):
        raise UnsupportedModelError(
            f"{path} is a link to {real}, outside its own folder.", "Put the file itself there."
        )


def read_proto(file: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its weights elsewhere, all of which are beside it and long enough.

    Raises:
        LoadError: If the file is missing or is no ONNX model, or weights beside it are missing or too short.
        UnsupportedModelError: If its weights are elsewhere than beside it.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    if not file.is_file():
        raise LoadError(f"There is no file {file}.", "Name an ONNX file.")
    try:
        proto = onnx.load_model(file, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise LoadError(f"{file} is not an ONNX model: {first_line(error)}", "Name an ONNX file.") from error
    if not proto.HasField("graph"):  # an empty file parses as a message without anything
        raise LoadError(f"{file} is not an ONNX model: it has no graph.", "Name an ONNX file.")
    for tensor in _external_tensors(proto):
        _refuse_elsewhere(file, tensor)
    return proto


def weight_names(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the files with weights that a graph names, relative to its folder."""
    entries = (entry for tensor in _external_tensors(proto) for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def _external_tensors(proto: onnx.ModelProto) -> Iterator[Any]:
    """Yield the tensors that are elsewhere; one that only names a file, and holds its values, is not."""
    import onnx

    return (tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of a message, wherever it stands.

    That is, among the weights of a graph, of one inside an attribute or of a function, in a sparse tensor, or
    as a constant: readers follow all of them.
    """
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.name != "ValueInfoProto":
            for part in value if isinstance(value, Sequence) else (value,):
                yield from _tensors(part)


def _refuse_elsewhere(file: Path, tensor: Any) -> None:
    """Refuse a tensor that is not whole in a file beside the graph.

    Raises:
        LoadError: If the file is not there, or ends too early.
        UnsupportedModelError: If it is elsewhere.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if leads_out(name):
        raise UnsupportedModelError(
            f"{file} has its weights in {name!r}, outside its own folder.", "Put them beside it."
        )
    place = file.parent / name
    if not place.is_file():
        raise LoadError(
            f"{file} has its weights in {name!r}, which is not there.", "Put it beside the graph."
        )
    refuse_link_out(place, file)
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        start = length = -1
    if start < 0 or length < 0 or start + length > place.stat().st_size:
        raise LoadError(
            f"{file} has the weight {tensor.name} beyond the end of {name!r}.", "Fetch both files again."
        )
