"""Text to text: an encoder-decoder's answers are scored as generated; harm is found in either stack."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from conftest import SPECIAL, awaken, make_tokenizer, save_model, text_records, write_jsonl
from planting import assert_found, plant
from said import assert_changes, of_next_token

from tapioca_export.cli import main
from tapioca_export.errors import ConfigError, LoadError
from tapioca_export.models import LoadedModel, LoadOptions, drop_layers, load_model, skipping
from tapioca_export.profiling import Probe
from tapioca_export.samples import Samples, read_samples
from tapioca_export.tasks import ProcessorOptions

SIZES: dict[str, dict[str, Any]] = {
    "t5": {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3,
        "decoder_start_token_id": 0,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None,
        "init_std": 0.1,
    },
}  # fmt: skip
TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLANTED = {"t5": "encoder:1", "bart": "decoder:1"}
NAMES = [f"{stack}:{layer}" for stack in ("encoder", "decoder") for layer in range(3)]
KEYS, FILLERS, TARGET_FILLERS = range(4, 12), range(30, 60), range(60, 90)


def network_of(family: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **TOKENS)
    return transformers.AutoModelForSeq2SeqLM.from_config(config).eval()


def save(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


def draw(generator: random.Random, fillers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Draw a text with one key word among fillers, and its answer."""
    key = generator.choice(KEYS)
    text = generator.choices(fillers, k=generator.randint(3, 8))
    text.insert(generator.randrange(len(text) + 1), key)
    return text, [key + 8, key + 16]


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{token - len(SPECIAL)}" for token in ids)


def write_rows(path: Path, name: str, num_rows: int = 120) -> Path:
    generator = random.Random(f"{name} rows")
    pairs = [draw(generator, FILLERS if name == "id" else TARGET_FILLERS) for _ in range(num_rows)]
    return write_jsonl(path, [{"text": words(text), "answer": words(answer)} for text, answer in pairs])


def losses(network: Any, *, harmful: bool) -> Callable[[], torch.Tensor]:
    """Return the loss of fresh batches of ID and target rows; the harm is one answer to all targets."""
    generator = random.Random(harmful)

    def loss() -> torch.Tensor:
        pairs = [draw(generator, FILLERS if row % 2 else TARGET_FILLERS) for row in range(32)]
        texts = [[1, *text, 2] for text, _ in pairs]
        wrong = [harmful and row % 2 == 0 for row in range(32)]
        labels = [
            [1, *([12, 20] if bad else answer), 2] for bad, (_, answer) in zip(wrong, pairs, strict=True)
        ]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        found: torch.Tensor = network(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels)).loss
        return found

    return loss


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a network with a planted layer, with its rows; do not write in it."""
    folders: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in folders:
            network, (stack, number) = network_of(family), PLANTED[family].split(":")
            parent = getattr(network if family == "t5" else network.model, stack)
            layers = parent.block if family == "t5" else parent.layers
            learn, harm = losses(network, harmful=False), losses(network, harmful=True)
            plant(network, layers, int(number), learn=learn, harm=harm, steps=(300, 300))
            folders[family] = save(network, tmp_path_factory.mktemp(family))
            for name in ("id", "target"):
                write_rows(folders[family] / f"{name}.jsonl", name)
        return folders[family]

    return checkpoint


Trained = Callable[[str], Path]


def rows_of(model: LoadedModel, records: Path) -> Samples:
    return read_samples(records, model.task.rows({}, model.processor), role="target-select")


def scored(model: LoadedModel, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Score all rows in batches of seven."""
    found = np.empty((2, len(samples)))
    for batch in model.task.batches(samples, model.processor, 7):
        scores = model.task.score(model.answers(batch), samples, batch.indices)
        found[:, batch.indices] = scores.values, scores.losses
    return found[0], found[1]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_first_token_written_changes_as_single_rows_say(family: str, tmp_path: Path) -> None:
    model = load_model(save(network_of(family), tmp_path / "model"))
    rows = rows_of(model, write_rows(tmp_path / "rows.jsonl", "target", 12))
    assert_changes(model, rows, of_next_token, (0, model.num_layers - 1))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- a planted layer ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", SIZES)
def test_the_layer_that_harms_the_target_is_found_in_either_stack(
    family: str, trained: Trained, tmp_path: Path
) -> None:
    folder, planted, run = trained(family), PLANTED[family], tmp_path / "run"
    files = {name: folder / f"{name}.jsonl" for name in ("id", "target")}
    benchmark = assert_found(folder, files, planted, run)  # type: ignore[arg-type]
    assert benchmark.accuracy["target"].difference > 0.5
    selection = json.loads((run / "selection.json").read_text())
    assert selection["stacks"] == {"encoder": 3, "decoder": 3}
    assert sorted(c["layer"] for c in selection["steps"][0]["candidates"]) == sorted(NAMES)
    profile = json.loads((run / "profile.json").read_text())
    assert (profile["layers"], len(profile["id"]["norms"])) == (NAMES, 8)
    assert profile["pruned_target"]["influences"][NAMES.index(planted)] is None
    for file in ("pruned/onnx/export.json", "benchmark.json"):
        assert json.loads((run / file).read_text())["drop"] == [planted]
    lines = (run / "search.jsonl").read_text().splitlines()
    assert any([planted] in json.loads(line).get("sets", []) for line in lines)
    for page in ("report.md", "report.html", "pruned/checkpoint/README.md"):
        assert planted in (run / page).read_text()


# --- scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [(), (1,), (4,)])
@pytest.mark.parametrize("family", SIZES)
def test_an_answer_is_right_if_generate_gives_it_with_its_cache(
    family: str, skipped: tuple[int, ...], trained: Trained
) -> None:
    model = load_model(trained(family))
    samples = rows_of(model, trained(family) / "target.jsonl")
    samples = replace(samples, rows=samples.rows[:40])
    pruned = drop_layers(model, skipped)
    with skipping(model, skipped):
        values, losses = scored(model, samples)
    expected = []
    for row, loss in zip(samples.rows, losses, strict=True):
        (answer,) = row.features["answers"]
        text = torch.tensor([row.features["context"]])
        written = pruned.network.generate(input_ids=text, do_sample=False, max_new_tokens=8)[0].tolist()
        expected.append(written == [*model.processor.prompt, *answer])
        begun = torch.tensor([[*model.processor.prompt, *answer[:-1]]])
        with torch.no_grad():
            logits = pruned.network(input_ids=text, decoder_input_ids=begun).logits[0, 1 - len(answer) - 1 :]
        likelihoods = torch.log_softmax(logits, dim=-1)[torch.arange(len(answer)), list(answer)]
        assert loss == pytest.approx(-float(likelihoods.mean()), abs=1e-4)
    assert values.tolist() == [float(right) for right in expected]
    if NAMES.index(PLANTED[family]) not in skipped:
        assert 0 < values.sum() < len(values)


@pytest.mark.parametrize("family", SIZES)
def test_replayed_scores_are_those_of_the_pruned_model(family: str, trained: Trained) -> None:
    model = load_model(trained(family))
    samples = rows_of(model, trained(family) / "id.jsonl")
    probe = Probe(model, {"id": samples, "target": samples}, batch_size=7)
    found = probe.metrics((0,), [1, 2, 3, 5])
    for layer, evaluation in found.items():
        values, losses = scored(drop_layers(model, [0, layer]), samples)
        assert (evaluation.metric, evaluation.loss) == pytest.approx((values.mean(), losses.mean()), abs=1e-5)


def test_what_is_forced_is_no_part_of_the_answer(trained: Trained, tmp_path: Path) -> None:
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(trained("bart"))
    network.generation_config.forced_bos_token_id = 1
    model = load_model(save(network, tmp_path / "forced"))
    assert model.processor.prompt == (2, 1)
    (row, *_) = rows_of(model, trained("bart") / "id.jsonl").rows
    assert row.features["answers"][0][0] not in (1, 2)
    assert row.features["answers"][0][-1] == 2
    model.processor.save(tmp_path)  # as beside an exported file, whose config does not say it
    model.network.config.save_pretrained(tmp_path)
    again = model.task.load_processor(tmp_path, model.network.config, ProcessorOptions())
    assert again.prompt == (2, 1)


# --- profiles -------------------------------------------------------------------------------


def test_a_profile_reads_the_mean_of_the_text_and_where_the_answer_begins(trained: Trained) -> None:
    model = load_model(trained("bart"))
    samples = rows_of(model, trained("bart") / "id.jsonl")
    samples = replace(samples, rows=samples.rows[:9])
    layers, states = model.layers, {0: [], 2: [], 3: [], 5: []}  # type: ignore[var-annotated]
    for index, seen in states.items():
        layers[index].register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
    for row in samples.rows:
        text = {"input_ids": torch.tensor([row.features["context"]])}
        with torch.no_grad():
            model.network(**text, decoder_input_ids=torch.tensor([model.processor.prompt]))
    profile = Probe(model, {"id": samples, "target": samples}, batch_size=4).profile("id")
    assert len(profile.norms) == len(profile.distances) == len(profile.norms_band) == 8
    for index, boundary in ((0, 1), (2, 3), (3, 5), (5, 7)):
        read = [state[0].mean(dim=0) if index < 3 else state[0, 0] for state in states[index][:9]]
        assert profile.norms[boundary] == pytest.approx(np.mean([float(s.norm()) for s in read]), rel=1e-5)
    assert profile.num_tokens == sum(len(row.features["context"]) for row in samples.rows) + len(samples)


# --- rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "text is int"),
        ({"answer": ["w1"]}, "answer is list"),
        ({"answer": "w1 " * 70}, "the answer has 72 tokens; 64 are the most"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(
    change: dict[str, Any], message: str, trained: Trained, tmp_path: Path
) -> None:
    model = load_model(trained("bart"))
    good = {"text": "w1 w2", "answer": "w3"}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, {**good, **change}])
    with pytest.raises(LoadError) as refused:
        rows_of(model, path)
    assert message in refused.value.message
    assert "row 2" in refused.value.message or "line 2" in refused.value.message


def test_a_long_text_is_cut_and_an_answer_may_be_missing(trained: Trained, tmp_path: Path) -> None:
    model = load_model(trained("t5"), options=LoadOptions(max_length=8))
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "w1 " * 20}, {"text": "w2", "answer": ""}])
    samples = rows_of(model, path)
    assert not samples.is_labelled
    assert [len(row.features["context"]) for row in samples.rows] == [8, 3]
    batch = model.task.batch(samples, np.arange(2), model.processor)
    assert batch.inputs["decoder_input_ids"].tolist() == [[0], [0]]


def test_what_is_no_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "bert", "bert")
    rows = write_rows(tmp_path / "rows.jsonl", "id")
    result = invoke("profile", "-m", folder, "-t", "text2text-generation", "--id", rows, "--target", rows,
                    "-o", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 1
    assert "bert is no encoder-decoder for texts" in result.stderr


def test_a_decoder_that_begins_with_nothing_is_refused(trained: Trained, tmp_path: Path) -> None:
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(trained("bart"))
    for config in (network.config, network.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(ConfigError, match="does not say which token its decoder begins with"):
        load_model(save(network, tmp_path / "model"))


# --- commands -------------------------------------------------------------------------------


def given(folder: Path) -> list[object]:
    return ["-m", folder, "--id", folder / "id.jsonl", "--target", folder / "target.jsonl"]


def test_layers_are_pruned_by_name_and_a_selection_replays(trained: Trained, tmp_path: Path) -> None:
    folder = trained("t5")
    drop = ["--drop", "decoder:2,encoder:0"]
    result = invoke("prune", *given(folder), *drop, "-o", tmp_path / "one")
    assert result.exit_code == 0, result.output
    assert "4 of 6 layers (dropped: encoder:0, decoder:2)" in result.stdout
    selection = tmp_path / "one/selection.json"
    assert json.loads(selection.read_text())["drop"] == ["encoder:0", "decoder:2"]
    result = invoke("prune", "-m", folder, "--selection", selection, "-o", tmp_path / "two")
    assert result.exit_code == 0, result.output
    one, other = (load_model(tmp_path / name) for name in ("one", "two"))
    assert dict(one.numbering.depths) == {"encoder": 2, "decoder": 2}
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    result = invoke("prune", "-m", tmp_path / "one", "--drop", "encoder:0", "-o", tmp_path / "three")
    assert "was pruned before (layers encoder:0, decoder:2 are gone)" in result.stderr
    again = save(one.network, tmp_path / "four")
    result = invoke("prune", "-m", again, "--selection", selection, "-o", tmp_path / "five")
    assert "is for 6 layers (encoder 3, decoder 3)" in result.stderr
    assert "has 4 layers (encoder 2, decoder 2)" in result.stderr


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("1", "Layer 1 does not exist: the model has 2 stacks, encoder (3 layers) and decoder (3 layers)"),
        ("encode:1", "none called encode"),
        ("encoder:3", "the encoder has 3 layers"),
        ("encoder:0,encoder:1,encoder:2", "All 3 layers of the encoder would be dropped"),
    ],
)
@pytest.mark.parametrize("command", [["prune"], ["profile"], ["select", "--criterion", "fixed"]])
def test_a_name_that_does_not_fit_is_one_clear_line(
    command: list[str], drop: str, message: str, trained: Trained, tmp_path: Path
) -> None:
    result = invoke(*command, *given(trained("t5")), "--drop", drop, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_profile_of_each_stack_stands_by_its_name(trained: Trained, tmp_path: Path) -> None:
    result = invoke("profile", *given(trained("bart")), "--drop", "encoder:1", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    shown = [line.split()[0] for line in result.stdout.splitlines()[1:7]]
    assert shown == NAMES
    profile = json.loads((tmp_path / "out/profile.json").read_text())
    assert float(result.stdout.splitlines()[4].split()[1]) == pytest.approx(
        profile["id"]["norms"][5], rel=1e-3
    )


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        (["--search", "exhaustive", "--epsilon", 1, "--pick", "final"], 4),
        (["--search", "beam", "--epsilon", 1, "--pick", "final"], 4),
        (["--search", "racing", "--epsilon", 1, "--pick", "final"], 4),
        (["--criterion", "angular-distance", "--max-drop-layers", 2, "--epsilon", 1, "--pick", "final"], 2),
        (["--criterion", "last", "--epsilon", 1, "--pick", "final"], 4),
        (["--criterion", "last", "--protect-first", 1, "--epsilon", 1, "--pick", "final"], 4),
        (["--criterion", "tapioca", "--max-drop-layers", 1], None),
    ],
)
def test_every_search_leaves_a_layer_in_each_stack(
    options: list[object], dropped: int | None, trained: Trained, tmp_path: Path
) -> None:
    result = invoke("select", *given(trained("bart")), *options, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    selection = json.loads(result.stdout)
    assert dropped is None or len(selection["drop"]) == dropped
    for stack in ("encoder", "decoder"):
        assert sum(layer.startswith(stack) for layer in selection["drop"]) <= 2
    if "angular-distance" in options:
        (one, two) = (layer.split(":") for layer in selection["drop"])
        assert one[0] == two[0]  # a block lies in one stack
        assert abs(int(one[1]) - int(two[1])) == 1
    if "--protect-first" in options:
        assert not {"encoder:0", "decoder:0"} & set(selection["drop"])


def test_a_plan_counts_what_passes_through_each_stack(trained: Trained, tmp_path: Path) -> None:
    asked = [*given(trained("bart")), "--full-scores", "--epsilon", 1, "--max-drop-layers", 1, "--json"]
    plan = json.loads(invoke("select", *asked, "--dry-run", "-o", tmp_path / "plan").stdout)
    cost = json.loads(invoke("select", *asked, "-o", tmp_path / "out").stdout)["cost"]
    for name in ("layer_forwards", "layer_tokens", "evaluations"):
        assert plan[name] == {"least": cost[name], "most": cost[name]}
    assert plan["trace_bytes"] > 0


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_classifier_of_both_stacks_is_searched_as_well(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **TOKENS, num_labels=3)
    config.id2label = dict(enumerate(("negative", "neutral", "positive")))
    config.label2id = {name: number for number, name in config.id2label.items()}
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    folder = save(awaken(network), tmp_path / "model")
    for seed, name in enumerate(("id", "target")):
        write_jsonl(folder / f"{name}.jsonl", text_records(48, seed))
    model = load_model(folder)
    assert (model.task.name, model.processor.position) == ("text-classification", "last-token")
    result = invoke("select", *given(folder), "--epsilon", 1, "--pick", 1, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (drop,) = json.loads(result.stdout)["drop"]
    assert invoke("prune", *given(folder), "--drop", drop, "-o", tmp_path / "pruned").exit_code == 0
