"""Every reader of the product, with the file that it reads and what spoils that file.

A reader goes as far as its command does before anything is computed for long: rows are encoded, a report is
judged and drawn, a network answers one batch. To add one, add a line to `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner

from tapioca_export import graphs
from tapioca_export.artifacts import Journal, Prompting, Provenance, Report, Run, Selection, read, sha256, write_sealed
from tapioca_export.benchmarking.runtimes import default_settings, read_export_folder
from tapioca_export.cards import _metadata_of
from tapioca_export.cli import main
from tapioca_export.config import Doses, RunConfig
from tapioca_export.errors import TapiocaError
from tapioca_export.gating.expressions import failing, fields_of
from tapioca_export.graphs import Pieces
from tapioca_export.graphs.cutting import cut, find_layers
from tapioca_export.graphs.files import read_graph
from tapioca_export.models import LoadOptions, load_model, outline_model
from tapioca_export.models.graph_network import GraphNetwork
from tapioca_export.models.loading import find_task, load_config, load_processor
from tapioca_export.models.shards import read_weights
from tapioca_export.numbering import Numbering, whole_layers
from tapioca_export.samples import read_records, read_samples
from tapioca_export.samples.rows import shown
from tapioca_export.schemas import kinds
from tapioca_export.tasks import TASKS
from tapioca_export.tasks.prompting import load_prompting, with_prompt
from tapioca_export.variants import read_variant
from tapioca_export.verifying import verify

from .mutations import Mutants, of_bytes, of_json, of_json_lines, of_onnx, of_safetensors, of_text
from .seeds import FINGERPRINT

NUM_ROWS = 4  # of the journal


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
        is_python: Whether the file is parsed in Python, where coverage can guide.
    """

    file: str
    read: Callable[[Path], object]
    mutants: Callable[[Sequence[bytes]], Mutants]
    more: tuple[str, ...] = ()
    writes: bool = False
    share: float = 1.0
    is_python: bool = True


# --- samples --------------------------------------------------------------------------------


@cache
def _processor(folder: Path, task: str, metric: str | None = None, chat: bool = False) -> tuple[Any, Any]:
    """Return a task and what encodes its rows, of a tiny model."""
    options = LoadOptions(local_files_only=True, metric=metric, prompting=Prompting(chat=chat))
    config = load_config(folder, options)
    found = find_task(config, task, options)
    return found, load_processor(found, folder, config, options)


def _rows(task: str, model: str, metric: str | None, chat: bool) -> Callable[[Path], object]:
    """Return what reads rows of a task, checks their labels and encodes some."""

    def read_rows(file: Path) -> object:
        found, processor = _processor(file.parents[1] / model, task, metric, chat)
        samples = read_samples(file, found.rows({}, processor), role="id-select")
        found.check_labels(samples)
        return found.encode(samples.rows[:8], processor)

    return read_rows


def _records(file: Path) -> object:
    """Read records, and show what a report shows of them."""
    return [shown(record) for record, _ in read_records(file)]


def _saved(file: Path) -> object:
    return _records(file.parent)


def _medium(column: str, task: str) -> Callable[[Path], object]:
    """Return what looks at a file that a row names, and decodes it."""

    def look(file: Path) -> object:
        found: Any = TASKS[task]
        with found.reading(file, "row 1"):
            features = found.look(file, LISTENER)
            return found.decode({column: file, **features})

    return look


# What a task asks of a model that hears.
LISTENER: Any = SimpleNamespace(
    max_length=8000, convolutions=((10, 5),), extractor=SimpleNamespace(sampling_rate=8000)
)


# --- settings -------------------------------------------------------------------------------


def _parsed(*arguments: str) -> dict[str, Any]:
    """Parse a command line as Click does, and build the configuration of it."""
    command = main.commands[arguments[0]]
    flags = command.make_context(arguments[0], list(arguments[1:])).params
    return {**flags, "config": RunConfig(**{n: v for n, v in flags.items() if n in RunConfig.__dataclass_fields__})}


def _config(file: Path) -> object:
    return _parsed("run", "--model", "x", "--config", str(file))


def _option(file: Path) -> object:
    """Read a command line, an argument a line."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    command, *arguments = text.split("\n")
    if command not in ("select", "prune", "intervene", "run"):
        command = "prune"
    flags = _parsed(command, *arguments)
    stacks = {"encoder": 6, "decoder": 6} if "encoder" in text else {}
    numbering = Numbering.of(stacks, 12)
    if flags.get("drop"):
        numbering.indices(whole_layers(flags["drop"]))
    if "scale" in flags:
        [numbering.index(layer) for layer in flags["scale"]]
    if flags.get("alphas"):
        Doses(alphas=tuple(flags["alphas"]))
    return flags


def _expression(file: Path) -> object:
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    return failing(text, _fields(file.parents[1] / "run"))


@cache
def _fields(folder: Path) -> Mapping[str, Any]:
    return fields_of(read(folder / "report.json", Report))


def _template(file: Path) -> object:
    """Make prompts of a template, for records of all kinds of values."""
    prompting = load_prompting("{#" + "#}" + file.read_text("utf-8", "surrogateescape"), False, None, None, 0)
    records: Iterable[dict[str, Any]] = (
        {"text": "a b", "label": 1, "list": ["a", "b"]}, {"text": None, "label": 0.5, "list": {"a": 1}}
    )  # fmt: skip
    return [with_prompt(record, "prompt", prompting, "row 1") for record in records]


# --- artifacts ------------------------------------------------------------------------------


def _artifact(kind: str) -> Callable[[Path], object]:
    return lambda file: read(file, kinds()[kind])


def _invoke(*arguments: object) -> None:
    """Run a command.

    Raises:
        TapiocaError: With its line, if it refuses; a missed threshold is no refusal.
    """
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 3):
        line, *hint = result.stderr.splitlines()
        if not line.startswith("Error: ") or len(hint) > 1:
            raise AssertionError(f"{result.stderr!r} is not one line and a hint")
        raise TapiocaError(line)


def _judged(file: Path) -> None:
    """Judge a report as `check` does, against itself as well."""
    expressions = ["target.difference.low < 0", "speedup.low < 1.1 or size_ratio > 0.9"]
    asked = [part for expression in expressions for part in ("--fail-if", expression)]
    limits = ["--min-target-gain", 0, "--max-id-loss", 0.1, "--min-speedup", 1, "--max-size-ratio", 1]
    made = [file.with_name(name) for name in ("junit.xml", "metrics.txt", "summary.md")]
    beside = [part for pair in zip(("--junit", "--metrics", "--summary"), made, strict=True) for part in pair]
    made[2].unlink(missing_ok=True)
    _invoke("check", file, *limits, *asked, "--baseline", file, *beside)


def _rendered(file: Path) -> None:
    """Render a run folder again, one artifact of which is spoilt."""
    _invoke("report", file.parent)


def _compared(file: Path) -> None:
    """Put two runs side by side, one of which is spoilt."""
    folder, other = file.parent, file.parent.with_name("other")
    record = read(folder / "run.json", Run)
    write_sealed(folder / "run.json", replace(record, outputs={**record.outputs, file.name: sha256(file)}))
    _invoke("report", "--compare", other, folder, "--output", folder.with_name("compared"), "--overwrite")


def _selection(file: Path) -> object:
    """Read which layers go, as `prune --selection` and `export --variants` do."""
    found = read(file, Selection)
    numbering = Numbering.of(found.stacks, found.num_layers)
    numbering.indices(whole_layers((*found.drop, *found.scales)))
    return read_variant(str(file)), read_variant(f"{file}@1")


def _sealed(cls: type[Run] | type[Provenance]) -> Callable[[Path], object]:
    """Return what holds a folder against its record, sealed anew by whoever spoilt it."""

    def look(file: Path) -> object:
        write_sealed(file, read(file, cls))
        return verify(file.parent, proofs=False)

    return look


def _journal(file: Path) -> object:
    journal = Journal(file, FINGERPRINT, NUM_ROWS)
    return [journal.rows(dropped, NUM_ROWS) for dropped in ([0], [1])], journal.deviation([0])


def _export(file: Path) -> object:
    """Look at an export folder as `benchmark` does, and run its graph."""
    folder = read_export_folder(file.parent)
    session = folder.open(default_settings("CPUExecutionProvider", 1), "onnxruntime")
    return session({"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)})


# --- models ---------------------------------------------------------------------------------


def _model(file: Path) -> object:
    """Load a checkpoint and run one batch."""
    model = load_model(file.parent, "auto", LoadOptions(local_files_only=True))
    return model.logits(model.task.examples(model.processor)[0])


def _settings(file: Path) -> object:
    """Load what encodes texts for a checkpoint, and encode some."""
    folder = next(place for place in file.parents if (place / "config.json").is_file() and place.name != "1_Pooling")
    _processor.cache_clear()
    task, processor = _processor(folder, "auto")
    return task.examples(processor)


def _outline(file: Path) -> object:
    """Build a network without its weights, and plan to write it without a layer."""
    return outline_model(file.parent, "auto", LoadOptions(local_files_only=True)).layer_paths


def _weights(file: Path) -> object:
    return read_weights(file.parent, local_files_only=True).largest_file


def _card(file: Path) -> object:
    return _metadata_of(str(file.parent))


def _graph(file: Path) -> object:
    """Find the layers of a graph, cut one out, and run it in pieces, as `select` does."""
    model = read_graph(file)
    cut(model, find_layers(model.graph), [1])
    network = GraphNetwork(Pieces(file, 1), TASKS["text-generation"], None)
    return network(input_ids=torch.ones((2, 5), dtype=torch.int64))


def _genai(file: Path) -> object:
    return graphs.files.named_sizes(graphs.files.genai_config(file.parent))


# --- all of them ----------------------------------------------------------------------------

EXPRESSION = of_text(
    "target", "difference", "low", "speedup", "min(", "max(", "len(", "abs(", " and ", " or ", "not ", "==", "<=",
    " in ", " is ", "**", "//", "lambda x: ", "f'{", "benchmark", "latency", "[0]", "[-1]", "['p50_ms']", "1j",
    "...", ":=", "await ", "True", "0x" + "f" * 900, "1e999", "(" * 90, ")" * 90, "-" * 300,
)  # fmt: skip
TEMPLATE = of_text(
    "{{", "}}", "{%", "%}", "for ", "in ", "range(", "if ", "else", "endfor", "endif", "macro ", "m()", "**",
    "* 10", "|join", "|length", "|sort", "|groupby('a')", "|xmlattr", "|indent(9)", "|center(9)", "|batch(2)",
    "|attr('x')", "|map('upper')", "|items", "|sum", "|tojson", ".x", "[0]", "['text']", "self", "loop.index",
    "set a = ", "include 'x'", "import 'x'", "%d", ".format(", "{#", "#}", "text", "list", "label", "(" * 300,
    "99999999999", "'a'", "cycler(", "namespace(", "raw", "endraw", "call", "filter upper",
)  # fmt: skip
YAML = of_text(
    ": ", "- ", "? ", "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ",
    "!!omap ", "!!python/object:os.system ", "|\n", ">\n", "{", "}", "[", "]", "~", "1:1:1", "0x" + "f" * 5000,
    ".inf", "---\n", "%YAML 9.9\n", "epsilon", "columns", "target", "drop", "alphas", "\t", "2026-99-99",
)  # fmt: skip
TOML = of_text(
    " = ", "[", "]", "[[", "]]", ".", '"', '"""', "'''", "0x" + "f" * 5000, "inf", "nan", "1979-05-27", "true",
    "epsilon", "columns", "target", "drop", "alphas", "{ a = 1 }", "a.b.c = 1\n", "\n", "07:32:00", "\\u0000",
)  # fmt: skip
OPTIONS = of_text(
    "\n--drop\n", "\n--scale\n", "\n--target\n", "\n--columns\n", "\n--weights\n", "\n--pick\n", "\n--epsilon\n",
    "\n--alphas\n", "\n--layers\n", "\n--format\n", "\n--max-memory\n", "\n--extract\n", "\n--num-threads\n",
    "\n--prompt-template\n", "\n--seed\n", "\n--id\n", "\n--compare\n", "\n--objective\n", "select\n", "prune\n",
    "3,7", "encoder:3", "4.attention", "4:0.5", "a=b", "=", ",", ":", ".", "a{99999999999}", "0x10", "1_0",
)  # fmt: skip
EXPRESSIONS = (
    "target.difference.low < 0", "speedup.low < 1.1 or size_ratio > 0.9", "min(benchmark.latency.speedup.low) < 1",
    "max(benchmark.latency.original.p50_ms) - 1 > 2 * len(selection.drop)", "not (target.metric == 'f1')",
    "abs(id.gain) / 2 >= 0.1 and dropped != 3 and 1 < dropped <= 4", "run.config['seed'] == 0",
)  # fmt: skip
LINES_OF_OPTIONS = (
    "prune\n--model\nx\n--drop\n3,7\n-o\nout", "prune\n--model\nx\n--drop\nencoder:3,decoder:5\n--scale\nencoder:4:0.5",
    "select\n--model\nx\n--id\na\n--target\na=b\n--target\nc=d\n--weights\na=1,c=2\n--objective\nweights",
    "select\n--model\nx\n--columns\ntext=review,label=stars\n--pick\n2\n--drop\n4.attention,5.mlp",
    "intervene\n--model\nx\n--layers\n1,2\n--alphas\n0,0.5,1", "run\n--model\nx\n--extract\n(\\d+)\n--max-new-tokens\n9",
    "select\n--model\nx\n--compare\ntale,random\n--device\nauto\n--max-memory\n8GB\n--prompt-template\n{{ a }}\n--seed\n3",
)  # fmt: skip
TEMPLATES = (
    "Question: {{ text }}\nAnswer:", "{% for x in list %}{{ loop.index }}. {{ x|upper }}\n{% endfor %}{{ label * 2 }}",
    "{% if text %}{{ text|length }}{% else %}{{ label|round }}{% endif %}", "{% set a = list|join(', ') %}{{ a }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}{{ '%s'|format(label) }}{{ range(3)|list }}",
)  # fmt: skip
LINES, CSV = of_json_lines, of_text('"', '""', ",", "\t", "\r", "\n", "\r\n", "text", "label", "a" * 140_000)

READERS: dict[str, Reader] = {
    "samples, JSON Lines": Reader("samples/rows.jsonl", _records, LINES),
    "samples, CSV": Reader("samples/rows.csv", _records, CSV),
    "samples, TSV": Reader("samples/rows.tsv", _records, CSV),
    "samples, Parquet": Reader("samples/rows.parquet", _records, of_bytes, is_python=False),
    **{
        f"samples, {name} of a saved dataset": Reader(
            f"samples/saved/{name}", _saved, of_bytes if name.endswith("w") else of_json, share=0.2, is_python=False
        )
        for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow")
    },
    **{
        f"rows of {task}, {rows}": Reader(f"rows/{rows}.jsonl", _rows(task, model, metric, rows == "chats"), LINES)
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
            f"media/image.{ending}", _medium("image", "image-classification"), of_bytes, share=0.5, is_python=False
        )
        for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff")
    },
    **{
        f"sound, {ending}": Reader(
            f"media/sound.{ending}", _medium("audio", "audio-classification"), of_bytes, share=0.5, is_python=False
        )
        for ending in ("wav", "flac", "ogg")
    },
    "config file, TOML": Reader("config/config.toml", _config, TOML),
    "config file, YAML": Reader("config/config.yaml", _config, YAML),
    "options": Reader("text/options", _option, OPTIONS, LINES_OF_OPTIONS),
    "expressions of --fail-if": Reader("text/expression", _expression, EXPRESSION, EXPRESSIONS),
    "prompt templates": Reader("text/template", _template, TEMPLATE, TEMPLATES),
    **{
        f"artifacts, {kind}": Reader(f"run/{kind}.json", _artifact(kind), of_json)
        for kind in ("benchmark", "intervention", "ort_session", "profile", "verification")
    },
    "artifacts, selection": Reader("run/selection.json", _selection, of_json),
    "artifacts, report, judged": Reader("run/report.json", _judged, of_json, writes=True, share=0.2),
    "artifacts, report, compared": Reader("run/report.json", _compared, of_json, writes=True, share=0.05),
    **{
        f"artifacts, {kind}, drawn": Reader(f"run/{kind}.json", _rendered, of_json, writes=True, share=0.05)
        for kind in ("selection", "profile", "benchmark", "intervention")
    },
    "records, run": Reader("run/run.json", _sealed(Run), of_json, writes=True, share=0.5),
    "records, provenance": Reader(
        "run/pruned/onnx/provenance.json", _sealed(Provenance), of_json, writes=True, share=0.5
    ),
    "records, export": Reader("graph/export.json", _export, of_json, share=0.2),
    "journals": Reader("run/search.jsonl", _journal, LINES, writes=True),
    **{
        f"config.json, {model}": Reader(f"{model}/config.json", _model, of_json, share=0.05, is_python=False)
        for model in ("bert", "gpt2", "llama")
    },
    "config.json, network without weights": Reader("bert/config.json", _outline, of_json, share=0.05, is_python=False),
    **{
        f"{name}": Reader(f"{place}/{name}", _settings, of_json, share=0.1, is_python=False)
        for place, name in (
            ("gpt2", "tokenizer.json"),
            ("bert", "tokenizer_config.json"),
            ("gpt2", "generation_config.json"),
            ("vectors", "modules.json"),
            ("vectors", "1_Pooling/config.json"),
        )
    },
    "safetensors": Reader("bert/model.safetensors", _weights, of_safetensors),
    "index of safetensors": Reader("sharded/model.safetensors.index.json", _weights, of_json),
    "metadata of a model card": Reader("bert/README.md", _card, YAML),
    "ONNX": Reader("graph/model.onnx", _graph, of_onnx, share=0.2, is_python=False),
    "ONNX with a cache": Reader("graph/cached.onnx", _graph, of_onnx, share=0.2, is_python=False),
    "genai_config.json": Reader("graph/genai_config.json", _genai, of_json),
}
