"""Which weights of a layer stand behind its branches: found by trying them on a random copy of it.

No class is known by name. While the copy runs, each addition of a branch to the residual stream is seen;
weights stand behind a branch if the branch is alpha times what it was when they are folded. Those that the
layer uses last are tried first: that is the output projection, or the norm behind it (Gemma 2), with its
own way to store a factor of 1.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError
from .damping import Additions, Damped, Offsets
from .graph_network import refuse_graph
from .loaded import LoadedModel
from .skipping import stream_of

# Differences of two ways to compute the same in float32, relative to the largest number.
ROUNDING = 1e-5
# What a module may add to a weight before it multiplies by it.
OFFSETS = (0.0, 1.0)
TRIED = (0.5, 0.25)


def damping_weights(model: LoadedModel, layers: Sequence[int]) -> dict[int, Offsets]:
    """Return, for each layer, the weights by which it can be damped.

    Raises:
        UnsupportedModelError: If a layer does more than add to its input what such weights make.
    """
    refuse_graph(model, "Damping")
    found: dict[object, Offsets] = {}
    called = dict(_calls(model, layers))
    for index in layers:
        layer, kind = model.layers[index], _kind(model.layers[index])
        if kind in found:
            continue
        if any(weight.is_meta for weight in layer.parameters()):
            raise UnsupportedModelError(
                f"Layer {model.numbering.name(index)} cannot be damped: its weights are not in memory.",
                "Leave out --device auto, or drop layers only.",
            )
        try:
            found[kind] = _Trial(layer, *called[index]).weights()
        except _NoBranchError as error:
            raise UnsupportedModelError(
                f"Layer {model.numbering.name(index)} of {model.network.config.model_type} cannot be "
                f"damped: {error}.",
                "Drop layers instead.",
            ) from error
    return {index: found[_kind(model.layers[index])] for index in layers}


@contextmanager
def folding(model: LoadedModel, damped: Mapping[int, Damped]) -> Iterator[None]:
    """Keep the weights of damped layers folded for the length of the block."""
    with ExitStack() as layers:
        for index, change in damped.items():
            layers.enter_context(change.around(model.layers[index]))
        yield


class _NoBranchError(Exception):
    """Why a layer cannot be damped."""


def _kind(layer: nn.Module) -> object:
    """Return what layers have in common that are damped alike."""
    modules = tuple((name, type(part)) for name, part in layer.named_modules())
    return modules, tuple((name, weight.shape) for name, weight in layer.named_parameters())


@torch.no_grad()
def _calls(
    model: LoadedModel, layers: Sequence[int]
) -> Iterator[tuple[int, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Yield what each layer is called with in a forward of a few examples."""
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as hooks:
        for index in layers:

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
                calls[index] = args, kwargs

            hooks.callback(model.layers[index].register_forward_pre_hook(note, with_kwargs=True).remove)
        model.logits(model.task.examples(model.processor)[0])
    yield from calls.items()


@dataclass
class _Trial:
    """A copy of a layer with random weights, and what it is run on."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(like: torch.Tensor, scale: float) -> torch.Tensor:
            return (torch.randn(like.shape, generator=generator) * scale).to(like)

        self.layer = copy.deepcopy(self.layer).eval()
        for weight in self.layer.parameters():
            weight.data = drawn(weight.data, weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.5)
        stream = self.args[0] if self.args else self.kwargs["hidden_states"]
        self.stream = drawn(stream, 1.0)
        self.args = (self.stream, *self.args[1:]) if self.args else ()
        self.kwargs = self.kwargs if self.args else {**self.kwargs, "hidden_states": self.stream}

    def weights(self) -> Offsets:
        """Return the weights behind all branches.

        Raises:
            _NoBranchError: If there are none, or together they do more than damp the layer.
        """
        intact = self.run({}, 1.0).branches
        found: dict[str, float] = {}
        for number in range(len(intact)):
            found |= self._behind(number, intact[number])
        for alpha in TRIED:
            folded, expected = self.run(found, alpha).stream, self.run({}, 1.0, alpha).stream
            if float((folded - expected).abs().max()) > ROUNDING * float(expected.abs().max()):
                raise _NoBranchError("a weight behind one branch has a part in another")
        return found

    @torch.no_grad()
    def run(self, weights: Offsets, alpha: float, multiplied: float = 1.0) -> Additions:
        """Run the layer with some weights folded by alpha; returns what it added to its input.

        Args:
            weights: The weights to fold.
            alpha: By what.
            multiplied: What each branch is multiplied by as it is added.

        Raises:
            _NoBranchError: If that is not all it does.
        """
        additions = Additions(self.stream, multiplied)
        with Damped(alpha, weights).around(self.layer), additions:
            output = self.layer(*self.args, **self.kwargs)
        if not additions.branches or not additions.is_stream(stream_of(output)):
            raise _NoBranchError(
                "what leaves it is not its input plus what it adds, as where a norm stands behind the sum"
            )
        return additions

    def _behind(self, number: int, intact: torch.Tensor) -> Offsets:
        """Return the weights behind one branch."""
        rounding = ROUNDING * float(intact.abs().max())

        def branch(weights: Offsets, alpha: float) -> torch.Tensor:
            return self.run(weights, alpha).branches[number]

        def is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
            return float((one - other).abs().max()) <= rounding

        part: dict[str, float] = {}
        for name in self._last_used_first():
            for offset in OFFSETS:
                tried = {**part, name: offset}
                if all(is_equal(branch(tried, alpha), alpha * intact) for alpha in TRIED):
                    return tried
            # A term of a sum goes with alpha, and leaves the other terms as they are.
            tried = {**part, name: 0.0}
            half, quarter = (branch(tried, alpha) for alpha in TRIED)
            is_term = not is_equal(half, branch(part, 0.5))
            if is_term and is_equal(quarter - half, (half - intact) / 2):
                part = tried
        raise _NoBranchError("no weights stand behind what it adds that could be scaled")

    def _last_used_first(self) -> list[str]:
        """Return the names of weights, those of modules that are used last first."""
        used: list[str] = []
        with ExitStack() as hooks:
            for name, module in self.layer.named_modules():
                hooks.callback(module.register_forward_hook(lambda *_, name=name: used.append(name)).remove)
            self.run({}, 1.0)
        order = {name: place for place, name in enumerate(used)}
        names = [name for name, _ in self.layer.named_parameters()]
        return sorted(reversed(names), key=lambda name: -order.get(name.rpartition(".")[0], -1))
