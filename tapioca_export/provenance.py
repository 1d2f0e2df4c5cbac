"""Where a run came from: versions, hardware, hashes of inputs and outputs, and the model card.

Knows nothing about how any artifact was computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from . import graphs
from .artifacts import Run, Selection, sha256, write_text
from .config import RunConfig
from .numbering import LayerName, layers_text, lone_parts, whole_layers

PACKAGES = (
    "tapioca-export",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
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
SAMPLE_FILES = ("id", "target", "id_report", "target_report", "few_shot")
# The hub's name of a task, where it is not ours; it has none for the embedded example.
PIPELINE_TAGS = {"multiple-choice": "text-generation", "polynomial-regression": None}

# What the model card says of how a checkpoint was proven.
PROOFS = {
    "logits": (
        "After it was saved, this checkpoint was reloaded in a fresh process, and its logits equalled, bit\n"
        "for bit, those of the original model with these layers {how}."
    ),
    "weights": (
        "After it was saved, its files were read back: every tensor is one of the original's, byte for\n"
        "byte, and together they are what the model's class wants. No logits were computed."
    ),
}
DAMPED = "Layers damped, by folded weights that scale what each branch adds to the residual stream"


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment() -> dict[str, Any]:
    """Return versions, hardware and threads."""
    import torch

    return {
        "python": platform.python_version(),
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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


def hash_model(model: str) -> str:
    """Return the SHA-256 of a checkpoint folder, or of an ONNX file and its weights; on the hub, the name."""
    path = Path(model)
    if path.is_file() and graphs.is_graph(path):
        hashes = [sha256(file) for file in (path, *graphs.weight_paths(path))]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return sha256(path) if path.is_dir() else f"hub:{model}"


def make_run(config: RunConfig, folder: Path, seconds: dict[str, float], environment: dict[str, Any]) -> Run:
    """Record a run: its configuration, its inputs and every file that is in its folder now.

    Paths inside the folder are given relative to it, so that the folder can be moved.
    """
    inputs = {config.model: hash_model(config.model)}
    resolved = {**asdict(config), "columns": dict(config.columns), "output": str(config.output)}
    for setting, domain, path in config.files(*SAMPLE_FILES):
        shown = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        inputs[shown] = sha256(path)
        resolved[setting] = {**resolved[setting], domain: shown} if domain else shown
    if not isinstance(config.target, Mapping):  # these have no say then
        del resolved["objective"], resolved["weights"]
    outputs = {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "run.json"
    }
    plain = json.loads(json.dumps(resolved, default=str))
    return Run(plain, environment, inputs, outputs, seconds)


def _pipeline_tag(folder: Path, task: str) -> str | None:
    """Return the hub's name of a task; choices are a matter of likelihood, or of a head of its own."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if any(name.endswith("ForMultipleChoice") for name in config.get("architectures") or ()):
        return "multiple-choice"
    return PIPELINE_TAGS.get(task, task)


def note_of_zeros(drop: Sequence[LayerName]) -> str | None:
    """Say what a checkpoint holds in the place of parts of layers that are gone, if any are."""
    gone = [f"{layer}.{part}" for part, layers in lone_parts(drop).items() for layer in layers]
    if not gone:
        return None
    return (
        f"No stock transformers model has half a layer: for {layers_text(gone)} this checkpoint carries "
        "zeros, which compute nothing, and it is no smaller for it. Exported files lack these parts."
    )


def write_model_card(folder: Path, selection: Selection) -> None:
    """Write the README.md of a pruned checkpoint."""
    from huggingface_hub import ModelCardData

    base = None if Path(selection.model).exists() else selection.model
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag=_pipeline_tag(folder, selection.task),
        tags=["pruned", "layer-pruning", "tapioca-export"],
    )
    whole = whole_layers(selection.drop)
    layers, kept = ", ".join(map(str, whole)) or "none", selection.num_layers - len(whole)
    zeros = f"{selection.note}\n" if lone_parts(selection.drop) else ""
    damped = ", ".join(f"{part.layer} (times {part.scale:g})" for part in selection.damp)
    damped = f"\n{DAMPED}: {damped}." if damped else ""
    proof = PROOFS[selection.proof or "logits"].format(how="skipped or damped" if damped else "skipped")
    done = "removed" if selection.drop else "damped"
    text = f"""---
{data.to_yaml()}
---
# {Path(selection.model).name}, layers {done}

Layers removed, no retraining: {layers} of {selection.num_layers} (counted from 0); {kept} are left.{damped}
{zeros}Chosen by the criterion `{selection.criterion}` of tapioca-export; `selection.json` says why.
{proof}

"""
    write_text(folder / "README.md", text)
