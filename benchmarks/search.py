"""What choosing layers costs: plain greedy, ours exact, ours racing, ours hybrid, in one run.

    python benchmarks/search.py --data FOLDER       # everything, about an hour on two cores
    python benchmarks/search.py encoder decoder     # some of its parts
    python benchmarks/search.py --repeats 3 encoder

Parts: `pair` (12 trained layers on a pair of real data, in a folder of your own: `train.jsonl`,
`id_test.jsonl`, `ood_select.jsonl`, `ood_test.jsonl`, rows with `text` and `label`), `encoder` (the same
on the messages of `tests/corpus.py`, longer and harder), `decoder` (24 trained layers, several
answers to one context), `published` (the protocol of the TALE authors' code: one row at a time, full
logits, no cache), `batches` (what starting one costs), `memory`, `profile`, `kill`.

The models are trained by `search_models.py` on first use and kept in `.cache`. Contestants run in
turn, on equal rows in equal batches; times are medians. Prints tables, writes JSON with environment
and commit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import search_models
import torch
from recording import origin

from tapioca_export.artifacts import Selection
from tapioca_export.benchmarking import compare
from tapioca_export.memory import give_back_free_memory, peak_resident_bytes
from tapioca_export.models import LoadedModel, load_model, skipping
from tapioca_export.profiling import Probe, division_on
from tapioca_export.samples import Samples, read_samples
from tapioca_export.selection import SelectionSettings, select_layers
from tapioca_export.tasks import Division, Scores

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "search-benchmark"
BATCH_SIZE = 32
# No floor: every contestant drops the same number of layers, whatever they cost.
SETTINGS = SelectionSettings(epsilon=1.0, pick="final")
OURS = {
    "exact": SETTINGS,
    "racing": replace(SETTINGS, search="racing", confidence=0.99),
    "hybrid": replace(SETTINGS, search="racing", confidence=0.99, criterion="tapioca+tale"),
}


@dataclass(frozen=True)
class Asked:
    """What the user asked for: times that each contestant runs, and the folder of the part `pair`."""

    repeats: int
    data: Path | None


@dataclass(frozen=True)
class Found:
    """One search: layers in the order they went, their metrics, seconds, sequences through a layer."""

    layers: tuple[int, ...]
    metrics: tuple[float, ...]
    seconds: float
    layer_forwards: int
    layer_tokens: int


# --- contestants ----------------------------------------------------------------------------


def plain_greedy(model: LoadedModel, samples: Samples, max_drop: int) -> Found:
    """Score every candidate by a full forward of every layer left, on batches of similar length.

    Rows are tokenized once, beforehand; each answer to a context is a sequence of its own, and the
    network gives the logits of all positions.
    """
    task = model.task
    division = division_on(model.device, torch.get_num_threads())
    order = task.length_sorted(samples, model.processor, BATCH_SIZE, division=division)
    batches = [task.batch(samples, indices, model.processor) for indices in order]
    started, forwards, tokens = time.perf_counter(), 0, 0

    def metric(dropped: Sequence[int]) -> float:
        nonlocal forwards, tokens
        values = np.empty(len(samples))
        with skipping(model, dropped):
            for batch in batches:
                outputs = task.evidence(model.logits(batch.inputs), batch)
                values[batch.indices] = task.score(outputs, samples, batch.indices).values
                shape = next(iter(batch.inputs.values())).shape
                forwards += shape[0] * (model.num_layers - len(dropped))
                tokens += shape[0] * shape[1] * (model.num_layers - len(dropped))
        return float(values.mean())

    metric(())
    layers, metrics = [], []
    for _ in range(max_drop):
        left = [layer for layer in range(model.num_layers) if layer not in layers]
        found = {layer: metric([*layers, layer]) for layer in left}
        layers.append(max(left, key=lambda layer: (found[layer], -layer)))
        metrics.append(found[layers[-1]])
    return Found(tuple(layers), tuple(metrics), time.perf_counter() - started, forwards, tokens)


def ours(model: LoadedModel, samples: dict[str, Samples], settings: SelectionSettings) -> Found:
    """Run our search; the proof that contexts may be shared is part of the time."""
    started = time.perf_counter()
    probe = Probe(model, samples, batch_size=BATCH_SIZE)
    selection = select_layers(
        probe, settings, model=model.source, task=model.task, num_samples=len(samples["target"])
    )
    return _found(selection, time.perf_counter() - started)


def _found(selection: Selection, seconds: float) -> Found:
    steps, cost = selection.steps, selection.cost
    assert cost is not None
    return Found(
        tuple(step.layer for step in steps),
        tuple(float(step.metric or 0.0) for step in steps),
        seconds,
        cost.layer_forwards,
        cost.layer_tokens,
    )


# --- parts ----------------------------------------------------------------------------------


def encoder(asked: Asked) -> dict[str, Any]:
    """Race on the 12-layer classifier, on 500 rows of the target and on 500 that it knows better."""
    return _classifier(*search_models.encoder(CACHE), asked.repeats)


def pair(asked: Asked) -> dict[str, Any]:
    """Race on the 12-layer classifier that is trained on a pair of real data."""
    if asked.data is None:
        raise click.UsageError("Part pair needs --data FOLDER; name the other parts to run without it.")
    if missing := [name for name in search_models.PAIR_FILES if not (asked.data / f"{name}.jsonl").is_file()]:
        raise click.UsageError(f"{asked.data} has no {missing[0]}.jsonl.")
    found = _classifier(*search_models.pair_encoder(CACHE, asked.data), asked.repeats)
    return {"data": asked.data.name, **found}


def _classifier(folder: Path, files: dict[str, Path], repeats: int) -> dict[str, Any]:
    """Race on target rows and on ID rows."""
    model = load_model(folder, "text-classification")
    parts = {}
    for name in ("target", "id"):
        click.echo(f" select rows: {name}")
        samples = _read(model, files["id"], files[name])
        samples["target"] = replace(samples["target"], rows=samples["target"].rows[:500])
        report = _read(model, None, files[f"{name}-report"])["target"]
        parts[name] = _contest(model, samples, report, repeats)
    return parts


def decoder(asked: Asked) -> dict[str, Any]:
    """Race on the 24-layer decoder, several answers to one context."""
    folder, files = search_models.decoder(CACHE)
    model = load_model(folder, "multiple-choice")
    samples = _read(model, files["choices-id"], files["choices-target"])
    report = _read(model, None, files["choices-target-report"])
    return _contest(model, samples, report["target"], asked.repeats, max_drop=2)


def _contest(
    model: LoadedModel, samples: dict[str, Samples], report: Samples, repeats: int, max_drop: int = 4
) -> dict[str, Any]:
    """Run all contestants in turn, and score what they chose on report rows."""
    contestants: dict[str, Callable[[], Found]] = {
        "plain": lambda: plain_greedy(model, samples["target"], max_drop)
    }
    for name, settings in OURS.items():
        asked = replace(settings, max_drop_layers=max_drop)
        contestants[name] = lambda asked=asked: ours(model, samples, asked)
    runs: dict[str, list[Found]] = {name: [] for name in contestants}
    mine = [name for name in contestants if name != "plain"]
    for name in [*mine, "plain"] * repeats:
        runs[name].append(contestants[name]())
        click.echo(f"  {name:8s} {runs[name][-1].seconds:8.1f} s  drops {runs[name][-1].layers}")
    plain = runs["plain"]
    baseline = _score(model, report, ())
    rows = {}
    for name, found in runs.items():
        seconds = statistics.median(run.seconds for run in found)
        accuracy = compare(model.task, baseline, _score(model, report, found[0].layers))
        rows[name] = {
            **asdict(found[0]),
            "seconds": seconds,
            "all_seconds": [run.seconds for run in found],
            "speedup": statistics.median(run.seconds for run in plain) / seconds,
            "forwards_ratio": plain[0].layer_forwards / found[0].layer_forwards,
            "tokens_ratio": plain[0].layer_tokens / found[0].layer_tokens,
            "same_trajectory": found[0].layers == plain[0].layers,
            "same_metrics": bool(np.allclose(found[0].metrics, plain[0].metrics, rtol=0, atol=1e-12)),
            "report_metric": accuracy.pruned,
            "report_interval_of_change": accuracy.interval,
        }
    for row in rows.values():
        row["points_from_tale"] = 100 * (row["report_metric"] - rows["plain"]["report_metric"])
    click.echo(
        "           seconds  speed-up  forwards  tokens  trajectory   report metric  (points from plain)"
    )
    for name, row in rows.items():
        click.echo(
            f"  {name:8s} {row['seconds']:8.1f} {row['speedup']:8.2f}x {row['forwards_ratio']:8.2f}x "
            f"{row['tokens_ratio']:6.2f}x  {'same' if row['same_trajectory'] else 'other':10s} "
            f"{row['report_metric']:14.4f}  ({row['points_from_tale']:+.2f})"
        )
    floor = _floor(model.num_layers, len(samples["target"]), rows["plain"])
    click.echo(f"  no exact search without shortcuts can save more than {floor['ratio']:.2f}x of the rows")
    return {
        "num_layers": model.num_layers,
        "num_select_rows": len(samples["target"]),
        "num_report_rows": len(report),
        "baseline_report_metric": float(model.task.aggregate(baseline.values)),
        "floor": floor,
        "contestants": rows,
    }


def _floor(num_layers: int, num_rows: int, plain: dict[str, Any]) -> dict[str, float]:
    """Return the least that an exact search can cost, in rows through layers, and what plain costs.

    Whoever knows the answers beforehand still has to score the original and each winner on all rows,
    and every loser on as many of its own mistakes as prove it worse; with prefixes replayed.
    """
    total = full = float(num_rows * num_layers)
    for depth, (winner, metric) in enumerate(zip(plain["layers"], plain["metrics"], strict=True)):
        left = [layer for layer in range(num_layers) if layer not in plain["layers"][:depth]]
        total += num_rows * (len(left) - 1)
        full += num_rows * len(left) * (len(left) - 1)
        for position, layer in enumerate(left):
            if layer != winner:  # a tie is lost to the lower index
                needed = round((1 - metric) * num_rows) + (layer < winner)
                total += min(num_rows, needed) * (len(left) - 1 - position)
    return {"layer_forwards": total, "plain_layer_forwards": full, "ratio": full / total}


def published(asked: Asked) -> dict[str, Any]:
    """Compare with the published protocol on the same rows, one layer dropped."""
    folder, files = search_models.decoder(CACHE)
    one = SelectionSettings(max_drop_layers=1, epsilon=1.0, pick="final")
    parts = {}
    for name, task, file, limit, value in (
        ("one-token answers", "multiple-choice", "one-token-target", 100, _one_token),
        ("generated answers of 64 tokens", "text-generation", "generation-target", 6, _generated),
    ):
        model = load_model(folder, task)
        samples = _read(model, files[file], files[file], limit)
        started = time.perf_counter()
        found = _published_round(model, samples["target"], value)
        theirs = time.perf_counter() - started
        mine = [ours(model, samples, one) for _ in range(max(2, asked.repeats))]
        seconds = statistics.median(run.seconds for run in mine)
        winner = max(found, key=lambda layer: (found[layer], -layer))
        parts[name] = {
            "num_rows": len(samples["target"]),
            "published_seconds": theirs,
            "ours_seconds": seconds,
            "speedup": theirs / seconds,
            "published_winner": winner,
            "ours_winner": mine[0].layers[0],
            "published_metric": found[winner],
            "ours_metric": mine[0].metrics[0],
        }
        click.echo(
            f"  {name}: {theirs:.1f} s published, {seconds:.2f} s ours, {theirs / seconds:.1f}x; winner "
            f"{winner} ({found[winner]:.4f}) and {mine[0].layers[0]} ({mine[0].metrics[0]:.4f})"
        )
    return parts


def _published_round(
    model: LoadedModel, samples: Samples, value: Callable[[LoadedModel, Any], float]
) -> dict[int, float]:
    """Score the original and each candidate, one row at a time."""
    found = {}
    for dropped in ((), *((layer,) for layer in range(model.num_layers))):
        with skipping(model, dropped), torch.no_grad():
            metric = float(np.mean([value(model, row) for row in samples.rows]))
        if dropped:
            found[dropped[0]] = metric
    return found


def _one_token(model: LoadedModel, row: Any) -> float:
    """Take the choice whose only token is likeliest, from the full logits of the context."""
    ids = torch.tensor([row.features["context"]])
    logits = model.network(input_ids=ids, use_cache=False).logits[0, -1]
    tokens = [answer[0] for answer in row.features["answers"]]
    return float(int(logits[tokens].argmax()) == row.label)


def _generated(model: LoadedModel, row: Any) -> float:
    """Generate as many tokens as the answer has, each by a forward over everything before it."""
    ids, answer = list(row.features["context"]), row.features["answers"][0]
    for _ in answer:
        logits = model.network(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return float(tuple(ids[-len(answer) :]) == tuple(answer))


def memory(asked: Asked) -> dict[str, Any]:
    """Measure the peak memory of a search at 500 and at 5,000 rows, each in a process of its own."""
    folder, _ = search_models.encoder(CACHE)
    parts = {}
    with TemporaryDirectory() as scratch:
        for num_rows in (500, 5000):
            path = Path(scratch) / f"{num_rows}.jsonl"
            generator = random.Random(num_rows)
            words = [f"word{n}" for n in range(50)]
            labels = sorted(load_model(folder).network.config.id2label.values())
            with path.open("w", encoding="utf-8") as lines:
                for number in range(num_rows):
                    text = " ".join(generator.choice(words) for _ in range(8)) + f" {number}"
                    lines.write(json.dumps({"text": text, "label": labels[number % len(labels)]}) + "\n")
            child = subprocess.run(
                [sys.executable, __file__, "--memory-child", str(folder), str(path)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            parts[str(num_rows)] = found = json.loads(child.stdout.splitlines()[-1])
            click.echo(
                f"  {num_rows} rows: {found['search_bytes'] / 1e6:.0f} MB above the loaded model, a plain "
                f"forward of one batch {found['plain_bytes'] / 1e6:.0f} MB; 2 batches x depth x hidden "
                f"state are {found['allowed_bytes'] / 1e6:.0f} MB"
            )
    return parts


def _memory_child(folder: str, path: str) -> None:
    """Load, warm up on one batch, then search; print how far the peak rises."""
    torch.set_num_threads(1)
    model = load_model(folder, options=None)
    samples = _read(model, Path(path), Path(path))
    target = samples["target"]
    # What is allowed is measured by the longest batch of as many rows as a batch may have.
    whole = [b for b in model.task.length_sorted(target, model.processor, 256) if len(b) == 256]
    batch = model.task.batch(target, whole[-1], model.processor)
    shape = batch.inputs["input_ids"].shape
    model.logits({name: value[:1] for name, value in batch.inputs.items()})  # libraries take what they take
    before = _forget_peak()
    model.logits(batch.inputs)
    plain = peak_resident_bytes() - before
    give_back_free_memory()
    _forget_peak()
    probe = Probe(model, samples, batch_size=256)
    settings = SelectionSettings(max_drop_layers=1, epsilon=1.0, pick="final")
    select_layers(probe, settings, model="m", task=model.task, num_samples=len(target))
    hidden = model.network.config.hidden_size
    allowed = 2 * shape[0] * shape[1] * (model.num_layers + 1) * hidden * 4
    found = {"search_bytes": peak_resident_bytes() - before, "plain_bytes": plain}
    print(json.dumps({**found, "allowed_bytes": allowed, "model_bytes": before}))


def batches(asked: Asked) -> dict[str, Any]:
    """Measure how many tokens' time it takes to start one more batch, and what dividing batches saves."""
    folder, files = search_models.encoder(CACHE)
    model = load_model(folder, "text-classification")
    words, shapes = np.arange(1000, 2000), [(1, 8), (4, 8), (8, 8), (16, 8), (32, 8), (16, 16), (32, 32)]
    seconds = []
    for rows, tokens in shapes:
        inputs = {
            "input_ids": np.resize(words, (rows, tokens)),
            "attention_mask": np.ones((rows, tokens), dtype=np.int64),
        }
        seconds.append(min(_seconds(lambda inputs=inputs: model.logits(inputs)) for _ in range(7)))
    a_token, a_batch = np.polyfit([rows * tokens for rows, tokens in shapes], seconds, 1)
    samples = _read(model, files["id"], files["target"])["target"]
    # Some rows of a race are no longer alike in length; all rows fill batches with more tokens than divided.
    division = division_on(model.device, torch.get_num_threads())
    some = np.random.default_rng(0).permutation(len(samples))[:64]
    ratios = {}
    for name, rows in (("some", some), ("all", np.arange(len(samples)))):
        ratios[name] = []
        for _ in range(max(5, asked.repeats)):
            divided, full = (_pass(model, samples, rows, one) for one in (division, None))
            ratios[name].append(divided / full)
        click.echo(
            f"  {name} rows: divided batches take {statistics.median(ratios[name]):.2f} of the time of "
            f"full ones ({min(ratios[name]):.2f} to {max(ratios[name]):.2f})"
        )
    click.echo(f"  a batch takes {a_batch / a_token:.0f} tokens longer")
    return {
        "batch_cost": a_batch / a_token,
        "divided_to_full": {name: statistics.median(found) for name, found in ratios.items()},
        "all_ratios": ratios,
    }


def _pass(model: LoadedModel, samples: Samples, rows: np.ndarray, division: Division | None) -> float:
    """Return the seconds that the network takes for rows, in batches divided or full."""
    task, processor, started = model.task, model.processor, time.perf_counter()
    for indices in task.length_sorted(samples, processor, BATCH_SIZE, rows, division):
        model.logits(task.batch(samples, indices, processor).inputs)
    return time.perf_counter() - started


def _seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _forget_peak() -> int:
    """Begin a new peak, as loading has one of its own (Linux); returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_resident_bytes()


def profile(asked: Asked) -> dict[str, Any]:
    """Compare profiling with a plain forward over the same rows, in turn."""
    folder, files = search_models.encoder(CACHE)
    model = load_model(folder, "text-classification")
    rows = _read(model, files["id"], files["target"])["target"]
    ratios = []
    for _ in range(max(5, asked.repeats)):
        probe = Probe(model, {"id": rows, "target": rows}, batch_size=BATCH_SIZE)
        plain = _pass(model, rows, np.arange(len(rows)), probe.division)
        ratios.append(_seconds(lambda probe=probe: probe.profile("target")) / plain)
    click.echo(
        f"  profiling takes {statistics.median(ratios):.3f} of a plain forward "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )
    return {"ratio": statistics.median(ratios), "all_ratios": ratios}


def kill(asked: Asked) -> dict[str, Any]:
    """Kill the command at 20 random instants of its search, start it again, compare what it chose."""
    folder, files = search_models.encoder(CACHE)
    generator = random.Random(0)
    with TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "tapioca_export", "select", "--model", str(folder), "--id",
            str(files["id"]),
            "--target", str(files["target"]), "--limit", "64", "--max-length", "32", "--max-drop-layers", "4",
            "--epsilon", "1", "--num-threads", "2", "--quiet", "--output",
        ]  # fmt: skip
        reference, seconds = _finished(command, Path(scratch) / "reference")
        killed, identical = 0, 0
        for number in range(20):
            output = Path(scratch) / str(number)
            process = subprocess.Popen([*command, str(output)])
            journal = output.with_name(f".{output.name}.tapioca-partial") / "search.jsonl"
            while not journal.exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            again = [*command, str(output)] if not (output / "selection.json").exists() else None
            found = _finished(command, output)[0] if again else _chosen(output)
            identical += found == reference
        click.echo(
            f"  {killed} of 20 searches were killed; {identical} of 20 ended with the identical selection"
        )
    return {"runs": 20, "killed": killed, "identical": identical, "search_seconds": seconds}


def _finished(command: list[str], output: Path) -> tuple[dict[str, Any], float]:
    """Run the command to its end; returns what it chose and the seconds that its search took."""
    subprocess.run([*command, str(output)], check=True)
    seconds = json.loads((output / "selection.json").read_text())["cost"]["seconds"]
    return _chosen(output), seconds


def _chosen(output: Path) -> dict[str, Any]:
    """Return selection.json without the one number that no two runs share."""
    selection = json.loads((output / "selection.json").read_text())
    del selection["cost"]["seconds"]
    return selection


# --- shared ---------------------------------------------------------------------------------


def _read(model: LoadedModel, id_: Path | None, target: Path, limit: int | None = None) -> dict[str, Samples]:
    """Read sample files; without ID rows, the target's stand in for them."""
    reader = model.task.rows({}, model.processor)
    samples = {}
    for name, path in (("id", id_ or target), ("target", target)):
        found = read_samples(path, reader, role=name)
        samples[name] = replace(found, rows=found.rows[:limit])
    return samples


def _score(model: LoadedModel, rows: Samples, drop: Sequence[int]) -> Scores:
    """Score report rows without the layers."""
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=BATCH_SIZE)
    return probe.all_scores(drop)


def markdown(record: dict[str, Any]) -> str:
    """Return README's table of what was measured."""
    contests = [
        (f"12-layer classifier, {what}, 500 {name} rows", record[part][role], 4)
        for part, what in (("pair", "intents"), ("encoder", "messages"))
        for role, name in (("target", "target"), ("id", "ID"))
    ]
    contests.append(("24-layer decoder, 4 answers to a context, 300 rows", record["decoder"], 2))
    lines = [
        "| on | plain greedy | exact | racing at 99 % | hybrid |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, part, dropped in contests:
        found = part["contestants"]
        cells = [
            f"**{found[way]['speedup']:.1f}x**, {found[way]['tokens_ratio']:.1f}x, "
            f"{found[way]['points_from_tale']:+.1f}"
            for way in OURS
        ]
        cells[0] = cells[0].rpartition(",")[0]
        lines.append(
            f"| {name}, {dropped} dropped | {found['plain']['seconds']:.0f} s | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


PARTS = {part.__name__: part for part in (pair, encoder, decoder, published, batches, memory, profile, kill)}


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--repeats", default=1, help="Times that each contestant runs.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder of the part `pair`.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "search.json")
@click.option("--table", is_flag=True, help="Print README's table of the JSON, and measure nothing.")
@click.option("--memory-child", nargs=2, hidden=True)
def main(
    parts: tuple[str, ...],
    repeats: int,
    data: Path | None,
    output: Path,
    table: bool,
    memory_child: tuple[str, str] | None,
) -> None:
    """Measure the parts, print their tables, write the JSON; other parts of the file stay."""
    if table:
        click.echo(markdown(json.loads(output.read_text(encoding="utf-8"))))
        return
    if memory_child:
        _memory_child(*memory_child)
        return
    torch.set_num_threads(os.cpu_count() or 1)
    here = origin()
    record = json.loads(output.read_text()) if output.exists() else {}
    for name in parts or PARTS:
        click.echo(f"{name}:")
        measured = PARTS[name](Asked(repeats, data))
        record[name] = {**here, **measured}
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
