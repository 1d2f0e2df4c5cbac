"""Networks and traces made wrong: what is exported in place of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Changes a network in place, and returns what undoes it.
Undo = Callable[[], Any]


class _Changed(torch.nn.Module):
    """A network whose inputs or outputs are changed."""

    def __init__(self, inner: Any, inputs: Any = None, outputs: Any = None) -> None:
        super().__init__()
        self.inner, self.inputs, self.outputs = inner, inputs, outputs
        self.train(inner.training)

    def forward(self, *tensors: Any) -> Any:
        found = self.inner(*(self.inputs(*tensors) if self.inputs else tensors))
        return tuple(map(self.outputs, found)) if self.outputs else found


def training(network: Any) -> Any:
    """Dropout is active in the trace."""
    return network.train()


def unmasked(network: Any) -> Any:
    """Padding is seen."""
    return _Changed(network, inputs=lambda ids, mask: (ids, torch.ones_like(mask)))


def mirrored(network: Any) -> Any:
    """Tokens are read from the other end, as if padding were on the other side."""
    return _Changed(network, inputs=lambda ids, mask: (ids.flip(1), mask.flip(1)))


def halved(network: Any) -> Any:
    """Outputs go through float16."""
    return _Changed(network, outputs=lambda logits: logits.half().float())


def fixed(network: Any) -> Any:
    """Positions that the trace saw, and no others."""
    return _Changed(
        network,
        inputs=lambda ids, mask: (ids[:, : ids.shape[1]], mask[:, :4].repeat(1, 64)[:, : int(ids.shape[1])]),
    )


def trained(network: Any) -> Any:
    """Dropout is active."""
    network.train()
    return network.eval


def one_weight_moved(network: Any) -> Any:
    """One row of a layer's weights is half as large again."""
    weight = next(w for name, w in network.named_parameters() if w.dim() == 2 and ".0." in name)
    kept = weight.detach().clone()
    weight.data[3] *= 1.5

    def undo() -> None:
        weight.data = kept

    return undo


def norms_without_epsilon(network: Any) -> Any:
    """Norms have another epsilon."""
    norms = [m for m in network.modules() if hasattr(m, "eps") or hasattr(m, "variance_epsilon")]
    names = ["eps" if hasattr(m, "eps") else "variance_epsilon" for m in norms]
    kept = [getattr(m, n) for m, n in zip(norms, names, strict=True)]
    for module, name in zip(norms, names, strict=True):
        setattr(module, name, 1e-2)

    def undo() -> None:
        for module, name, value in zip(norms, names, kept, strict=True):
            setattr(module, name, value)

    return undo
