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

from tapioca_export import RunConfig, export, prune
from tapioca_export.exporting import FORMATS, quantizing, stage
from tapioca_export.exporting import graphs as exporting_graphs
from tapioca_export.exporting import torchscript as torchscript_format
from tapioca_export.models import LoadedModel

from . import altering, tracing
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


def in_graph(change: altering.Change, file: str = "model.onnx") -> Callable[[Patch, Job], None]:
    """Change a graph between its writing and its proof."""

    def spoil(patch: Patch, job: Job) -> None:
        _behind_writing(patch, "onnx", lambda folder: altering.change_graph(folder / file, change))

    return spoil


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


def in_quantized(change: altering.Change) -> Callable[[Patch, Job], None]:
    """Change what the quantiser wrote, in 8 bits or in 4."""

    def spoil(patch: Patch, job: Job) -> None:
        for written_by in ("_dynamically", "_in_blocks"):
            behind(
                patch,
                quantizing,
                written_by,
                lambda _, __, target, *___: altering.change_graph(target, change),
            )

    return spoil


# --- TorchScript and torch.export -----------------------------------------------------------


def in_traced(change: Callable[[Any], Any]) -> Callable[[Patch, Job], None]:
    """Trace something else than the network."""
    return lambda patch, job: behind(
        patch, torchscript_format, "_tensors_only", lambda found, *_: change(found)
    )


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


BERT, PT2 = exporting("bert", is_quick=False), exporting("bert", "pt2", is_quick=False)
SCRIPT, EVEN_SCRIPT = exporting("bert", "torchscript"), exporting("bert", "torchscript", "one-length")
LLAMA, GPT2, GEMMA2 = (
    exporting("llama"),
    exporting("gpt2", is_quick=False),
    exporting("gemma2", is_quick=False),
)
EVEN = exporting("bert", samples="one-length", is_quick=False)
INT8 = exporting("bert", is_quick=False, quantize="int8", max_drop=1.0)
INT8_CHANNEL = exporting("bert", is_quick=False, quantize="int8", per_channel=True, max_drop=1.0)
INT4 = exporting("bert", is_quick=False, quantize="int4", max_drop=1.0)
HALF = exporting("bert", is_quick=False, dtype="fp16")

MUTANTS = (
    *(
        Mutant("no attention mask", "padding is seen", s, in_traced(tracing.unmasked))
        for s in (EVEN_SCRIPT, SCRIPT)
    ),
    *(
        Mutant("no attention mask", "padding is seen", s, in_graph(altering.no_mask))
        for s in (BERT, LLAMA, GPT2, GEMMA2, EVEN)
    ),
    Mutant(
        "padding on the wrong side", "tokens are read from the other end", SCRIPT, in_traced(tracing.mirrored)
    ),
    Mutant("training mode", "dropout is active in the trace", SCRIPT, in_traced(tracing.training)),
    Mutant("training mode", "dropout is active in the graph", PT2, written_with("pt2", tracing.trained)),
    Mutant("half precision in between", "logits went through float16", SCRIPT, in_traced(tracing.halved)),
    Mutant(
        "a mask of the trace",
        "the mask has the trace's pattern at every length",
        SCRIPT,
        in_traced(tracing.fixed),
    ),
    *(
        Mutant(
            "positions shifted",
            "each token stands one further",
            s,
            in_graph(altering.shifted("position_ids")),
        )
        for s in (GPT2,)
    ),
    Mutant(
        "tokens shifted",
        "each token is read as the next of the vocabulary",
        BERT,
        in_graph(altering.shifted("input_ids")),
    ),
    *(
        Mutant(
            "the past ignored", "one layer's cached values count as zeros", s, in_graph(altering.past_ignored)
        )
        for s in (LLAMA, GPT2, GEMMA2)
    ),
    *(
        Mutant(
            "caches swapped",
            "two layers take each other's keys and values",
            s,
            in_graph(altering.caches_swapped),
        )
        for s in (LLAMA, GPT2, GEMMA2)
    ),
    *(
        Mutant("keys for values", "a layer gives keys as values", s, in_graph(altering.keys_for_values))
        for s in (LLAMA, GPT2)
    ),
    Mutant(
        "another epsilon",
        "one norm has another epsilon",
        BERT,
        in_graph(altering.attribute(("LayerNormalization",), "epsilon", 1e-2)),
    ),
    *(
        Mutant(
            "another epsilon",
            "norms were traced with another epsilon",
            s,
            written_with(f, tracing.norms_without_epsilon),
        )
        for s, f in ((SCRIPT, "torchscript"), (PT2, "pt2"))
    ),
    Mutant("another activation", "one GELU is a ReLU", BERT, in_graph(altering.operator("Gelu", "Relu"))),
    *(
        Mutant(name, what, s, in_graph(change))
        for s in (BERT, LLAMA)
        for name, what, change in (
            ("a transposed weight", "one square matrix is transposed", altering.transposed),
            ("weights swapped", "two square matrices are in each other's place", altering.matrices_swapped),
            ("a flipped bit", "one weight is twice or half as large", altering.flipped),
            ("weights rounded", "weights went through float16", altering.rounded),
        )
    ),
    *(
        Mutant(
            "another weight",
            "one weight of the trace is larger",
            s,
            written_with(f, tracing.one_weight_moved),
        )
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
        in_graph(altering.classes_permuted),
    ),
    Mutant(
        "one answer for all",
        "each row of a batch gets the first one's answer",
        BERT,
        in_graph(altering.first_row),
    ),
    Mutant("weights of another model", "the file beside the graph is another's", BERT, others_weights),
    Mutant("weights cut short", "the file beside the graph ends early", BERT, short_weights),
    *(
        Mutant(name, what, s, in_quantized(change))
        for s in (INT8, INT8_CHANNEL)
        for name, what, change in (
            ("a swapped scale", "two matrices have each other's scales", altering.scales_swapped),
            ("a doubled scale", "one matrix is twice as large", altering.scale_doubled),
            ("a zero point off", "one matrix has another zero point", altering.zero_point_off),
        )
    ),
    *(
        Mutant(name, what, INT4, in_quantized(change))
        for name, what, change in (
            (
                "a swapped scale",
                "two blocks of a matrix have each other's scales",
                altering.block_scales_swapped,
            ),
            ("a doubled scale", "one block of a matrix is twice as large", altering.block_scale_doubled),
            ("halves of bytes swapped", "two weights are in each other's place", altering.halves_swapped),
        )
    ),
    Mutant(
        "neighbouring scales swapped",
        "two matrices have each other's scales, which hardly differ",
        INT8,
        in_quantized(altering.neighbours_scales_swapped),
    ),
    Mutant(
        "a transposed weight",
        "one matrix of a float16 file is transposed",
        HALF,
        in_graph(altering.transposed_half),
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
