"""Layers: tell which can go, and drop them.

A pruned network is what its class builds from the mended config, with the weights that are kept: what
a layer knows of its own place (its cache slot, its attention pattern) is then what a reload gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..errors import ConfigError, UnsupportedModelError
from .loaded import LoadedModel
from .stacks import Stack, build_empty, config_at, mended_config, refuse_dependent_type

T = TypeVar("T")
# Config switches under which layers are no blocks of their own.
DEPENDENT_SWITCHES = {
    "scale_attn_by_inverse_layer_idx": "attention is scaled by the layer's index, which dropping changes",
    "num_kv_shared_layers": "the last layers use keys and values of layers below",
}
# Weights that only the lowest layer has, and all use: they move to the layer that is lowest then.
OF_THE_LOWEST = ("relative_attention_bias.weight",)
# What a network was given besides its config and weights: how it generates, how its weights were converted.
CARRIED = ("generation_config", "_weight_conversions")


def refuse_dependent_layers(model: LoadedModel) -> None:
    """Refuse layers that share weights with others, or that compute by their place.

    Raises:
        UnsupportedModelError: With the reason.
    """
    config = config_at(model.network.config, model.stack.config)
    refuse_dependent_type(config.model_type)
    for switch, reason in DEPENDENT_SWITCHES.items():
        if vars(config).get(switch):
            raise UnsupportedModelError(f"{config.model_type} with {switch}: {reason}.")
    owner: dict[int, int] = {}
    for index, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            # Weights that accelerate keeps on disk have no address until they are used.
            first = owner.setdefault(parameter.data_ptr() or id(parameter), index)
            if first != index:
                raise UnsupportedModelError(
                    f"Layers {first} and {index} of {model.source} share {name}; neither can go alone."
                )


def droppable_layers(model: LoadedModel) -> tuple[int, ...]:
    """Return the layers that a stock checkpoint of the same type can do without.

    A layer is held fast when the model type builds the layer at its place differently from the
    others (ModernBERT's first layer has no attention norm), so that none can move up.
    """
    layers = range(model.num_layers)
    return tuple(layer for layer in layers if model.num_layers > 1 and _fits(model, [layer]))


def _fits(model: LoadedModel, drop: Sequence[int]) -> bool:
    try:
        smaller, weights = _smaller(model, drop)
    except UnsupportedModelError:
        return False
    return not _differences(smaller, weights)


def _smaller(model: LoadedModel, drop: Sequence[int]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Build the network without layers, still empty; return it with the weights that are kept.

    Raises:
        UnsupportedModelError: If no config describes it, or its class refuses the config.
    """
    keep = [i for i in range(model.num_layers) if i not in drop]
    config = mended_config(model.network.config, model.stack, keep)
    return build_empty(type(model.network), config), _kept(model, keep)


def _differences(network: Any, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of weights that a network wants otherwise than they are, or not at all."""
    wanted = {(name, value.shape) for name, value in network.state_dict().items()}
    return sorted({name for name, _ in wanted ^ {(name, value.shape) for name, value in weights.items()}})


def _named(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the layers sorted.

    Raises:
        ConfigError: If one is out of range or named twice, or if none would be left.
    """
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(
                f"Layer {layer} does not exist: the model has {num_layers} layers.",
                f"Layers are counted from 0 to {num_layers - 1}.",
            )
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if list(layers).count(layer) > 1)
        raise ConfigError(f"Layer {twice} is named twice.")
    if len(layers) == num_layers:
        raise ConfigError(f"All {num_layers} layers would be dropped.", "Keep at least one.")
    return tuple(sorted(layers))


def drop_layers(model: LoadedModel, layers: Sequence[int]) -> LoadedModel:
    """Return the model without layers; it shares its weights with the model given, which stays whole.

    Raises:
        ConfigError: If the layers do not exist or are all there are.
        UnsupportedModelError: If the model's class cannot hold the layers that are left.
    """
    network, drop = model.network, check_layers(layers, model.num_layers)
    if not drop:
        return model
    smaller, weights = _smaller(model, drop)
    if names := _differences(smaller, weights):
        raise UnsupportedModelError(
            f"{network.config.model_type} cannot do without layers {_named(drop)}: "
            f"where others take their place, its class has other weights ({names[0]}).",
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


def _kept(model: LoadedModel, keep: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the weights of the network with only the layers `keep`, under their new names."""
    return rearranged(dict(model.network.state_dict(keep_vars=True)), model.stack, keep)


def rearranged(weights: Mapping[str, T], stack: Stack, keep: Sequence[int]) -> dict[str, T]:
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
