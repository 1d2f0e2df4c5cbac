"""Every reader of the product, with its file and what spoils that: to add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapioca_export.artifacts import Provenance, Run

from . import grammars, reading
from .spoiling import Mutants, of_bytes, of_json, of_json_lines, of_onnx, of_safetensors


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        file: What it reads, under the folder of valid files; the folder that it stands in is its own.
        read: Reads it.
        mutants: Makes spoilt files of valid ones.
        more: Other valid contents.
        writes: Whether what it reads may be written.
        share: Of the executions; 1 where reading takes about a millisecond.
        is_guided: Whether coverage is to guide too: what parses the file is in Python, and does much.
    """

    file: str
    read: Callable[[Path], object]
    mutants: Callable[[Sequence[bytes]], Mutants]
    more: tuple[str, ...] = ()
    writes: bool = False
    share: float = 1.0
    is_guided: bool = False


READERS: dict[str, Reader] = {
    "samples, JSON Lines": Reader("samples/rows.jsonl", reading.records, of_json_lines, is_guided=True),
    "samples, CSV": Reader("samples/rows.csv", reading.records, grammars.CSV),
    "samples, TSV": Reader("samples/rows.tsv", reading.records, grammars.CSV),
    "samples, Parquet": Reader("samples/rows.parquet", reading.records, of_bytes),
    **{
        f"samples, {name} of a saved dataset": Reader(
            f"samples/saved/{name}", reading.saved, of_bytes if name.endswith("w") else of_json, share=0.2
        )
        for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow")
    },
    **{
        f"rows of {task}, {rows}": Reader(
            f"rows/{rows}.jsonl",
            reading.rows(task, model, metric, rows == "chats"),
            of_json_lines,
        )
        for task, rows, model, metric in (
            ("text-classification", "classification", "bert", None),
            ("token-classification", "entities", "entities", None),
            ("question-answering", "answers", "answers", None),
            ("fill-mask", "masks", "masks", None),
            ("feature-extraction", "vectors", "vectors", None),
            ("feature-extraction", "pairs", "pairs", "spearman"),
            ("text-generation", "generation", "gpt2", None),
            ("text-generation", "chats", "gpt2", None),
            ("multiple-choice", "choice", "gpt2", None),
        )
    },
    **{
        f"images, {ending}": Reader(
            f"media/image.{ending}", reading.medium("image", "image-classification"), of_bytes, share=0.5
        )
        for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff")
    },
    **{
        f"sound, {ending}": Reader(
            f"media/sound.{ending}", reading.medium("audio", "audio-classification"), of_bytes, share=0.5
        )
        for ending in ("wav", "flac", "ogg")
    },
    "config file, TOML": Reader("config/config.toml", reading.config, grammars.TOML, is_guided=True),
    "config file, YAML": Reader("config/config.yaml", reading.config, grammars.YAML, is_guided=True),
    "options": Reader(
        "text/options", reading.option, grammars.OPTIONS, grammars.LINES_OF_OPTIONS, is_guided=True
    ),
    "expressions of --fail-if": Reader(
        "text/expression", reading.expression, grammars.EXPRESSION, grammars.EXPRESSIONS, is_guided=True
    ),
    "prompt templates": Reader(
        "text/template", reading.template, grammars.TEMPLATE, grammars.TEMPLATES, is_guided=True
    ),
    **{
        f"artifacts, {kind}": Reader(f"run/{kind}.json", reading.artifact(kind), of_json)
        for kind in ("benchmark", "intervention", "ort_session", "profile", "verification")
    },
    "artifacts, selection": Reader("run/selection.json", reading.selection, of_json),
    "artifacts, report, judged": Reader("run/report.json", reading.judged, of_json, writes=True, share=0.2),
    "artifacts, report, compared": Reader(
        "run/report.json", reading.compared, of_json, writes=True, share=0.05
    ),
    **{
        f"artifacts, {kind}, drawn": Reader(
            f"run/{kind}.json", reading.rendered, of_json, writes=True, share=0.05
        )
        for kind in ("selection", "profile", "benchmark", "intervention")
    },
    "records, run": Reader("run/run.json", reading.sealed(Run), of_json, writes=True, share=0.5),
    "records, provenance": Reader(
        "run/pruned/onnx/provenance.json", reading.sealed(Provenance), of_json, writes=True, share=0.5
    ),
    "records, export": Reader("graph/export.json", reading.export, of_json, share=0.2),
    "journals": Reader("run/search.jsonl", reading.journal, of_json_lines, writes=True, is_guided=True),
    **{
        f"config.json, {model}": Reader(f"{model}/config.json", reading.model, of_json, share=0.2)
        for model in ("bert", "gpt2", "llama", "vit", "wav2vec2")
    },
    "generation_config.json": Reader("gpt2/generation_config.json", reading.generation, of_json, share=0.2),
    "config.json, network without weights": Reader("bert/config.json", reading.outline, of_json, share=0.2),
    **{
        f"{name}": Reader(f"{place}/{name}", reading.settings, of_json, share=0.2)
        for place, name in (
            ("gpt2", "tokenizer.json"),
            ("bert", "tokenizer_config.json"),
            ("vit", "preprocessor_config.json"),
            ("vectors", "modules.json"),
            ("vectors", "1_Pooling/config.json"),
        )
    },
    "safetensors": Reader("bert/model.safetensors", reading.weights, of_safetensors),
    "index of safetensors": Reader(
        "sharded/model.safetensors.index.json", reading.weights, of_json, is_guided=True
    ),
    "metadata of a model card": Reader("bert/README.md", reading.card, grammars.YAML),
    "ONNX": Reader("graph/model.onnx", reading.graph, of_onnx, share=0.2),
    "ONNX with a cache": Reader("graph/cached.onnx", reading.graph, of_onnx, share=0.2),
    "genai_config.json": Reader("graph/genai_config.json", reading.genai, of_json),
}
