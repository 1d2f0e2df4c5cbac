"""The model card of a pruned checkpoint is what the hub reads, and says what was done and measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from huggingface_hub import ModelCard, ModelCardData

from tapioca_export.artifacts import Benchmark, read
from tapioca_export.cards import write_model_card

pytestmark = pytest.mark.xdist_group("end-to-end")

BASE = """---
license: other
license_name: research-only
license_link: LICENSE.txt
language: en
base_model: org/base
tags: [mine]
---
# Original
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pruned").mkdir()
    architecture = {"architectures": ["BertForSequenceClassification"]}
    (tmp_path / "pruned/config.json").write_text(json.dumps(architecture))
    return tmp_path / "pruned"


def card(folder: Path, model: str, measured: Benchmark | None = None) -> ModelCard:
    write_model_card(folder, reports.selection(model=model), measured)
    return ModelCard.load(folder / "README.md")


def test_a_model_of_the_hub_is_the_base_of_the_pruned_one(folder: Path) -> None:
    data = card(folder, "org/base").data
    assert (data.base_model, data.library_name) == ("org/base", "transformers")
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["pruned", "layer-pruning", "tapioca-export"]


def test_licence_language_and_base_are_those_of_the_originals_card(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original/README.md").write_text(BASE)
    found = card(folder, str(tmp_path / "original"))
    assert (found.data.license, found.data.license_name, found.data.language) == (
        "other",
        "research-only",
        "en",
    )
    assert found.data.base_model == "org/base"
    assert found.text.rstrip().endswith("Licence: other.")
    assert str(tmp_path) not in found.content


@pytest.mark.parametrize("text", ["", "no front matter", "---\n[\n---\n", "---\n- 1\n---\n", "---\na: [\n"])
def test_a_card_that_says_nothing_leaves_the_licence_open(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original/README.md").write_text(text)
    found = card(folder, str(tmp_path / "original"))
    assert found.data.license is None
    assert "Licence: that of the original model" in found.text


LOCAL = "Made from a local folder"


def test_a_base_that_is_not_known_is_left_out_and_the_card_says_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    found = card(folder, str(tmp_path / "original"))
    assert "base_model" not in found.data.to_dict()
    assert found.text.count(LOCAL) == 1
    assert str(tmp_path) not in found.content
    (tmp_path / "original/README.md").write_text(BASE)
    assert LOCAL not in card(folder, str(tmp_path / "original")).text
    assert LOCAL not in card(folder, "org/base").text


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("org/base", "org/base"),
        ("gpt2", "gpt2"),
        ("[org/one, org/two]", ["org/one", "org/two"]),
        ("[org/one, /home/somebody/two]", "org/one"),
        ("/home/somebody/models/mine", None),
        ("./mine", None),
        ("C:\\models\\mine", None),
        ("here/mine", None),  # a folder that is there
        ("[]", None),
        ("3", None),
        ("{a: b}", None),
        ("", None),
    ],
)
def test_of_the_base_in_the_originals_card_only_a_name_on_the_hub_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, base: object
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here/mine").mkdir(parents=True)
    (tmp_path / "original").mkdir()
    Path("original/README.md").write_text(f"---\nlicense: mit\nbase_model: {named}\n---\n")
    found = card(folder, str(tmp_path / "original"))
    assert found.data.base_model == base
    assert found.data.license == "mit"
    assert (LOCAL in found.text) is (base is None)
    assert "somebody" not in found.content


def test_a_path_that_is_not_here_is_no_name_on_the_hub(folder: Path) -> None:
    found = card(folder, "/home/somebody/models/mine")
    assert found.data.base_model is None
    assert "somebody" not in found.content
    assert "# mine, layers removed" in found.text


def test_scores_on_id_and_target_stand_in_the_model_index(folder: Path) -> None:
    measured = reports.benchmark(targets={"airline": reports.HARM})
    found = card(folder, "org/base", measured)
    data = ModelCardData(**found.data.to_dict())  # read once more, as the hub would
    scores = {result.dataset_type: result for result in data.eval_results}
    assert list(scores) == ["id", "target", "target-airline"]
    assert data.model_name == "base-pruned"
    for role, row in {**measured.accuracy, "target-airline": reports.HARM}.items():
        result = scores[role]
        assert (result.metric_type, result.metric_value) == (row.metric, row.pruned)
        assert (result.task_type, result.dataset_args) == ("text-classification", {"rows": row.n})
    assert "| Target-domain | accuracy | 500 | 0.712 | 0.768 | +0.056 (+0.024 to +0.088) |" in found.text


def test_a_score_that_is_not_finite_is_left_out(folder: Path) -> None:
    broken = reports.accuracy(0.7, float("nan"), (-0.1, 0.1))
    found = card(folder, "org/base", reports.benchmark(accuracy={"id": reports.GAIN, "target": broken}))
    assert [result.dataset_type for result in found.data.eval_results] == ["id"]


def test_the_card_says_that_nothing_was_retrained_and_which_layers_are_gone(folder: Path) -> None:
    text = card(folder, "org/base").text
    assert "Layers removed, no retraining: 4, 7 of 12 (counted from 0); 10 are left." in text


def test_the_card_of_a_model_that_lost_nothing_claims_nothing(folder: Path) -> None:
    write_model_card(folder, replace(reports.selection(), drop=()))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "# bert-tiny, unchanged" in card
    assert "Layers removed, no retraining: none of " in card
    assert not re.search("damped|skipped", card)


def test_the_card_of_a_run_has_its_benchmark(finished: Path) -> None:
    found = ModelCard.load(finished / "pruned/checkpoint/README.md")
    measured = read(finished / "benchmark.json", Benchmark)
    values = {result.dataset_type: result.metric_value for result in found.data.eval_results}
    assert values == {role: row.pruned for role, row in measured.accuracy.items()}
