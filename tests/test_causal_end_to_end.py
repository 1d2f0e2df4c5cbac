"""Decoders, the whole job: a planted layer is found by other metrics, and prompts stay what they were."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from keyed_answers import FILLERS, KEYS, PLANTED, TARGET_FILLERS, draw, save_planted, words
from planting import assert_found
from test_causal_tasks import ANSWERS, CHOICES, FAST, everything, invoke
from test_prompts import CHAT

from tapioca_export import RunConfig
from tapioca_export.artifacts import Benchmark, Export, Report, Selection, read, write
from tapioca_export.models import load_model
from tapioca_export.reading import load_options, load_roles

WRONG = [12, 20]  # the harm is one answer to all
TEMPLATE = "{{question}} w86"  # the word of `ASKING`


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained tiny Llama with a layer that harms target rows."""
    return save_planted(tmp_path_factory.mktemp("planted"), WRONG, list, CHAT)


def write_rows(folder: Path, task: str) -> dict[str, Path]:
    files = {}
    for name, fillers in (("id", FILLERS), ("target", TARGET_FILLERS)):
        generator, records = random.Random(name), []
        for _ in range(120):
            text, answer = draw(generator, fillers)
            record: dict[str, Any] = {"question": words(text), "answer": words(answer)}
            if task == CHOICES:
                others = [[key + 8, key + 16] for key in KEYS if key + 8 not in (answer[0], WRONG[0])]
                choices = [words(choice) for choice in (answer, WRONG, *generator.sample(others, 2))]
                choices = list(dict.fromkeys(choices))
                generator.shuffle(choices)
                record |= {"choices": choices, "label": record.pop("answer")}
            records.append(record)
        files[name] = write_jsonl(folder / f"{name}.jsonl", records)
    return files


@pytest.mark.slow
@pytest.mark.xdist_group("causal")
@pytest.mark.parametrize(
    ("task", "metric", "settings"),
    [
        (ANSWERS, "exact_match", {}),
        (ANSWERS, "log_perplexity", {"metric": "perplexity"}),
        (CHOICES, "accuracy_norm", {"task": CHOICES, "metric": "accuracy_norm"}),
    ],
)
def test_the_layer_that_harms_is_found_and_the_gain_is_kept(
    task: str, metric: str, settings: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    files = write_rows(tmp_path, task)
    found = assert_found(checkpoint, files, PLANTED, tmp_path / "out", prompt_template=TEMPLATE, **settings)
    assert {accuracy.metric for accuracy in found.accuracy.values()} == {metric}
    if metric != "log_perplexity":
        assert found.accuracy["target"].pruned > found.accuracy["target"].original + 0.5
    selection = read(tmp_path / "out/selection.json", Selection)
    assert selection.metric == metric
    assert selection.prompting.template == TEMPLATE
    report = read(tmp_path / "out/report.json", Report)
    said = any("Perplexity, target: " in finding for finding in report.findings)
    assert said == (metric == "log_perplexity")
    again = invoke(
        "benchmark", tmp_path / "out/original/onnx", tmp_path / "out/pruned/onnx", "--id", files["id"],
        "--target", files["target"], "-o", tmp_path / "again", *FAST,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert read(tmp_path / "again/benchmark.json", Benchmark).accuracy == found.accuracy


@pytest.mark.slow
@pytest.mark.xdist_group("causal")
def test_stages_one_by_one_keep_the_metric_and_the_prompts(checkpoint: Path, tmp_path: Path) -> None:
    files, solved = write_rows(tmp_path, CHOICES), tmp_path / "solved.jsonl"
    write_jsonl(solved, [{"question": f"w{i}", "choices": ["w1", "w2 w3"], "label": i % 2} for i in range(9)])
    task = ["-t", CHOICES, "--num-threads", 1]
    data = ["--id", files["id"], "--target", files["target"]]
    asked = ["--prompt-template", "{{question}}", "--chat-template", "--few-shot", solved,
             "--num-fewshot", 2]  # fmt: skip
    asked_all = [*asked, "--metric", "accuracy_norm"]
    original, pruned, selected = tmp_path / "original", tmp_path / "pruned", tmp_path / "selected"
    steps = [
        ("select", "-m", checkpoint, *task, *data, *asked_all, "-o", selected, "--max-drop-layers", 1),
        ("prune", "-m", checkpoint, *task, *data, "--selection", selected / "selection.json", "-o", pruned),
        ("export", "-m", pruned, *task, *data, "-o", tmp_path / "pruned-onnx"),
        ("export", "-m", checkpoint, *task, *data, *asked_all, "-o", original),
        ("benchmark", original, tmp_path / "pruned-onnx", *data, "-o", tmp_path / "benchmark", *FAST),
    ]
    for step in steps:
        result = invoke(*step)
        assert result.exit_code == 0, result.output
    recorded = [read(tmp_path / which / "export.json", Export) for which in ("original", "pruned-onnx")]
    chosen = read(selected / "selection.json", Selection)
    assert len(chosen.prompting.shots) == 2
    for export in recorded:
        assert (export.metric, export.prompting) == ("accuracy_norm", chosen.prompting)
    measured = read(tmp_path / "benchmark/benchmark.json", Benchmark).accuracy
    config = RunConfig(
        model=str(pruned), task=CHOICES, metric="accuracy_norm", prompt_template="{{question}}",
        chat_template=True, few_shot=solved, num_fewshot=2, **files,
    )  # fmt: skip
    model = load_model(pruned, CHOICES, load_options(config))
    rows = load_roles(config, model.task, model.processor)["target-report"]
    scores = model.task.score(model.answers(everything(model, rows)), rows)
    accuracy = float(model.task.aggregate(scores.values))
    assert (measured["target"].pruned, measured["target"].metric) == (accuracy, "accuracy_norm")
    for other, message in (
        (["--metric", "accuracy"], "was made with --metric accuracy_norm, not accuracy"),
        (["--chat-template"], "was made with other prompts"),
    ):
        result = invoke("export", "-m", pruned, *task, *data, *other, "-o", tmp_path / "refused")
        assert result.exit_code == 1
        assert message in result.stderr
    write(original / "export.json", replace(recorded[0], metric="accuracy"))
    result = invoke("benchmark", original, tmp_path / "pruned-onnx", *data, "-o", tmp_path / "refused")
    assert "were exported with different metrics or prompts" in result.stderr
