"""Write a checkpoint without layers from the files of the whole one: weights are copied, never loaded.

Only names and shapes are needed of the network; only weights that damp a layer are read, folded and written.
Which tensor of a checkpoint is which weight, and whether what is written is all that the class wants, is
asked of transformers' own loader.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import cached_file

from ..errors import LoadError, OutputError, UnsupportedModelError, first_line, reason
from ..external import refuse_link_out
from .damping import Damped, folded
from .loaded import LoadedModel, LoadOptions
from .loading import load_config
from .settings import prove_config, prove_settings
from .shards import Weights, read_weights, replacing, write_weights
from .stacks import build_empty, config_at, mended_config, prunable_stacks, refuse_dependent_switches
from .surgery import drop_layers, rearranged, silent_weights

# What goes with a checkpoint as it is, beside its config and tokenizer.
SIDE_FILES = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


class UnmappedNamesError(UnsupportedModelError):
    """A checkpoint whose tensors cannot be told apart by layer from their names alone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "--proof logits loads the weights and saves them from memory.")


def write_pruned(
    model: LoadedModel, units: Sequence[int], folder: Path, damped: Mapping[int, Damped] | None = None
) -> dict[str, str]:
    """Write a checkpoint without units: each tensor that is kept as it is in the source, byte for byte.

    But for those that damp a layer: they are folded in float32, and stored in the source's type where it
    holds the result exactly, else in float32. Where a layer stays without its attention or its MLP, the
    weights that silence it are zeros.

    What is proven: transformers' loader, given the names and shapes of what is written, finds that
    nothing is missing, unexpected or of another shape; the files were read back, and every byte is the
    source's; config and tokenizer, read back, are what was meant and what the model has.

    Args:
        model: The whole model; its network may be empty.
        units: Layers, or branches of them, to drop; may be empty.
        folder: An existing folder to write to.
        damped: Layers to damp, each with the weights that do it.

    Returns:
        The SHA-256 of each file of weights, by its name.

    Raises:
        ConfigError: If the layers do not exist or are all there are.
        LoadError: If the source cannot be read, lacks weights, or changes meanwhile.
        UnmappedNamesError: If its tensors cannot be told apart by layer; nothing was written.
        UnsupportedModelError: If what is left is not what the model's class wants.
        OutputError: If the folder cannot be written.
    """
    _refuse_named_file(model)
    weights = read_weights(model.source, local_files_only=True)  # on the hub there may be others by now
    layers = model.units.split(units)[0]
    pruned = drop_layers(model, layers)
    shapes = {name: stored.shape for name, stored in weights.tensors.items()}
    if missing := _amiss(model.network, shapes, ("missing_keys", "mismatched_keys")):
        raise LoadError(f"{model.source} has no weights for {missing[0]} ({len(missing)} such).")
    taken = _renamed(model, pruned, layers, weights.tensors)
    found = _amiss(pruned.network, {new: shapes[old] for new, old in taken.items()})
    if found:
        raise UnsupportedModelError(f"The checkpoint without these layers would not load: {found[0]}.")
    silent = _stored_as(model, silent_weights(model, units), weights.tensors)
    factors = _factors(model, damped or {}, weights.tensors)
    try:
        with TemporaryDirectory(dir=folder) as scratch:
            if factors:
                weights = _folded(weights, factors, Path(scratch) / "folded.safetensors")
            kept = {new: replace(weights.tensors[old], is_zero=old in silent) for new, old in taken.items()}
            digests = write_weights(kept, weights, folder)
        config = _write_config(pruned, folder)
        model.processor.save(folder)
        _copy_side_files(model.source, folder)
        prove_settings(folder, model, config)
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder}: {reason(error)}.", "Make room, or name another."
        ) from error
    return digests


# --- names ----------------------------------------------------------------------------------


class _Names:
    """Says which weight of a network a checkpoint's tensor is, by the rules of transformers' loader.

    Some rules depend on names seen before: ask in the loader's order, that of `dot_natural_key`.
    """

    def __init__(self, network: Any) -> None:
        rules = get_model_conversion_mapping(network)
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.prefix = network.base_model_prefix
        self.weights = network.state_dict()

    def __call__(self, name: str) -> tuple[str, str | None]:
        """Return the weight's name, and the pattern by which it is converted, if it is."""
        found, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.weights)
        if found not in self.weights and name in self.weights:
            found, pattern = rename_source_key(name, [], [], self.prefix, self.weights)
        return found, pattern


def _renamed(
    model: LoadedModel, pruned: LoadedModel, drop: Sequence[int], names: Iterable[str]
) -> dict[str, str]:
    """Return the tensors that are kept, in the order given: new name -> name in the source.

    A new name is the old one with one number changed such that the loader takes it for the weight it has
    to be. Tensors that the loader would not use are left out.

    Raises:
        UnmappedNamesError: If there is no such name, or more than one.
    """
    old, new = _Names(model.network), _Names(pruned.network)
    moved = {before: after for after, before in rearranged({n: n for n in old.weights}, model, drop).items()}
    meant: dict[str, tuple[str, str | None]] = {}
    taken: dict[str, str] = {}
    for name in sorted(names, key=dot_natural_key):
        weight, pattern = old(name)
        if weight in moved:
            wanted = (moved[weight], pattern)
            fits = [other for other in _renumberings(name, weight, moved[weight]) if new(other) == wanted]
            if len(fits) != 1 or fits[0] in meant:
                raise UnmappedNamesError(
                    f"{name} of {model.source} cannot be renamed with certainty as layers move up."
                )
            meant[fits[0]], taken[name] = wanted, fits[0]
    again = _Names(pruned.network)
    if {name: again(name) for name in sorted(meant, key=dot_natural_key)} != meant:
        raise UnmappedNamesError(f"What the names in {model.source} mean depends on each other.")
    return {taken[name]: name for name in names if name in taken}


def _factors(
    model: LoadedModel, damped: Mapping[int, Damped], names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Return alpha and offset of each tensor that is folded, by its name in the source.

    Raises:
        UnmappedNamesError: If one cannot be found.
    """
    wanted = {
        f"{model.path_of(layer)}.{name}": (change.alpha, offset)
        for layer, change in damped.items()
        for name, offset in (change.weights or {}).items()
    }
    meaning = _Names(model.network)
    found = {name: meaning(name)[0] for name in sorted(names, key=dot_natural_key)}
    if missing := sorted(wanted.keys() - set(found.values())):
        raise UnmappedNamesError(f"No tensor of {model.source} is known to be {missing[0]}, to be damped.")
    return {name: wanted[weight] for name, weight in found.items() if weight in wanted}


def _folded(weights: Weights, factors: Mapping[str, tuple[float, float]], file: Path) -> Weights:
    """Write the tensors that are folded into a file, and return the weights with these in their places."""
    tensors = {}
    for name, (alpha, offset) in factors.items():
        with safe_open(weights.tensors[name].file, framework="pt") as opened:
            stored = opened.get_tensor(name)
        exact = folded(stored.float(), alpha, offset)
        narrow = exact.to(stored.dtype)
        tensors[name] = narrow if torch.equal(narrow.float(), exact) else exact
    save_file(tensors, file)
    return replacing(weights, file)


def _stored_as(model: LoadedModel, weights: Sequence[str], names: Iterable[str]) -> set[str]:
    """Return the tensors that become some of a network's weights.

    Raises:
        UnmappedNamesError: If there are none for one.
    """
    if not weights:
        return set()
    weight_of = _Names(model.network)
    found = {name: weight_of(name)[0] for name in sorted(names, key=dot_natural_key)}
    if missing := set(weights) - set(found.values()):
        raise UnmappedNamesError(f"{min(missing)} of {model.source} has no tensor of its own.")
    return {name for name, weight in found.items() if weight in weights}


def _refuse_named_file(model: LoadedModel) -> None:
    """Refuse a checkpoint whose config names the file of its weights.

    Raises:
        UnmappedNamesError: If it does.
    """
    if getattr(model.network.config, "transformers_weights", None) is not None:
        raise UnmappedNamesError(
            f"{model.source} cannot be rewritten file by file: its config names the file of its weights."
        )


def _renumberings(name: str, before: str, after: str) -> list[str]:
    """Return the names that differ from one in one number, as `after` differs from `before`."""
    changed = {pair for pair in zip(before.split("."), after.split("."), strict=True) if pair[0] != pair[1]}
    if not changed:
        return [name]
    ((old, new),) = changed
    places = re.finditer(rf"(?<!\d){old}(?!\d)", name)
    return [f"{name[: place.start()]}{new}{name[place.end() :]}" for place in places]


def _amiss(
    network: Any,
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Sequence[str] = ("missing_keys", "unexpected_keys", "mismatched_keys"),
) -> list[str]:
    """Return what the stock loader would find amiss, given tensors that have a shape and no contents."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        _, info = type(network).from_pretrained(
            None,
            config=copy.deepcopy(network.config),
            state_dict=empty,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # classes, foreign ones too, refuse weights with errors of any kind
        return [first_line(error)]
    return [
        f"{item} ({kind.removesuffix('_keys')})" for kind in kinds for item in sorted(map(str, info[kind]))
    ]


def mend_config_file(source: Path, folder: Path, drop: Sequence[int], num_layers: int) -> None:
    """Write the config of a model in a folder without layers, whatever file has its weights.

    Args:
        source: A folder with the config of the whole model.
        folder: Where to write it.
        drop: Indices of layers.
        num_layers: How many the whole model has.

    Raises:
        UnsupportedModelError: If transformers knows no such model, or it has not these layers.
    """
    config = load_config(source, LoadOptions(local_files_only=True))
    # Heads have no layers: what a type's own model tells of them holds for all its models.
    stacks = prunable_stacks(build_empty(transformers.AutoModel.from_config, config))
    own = config_at(config, stacks[0].config)
    refuse_dependent_switches(own)
    depth = getattr(own, stacks[0].field)
    if len(stacks) > 1 or depth != num_layers:
        what = f"{len(stacks)} stacks of layers" if len(stacks) > 1 else f"{depth} layers"
        raise UnsupportedModelError(
            f"{source / 'config.json'} tells of {what}, the graph has {num_layers} layers.",
            "Prune the checkpoint and export it again.",
        )
    keep = [layer for layer in range(num_layers) if layer not in drop]
    mended = mended_config(config, stacks[0], keep)
    mended.save_pretrained(folder)
    prove_config(folder, mended)
    left = getattr(config_at(mended, stacks[0].config), stacks[0].field)
    if left != len(keep) or mended.id2label != config.id2label:
        raise UnsupportedModelError(
            f"config.json without layers tells of {left} layers and of labels {mended.id2label}, "
            f"where there are {len(keep)} and {config.id2label}.",
            "Prune the checkpoint and export it again.",
        )


# --- what goes with the weights -------------------------------------------------------------


def _write_config(pruned: LoadedModel, folder: Path) -> Any:
    """Write the config, with the source's type of weights, and the code of a class that is not stock.

    Returns:
        The config that was written.
    """
    network = pruned.network
    config = copy.deepcopy(network.config)
    raw, _ = transformers.PreTrainedConfig.get_config_dict(pruned.source, local_files_only=True)
    _set_dtype(config, raw, None)
    config.architectures = [type(network).__name__]
    if network.is_remote_code():
        custom_object_save(network, folder, config=config)
    config.save_pretrained(folder)
    return config


def _set_dtype(config: Any, raw: Mapping[str, Any], default: str | None) -> None:
    """Say of a config and those inside it what the file they were read from says of types."""
    config.dtype = raw.get("dtype") or raw.get("torch_dtype") or default
    for name in getattr(config, "sub_configs", {}) or {}:
        if (inner := getattr(config, name, None)) is not None:
            _set_dtype(inner, raw.get(name) or {}, config.dtype)


def _copy_side_files(source: str, folder: Path) -> None:
    """Copy what goes with the checkpoint as it is, where there is nothing of the name yet.

    Raises:
        UnsupportedModelError: If one is a link to elsewhere: what it leads to is not for others to see.
    """
    config = Path(cached_file(source, "config.json", local_files_only=True))
    for pattern in SIDE_FILES:
        for file in config.parent.glob(pattern):
            if file.is_file() and not (folder / file.name).exists():
                refuse_link_out(file, config)
                shutil.copyfile(file, folder / file.name)
