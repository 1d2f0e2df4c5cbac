"""Faults of exported files: what the graph computes, in which precision, and what stands beside it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch

from tapioca_export import RunConfig, export, prune
from tapioca_export.exporting import FORMATS, quantizing, stage
from tapioca_export.exporting import graphs as exporting_graphs
from tapioca_export.exporting import torchscript as torchscript_format
from tapioca_export.models import LoadedModel

from .base import Job, Mutant, Patch, Scenario, before, behind
from .checkpoints import change_json, no_tokenizer, other_tokenizer, rotated
from .models import HOME, checkpoint, prompts, rows


@functools.cache
def pruned_checkpoint(family: str, drop: tuple[Any, ...] = (1,)) -> Path:
    """Return a pruned checkpoint of a family; do not write in it."""
    folder = HOME / f"{family}-without-{'-'.join(map(str, drop))}"
    prune(RunConfig(model=str(checkpoint(family)), drop=drop, output=folder, num_threads=1))
    return folder


@functools.cache
def exported(family: str) -> Path:
    """Return the ONNX export of a whole model; do not write in it."""
    folder = HOME / f"{family}-exported"
    export(RunConfig(model=str(checkpoint(family)), id=rows_of(family), output=folder, num_threads=1))
    return folder


def rows_of(family: str) -> Path:
    """Return rows that fit a family's task."""
    return rows("mixed") if family == "bert" else prompts()


@functools.cache
def exporting(
    family: str, format_: str = "onnx", samples: str = "mixed", is_quick: bool = True, **settings: Any
) -> Scenario:
    """Return the scenario that exports a pruned checkpoint of a family, proven on some rows."""

    def prepare(job: Job) -> dict[str, Any]:
        given = one_length() if samples == "one-length" else rows_of(family)
        return {"model": pruned_checkpoint(family), "rows": given}

    def run(job: Job) -> None:
        config = RunConfig(
            model=str(job["model"]), id=job["rows"], format=(format_,), output=job.output, num_threads=1,
            **settings,
        )  # fmt: skip
        export(config)

    said = [f"{name} {value}" for name, value in settings.items()]
    rows_said = ["rows of one length"] if samples != "mixed" else []
    name = ", ".join([f"export {family} as {format_}", *said, *rows_said])
    return Scenario(name, "export", prepare, run, is_quick)


@functools.cache
def one_length() -> Path:
    """Return a file of rows that all have as many tokens."""
    path = HOME / "one-length.jsonl"
    generator = np.random.default_rng(0)
    texts = (" ".join(f"w{number}" for number in generator.integers(0, 90, 6)) for _ in range(24))
    path.write_text(
        "".join(json.dumps({"text": t, "label": "neutral"}) + "\n" for t in texts), encoding="utf-8"
    )
    return path


# --- graphs ---------------------------------------------------------------------------------

Change = Callable[[Any], None]


def in_graph(change: Change, file: str = "model.onnx") -> Callable[[Patch, Job], None]:
    """Change a graph between its writing and its proof."""

    def spoil(patch: Patch, job: Job) -> None:
        _behind_writing(patch, "onnx", lambda folder: change_graph(folder / file, change))

    return spoil


def change_graph(path: Path, change: Change) -> None:
    """Change a graph in its file."""
    model = onnx_ir.load(path)
    onnx_ir.external_data.load_to_model(model)
    change(model.graph)
    onnx_ir.save(model, path)


def _replace_writer(patch: Patch, format_: str, write: Callable[..., Any]) -> None:
    patch.setitem(FORMATS._entries, format_, replace(FORMATS[format_], write=write))


_WRITTEN: dict[tuple[Any, ...], tuple[Path, Any]] = {}


def _behind_writing(patch: Patch, format_: str, spoil: Callable[[Path], None]) -> None:
    """Write what the exporter writes, once, and change it before it is proven."""
    own = FORMATS[format_].write

    def write(model: LoadedModel, example: Any, folder: Path, dialect: Any) -> Any:
        key = (format_, model.source, model.network.dtype, dialect, exporting_graphs.INLINE_WEIGHTS_BYTES)
        if key not in _WRITTEN:
            kept = HOME / f"written-{len(_WRITTEN)}"
            kept.mkdir()
            _WRITTEN[key] = kept, own(model, example, kept, dialect)
        kept, written = _WRITTEN[key]
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        spoil(folder)
        return written

    _replace_writer(patch, format_, write)


def _value(graph: Any, name: str) -> Any:
    return next(value for value in graph.inputs if value.name == name)


def _instead(graph: Any, value: Any, *nodes: Any) -> None:
    """Let all that read a value read what the last of some nodes makes of it."""
    users = [(node, place) for node, place in value.uses() if node not in nodes]
    first = next(iter(graph))
    graph.insert_before(first, list(nodes))
    for node, place in users:
        node.replace_input_with(place, nodes[-1].outputs[0])
    graph.sort()


def _constant(graph: Any, array: np.ndarray, name: str) -> Any:
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    value.dtype, value.shape = onnx_ir.DataType.from_numpy(array.dtype), onnx_ir.Shape(array.shape)
    graph.initializers[name] = value
    return value


def no_mask(graph: Any) -> None:
    """All tokens are seen, padding too."""
    mask = _value(graph, "attention_mask")
    shape = onnx_ir.node("Shape", [mask])
    ones = onnx_ir.node(
        "ConstantOfShape", [shape.outputs[0]], {"value": onnx_ir.tensor(np.ones(1, np.int64), name="one")}
    )
    _instead(graph, mask, shape, ones)


def shifted(name: str) -> Change:
    """Return what adds one to an input of integers."""

    def change(graph: Any) -> None:
        value = _value(graph, name)
        one = _constant(graph, np.asarray(1, np.int64), "one_more")
        _instead(graph, value, onnx_ir.node("Add", [value, one]))

    return change


def past_ignored(graph: Any) -> None:
    """The first layer's cached values count as zeros."""
    value = _value(graph, "past_key_values.0.value")
    zero = _constant(graph, np.asarray(0, np.float32), "nothing")
    _instead(graph, value, onnx_ir.node("Mul", [value, zero]))


def _rename_swapped(values: Any, one: str, other: str) -> None:
    found = {value.name: value for value in values}
    first, second = found[one], found[other]
    first.name, second.name = "swapped", one
    first.name = other


def caches_swapped(graph: Any) -> None:
    """Two layers take each other's cached keys and values."""
    for kind in ("key", "value"):
        _rename_swapped(graph.inputs, f"past_key_values.0.{kind}", f"past_key_values.1.{kind}")


def keys_for_values(graph: Any) -> None:
    """A layer gives its keys as values, and its values as keys."""
    _rename_swapped(graph.outputs, "present.0.key", "present.0.value")


def attribute(operators: tuple[str, ...], name: str, value: float) -> Change:
    """Return what gives an attribute of the first operator of a kind another value."""

    def change(graph: Any) -> None:
        node = next(node for node in graph if node.op_type in operators)
        node.attributes[name] = onnx_ir.AttrFloat32(name, value)

    return change


def operator(old: str, new: str) -> Change:
    """Return what replaces the first operator of a kind."""

    def change(graph: Any) -> None:
        node = next(node for node in graph if node.op_type == old)
        made = onnx_ir.node(new, list(node.inputs))
        graph.insert_before(node, made)
        node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)

    return change


def _matrices(graph: Any) -> list[Any]:
    def is_square(value: Any) -> bool:
        return len(value.shape) == 2 and len(set(value.shape)) == 1 and value.dtype == onnx_ir.DataType.FLOAT

    return [value for value in graph.initializers.values() if is_square(value) and value.uses()]


def _put(value: Any, array: np.ndarray) -> None:
    value.const_value = onnx_ir.tensor(np.ascontiguousarray(array), name=value.name)


def transposed(graph: Any) -> None:
    """One square matrix is transposed."""
    value = _matrices(graph)[0]
    _put(value, value.const_value.numpy().T)


def matrices_swapped(graph: Any) -> None:
    """Two square matrices are in each other's place."""
    one, other = _matrices(graph)[:2]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def rounded(graph: Any) -> None:
    """Every weight went through float16, and the file still says float32."""
    for value in graph.initializers.values():
        if value.dtype == onnx_ir.DataType.FLOAT:
            _put(value, value.const_value.numpy().astype(np.float16).astype(np.float32))


def flipped(graph: Any) -> None:
    """One bit of one weight is another."""
    value = _matrices(graph)[0]
    bits = value.const_value.numpy().copy()
    bits.reshape(-1).view(np.int32)[5] ^= 1 << 23
    _put(value, bits)


def transposed_half(graph: Any) -> None:
    """One square matrix in float16 is transposed."""
    value = next(
        v for v in graph.initializers.values()
        if len(v.shape) == 2 and len(set(v.shape)) == 1 and v.dtype == onnx_ir.DataType.FLOAT16 and v.uses()
    )  # fmt: skip
    _put(value, value.const_value.numpy().T)


def classes_permuted(graph: Any) -> None:
    """The logits of two classes are in each other's place."""
    value = graph.outputs[0]
    order = _constant(graph, np.asarray([1, 0, 2]), "order")
    moved = onnx_ir.node("Gather", [value, order], {"axis": 1})
    graph.append(moved)
    new = moved.outputs[0]
    new.dtype, new.shape, name = value.dtype, value.shape, value.name
    value.name, new.name = "before_it", name
    graph.outputs[0] = new


def first_row(graph: Any) -> None:
    """Every row of a batch gets the answer of the first."""
    value = graph.outputs[0]
    place = _constant(graph, np.asarray([0]), "first")
    one = onnx_ir.node("Gather", [value, place], {"axis": 0})
    shape = onnx_ir.node("Shape", [value])
    all_ = onnx_ir.node("Expand", [one.outputs[0], shape.outputs[0]])
    graph.extend([one, shape, all_])
    new = all_.outputs[0]
    new.dtype, new.shape, name = value.dtype, value.shape, value.name
    value.name, new.name = "before_it", name
    graph.outputs[0] = new


def of_another(family: str, format_: str = "onnx") -> Callable[[Patch, Job], None]:
    """The file is that of the whole model, not of the one without layers."""

    def spoil(patch: Patch, job: Job) -> None:
        from tapioca_export.models import load_model

        own = FORMATS[format_]

        def write(model: LoadedModel, *more: Any) -> Any:
            return own.write(load_model(checkpoint(family)), *more)

        _replace_writer(patch, format_, write)

    return spoil


def whole_for_pruned(patch: Patch, job: Job) -> None:
    """The whole model is loaded, exported and compared with, and recorded as the one without layers."""
    from tapioca_export import commands

    before(patch, commands, "load_model", lambda _, *more: (str(checkpoint("bert")), *more))


# --- weights beside the graph ---------------------------------------------------------------


def beside(patch: Patch, job: Job) -> None:
    """Put weights beside every graph, however small."""
    patch.setattr(exporting_graphs, "INLINE_WEIGHTS_BYTES", 0)


def others_weights(patch: Patch, job: Job) -> None:
    """The file with the weights is that of another model of the same sizes."""
    beside(patch, job)

    def replace_weights(folder: Path) -> None:
        file = folder / "model.onnx_data"
        values = np.frombuffer(file.read_bytes(), np.float32)
        file.write_bytes(np.roll(values, 64).tobytes())

    _behind_writing(patch, "onnx", replace_weights)


def short_weights(patch: Patch, job: Job) -> None:
    """The file with the weights ends early."""
    beside(patch, job)

    def cut(folder: Path) -> None:
        file = folder / "model.onnx_data"
        file.write_bytes(file.read_bytes()[:-256])

    _behind_writing(patch, "onnx", cut)


# --- quantised graphs -----------------------------------------------------------------------


def in_quantized(change: Change) -> Callable[[Patch, Job], None]:
    """Change what the quantiser wrote."""

    def spoil(patch: Patch, job: Job) -> None:
        behind(patch, quantizing, "_dynamically", lambda _, __, target, *___: change_graph(target, change))

    return spoil


def _scales(graph: Any) -> list[Any]:
    return [v for n, v in sorted(graph.initializers.items()) if n.endswith("_scale") and v.uses()]


def scales_swapped(graph: Any) -> None:
    """The scales of two matrices are in each other's place."""
    found = sorted(_scales(graph), key=lambda value: float(value.const_value.numpy().reshape(-1)[0]))
    one, other = found[0], found[-1]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def neighbours_scales_swapped(graph: Any) -> None:
    """The scales of two matrices that hardly differ are in each other's place."""
    found = [v for v in _scales(graph) if v.const_value.numpy().size == 1]
    ordered = sorted(found, key=lambda value: float(value.const_value.numpy().reshape(-1)[0]))
    middle = len(ordered) // 2
    one, other = ordered[middle : middle + 2]
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    _put(one, second)
    _put(other, first)


def scale_doubled(graph: Any) -> None:
    """One matrix is twice as large."""
    value = _scales(graph)[0]
    _put(value, value.const_value.numpy() * 2)


def zero_point_off(graph: Any) -> None:
    """One matrix has a zero point that is off by eight."""
    value = next(v for n, v in sorted(graph.initializers.items()) if n.endswith("_zero_point") and v.uses())
    _put(value, (value.const_value.numpy() + 8).astype(value.const_value.numpy().dtype))


# --- TorchScript and torch.export -----------------------------------------------------------


def in_traced(change: Callable[[Any], Any]) -> Callable[[Patch, Job], None]:
    """Trace something else than the network."""
    return lambda patch, job: behind(
        patch, torchscript_format, "_tensors_only", lambda found, *_: change(found)
    )


class _Changed(torch.nn.Module):
    """A network whose inputs or outputs are changed."""

    def __init__(self, inner: Any, inputs: Any = None, outputs: Any = None) -> None:
        super().__init__()
        self.inner, self.inputs, self.outputs = inner, inputs, outputs
        self.train(inner.training)

    def forward(self, *tensors: Any) -> Any:
        found = self.inner(*(self.inputs(*tensors) if self.inputs else tensors))
        return tuple(map(self.outputs, found)) if self.outputs else found


def _training(network: Any) -> Any:
    return network.train()


def _unmasked(network: Any) -> Any:
    return _Changed(network, inputs=lambda ids, mask: (ids, torch.ones_like(mask)))


def _mirrored(network: Any) -> Any:
    return _Changed(network, inputs=lambda ids, mask: (ids.flip(1), mask.flip(1)))


def _halved(network: Any) -> Any:
    return _Changed(network, outputs=lambda logits: logits.half().float())


def _fixed(network: Any) -> Any:
    """Positions that the trace saw, and no others."""
    return _Changed(
        network,
        inputs=lambda ids, mask: (ids[:, : ids.shape[1]], mask[:, :4].repeat(1, 64)[:, : int(ids.shape[1])]),
    )


def trained(network: Any) -> Any:
    """Dropout is active."""
    network.train()
    return network.eval


def _written(patch: Patch, format_: str, change: Callable[[Any], Any]) -> None:
    own = FORMATS[format_]

    def write(model: LoadedModel, *more: Any) -> Any:
        undo = change(model.network)
        try:
            return own.write(model, *more)
        finally:
            undo()

    _replace_writer(patch, format_, write)


def written_with(format_: str, change: Callable[[Any], Any]) -> Callable[[Patch, Job], None]:
    """Write a network that is changed while it is written."""
    return lambda patch, job: _written(patch, format_, change)


def one_weight_moved(network: Any) -> Any:
    """One weight is larger by a hundredth."""
    weight = next(w for w in network.parameters() if w.dim() == 2)
    kept = weight.detach().clone()
    weight.data[3] += 0.01 * weight.data.abs().max()

    def undo() -> None:
        weight.data = kept

    return undo


def norms_without_epsilon(network: Any) -> Any:
    """Norms have another epsilon."""
    norms = [m for m in network.modules() if hasattr(m, "eps") or hasattr(m, "variance_epsilon")]
    names = ["eps" if hasattr(m, "eps") else "variance_epsilon" for m in norms]
    kept = [getattr(m, n) for m, n in zip(norms, names, strict=True)]
    for module, name in zip(norms, names, strict=True):
        setattr(module, name, 1e-2)

    def undo() -> None:
        for module, name, value in zip(norms, names, kept, strict=True):
            setattr(module, name, value)

    return undo


# --- what stands beside the file ------------------------------------------------------------


def settings(change: Callable[[Path], None]) -> Callable[[Patch, Job], None]:
    """Change config or tokenizer beside an exported file after they were written."""
    return lambda patch, job: behind(
        patch, LoadedModel, "save_settings", lambda _, __, folder: change(folder)
    )


def genai(name: str, value: Any) -> Callable[[Patch, Job], None]:
    """Tell onnxruntime-genai something else of a decoder."""

    def rewrite(_: Any, folder: Path, *__: Any) -> None:
        def changed(fields: dict[str, Any]) -> dict[str, Any]:
            fields["decoder"][name] = value
            return fields

        change_json(folder / "genai_config.json", "model", changed)

    return lambda patch, job: behind(patch, stage, "write_genai_config", rewrite)


BERT, SCRIPT, PT2 = exporting("bert"), exporting("bert", "torchscript"), exporting("bert", "pt2")
LLAMA, GPT2 = exporting("llama"), exporting("gpt2")
GEMMA2 = exporting("gemma2", is_quick=False)
EVEN, EVEN_SCRIPT = exporting("bert", samples="one-length"), exporting("bert", "torchscript", "one-length")
INT8 = exporting("bert", quantize="int8", max_drop=1.0)
INT8_CHANNEL = exporting("bert", quantize="int8", per_channel=True, max_drop=1.0)
HALF = exporting("bert", dtype="fp16")

MUTANTS = (
    *(
        Mutant("no attention mask", "padding is seen", s, in_graph(no_mask))
        for s in (BERT, LLAMA, GPT2, GEMMA2, EVEN)
    ),
    *(Mutant("no attention mask", "padding is seen", s, in_traced(_unmasked)) for s in (SCRIPT, EVEN_SCRIPT)),
    Mutant("padding on the wrong side", "tokens are read from the other end", SCRIPT, in_traced(_mirrored)),
    Mutant("training mode", "dropout is active in the trace", SCRIPT, in_traced(_training)),
    Mutant("training mode", "dropout is active in the graph", PT2, written_with("pt2", trained)),
    Mutant("training mode", "dropout is active in the graph", BERT, written_with("onnx", trained)),
    Mutant("half precision in between", "logits went through float16", SCRIPT, in_traced(_halved)),
    Mutant(
        "a mask of the trace", "the mask has the trace's pattern at every length", SCRIPT, in_traced(_fixed)
    ),
    *(
        Mutant("positions shifted", "each token stands one further", s, in_graph(shifted("position_ids")))
        for s in (GPT2,)
    ),
    Mutant(
        "tokens shifted",
        "each token is read as the next of the vocabulary",
        BERT,
        in_graph(shifted("input_ids")),
    ),
    *(
        Mutant("the past ignored", "one layer's cached values count as zeros", s, in_graph(past_ignored))
        for s in (LLAMA, GPT2, GEMMA2)
    ),
    *(
        Mutant("caches swapped", "two layers take each other's keys and values", s, in_graph(caches_swapped))
        for s in (LLAMA, GPT2, GEMMA2)
    ),
    *(
        Mutant("keys for values", "a layer gives keys as values", s, in_graph(keys_for_values))
        for s in (LLAMA, GPT2)
    ),
    Mutant(
        "another epsilon",
        "one norm has another epsilon",
        BERT,
        in_graph(attribute(("LayerNormalization",), "epsilon", 1e-2)),
    ),
    *(
        Mutant(
            "another epsilon",
            "norms were traced with another epsilon",
            s,
            written_with(f, norms_without_epsilon),
        )
        for s, f in ((SCRIPT, "torchscript"), (PT2, "pt2"))
    ),
    Mutant("another activation", "one GELU is a ReLU", BERT, in_graph(operator("Gelu", "Relu"))),
    *(
        Mutant(name, what, s, in_graph(change))
        for s in (BERT, LLAMA)
        for name, what, change in (
            ("a transposed weight", "one square matrix is transposed", transposed),
            ("weights swapped", "two square matrices are in each other's place", matrices_swapped),
            ("a flipped bit", "one weight is twice or half as large", flipped),
            ("weights rounded", "weights went through float16", rounded),
        )
    ),
    *(
        Mutant("another weight", "one weight of the trace is larger", s, written_with(f, one_weight_moved))
        for s, f in ((SCRIPT, "torchscript"), (PT2, "pt2"))
    ),
    *(
        Mutant("the original's file", "the file is that of the whole model", s, of_another(family, format_))
        for s, family, format_ in (
            (SCRIPT, "bert", "torchscript"),
            (BERT, "bert", "onnx"),
            (LLAMA, "llama", "onnx"),
        )
    ),
    Mutant(
        "the original exported",
        "the whole model is exported as the one without layers",
        SCRIPT,
        whole_for_pruned,
    ),
    Mutant(
        "classes permuted",
        "logits of two classes are in each other's place",
        BERT,
        in_graph(classes_permuted),
    ),
    Mutant(
        "one answer for all", "each row of a batch gets the first one's answer", BERT, in_graph(first_row)
    ),
    Mutant("weights of another model", "the file beside the graph is another's", BERT, others_weights),
    Mutant("weights cut short", "the file beside the graph ends early", BERT, short_weights),
    *(
        Mutant(name, what, s, in_quantized(change))
        for s in (INT8, INT8_CHANNEL)
        for name, what, change in (
            ("a swapped scale", "two matrices have each other's scales", scales_swapped),
            ("a doubled scale", "one matrix is twice as large", scale_doubled),
            ("a zero point off", "one matrix has another zero point", zero_point_off),
        )
    ),
    Mutant(
        "neighbouring scales swapped",
        "two matrices have each other's scales, which hardly differ",
        INT8,
        in_quantized(neighbours_scales_swapped),
    ),
    Mutant(
        "a transposed weight", "one matrix of a float16 file is transposed", HALF, in_graph(transposed_half)
    ),
    *(
        Mutant(name, what, s, settings(change))
        for s in (SCRIPT,)
        for name, what, change in (
            (
                "labels permuted",
                "id2label of config.json is in another order",
                lambda folder: change_json(folder / "config.json", "id2label", rotated),
            ),
            (
                "a stale num_hidden_layers",
                "config.json has the whole model's depth",
                lambda folder: change_json(folder / "config.json", "num_hidden_layers", 4),
            ),
            ("no tokenizer", "no file of the tokenizer was written", no_tokenizer),
            ("another tokenizer", "words have other ids", other_tokenizer),
        )
    ),
    *(
        Mutant(
            "a stale depth for genai",
            "genai_config.json has the whole model's depth",
            s,
            genai("num_hidden_layers", 4),
        )
        for s in (LLAMA,)
    ),
)
