"""Time optimised and quantised graphs: original against pruned, and against what others make of the same.

    python benchmarks/graphs.py                             # needs 10 GB of memory
    python benchmarks/graphs.py --peer-python PATH/python   # and Optimum, in an environment of its own
    python benchmarks/graphs.py --smoke                     # tiny models

Random encoders of 12 layers, of the sizes of BERT-base and of MiniLM, and the same without every fourth
layer, are exported once; each level of `--optimize` but O4, which is for GPUs, and int8 and int4, is made of
that file. All files of a size are timed in turns in one process, in a new random order every round, on one
thread. What is compared is the CPU time of the process, which other work on the machine lengthens less than
the time on the clock (which is in the JSON too).

Peers: the plain file, which ONNX Runtime optimises itself when it opens it; what its transformer optimiser
makes of the plain file; and, with `--peer-python`, what Optimum exports, plain and with `--optimize O3`. For
int8, ONNX Runtime's quantiser is run on each with Optimum's settings (signed weights, unsigned activations,
one scale a matrix): Optimum's own call does not tell it of types, and fails on its O3 graph. `make consumers`
builds an environment for Optimum in .cache/consumers/venv.

Prints tables, writes them into docs/exports.md, and JSON with environment and commit; exit code 1 if the
pruned graph reaches less than 97 % of the ideal at any level, or the best of ours is slower than a peer's by
more than its interval.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "exports.md"
BEGIN, END = "<!-- begin: python benchmarks/graphs.py -->", "<!-- end -->"
sys.path.insert(0, str(HERE.parent / "tests"))
SHARE = 0.97
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, dict[str, int]] = {
    "BERT-base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "MiniLM": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
}
TINY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
STATIC = "int8 static"
LEVELS: dict[str, tuple[str | None, str | None]] = {
    "plain": (None, None), "O1": ("O1", None), "O2": ("O2", None), "O3": ("O3", None),
    "int8": (None, "int8"), "O2 int8": ("O2", "int8"), "O3 int8": ("O3", "int8"),
    f"O2 {STATIC}": ("O2", STATIC), "O2 int4": ("O2", "int4"),
}  # fmt: skip
# What each of our files is held against: the same weights, in the same precision.
OURS = {"fp32": ("O2", "O3"), "int8": ("O2 int8", "O3 int8")}
PEERS = {
    "fp32": ("plain", "transformer optimiser", "Optimum", "Optimum O3"),
    "int8": ("int8", "transformer optimiser int8", "Optimum int8", "Optimum O3 int8"),
}
OPTIMUM = """
import sys, warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
from optimum.exporters.onnx import main_export
checkpoint, folder = sys.argv[1:]
for name, level in (("Optimum", None), ("Optimum O3", "O3")):
    options = {"task": "text-classification", "optimize": level, "do_validation": False}
    main_export(checkpoint, output=f"{folder}/{name}", **options)
"""


def build(folder: Path, shape: Mapping[str, int], num_layers: int) -> Any:
    """Save a random encoder with a tokenizer; return it loaded."""
    import torch
    from conftest import make_tokenizer
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from tapioca_export.models import load_model

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", **shape, **TOKENS, num_hidden_layers=num_layers, max_position_embeddings=512, vocab_size=30522
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return load_model(folder, "text-classification")


def write_files(model: Any, folder: Path) -> dict[str, Path]:
    """Write a model plain, and as each treatment makes it of that; return the files."""
    from surgery import written

    from tapioca_export.exporting.optimizing import optimize
    from tapioca_export.exporting.quantizing import quantize
    from tapioca_export.exporting.quieting import quiet

    plain = written(model, folder)
    files = {}
    for name, (level, kind) in LEVELS.items():
        files[name] = file = Path(shutil.copy(plain, folder / f"{name}.onnx"))
        with quiet():
            if level:
                optimize(file, level, "fp32")
            if kind:
                seen = [made_up(file, 8, 128)] if kind == STATIC else []
                quantize(file, kind.removesuffix(" static"), calibration=seen)
    return files


def made_up(file: Path, batch_size: int, length: int) -> dict[str, np.ndarray]:
    """Return inputs of an encoder's graph: random tokens, of which all are read."""
    import onnx

    tokens = np.random.default_rng(0).integers(4, 90, (batch_size, length))
    made = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "token_type_ids": np.zeros_like(tokens),
    }
    return {value.name: made[value.name] for value in onnx.load(file, load_external_data=False).graph.input}


def write_peers(plain: Path, model: Any, folder: Path, python: Path | None) -> dict[str, Path]:
    """Write what others make of the same model; return the files."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    from tapioca_export.exporting.quieting import quiet

    files, config = {"transformer optimiser": folder / "fused.onnx"}, model.network.config
    with quiet():
        heads, width = config.num_attention_heads, config.hidden_size
        optimize_model(str(plain), "bert", heads, width, opt_level=1).save_model_to_file(
            str(folder / "fused.onnx")
        )
    if python is not None:
        command = [str(python), "-c", OPTIMUM, str(model.source), str(folder)]
        done = subprocess.run(
            command, env={"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise click.ClickException(f"Optimum failed: {done.stderr.strip().splitlines()[-1]}")
        files |= {name: folder / name / "model.onnx" for name in ("Optimum", "Optimum O3")}
    for name, file in list(files.items()):
        files[f"{name} int8"] = target = folder / f"{name} int8.onnx"
        with quiet():
            quantize_dynamic(
                file,
                target,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": TensorProto.FLOAT},
            )
    return files


def time_files(
    files: Mapping[str, Path], batch_size: int, length: int, rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run all files in turns; return CPU seconds and seconds on the clock of each, (rounds,)."""
    import onnxruntime

    generator = np.random.default_rng(0)
    runs = {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        runs[name] = (session, made_up(file, batch_size, length))
    cpu, clock = ({name: np.empty(rounds) for name in files} for _ in range(2))
    for turn in range(-1, rounds):
        for place in generator.permutation(len(files)):
            name = list(files)[place]
            session, feed = runs[name]
            begun, used = time.perf_counter(), time.process_time()
            session.run(None, feed)
            if turn >= 0:
                cpu[name][turn] = time.process_time() - used
                clock[name][turn] = time.perf_counter() - begun
    return cpu, clock


def ratio(slow: np.ndarray, fast: np.ndarray) -> dict[str, Any]:
    """Return the median over rounds of how many times as fast one is, with its 95 % interval."""
    from tapioca_export.benchmarking.statistics import bootstrap_interval

    ratios = slow / fast
    return {"median": float(np.median(ratios)), "interval": bootstrap_interval(ratios, np.median, 0)}


def measure(
    size: str, shape: Mapping[str, int], batches: Mapping[int, int], scratch: Path, python: Path | None
) -> list[dict[str, Any]]:
    """Time one size of encoder: original against pruned at each level, and pruned against the peers."""
    from tapioca_export.models import drop_layers

    num_layers = 12 if size in SIZES else 4
    original = build(scratch / "model", shape, num_layers)
    drop = tuple(range(2, num_layers, 4))
    pruned = drop_layers(original, drop)
    kept = len(pruned.layers)
    pruned.network.save_pretrained(scratch / "pruned")  # where Optimum finds it
    pruned.processor.save(scratch / "pruned")
    pruned = replace(pruned, source=str(scratch / "pruned"))
    (scratch / "peers").mkdir()
    files = {f"original {name}": file for name, file in write_files(original, scratch / "o").items()}
    ours = write_files(pruned, scratch / "p")
    files |= {f"pruned {name}": file for name, file in ours.items()}
    peers = write_peers(ours["plain"], pruned, scratch / "peers", python)
    files |= {f"pruned {name}": file for name, file in peers.items()}
    files["pruned O2 again"] = ours["O2"]
    rows = []
    for batch_size, rounds in batches.items():
        cpu, clock = time_files(files, batch_size, 128, rounds)
        ideal = num_layers / kept
        speedups = {name: ratio(cpu[f"original {name}"], cpu[f"pruned {name}"]) for name in LEVELS}
        against = {}
        for kind, names in OURS.items():
            best = min(names, key=lambda name: float(np.median(cpu[f"pruned {name}"])))
            against[kind] = {"ours": best} | {
                name: ratio(cpu[f"pruned {name}"], cpu[f"pruned {best}"])
                for name in PEERS[kind]
                if f"pruned {name}" in cpu
            }
        rows.append(
            {
                "size": size, "batch_size": batch_size, "sequence_length": 128, "layers": num_layers,
                "kept": kept, "rounds": rounds, "ideal": ideal, "speedup": speedups,
                "share": {name: speedups[name]["median"] / ideal for name in LEVELS},
                "against": against, "noise": ratio(cpu["pruned O2"], cpu["pruned O2 again"]),
                "cpu_ms": {name: float(np.median(seconds)) * 1e3 for name, seconds in cpu.items()},
                "clock_ms": {name: float(np.median(seconds)) * 1e3 for name, seconds in clock.items()},
                "bytes": {name: file.stat().st_size for name, file in files.items()},
            }
        )  # fmt: skip
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tables, as Markdown."""
    found = [
        "| encoder | batch | " + " | ".join(LEVELS) + " |",
        "| --- | ---: |" + " ---: |" * len(LEVELS),
    ]
    for row in rows:
        cells = [f"{row['speedup'][name]['median']:.2f}x, {row['share'][name]:.0%}" for name in LEVELS]
        found.append(f"| {row['size']}, {row['kept']} of {row['layers']} layers | {row['batch_size']} | ")
        found[-1] += " | ".join(cells) + " |"
    found += [
        "",
        "| encoder | batch | our graph | against | times as fast |",
        "| --- | ---: | --- | --- | ---: |",
    ]
    for row in rows:
        for peers in row["against"].values():
            for name, value in peers.items():
                if name != "ours":
                    low, high = value["interval"]
                    found.append(
                        f"| {row['size']} | {row['batch_size']} | {peers['ours']} | {name} | "
                        f"{value['median']:.2f} ({low:.2f} to {high:.2f}) |"
                    )
    return found


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "graphs.json", show_default=True)
@click.option("--rounds", default=40, show_default=True, help="Rounds at batch 1; at batch 8 half of them.")
@click.option(
    "--peer-python", type=click.Path(path_type=Path), help="Python of an environment with optimum-onnx."
)
@click.option(
    "--size",
    "chosen",
    multiple=True,
    type=click.Choice(list(SIZES)),
    help="Only these encoders; of others, what the JSON says stays.",
)
@click.option("--smoke", is_flag=True, help="Tiny models, two rounds; the targets do not hold for them.")
def main(output: Path, rounds: int, peer_python: Path | None, chosen: tuple[str, ...], smoke: bool) -> None:
    """Measure, print and write."""
    sys.path.insert(0, str(HERE))
    from recording import origin, put_between

    sizes = {"tiny": TINY} if smoke else {name: SIZES[name] for name in chosen or SIZES}
    before = json.loads(output.read_text(encoding="utf-8"))["rows"] if chosen and output.exists() else []
    rows = [row for row in before if row["size"] not in sizes]
    here = origin()
    for size, shape in sizes.items():
        with TemporaryDirectory() as scratch:
            batches = {1: 2, 8: 2} if smoke else {1: rounds, 8: max(3, rounds // 2)}
            found = measure(size, shape, batches, Path(scratch), peer_python)
        rows += [{"commit": here["commit"], **row} for row in found]
        output.write_text(json.dumps({**here, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    table = "\n".join(lines(rows))
    click.echo(table)
    if output.resolve() == HERE / "graphs.json" and not smoke:
        put_between(PAGE, BEGIN, END, table)
    held = all(share >= SHARE for row in rows for share in row["share"].values())
    held = held and all(
        value["interval"][1] >= 1.0
        for row in rows
        for peers in row["against"].values()
        for name, value in peers.items()
        if name != "ours"
    )
    sys.exit(0 if held or smoke else 1)


if __name__ == "__main__":
    main()
