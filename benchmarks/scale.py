"""What a search costs on models that we cannot run: the tables of docs/scale.md, computed.

    python benchmarks/scale.py                       # print them
    python benchmarks/scale.py --write docs/scale.md

Dense decoders of 8, 70 and 405 billion weights are built on PyTorch's meta device, which computes
nothing. The search is rehearsed on them with the package's own counting (`tapioca_export.costing`),
so layer forwards and operations are those that it would really take; seconds follow from a data
sheet's operations a second and an assumed utilisation. No GPU took part: nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import click
import numpy as np
import torch
from recording import put_between
from transformers import AutoModelForCausalLM, LlamaConfig

from tapioca_export.artifacts import Selection
from tapioca_export.costing import (
    Flops,
    Item,
    Rehearsal,
    count_flops,
    longest_batch,
    model_bytes,
    trace_bytes,
)
from tapioca_export.models import LoadedModel, Stack, StandIn
from tapioca_export.samples import Row, Samples
from tapioca_export.selection import SelectionSettings, select_layers
from tapioca_export.tasks import TASKS, Batch, Processor

BEGIN, END = "<!-- begin: python benchmarks/scale.py -->", "<!-- end -->"

# Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv:2407.21783, table 3.
# Hidden size, that of the feed-forward part, layers, heads.
SIZES = {"8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64), "405B": (16384, 53248, 126, 128)}
VOCABULARY, KEY_VALUE_HEADS = 128256, 8

NUM_ROWS, CONTEXT, NUM_ANSWERS, ANSWER, NUM_DROPPED = 1000, 200, 4, 5, 8
BATCH_SIZE = 32

# Source: NVIDIA, H100 Tensor Core GPU data sheet, SXM: bfloat16 without sparsity, memory.
PEAK_FLOPS, GPU_BYTES = 989e12, 80e9
# Assumed, all of them.
UTILISATION = 0.4
USABLE = 0.9  # of a GPU's memory: the rest is PyTorch's and the allocator's
GPUS_A_NODE = 8
NODE_BYTES_PER_S = 10e9  # from shared storage into one node
GPUS = (1, 2, 4, 8, 16, 32, 64)


class PaperModel(LoadedModel):
    """A model on the meta device: it has shapes, no numbers; searched as on a GPU."""

    @property
    def device(self) -> torch.device:
        """A GPU, as far as a search asks."""
        return torch.device("cuda")

    def read(self, batch: Batch) -> tuple[np.ndarray, None]:
        """Run the shapes where somebody counts; every number is 0.

        So the proof that contexts may be shared is taken as given.
        """
        asked = batch.readings
        assert asked is not None
        if isinstance(self.layers[0], StandIn):
            tensors = {name: torch.from_numpy(array).to("meta") for name, array in batch.inputs.items()}
            states = self.network.model(**tensors, use_cache=False).last_hidden_state
            self.network.lm_head(states[:1, :1].expand(1, len(asked.rows), -1))
        return asked.arranged(np.zeros((len(asked.rows), 2), dtype=np.float32)), None


@dataclass(frozen=True)
class Cost:
    """One way of searching on some replicas: layer forwards, operations, and those in a row."""

    layer_forwards: int
    flops: float
    longest_flops: float

    @property
    def seconds(self) -> float:
        """The time that it takes, at the utilisation assumed."""
        return self.longest_flops / (PEAK_FLOPS * UTILISATION)


class Size:
    """One model, and what a search on it costs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hidden, self.inner, self.num_layers, self.heads = SIZES[name]
        self.model = self._model(self.num_layers)
        self.rows = samples(NUM_ROWS, CONTEXT)

    def _model(self, num_layers: int) -> PaperModel:
        config = LlamaConfig(
            hidden_size=self.hidden, intermediate_size=self.inner, num_hidden_layers=num_layers,
            num_attention_heads=self.heads, num_key_value_heads=KEY_VALUE_HEADS, vocab_size=VOCABULARY,
            max_position_embeddings=8192, pad_token_id=0,
        )  # fmt: skip
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        processor = Processor(self.name, "last-token", 8192, tokenizer=Tokenizer())
        stacks = (Stack("", "model.layers"),)
        return PaperModel(network, TASKS["multiple-choice"], processor, self.name, stacks)

    @cached_property
    def flops(self) -> Flops:
        """Operations of a layer and of the head, counted at two lengths; all layers are alike.

        Rows have no labels, so that nothing is proven on them: the last layer counts as a whole one.
        """
        short, long = (samples(1, length, label=None) for length in (CONTEXT // 2, CONTEXT))
        both = Samples("target", (*short.rows, *long.rows), "", "")
        shared = Processor(self.name, "last-token", 8192, tokenizer=Tokenizer(), shares_context=True)
        return count_flops(self._model(3), both, shared)

    @cache  # noqa: B019  (three sizes, and they live as long as the process)
    def searched(self, num_replicas: int, full: bool) -> tuple[Cost, Selection, Rehearsal]:
        """Rehearse a search: all scores in full, or a race in which all losers are told at once."""
        rehearsal = Rehearsal(
            self.model,
            {"id": self.rows, "target": self.rows},
            batch_size=BATCH_SIZE,
            num_workers=num_replicas,
            case="most" if full else "least",
        )
        rehearsal.skip_costs = (0,) * self.num_layers  # Llama's layers return hidden states and no more
        settings = SelectionSettings(
            max_drop_layers=NUM_DROPPED, epsilon=None, pick="final", full_scores=full
        )
        selection = select_layers(
            rehearsal, settings, model=self.name, task=self.model.task, num_samples=NUM_ROWS
        )
        groups = [[self.flops.count(item) for item in group] for group in rehearsal.groups]
        cost = Cost(rehearsal.ledger.layer_forwards, sum(map(sum, groups)), sum(map(max, groups)))
        return cost, selection, rehearsal

    def published(self, selection: Selection, num_replicas: int) -> Cost:
        """Each answer behind its context, all layers left, logits of all positions, no prefix kept."""
        assert selection.cost is not None
        forwards = selection.cost.plain_layer_forwards
        tokens = CONTEXT + ANSWER - 1
        layer = self.flops.count(Item(0, 1, tokens, 0, 1, 0))
        passes = NUM_ROWS * NUM_ANSWERS * selection.cost.evaluations
        logits = 2 * tokens * VOCABULARY * self.hidden
        flops = float(forwards * layer + passes * logits)
        return Cost(forwards, flops, flops / num_replicas)

    @cached_property
    def weights(self) -> int:
        """Bytes in bfloat16."""
        return model_bytes(self.model)

    def trace(self, rehearsal: Rehearsal) -> int:
        """Bytes of hidden states held for one batch."""
        return trace_bytes(self.model, longest_batch(rehearsal))

    def working(self, rehearsal: Rehearsal) -> int:
        """Bytes of one layer at work (three MLP states, scores of attention) and of the logits asked for."""
        ((sequences, tokens),) = longest_batch(rehearsal)
        layer = 3 * tokens * self.inner + self.heads * tokens**2
        logits = BATCH_SIZE * NUM_ANSWERS * ANSWER * VOCABULARY * 4
        return 2 * sequences * layer + 2 * logits

    def gpus_a_replica(self, rehearsal: Rehearsal) -> int:
        """GPUs that hold weights, states and one layer at work; beyond a node, whole nodes."""
        need = self.weights + self.trace(rehearsal) + self.working(rehearsal)
        gpus = math.ceil(need / (USABLE * GPU_BYTES))
        return gpus if gpus <= GPUS_A_NODE else GPUS_A_NODE * math.ceil(gpus / GPUS_A_NODE)


class Tokenizer:
    """Has the one thing that encoding ids asks of a tokenizer."""

    pad_token_id = 0


def samples(num_rows: int, context: int, label: int | None = 0) -> Samples:
    """Make rows of equal length; their ids do not matter."""
    features = {"context": (1,) * context, "answers": ((1,) * ANSWER,) * NUM_ANSWERS}
    rows = tuple(Row(features, label, str(number), "") for number in range(num_rows))
    return Samples("target", rows, "", "")


def replicas(num_gpus: int, each: int) -> int:
    """Return how many replicas find room; none spans nodes unless it needs more than one."""
    if each > GPUS_A_NODE:
        return num_gpus // each
    whole, rest = divmod(num_gpus, GPUS_A_NODE)
    return whole * (GPUS_A_NODE // each) + rest // each


# --- tables ---------------------------------------------------------------------------------


def tables() -> str:
    """Return all tables as Markdown."""
    sizes = [Size(name) for name in SIZES]
    return "\n\n".join("\n".join(table(sizes)) for table in (_memory, _work, _time))


def _memory(sizes: list[Size]) -> Iterator[str]:
    """One replica: what it holds, and how long a node loads as many as it has room for."""
    yield (
        "| model | weights, bf16 | weights, fp32 | states of a batch of 32 | of 8 | one layer at work | "
        "GPUs a replica, bf16 | replicas a node | loading a node |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for size in sizes:
        rehearsal = size.searched(1, False)[2]
        each, trace = size.gpus_a_replica(rehearsal), size.trace(rehearsal)
        copies = GPUS_A_NODE // each
        # A node that holds a part of a replica loads that part.
        loaded = copies * size.weights if copies else size.weights * GPUS_A_NODE / each
        memory = (size.weights, 2 * size.weights, trace, trace / 4, size.working(rehearsal))
        room = copies or f"1 on {each // GPUS_A_NODE} nodes"
        cells = (size.name, *map(_gb, memory), each, room, f"{loaded / NODE_BYTES_PER_S:.0f} s")
        yield f"| {' | '.join(map(str, cells))} |"


def _work(sizes: list[Size]) -> Iterator[str]:
    """What is computed, however many GPUs compute it."""
    yield "| model | search | layer forwards | operations (PFLOP) | saved | GPU-hours of arithmetic |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for size in sizes:
        full, selection, _ = size.searched(1, True)
        published, race = size.published(selection, 1), size.searched(1, False)[0]
        for name, cost in (("published", published), ("full scores", full), ("race, at best", race)):
            saved = published.flops / cost.flops
            yield (
                f"| {size.name} | {name} | {cost.layer_forwards:,} | {cost.flops / 1e15:,.0f} | "
                f"{saved:.1f}x | {cost.seconds / 3600:,.2f} |"
            )


def _time(sizes: list[Size]) -> Iterator[str]:
    """How long it takes on how many GPUs."""
    yield "| model | GPUs | replicas | published | full scores | race, at best |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for size in sizes:
        each = size.gpus_a_replica(size.searched(1, False)[2])
        for num_gpus in GPUS:
            count = replicas(num_gpus, each)
            if not count:
                yield f"| {size.name} | {num_gpus} | none fits | | | |"
                continue
            full, selection, _ = size.searched(count, True)
            costs = (size.published(selection, count), full, size.searched(count, False)[0])
            times = " | ".join(_duration(cost.seconds) for cost in costs)
            yield f"| {size.name} | {num_gpus} | {count} | {times} |"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


@click.command(help=__doc__)
@click.option("--write", type=click.Path(path_type=Path), help="Put the tables into this file.")
def main(write: Path | None) -> None:
    """Print the tables, or write them between the markers of a file."""
    found = tables()
    if write is None:
        click.echo(found)
        return
    put_between(write, BEGIN, END, found)


if __name__ == "__main__":
    main()
