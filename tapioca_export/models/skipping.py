"""Skip, scale or replay layers for a while, with the model's own forward untouched.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..numbering import PARTS
from .damping import Damped
from .joining import Join, lengths_of
from .loaded import LoadedModel
from .silencing import Branch, silenced


class EndOfForward(Exception):  # noqa: N818  (no error: the way out of a forward that has done its part)
    """Carries the residual stream entering the layer at which a forward was left."""

    def __init__(self, stream: torch.Tensor) -> None:
        super().__init__()
        self.stream = stream


@dataclass(frozen=True)
class Scaled:
    """Residual scaling of a whole layer: h = h_prev + alpha * (layer(h_prev) - h_prev).

    0 drops the layer, 1 leaves it as it is, between them it is damped, above 1 amplified.

    Source: the intervention named in Sharma et al. 2026, "TAPIOCA", arXiv:2605.14738; its formula was
        not available, this one is the project's reading of it.
    """

    alpha: float

    def __call__(self, before: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        """Return the stream (B, T, H) that leaves the layer, of what entered and what it made of it."""
        return torch.lerp(before.to(behind.device), behind, self.alpha)


@dataclass(frozen=True)
class Rescaled:
    """The stream behind a layer times a factor: its norms change, its directions and the layer stay."""

    factor: float

    def __call__(self, before: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        """Return the stream (B, T, H) that leaves the layer."""
        return behind * self.factor


@dataclass(frozen=True)
class Silenced:
    """A layer without some of its branches, of which another stays."""

    branches: tuple[Branch, ...]


Change = Scaled | Rescaled | Damped | Silenced
DROPPED, INTACT = Scaled(0.0), Scaled(1.0)


class StandIn(nn.Module):
    """Stands at a layer's place in the stack and decides what the layer does there.

    The network's own forward runs unchanged: it sees a module with the layer's attributes. With
    `answer` set, that is returned and nothing is computed; with `skips`, the input is passed
    through; otherwise the layer runs, damped, without some of its branches, or whole, and `change` says
    what becomes of its stream. `see` is told the residual stream before and the output. With `ends`, the
    forward is left by `EndOfForward` once the layer has its input: what is above costs nothing. With `join`,
    groups of sequences join here, and the layer is run on those that joined below it.
    `num_forwards` counts sequences, `num_tokens` their tokens, padding included, each as often as branches
    run where a layer is counted as `width` of them.
    """

    def __init__(self, layer: nn.Module, kinds: dict[type, bool], width: int = 1) -> None:
        super().__init__()
        # Not registered as a submodule, so that names and parameters of the network stay as they are.
        self.layer = layer
        self.kinds = kinds  # by class of layer: does it return a tensor, or more than that
        self.answer: Any = None
        self.skips = False
        self.change: Scaled | Rescaled | None = None
        self.damped: Damped | None = None
        self.silent: tuple[Branch, ...] = ()
        self.width = width
        self.ends = False
        self.join: Join | None = None
        # Of the last time it was seen: what entered the layer, and the first axes of all that it was given.
        self.entered = torch.empty(0)
        self.lengths: Any = None
        self.see: Callable[[torch.Tensor, Any], None] | None = None
        self.num_forwards = self.num_tokens = 0

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what is no parameter: a module's own way looks for those, at the cost of a small layer."""
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer: models read attributes such as `attention_type` off it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def become(self, change: Change) -> None:
        """Change the layer; dropped and intact ones take the paths on which nothing is rounded."""
        alpha = change.alpha if isinstance(change, Scaled | Damped) else None
        is_between = alpha not in (0, 1)
        self.skips = alpha == 0
        self.damped = change if isinstance(change, Damped) and is_between else None
        self.silent = change.branches if isinstance(change, Silenced) else ()
        self.change = change if isinstance(change, Scaled | Rescaled) and is_between else None

    def _around(self, stream: torch.Tensor) -> AbstractContextManager[None]:
        if self.damped:
            return self.damped.around(self.layer, stream)
        return silenced(self.layer, self.silent)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run, skip, change or replay the layer."""
        if self.join is not None:
            return self._joined(self.join, args, kwargs)
        if self.see is not None:
            self.entered = args[0] if args else kwargs["hidden_states"]
            self.lengths = lengths_of((args, kwargs))
        return self._alone(*args, **kwargs)

    def _joined(self, join: Join, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer on the groups that have joined, and let another in behind it."""
        output, streams = join.output, []
        if join.num_below:
            if join.num_below < join.num_groups:
                args, kwargs = join.given((args, kwargs), self.lengths)
            output = self._alone(*args, **kwargs)
            streams.append(stream_of(output))
        if join.stream is not None:
            output = with_stream(output, torch.cat([*streams, join.stream]))
        return output

    def _alone(self, *args: Any, **kwargs: Any) -> Any:
        stream: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        if self.ends:
            raise EndOfForward(stream)
        if self.answer is not None:
            output = self.answer
        elif self.skips and self.kinds.get(type(self.layer)):
            output = stream
        else:
            with self._around(stream):
                output = self.layer(*args, **kwargs)
            is_tensor = self.kinds[type(self.layer)] = isinstance(output, torch.Tensor)
            if not (self.skips and is_tensor):  # what was run once to learn its kind is no cost of a search
                num_runs = stream.shape[0] * (self.width - len(self.silent))
                self.num_forwards += num_runs
                self.num_tokens += num_runs * stream.shape[1]
            if self.skips:  # a tuple carries more than hidden states (biases, weights): keep the rest
                output = with_stream(output, stream)
            elif self.change is not None:
                output = with_stream(output, self.change(stream, stream_of(output)))
        if self.see is not None:
            self.see(stream, output)
        return output


def stream_of(output: Any) -> torch.Tensor:
    """Return the residual stream (B, T, H) in a layer's output."""
    stream: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return stream


def with_stream(output: Any, stream: torch.Tensor) -> Any:
    """Return a layer's output with its residual stream replaced."""
    if isinstance(output, list):
        return [stream, *output[1:]]
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def stand_ins(model: LoadedModel, kinds: dict[type, bool] | None = None) -> Iterator[list[StandIn]]:
    """Put a stand-in at every layer's place, in the model's own lists, for the length of the block.

    `kinds` remembers from one block to the next which layers return tensors.
    """
    kinds = {} if kinds is None else kinds
    lists = [model.layers_of(stack) for stack in model.stacks]
    places = [(layers, index) for layers in lists for index in range(len(layers))]
    layers = list(model.layers)
    replacements = [StandIn(layer, kinds, model.units.width).eval() for layer in layers]
    try:
        for (own, index), replacement in zip(places, replacements, strict=True):
            own[index] = replacement
        yield replacements
    finally:
        for (own, index), layer in zip(places, layers, strict=True):
            own[index] = layer


@contextmanager
def lacking(model: LoadedModel, silent: Mapping[int, Sequence[str]]) -> Iterator[LoadedModel]:
    """Give a model without parts of layers, for the length of the block: an exporter finds nothing of them.

    Layers without attention have no place in a cache: the others' places are renumbered.

    Args:
        model: A model whose branches are known, if there are parts to leave out.
        silent: Of which layers, which parts.
    """
    layers = list(model.layers)
    with ExitStack() as stack:
        for index, parts in silent.items():
            stack.enter_context(silenced(layers[index], [model.branches[index][part] for part in parts]))
        for own in model.numbering.ranges if silent else ():
            caching = [index for index in own if PARTS[0] not in silent.get(index, ())]
            for place, index in enumerate(caching):
                for module in layers[index].modules():
                    if vars(module).get("layer_idx") == index - own.start:
                        stack.callback(setattr, module, "layer_idx", index - own.start)
                        setattr(module, "layer_idx", place)  # noqa: B010  (to mypy, a module has none)
        yield replace(model, silent=silent)


@contextmanager
def changing(model: LoadedModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """Change layers for the length of the block."""
    with stand_ins(model) as replacements:
        for layer, change in changes.items():
            replacements[layer].become(change)
        yield


def changes_of(model: LoadedModel, units: Collection[int]) -> dict[int, Change]:
    """Return what becomes of which layers when units are dropped."""
    whole, silent = model.units.split(units)
    branches = {
        layer: tuple(model.branches[layer][part] for part in parts) for layer, parts in silent.items()
    }
    return {
        **dict.fromkeys(whole, DROPPED),
        **{layer: Silenced(own) for layer, own in branches.items()},
    }


@contextmanager
def skipping(model: LoadedModel, units: Collection[int]) -> Iterator[None]:
    """Skip units for the length of the block: logits equal those of the pruned model, to the bit."""
    with changing(model, changes_of(model, units)):
        yield
