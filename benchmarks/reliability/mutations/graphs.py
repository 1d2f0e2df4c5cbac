"""Faults of ONNX files that layers were cut out of: how they are reconnected, numbered and described."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir

from tapioca_export import RunConfig, prune
from tapioca_export.graphs import cutting, files, norms, stage
from tapioca_export.models import rewriting

from . import altering
from .base import Job, Mutant, Patch, Scenario, before, behind
from .checkpoints import change_json, rotated
from .exports import exported
from .models import HOME

# isort: split
from onnx_graphs import pre_norm

GRAPHS = {
    "a decoder": lambda: pre_norm(["am"] * 4, cached=True),
    "an encoder": lambda: pre_norm(["am"] * 4),
    "parallel layers": lambda: pre_norm(["p"] * 4, cached=True),
}


@functools.cache
def by_hand(kind: str, *, is_beside: bool = False) -> Path:
    """Return a small graph made by hand, with its weights inside or beside it."""
    folder = HOME / f"{kind.replace(' ', '-')}-{is_beside}"
    folder.mkdir()
    beside = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 0}
    onnx.save(GRAPHS[kind]().model(), folder / "model.onnx", **(beside if is_beside else {}))
    return folder


@functools.cache
def fused() -> Path:
    """Return a graph with norms that are fused with the sums before them."""
    folder = HOME / "fused"
    folder.mkdir()
    model = onnx_ir.from_proto(pre_norm(["am"] * 4).model())
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        total = norm.inputs[0].producer()
        if total is None or total.op_type != "Add":
            continue
        made = onnx_ir.node(
            "SkipLayerNormalization", [*total.inputs, *norm.inputs[1:]], {"epsilon": 1e-5},
            domain=norms.DOMAIN, num_outputs=norms.SUM + 1,
        )  # fmt: skip
        model.graph.insert_before(norm, made)
        norm.outputs[0].replace_all_uses_with(made.outputs[0])
        model.graph.remove(norm, safe=True)
        total.outputs[0].replace_all_uses_with(made.outputs[norms.SUM])
        model.graph.remove(total, safe=True)
    onnx_ir.save(model, folder / "model.onnx")
    return folder


@functools.cache
def cutting_of(
    source: Callable[..., Path], *given: Any, how: str = "logits", drop: tuple[int, ...] = (1,)
) -> Scenario:
    """Return the scenario that cuts a graph in a folder."""
    said = " ".join(map(str, given)) or source.__name__

    def prepare(job: Job) -> dict[str, Any]:
        folder = source(*given, **({"is_beside": True} if source is by_hand else {}))
        return {"source": Path(shutil.copytree(folder, job.folder / "source"))}

    def run(job: Job) -> None:
        prune(RunConfig(model=str(job["source"] / "model.onnx"), drop=drop, output=job.output), None, how)

    ways = f" --proof {how}" if how != "logits" else ""
    is_quick = source is not exported
    return Scenario(
        f"prune {said}.onnx, drop {', '.join(map(str, drop))}{ways}", "prune", prepare, run, is_quick
    )


# --- what is broken -------------------------------------------------------------------------


def neighbour(patch: Patch, job: Job) -> None:
    """The layer above the one that was named is cut out."""
    before(patch, stage, "cut", lambda model, found, drop: (model, found, [layer + 1 for layer in drop]))


def fewer(patch: Patch, job: Job) -> None:
    """One of the layers that were named stays."""
    before(patch, stage, "cut", lambda model, found, drop: (model, found, drop[:-1]))


def more(patch: Patch, job: Job) -> None:
    """One layer more goes."""
    before(patch, stage, "cut", lambda model, found, drop: (model, found, [*drop, max(drop) + 1]))


def normed(patch: Patch, job: Job) -> None:
    """What follows reads the norm of the stream that came into the layer, not the stream."""
    own = cutting._reconnect

    def reconnect(graph: Any, found: Any, drop: Any) -> None:
        block = found.blocks[drop[0]]
        norm = next(n for n, _ in block.start.uses() if n.op_type == "LayerNormalization")
        readers = [(n, place) for n, place in block.end.uses() if n.op_type == "LayerNormalization"]
        own(graph, found, drop)
        for node, place in readers:
            node.replace_input_with(place, norm.outputs[0])

    patch.setattr(cutting, "_reconnect", reconnect)


def norm_of_the_dropped(patch: Patch, job: Job) -> None:
    """The layer behind the cut has the norm weights of the one that went."""
    own = stage.cut

    def cut(model: Any, found: Any, drop: Any) -> None:
        first = [
            next(n for n, _ in found.blocks[layer].start.uses() if n.op_type == "LayerNormalization")
            for layer in (drop[0], drop[0] + 1)
        ]
        for place in (1, 2):
            first[1].replace_input_with(place, first[0].inputs[place])
        own(model, found, drop)

    patch.setattr(stage, "cut", cut)


def half_cut(patch: Patch, job: Job) -> None:
    """What goes begins in the middle of the layer: its attention stays."""
    own = stage.cut

    def cut(model: Any, found: Any, drop: Any) -> None:
        block = found.blocks[drop[0]]
        last = block.end.producer()
        middle = next(v for v in last.inputs if v.producer() is not None and v.producer().op_type == "Add")
        object.__setattr__(block, "start", middle)
        own(model, found, drop)

    patch.setattr(stage, "cut", cut)


def _after_cut(change: Callable[[Any], None]) -> Callable[[Patch, Job], None]:
    return lambda patch, job: behind(patch, stage, "cut", lambda _, model, *__: change(model.graph))


def _swap_names(values: Any, kind: str) -> None:
    found = [value for value in values if kind in str(value.name)]
    first, second = found[:2]
    first.name, second.name = second.name, first.name


def inputs_swapped(graph: Any) -> None:
    """Two layers take each other's cached keys."""
    _swap_names(graph.inputs, "past_key_values")


def outputs_swapped(graph: Any) -> None:
    """Two layers give each other's keys."""
    _swap_names(graph.outputs, "present")


def both_swapped(graph: Any) -> None:
    """Two layers have each other's number."""
    inputs_swapped(graph)
    outputs_swapped(graph)


def not_renumbered(patch: Patch, job: Job) -> None:
    """The caches keep the numbers that their layers had."""
    patch.setattr(cutting, "_renumber", lambda *_: None)


def weights_changed(graph: Any) -> None:
    """One weight is larger by a hundredth."""
    value = next(v for v in graph.initializers.values() if v.uses() and len(v.shape) == 2)
    array = value.const_value.numpy() * 1.01
    value.const_value = onnx_ir.tensor(array.astype(np.float32), name=value.name)


def offsets_swapped(graph: Any) -> None:
    """Two weights of one shape are read from each other's place in the file."""
    by_shape: dict[tuple[int, ...], Any] = {}
    for value in graph.initializers.values():
        shape = tuple(value.shape)
        if value.uses() and len(shape) == 2 and shape in by_shape:
            other = by_shape[shape]
            value.const_value, other.const_value = other.const_value, value.const_value
            return
        by_shape[shape] = value


def epsilon_changed(graph: Any) -> None:
    """One norm has another epsilon."""
    node = next(node for node in graph if "Normalization" in node.op_type)
    node.attributes["epsilon"] = onnx_ir.AttrFloat32("epsilon", 1e-1)


def epsilon_forgotten(patch: Patch, job: Job) -> None:
    """Norms that are fused again get another epsilon than they had."""

    def change(_: None, graph: Any) -> None:
        for node in graph:
            if node.domain == norms.DOMAIN:
                node.attributes["epsilon"] = onnx_ir.AttrFloat32("epsilon", 1e-1)

    behind(patch, cutting, "put_together", change)


def sum_lost(patch: Patch, job: Job) -> None:
    """What reads the sum of a fused norm reads the norm."""

    def change(_: None, graph: Any) -> None:
        node = next(n for n in graph if n.domain == norms.DOMAIN and len(n.outputs) > norms.SUM)
        node.outputs[norms.SUM].replace_all_uses_with(node.outputs[0])

    behind(patch, cutting, "put_together", change)


def others_weights(patch: Patch, job: Job) -> None:
    """The file with weights that is linked beside the cut graph is another model's."""
    other = job.folder / "other_data"
    values = np.frombuffer((job["source"] / "model.onnx_data").read_bytes(), np.float32)
    other.write_bytes(np.roll(values, 8).tobytes())
    own = files._link
    patch.setattr(files, "_link", lambda old, new: own(other, new))


def configured(name: str, value: Any) -> Callable[[Patch, Job], None]:
    """Write something else into config.json beside a cut graph."""

    def spoil(patch: Patch, job: Job) -> None:
        def change(config: Any, *_: Any) -> None:
            setattr(config, name, value(getattr(config, name)) if callable(value) else value)

        behind(patch, rewriting, "mended_config", change)

    return spoil


def stale_genai(patch: Patch, job: Job) -> None:
    """genai_config.json has the whole model's depth."""
    own = stage._mend_genai_config
    patch.setattr(stage, "_mend_genai_config", lambda folder, depth: own(folder, depth + 1))


def changed_source(patch: Patch, job: Job) -> None:
    """The file that is cut is not the one that its record tells of."""
    altering.change_graph(job["source"] / "model.onnx", altering.flipped)


def cut_before(patch: Patch, job: Job) -> None:
    """The record beside the file says that a layer is gone already."""
    change_json(job["source"] / "export.json", "drop", [2])


DECODER, ENCODER = cutting_of(by_hand, "a decoder"), cutting_of(by_hand, "an encoder")
PARALLEL, FUSED = cutting_of(by_hand, "parallel layers"), cutting_of(fused)
BY_WEIGHTS = cutting_of(by_hand, "a decoder", how="weights")
TWO = cutting_of(by_hand, "a decoder", drop=(0, 2))
BERT, LLAMA = cutting_of(exported, "bert"), cutting_of(exported, "llama")
LLAMA_WEIGHTS = cutting_of(exported, "llama", how="weights")

MUTANTS = (
    *(
        Mutant("the neighbour is cut out", "the layer above the one that was named goes", s, neighbour)
        for s in (DECODER, ENCODER, PARALLEL, FUSED, BY_WEIGHTS, TWO, BERT, LLAMA)
    ),
    *(Mutant("one layer stays", "one of two layers that were named stays", s, fewer) for s in (TWO,)),
    *(Mutant("one layer more", "the layer above goes as well", s, more) for s in (DECODER, BY_WEIGHTS)),
    *(
        Mutant("the wrong norm", "what follows reads a norm of the stream, not the stream", s, normed)
        for s in (DECODER, ENCODER)
    ),
    *(
        Mutant(
            "the dropped layer's norm",
            "the layer behind the cut has the norm of the one that went",
            s,
            norm_of_the_dropped,
        )
        for s in (DECODER, BY_WEIGHTS)
    ),
    Mutant("half a layer cut out", "the attention of the layer stays", ENCODER, half_cut),
    *(
        Mutant(name, what, s, _after_cut(change))
        for s in (DECODER, PARALLEL, BY_WEIGHTS)
        for name, what, change in (
            ("caches taken for each other", "two layers take each other's keys", inputs_swapped),
            ("caches given for each other", "two layers give each other's keys", outputs_swapped),
            ("numbers of two layers swapped", "two layers have each other's number", both_swapped),
        )
    ),
    *(
        Mutant("caches not renumbered", "they keep the numbers that their layers had", s, not_renumbered)
        for s in (DECODER, LLAMA)
    ),
    *(
        Mutant("a changed weight", "one weight is larger", s, _after_cut(weights_changed))
        for s in (DECODER, BY_WEIGHTS, FUSED)
    ),
    *(
        Mutant(
            "weights read from other places",
            "two weights are read from each other's place",
            s,
            _after_cut(offsets_swapped),
        )
        for s in (DECODER, BY_WEIGHTS)
    ),
    Mutant("another epsilon", "one norm has another epsilon", DECODER, _after_cut(epsilon_changed)),
    Mutant(
        "an epsilon forgotten", "norms that are fused again have another epsilon", FUSED, epsilon_forgotten
    ),
    Mutant("a sum lost", "what reads the stream reads its norm", FUSED, sum_lost),
    *(
        Mutant("weights of another model", "the file that is linked is another's", s, others_weights)
        for s in (DECODER, BY_WEIGHTS)
    ),
    *(
        Mutant(
            "a stale num_hidden_layers",
            "config.json has the whole model's depth",
            s,
            configured("num_hidden_layers", 4),
        )
        for s in (BERT, LLAMA_WEIGHTS)
    ),
    Mutant(
        "labels permuted",
        "id2label of config.json is in another order",
        BERT,
        configured("id2label", rotated),
    ),
    Mutant("a stale depth for genai", "genai_config.json has one layer too many", LLAMA, stale_genai),
    Mutant(
        "another file than recorded",
        "the source is not the file that export.json tells of",
        BERT,
        changed_source,
    ),
    Mutant("cut before", "the source's record says that a layer is gone", BERT, cut_before),
)
