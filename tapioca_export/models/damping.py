"""Damp a layer: multiply what its branches add to the residual stream.

A pre-norm layer adds one branch after the other, x1 = x + A(x), x2 = x1 + M(x1). Damped by alpha it is
x1 = x + alpha A(x), x2 = x1 + alpha M(x1): the layer with the weights behind each branch times alpha. So
0 drops it, 1 leaves it as it is, and all between can be kept in a checkpoint of the same type. Where all
branches read x (GPT-NeoX, Falcon) that is also what `Scaled` does to the layer as a whole; elsewhere it
is not, as M reads what a damped A has left.

Knows nothing about which weights stand behind a branch. Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_IN_PLACE = torch.ops.aten.add_.Tensor
_ADDITIONS = (torch.ops.aten.add.Tensor, _IN_PLACE)
# By name in a layer: what its module adds to a weight before it multiplies by it (many norms add 1).
Offsets = Mapping[str, float]


class Additions(TorchDispatchMode):
    """Sees each addition of a branch to the residual stream, and multiplies the branch by alpha.

    An addition is one of the stream when one of its two terms is the stream as it stands, number for
    number. `branches` are the other terms, in order, before they are multiplied.

    Args:
        stream: What enters the layer, (B, T, H).
        alpha: The factor.
    """

    def __init__(self, stream: torch.Tensor, alpha: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream = stream.clone()
        self.alpha = alpha
        self.branches: list[torch.Tensor] = []

    def is_stream(self, tensor: object) -> bool:
        """Tell whether a tensor is the residual stream as it stands, in whatever shape."""
        if not isinstance(tensor, torch.Tensor) or tensor.numel() != self.stream.numel():
            return False
        return torch.equal(tensor.reshape(-1), self.stream.reshape(-1).to(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; where it adds a branch to the stream, the branch is multiplied first."""
        kwargs = kwargs or {}
        if func not in _ADDITIONS or kwargs:
            return func(*args, **kwargs)
        one, other = args
        if self.is_stream(one) and isinstance(other, torch.Tensor) and other.numel() == one.numel():
            self.branches.append(other.clone())
            result = func(one, other * self.alpha)
        elif self.is_stream(other) and isinstance(one, torch.Tensor) and one.numel() == other.numel():
            self.branches.append(one.clone())
            result = func(one.mul_(self.alpha) if func is _IN_PLACE else one * self.alpha, other)
        else:
            return func(*args)
        self.stream = result.clone()
        return result


@dataclass(frozen=True)
class Damped:
    """What a layer's branches add to the stream, times alpha: 0 drops the layer, 1 leaves it as it is.

    With `weights`, the layer runs with those weights folded, which is what a checkpoint keeps. Without,
    the branches are multiplied where they are added: what folding has to come to, and slower.
    """

    alpha: float
    weights: Offsets | None = None

    @contextmanager
    def around(self, layer: nn.Module, stream: torch.Tensor | None = None) -> Iterator[None]:
        """Damp a layer while it runs, on a stream (B, T, H) where additions have to be seen."""
        if self.weights is None:
            assert stream is not None
            with Additions(stream, self.alpha):
                yield
            return
        own = {name: layer.get_parameter(name) for name in self.weights}
        before = {name: parameter.data for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                parameter.data = folded(before[name], self.alpha, self.weights[name])
            yield
        finally:
            for name, parameter in own.items():
                parameter.data = before[name]


def folded(weight: torch.Tensor, alpha: float, offset: float) -> torch.Tensor:
    """Return the weight with which a branch is alpha times what it was."""
    return weight * alpha if offset == 0 else (weight + offset) * alpha - offset
