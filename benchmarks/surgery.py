"""Cut layers out of ONNX files, against pruning the checkpoint and exporting it again.

    python benchmarks/surgery.py               # about 10 minutes, 6 GB of disk
    python benchmarks/surgery.py --smoke       # tiny models

Three random models, exported once: an encoder of BERT-base's size, a decoder of 24 layers with a cache, and a
decoder above 2 GB. Of the first two, every third layer is cut out of the file (with and without its proof
by running), and the pruned network is exported again (traced and written, not proven), in turns in one
process. Outputs of both are compared. Of the encoder the same is done to a graph that holds its weights;
fresh processes open both kinds; and four variants are written over one weight file, and what they take on
disk is added up. Of the large one, a fresh process cuts the file: its time from start to end, and its peak
memory. Prints tables, writes them into docs/exports.md, and JSON with environment and commit; exit code 1 if
outputs differ by more than 1e-4, a cut beside its weights is not 50 times as fast as a new export, the large
file takes 2 seconds or 500 MB, or four variants take more than 1.02 times the room of one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
PAGE = HERE.parent / "docs" / "exports.md"
BEGIN, END = "<!-- begin: python benchmarks/surgery.py -->", "<!-- end -->"
FASTER, WITHIN, SECONDS, MEMORY, ROOM = 50.0, 1e-4, 2.0, 500e6, 1.02
ENCODER = {
    "vocab_size": 30522, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
    "num_hidden_layers": 12, "max_position_embeddings": 512,
}  # fmt: skip
DECODER = {
    "vocab_size": 8000, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1408, "num_hidden_layers": 24, "max_position_embeddings": 512,
}  # fmt: skip
LARGE = {
    "vocab_size": 32000, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 5632, "num_hidden_layers": 12, "max_position_embeddings": 512,
}  # fmt: skip
TINY = {
    "vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
    "num_hidden_layers": 6, "max_position_embeddings": 64,
}  # fmt: skip
# What a child has used at most is at least what its parent has when it starts it: a small one measures.
LAUNCH = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps({"seconds": time.perf_counter() - begun, "peak_bytes": usage.ru_maxrss * 1024}))
sys.exit(status != 0)
"""
OPEN = """
import sys
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WAYS = {
    "export": "exported again, unproven",
    "cut": "cut, `--proof weights`",
    "cut, run": "cut, proven by outputs (the default)",
    "cut, weights inside": "cut with its weights inside the graph, `--proof weights`",
}
CASES = {
    "encoder": ("bert", "text-classification", ENCODER),
    "decoder": ("llama", "text-generation", DECODER),
    "large": ("llama", "text-generation", LARGE),
}


def build(name: str, folder: Path, shape: dict[str, int]) -> Any:
    """Save a random model with a tokenizer; return it loaded."""
    import torch
    from conftest import make_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from tapioca_export.models import load_model

    family, task, _ = CASES[name]
    torch.manual_seed(0)
    factory = AutoModelForCausalLM if task == "text-generation" else AutoModelForSequenceClassification
    factory.from_config(AutoConfig.for_model(family, **shape, **TOKENS)).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return load_model(folder, task)


def written(model: Any, folder: Path) -> Path:
    """Trace and write a model as `export` does, and prove nothing."""
    from tapioca_export.exporting.formats import FORMATS, Dialect
    from tapioca_export.exporting.quieting import quiet

    folder.mkdir()
    with quiet():
        FORMATS["onnx"].write(model, model.task.examples(model.processor)[0], folder, Dialect())
    return folder / "model.onnx"


def compare(name: str, shape: dict[str, int], rounds: int, scratch: Path) -> dict[str, Any]:
    """Time cuts and new exports of one model in turns, and compare what they compute."""
    from tapioca_export.graphs import put_weights_beside
    from tapioca_export.models import drop_layers

    model = build(name, scratch / "model", shape)
    drop = tuple(range(1, model.num_layers, 3))
    source = written(model, scratch / "whole")
    put_weights_beside(source)
    inline = with_weights_inside(source, scratch / "inline")
    seconds: dict[str, list[float]] = {"cut": [], "cut, run": [], "cut, weights inside": [], "export": []}
    for turn in range(rounds):
        for way, times in seconds.items():
            place = scratch / f"{way} {turn}"
            begun = time.perf_counter()
            if way == "export":
                written(drop_layers(model, drop), place)
            else:
                file = inline if "inside" in way else source
                cut(file, drop, place, "logits" if "run" in way else "weights")
            times.append(time.perf_counter() - begun)
            if turn:  # the first are compared
                rmtree(place)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    again = scratch / "export 0" / "model.onnx"
    return {
        "case": name,
        "layers": model.num_layers,
        "drop": drop,
        "bytes": inline.stat().st_size,
        "seconds": seconds,
        "times_faster": {way: medians["export"] / medians[way] for way in seconds if way != "export"},
        "difference": max(
            difference(scratch / f"{way} 0" / "model.onnx", again) for way in seconds if way != "export"
        ),
        "opened": {
            "weights beside": [opened(source) for _ in range(rounds)],
            "weights inside": [opened(inline) for _ in range(rounds)],
        },
        "four_variants": room_of_variants(model, source, scratch),
    }


def with_weights_inside(source: Path, folder: Path) -> Path:
    """Write a graph again, with its weights in it."""
    import onnx_ir

    folder.mkdir()
    model = onnx_ir.load(source)
    onnx_ir.save(onnx_ir.external_data.load_to_model(model), folder / "model.onnx")
    return folder / "model.onnx"


def launched(*command: object) -> dict[str, float]:
    """Return the seconds and the peak memory of a fresh process, from start to end."""
    child = subprocess.run(
        [sys.executable, "-c", LAUNCH, *map(str, command)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def opened(file: Path) -> dict[str, float]:
    """Return what a fresh process takes to open a graph."""
    return launched(sys.executable, "-c", OPEN, file)


def room_of_variants(model: Any, source: Path, scratch: Path) -> float:
    """Return the bytes of a graph and three of less depth over one weight file, as a multiple of one's."""
    depths = [tuple(range(1, model.num_layers, step)) for step in (2, 3, 4)]
    files = [source]
    for number, drop in enumerate(depths):
        cut(source, drop, scratch / f"variant-{number}", "weights")
        files.append(scratch / f"variant-{number}" / source.name)
    stats = [
        path.stat() for file in files for path in file.parent.iterdir() if path.name.startswith("model.onnx")
    ]
    one = sum(path.stat().st_size for path in source.parent.iterdir() if path.name.startswith("model.onnx"))
    return sum({found.st_ino: found.st_size for found in stats}.values()) / one


def cut(source: Path, drop: Sequence[int], place: Path, proof: Any) -> None:
    """Cut layers out of a file as `prune` does."""
    from tapioca_export import RunConfig, prune

    prune(RunConfig(model=str(source), drop=tuple(drop), output=place), proof=proof)


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two graphs' outputs on the same inputs."""
    import onnxruntime

    from tapioca_export.graphs.files import read_graph
    from tapioca_export.graphs.proving import made_up_inputs

    feed = made_up_inputs(read_graph(one).graph, {})
    found = []
    for file in (one, other):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {value.name: feed[value.name] for value in session.get_inputs()}))
    return max(float(np.abs(a - b).max()) for a, b in zip(*found, strict=True))


def cut_large(shape: dict[str, int], rounds: int, scratch: Path) -> dict[str, Any]:
    """Cut a file whose weights are beside it, each time in a fresh process; alone, and beside its config."""
    model = build("large", scratch / "model", shape)
    source = written(model, scratch / "whole")
    drop = tuple(range(1, shape["num_hidden_layers"], 3))
    kinds = ("graph alone", "config beside it")
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    num_bytes = sum(path.stat().st_size for path in source.parent.iterdir())
    for kind, found in runs.items():
        if kind != "graph alone":
            model.save_settings(source.parent)
        for turn in range(rounds):
            found.append(
                launched(
                    sys.executable, "-m", "tapioca_export", "prune", source, "--drop",
                    ",".join(map(str, drop)), "--proof", "weights", "--output", scratch / f"{kind} {turn}",
                    "--quiet",
                )
            )  # fmt: skip
    return {
        "case": "large",
        "layers": shape["num_hidden_layers"],
        "drop": drop,
        "bytes": num_bytes,
        "runs": runs,
        "seconds": {kind: statistics.median(run["seconds"] for run in found) for kind, found in runs.items()},
        "peak_bytes": {kind: max(run["peak_bytes"] for run in found) for kind, found in runs.items()},
    }


def median(runs: Sequence[Mapping[str, float]], what: str) -> float:
    """Return the median of one of the numbers of several runs."""
    return statistics.median(run[what] for run in runs)


def told(row: Mapping[str, Any]) -> str:
    """Say what is in no table: how far outputs differ, how files are opened, the room of four variants."""
    sessions = "; ".join(
        f"{kind}: opened in {median(runs, 'seconds'):.2f} s, peak {median(runs, 'peak_bytes') / 1e6:.0f} MB"
        for kind, runs in row["opened"].items()
    )
    return (
        f"{row['case']}: outputs differ by {row['difference']:.1e}; {sessions}; four variants take "
        f"{row['four_variants']:.4f} of one's room"
    )


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tables, as Markdown."""
    *compared, large = rows
    found = ["| network | what is done | seconds | times as fast |", "| --- | --- | ---: | ---: |"]
    for row in compared:
        name = f"{row['case']} of {row['layers']} layers, {row['bytes'] / 1e6:.0f} MB"
        for way, what in WAYS.items():
            faster = row["times_faster"].get(way, 1.0)
            seconds = statistics.median(row["seconds"][way])
            found.append(f"| {name} | {what} | {seconds:.2f} | {faster:.1f} |")
    name = f"decoder of {large['layers']} layers, {large['bytes'] / 1e9:.2f} GB"
    found += ["", f"| {name}, cut by a fresh process | seconds | peak memory |", "| --- | ---: | ---: |"]
    for kind, seconds in large["seconds"].items():
        found.append(f"| {kind} | {seconds:.2f} | {large['peak_bytes'][kind] / 1e6:.0f} MB |")
    return found


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "surgery.json", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Turns.")
@click.option("--smoke", is_flag=True, help="Tiny models, one turn; the targets do not hold for them.")
def main(output: Path, rounds: int, smoke: bool) -> None:
    """Measure, print and write."""
    sys.path.insert(0, str(HERE))
    from recording import origin, put_between

    shape: Callable[[str], dict[str, int]] = lambda name: TINY if smoke else CASES[name][2]  # noqa: E731
    rounds = 1 if smoke else rounds
    rows = []
    for name in ("encoder", "decoder"):
        with TemporaryDirectory() as scratch:
            rows.append(compare(name, shape(name), rounds, Path(scratch)))
        click.echo(told(rows[-1]))
    with TemporaryDirectory() as scratch:
        large = cut_large(shape("large"), rounds, Path(scratch))
    rows.append(large)
    table = "\n".join(lines(rows))
    click.echo(table)
    output.write_text(json.dumps({**origin(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if output.resolve() == HERE / "surgery.json" and not smoke:
        put_between(PAGE, BEGIN, END, table)
    held = all(
        row["difference"] <= WITHIN and row["times_faster"]["cut"] >= FASTER and row["four_variants"] <= ROOM
        for row in rows[:-1]
    )
    held = held and max(large["seconds"].values()) < SECONDS and max(large["peak_bytes"].values()) < MEMORY
    sys.exit(0 if held or (smoke and all(row["difference"] <= WITHIN for row in rows[:-1])) else 1)


if __name__ == "__main__":
    main()
