"""What it takes to prune a checkpoint from its files: time against copying them, and peak memory.

    python benchmarks/prune.py                 # shaped like a 7B model: 13.5 GB, needs 27 GB of disk
    python benchmarks/prune.py --layers 12     # the same layers, fewer of them: 5.4 GB

A checkpoint of random bfloat16 weights in files of about 1 GB is copied by `cp`, and pruned of every
fourth layer by `tapioca-export prune --proof weights` in a fresh process, in turns. Before each turn the
source's pages are dropped from the system's cache, and it waits: a virtual machine hands memory that was
freed back to its host within seconds, and who asks for it again at once gets it cheaper. Each turn is
timed to its end, and until all that was written is on the disk; comparing what was written with the
source is part of it. Prints a table, writes JSON with environment and commit; exit code 1 if the median
ratio is above 1.2, or the peak above the largest file plus 500 MB.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
SHAPE = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "pad_token_id": 0,
}  # fmt: skip
CHILD = "--child"
PAUSE = 15.0  # seconds
RATIO_WITHIN, MEMORY_BEYOND_FILE = 1.2, 500e6


def build(folder: Path, num_layers: int) -> None:
    """Write a random checkpoint, one file at a time."""
    sys.path.insert(0, str(TESTS))
    import numpy as np
    import torch
    from accelerate import init_empty_weights
    from conftest import make_tokenizer
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_hidden_layers=num_layers, dtype=torch.bfloat16, **SHAPE)
    config.architectures = ["LlamaForCausalLM"]
    with init_empty_weights():
        empty = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    generator = np.random.default_rng(0)
    folder.mkdir()
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern="model{suffix}.safetensors", max_shard_size="1GB"
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            noise = bytearray(generator.bytes(empty[name].nbytes))
            tensors[name] = torch.frombuffer(noise, dtype=torch.bfloat16).reshape(empty[name].shape)
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)


def settle(folder: Path, *, forget: bool) -> None:
    """Wait until a folder's files are on the disk; drop them from the system's cache if asked."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        if forget:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def cpu_seconds() -> float:
    """Return the CPU time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def turn(command: Sequence[str], source: Path, output: Path) -> dict[str, float]:
    """Run a command from cold files; return its seconds, those until all is on the disk, and its peak."""
    settle(source, forget=True)
    time.sleep(PAUSE)
    started, cpu_before = time.perf_counter(), cpu_seconds()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    settle(output, forget=False)
    until_on_disk = time.perf_counter() - started
    size = sum(path.stat().st_size for path in output.iterdir())
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "seconds_until_on_disk": until_on_disk,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "peak_bytes": int(process.stdout or 0),
        "bytes_written": size,
    }


def child(arguments: list[str]) -> None:
    """Run a command of the package in this process, and print its peak memory in bytes."""
    from tapioca_export.cli import main as command_line
    from tapioca_export.memory import peak_resident_bytes

    command_line(arguments, standalone_mode=False)
    click.echo(peak_resident_bytes())


@click.command(help=__doc__)
@click.option("--layers", default=32)
@click.option("--rounds", default=3)
@click.option("--scratch", type=click.Path(path_type=Path), help="Where to write the checkpoints.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "prune.json")
def main(layers: int, rounds: int, scratch: Path | None, output: Path) -> None:
    """Copy and prune in turns, print the table, write the JSON."""
    found: list[dict[str, Any]] = []
    with TemporaryDirectory(dir=scratch) as place:
        source, result = Path(place) / "model", Path(place) / "output"
        build(source, layers)
        sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
        drop = ",".join(map(str, range(1, layers, 4)))
        prune = [
            sys.executable, __file__, CHILD, "prune", "-m", str(source), "-t", "text-generation",
            "--drop", drop, "--proof", "weights", "-o", str(result), "-q",
        ]  # fmt: skip
        copy = ["cp", "-r", str(source), str(result)]
        click.echo(f"{sum(sizes) / 1e9:.1f} GB in {len(sizes)} files, the largest {max(sizes) / 1e6:.0f} MB")
        click.echo("round   copy s (on disk)   prune s (on disk)   ratio (on disk)   peak MB")
        for number in range(rounds):
            pair = {"copy": copy, "prune": prune}
            order = list(pair)[:: 1 if number % 2 == 0 else -1]
            times = {name: turn(pair[name], source, result) for name in order}
            one, other = times["copy"], times["prune"]
            times["ratio"] = {key: other[key] / one[key] for key in ("seconds", "seconds_until_on_disk")}
            found.append(times)
            click.echo(
                f"{number:5d} {one['seconds']:8.1f} ({one['seconds_until_on_disk']:.1f})"
                f" {other['seconds']:12.1f} ({other['seconds_until_on_disk']:.1f})"
                f" {times['ratio']['seconds']:12.2f} ({times['ratio']['seconds_until_on_disk']:.2f})"
                f" {other['peak_bytes'] / 1e6:12.0f}"
            )
    from recording import origin

    ratios = {
        key: statistics.median(times["ratio"][key] for times in found)
        for key in ("seconds", "seconds_until_on_disk")
    }
    peak = max(times["prune"]["peak_bytes"] for times in found)
    click.echo(f"median ratio {ratios['seconds']:.2f} ({ratios['seconds_until_on_disk']:.2f} on disk)")
    record = {
        **origin(),
        "layers": layers,
        "dropped": len(range(1, layers, 4)),
        "source_bytes": sum(sizes),
        "largest_file_bytes": max(sizes),
        "median_ratio": ratios,
        "peak_bytes": peak,
        "rounds": found,
    }
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if max(ratios.values()) > RATIO_WITHIN or peak > max(sizes) + MEMORY_BEYOND_FILE:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2:])
    else:
        main()
