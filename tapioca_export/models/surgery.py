"""Layers: find the stack, tell which can go, drop them, make the config agree.

No class a family: the stack is the one `ModuleList` as long as the config says the model is deep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, UnsupportedModelError
from .loaded import LoadedModel

# Where the stack is not the one ModuleList of the config's depth: model type -> dotted path.
LAYER_STACKS: dict[str, str] = {}
# Config lists with one entry a layer. Named, not guessed: other lists may have the same length.
PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers")
# Config numbers that count layers from the bottom.
COUNT_FROM_BOTTOM_FIELDS = ("max_window_layers",)
# Attributes by which a block knows its own place (cache slot, attention pattern).
INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "layer_number")
# Config switches under which a layer's computation depends on its original place.
PLACE_DEPENDENT_SWITCHES = {
    "scale_attn_by_inverse_layer_idx": "attention is scaled by the layer's index, which dropping changes"
}


def find_stack(network: Any) -> str:
    """Return the dotted path of the one list of layers.

    Raises:
        UnsupportedModelError: If no list has the config's depth, or several have.
    """
    config = network.config
    if config.model_type in LAYER_STACKS:
        return LAYER_STACKS[config.model_type]
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{config.model_type} has an encoder and a decoder; models with one layer stack are supported."
        )
    depth = getattr(config, "num_hidden_layers", None)
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    # A list inside a layer (experts, say) may be as long as the stack.
    outermost = [n for n in found if not any(n.startswith(other + ".") for other in found)]
    if len(outermost) != 1:
        what = f"{len(outermost)} lists ({', '.join(outermost)})" if outermost else "no list"
        reason = " Its layers share one set of weights." if config.model_type == "albert" else ""
        raise UnsupportedModelError(
            f"{config.model_type} has {what} of {depth} layers, so there is no unique layer stack.{reason}"
        )
    return str(outermost[0])


def refuse_dependent_layers(model: LoadedModel) -> None:
    """Refuse layers that share weights with others, or that compute by their place.

    Raises:
        UnsupportedModelError: With the reason.
    """
    config = model.network.config
    for switch, reason in PLACE_DEPENDENT_SWITCHES.items():
        if getattr(config, switch, False):
            raise UnsupportedModelError(f"{config.model_type} with {switch}: {reason}.")
    owner: dict[int, int] = {}
    for index, layer in enumerate(model.stack):
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
    expected = _parameter_shapes(model.stack)
    droppable = []
    for layer in range(model.num_layers):
        keep = [i for i in range(model.num_layers) if i != layer]
        config = mended_config(model.network.config, keep)
        with torch.device("meta"):
            smaller = type(model.network)(config)
        if keep and _parameter_shapes(smaller.get_submodule(model.path)) == [expected[i] for i in keep]:
            droppable.append(layer)
    return tuple(droppable)


def _parameter_shapes(stack: Iterable[nn.Module]) -> list[dict[str, tuple[int, ...]]]:
    return [{k: tuple(v.shape) for k, v in layer.state_dict().items()} for layer in stack]


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


def drop_layers(model: LoadedModel, layers: Sequence[int]) -> None:
    """Remove layers for good: the list, the layers' own indices, the config.

    Raises:
        ConfigError: If the layers do not exist or are all there are.
    """
    drop = check_layers(layers, model.num_layers)
    keep = [i for i in range(model.num_layers) if i not in drop]
    stack = model.stack
    kept = nn.ModuleList(stack[i] for i in keep).train(stack.training)
    for new, old in enumerate(keep):
        for module in stack[old].modules():
            for attribute in INDEX_ATTRIBUTES:
                if getattr(module, attribute, None) == old and not isinstance(
                    getattr(module, attribute), bool
                ):
                    setattr(module, attribute, new)
    mend_config(model.network.config, keep)
    parent, _, name = model.path.rpartition(".")
    setattr(model.network.get_submodule(parent), name, kept)


def mended_config(config: Any, keep: Sequence[int]) -> Any:
    """Return a copy of the config that describes the model with only the layers `keep`."""
    copy = type(config).from_dict(config.to_dict())
    copy._attn_implementation = config._attn_implementation
    mend_config(copy, keep)
    return copy


def mend_config(config: Any, keep: Sequence[int]) -> None:
    """Make the config describe the model with only the layers `keep`, in place."""
    num_layers = config.num_hidden_layers
    for name in PER_LAYER_FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and len(value) == num_layers:
            setattr(config, name, [value[i] for i in keep])
    for name in COUNT_FROM_BOTTOM_FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, sum(layer < value for layer in keep))
    config.num_hidden_layers = len(keep)  # transformers maps this to the family's own name
