"""The model card of a pruned checkpoint: what the hub reads, and what a person should know.

Knows nothing about how anything was chosen or measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import plain_yaml
from .artifacts import Accuracy, Benchmark, Selection, write_text
from .numbering import LayerName, layers_text, lone_parts, whole_layers

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

# The hub's name of a task, where it is not ours; it has none for the embedded example.
PIPELINE_TAGS = {"multiple-choice": "text-generation", "polynomial-regression": None}
# What a pruned model shares with its original.
INHERITED = ("license", "license_name", "license_link", "language")
ROLES = {"id": "In-distribution", "target": "Target-domain"}

LARGEST_CARD = 1 << 20  # bytes
# What the model card says of how a checkpoint was proven.
PROOFS = {
    "logits": (
        "After it was saved, this checkpoint was reloaded in a fresh process, and its logits equalled, bit\n"
        "for bit, those of the original model{how}."
    ),
    "weights": (
        "After it was saved, its files were read back: every tensor is one of the original's, byte for\n"
        "byte, and together they are what the model's class wants. No logits were computed."
    ),
}
LOCAL = "Made from a local folder; which model on the hub it comes from, if any, is not known."
DAMPED = "Layers damped, by folded weights that scale what each branch adds to the residual stream"


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


def write_model_card(folder: Path, selection: Selection, measured: Benchmark | None = None) -> None:
    """Write the README.md of a pruned checkpoint, with what it scored if that was measured."""
    name = Path(selection.model).name
    whole = whole_layers(selection.drop)
    layers, kept = ", ".join(map(str, whole)) or "none", selection.num_layers - len(whole)
    zeros = f"{selection.note}\n" if lone_parts(selection.drop) else ""
    damped = ", ".join(f"{part.layer} (times {part.scale:g})" for part in selection.damp)
    damped = f"\n{DAMPED}: {damped}." if damped else ""
    done = "layers removed" if selection.drop else "layers damped" if damped else "unchanged"
    how = " with these layers skipped" if selection.drop or damped else ""
    how += " or damped" if damped else ""
    proof = PROOFS[selection.proof or "logits"].format(how=how)
    data = _metadata(folder, selection, measured)
    made_of = f"\n{LOCAL}" if data.base_model is None else ""
    licence = data.license or "that of the original model, whose card names none or is not at hand"
    text = f"""---
{data.to_yaml()}
---
# {name}, {done}

Layers removed, no retraining: {layers} of {selection.num_layers} (counted from 0); {kept} are left.{damped}
{zeros}Chosen by the criterion `{selection.criterion}` of tapioca-export; `selection.json` says why.
{proof}{made_of}

{_results(measured) if measured else ""}Licence: {licence}.
"""
    write_text(folder / "README.md", text)


def _metadata(folder: Path, selection: Selection, measured: Benchmark | None) -> ModelCardData:
    """Return what the hub reads; licence, languages and, of a local model, its base are the original's."""
    from huggingface_hub import ModelCardData

    before = _metadata_of(selection.model)
    base = _hub_names(before.get("base_model")) if _is_local(selection.model) else selection.model
    tag = _pipeline_tag(folder, selection.task)
    results = _eval_results(measured, tag or "other") if measured else []
    return ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag=tag,
        tags=["pruned", "layer-pruning", "tapioca-export"],
        model_name=f"{Path(selection.model).name}-pruned" if results else None,
        eval_results=results or None,
        **{key: before[key] for key in INHERITED if key in before},
    )


def _hub_names(found: Any) -> str | list[str] | None:
    """Return what of a card's base models are names on the hub, where tools have put paths too."""
    named = found if isinstance(found, list) else [found]
    names = [name for name in named if isinstance(name, str) and not _is_local(name)]
    return names if len(names) > 1 else next(iter(names), None)


def _is_local(model: str) -> bool:
    """Tell whether a model is a folder, here or where it was selected, rather than a name on the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return True
    return Path(model).exists()


def _metadata_of(model: str) -> dict[str, Any]:
    """Return the metadata of the original's card, where that is at hand and can be read."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    card = Path(model) / "README.md"
    if not Path(model).exists() and not _is_local(model):
        cached = try_to_load_from_cache(model, "README.md")
        card = Path(cached) if isinstance(cached, str) else card
    try:
        if not card.is_file() or card.stat().st_size > LARGEST_CARD:
            return {}
        found = REGEX_YAML_BLOCK.search(card.read_text(encoding="utf-8"))
        metadata = plain_yaml.load(found[2]) if found else None
    except (OSError, ValueError):  # a card that nobody could read says nothing
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _eval_results(measured: Benchmark, task: str) -> list[EvalResult]:
    """Return the scores of the exported file on report rows, as the hub's model index has them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=role.replace(" ", "-"),
            dataset_name=f"{ROLES.get(role, role)} rows, kept for the report",
            dataset_args={"rows": accuracy.n},
            metric_type=accuracy.metric,
            metric_name=accuracy.metric,
            metric_value=accuracy.pruned,
        )
        for role, accuracy in _scored(measured).items()
        if math.isfinite(accuracy.pruned)
    ]


def _scored(measured: Benchmark) -> dict[str, Accuracy]:
    return measured.accuracy | {f"target {name}": row for name, row in measured.targets.items()}


def _results(measured: Benchmark) -> str:
    """Return a table of the scores; empty where nothing was labelled."""
    lines = [
        f"| {ROLES.get(role, role)} | {row.metric} | {row.n} | {row.original:.4g} | {row.pruned:.4g} "
        f"| {row.difference:+.4g} ({row.interval[0]:+.4g} to {row.interval[1]:+.4g}) |"
        for role, row in _scored(measured).items()
    ]
    if not lines:
        return ""
    head = [
        "Scores of the exported files on rows that took no part in choosing, with 95 % intervals:",
        "",
        "| rows | metric | number | original | pruned | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join((*head, *lines, "", ""))
