"""Cut layers out of ONNX files, against pruning the checkpoint and exporting it again.

    python benchmarks/surgery.py               # about 10 minutes, 6 GB of disk
    python benchmarks/surgery.py --smoke       # tiny models

Three random models, exported once: an encoder of BERT-base's size and a decoder of 24 layers, whose
graphs hold their weights, and a decoder above 2 GB, whose weights are in a file beside the graph. Of the
first two, every third layer is cut out of the file (with and without its proof by running), and the
pruned network is exported again (traced and written, not proven), in turns in one process. Outputs of
both are compared. Of the third, a fresh process cuts the file: its time from start to end, and its peak
memory. Prints a table, writes JSON with environment and commit; exit code 1 if outputs differ by more
than 1e-4, a cut is not 50 times as fast as a new export, or the large file takes 2 seconds or 500 MB.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
FASTER, WITHIN, SECONDS, MEMORY = 50.0, 1e-4, 2.0, 500e6
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
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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
    from tapioca_export.exporting.formats import FORMATS
    from tapioca_export.exporting.stage import _quiet

    folder.mkdir()
    with _quiet():
        FORMATS["onnx"].write(model, model.task.examples(model.processor)[0], folder, None)
    return folder / "model.onnx"


def compare(name: str, shape: dict[str, int], rounds: int, scratch: Path) -> dict[str, Any]:
    """Time cuts and new exports of one model in turns, and compare what they compute."""
    from tapioca_export.models import drop_layers

    model = build(name, scratch / "model", shape)
    drop = tuple(range(1, model.num_layers, 3))
    source = written(model, scratch / "whole")
    places = [scratch / str(number) for number in range(3 * rounds)]
    seconds: dict[str, list[float]] = {"cut": [], "cut, run": [], "export": []}
    for turn in range(rounds):
        for place, (way, times) in zip(places[3 * turn :], seconds.items(), strict=False):
            begun = time.perf_counter()
            if way == "export":
                written(drop_layers(model, drop), place)
            else:
                cut(source, drop, place, "logits" if "run" in way else "weights")
            times.append(time.perf_counter() - begun)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "case": name,
        "layers": model.num_layers,
        "drop": drop,
        "bytes": source.stat().st_size,
        "seconds": seconds,
        "times_faster": medians["export"] / medians["cut"],
        "times_faster_run": medians["export"] / medians["cut, run"],
        "difference": difference(places[0] / "model.onnx", places[2] / "model.onnx"),
    }


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
    """Cut a file whose weights are beside it, each time in a fresh process."""
    source = written(build("large", scratch / "model", shape), scratch / "whole")
    drop = tuple(range(1, shape["num_hidden_layers"], 3))
    runs = []
    for turn in range(rounds):
        command = [
            sys.executable, "-m", "tapioca_export", "prune", str(source), "--drop", ",".join(map(str, drop)),
            "--proof", "weights", "--output", str(scratch / f"cut-{turn}"), "--quiet",
        ]  # fmt: skip
        begun = time.perf_counter()
        child = subprocess.Popen(command)
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, command
        runs.append({"seconds": time.perf_counter() - begun, "peak_bytes": usage.ru_maxrss * 1024})
    return {
        "case": "large",
        "layers": shape["num_hidden_layers"],
        "drop": drop,
        "bytes": sum(path.stat().st_size for path in source.parent.iterdir()),
        "runs": runs,
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "surgery.json", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Turns.")
@click.option("--smoke", is_flag=True, help="Tiny models, one turn; the targets do not hold for them.")
def main(output: Path, rounds: int, smoke: bool) -> None:
    """Measure, print and write."""
    sys.path.insert(0, str(HERE))
    from recording import origin

    shape: Callable[[str], dict[str, int]] = lambda name: TINY if smoke else CASES[name][2]  # noqa: E731
    rounds = 1 if smoke else rounds
    rows = []
    for name in ("encoder", "decoder"):
        with TemporaryDirectory() as scratch:
            rows.append(compare(name, shape(name), rounds, Path(scratch)))
        row = rows[-1]
        click.echo(
            f"{name}: {row['layers']} layers, {row['bytes'] / 1e6:.0f} MB: cut in "
            f"{statistics.median(row['seconds']['cut']):.2f} s, {row['times_faster']:.0f}x as fast as a new "
            f"export ({row['times_faster_run']:.1f}x with its proof by running); outputs differ by "
            f"{row['difference']:.1e}"
        )
    with TemporaryDirectory() as scratch:
        large = cut_large(shape("large"), rounds, Path(scratch))
    click.echo(
        f"large: {large['layers']} layers, {large['bytes'] / 1e9:.2f} GB: a fresh process cuts it in "
        f"{large['seconds']:.2f} s with a peak of {large['peak_bytes'] / 1e6:.0f} MB"
    )
    output.write_text(json.dumps({**origin(), "rows": [*rows, large]}, indent=1) + "\n", encoding="utf-8")
    held = all(row["difference"] <= WITHIN and row["times_faster"] >= FASTER for row in rows)
    held = held and large["seconds"] < SECONDS and large["peak_bytes"] < MEMORY
    sys.exit(0 if held or (smoke and all(row["difference"] <= WITHIN for row in rows)) else 1)


if __name__ == "__main__":
    main()
