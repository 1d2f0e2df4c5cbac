"""An ONNX file as a network whose layers are its pieces: ONNX Runtime computes, and nothing is trained.

So whatever is measured on a network is measured on a file: layers are skipped, replayed and scaled at
their places, and the stream between them is seen. Knows nothing about how a graph is divided.

Shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError, UnsupportedModelError
from ..generation import PAST, with_positions
from ..graphs import Pieces
from ..tasks import Inputs, Processor, Task
from .loaded import LoadedModel, LoadOptions
from .stacks import Stack


class GraphLayer(nn.Module):
    """One layer of a file."""

    def __init__(self, pieces: Pieces, index: int) -> None:
        super().__init__()
        self.pieces, self.index = pieces, index

    def forward(self, hidden_states: torch.Tensor, beside: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Return the stream (B, T, H) that leaves the layer."""
        return torch.from_numpy(self.pieces.layer(self.index, hidden_states.numpy(), beside))


class GraphNetwork(nn.Module):
    """What `LoadedModel` wants of a network, of a file; outputs have the names that the task knows.

    Args:
        pieces: The file's.
        task: What it does.
        config: Of the model that it was exported from.
    """

    def __init__(self, pieces: Pieces, task: Task, config: Any) -> None:
        super().__init__()
        self.pieces, self.task, self.config = pieces, task, config
        self.layers = nn.ModuleList(GraphLayer(pieces, index) for index in range(pieces.num_layers))
        self.dtype = torch.float32

    def forward(self, use_cache: bool | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run all layers; nothing is cached.

        Raises:
            ValueError: If an input has another number of axes than the graph takes.
            UnsupportedModelError: If there are no hidden states between the layers.
        """
        stream, beside = self.pieces.before(self._fed({name: v.numpy() for name, v in inputs.items()}))
        if stream.ndim != 3:
            raise UnsupportedModelError(
                f"What flows between the layers has {stream.ndim} axes, not rows, tokens and values: it is "
                "quantised, and no hidden states are left.",
                "Profile and select on the checkpoint, or on the file before it was quantised.",
            )
        hidden_states = torch.from_numpy(stream)
        for layer in self.layers:
            hidden_states = layer(hidden_states, beside)
        found = self.pieces.behind(hidden_states.numpy(), beside)
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def get_output_embeddings(self) -> None:
        """Return nothing: a file's head is run as a whole."""

    def _fed(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Return what the graph takes: an empty cache and positions where it wants them."""
        size = len(next(iter(inputs.values())))
        given = with_positions(inputs, self.pieces.inputs)
        fed = {}
        for name, wanted in self.pieces.inputs.items():
            if name in given:
                if given[name].ndim != len(wanted.sizes):
                    raise ValueError(f"{name} has {given[name].ndim} axes, not {len(wanted.sizes)}")
                fed[name] = np.ascontiguousarray(given[name], dtype=wanted.dtype)
            else:
                sizes = [size, *(axis or 0 for axis in wanted.sizes[1:])]
                fed[name] = np.zeros(sizes, wanted.dtype)
        return fed


def load_graph(
    file: Path, task: Task, processor: Processor, config: Any, options: LoadOptions
) -> LoadedModel:
    """Open an ONNX file as a model of one stack.

    Args:
        file: The file.
        task: What it does.
        processor: What encodes its inputs.
        config: Of the model that it was exported from.
        options: Device and granularity.

    Raises:
        ConfigError: If it is to run elsewhere than on the CPU, or parts of layers are to go.
        LoadError: If the file cannot be read.
        UnsupportedModelError: If its layers cannot be told, or it does not take or give what the task does.
    """
    if options.device != "cpu":
        raise ConfigError("An ONNX file is run on the CPU while layers are chosen.", "Leave out --device.")
    if options.granularity != "block":
        raise ConfigError("Of an ONNX file, whole layers are dropped.", "Leave out --granularity.")
    pieces = Pieces(file, torch.get_num_threads())
    _refuse_other_names(file, pieces, task, processor)
    network = GraphNetwork(pieces, task, config).eval()
    return LoadedModel(network, task, processor, str(file), (Stack("", "layers"),))


def refuse_graph(model: LoadedModel, what: str) -> None:
    """Refuse what needs weights as PyTorch has them, where ONNX Runtime has them.

    Raises:
        UnsupportedModelError: If the model is an ONNX file.
    """
    if isinstance(model.network, GraphNetwork):
        raise UnsupportedModelError(
            f"{what} needs the weights of each layer, and {model.source} is a graph.", "Name the checkpoint."
        )


def _refuse_other_names(file: Path, pieces: Pieces, task: Task, processor: Processor) -> None:
    """Refuse a graph that the task's rows cannot be given to, or whose answers cannot be read."""
    example = task.examples(processor)[0]
    given = with_positions(example, pieces.inputs)
    for name, wanted in pieces.inputs.items():
        if name in given:
            axes = task.axes(name) if name in example else ("batch", "sequence")
            fixed = [axis for axis, size in zip(axes, wanted.sizes, strict=False) if size is not None]
            if fixed:
                raise UnsupportedModelError(
                    f"{file} takes {name} of one {fixed[0]} size only, {list(wanted.sizes)}.",
                    "Export it with dynamic batch and sequence axes.",
                )
        elif not name.startswith(PAST):
            raise UnsupportedModelError(
                f"{file} wants the input {name}, which rows of {task.name} do not have.",
                "Is it another --task, or one of several graphs of a model?",
            )
    for name in task.outputs:
        if name not in pieces.outputs:
            raise UnsupportedModelError(
                f"{file} has no output {name} ({', '.join(pieces.outputs)}), which {task.name} reads.",
                "Is it another --task, or one of several graphs of a model?",
            )
