"""The branches of a layer, attention and MLP: which of its modules they are, found by experiment.

No names of classes: a layer of each kind, with random weights, runs on what the network's own forward
gives it, and single projections are silenced (they give zeros). Silencing an *end*, the last projection
of a branch, takes all influence from the branch's weights; through attention one token reaches others.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UnsupportedModelError
from ..numbering import PARTS
from .loaded import LoadedModel, answer_of
from .silencing import Branch, Silence, silenced
from .skipping import stream_of
from .stacks import build_empty


@dataclass(frozen=True)
class _Subject:
    """A layer with random weights, and what it is called with.

    `stream` is the place or name of the hidden states (B, T, H) among the arguments.
    """

    layer: nn.Module
    arguments: Mapping[int | str, Any]
    stream: int | str

    def run(self, silent: Iterable[str] = (), stream: torch.Tensor | None = None) -> torch.Tensor:
        """Return the stream (B, T, H) that leaves the layer with modules giving zeros."""
        given = dict(self.arguments)
        if stream is not None:
            given[self.stream] = stream
        args = [given[place] for place in given if isinstance(place, int)]
        kwargs = {name: value for name, value in given.items() if isinstance(name, str)}
        with _giving_zeros(self.layer, silent):
            return stream_of(self.layer(*args, **kwargs))

    def without_influence(self, silent: Iterable[str] = ()) -> frozenset[str]:
        """Return the parameters that the stream does not depend on with modules giving zeros."""
        names, parameters = zip(*self.layer.named_parameters(), strict=True)
        with torch.enable_grad():
            output = self.run(silent)
            if not output.requires_grad:
                return frozenset(names)
            found = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
        return frozenset(name for name, gradient in zip(names, found, strict=True) if gradient is None)

    def mixes_tokens(self, silent: Iterable[str]) -> bool:
        """Tell whether a token's output depends on other tokens with modules giving zeros."""
        before = self.arguments[self.stream].detach().clone().requires_grad_()
        with torch.enable_grad():
            output = _by_token(self.run(silent, before))
            for place in {0, output.shape[1] // 2, output.shape[1] - 1}:
                weights = torch.linspace(1, 2, output.shape[2])  # a sum over a norm's output is constant
                total = (output[:, place] * weights).sum()
                (gradient,) = torch.autograd.grad(total, before, retain_graph=True)
                reached = (_by_token(gradient) != 0).any(dim=-1)  # (B, T)
                reached[:, place] = False
                if bool(reached.any()):
                    return True
        return False


def _by_token(stream: torch.Tensor) -> torch.Tensor:
    """Return a stream (B, T, H) whatever it stands in: images in rows and columns, or tokens of one batch."""
    return stream[None] if stream.dim() == 2 else stream.flatten(1, -2)


@contextmanager
def _giving_zeros(layer: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Let modules of a layer run, and give zeros instead of what they computed."""

    def zeros(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    with ExitStack() as hooks:
        for path in paths:
            hooks.callback(layer.get_submodule(path).register_forward_hook(zeros).remove)
        yield


def with_branches(model: LoadedModel) -> LoadedModel:
    """Return the model with the branches of all its layers known.

    Raises:
        UnsupportedModelError: If a layer has no attention or no MLP that could go alone, with the reason.
    """
    kinds = [_kind(layer) for layer in model.layers]
    firsts = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
    found: dict[Any, Mapping[str, Branch]] = {}
    try:
        subjects = _subjects(model, sorted(firsts.values()))
        for kind, index in firsts.items():
            found[kind] = _branches(subjects[index])
            if _hands_on(model, index, found[kind].values()):
                raise _NotTwoError("its attention hands more to the layers above than the residual stream")
    except _NotTwoError as error:
        raise UnsupportedModelError(
            f"The layers of {model.network.config.model_type} cannot lose attention or MLP alone: {error}.",
            "Use --granularity block.",
        ) from error
    return replace(model, branches=tuple(found[kind] for kind in kinds))


class _NotTwoError(Exception):
    """Why a layer is no attention and MLP."""


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """Return what tells layers apart whose branches may be other modules."""
    return tuple((name, type(module)) for name, module in layer.named_modules())


# --- the experiment -------------------------------------------------------------------------


def _branches(subject: _Subject) -> dict[str, Branch]:
    """Return the branches of a layer by name.

    Raises:
        _NotTwoError: If they are not attention and MLP, each with ends of its own.
    """
    matrices = {name for name, weight in subject.layer.named_parameters() if weight.dim() > 1}
    unused = subject.without_influence()
    ends = _ends(subject, matrices - unused)
    if rest := sorted(matrices - subject.without_influence(ends)):
        raise _NotTwoError(f"{rest[0]} is in neither of two branches that add to the residual stream")
    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    for end in ends:
        mixes = subject.mixes_tokens([other for other in ends if other != end])
        parts[PARTS[0] if mixes else PARTS[1]].append(end)
    for name, own in parts.items():
        if not own:
            raise _NotTwoError(f"a layer has no {'MLP' if name == 'mlp' else name} beside {', '.join(ends)}")
    return {name: _branch(subject, tuple(own), unused) for name, own in parts.items()}


def _ends(subject: _Subject, matrices: set[str]) -> tuple[str, ...]:
    """Return the modules that take more influence from matrices than any other that includes it."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in subject.layer.state_dict() if name in matrices)
    taken: dict[str, frozenset[str]] = {}
    for path in owners:
        try:
            taken[path] = frozenset(matrices & subject.without_influence([path]))
        except (TypeError, RuntimeError, ValueError):  # it gives something else than a tensor
            continue
    largest = [path for path, own in taken.items() if not any(own < other for other in taken.values())]
    # A module whose own weight is used in it takes no more than its last projection.
    return tuple(
        path for path in largest if not any(_holds(path, o) and taken[path] == taken[o] for o in largest)
    )


def _holds(path: str, other: str) -> bool:
    return other.startswith(f"{path}.")


def _branch(subject: _Subject, ends: tuple[str, ...], unused: frozenset[str]) -> Branch:
    """Return a branch, and what its modules give while it is silent.

    Raises:
        _NotTwoError: If ends whose weights are zeros compute something else than zeros.
    """
    expected = subject.run(ends)
    if not torch.equal(_run_with_zeros(subject, ends), expected):
        raise _NotTwoError(f"weights of zeros in {', '.join(ends)} do not silence it")
    weights = subject.without_influence(ends) - unused
    for paths in _choices(subject, ends, weights | unused):
        try:
            branch = Branch(ends, tuple(sorted(weights)), _silences(subject, paths, ends))
            with silenced(subject.layer, [branch]):
                actual = subject.run()
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
            continue
        if torch.equal(actual, expected):
            return branch
    raise _NotTwoError(f"nothing can stand in for {', '.join(ends)}")


def _run_with_zeros(subject: _Subject, ends: Sequence[str]) -> torch.Tensor:
    """Return what the layer gives with the weights of its ends zero, as a checkpoint has them."""
    weights = [weight for path in ends for weight in subject.layer.get_submodule(path).parameters()]
    kept = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = torch.zeros_like(weight)
        return subject.run()
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data


def _choices(subject: _Subject, ends: Sequence[str], silent: frozenset[str]) -> Iterator[Sequence[str]]:
    """Yield sets of modules that may stand still, the outermost first: with all they hold, alone, the ends.

    Still is what has silent weights only, or gives nothing but zeros: a norm behind an end, say.
    """
    outputs = {path: output for path, _, _, output in _calls(subject, ends)}
    still = []
    for path, module in subject.layer.named_modules():
        weights = [f"{path}.{name}" for name, _ in module.named_parameters()]
        is_zero = not any(bool(part.any()) for part in _tensors(outputs.get(path)))
        if path in outputs and weights and (silent.issuperset(weights) or is_zero):
            still.append(path)
    yield [path for path in still if not any(_holds(other, path) for other in still)]
    yield [path for path in still if not any(_holds(path, other) for other in still)]
    yield ends


def _silences(subject: _Subject, paths: Sequence[str], ends: Sequence[str]) -> dict[str, Silence]:
    """Return what modules give while the ends give zeros."""
    found: dict[str, Silence] = {}
    for path, args, kwargs, output in _calls(subject, ends):
        if path in paths:
            first = stream_of(output)
            given = {
                name: v for name, v in (dict(enumerate(args)) | kwargs).items() if isinstance(v, torch.Tensor)
            }
            same = (name for name, value in given.items() if torch.equal(value, first))
            found[path] = Silence(
                first.shape[-1], next(same, None), len(output) if output is not first else 0
            )
    return found


def _calls(subject: _Subject, ends: Sequence[str]) -> list[tuple[str, Any, Any, Any]]:
    """Return path, arguments and output of each module within the layer, with the ends giving zeros."""
    calls: list[tuple[str, Any, Any, Any]] = []
    with ExitStack() as hooks:
        for path, module in subject.layer.named_modules():
            if path:
                hook = module.register_forward_hook(
                    lambda _, args, kwargs, output, path=path: calls.append((path, args, kwargs, output)),
                    with_kwargs=True,
                )
                hooks.callback(hook.remove)
        subject.run(ends)
    return calls


def _tensors(output: Any) -> list[torch.Tensor]:
    parts = output if isinstance(output, (tuple, list)) else [output]
    return [part for part in parts if isinstance(part, torch.Tensor)]


# --- what is experimented on ----------------------------------------------------------------


@torch.no_grad()
def _subjects(model: LoadedModel, indices: Sequence[int]) -> dict[int, _Subject]:
    """Return layers with random weights, and what the network's own forward gives them on an example.

    Raises:
        _NotTwoError: If a layer is not run, or reads what an encoder made as well.
    """
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    layers = list(model.layers)
    with ExitStack() as hooks:
        for index in indices:
            hook = layers[index].register_forward_pre_hook(
                lambda _, args, kwargs, index=index: calls.setdefault(index, (args, kwargs)), with_kwargs=True
            )
            hooks.callback(hook.remove)
        answer_of(model.network, model.task, model.task.examples(model.processor)[0])
    empty = build_empty(type(model.network), model.network.config).eval()
    paths = model.layer_paths
    found = {}
    for index in indices:
        if index not in calls:
            raise _NotTwoError(f"layer {model.numbering.name(index)} is not run on an example")
        args, kwargs = calls[index]
        layer = empty.get_submodule(paths[index])
        if (
            inspect.signature(layer.forward).bind(*args, **kwargs).arguments.get("encoder_hidden_states")
            is not None
        ):
            raise _NotTwoError(f"layer {model.numbering.name(index)} has cross attention as a third part")
        found[index] = _subject(layer, args, kwargs)
    return found


def _subject(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Subject:
    from accelerate.utils import send_to_device

    generator = torch.Generator().manual_seed(0)
    for module in layer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            value = torch.rand(weight.shape, generator=generator) + 0.5  # no norm's scale may be 0
            if weight.dim() > 1:
                value = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
            setattr(module, name, nn.Parameter(value))
    given = send_to_device(dict(enumerate(args)) | dict(kwargs), "cpu")
    return _Subject(layer, given, 0 if args else "hidden_states")


@torch.no_grad()
def _hands_on(model: LoadedModel, index: int, branches: Iterable[Branch]) -> bool:
    """Tell whether layers above use more of a branch than what it adds to the stream."""
    layer, example = model.layers[index], model.task.examples(model.processor)[0]
    for branch in branches:
        with silenced(layer, [branch]):
            found = answer_of(model.network, model.task, example)
        with _giving_zeros(layer, branch.ends):
            expected = answer_of(model.network, model.task, example)
        if not np.array_equal(found, expected, equal_nan=True):
            return True
    return False
