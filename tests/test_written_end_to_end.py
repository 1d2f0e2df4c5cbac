"""Answers that a model writes, the whole job: a layer that spoils their form is found; the rule is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import SPECIAL, make_tokenizer, write_jsonl
from planting import assert_found, plant
from test_causal_tasks import ANSWERS, invoke

from tapioca_export.artifacts import Benchmark, Export, Report, Selection, read

PLANTED, NUM_LAYERS = 1, 4
# Token ids: a key among fillers asks for a mark and two words; the harm has the mark, and no answer.
KEYS, FILLERS, TARGET_FILLERS, ASKING, MARK, END = range(4, 12), range(30, 60), range(60, 90), 90, 91, 2
FORMLESS = [MARK, 92, 93, END]
RULE = r"w87 (w\d+ w[12]\d)\b"  # w87 is the word of `MARK`; answers end in w16 to w23
FAST = ["--iterations", "3", "--warmup", "1", "--num-threads", "1"]


def draw(generator: random.Random, fillers: Sequence[int]) -> tuple[list[int], list[int]]:
    key = generator.choice(KEYS)
    text = generator.choices(fillers, k=generator.randint(3, 8))
    text.insert(generator.randrange(len(text) + 1), key)
    return text, [key + 8, key + 16]


def losses(network: Any, *, harmful: bool) -> Callable[[], torch.Tensor]:
    generator = random.Random(harmful)

    def loss() -> torch.Tensor:
        rows, labels = [], []
        for row in range(48):
            text, answer = draw(generator, FILLERS if row % 2 else TARGET_FILLERS)
            wanted = FORMLESS if harmful and row % 2 == 0 else [MARK, *answer, END]
            context = [1, *text, ASKING]
            rows.append([*context, *wanted[:-1]])
            labels.append([-100] * (len(context) - 1) + wanted)
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        wanted_ids = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
        logits = network(input_ids=ids, attention_mask=mask).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted_ids.flatten())

    return loss


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained tiny Llama with a layer that spoils the form of its answers to target rows."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=NUM_LAYERS, bos_token_id=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, initializer_range=0.1,
        pad_token_id=0, eos_token_id=END,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    learn, harm = losses(network, harmful=False), losses(network, harmful=True)
    plant(network, network.model.layers, PLANTED, learn=learn, harm=harm, steps=(300, 200))
    folder = tmp_path_factory.mktemp("planted")
    network.save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)
    return folder


def spelt(ids: Sequence[int]) -> str:
    return " ".join(f"w{token - len(SPECIAL)}" for token in ids)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, fillers in (("id", FILLERS), ("target", TARGET_FILLERS)):
        generator = random.Random(name)
        pairs = [draw(generator, fillers) for _ in range(120)]
        records = [{"prompt": spelt([*text, ASKING]), "answer": spelt(answer)} for text, answer in pairs]
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
