"""Safetensors files: what they hold, and new ones written from them, block by block.

Bytes are copied as they are, and compared with what was written. At no time is more than two blocks in
memory: files are read, not mapped, as a mapped file that shrinks ends the process without a word.
Knows nothing about networks or layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, cached_files

from ..artifacts import sha256, write_text
from ..errors import LoadError, OutputError, first_line, reason
from ..external import leads_out

BLOCK = 1 << 18  # bytes; larger ones were slower, and new memory for each, far slower
MARK_BYTES = 1 << 12  # of a tensor's beginning, and of its end, in a fingerprint
# Of the format: the header's length comes first, in as many bytes, and the data starts at a multiple.
LENGTH_BYTES = ALIGNMENT = 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: `size` bytes from byte `start` on; `dtype` by the format's names.

    With `is_zero`, it is written as zeros, whatever the file has there.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    is_zero: bool = False


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors by name, in the order in which they lie in its files.

    `stamps` tells, file by file, its size (bytes) and when it was last written (ns) as it was looked at.
    `replaced` are tensors in whose place others have been put.
    """

    tensors: Mapping[str, Stored]
    stamps: Mapping[Path, tuple[int, int]]
    replaced: Mapping[str, Stored] = field(default_factory=dict)

    @property
    def largest_file(self) -> int:
        """Bytes of tensors in the largest file, each tensor counted in the file that it came from."""
        sizes = dict.fromkeys(self.stamps, 0)
        for name, stored in self.tensors.items():
            sizes[self.replaced.get(name, stored).file] += stored.size
        return max(sizes.values())


def read_weights(source: str | Path, *, local_files_only: bool) -> Weights:
    """Find a checkpoint's files and read their headers, and nothing else of them.

    Args:
        source: A local folder, or a name on the Hugging Face hub.
        local_files_only: Take what of the hub is here already.

    Raises:
        LoadError: If a file is missing, cut off or no safetensors file, or a tensor is in two of them, or
            in none.
    """
    files, listed = _files_of(source, local_files_only)
    tensors: dict[str, Stored] = {}
    stamps = {}
    for file in files:
        try:
            stamps[file] = _stamp(file)
            found = _read_header(file)
        except OSError as error:
            raise LoadError(f"Cannot read {file}: {reason(error)}.", "Fetch the checkpoint again.") from error
        except SafetensorError as error:
            raise LoadError(
                f"{file} is no whole safetensors file: {first_line(error)}.", "Fetch the checkpoint again."
            ) from error
        if twice := sorted(tensors.keys() & found):
            raise LoadError(f"{tensors[twice[0]].file} and {file} both hold a tensor {twice[0]}.")
        tensors |= found
    if nowhere := sorted(listed - tensors.keys()):
        raise LoadError(
            f"{source} has no tensor {nowhere[0]} ({len(nowhere)} such), though its index names it.",
            "Fetch the checkpoint again.",
        )
    return Weights(tensors, stamps)


def replacing(source: Weights, file: Path) -> Weights:
    """Return the tensors with those that a file holds in place of the source's of the same names."""
    instead = _read_header(file)
    replaced = {name: source.tensors[name] for name in instead}
    return Weights({**source.tensors, **instead}, {**source.stamps, file: _stamp(file)}, replaced)


def fingerprint_of(source: str | Path, *, local_files_only: bool) -> str:
    """Return a SHA-256 of what each tensor is called, what it is, and the bytes that it begins and ends with.

    It is the same however tensors are divided over files, and takes a moment for a large model, too. Two
    models that were trained differ by it.

    Raises:
        LoadError: As `read_weights` does.
    """
    digest, weights = hashlib.sha256(), read_weights(source, local_files_only=local_files_only)
    with ExitStack() as opened:
        files = {file: opened.enter_context(file.open("rb")) for file in weights.stamps}
        for name, stored in sorted(weights.tensors.items()):
            digest.update(f"{name}\0{stored.dtype}\0{stored.shape}\0".encode())
            stream, size = files[stored.file], min(stored.size, MARK_BYTES)
            for start in (stored.start, stored.start + stored.size - size):
                stream.seek(start)
                digest.update(stream.read(size))
    return digest.hexdigest()


def _files_of(source: str | Path, local_files_only: bool) -> tuple[list[Path], set[str]]:
    """Return a checkpoint's weight files as transformers finds them, and the tensors its index names.

    What goes with them from the hub is fetched too.
    """
    options = {"local_files_only": local_files_only, "_raise_exceptions_for_missing_entries": False}

    def find(name: str) -> str | None:
        found: str | None = cached_file(str(source), name, **options)
        return found

    try:
        find("generation_config.json")
        if (single := find(SAFE_WEIGHTS_NAME)) is not None:
            return [Path(single)], set()
        if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is None:
            raise LoadError(
                f"{source} has no *.safetensors weights.", "Save the model again with save_pretrained."
            )
        weight_map = _read_index(Path(index))
        names = sorted(set(weight_map.values()))
        if Path(source).is_dir():  # where `cached_files` would not name the one that is missing
            return [Path(source) / name for name in names], set(weight_map)
        found = cached_files(str(source), names, local_files_only=local_files_only)
        return [Path(file) for file in found or ()], set(weight_map)
    except (OSError, ValueError) as error:
        raise LoadError(f"Cannot get the weights of {source}: {first_line(error)}") from error


def _read_index(index: Path) -> dict[str, str]:
    """Return the file of each tensor.

    Raises:
        LoadError: If the index is none, or names a file elsewhere.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{index} is no index of weights: {first_line(error)}.") from error
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or leads_out(name):
            raise LoadError(f"{index} names {name!r}, which is no safetensors file in its folder.")
    if not names:
        raise LoadError(f"{index} names no weights.")
    return dict(weight_map)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read_header(file: Path) -> dict[str, Stored]:
    """Return what a file holds, in the order of its bytes.

    Raises:
        OSError, SafetensorError: If it cannot be read, or does not hold what its header says.
    """
    # The library checks it all: known types, sizes that fit shapes, no gaps, no overlaps, the file's end.
    with safe_open(file, framework="numpy") as opened:
        names = set(opened.keys())
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
    if unnamed := [name for name in names if not isinstance(header[name], dict)]:  # which it takes as well
        raise SafetensorError(f"{min(unnamed)} is described without names")
    stored = {}
    for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
        start, end = header[name]["data_offsets"]
        shape = tuple(header[name]["shape"])
        stored[name] = Stored(file, header[name]["dtype"], shape, LENGTH_BYTES + length + start, end - start)
    return stored


def write_weights(tensors: Mapping[str, Stored], source: Weights, folder: Path) -> dict[str, str]:
    """Write tensors into new files, each no larger than the source's largest, and compare every byte.

    Args:
        tensors: Where each lies now, by the name it gets.
        source: What they are taken from.
        folder: An existing folder, which gets `model.safetensors`, or files numbered as transformers
            numbers them and their index.

    Returns:
        The SHA-256 of each file of tensors, by its name.

    Raises:
        LoadError: If a source file changes meanwhile.
        OutputError: If what was written cannot be read back as it was.
        OSError: If the folder cannot be written.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda stored: stored.size,
        filename_pattern=SAFE_WEIGHTS_NAME.replace(".", "{suffix}."),
        max_shard_size=source.largest_file,
    )
    digests = {}
    with ThreadPoolExecutor(1) as pool:
        for file, names in split.filename_to_tensors.items():
            part = {name: tensors[name] for name in names}
            _write_file(folder / file, part)
            _compare(folder / file, part)  # while the system still has it all in memory
            digests[file] = pool.submit(sha256, folder / file)  # for the same reason, beside the next
            for read in sorted({stored.file for stored in part.values()}):
                if _stamp(read) != source.stamps[read]:
                    raise LoadError(f"{read} changed while it was read.", "Run the command again.")
                _let_go(read)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_text(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return {file: digest.result() for file, digest in digests.items()}


def _let_go(file: Path) -> None:
    """Tell the system that it need not keep a file in memory: the next is read into what this one had."""
    if hasattr(os, "posix_fadvise"):  # Linux has it
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_file(file: Path, tensors: Mapping[str, Stored]) -> None:
    """Write one file: tensors of wide types first, so that each starts at a multiple of its width."""

    def width(stored: Stored) -> float:
        return stored.size / max(1, math.prod(stored.shape))

    ordered = dict(sorted(tensors.items(), key=lambda item: -width(item[1])))  # else as they lie
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without
    end = 0
    for name, stored in ordered.items():
        start, end = end, end + stored.size
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as output:
        output.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for stored in ordered.values():
            # Writes that start at a multiple of their length cost the system half as much.
            for block in _blocks(stored, BLOCK - output.tell() % BLOCK):
                output.write(block)


def _compare(file: Path, tensors: Mapping[str, Stored]) -> None:
    """Read a file that was written, and hold every tensor against where it was taken from.

    Raises:
        OutputError: Naming one that differs.
    """
    try:
        written = _read_header(file)
    except SafetensorError as error:
        raise OutputError(f"{file} cannot be read back: {first_line(error)}.", "Check the disk.") from error
    different = written.keys() ^ tensors.keys()
    for name in tensors.keys() & written.keys():
        one, other = tensors[name], written[name]
        same_kind = (one.dtype, one.shape, one.size) == (other.dtype, other.shape, other.size)
        if not (same_kind and all(map(np.array_equal, _blocks(one), _blocks(other)))):
            different.add(name)
    if different:
        raise OutputError(f"{file}: {min(different)} is not what was written.", "Check the disk.")


def _blocks(stored: Stored, first: int = BLOCK) -> Iterator[memoryview]:
    """Yield a tensor's bytes, at first so many; each block lies where the one before lay.

    Raises:
        LoadError: If the file ends before the tensor does, or cannot be read.
    """
    buffer, left = memoryview(bytearray(BLOCK)), stored.size
    try:
        with stored.file.open("rb") as stream:
            stream.seek(stored.start)
            while left:
                block = buffer[: min(BLOCK if left < stored.size else first, left)]
                if stream.readinto(block) < len(block):
                    raise LoadError(
                        f"{stored.file} ends before its weights do.", "Fetch the checkpoint again."
                    )
                left -= len(block)
                if stored.is_zero:
                    block[:] = bytes(len(block))
                yield block
    except OSError as error:
        raise LoadError(f"Cannot read {stored.file}: {reason(error)}.") from error
