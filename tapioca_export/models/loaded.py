"""A model in memory: the network, its layers, and what encodes its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..tasks import Inputs, Processor, Task


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the safety switches are off unless the user turns them on."""

    trust_remote_code: bool = False
    local_files_only: bool = False
    max_length: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, with what encodes its inputs.

    `path` is the dotted path of the layer stack; the network's state is never changed for good
    except by `drop_layers`.
    """

    network: Any
    task: Task
    processor: Processor
    source: str
    path: str
    trust_remote_code: bool = False

    @property
    def stack(self) -> nn.ModuleList:
        """The layers."""
        stack = self.network.get_submodule(self.path)
        assert isinstance(stack, nn.ModuleList)
        return stack

    @property
    def num_layers(self) -> int:
        """Count the layers."""
        return len(self.stack)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> np.ndarray:
        """Run the network as it stands; returns its logits, float32."""
        output = self.network(**to_tensors(inputs, self.device), **self.forward_options)
        return np.asarray(output.logits.float().cpu())

    @property
    def forward_options(self) -> dict[str, Any]:
        """Keyword arguments of every forward: nothing is cached."""
        return {"use_cache": False} if getattr(self.network.config, "use_cache", None) is not None else {}


def to_tensors(inputs: Inputs, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return the batch as tensors."""
    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
