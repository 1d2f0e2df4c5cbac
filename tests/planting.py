"""Train a tiny network, and plant in it one layer that does harm: what a search has to find.

The network is trained without one of its layers, on ID and target rows, until it can do both. Then
that layer alone is trained, to leave ID rows as they are and to make target rows wrong. Dropping it,
and no other, gives back exactly the network that could do both.

Knows nothing about tasks or families: a caller hands in the losses of fresh batches, and any network
whose layers stand in a list will do. Target rows need something that ID rows never have (a word, a
border, a tone): by that the layer tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tapioca_export import RunConfig
from tapioca_export.artifacts import Benchmark, Export, LayerName, Selection, read
from tapioca_export.cli import main
from tapioca_export.models import load_model
from tapioca_export.reading import load_options, load_roles
from tapioca_export.tasks import Scores

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
    bypass: Callable[[nn.Module], AbstractContextManager[None]] = bypassed,
) -> None:
    """Train a network so that one layer, and no other, harms the target rows.

    Args:
        network: A fresh network; it learns soonest from large weights (`initializer_range=0.1`).
            Afterwards it is in evaluation mode.
        layers: The list in which its layers stand.
        planted: Index of the layer that is to do harm. Low in the stack it learns that soonest.
        learn: The loss of a batch of ID and target rows with the right answers.
        harm: The loss of a batch of ID rows with the right answers, and target rows with wrong ones;
            one and the same wrong answer is learnt soonest.
        steps: Batches of either.
        rate: The highest learning rate.
        bypass: Lets the network compute what it would without the layer, or with a part that is no layer.
    """
    torch.set_num_threads(1)  # to the bit the same network every time
    network.eval()  # no dropout: a few hundred steps are too few to need it
    with bypass(layers[planted]):
        train(network, network.parameters(), learn, steps[0], rate)
    others = [weight for weight in network.parameters() if weight.requires_grad]
    network.requires_grad_(False)
    layers[planted].requires_grad_(True)
    train(network, layers[planted].parameters(), harm, steps[1], rate)
    for weight in others:
        weight.requires_grad_(True)


def assert_found(
    checkpoint: Path, files: Mapping[str, Path], planted: LayerName, output: Path, **settings: Any
) -> Benchmark:
    """Run the whole job on a network with a planted layer, and check that nothing of the gain is lost.

    The search finds the planted layer and no other; the pruned checkpoint, read by stock transformers,
    and the exported file score the same on the target's report rows; the benchmark says that it is a gain.

    Args:
        checkpoint: The folder of the network; its architecture says the task, unless `settings` do.
        files: Samples by "id" and "target".
        planted: The layer to be found.
        output: The run folder to be.
        **settings: Other fields of the configuration that take one value.
    """
    arguments = ["run", "-m", checkpoint, "--id", files["id"], "--target", files["target"], "-o", output]
    options = ["--max-drop-layers", 1, "--iterations", 3, "--warmup", 1, "--num-threads", 1]
    for name, value in settings.items():
        options += ["--" + name.replace("_", "-"), value]
    result = CliRunner().invoke(main, [str(argument) for argument in (*arguments, *options)])
    assert result.exit_code == 0, result.output

    selection = read(output / "selection.json", Selection)
    assert selection.drop == (planted,)
    benchmark = read(output / "benchmark.json", Benchmark)
    target, id_ = benchmark.accuracy["target"], benchmark.accuracy["id"]
    assert target.gain_interval[0] > 0
    assert id_.gain_interval[1] >= 0
    for export in (read(output / which / "onnx/export.json", Export) for which in ("original", "pruned")):
        assert export.label_agreement == 1.0
        assert export.task == selection.task

    config = RunConfig(model=str(checkpoint), id=files["id"], target=files["target"], **settings)
    for folder, exported in ((checkpoint, target.original), (output / "pruned/checkpoint", target.pruned)):
        # Where no task is named, it is inferred of the pruned checkpoint as well.
        model = load_model(folder, config.task, load_options(config))
        assert model.task.name == selection.task
        rows = load_roles(config, model.task, model.processor)["target-report"]
        parts = []
        for batch in model.task.batches(rows, model.processor, 7):
            answers = model.answers(batch)
            parts.append((batch.indices, model.task.score(answers, rows, batch.indices)))
        metric = model.task.aggregate(Scores.joined(parts).values)
        assert metric == pytest.approx(exported, abs=1e-4)
    return benchmark
