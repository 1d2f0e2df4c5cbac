"""Predicted against measured: what `select --dry-run` says of three models, and what `select` then takes.

    python benchmarks/cost.py                               # about five minutes on two cores
    python benchmarks/cost.py --runs                        # `run --dry-run` and `run`: about ten
    python benchmarks/cost.py --clock process --threads 1   # CPU time: for a machine with neighbours

Three random encoders of different width and depth read the texts of the tests. The plan and the
search run in fresh processes of their own, one after the other. Prints a table, writes JSON with
environment and commit; exit code 1 where a prediction is off: layer forwards at all, seconds by more
than 25 %, peak memory by more than 10 %. Of a whole run the seconds of all stages together count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
# Hidden size, layers, rows of a file (half of them drive the search), rounds.
SIZES = ((128, 6, 400, 2), (256, 12, 200, 2), (384, 24, 128, 1))
SECONDS_WITHIN, MEMORY_WITHIN = 0.25, 0.10
CHILD = "--child"


def build(folder: Path, hidden: int, num_layers: int) -> None:
    """Write a random classifier with the tokenizer of MiniLM."""
    sys.path.insert(0, str(TESTS))
    import corpus
    import finetuning
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    pretrained = finetuning.pretrained_folder()
    if pretrained is None:
        raise click.ClickException(f"install {finetuning.PRETRAINED_PACKAGE}: its tokenizer is needed")
    torch.manual_seed(0)
    labels = dict(enumerate(corpus.LABELS))
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=num_layers, num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden, num_labels=len(labels), id2label=labels,
        label2id={label: number for number, label in labels.items()},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)


def write_rows(folder: Path, num_rows: int) -> dict[str, Path]:
    """Write ID and target rows."""
    sys.path.insert(0, str(TESTS))
    import corpus

    files = {}
    for name in ("id", "target"):
        files[name] = folder / f"{name}-{num_rows}.jsonl"
        corpus.write_jsonl(files[name], corpus.rows(name, num_rows, 0))
    return files


def run(arguments: list[str], clock: str) -> tuple[dict[str, Any], int]:
    """Run a command in a fresh process; return the artifact that it prints, and its peak memory in bytes."""
    command = [sys.executable, __file__, CHILD, clock, *arguments, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{' '.join(arguments)} ended with code {process.returncode}")
    return json.loads(printed), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(clock: str, arguments: list[str]) -> None:
    """Run a command of the package in this process, by the clock asked for."""
    if clock == "process":
        time.perf_counter = time.process_time
    from tapioca_export.cli import main as command_line

    command_line(arguments)


def asked(command: str, scratch: Path, size: tuple[int, int, int, int], threads: int) -> list[str]:
    """Write a model and rows; return a command on them that drops a layer a round."""
    hidden, num_layers, num_rows, num_rounds = size
    model = scratch / f"{num_layers}x{hidden}"
    build(model, hidden, num_layers)
    files = write_rows(scratch, num_rows)
    return [
        command, "--model", str(model), "--id", str(files["id"]), "--target", str(files["target"]),
        "--full-scores", "--max-drop-layers", str(num_rounds), "--epsilon", "1", "--pick", str(num_rounds),
        "--num-threads", str(threads), "--output", str(scratch / f"out-{num_layers}"),
    ]  # fmt: skip


def measure_run(scratch: Path, size: tuple[int, int, int, int], threads: int, clock: str) -> dict[str, Any]:
    """Predict, then run; the least is meant, as all rounds are run and their layers dropped."""
    arguments = asked("run", scratch, size, threads)
    plan, _ = run([*arguments, "--dry-run"], clock)
    run(arguments, clock)
    record = json.loads((scratch / f"out-{size[1]}" / "run.json").read_text(encoding="utf-8"))
    stages = {
        name: {"predicted": plan["stages"][name]["least"], "seconds": seconds}
        for name, seconds in record["seconds"].items()
    }
    # Of a search with all scores, and of profiles before and after, the most is what is done.
    for name in ("select", "profile"):
        stages[name]["predicted"] = plan["stages"][name]["most"]
    return {
        "layers": size[1],
        "hidden": size[0],
        "rows": plan["num_samples"],
        "rounds": size[3],
        "stages": stages,
        "predicted_seconds": sum(stage["predicted"] for stage in stages.values()),
        "seconds": sum(stage["seconds"] for stage in stages.values()),
    }


def run_is_right(row: dict[str, Any]) -> bool:
    """Tell whether the seconds of a run were predicted."""
    return abs(row["predicted_seconds"] / row["seconds"] - 1) <= SECONDS_WITHIN


def print_runs(rows: list[dict[str, Any]]) -> None:
    """Print a line a run, and one a stage."""
    for row in rows:
        ratio = row["predicted_seconds"] / row["seconds"]
        click.echo(
            f"{row['layers']:3d} x {row['hidden']:3d}: {row['seconds']:.1f} s, predicted "
            f"{row['predicted_seconds']:.1f} ({ratio:.2f}){'' if run_is_right(row) else '  OFF'}"
        )
        for name, stage in row["stages"].items():
            click.echo(f"    {name:16s} {stage['seconds']:8.1f}  predicted {stage['predicted']:8.1f}")


def measure(scratch: Path, size: tuple[int, int, int, int], threads: int, clock: str) -> dict[str, Any]:
    """Predict, then search."""
    hidden, num_layers, _, num_rounds = size
    arguments = asked("select", scratch, size, threads)
    plan, _ = run([*arguments, "--dry-run"], clock)
    selection, peak = run(arguments, clock)
    cost = selection["cost"]
    return {
        "layers": num_layers,
        "hidden": hidden,
        "rows": plan["num_samples"],
        "rounds": num_rounds,
        "predicted_layer_forwards": plan["layer_forwards"]["most"],
        "layer_forwards": cost["layer_forwards"],
        "predicted_layer_tokens": plan["layer_tokens"]["most"],
        "layer_tokens": cost["layer_tokens"],
        "flops": plan["flops"]["most"],
        "predicted_seconds": plan["seconds"]["most"],
        "seconds": cost["seconds"],
        "calibration_seconds": plan["calibration_seconds"],
        "predicted_peak_bytes": plan["peak_memory_bytes"],
        "peak_bytes": peak,
    }


def is_right(row: dict[str, Any]) -> bool:
    """Tell whether every prediction is within its bound."""
    return (
        row["predicted_layer_forwards"] == row["layer_forwards"]
        and row["predicted_layer_tokens"] == row["layer_tokens"]
        and abs(row["predicted_seconds"] / row["seconds"] - 1) <= SECONDS_WITHIN
        and abs(row["predicted_peak_bytes"] / row["peak_bytes"] - 1) <= MEMORY_WITHIN
    )


@click.command(help=__doc__)
@click.option("--threads", default=2, help="Threads of PyTorch.")
@click.option("--clock", type=click.Choice(["wall", "process"]), default="wall")
@click.option("--runs", is_flag=True, help="Whole runs, in place of searches.")
@click.option("--output", type=click.Path(path_type=Path), help="cost.json, or run_cost.json, beside this.")
def main(threads: int, clock: str, runs: bool, output: Path | None) -> None:
    """Measure the three models, print the table, write the JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    output = output or HERE / ("run_cost.json" if runs else "cost.json")
    rows: list[dict[str, Any]] = []
    if runs:
        with TemporaryDirectory() as scratch:
            for size in SIZES:
                rows.append(measure_run(Path(scratch), size, threads, clock))
                print_runs(rows[-1:])
        keep(output, clock, threads, rows)
        sys.exit(0 if all(map(run_is_right, rows)) else 1)
    click.echo(
        "model    rows rounds  layer forwards (predicted)   seconds (predicted, ratio)   "
        "peak MB (predicted, ratio)"
    )
    with TemporaryDirectory() as scratch:
        for size in SIZES:
            row = measure(Path(scratch), size, threads, clock)
            rows.append(row)
            click.echo(
                f"{row['layers']:3d} x {row['hidden']:3d} {row['rows']:4d} {row['rounds']:4d}   "
                f"{row['layer_forwards']:12,d} ({row['predicted_layer_forwards']:,d})   "
                f"{row['seconds']:8.1f} ({row['predicted_seconds']:.1f}, "
                f"{row['predicted_seconds'] / row['seconds']:.2f})   "
                f"{row['peak_bytes'] / 1e6:8.0f} ({row['predicted_peak_bytes'] / 1e6:.0f}, "
                f"{row['predicted_peak_bytes'] / row['peak_bytes']:.3f})  "
                f"{'' if is_right(row) else 'OFF'}"
            )
    keep(output, clock, threads, rows)
    if not all(map(is_right, rows)):
        sys.exit(1)


def keep(output: Path, clock: str, threads: int, rows: list[dict[str, Any]]) -> None:
    """Write what was measured."""
    from recording import origin

    record = {**origin(), "clock": clock, "threads": threads, "rows": rows}
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
