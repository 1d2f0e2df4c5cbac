"""Train a tiny network, and plant in it one layer that does harm: what a search has to find.

The network is trained without one of its layers, on ID and target rows, until it can do both. Then
that layer alone is trained, to leave ID rows as they are and to make target rows wrong. Dropping it,
and no other, gives back exactly the network that could do both.

Knows nothing about tasks or families: a caller hands in the losses of fresh batches, and any network
whose layers stand in a list will do. Target rows need something that ID rows never have (a word, a
border, a tone): by that the layer tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Draws a batch and returns its loss.
Loss = Callable[[], torch.Tensor]


@contextmanager
def bypassed(layer: nn.Module) -> Iterator[None]:
    """Let a layer return its input: the network computes what it would without the layer."""

    def pass_through(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    hook = layer.register_forward_hook(pass_through, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def train(network: nn.Module, weights: Iterable[nn.Parameter], loss: Loss, steps: int, rate: float) -> None:
    """Minimise a loss over some weights of a network."""
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        found = loss()
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def plant(
    network: nn.Module,
    layers: nn.ModuleList,
    planted: int,
    *,
    learn: Loss,
    harm: Loss,
    steps: tuple[int, int] = (250, 200),
    rate: float = 3e-3,
) -> None:
    """Train a network so that one layer, and no other, harms the target rows.

    Args:
        network: A fresh network; afterwards it is in evaluation mode.
        layers: The list in which its layers stand.
        planted: Index of the layer that is to do harm; a low one, as those above it cannot mend it then,
            and are not what helps when they are dropped.
        learn: The loss of a batch of ID and target rows with the right answers.
        harm: The loss of a batch of ID rows with the right answers, and target rows with wrong ones;
            one and the same wrong answer is learnt soonest.
        steps: Batches of either.
        rate: The highest learning rate.
    """
    torch.set_num_threads(1)  # to the bit the same network every time
    network.eval()  # no dropout: a few hundred steps are too few to need it
    with bypassed(layers[planted]):
        train(network, network.parameters(), learn, steps[0], rate)
    others = [weight for weight in network.parameters() if weight.requires_grad]
    network.requires_grad_(False)
    layers[planted].requires_grad_(True)
    train(network, layers[planted].parameters(), harm, steps[1], rate)
    for weight in others:
        weight.requires_grad_(True)
