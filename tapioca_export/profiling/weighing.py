"""What published criteria weigh a layer by: its weights, its gradients, the angle it turns the stream.

Measured on the full model; each function leaves the network as it found it. Knows nothing about
which layer goes, nor that a high number is good or bad.

Shapes: H hidden size, L layers of all stacks; any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from ..bars import progress_bar
from ..errors import UnsupportedModelError
from ..models import LoadedModel, refuse_graph, to_tensors
from ..samples import Samples


def magnitudes(model: LoadedModel) -> tuple[float, ...]:
    """Return, a layer (L) or branch of one, the sum of |w| over its weights.

    Weights are projections and norm scales; biases do not count. The source's formula names weight
    matrices, its code everything called "weight", which is the same in its models. Going by what is
    no bias keeps in the experts of a mixture too, which transformers stores without that word.

    Source: Kim et al. 2024, "Shortened LLaMA", arXiv:2402.02834, Magnitude, as in the released code.
    """
    refuse_graph(model, "The criterion magnitude")
    return tuple(math.fsum(_total(weight.detach().abs()) for weight in own) for own in _weights(model))


def sensitivities(model: LoadedModel, samples: Samples, batch_size: int) -> tuple[float, ...]:
    """Return, a layer (L) or branch, the sum of |w dL/dw| over its weights, one forward and backward a row.

    L is the model's own training loss, averaged over all rows; weights are those of `magnitudes`.
    The absolute value is taken once, of the gradient over all rows. That is the source's formula, and
    up to a factor its code: adding up w dL/dw over batches before |.| is adding up gradients.

    Deviations from the source: the rows and loss of the task at hand, not next-token loss on ten
    texts. The loss of polynomial regression is over all points, though the metric scores the fourth
    and later ones only.

    Args:
        model: The network under study.
        samples: Labelled rows.
        batch_size: Rows a forward; the result does not depend on it but for rounding.

    Source: Kim et al. 2024, "Shortened LLaMA", arXiv:2402.02834, Taylor.
    """
    refuse_graph(model, "The criterion taylor")
    task = model.task
    batches = task.batches(samples, model.processor, batch_size)
    total = -(-len(samples) // batch_size)
    with _gradients_of_the_stack(model):
        for batch in progress_bar(batches, desc="Weighing", total=total, leave=False, unit="batch"):
            inputs = {**batch.inputs, **task.training_inputs(batch, samples)}
            output = model.network(**to_tensors(inputs, model.device), **model.forward_options)
            # The loss is a mean over the batch: with its share of the rows, the sum is the mean of all.
            (output.loss * (len(batch) / len(samples))).backward()
        with torch.no_grad():
            return tuple(
                math.fsum(_total((w * w.grad).abs()) for w in own if w.grad is not None)
                for own in _weights(model)
            )


def angular_distance(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return arccos(cos(before, after)) / pi of states (..., H): shape (...), float64, in [0, 1].

    0 is the same direction, 0.5 a right angle, 1 the opposite direction.

    Source: Gromov et al. 2024, arXiv:2403.17887, the angular distance d(x_l, x_{l+n}).
    """
    # Close to 1, arccos halves the digits that the cosine has; rounding takes it past 1, to NaN.
    cosine = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosine.clamp(-1.0, 1.0).arccos() / math.pi


def _weights(model: LoadedModel) -> list[list[nn.Parameter]]:
    """Return the parameters other than biases of each layer, or of each branch of one.

    A branch has those that matter for nothing else: a norm that both branches read is neither's.

    Raises:
        UnsupportedModelError: If some are on disk: they are in memory only while the layer runs.
    """
    found = []
    for index, layer in enumerate(model.layers):
        named = {n: w for n, w in layer.named_parameters() if "bias" not in n.rpartition(".")[2]}
        branches = (
            [branch.weights for branch in model.branches[index].values()] if model.branches else [named]
        )
        found += [[named[name] for name in own if name in named] for own in branches]
    if any(weight.is_meta for own in found for weight in own):
        raise UnsupportedModelError(
            "Weights that do not fit in memory cannot be weighed.", "Choose another --criterion."
        )
    return found


def _total(values: torch.Tensor) -> float:
    # Millions of numbers: a running sum in float32 would lose the small ones.
    return float(values.sum(dtype=torch.float64))


@contextmanager
def _gradients_of_the_stack(model: LoadedModel) -> Iterator[None]:
    """Record gradients of the layers' parameters, and of no others, for the length of the block.

    Memory is that of the stack's gradients and one batch's activations; whatever gradients and
    switches the network came with are put back.
    """
    network = model.network
    found = [(p, p.requires_grad, p.grad) for p in network.parameters()]
    problem_type = network.config.problem_type
    try:
        for parameter, _, _ in found:
            parameter.grad = None
            parameter.requires_grad_(False)
        model.layers.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required, gradient in found:
            parameter.grad = gradient
            parameter.requires_grad_(required)
        # A classifier that is given labels writes the kind of its loss into its config, to be saved.
        network.config.problem_type = problem_type


def summed_cosines(streams: Sequence[torch.Tensor], mask: torch.Tensor) -> list[float]:
    """Return the cosine of what enters and what leaves each layer, summed over real tokens."""
    mask = mask.to(streams[0].device)
    return [
        float(functional.cosine_similarity(one.float(), other.float(), dim=-1)[mask].double().sum())
        for one, other in pairwise(streams)
    ]
