"""Encoder-decoders as three graphs, by the ecosystem's names: encoder, first decoder step, further steps.

The first step computes the keys and values of the encoder's states once; further steps take them,
and those of the tokens before, from the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..generation import DECODER_FILES, LOGITS, PAST, PRESENT, CacheShapes
from ..models import LoadedModel, to_tensors
from ..tasks import Inputs
from .formats import Dialect, Written
from .graphs import CACHED_TOKENS, cached, name_axes, names_of, rename, save, traced
from .tracing import dynamic, exporter_name

_LAYER = r"past_key_values\.{}_attention_cache\.layers\.(\d+)\.(key|value)s$"
_NAMES = {
    re.compile(rf"^(?:input\.)?{_LAYER.format('self')}"): rf"{PAST}.\1.decoder.\2",
    re.compile(rf"^(?:input\.)?{_LAYER.format('cross')}"): rf"{PAST}.\1.encoder.\2",
    re.compile(r"^encoder_outputs\.last_hidden_state$"): "encoder_hidden_states",
    re.compile(r"^attention_mask$"): "encoder_attention_mask",
    re.compile(r"^decoder_input_ids$"): "input_ids",
}
_OUTPUTS = {
    re.compile(rf"^(?:output\.)?{_LAYER.format('self')}"): rf"{PRESENT}.\1.decoder.\2",
    re.compile(rf"^(?:output\.)?{_LAYER.format('cross')}"): rf"{PRESENT}.\1.encoder.\2",
}


def write_encoder_decoder(model: LoadedModel, example: Inputs, folder: Path, dialect: Dialect) -> Written:
    """Write the three graphs.

    Raises:
        ExportError: If the exporter refuses the model, which keeps something else than keys and values.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    tensors = to_tensors(example, dtype=model.network.dtype)
    ours = {name: value for name, value in tensors.items() if not name.startswith("decoder_")}
    axes = {name: dynamic(range(len(model.task.axes(name)))) for name in ours}
    encoder = model.network.get_encoder()
    programs = [traced(model, encoder, dict(ours), axes, dialect)]
    name_axes(programs[0].graph, lambda name: dict(enumerate(model.task.axes(name))))
    with torch.no_grad():
        states = encoder(**ours).last_hidden_state
    sample: dict[str, Any] = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "decoder_input_ids": _ids(tensors["decoder_input_ids"], CACHED_TOKENS + 1),
        **({"attention_mask": ours["attention_mask"]} if "attention_mask" in ours else {}),
    }
    steps = {name: dynamic((0, 1)) for name in sample} | {"encoder_outputs": [dynamic((0, 1))]}
    cache, shapes = _cache(model, sample)
    programs.append(traced(model, model.network, dict(sample), steps, dialect))
    steps[PAST] = [dynamic((0, 2))] * len(shapes)
    programs.append(traced(model, model.network, {**sample, PAST: cache}, steps, dialect))
    for program, name in zip(programs, DECODER_FILES, strict=True):
        if program is not programs[0]:
            _finish(program, shapes)
        save(program, folder / name)
    return Written(
        exporter_name("OnnxExporter"),
        programs[0].opset_imports.get(""),
        tuple(example),
        names_of(programs[1].graph.outputs),
        DECODER_FILES,
        shapes,
    )


def _ids(ids: Any, length: int) -> Any:
    """Repeat and cut token ids, (B, T), to (B, length)."""
    return ids.repeat(1, -(-length // ids.shape[1]))[:, :length]


def _cache(model: LoadedModel, sample: Mapping[str, Any]) -> tuple[Any, CacheShapes]:
    """Return a cache of a few tokens, and the shapes of its inputs.

    Raises:
        ExportError: If the model keeps something else than keys and values of every decoder layer.
    """
    import torch
    from transformers import DynamicCache, EncoderDecoderCache

    few = {**sample, "decoder_input_ids": sample["decoder_input_ids"][:, :CACHED_TOKENS]}
    with torch.no_grad():
        kept = getattr(model.network(**few, use_cache=True), PAST, None)
    if not isinstance(kept, EncoderDecoderCache):
        raise ExportError(
            f"{model.source} keeps something else than keys and values of every layer while it generates "
            f"({type(kept).__name__}); such models are not exported with their cache.",
            "Try --format pt2 or torchscript, which have none.",
        )
    # A window is left to the mask, so that one axis fits all layers.
    plain = EncoderDecoderCache(DynamicCache(), DynamicCache())
    shapes = {}
    pairs = zip(kept.self_attention_cache.layers, kept.cross_attention_cache.layers, strict=True)
    for index, (own, crossed) in enumerate(pairs):
        plain.self_attention_cache.update(cached(own.keys), cached(own.values), index)
        plain.cross_attention_cache.update(crossed.keys, crossed.values, index)
        plain.is_updated[index] = True
        for kind, layer in (("decoder", own), ("encoder", crossed)):
            for name, tensor in (("key", layer.keys), ("value", layer.values)):
                shapes[f"{PAST}.{index}.{kind}.{name}"] = (int(tensor.shape[1]), int(tensor.shape[3]))
    return plain, shapes


def _finish(program: Any, cache: CacheShapes) -> None:
    """Name what goes in and out, in the order of the cache.

    What comes out as it went in is left out, and so is what goes in unused. Optimum tells the inputs
    of a cache by their order, not by their names: layer by layer, the decoder's own before the encoder's.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = program.graph
    rename(graph.inputs, _NAMES)
    rename(graph.outputs, _OUTPUTS)
    given = {value.name.replace(PAST, PRESENT) for value in graph.inputs if ".encoder." in value.name}
    wanted = [value for value in graph.outputs if value.name.startswith((LOGITS, PRESENT))]
    graph.outputs[:] = [value for value in wanted if value.name not in given]
    RemoveUnusedNodesPass()(program)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    places = {name: place for place, name in enumerate(cache)}
    for values in (graph.inputs, graph.outputs):
        values[:] = sorted(values, key=lambda value: places.get(value.name.replace(PRESENT, PAST), -1))
    name_axes(graph, _axes)


def _axes(name: str) -> Mapping[int, str]:
    if name.startswith(PAST):
        return {0: "batch", 2: "encoder_sequence" if ".encoder." in name else "past_sequence"}
    return {0: "batch", 1: "sequence" if name == "input_ids" else "encoder_sequence"}
