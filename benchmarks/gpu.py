"""Original against pruned on an NVIDIA GPU, and what a search for layers costs there.

    python benchmarks/gpu.py export FOLDER      # writes and proves the files that are timed; needs no GPU
    python benchmarks/gpu.py latency FOLDER     # times them in ONNX Runtime and PyTorch, on CUDA
    python benchmarks/gpu.py peers FOLDER --peer-python PATH/python    # pruned files against Optimum's
    python benchmarks/gpu.py search             # `select --dry-run` against `select` on random decoders
    python benchmarks/gpu.py tables             # prints the tables of docs/gpu.md from gpu.json
    python benchmarks/gpu.py tables --write docs/gpu.md

Random weights take the time that trained ones take. An encoder of the size of BERT-base, in float32 and in
half precision, and a decoder of 24 layers with its cache, lose every fourth layer. Original, original again
and pruned take turns in one process, in a new random order every round, and copies to and from the GPU are
part of a run; ONNX Runtime's files are timed as every session is opened, and with the settings that
`benchmark --tune` finds (I/O binding, CUDA graphs, levels of optimisation). The pruned encoder in half
precision, plain and by `--optimize O4`, is timed against what Optimum exports of it, and what its O4 makes of
that, each as a session is opened and as a CUDA graph; Optimum is in an environment of its own.

The searches drop layers by the exact greedy search, all scores in full, on rows of 200 tokens with four
answers of five. Results go to gpu.json, each part with its environment and commit; exit code 1 where a plan
is off: layer forwards at all, seconds by more than 25 %, peak memory by more than 10 %.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from graphs import ratio
from recording import origin, put_between
from scale import ANSWER, CONTEXT, KEY_VALUE_HEADS, NUM_ANSWERS, VOCABULARY, Tokenizer

from tapioca_export import RunConfig, planning, steps
from tapioca_export.benchmarking import BenchmarkSettings, make_workloads, measure_latency
from tapioca_export.benchmarking.pairing import open_pair
from tapioca_export.benchmarking.runtimes import runtimes_on
from tapioca_export.benchmarking.sessions import CUDA, CUDA_GRAPH, default_settings, open_session
from tapioca_export.benchmarking.stage import shared_cache
from tapioca_export.benchmarking.tuning import tune
from tapioca_export.errors import TapiocaError
from tapioca_export.exporting import ExportSettings, export_model
from tapioca_export.models import LoadedModel, Stack, drop_layers, load_model
from tapioca_export.provenance import NOT_INSTALLED
from tapioca_export.reporting.sessions import session_text
from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import TASKS, Processor
from tapioca_export.treatments import Treatment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
RESULTS, PAGE = HERE / "gpu.json", HERE.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- begin: python benchmarks/gpu.py tables, {} -->", "<!-- end -->"
SECONDS_WITHIN, MEMORY_WITHIN = 0.25, 0.10
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Way = tuple[str, str, str | None]


@dataclass(frozen=True)
class Timed:
    """A network that is exported in some ways, whole and without every fourth layer.

    A way is a precision, a format, and a level of `--optimize`, or none.
    """

    task: str
    family: str
    config: dict[str, int]
    files: tuple[Way, ...]
    batch_sizes: tuple[int, ...]

    @property
    def drop(self) -> tuple[int, ...]:
        """Every fourth layer."""
        return tuple(range(3, self.config["num_hidden_layers"], 4))


HALF, HALF_BEST = ("fp16", "onnx", None), ("fp16", "onnx", "O4")
ENCODER = "encoder, 12 layers of 768"
MODELS = {
    ENCODER: Timed(
        "text-classification",
        "bert",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"vocab_size": 30522, "num_labels": 4},
        (*product(("fp32", "fp16"), ("onnx", "torchscript"), (None,)), HALF_BEST, ("fp16", "pt2", None)),
        (1, 8, 32),
    ),
    "decoder, 24 layers of 1024": Timed(
        "text-generation",
        "llama",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 2816}
        | {"num_hidden_layers": 24, "vocab_size": 32000, "max_position_embeddings": 1024},
        (HALF, HALF_BEST),
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


def export_one(job: tuple[str, str, Way, str]) -> str:
    """Export one model, whole or pruned, in one way, and prove it."""
    name, side, (dtype, format_, level), folder = job
    torch.set_num_threads(1)
    target = Path(folder)
    if (target / "export.json").is_file():
        return folder
    target.mkdir(parents=True, exist_ok=True)
    model, drop = network(name), MODELS[name].drop if side == "pruned" else ()
    rows = rows_of(model)
    settings = ExportSettings(format_, dtype=dtype, treatment=Treatment(level), max_drop=1.0)
    export_model(drop_layers(model, drop), rows, target, settings, drop)
    return folder


def jobs(folder: Path) -> list[tuple[str, str, Way, str]]:
    """Return all that is exported, the longest first."""
    return [
        (name, side, way, str(place(folder, name, way) / side))
        for name, timed in reversed(MODELS.items())
        for way in timed.files
        for side in ("original", "pruned")
    ]


def place(folder: Path, name: str, way: Way) -> Path:
    """Return where a model is written in one way."""
    return folder / "-".join([str(list(MODELS).index(name)), *filter(None, way)])


def time_models(folder: Path, iterations: int, tune_seconds: float) -> Iterator[dict[str, Any]]:
    """Time every pair of files on CUDA in every runtime; what PyTorch compiles, which takes longest, last."""
    pairs = [(name, way) for name, timed in MODELS.items() for way in timed.files]
    for name, way in sorted(pairs, key=lambda pair: pair[1][1] == "pt2"):
        dtype, format_, level = way
        settings = BenchmarkSettings(
            batch_sizes=MODELS[name].batch_sizes, sequence_lengths=(SEQUENCE_LENGTH,), iterations=iterations
        )
        model = network(name)
        sides = (place(folder, name, way) / side for side in ("original", "pruned"))
        before, after = open_pair(*sides, model.task, settings)
        cache = shared_cache(before.export.cache, after.export.cache)
        works = make_workloads(model.task, rows_of(model), model.processor, settings, cache, dtype)
        runs: list[tuple[str, Any]] = [(runtime, None) for runtime in runtimes_on(before.runtime, CUDA)]
        if format_ == "onnx":
            runs.append((before.runtime, tune(before, after, works, CUDA, settings, tune_seconds)))
        for runtime, tuned in runs:
            words = {side: session_text(own) for side, own in (tuned or {}).items()}
            what = {"model": name, "dtype": dtype, "optimize": level, "tuned": words, "runtime": runtime}
            try:
                found = measure_latency(before, after, works, CUDA, settings, tuned, runtime)
            except TapiocaError as error:
                yield {**what, "error": error.message}
                continue
            yield from ({**what, **asdict(row)} for row in found)


# --- peers ----------------------------------------------------------------------------------

OPTIMUM = """
import sys, warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
checkpoint, plain, best = sys.argv[1:]
main_export(checkpoint, output=plain, task="text-classification", do_validation=False)
ORTOptimizer.from_pretrained(plain).optimize(save_dir=best, optimization_config=AutoOptimizationConfig.O4())
"""
CLOSE = 0.02  # of the outputs of the same network in half precision, which are about 1


def peers(folder: Path, python: Path) -> dict[str, Path]:
    """Have Optimum export the pruned encoder; return its files, plain (in float32) and by O4."""
    made = {"Optimum": folder / "optimum", "Optimum O4": folder / "optimum-o4"}
    if not list(made["Optimum O4"].glob("*.onnx")):
        pruned = drop_layers(network(ENCODER), MODELS[ENCODER].drop)
        with TemporaryDirectory() as checkpoint:
            pruned.network.save_pretrained(checkpoint)
            pruned.processor.save(Path(checkpoint))
            command = [str(python), "-c", OPTIMUM, checkpoint, *map(str, made.values())]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"Optimum failed: {done.stderr.strip().splitlines()[-1]}")
    return {name: next(path.glob("*.onnx")) for name, path in made.items()}


def time_peers(folder: Path, python: Path, rounds: int) -> list[dict[str, Any]]:
    """Time the files of the pruned encoder in turns, in a new random order every round, on CUDA."""
    ours = {"plain": HALF, "O4": HALF_BEST}
    files = {name: place(folder, ENCODER, way) / "pruned" / "model.onnx" for name, way in ours.items()}
    files |= peers(folder, python)
    plain = default_settings("cuda", 1)
    graph = replace(plain, io_binding=True, provider_options={CUDA_GRAPH: "1"})
    ways, rows, generator = {"as opened": plain, "CUDA graph": graph}, [], np.random.default_rng(0)
    for batch_size, (way, settings) in product(MODELS[ENCODER].batch_sizes, ways.items()):
        runs, refused = {}, {}
        tokens = generator.integers(4, 90, (batch_size, SEQUENCE_LENGTH))
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        feed["token_type_ids"] = np.zeros_like(tokens)
        for name, file in files.items():
            try:
                runs[name] = open_session(file, settings)
                runs[name](feed)
            except TapiocaError as error:
                refused[name] = error.message
                runs.pop(name, None)
        answers = {name: run(feed)["logits"].astype(np.float32) for name, run in runs.items()}
        off = {name: float(np.abs(found - answers["plain"]).max()) for name, found in answers.items()}
        seconds = {name: np.empty(rounds) for name in runs}
        for turn in range(-5, rounds):
            for name in generator.permutation(list(runs)):
                begun = time.perf_counter()
                runs[name](feed)
                if turn >= 0:
                    seconds[name][turn] = time.perf_counter() - begun
        rows.append(
            {
                "model": f"{ENCODER}, pruned", "batch_size": batch_size, "way": way, "rounds": rounds,
                "ms": {name: float(np.median(found)) * 1e3 for name, found in seconds.items()},
                "times_as_fast": {
                    name: ratio(found, seconds["O4"])
                    for name, found in seconds.items()
                    if name != "O4" and "O4" in seconds
                },
                "off": off, "refused": refused,
            }
        )  # fmt: skip
    return rows


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


def is_no_slower(row: dict[str, Any]) -> bool:
    """Tell whether all compute the same, and no peer is faster than our O4 by more than its interval."""
    return (
        "O4" not in row["refused"]
        and all(off <= CLOSE for off in row["off"].values())
        and all(found["interval"][1] >= 1 for found in row["times_as_fast"].values())
    )


# --- tables ---------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Return what was measured as Markdown, by part."""
    parts = {"latency": _latency_table, "peers": _peers_table, "search": _search_table}
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
        dtype = ", ".join(filter(None, (row["dtype"], row.get("optimize"))))
        if "error" in row:
            yield f"| {row['model']}, {dtype} | {row['runtime']}{tuned} | {row['error']} |" + " |" * 5
            continue
        what = {"prefill": "prompts, ", "decode": "one token more, "}.get(row["phase"], "")
        low, high = row["speedup"]["interval"]
        before, after = (row[side]["p50_ms"] for side in ("original", "pruned"))
        yield (
            f"| {row['model']}, {dtype} | {row['runtime']}{tuned} | {what}batch {row['batch_size']} | "
            f"{before:.2f} | {after:.2f} | {row['speedup']['median']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['speedup']['median'] / row['ideal_speedup']:.0%} | {row['noise_floor'][1]:.2f} |"
        )


def _peers_table(results: dict[str, Any]) -> Iterator[str]:
    part = results["peers"]
    yield f"{_hardware(part)} Medians in milliseconds; in brackets how many times as fast ours by O4 is.\n"
    names = list(dict.fromkeys(name for row in part["rows"] for name in (*row["ms"], *row["refused"])))
    yield f"| {part['rows'][0]['model']} | {' | '.join(names)} |"
    yield "| --- |" + " ---: |" * len(names)
    for row in part["rows"]:
        cells = []
        for name in names:
            if name in row["refused"]:
                cells.append("does not run so")
                continue
            cells.append(f"{row['ms'][name]:.2f}")
            if found := row["times_as_fast"].get(name):
                low, high = found["interval"]
                cells[-1] += f" ({found['median']:.2f}, {low:.2f} to {high:.2f})"
        yield f"| batch {row['batch_size']}, {row['way']} | {' | '.join(cells)} |"


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


@main.command(name="peers")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--peer-python",
    type=click.Path(path_type=Path),
    required=True,
    help="Python of an environment with optimum-onnx.",
)
@click.option("--rounds", default=100, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def peers_command(folder: Path, peer_python: Path, rounds: int, output: Path) -> None:
    """Time pruned files against Optimum's; exit code 1 if outputs differ, or one of theirs is faster."""
    rows = time_peers(folder, peer_python, rounds)
    click.echo("\n".join(_peers_table(keep(output, "peers", rows))))
    sys.exit(0 if all(map(is_no_slower, rows)) else 1)


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
