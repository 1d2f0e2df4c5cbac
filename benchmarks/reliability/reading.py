"""How each kind of file is read: by the product's own functions, as far as a command goes before it computes.

Rows are encoded, a report is judged and drawn, a network answers one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from click.testing import CliRunner

from tapioca_export import graphs
from tapioca_export.artifacts import (
    Journal,
    Prompting,
    Provenance,
    Report,
    Run,
    Selection,
    read,
    sha256,
    write_sealed,
)
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
from tapioca_export.models.loaded import answer_of
from tapioca_export.models.loading import find_task, load_config, load_processor
from tapioca_export.models.shards import read_weights
from tapioca_export.numbering import Numbering, whole_layers
from tapioca_export.samples import read_records, read_samples
from tapioca_export.samples.rows import shown
from tapioca_export.schemas import kinds
from tapioca_export.tasks import TASKS
from tapioca_export.tasks.prompting import load_prompting, with_prompt
from tapioca_export.tasks.tokenizing import ends_of, load_generation_config
from tapioca_export.variants import read_variant
from tapioca_export.verifying import verify

from .seeds import FINGERPRINT

NUM_ROWS = 4  # of the journal


# --- samples --------------------------------------------------------------------------------


@cache
def _processor(folder: Path, task: str, metric: str | None = None, chat: bool = False) -> tuple[Any, Any]:
    """Return a task and what encodes its rows, of a tiny model."""
    options = LoadOptions(local_files_only=True, metric=metric, prompting=Prompting(chat=chat))
    config = load_config(folder, options)
    found = find_task(config, task, options)
    return found, load_processor(found, folder, config, options)


def rows(task: str, model: str, metric: str | None, chat: bool) -> Callable[[Path], object]:
    """Return what reads rows of a task, checks their labels and encodes some."""

    def read_rows(file: Path) -> object:
        found, processor = _processor(file.parents[1] / model, task, metric, chat)
        samples = read_samples(file, found.rows({}, processor), role="id-select")
        found.check_labels(samples)
        return found.encode(samples.rows[:8], processor)

    return read_rows


def records(file: Path) -> object:
    """Read records, and show what a report shows of them."""
    return [shown(record) for record, _ in read_records(file)]


def saved(file: Path) -> object:
    """Read the folder of a dataset, one file of which is spoilt."""
    return records(file.parent)


def medium(column: str, task: str) -> Callable[[Path], object]:
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
    return {
        **flags,
        "config": RunConfig(**{n: v for n, v in flags.items() if n in RunConfig.__dataclass_fields__}),
    }


def config(file: Path) -> object:
    """Read a config file, as `run` does."""
    return _parsed("run", "--model", "x", "--config", str(file))


def option(file: Path) -> object:
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


def expression(file: Path) -> object:
    """Hold an expression against a report."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    return failing(text, _fields(file.parents[1] / "run"))


@cache
def _fields(folder: Path) -> Mapping[str, Any]:
    return fields_of(read(folder / "report.json", Report))


def template(file: Path) -> object:
    """Make prompts of a template, for records of all kinds of values."""
    prompting = load_prompting("{#" + "#}" + file.read_text("utf-8", "surrogateescape"), False, None, None, 0)
    records: Iterable[dict[str, Any]] = (
        {"text": "a b", "label": 1, "list": ["a", "b"]}, {"text": None, "label": 0.5, "list": {"a": 1}}
    )  # fmt: skip
    return [with_prompt(record, "prompt", prompting, "row 1") for record in records]


# --- artifacts ------------------------------------------------------------------------------


def artifact(kind: str) -> Callable[[Path], object]:
    """Return what reads an artifact of a kind."""
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
        # Lines that say what a command is at begin with the time.
        line, *hint = [line for line in result.stderr.splitlines() if not line.startswith("[")]
        if not line.startswith("Error: ") or len(hint) > 1:
            raise AssertionError(f"{result.stderr!r} is not one line and a hint")
        raise TapiocaError(line)


def _name_in_record(file: Path) -> None:
    """Let the record of a run folder name a file as it is, as whoever spoilt it would."""
    path = file.with_name("run.json")
    record = read(path, Run)
    write_sealed(path, replace(record, outputs={**record.outputs, file.name: sha256(file)}))


def judged(file: Path) -> None:
    """Judge a report as `check` does, against itself as well."""
    expressions = ["target.difference.low < 0", "speedup.low < 1.1 or size_ratio > 0.9"]
    asked = [part for expression in expressions for part in ("--fail-if", expression)]
    limits = ["--min-target-gain", 0, "--max-id-loss", 0.1, "--min-speedup", 1, "--max-size-ratio", 1]
    made = [file.with_name(name) for name in ("junit.xml", "metrics.txt", "summary.md")]
    beside = [part for pair in zip(("--junit", "--metrics", "--summary"), made, strict=True) for part in pair]
    made[2].unlink(missing_ok=True)
    _name_in_record(file)
    _invoke("check", file, *limits, *asked, "--baseline", file, *beside)


def rendered(file: Path) -> None:
    """Render a run folder again, one artifact of which is spoilt."""
    _name_in_record(file)
    _invoke("report", file.parent)


def compared(file: Path) -> None:
    """Put two runs side by side, one of which is spoilt."""
    folder, other = file.parent, file.parent.with_name("other")
    _name_in_record(file)
    _invoke("report", "--compare", other, folder, "--output", folder.with_name("compared"), "--overwrite")


def selection(file: Path) -> object:
    """Read which layers go, as `prune --selection` and `export --variants` do."""
    found = read(file, Selection)
    numbering = Numbering.of(found.stacks, found.num_layers)
    numbering.indices(whole_layers((*found.drop, *found.scales)))
    return read_variant(str(file)), read_variant(f"{file}@1")


def sealed(cls: type[Run] | type[Provenance]) -> Callable[[Path], object]:
    """Return what holds a folder against its record, sealed anew by whoever spoilt it."""

    def look(file: Path) -> object:
        write_sealed(file, read(file, cls))
        return verify(file.parent, proofs=False)

    return look


def journal(file: Path) -> object:
    """Resume from a journal."""
    journal = Journal(file, FINGERPRINT, NUM_ROWS)
    return [journal.rows(dropped, NUM_ROWS) for dropped in ([0], [1])], journal.deviation([0])


def export(file: Path) -> object:
    """Look at an export folder as `benchmark` does, and run its graph."""
    folder = read_export_folder(file.parent)
    session = folder.open(default_settings("CPUExecutionProvider", 1), "onnxruntime")
    return session({"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)})


# --- models ---------------------------------------------------------------------------------


def model(file: Path) -> object:
    """Load a checkpoint and run one batch."""
    model = load_model(file.parent, "auto", LoadOptions(local_files_only=True))
    return model.logits(model.task.examples(model.processor)[0])


def settings(file: Path) -> object:
    """Load what encodes texts for a checkpoint, and encode some."""
    folder = next(
        place for place in file.parents if (place / "config.json").is_file() and place.name != "1_Pooling"
    )
    _processor.cache_clear()
    task, processor = _processor(folder, "auto")
    return task.examples(processor)


def generation(file: Path) -> object:
    """Load what `generate` is told, and where it ends."""
    options = LoadOptions(local_files_only=True)
    found = load_generation_config(file.parent, load_config(file.parent, options), options, starts=True)
    return ends_of(found), load_model(file.parent, "auto", options)


def outline(file: Path) -> object:
    """Build a network without its weights, and plan to write it without a layer."""
    return outline_model(file.parent, "auto", LoadOptions(local_files_only=True)).layer_paths


def weights(file: Path) -> object:
    """Read the headers of a checkpoint's weights."""
    return read_weights(file.parent, local_files_only=True).largest_file


def card(file: Path) -> object:
    """Read the metadata of a model card."""
    return _metadata_of(str(file.parent))


def graph(file: Path) -> object:
    """Find the layers of a graph, cut one out, and run it in pieces, as `select` does."""
    model = read_graph(file)
    cut(model, find_layers(model.graph), [1])
    network = GraphNetwork(Pieces(file, 1), TASKS["text-generation"], None)
    return answer_of(network, network.task, {"input_ids": np.ones((2, 5), np.int64)})


def genai(file: Path) -> object:
    """Read what onnxruntime-genai is told of a graph."""
    return graphs.files.named_sizes(graphs.files.genai_config(file.parent))
