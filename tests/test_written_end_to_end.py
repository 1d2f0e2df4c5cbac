"""Answers that a model writes, the whole job: a layer that spoils their form is found; the rule is kept."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_jsonl
from keyed_answers import ASKING, END, FILLERS, PLANTED, TARGET_FILLERS, draw, save_planted, words
from planting import assert_found
from test_causal_tasks import ANSWERS, invoke

from tapioca_export.artifacts import Benchmark, Export, Report, Selection, read

MARK = 91  # what is written begins with it; the harm has it as well, and no answer
FORMLESS = [MARK, 92, 93, END]
RULE = r"w87 (w\d+ w[12]\d)\b"  # w87 is the word of `MARK`; answers end in w16 to w23
FAST = ["--iterations", "3", "--warmup", "1", "--num-threads", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained tiny Llama with a layer that spoils the form of its answers to target rows."""
    return save_planted(tmp_path_factory.mktemp("planted"), FORMLESS, lambda answer: [MARK, *answer, END])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, fillers in (("id", FILLERS), ("target", TARGET_FILLERS)):
        generator = random.Random(name)
        pairs = [draw(generator, fillers) for _ in range(120)]
        records = [{"prompt": words([*text, ASKING]), "answer": words(answer)} for text, answer in pairs]
        found[name] = write_jsonl(tmp_path / f"{name}.jsonl", records)
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("written")
def test_the_layer_that_spoils_the_form_is_found_and_the_report_says_what_it_mended(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = assert_found(checkpoint, files, PLANTED, out, max_new_tokens=6, extract=RULE)
    target, id_ = found.accuracy["target"], found.accuracy["id"]
    assert (target.metric, target.n) == ("exact_match", 60)
    assert target.pruned > target.original + 0.5
    assert target.invalid is not None
    assert target.invalid.original > 30 > 10 > target.invalid.pruned
    assert id_.invalid is not None
    assert (1 - target.original) * target.n >= target.invalid.original  # an invalid answer is wrong
    selection = read(out / "selection.json", Selection)
    assert selection.invalid is not None
    assert selection.invalid.original > 30 > 10 > selection.invalid.pruned
    assert (selection.prompting.max_new_tokens, selection.prompting.extract) == (6, RULE)
    said = f"{target.invalid.original:.0f} of 60 before, {target.invalid.pruned:.0f} after"
    assert any(said in finding for finding in read(out / "report.json", Report).findings)
    again = invoke(
        "benchmark", out / "original/onnx", out / "pruned/onnx", "--id", files["id"],
        "--target", files["target"], "-o", tmp_path / "again", *FAST,
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert read(tmp_path / "again/benchmark.json", Benchmark).accuracy == found.accuracy
    assert f"target: invalid answers {target.invalid.original:.0f} -> " in again.output


@pytest.mark.slow
@pytest.mark.xdist_group("written")
def test_stages_one_by_one_keep_the_rule(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    data = ["-t", ANSWERS, "--num-threads", 1, "--id", files["id"], "--target", files["target"]]
    rule = ["--max-new-tokens", 6, "--extract", RULE]
    selected, pruned = tmp_path / "selected", tmp_path / "pruned"
    steps = [
        ("select", "-m", checkpoint, *data, *rule, "-o", selected, "--max-drop-layers", 1),
        ("prune", "-m", checkpoint, *data, "--selection", selected / "selection.json", "-o", pruned),
        ("export", "-m", pruned, *data, "-o", tmp_path / "exports", "--format", "onnx",
         "--format", "torchscript"),
    ]  # fmt: skip
    results = [invoke(*step) for step in steps]
    assert [result.exit_code for result in results] == [0, 0, 0], [result.output for result in results]
    assert "invalid answers: " in results[0].output
    for format_ in ("onnx", "torchscript"):
        prompting = read(tmp_path / "exports" / format_ / "export.json", Export).prompting
        assert (prompting.max_new_tokens, prompting.extract) == (6, RULE)
    refused = invoke("export", "-m", pruned, *data, "--max-new-tokens", 9, "-o", tmp_path / "other")
    assert "was made with other prompts or another rule for answers" in refused.stderr
    unmatched = ["--max-new-tokens", 1, "--extract", "no such answer"]
    nothing = invoke("select", "-m", checkpoint, *data, *unmatched, "-o", tmp_path / "nothing")
    assert "No answer of the original matches --extract" in nothing.stdout
    plan = invoke("select", "--dry-run", "-m", checkpoint, *data, *rule, "-o", tmp_path / "plan")
    assert plan.exit_code == 1
    assert "a model that writes its answers cannot be told beforehand" in plan.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("written")
def test_a_search_that_was_killed_resumes_with_the_rows_that_it_wrote(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["select", "-m", checkpoint, "-t", ANSWERS, "--num-threads", 1, "--max-drop-layers", 1,
                 "--id", files["id"], "--target", files["target"], "--max-new-tokens", 6, "--extract", RULE,
                 "-o", tmp_path / "out"]  # fmt: skip
    whole = invoke(*arguments)
    assert whole.exit_code == 0, whole.output
    first = read(tmp_path / "out/selection.json", Selection)
    journal = (tmp_path / "out/search.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / ".out.tapioca-partial").mkdir()
    (tmp_path / ".out.tapioca-partial/search.jsonl").write_bytes(b"".join(journal[: len(journal) // 2]))
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    (tmp_path / "out").rmdir()
    assert invoke(*arguments).exit_code == 0
    again = read(tmp_path / "out/selection.json", Selection)
    assert replace(again, cost=None) == replace(first, cost=None)
    assert again.cost is not None
    assert first.cost is not None
    assert again.cost.layer_forwards == first.cost.layer_forwards
