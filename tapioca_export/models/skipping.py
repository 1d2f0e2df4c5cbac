"""Skip or replay layers for a while, with the model's own forward untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .loaded import LoadedModel


class StandIn(nn.Module):
    """Stands at a layer's place in the stack and decides what the layer does there.

    The network's own forward runs unchanged: it sees a module with the layer's attributes. With
    `answer` set, that is returned and nothing is computed; with `skips`, the input is passed
    through; otherwise the layer runs. `see` is told the residual stream before and the output.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Not registered as a submodule, so that names and parameters of the network stay as they are.
        self.__dict__["layer"] = layer
        self.answer: Any = None
        self.skips = False
        self.see: Callable[[torch.Tensor, Any], None] | None = None
        self.num_forwards = 0
        self.returns_tensor: bool | None = None

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer: models read attributes such as `attention_type` off it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run, skip or replay the layer."""
        stream: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        if self.answer is not None:
            output = self.answer
        elif self.skips and self.returns_tensor:
            output = stream
        else:
            output = self.layer(*args, **kwargs)
            self.num_forwards += len(stream)
            self.returns_tensor = isinstance(output, torch.Tensor)
            if self.skips:  # a tuple carries more than hidden states (biases, weights): keep the rest
                output = with_stream(output, stream)
        if self.see is not None:
            self.see(stream, output)
        return output


def stream_of(output: Any) -> torch.Tensor:
    """Return the residual stream (B, T, H) in a layer's output."""
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def with_stream(output: Any, stream: torch.Tensor) -> Any:
    """Return a layer's output with its residual stream replaced."""
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@contextmanager
def stand_ins(model: LoadedModel) -> Iterator[list[StandIn]]:
    """Put a stand-in at every layer's place, in the model's own list, for the length of the block."""
    stack = model.stack
    layers = list(stack)
    replacements = [StandIn(layer).eval() for layer in layers]
    try:
        for index, replacement in enumerate(replacements):
            stack[index] = replacement
        yield replacements
    finally:
        for index, layer in enumerate(layers):
            stack[index] = layer


@contextmanager
def skipping(model: LoadedModel, layers: Iterable[int]) -> Iterator[None]:
    """Skip layers for the length of the block: logits equal those of the pruned model, to the bit."""
    with stand_ins(model) as replacements:
        for layer in layers:
            replacements[layer].skips = True
        yield
