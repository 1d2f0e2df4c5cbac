"""Layers: tell which can go, and drop them.

A pruned network is what its class builds from the mended config, with the weights that are kept: what
a layer knows of its own place (its cache slot, its attention pattern) is then what a reload gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..errors import UnsupportedModelError
from .graph_network import GraphNetwork
from .loaded import LoadedModel
from .stacks import (
    Stack,
    build_empty,
    config_at,
    mended_config,
    refuse_dependent_switches,
    refuse_dependent_type,
)

T = TypeVar("T")
# The name of a weight, and its shape.
Shaped = tuple[str, tuple[int, ...]]
# Weights that only the lowest layer has, and all use: they move to the layer that is lowest then.
OF_THE_LOWEST = ("relative_attention_bias.weight",)
# What a network was given besides its config and weights: how it generates, how its weights were converted.
CARRIED = ("generation_config", "_weight_conversions")


def refuse_dependent_layers(model: LoadedModel) -> None:
    """Refuse layers that share weights with others, or that compute by their place.

    Raises:
        UnsupportedModelError: With the reason.
    """
    for stack in model.stacks:
        config = config_at(model.network.config, stack.config)
        refuse_dependent_type(config.model_type)
        refuse_dependent_switches(config)
    owner: dict[int, int] = {}
    for index, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            # Weights that accelerate keeps on disk have no address until they are used.
            first = owner.setdefault(parameter.data_ptr() or id(parameter), index)
            if first != index:
                raise UnsupportedModelError(
                    f"Layers {_named(model, (first, index), ' and ')} of {model.source} share {name}; "
                    "neither can go alone."
                )


def droppable_layers(model: LoadedModel) -> tuple[int, ...]:
    """Return the layers that a stock checkpoint of the same type, or an ONNX file, can do without.

    A layer is held fast when the model type builds the layer at its place differently from the
    others (ModernBERT's first layer has no attention norm), so that none can move up.
    """
    layers = model.numbering.left(range(model.num_layers), ())  # the only layer of a stack stays
    if isinstance(model.network, GraphNetwork):
        return tuple(layer for layer in layers if layer in model.network.pieces.droppable)
    built: dict[str, set[Shaped]] = {}
    return tuple(layer for layer in layers if _fits(model, layer, built))


def _fits(model: LoadedModel, layer: int, built: dict[str, set[Shaped]]) -> bool:
    """Tell whether a layer can go; `built` is what configs want, which is the same where layers are alike."""
    try:
        config = _config_without(model, [layer])
        described = config.to_json_string(use_diff=False)
        if described not in built:
            built[described] = _shaped(build_empty(type(model.network), config).state_dict())
    except UnsupportedModelError:
        return False
    return built[described] == _shaped(_weights_without(model, [layer]))


def _config_without(model: LoadedModel, drop: Sequence[int]) -> Any:
    """Return the config of the network without layers.

    Raises:
        UnsupportedModelError: If none describes it.
    """
    config = model.network.config
    for stack, layers in zip(model.stacks, model.numbering.ranges, strict=True):
        keep = [layer - layers.start for layer in layers if layer not in drop]
        if len(keep) < len(layers):
            config = mended_config(config, stack, keep)
    return config


def _weights_without(model: LoadedModel, drop: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the weights that are kept, under their new names."""
    return rearranged(model.network.state_dict(keep_vars=True), model, drop)


def _shaped(weights: Mapping[str, torch.Tensor]) -> set[Shaped]:
    return {(name, tuple(value.shape)) for name, value in weights.items()}


def _named(model: LoadedModel, layers: Sequence[int], comma: str = ", ") -> str:
    return comma.join(map(str, model.numbering.names(layers)))


def drop_layers(model: LoadedModel, layers: Sequence[int]) -> LoadedModel:
    """Return the model without layers; it shares its weights with the model given, which stays whole.

    Raises:
        ConfigError: If the layers do not exist or are all that a stack has.
        UnsupportedModelError: If the model's class cannot hold the layers that are left.
    """
    network, drop = model.network, sorted(model.numbering.checked(layers))
    if not drop:
        return model
    smaller = build_empty(type(network), _config_without(model, drop))
    weights = _weights_without(model, drop)
    if others := _shaped(smaller.state_dict()) ^ _shaped(weights):
        raise UnsupportedModelError(
            f"{network.config.model_type} cannot do without layers {_named(model, drop)}: "
            f"where others take their place, its class has other weights ({min(others)[0]}).",
            "Drop others.",
        )
    # One parameter under two names stays one, and what the config calls tied by mistake stays two.
    smaller.load_state_dict(weights, assign=True)
    for name in CARRIED:
        if name in vars(network):
            setattr(smaller, name, getattr(network, name))
    for buffer in smaller.buffers():  # those that the network computes from its config are not there yet
        buffer.data = buffer.data.to(model.device)
    return replace(model, network=smaller.train(network.training))


def silent_weights(model: LoadedModel, units: Collection[int]) -> list[str]:
    """Return the names of the weights that are zeros where parts of layers go, and the layers stay."""
    paths = model.layer_paths
    ends = [
        f"{paths[layer]}.{end}"
        for layer, parts in model.units.split(units)[1].items()
        for part in parts
        for end in model.branches[layer][part].ends
    ]
    owned = {end: model.network.get_submodule(end).named_parameters() for end in ends}
    return [f"{end}.{name}" for end, weights in owned.items() for name, _ in weights]


def rearranged(weights: Mapping[str, T], model: LoadedModel, drop: Sequence[int]) -> dict[str, T]:
    """Return what stands for each weight of the network without layers, under its new name."""
    found = dict(weights)
    for stack, layers in zip(model.stacks, model.numbering.ranges, strict=True):
        found = _kept(found, stack, [layer - layers.start for layer in layers if layer not in drop])
    return found


def renamed(names: Collection[str], model: LoadedModel, drop: Sequence[int]) -> list[str]:
    """Return the names that weights get in the network without layers."""
    moved = rearranged({name: name for name in model.network.state_dict()}, model, drop)
    return [new for new, old in moved.items() if old in names]


def _kept(weights: Mapping[str, T], stack: Stack, keep: Sequence[int]) -> dict[str, T]:
    """Return what stands for each weight with only the layers `keep` of a stack, under its new name."""
    weights = dict(weights)
    for path in (stack.path, *stack.beside):
        layers: dict[int, dict[str, T]] = {}
        for name in [name for name in weights if name.startswith(f"{path}.")]:
            index, _, rest = name.removeprefix(f"{path}.").partition(".")
            layers.setdefault(int(index), {})[rest] = weights.pop(name)
        lowest = {n: w for n, w in layers.get(0, {}).items() if n.endswith(OF_THE_LOWEST)}
        for new, old in enumerate(keep):
            found = {**(lowest if new == 0 else {}), **layers.get(old, {})}
            weights.update({f"{path}.{new}.{name}": weight for name, weight in found.items()})
    return weights
