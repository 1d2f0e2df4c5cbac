"""Silence a branch of a layer for a while: modules that stand in give zeros, and compute nothing.

Knows nothing about how the branches of a layer are found, nor which are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Silence:
    """What a module gives while its branch is silent.

    Args:
        width: The last axis of the zeros it gives; the others are those of its first argument.
        source: The argument, by place or name, that it gives instead of zeros (a residual added inside).
        size: Entries of the tuple it gives, all but the first None; 0 where it gives a tensor.
    """

    width: int
    source: int | str | None = None
    size: int = 0


@dataclass(frozen=True)
class Branch:
    """Attention or MLP of a layer; names are those inside the layer.

    Args:
        ends: Modules whose weights, all zero, silence the branch.
        weights: Parameters that have no influence while it is silent.
        stand_ins: What the modules give that need not run then.
    """

    ends: tuple[str, ...]
    weights: tuple[str, ...]
    stand_ins: Mapping[str, Silence]


class Silent(nn.Module):
    """Stands at a module's place and computes nothing."""

    def __init__(self, module: nn.Module, silence: Silence) -> None:
        super().__init__()
        # Not registered as a submodule: an export must not find its weights.
        self.__dict__["module"] = module
        self.silence = silence

    def __getattr__(self, name: str) -> Any:
        """Answer for the module: layers read attributes off their parts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros, or the residual that the module would have added to."""
        given = dict(enumerate(args)) | kwargs
        if self.silence.source is None:
            like: torch.Tensor = next(v for v in given.values() if isinstance(v, torch.Tensor))
            output = like.new_zeros((*like.shape[:-1], self.silence.width))
        else:
            output = given[self.silence.source]
        return (output, *[None] * (self.silence.size - 1)) if self.silence.size else output


@contextmanager
def zeroed(network: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Put zeros in the place of weights for the length of the block; who shares them keeps what they were."""
    places = [(network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    weights = [module.get_parameter(own) for module, own in places]
    try:
        for (module, own), weight in zip(places, weights, strict=True):
            setattr(module, own, nn.Parameter(torch.zeros_like(weight)))
        yield
    finally:
        for (module, own), weight in zip(places, weights, strict=True):
            setattr(module, own, weight)


@contextmanager
def silenced(layer: nn.Module, branches: Iterable[Branch]) -> Iterator[None]:
    """Silence branches of a layer for the length of the block, as if the weights of their ends were zeros."""
    wanted = {path: silence for branch in branches for path, silence in branch.stand_ins.items()}
    modules = {path: layer.get_submodule(path) for path in wanted}
    try:
        for path, module in modules.items():
            layer.set_submodule(path, Silent(module, wanted[path]).eval())
        yield
    finally:
        for path, module in modules.items():
            layer.set_submodule(path, module)
