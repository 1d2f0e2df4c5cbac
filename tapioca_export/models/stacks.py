"""Layer stacks: where a network keeps its layers, and what configs say of them.

No class a family: a stack is whatever list becomes one longer when the config says one layer more.
What a config says of single layers is declared in `config_layers`; the proofs tell what is missing.
Knows nothing about weights, nor which layers are worth keeping.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..config_layers import (
    DEPENDENT_SWITCHES,
    DEPENDENT_TYPES,
    DEPTH_FIELDS,
    mended_values,
    outputs_left,
)
from ..errors import UnsupportedModelError, first_line


@dataclass(frozen=True)
class Stack:
    """One list of layers (residual blocks).

    Args:
        name: "" where the network has one stack only, else such as "encoder", "decoder", "text".
        path: Dotted path of the layers.
        beside: Dotted paths of other lists with one entry a layer.
        config: Dotted path of the config that counts the layers, "" for the network's own.
        field: Its number there.
    """

    name: str
    path: str
    beside: tuple[str, ...] = ()
    config: str = ""
    field: str = "num_hidden_layers"


def find_stacks(network: Any) -> tuple[Stack, ...]:
    """Return every stack of a network, found by building it with one layer more, without weights."""
    found = [stack for stack in _counted_lists(network) if isinstance(stack, Stack)]
    if len(found) == 1:
        return (replace(found[0], name=""),)
    names = Counter(stack.name for stack in found)
    return tuple(stack if names[stack.name] == 1 else replace(stack, name=stack.path) for stack in found)


def prunable_stacks(network: Any) -> tuple[Stack, ...]:
    """Return the stacks of a network whose layers may go.

    Raises:
        UnsupportedModelError: If there is none, or half of an encoder-decoder cannot be told.
    """
    model_type = network.config.model_type
    refuse_dependent_type(model_type)
    found = find_stacks(network)
    if found and (len(found) > 1 or not network.config.is_encoder_decoder):
        return found
    what = "an encoder and a decoder" if found else "no list of layers that its config counts"
    refused = [error.message for error in _counted_lists(network) if isinstance(error, Exception)]
    raise UnsupportedModelError(" ".join([f"{model_type} has {what}: no unique layer stack.", *refused[:1]]))


def in_order(network: Any, stacks: Sequence[Stack], run: Callable[[], object]) -> tuple[Stack, ...]:
    """Return those of the stacks that a forward gets to, in the order in which it runs them.

    What runs first can be replayed while what runs later is tried, if no layer runs between those of
    another stack, or twice.

    Args:
        network: The network.
        stacks: Its stacks.
        run: Runs a forward.

    Raises:
        UnsupportedModelError: If layers run in another order than one stack after the other.
    """
    places = [(stack, layer) for stack in stacks for layer in network.get_submodule(stack.path)]
    calls: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
        for place, (_, layer) in enumerate(places)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    order = list(dict.fromkeys(places[place][0] for place in calls))
    if calls != [place for stack in order for place, (own, _) in enumerate(places) if own is stack]:
        names = " and ".join(stack.name for stack in order)
        raise UnsupportedModelError(
            f"{network.config.model_type} does not run its stacks one after the other ({names}): "
            "a layer cannot be tried while those before it are replayed."
        )
    return tuple(order) if len(order) > 1 else tuple(replace(stack, name="") for stack in order)


def refuse_dependent_type(model_type: str) -> None:
    """Refuse a model type whose layers are not blocks of their own.

    Raises:
        UnsupportedModelError: With the reason.
    """
    if reason := DEPENDENT_TYPES.get(model_type):
        raise UnsupportedModelError(f"{model_type} cannot lose layers: {reason}.")


def refuse_dependent_switches(config: Any) -> None:
    """Refuse a config with a switch under which layers are no blocks of their own.

    Raises:
        UnsupportedModelError: With the reason.
    """
    for switch, reason in DEPENDENT_SWITCHES.items():
        if vars(config).get(switch):
            raise UnsupportedModelError(f"{config.model_type} with {switch}: {reason}.")


def _counted_lists(network: Any) -> Iterator[Stack | UnsupportedModelError]:
    """Yield, for each number of a config that may count layers, what it counts, or why that is not known."""
    before = _lists(network)
    for path, config in _configs(network.config):
        for field in DEPTH_FIELDS:
            depth = vars(config).get(field)
            if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
                continue
            try:
                longer = mended_config(network.config, Stack("", "", (), path, field), [0, *range(depth)])
                after = _lists(build_empty(type(network), longer))
            except UnsupportedModelError as error:
                yield error
                continue
            grown = [name for name in before if len(after.get(name, ())) == len(before[name]) + 1]
            # What is inside a layer is the layer's own.
            grown = [name for name in grown if not any(name.startswith(f"{other}.") for other in grown)]
            if grown:
                largest = max(grown, key=lambda name: sum(p.numel() for p in before[name].parameters()))
                beside = tuple(name for name in grown if name != largest)
                yield Stack(_name(path, largest), largest, beside, path, field)


def build_empty(model_class: Any, config: Any) -> Any:
    """Build a network that has shapes and no weights; what it computes from its config alone is there.

    Raises:
        UnsupportedModelError: If its class refuses the config.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            network = model_class(config)
        for parameter in network.parameters():
            parameter._is_hf_initialized = True  # only buffers are computed
        network.init_weights()
        return network
    except Exception as error:  # classes, foreign ones too, refuse configs with errors of any kind
        raise UnsupportedModelError(
            f"{config.model_type} cannot be built at another depth: {first_line(error)}"
        ) from error


def _lists(network: nn.Module) -> dict[str, nn.ModuleList]:
    return {name: part for name, part in network.named_modules() if isinstance(part, nn.ModuleList)}


def _configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and those inside it, with their dotted paths."""
    yield path, config
    for name in getattr(config, "sub_configs", {}) or {}:
        if (inner := getattr(config, name, None)) is not None:
            yield from _configs(inner, f"{path}.{name}" if path else name)


def config_at(config: Any, path: str) -> Any:
    """Return the config at a dotted path."""
    for name in path.split(".") if path else ():
        config = getattr(config, name)
    return config


def _name(config: str, path: str) -> str:
    """Name a stack after its config, or after where it is."""
    if config:
        return config.rpartition(".")[2].removesuffix("_config")
    return next((part for part in path.split(".") if part in ("encoder", "decoder")), path)


# --- configs --------------------------------------------------------------------------------


def mended_config(config: Any, stack: Stack, keep: Sequence[int]) -> Any:
    """Return a copy of the config that describes the network with only the layers `keep` of a stack.

    Raises:
        UnsupportedModelError: If no config does.
    """
    whole = copy.deepcopy(config)
    part = config_at(whole, stack.config)
    depth = getattr(part, stack.field)
    for name, value in mended_values(vars(part), keep, depth).items():
        setattr(part, name, value)
    _mend_features(part, keep, depth)
    setattr(part, stack.field, len(keep))
    _mend_cache(part)
    return whole


def _mend_cache(config: Any) -> None:
    """Say how many layers the decoder's cache has, where transformers would take the encoder's (T5).

    `generate` sizes the cache by `decoder_layers`, if a config has it, else by the general number.
    """
    depth = vars(config).get("num_decoder_layers")
    if depth is None or not config.is_encoder_decoder:
        return
    if depth == config.num_hidden_layers:  # again, once both stacks have lost as many
        vars(config).pop("decoder_layers", None)
    else:
        config.decoder_layers = depth


def _mend_features(config: Any, keep: Sequence[int], depth: int) -> None:
    """Mend what a backbone says of its feature maps: the input of the layers, then one map a layer."""
    stages = vars(config).get("stage_names")
    if not stages or len(stages) != depth + 1:
        return
    wanted = [stages.index(name) - 1 for name in vars(config).get("_out_features") or stages[-1:]]
    inner = [number for number in wanted if number >= 0]
    found = [0] * (len(wanted) - len(inner)) + [number + 1 for number in outputs_left(inner, keep, depth)]
    names = [stages[0], *(f"stage{number}" for number in range(1, len(keep) + 1))]
    config.stage_names = names
    config._out_indices, config._out_features = found, [names[number] for number in found]
