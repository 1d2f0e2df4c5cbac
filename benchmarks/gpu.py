"""Original against pruned on an NVIDIA GPU, and what a search for layers costs there.

    python benchmarks/gpu.py export FOLDER      # writes and proves the files that are timed; needs no GPU
    python benchmarks/gpu.py latency FOLDER     # times them in ONNX Runtime and PyTorch, on CUDA
    python benchmarks/gpu.py search             # `select --dry-run` against `select` on random decoders
    python benchmarks/gpu.py tables             # prints the tables of docs/gpu.md from gpu.json
    python benchmarks/gpu.py tables --write docs/gpu.md

Random weights take the time that trained ones take. An encoder of the size of BERT-base, in float32 and in
half precision, and a decoder of 24 layers with its cache, lose every fourth layer. Original, original again
and pruned take turns in one process, in a new random order every round, and copies to and from the GPU are
part of a run; ONNX Runtime's files are timed as every session is opened, and with the settings that
`benchmark --tune` finds (I/O binding, CUDA graphs, levels of optimisation).

The searches drop layers by the exact greedy search, all scores in full, on rows of 200 tokens with four
answers of five. Results go to gpu.json, each part with its environment and commit; exit code 1 where a plan
is off: layer forwards at all, seconds by more than 25 %, peak memory by more than 10 %.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from recording import origin, put_between
from scale import ANSWER, CONTEXT, KEY_VALUE_HEADS, NUM_ANSWERS, VOCABULARY, Tokenizer

from tapioca_export import RunConfig, planning, steps
from tapioca_export.benchmarking import BenchmarkSettings, make_workloads, measure_latency
from tapioca_export.benchmarking.pairing import open_pair
from tapioca_export.benchmarking.runtimes import runtimes_on
from tapioca_export.benchmarking.sessions import CUDA
from tapioca_export.benchmarking.stage import shared_cache
from tapioca_export.benchmarking.tuning import tune
from tapioca_export.errors import TapiocaError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import LoadedModel, Stack, drop_layers, load_model
from tapioca_export.provenance import NOT_INSTALLED
from tapioca_export.reporting.sessions import session_text
from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import TASKS, Processor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
RESULTS, PAGE = HERE / "gpu.json", HERE.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- begin: python benchmarks/gpu.py tables, {} -->", "<!-- end -->"
SECONDS_WITHIN, MEMORY_WITHIN = 0.25, 0.10
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Timed:
    """A network that is exported in some precisions and formats, whole and without every fourth layer."""

    task: str
    family: str
    config: dict[str, int]
    files: tuple[tuple[str, str], ...]
    batch_sizes: tuple[int, ...]

    @property
    def drop(self) -> tuple[int, ...]:
        """Every fourth layer."""
        return tuple(range(3, self.config["num_hidden_layers"], 4))


MODELS = {
    "encoder, 12 layers of 768": Timed(
        "text-classification",
        "bert",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"vocab_size": 30522, "num_labels": 4},
        (*product(("fp32", "fp16"), ("onnx", "torchscript")), ("fp16", "pt2")),
        (1, 8, 32),
    ),
    "decoder, 24 layers of 1024": Timed(
        "text-generation",
        "llama",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 2816}
        | {"num_hidden_layers": 24, "vocab_size": 32000, "max_position_embeddings": 1024},
        (("fp16", "onnx"),),
        (1, 8),
    ),
}
SEQUENCE_LENGTH = 128
# Of the searches: hidden size, that of the feed-forward part, layers, heads, rows, rounds.
# Source of the shapes: Grattafiori et al. 2024, "The Llama 3 Herd of Models", arXiv:2407.21783, table 3, and
# the model cards of Llama 3.2 1B and 3B.
SEARCHED = {
    "1B": (2048, 8192, 16, 32, 128, 2),
    "3B": (3072, 8192, 28, 24, 64, 1),
    "8B": (4096, 14336, 32, 32, 32, 1),
}


# --- latency --------------------------------------------------------------------------------


def network(name: str) -> LoadedModel:
    """Return a random network with a tokenizer of words, as one is read from a folder."""
    from conftest import make_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    timed = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(timed.family, **timed.config, **TOKENS)
    auto = AutoModelForCausalLM if timed.family == "llama" else AutoModelForSequenceClassification
    tokenizer = make_tokenizer(timed.family)
    tokenizer.model_max_length = 512
    with TemporaryDirectory() as folder:
        auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(folder, timed.task)


def rows_of(model: LoadedModel) -> Samples:
    """Return rows of 1 to 40 words."""
    from conftest import text_records

    read_row = model.task.rows({}, model.processor)
    records = text_records(16, 0, labelled=False)
    if model.task.name == "text-generation":
        records = [{"prompt": record["text"], "answer": "w1"} for record in records]
    return Samples("target-report", tuple(read_row(r, f"row {n}") for n, r in enumerate(records)), "", "")


def export_one(job: tuple[str, str, str, str, str]) -> str:
    """Export one model, whole or pruned, in one format and precision, and prove it."""
    name, side, format_, dtype, folder = job
    torch.set_num_threads(1)
    target = Path(folder)
    if (target / "export.json").is_file():
        return folder
    target.mkdir(parents=True, exist_ok=True)
    model, drop = network(name), MODELS[name].drop if side == "pruned" else ()
    rows = rows_of(model)
    export_model(drop_layers(model, drop), rows, target, ExportSettings(format_, dtype=dtype), drop)
    return folder


def jobs(folder: Path) -> list[tuple[str, str, str, str, str]]:
    """Return all that is exported, the longest first."""
    return [
        (name, side, format_, dtype, str(folder / f"{number}-{dtype}-{format_}" / side))
        for number, (name, timed) in reversed(list(enumerate(MODELS.items())))
        for dtype, format_ in timed.files
        for side in ("original", "pruned")
    ]


def time_models(folder: Path, iterations: int, tune_seconds: float) -> Iterator[dict[str, Any]]:
    """Time every pair of files on CUDA in every way; what PyTorch compiles, which takes longest, last."""
    pairs = [
        (number, name, *own) for number, (name, timed) in enumerate(MODELS.items()) for own in timed.files
    ]
    for number, name, dtype, format_ in sorted(pairs, key=lambda pair: pair[-1] == "pt2"):
        settings = BenchmarkSettings(
            batch_sizes=MODELS[name].batch_sizes, sequence_lengths=(SEQUENCE_LENGTH,), iterations=iterations
        )
        model = network(name)
        sides = (folder / f"{number}-{dtype}-{format_}" / side for side in ("original", "pruned"))
        before, after = open_pair(*sides, model.task, settings)
        cache = shared_cache(before.export.cache, after.export.cache)
        works = make_workloads(model.task, rows_of(model), model.processor, settings, cache, dtype)
        ways: list[tuple[str, Any]] = [(way, None) for way in runtimes_on(before.runtime, CUDA)]
        if format_ == "onnx":
            ways.append((before.runtime, tune(before, after, works, CUDA, settings, tune_seconds)))
        for runtime, tuned in ways:
            words = {side: session_text(own) for side, own in (tuned or {}).items()}
            what = {"model": name, "dtype": dtype, "tuned": words, "runtime": runtime}
            try:
                found = measure_latency(before, after, works, CUDA, settings, tuned, runtime)
            except TapiocaError as error:
                yield {**what, "error": error.message}
                continue
            yield from ({**what, **asdict(row)} for row in found)


# --- searching ------------------------------------------------------------------------------


def decoder(name: str, device: str) -> LoadedModel:
    """Return a random decoder in float32, drawn where it computes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, inner, num_layers, heads, *_ = SEARCHED[name]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=num_layers, vocab_size=VOCABULARY,
        num_attention_heads=heads, num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=8192,
        tie_word_embeddings=name != "8B", **TOKENS,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    processor = Processor(name, "last-token", 8192, tokenizer=Tokenizer())
    return LoadedModel(made, TASKS["multiple-choice"], processor, name, (Stack("", "model.layers"),))


def questions(num_rows: int, seed: int) -> Samples:
    """Make rows of equal length of random ids."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    rows = tuple(
        Row(
            {"context": ids(CONTEXT), "answers": tuple(ids(ANSWER) for _ in range(NUM_ANSWERS))},
            number % NUM_ANSWERS,
            f"{seed}-{number}",
            f"row {number}",
        )
        for number in range(num_rows)
    )
    return Samples("target", rows, "", "")


def search(name: str, device: str) -> dict[str, Any]:
    """Predict what a search takes, and search."""
    *_, num_rows, rounds = SEARCHED[name]
    model = decoder(name, device)
    samples = {f"{role}-select": questions(num_rows, seed) for seed, role in enumerate(("id", "target"))}
    config = RunConfig(
        model=name, device=device, full_scores=True, max_drop_layers=rounds, epsilon=None, pick="final"
    )
    started = time.perf_counter()
    plan = planning.of_search(config, model, samples)
    planned = time.perf_counter() - started
    _forget_peak(device)
    with steps.probing(config, model, samples) as probe:
        selection = steps.choose(config, model, probe, samples)
    cost = selection.cost
    assert cost is not None
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {
        "model": name, "layers": model.num_layers,
        "weights": sum(weight.numel() for weight in model.network.parameters()),
        "rows": num_rows, "rounds": rounds, "batch_size": config.eval_batch_size,
        "layer_forwards": cost.layer_forwards, "predicted_layer_forwards": plan.layer_forwards.most,
        "plain_layer_forwards": cost.plain_layer_forwards, "flops": plan.flops.most,
        "seconds": cost.seconds, "predicted_seconds": plan.seconds.most, "planning_seconds": planned,
        "peak_bytes": peak, "predicted_peak_bytes": plan.peak_memory_bytes,
    }  # fmt: skip


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_right(row: dict[str, Any]) -> bool:
    """Tell whether every prediction is within its bound."""
    return (
        row["predicted_layer_forwards"] == row["layer_forwards"]
        and abs(row["predicted_seconds"] / row["seconds"] - 1) <= SECONDS_WITHIN
        and abs(row["predicted_peak_bytes"] / row["peak_bytes"] - 1) <= MEMORY_WITHIN
    )


# --- tables ---------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Return what was measured as Markdown, by part."""
    parts = {"latency": _latency_table, "search": _search_table}
    return {name: "\n".join(table(results)) for name, table in parts.items() if name in results}


def _hardware(part: dict[str, Any]) -> str:
    found, versions = part["environment"], part["environment"]["versions"]
    wheels = (versions.get(name, NOT_INSTALLED) for name in ("onnxruntime-gpu", "onnxruntime"))
    runtime = next(found for found in wheels if found != NOT_INSTALLED)
    return (
        f"{', '.join(found['gpus'])}, PyTorch {versions['torch']}, transformers {versions['transformers']}, "
        f"ONNX Runtime {runtime}, {part['date']}."
    )


def _latency_table(results: dict[str, Any]) -> Iterator[str]:
    part = results["latency"]
    yield f"{_hardware(part)} Times are medians in milliseconds; intervals are of 95 %.\n"
    yield "| model | runtime | timed | original | pruned | speed-up | of the ideal | noise |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for row in part["rows"]:
        tuned = f", tuned ({row['tuned']['pruned']})" if row["tuned"] else ""
        if "error" in row:
            yield f"| {row['model']}, {row['dtype']} | {row['runtime']}{tuned} | {row['error']} |" + " |" * 5
            continue
        what = {"prefill": "prompts, ", "decode": "one token more, "}.get(row["phase"], "")
        low, high = row["speedup"]["interval"]
        before, after = (row[side]["p50_ms"] for side in ("original", "pruned"))
        yield (
            f"| {row['model']}, {row['dtype']} | {row['runtime']}{tuned} | {what}batch {row['batch_size']} | "
            f"{before:.2f} | {after:.2f} | {row['speedup']['median']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['speedup']['median'] / row['ideal_speedup']:.0%} | {row['noise_floor'][1]:.2f} |"
        )


def _search_table(results: dict[str, Any]) -> Iterator[str]:
    part = results["search"]
    yield f"{_hardware(part)}\n"
    yield (
        "| model | rows | rounds | layer forwards (without replay) | seconds (predicted) | peak memory "
        "(predicted) | TFLOP a second |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in part["rows"]:
        yield (
            f"| {row['model']}, {row['layers']} layers | {row['rows']} | {row['rounds']} | "
            f"{row['layer_forwards']:,} ({row['plain_layer_forwards']:,}) | "
            f"{row['seconds']:.1f} ({row['predicted_seconds']:.1f}) | {row['peak_bytes'] / 1e9:.1f} GB "
            f"({row['predicted_peak_bytes'] / 1e9:.1f} GB) | {row['flops'] / row['seconds'] / 1e12:.0f} |"
        )


def keep(output: Path, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a part of the results into the file, beside what is there; return all."""
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    results[name] = {**origin(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


@click.group(help=__doc__)
def main() -> None:
    """Export, time, search, print."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--processes", default=4, show_default=True)
def export(folder: Path, processes: int) -> None:
    """Write and prove the files that are timed, several at once."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawning) as pool:
        for done in pool.map(export_one, jobs(folder)):
            click.echo(done)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--iterations", default=60, show_default=True)
@click.option("--tune-seconds", default=15.0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def latency(folder: Path, iterations: int, tune_seconds: float, output: Path) -> None:
    """Time the files that `export` wrote."""
    rows = []
    for row in time_models(folder, iterations, tune_seconds):
        rows.append(row)
        results = keep(output, "latency", rows)
    click.echo("\n".join(_latency_table(results)))


@main.command(name="search")
@click.option("--device", default="cuda", show_default=True)
@click.option("--size", "sizes", type=click.Choice(tuple(SEARCHED)), multiple=True, default=tuple(SEARCHED))
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def search_command(device: str, sizes: tuple[str, ...], output: Path) -> None:
    """Predict searches, and search."""
    rows = []
    for name in sizes:
        rows.append(search(name, device))
        results = keep(output, "search", rows)
        torch.cuda.empty_cache()
    click.echo("\n".join(_search_table(results)))
    sys.exit(0 if all(map(is_right, rows)) else 1)


@main.command(name="tables")
@click.option("--write", type=click.Path(path_type=Path), help="Put the tables into this file.")
def tables_command(write: Path | None) -> None:
    """Print the tables, or write them between the markers of a file."""
    found = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    for part, table in found.items():
        if write is None:
            click.echo(f"{table}\n")
        else:
            put_between(write, BEGIN.format(part), END, table)


if __name__ == "__main__":
    main()
