"""A model in memory: the network, its layers, and what encodes its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.dynamic_module_utils import custom_object_save

from ..artifacts import Numbering, Prompting
from ..errors import UnsupportedModelError, first_line
from ..numbering import PARTS
from ..tasks import Batch, Inputs, Processor, Readings, Task
from ..tensors import to_tensors
from .silencing import Branch
from .stacks import Stack

# What PyTorch and the models of transformers raise where they do not compute.
FAILURES = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
)  # fmt: skip
# The device that stands for all there are: accelerate spreads the layers over GPUs, memory and disk.
SPREAD = "auto"


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the safety switches are off unless the user turns them on.

    `device` is one of PyTorch's, or "auto": spread over all that there are, of the machine's memory no more
    than `max_memory` (such as "8GB") for weights; what fits nowhere is read from disk. `metric` is one of the
    task's (default: its first), `prompting` how a decoder's rows become prompts. `granularity` says what may
    be dropped one by one: "block", a layer, or "sublayer", its attention and its MLP.
    """

    trust_remote_code: bool = False
    local_files_only: bool = False
    max_length: int | None = None
    device: str = "cpu"
    metric: str | None = None
    prompting: Prompting = field(default_factory=Prompting)
    max_memory: str | None = None
    granularity: str = "block"


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, with what encodes its inputs.

    `stacks` say where its layers are, in the order in which a forward runs them. A layer is a number,
    counted through all of them. `branches` are each layer's attention and MLP, where they are considered
    separately, `silent` the parts of layers that are left out for an export. The network's state is never
    changed for good.
    """

    network: Any
    task: Task
    processor: Processor
    source: str
    stacks: tuple[Stack, ...]
    trust_remote_code: bool = False
    branches: tuple[Mapping[str, Branch], ...] = ()
    silent: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of all stacks, in one list."""
        return nn.ModuleList(layer for stack in self.stacks for layer in self.layers_of(stack))

    def layers_of(self, stack: Stack) -> nn.ModuleList:
        """Return the layers of one stack, in the network's own list."""
        layers = self.network.get_submodule(stack.path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def path_of(self, layer: int) -> str:
        """Return the dotted path of a layer in the network."""
        stack = self.numbering.stack_of(layer)
        return f"{self.stacks[stack].path}.{layer - self.numbering.ranges[stack].start}"

    @property
    def layer_paths(self) -> list[str]:
        """The dotted path of each layer in the network."""
        return [
            f"{stack.path}.{place}" for stack in self.stacks for place in range(len(self.layers_of(stack)))
        ]

    @property
    def numbering(self) -> Numbering:
        """How the layers are counted and named."""
        return Numbering({stack.name: len(self.layers_of(stack)) for stack in self.stacks})

    @property
    def num_layers(self) -> int:
        """Count the layers of all stacks."""
        return self.numbering.num_layers

    @property
    def units(self) -> Numbering:
        """How what may be dropped one by one is counted and named: layers, or their branches."""
        return replace(self.numbering, parts=PARTS if self.branches else ())

    @property
    def num_caching(self) -> int:
        """Count the layers that keep keys and values while the model generates."""
        return self.num_layers - sum(PARTS[0] in parts for parts in self.silent.values())

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the weights are, or the first of them if they are spread."""
        return device_of(self.network)

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> np.ndarray:
        """Run the network as it stands; returns its outputs as the task joins them, float32."""
        return answer_of(self.network, self.task, inputs)

    @torch.no_grad()
    def answers(self, batch: Batch) -> np.ndarray:
        """Run the network as it stands; returns what the task scores.

        That is the logits, (B, ...), float32; or, where the batch asks for tokens, (B, K, 2): each
        token's log-probability, and whether it is the likeliest one at its place. Only the positions
        asked for go through the output embedding.
        """
        return self.finished(batch, *self.read(batch))

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[np.ndarray, torch.Tensor | None]:
        """Run one forward; returns what is known of the answers, and an encoder's states, if any."""
        asked = batch.readings
        if asked is None:
            return self.logits(batch.inputs), None
        if self.network.get_output_embeddings() is None:
            if asked.asks_for_all:
                return self.logits(batch.inputs)[asked.sequences, asked.positions], None
            return self.task.evidence(self.logits(batch.inputs), batch).astype(np.float32), None
        with running(self.network), _reading(self.network, asked):
            output = self.network(**to_tensors(batch.inputs, self.device), **self.forward_options)
        logits = output.logits[0].float()  # (R, V)
        if asked.asks_for_all:
            return logits.cpu().numpy(), None
        tokens = torch.from_numpy(asked.tokens).to(logits.device)
        found = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
        likeliest = (logits.argmax(dim=-1) == tokens).float()
        arranged = asked.arranged(torch.stack([found, likeliest], dim=-1).cpu().numpy())
        return arranged, output.get("encoder_last_hidden_state")

    @torch.no_grad()
    def finished(self, batch: Batch, found: np.ndarray, states: torch.Tensor | None) -> np.ndarray:
        """Generate what the batch wants generated; without a cache, as layers that are skipped have none.

        Args:
            batch: B rows.
            found: What is known of the answers, (B, ...).
            states: The encoder's, (B, T, H).
        """
        wanted = batch.continuation
        if wanted is None:
            return found
        tokens = np.full((len(batch), int(wanted.limits.max())), -1)
        lengths = np.asarray([len(prompt) for prompt in wanted.prompts])
        ids = np.zeros((len(batch), lengths.max() + tokens.shape[1]), dtype=np.int64)
        for row, prompt in enumerate(wanted.prompts):
            ids[row, : len(prompt)] = prompt
        running = np.arange(len(batch))
        for place in range(tokens.shape[1]):
            ends = lengths[running] + place
            beside = self._beside(batch, states, running)
            chosen = self._next_tokens(ids[running, : ends.max()], ends, beside)
            ids[running, ends] = tokens[running, place] = chosen
            is_left = ~np.isin(tokens[running, place], wanted.ends) & (wanted.limits[running] > place + 1)
            running = running[is_left]
            if not len(running):
                break
        return wanted.joined(found, tokens)

    def _beside(self, batch: Batch, states: torch.Tensor | None, rows: np.ndarray) -> dict[str, Any]:
        """Return what a decoder sees of some rows' encoder, nothing where there is none."""
        from transformers.modeling_outputs import BaseModelOutput

        if states is None:
            return {}
        seen: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=states[rows])}
        if (mask := batch.inputs.get("attention_mask")) is not None:
            seen["attention_mask"] = torch.from_numpy(mask[rows]).to(self.device)
        return seen

    def _next_tokens(self, ids: np.ndarray, ends: np.ndarray, beside: Mapping[str, Any]) -> np.ndarray:
        """Return the likeliest token behind each sequence, (B,).

        Args:
            ids: Sequences (B, T), padded on the right, where nothing that is real sees it.
            ends: Their lengths (B,).
            beside: What a decoder beside an encoder is given.
        """
        rows, nothing = np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
        last = Readings(rows, rows, ends - 1, nothing, ends - 1)
        mask = (np.arange(ids.shape[1]) < ends[:, None]).astype(np.int64)
        step = {"decoder_input_ids": ids} if beside else {"input_ids": ids, "attention_mask": mask}
        inputs = {**to_tensors(step, self.device), **beside, **self.forward_options}
        with running(self.network):
            if self.network.get_output_embeddings() is None:
                logits = self.network(**inputs).logits[rows, ends - 1]
            else:
                with _reading(self.network, last):
                    logits = self.network(**inputs).logits[0]
        return np.asarray(logits.argmax(dim=-1).cpu())

    @property
    def forward_options(self) -> dict[str, Any]:
        """Keyword arguments of every forward: nothing is cached."""
        return uncached(self.network)

    def save_settings(self, folder: Path) -> None:
        """Write what a file needs beside it to be used: config and its code, generation config, tokenizer."""
        if self.network.is_remote_code():
            custom_object_save(self.network, folder, config=self.network.config)
        self.network.config.save_pretrained(folder)
        if self.network.can_generate():
            self.network.generation_config.save_pretrained(folder)
        self.processor.save(folder)


@torch.no_grad()
def generated(model: LoadedModel, prompts: Inputs, num_tokens: int) -> np.ndarray:
    """Return the tokens that the network's own `generate` adds greedily, (B, num_tokens).

    What the checkpoint says of sampling, penalties and the end of a text is left out.

    Args:
        model: A model with a `generate`.
        prompts: `input_ids` and `attention_mask`, (B, T), padded on the left; for an encoder-decoder what
            it reads, and `decoder_input_ids` to begin with.
        num_tokens: Tokens to add to each.
    """
    from transformers import GenerationConfig, GenerationMixin

    network, own = model.network, model.network.generation_config
    begins = prompts.get("decoder_input_ids")
    plain = GenerationConfig(
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=own.pad_token_id or 0,
        decoder_start_token_id=None if begins is None else int(begins[0, 0]),
    )
    network.generation_config = GenerationConfig()
    try:
        # Not the class's own, which for speech cuts audio into pieces and rules tokens out.
        found = GenerationMixin.generate(
            network, **to_tensors(prompts, model.device, network.dtype), generation_config=plain
        )
    finally:
        network.generation_config = own
    return np.asarray(found[:, -num_tokens:].cpu())


@contextmanager
def _reading(network: Any, asked: Readings) -> Iterator[None]:
    """Let only the states (R of them) that are asked for through to the output embedding."""

    def pick(module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        states = arguments[0]  # (S, T, H)
        places = (torch.from_numpy(index).to(states.device) for index in (asked.sequences, asked.positions))
        return (states[tuple(places)][None],)

    hook = network.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def running(network: Any) -> Iterator[None]:
    """Turn whatever a forward fails with into one error: some configs are found out by computing alone.

    Raises:
        UnsupportedModelError: With what the network says.
    """
    try:
        yield
    except FAILURES as error:
        raise UnsupportedModelError(
            f"{getattr(network.config, 'name_or_path', '') or 'The model'} was loaded, but does not compute: "
            f"{first_line(error)}",
            "Its config, its tokenizer and its weights do not go together; or memory is short.",
        ) from error


@torch.no_grad()
def answer_of(network: Any, task: Task, inputs: Inputs) -> np.ndarray:
    """Run a network as it stands; returns its outputs as the task joins them, float32."""
    with running(network):
        found = network(**to_tensors(inputs, device_of(network), network.dtype), **uncached(network))
    return task.joined([np.asarray(found[name].float().cpu()) for name in task.outputs])


def uncached(network: Any) -> dict[str, Any]:
    """Return the keyword arguments of a forward that keeps no keys and values."""
    return {"use_cache": False} if getattr(network.config, "use_cache", None) is not None else {}


def device_of(network: Any) -> torch.device:
    """Return where inputs go: where the weights are, or the first of them if they are spread."""
    # Weights that accelerate keeps on disk are nowhere; it moves inputs to where a layer runs.
    places = (weight.device for weight in network.parameters() if not weight.is_meta)
    return next(places, torch.device("cpu"))
