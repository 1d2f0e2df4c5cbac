"""Where a folder came from: versions, hardware, hashes of inputs and outputs.

Knows nothing about how any artifact was computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from . import graphs
from .artifacts import (
    Command,
    Provenance,
    Run,
    combined,
    hash_text,
    hashes,
    is_sealed,
    locked,
    read,
    sealed,
    sha256,
    write_sealed,
    write_together,
)
from .config import RunConfig
from .errors import LoadError, reason

RUN, RECORD = "run.json", "provenance.json"
# Begins the record of a model on the hub, which has a name and a commit in place of a hash.
HUB = "hub:"
# Begins that of a model whose tensors are known by name, type and shape, and not by their bytes.
HEADERS = "headers:"
# Begins that of a weight file that was linked and not read: its size follows.
SIZE = "size:"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PACKAGES = (
    "tapioca-export",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    *RUNTIMES,
    "optimum",
    "numpy",
    "scipy",
    "scikit-learn",
    "seqeval",
    "torchmetrics",
    "pillow",
    "soundfile",
    "jiwer",
)
NOT_INSTALLED = "not installed"
SAMPLE_FILES = ("id", "target", "id_report", "target_report", "few_shot")


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def machine() -> dict[str, Any]:
    """Return versions and hardware, as far as they are known without PyTorch."""
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def environment() -> dict[str, Any]:
    """Return versions, hardware and threads."""
    import torch

    return {
        **machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hash_model(
    model: str,
    *,
    weights: bool = True,
    known: Mapping[str, str] | None = None,
    beside: Sequence[str] | None = None,
) -> str:
    """Return the SHA-256 of a folder, or of an ONNX file and its weights; on the hub, name and commit.

    Without `weights`, of safetensors files only sizes and headers count, which name every tensor and its
    shape, and of weights beside a graph, which names them, their sizes: reading all of a large model would
    take as long as pruning it. `known` has hashes of a graph and of weights beside it that were taken
    already, by name, and `beside` names these weights where the graph was parsed already.

    Raises:
        LoadError: If a file of it cannot be read.
    """
    path = Path(model)
    try:
        return _hash_local(path, weights, known or {}, beside) if path.exists() else _on_hub(model)
    except OSError as error:
        raise LoadError(
            f"Cannot read {error.filename or path}: {reason(error)}.", "Check its rights."
        ) from error


def _hash_local(path: Path, weights: bool, taken: Mapping[str, str], beside: Sequence[str] | None) -> str:
    if path.is_file() and graphs.is_graph(path):
        files = graphs.weight_paths(path) if beside is None else [path.parent / name for name in beside]
        of_weights = sha256 if weights else size_of
        found = {file.name: taken.get(file.name) or of_weights(file) for file in files}
        own = taken.get(path.name) or sha256(path)
        return ("" if weights else HEADERS) + combined({path.name: own, **found})
    if path.is_dir() and not weights:
        files = sorted(path.rglob("*.safetensors"))
        known = {file.relative_to(path).as_posix(): _hash_header(file) for file in files}
        return f"{HEADERS}{combined(hashes(path, known))}"
    return sha256(path)


def _on_hub(model: str) -> str:
    """Return name and commit of a model on the hub."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    commit = f"@{Path(cached).parent.name}" if isinstance(cached, str) else ""
    return f"{HUB}{model}{commit}"


def size_of(file: Path) -> str:
    """Return what stands for the hash of a file that is not read."""
    return f"{SIZE}{file.stat().st_size}"


def _hash_header(file: Path) -> str:
    """Return the SHA-256 of a safetensors file's size and header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, size))
    return hashlib.sha256(f"{size}\0".encode() + header).hexdigest()


def hash_inputs(
    config: RunConfig,
    *,
    weights: bool = True,
    known: Mapping[str, str] | None = None,
    beside: Sequence[str] | None = None,
) -> dict[str, str]:
    """Return the SHA-256 of the model, as `hash_model`, and of every file that was given, by its path."""
    model = hash_model(config.model, weights=weights, known=known, beside=beside)
    return {config.model: model, **{str(path): sha256(path) for path in _given(config)}}


def _given(config: RunConfig) -> list[Path]:
    """Return the files that were given beside the model."""
    files = [path for *_, path in config.files(*SAMPLE_FILES)]
    if config.prompt_template and os.path.isfile(config.prompt_template):
        files.append(Path(config.prompt_template))
    return files


@contextmanager
def unchanged(config: RunConfig) -> Iterator[None]:
    """Let inputs be read and hashed; refuse those that change meanwhile, whose hash would be of others.

    Raises:
        LoadError: Naming one that did.
    """
    before = _stamps(config)
    yield
    after = _stamps(config)
    for path in before | after:
        if before.get(path) != after.get(path):
            raise LoadError(f"{path} changed while it was read.", "Give the same command again.")


def _stamps(config: RunConfig) -> dict[Path, tuple[int, int, int]]:
    """Return inode, size (bytes) and time of the last change (ns) of every local file that is an input."""
    model = Path(config.model)
    beside = model.parent.glob(f"{model.name}*") if model.is_file() else model.rglob("*")
    files = [path for path in (*beside, *_given(config)) if path.is_file()]
    found = {path: path.stat() for path in files}
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in found.items()}


def shown(path: str | Path, folder: Path, root: Path | None = None) -> str:
    """Return how a record in a folder names a path.

    What is inside the root (default: the folder) is named relative to the folder, so that the root can be
    moved; anything else as it was given.
    """
    if not Path(path).is_relative_to(root or folder):
        return str(path)
    return Path(os.path.relpath(path, folder)).as_posix()


def resolved(config: RunConfig, folder: Path, root: Path | None = None) -> dict[str, Any]:
    """Return the configuration as plain values, its sample files as `shown` names them."""
    values = {**asdict(config), "columns": dict(config.columns), "output": str(config.output)}
    for setting, domain, path in config.files(*SAMPLE_FILES):
        name = shown(path, folder, root)
        values[setting] = {**values[setting], domain: name} if domain else name
    if not isinstance(config.target, Mapping):  # these have no say then
        del values["objective"], values["weights"]
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def hash_outputs(folder: Path, record: str, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder but the record itself.

    Args:
        folder: The folder.
        record: The file's name.
        known: Hashes that were taken already; those that records in folders below hold are taken over.
    """
    known = dict(known or {})
    for below in sorted(folder.rglob(RECORD)):
        place = below.parent.relative_to(folder)
        if below != folder / record:
            known |= {(place / name).as_posix(): h for name, h in read(below, Provenance).outputs.items()}
    found = hashes(folder, known)
    found.pop(record, None)
    return found


def record_folder(
    folder: Path,
    command: Command,
    config: RunConfig,
    inputs: Mapping[str, str],
    rows: str = "",
    *,
    known: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> str:
    """Write `provenance.json` beside the files of a folder that is handed on; returns the folder's SHA-256.

    Args:
        folder: Holds all that it will hold.
        command: What was asked for.
        config: With what settings; the model is what was exported or pruned.
        inputs: As `hash_inputs` returns it.
        rows: The fingerprint of the rows that it was proven on, if any.
        known: Hashes of the folder's files that were taken already.
        root: The run folder that it is a part of, if it is.
    """
    named = {shown(path, folder, root): digest for path, digest in inputs.items()}
    model = shown(config.model, folder, root)
    values = {**resolved(config, folder, root), "model": model}
    del values["output"]  # is where the record lies
    outputs = hash_outputs(folder, RECORD, known)
    here = environment() if "torch" in sys.modules else machine()
    record = Provenance(command, model, values, here, named, outputs, rows)
    write_sealed(folder / RECORD, record)
    return combined({**outputs, RECORD: sha256(folder / RECORD)})


def record_added(folder: Path, name: str, text: str) -> None:
    """Write a file into a folder, and it into the folder's record and that of the run it is a part of.

    Records that are no longer what was written stay as they are, so that `verify` finds it out.

    Raises:
        OutputError: If one cannot be written; all are then as they were.
    """
    folder = folder.resolve()
    texts = {folder / name: text}
    with locked(folder, folder):
        texts |= _records_with(folder, texts)
        write_together(texts)


def _records_with(folder: Path, changed: Mapping[Path, str]) -> dict[Path, str]:
    """Return the records of a folder and its run, those that hold, with the hashes of texts to be written."""
    texts = dict(changed)
    for path in (folder / RECORD, folder.parent.parent / RUN):
        if not path.is_file():
            continue
        record: Provenance | Run = read(path, Provenance) if path.name == RECORD else read(path, Run)
        place = folder.relative_to(path.parent) / RECORD
        is_its_own = path.name == RECORD or place.as_posix() in record.outputs
        if not is_its_own or not is_sealed(path, record.sha256):
            break
        hashed = {file.relative_to(path.parent).as_posix(): hash_text(text) for file, text in texts.items()}
        texts[path] = sealed(replace(record, outputs={**record.outputs, **hashed}))
    return texts


def read_run(folder: Path) -> Run:
    """Read the record of a run folder.

    Raises:
        LoadError: If the folder has none, or it is not what was written.
    """
    path = folder / RUN
    if not path.is_file():
        raise LoadError(f"{folder} is not a run folder: it has no {RUN}.", "Name the output of `run`.")
    record = read(path, Run)
    if record.sha256 and not is_sealed(path, record.sha256):
        raise LoadError(f"{path} is not what was written.", "Run the job again.")
    return record


def refuse_changed(folder: Path, record: Run, names: Iterable[str]) -> None:
    """Refuse to read files of a run folder that are not what the run wrote.

    Raises:
        LoadError: Naming one.
    """
    for name in names:
        if (
            name in record.outputs
            and (folder / name).is_file()
            and sha256(folder / name) != record.outputs[name]
        ):
            raise LoadError(
                f"{folder / name} is not what the run wrote: its hash in {RUN} is another.",
                "Run the job again.",
            )


def make_run(
    config: RunConfig,
    folder: Path,
    inputs: Mapping[str, str],
    seconds: dict[str, float],
    environment: dict[str, Any],
) -> Run:
    """Record a run: its configuration, its inputs and every file that is in its folder now."""
    named = {shown(path, folder): digest for path, digest in inputs.items()}
    return Run(resolved(config, folder), environment, named, hash_outputs(folder, RUN), seconds)
