"""The whole job on real pretrained weights: MiniLM, fine-tuned here on texts of our own."""

from __future__ import annotations

import json
from pathlib import Path

import corpus
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from finetuning import CORPUS_SEED, NUM_TRAINING_ROWS, finetuned_minilm, pretrained_folder

from tapioca_export import RunConfig
from tapioca_export.artifacts import Benchmark, Export, Profile, Report, Selection, read
from tapioca_export.cli import main
from tapioca_export.reading import load_roles, load_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("real-model"),
    pytest.mark.skipif(pretrained_folder() is None, reason="the package with MiniLM is not installed"),
]
ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"
NUM_ROWS = 160


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return finetuned_minilm(CACHE)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    fresh = {
        "id": corpus.rows("id", NUM_TRAINING_ROWS + NUM_ROWS, CORPUS_SEED)[NUM_TRAINING_ROWS:],
        "target": corpus.rows("target", NUM_ROWS, CORPUS_SEED),
    }
    for name, rows in fresh.items():
        corpus.write_jsonl(folder / f"{name}.jsonl", rows)
    return {name: folder / f"{name}.jsonl" for name in fresh}


def run(checkpoint: Path, samples: dict[str, Path], output: Path, *more: str) -> Path:
    arguments = ["run", "-m", checkpoint, "--id", samples["id"], "--target", samples["target"], "-o", output]
    options = ["--max-length", "128", "--iterations", "10", "--warmup", "2", "--num-threads", "1", *more]
    result = CliRunner().invoke(main, [str(argument) for argument in (*arguments, *options)])
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def without_one_layer(
    checkpoint: Path, samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    return run(checkpoint, samples, output, "--pick", "1", "--epsilon", "1")


def test_the_model_is_worse_on_the_target_and_its_geometry_deviates(without_one_layer: Path) -> None:
    accuracy = read(without_one_layer / "benchmark.json", Benchmark).accuracy
    assert accuracy["id"].original > 0.85
    assert accuracy["target"].original < accuracy["id"].original - 0.1
    deviation = read(without_one_layer / "profile.json", Profile).deviation
    assert deviation.mean > deviation.noise_floor.mean


def test_the_exported_files_are_proven_at_several_lengths_and_paddings(without_one_layer: Path) -> None:
    for which in ("original", "pruned"):
        export = read(without_one_layer / which / "onnx/export.json", Export)
        assert export.label_agreement == 1.0
        assert export.max_abs_difference <= export.tolerance
        assert len({length for _, length in export.shapes_checked}) >= 3
        assert set(export.padding_checked) == {"none", "left", "right"}


def test_five_of_six_layers_are_left_and_the_file_shrinks_by_one_layer(
    without_one_layer: Path, checkpoint: Path
) -> None:
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    full, pruned = load(checkpoint), load(without_one_layer / "pruned/checkpoint")
    assert pruned.config.num_hidden_layers == 5
    layer = sum(parameter.numel() for parameter in full.bert.encoder.layer[0].parameters())
    assert full.num_parameters() - pruned.num_parameters() == layer
    size = read(without_one_layer / "benchmark.json", Benchmark).size_bytes
    assert size.original - size.pruned == pytest.approx(4 * layer, rel=0.05)


def test_the_pruned_checkpoint_computes_what_the_search_measured(
    without_one_layer: Path, checkpoint: Path
) -> None:
    """The layer left out by hand gives the logits of the saved checkpoint, bit for bit."""
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    full, pruned = load(checkpoint).eval(), load(without_one_layer / "pruned/checkpoint").eval()
    (dropped,) = read(without_one_layer / "selection.json", Selection).drop
    del full.bert.encoder.layer[dropped]
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(
        ["where is my parcel", "the kettle leaks"], padding=True, return_tensors="pt"
    )
    for network in (full, pruned):  # weights mapped from files lie at other offsets, and round otherwise
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
    with torch.no_grad():
        assert torch.equal(full(**tokens).logits, pruned(**tokens).logits)


def test_the_search_never_picks_less_than_the_baseline(
    checkpoint: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        main,
        ["select", "-m", str(checkpoint), "--id", str(samples["id"]), "--target", str(samples["target"]),
         "-o", str(tmp_path / "out"), "--max-length", "128", "--num-threads", "1", "--max-drop-layers", "1"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    selection = read(tmp_path / "out/selection.json", Selection)
    assert selection.selected_metric >= selection.baseline_metric
    assert bool(selection.drop) == (selection.selected_metric > selection.baseline_metric)


def test_the_report_states_the_change_with_its_interval(without_one_layer: Path) -> None:
    report = read(without_one_layer / "report.json", Report)
    low, high = report.benchmark.accuracy["target"].gain_interval
    assert ("raises the target" in report.verdict) == (low > 0)
    assert low <= report.benchmark.accuracy["target"].gain <= high


def test_the_stock_pipeline_and_ten_lines_answer_what_the_benchmark_recorded(
    without_one_layer: Path, samples: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`transformers.pipeline` on the checkpoint, and docs/serving.md's lines on the exported file."""
    measured = read(without_one_layer / "benchmark.json", Benchmark)
    code = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    config = RunConfig(model=str(without_one_layer / "pruned/checkpoint"), max_length=128, **samples)
    roles = load_roles(config, *load_task(config))
    ask = transformers.pipeline("text-classification", config.model)
    for name in samples:
        texts = {record["where"]: record["text"] for record in numbered(samples[name])}
        rows = roles[f"{name}-report"].rows
        answers = [ask(texts[row.where], truncation=True, max_length=128)[0]["label"] for row in rows]
        assert len(set(answers)) > 1
        labels = ask.model.config.id2label
        pairs = list(zip(rows, answers, strict=True))
        right = {Path(row.where).name: answer == labels[row.label] for row, answer in pairs}
        assert np.mean(list(right.values())) == pytest.approx(measured.accuracy[name].pruned, abs=1e-12)
        for flip in measured.flips[name]:
            assert right[flip.where] == (flip.pruned == 1.0)
        for row, answer in pairs[:20]:
            if len(ask.tokenizer(texts[row.where])["input_ids"]) <= 64:  # where tokenizer.json cuts by itself
                exec(code, {"folder": without_one_layer / "pruned/onnx", "text": texts[row.where]})
                assert capsys.readouterr().out.strip() == answer


def numbered(file: Path) -> list[dict[str, str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "where": f"{file}, line {n}"} for n, line in enumerate(lines, start=1)]
