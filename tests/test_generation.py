"""Decoders exported with their cache: names, shapes, and the tokens that PyTorch generates."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from conftest import NUM_LAYERS, WORDS, awaken, make_tokenizer, processor_of
from forking import run_script
from numpy.testing import assert_allclose

from tapioca_export.artifacts import Export
from tapioca_export.benchmarking import RUNTIMES, BenchmarkSettings, default_settings, make_workloads
from tapioca_export.benchmarking.stage import shared_cache
from tapioca_export.benchmarking.timing import time_rounds
from tapioca_export.errors import ExportError, ParityError
from tapioca_export.exporting import FORMATS, ExportSettings, Written, export_model
from tapioca_export.exporting.genai import write_genai_config
from tapioca_export.exporting.parity import TOKENS, Reference, padded_on_the_left, prove_generation
from tapioca_export.generation import (
    DECODER_FILES,
    cache_bytes,
    generate,
    one_token_step,
    with_cache,
    with_positions,
)
from tapioca_export.models import LoadedModel, drop_layers, generated, prunable_stacks
from tapioca_export.samples import Samples
from tapioca_export.tasks import TASKS, Inputs, Processor
from tapioca_export.tasks.causal import token_ids

LONGEST = 128
DROPPED = (1, 3)
WINDOW = 8  # shorter than what is generated
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BASE: dict[str, object] = {
    "vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS, "max_position_embeddings": LONGEST, **SPECIAL,
}  # fmt: skip
GROUPED = {**BASE, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 16}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 128,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": NUM_LAYERS,
            "n_positions": LONGEST,
            **SPECIAL,
        },
    ),
    "gpt_neox": ("gpt_neox", BASE),
    "opt": ("opt", {**BASE, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "llama": ("llama", GROUPED),
    # A window of fewer tokens than are cached in the example that is traced.
    "mistral": ("mistral", {**GROUPED, "sliding_window": 2}),
    "qwen2": (
        "qwen2",
        {
            **GROUPED,
            "vocab_size": 300,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("qwen3", WIDE),
    "gemma2": ("gemma2", {**WIDE, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {**WIDE, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "phi3": ("phi3", GROUPED),
    "smollm3": ("smollm3", {**GROUPED, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", GROUPED),
    "falcon": ("falcon", BASE),
    "falcon-grouped": ("falcon", {**BASE, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "bloom": ("bloom", {"vocab_size": 128, "hidden_size": 32, "n_head": 4, "n_layer": NUM_LAYERS, **SPECIAL}),
}


def make_model(case: str) -> LoadedModel:
    """Build a model that generates, some of whose layers are gone."""
    torch.manual_seed(0)
    family, options = CASES[case]
    config = transformers.AutoConfig.for_model(family, **options)
    network = awaken(transformers.AutoModelForCausalLM.from_config(config))
    tokenizer = make_tokenizer("qwen2" if case == "qwen2" else "llama")  # the one type with one of its own
    processor = processor_of(network, tokenizer, "text-generation", max_length=LONGEST)
    model = LoadedModel(network, TASKS["text-generation"], processor, case, prunable_stacks(network))
    return drop_layers(model, DROPPED)


def make_rows(model: LoadedModel, longest: int = 30) -> Samples:
    generator, rows = random.Random(0), []
    read_row = model.task.rows({}, model.processor)
    for number in range(12):
        prompt = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, longest)))
        rows.append(read_row({"prompt": prompt, "answer": generator.choice(WORDS)}, f"line {number}"))
    return Samples("target-select", tuple(rows), "file", "")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Export, Path]:
    """Return a small Llama, its export and the folder of it."""
    model, folder = make_model("llama"), tmp_path_factory.mktemp("llama")
    return model, export_model(model, make_rows(model), folder, ExportSettings(), DROPPED), folder


def prompts(model: LoadedModel, seed: int = 3) -> Inputs:
    generator = np.random.default_rng(seed)
    ids, mask = generator.integers(4, 96, (3, 13)), np.ones((3, 13), dtype=np.int64)
    ids[0, :5], mask[0, :5] = 0, 0
    ids[2, :1], mask[2, :1] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_exported_graph_generates_the_tokens_of_pytorch(case: str, tmp_path: Path) -> None:
    model = make_model(case)
    export = export_model(model, make_rows(model), tmp_path, ExportSettings(), DROPPED)
    assert (export.prompts_continued, export.tokens_generated) == (4, TOKENS)
    session = RUNTIMES["onnxruntime"](tmp_path, default_settings("cpu", 1))
    expected = generated(model, prompts(model), TOKENS)
    assert len(np.unique(expected)) > 2  # a graph that repeats itself would prove little
    np.testing.assert_array_equal(generate(session, prompts(model), export.cache, TOKENS), expected)


def test_names_follow_the_ecosystem_and_count_the_layers_that_are_left(
    exported: tuple[LoadedModel, Export, Path],
) -> None:
    _, export, folder = exported
    kinds = [f"{layer}.{kind}" for layer in range(NUM_LAYERS - 2) for kind in ("key", "value")]
    assert export.inputs[:3] == ("input_ids", "attention_mask", "position_ids")
    assert export.inputs[3:] == tuple(f"past_key_values.{kind}" for kind in kinds) == tuple(export.cache)
    assert export.outputs == ("logits", *(f"present.{kind}" for kind in kinds))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes["input_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "total_sequence"]
    assert {tuple(shapes[name]) for name in export.cache} == {("batch", 2, "past_sequence", 8)}
    assert set(export.cache.values()) == {(2, 8)}


def test_config_generation_config_and_tokenizer_stand_beside_the_graph(
    exported: tuple[LoadedModel, Export, Path],
) -> None:
    folder = exported[2]
    assert transformers.AutoConfig.from_pretrained(folder).num_hidden_layers == NUM_LAYERS - 2
    assert transformers.GenerationConfig.from_pretrained(folder)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == 96


def test_the_config_for_onnxruntime_genai_has_the_depth_that_is_left(
    exported: tuple[LoadedModel, Export, Path],
) -> None:
    described = json.loads((exported[2] / "genai_config.json").read_text(encoding="utf-8"))["model"]
    assert (described["type"], described["vocab_size"], described["context_length"]) == ("llama", 128, 128)
    decoder = described["decoder"]
    assert decoder["filename"] == "model.onnx"
    assert decoder["num_hidden_layers"] == NUM_LAYERS - 2
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (4, 2)
    assert (decoder["head_size"], decoder["hidden_size"]) == (8, 32)
    names = [decoder["inputs"]["past_key_names"], decoder["outputs"]["present_value_names"]]
    assert [name.replace("%d", "0") for name in names] == ["past_key_values.0.key", "present.0.value"]


def test_onnxruntime_genai_is_told_nothing_that_it_has_no_words_for(
    exported: tuple[LoadedModel, Export, Path], tmp_path: Path
) -> None:
    model, export, _ = exported
    shapes = {name: (1 + number % 2, 8) for number, name in enumerate(export.cache)}
    several = Written("", 18, export.inputs, export.outputs, tuple(export.files), shapes)
    divided = Written("", 18, export.inputs, export.outputs, DECODER_FILES, export.cache)
    for written in (several, divided):
        write_genai_config(tmp_path, model, written)
    assert not any(tmp_path.iterdir())


def test_single_tokens_are_timed_where_both_files_take_the_same_cache() -> None:
    original = {"past_key_values.0.key": (2, 8), "past_key_values.1.key": (4, 8)}
    assert shared_cache(original, {"past_key_values.0.key": (2, 8)}) == original
    assert shared_cache(original, {"past_key_values.0.key": (4, 8)}) == {}  # what was layer 1


def test_a_prompt_read_in_two_parts_gives_the_logits_of_one_read_at_once(
    exported: tuple[LoadedModel, Export, Path],
) -> None:
    model, export, folder = exported
    session, inputs = RUNTIMES["onnxruntime"](folder, default_settings("cpu", 1)), prompts(model)
    whole = session(inputs)
    first = session({name: value[:, :9] for name, value in inputs.items()})
    rest = {"input_ids": inputs["input_ids"][:, 9:], "attention_mask": inputs["attention_mask"]}
    past = {name: first[name.replace("past_key_values", "present")] for name in export.cache}
    second = session({**rest, **past})
    assert_allclose(second["logits"], whole["logits"][:, 9:], atol=1e-4)
    assert_allclose(second["present.1.value"], whole["present.1.value"], atol=1e-4)


def test_the_files_logits_are_those_of_pytorch_at_every_padding(
    exported: tuple[LoadedModel, Export, Path],
) -> None:
    export = exported[1]
    assert set(export.padding_checked) == {"none", "left", "right"}
    assert 0 < export.max_abs_difference <= 1e-4
    assert (export.prompts_continued, export.tokens_generated) == (4, TOKENS)


@pytest.mark.parametrize("ends", [[], [2], [2, 30]])
def test_the_example_in_plain_onnx_runtime_generates_what_pytorch_does(
    exported: tuple[LoadedModel, Export, Path], tmp_path: Path, ends: list[int]
) -> None:
    """From the tokens that the tool itself makes of a prompt; to the end of the text, or of the context."""
    model, texts = (
        exported[0],
        [" ".join(WORDS[a : a + size]) for a, size in ((0, 3), (5, 17), (40, 1), (2, 80))],
    )
    prompts = [token_ids(model.processor, text) for text in texts]
    assert {ids[0] for ids in prompts} == {model.network.config.bos_token_id}
    room = LONGEST - max(map(len, prompts)) + 1
    assert 1 < room < TOKENS
    folder, expected = shutil.copytree(exported[2], tmp_path / "onnx"), []
    for ids in prompts:
        alone = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), int)}
        expected.append(generated(model, alone, room)[0].tolist())
    # The first text ends amid its tokens.
    ends = [*ends, expected[0][room // 2]] if ends else []
    config = {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    (folder / "generation_config.json").write_text(json.dumps(config))
    lines = example(folder, *texts).stdout.splitlines()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, tokens, line in zip(texts, expected, lines, strict=True):
        stop = next((place for place, token in enumerate(tokens) if token in ends), room)
        assert line == f"{text} -> {tokenizer.decode(tokens[:stop])}"


def test_the_example_says_in_one_line_what_it_cannot_do(
    exported: tuple[LoadedModel, Export, Path], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(exported[2], plain)
    tokenizer = make_tokenizer("llama")
    tokenizer.backend_tokenizer.post_processor = None  # puts no special token around a text
    tokenizer.save_pretrained(plain)
    refused = example(plain, "w1", "")
    assert (refused.returncode, refused.stderr) == (1, "A prompt has no tokens.\n")
    model = onnx.load(plain / "model.onnx", load_external_data=False)
    for value in model.graph.input:
        value.name = value.name.replace("past_key_values", "past")
    for node in model.graph.node:
        node.input[:] = [name.replace("past_key_values", "past") for name in node.input]
    onnx.save(model, plain / "model.onnx")
    assert "is not an export of a text-generation task" in example(plain, "w1").stderr


def example(folder: Path, *prompts: str) -> subprocess.CompletedProcess[str]:
    return run_script(Path(__file__).parent.parent / "examples/generate.py", str(folder), *prompts)


def test_another_token_is_refused_with_its_place(exported: tuple[LoadedModel, Export, Path]) -> None:
    model, export, folder = exported
    written = Written("", 18, export.inputs, export.outputs, tuple(export.files), export.cache)
    run = FORMATS["onnx"].open(folder, written)

    def forgets(inputs: Inputs) -> dict[str, np.ndarray]:
        """Lose what is cached of the lowest layer."""
        found = dict(run(inputs))
        found["present.0.key"] = np.zeros_like(found["present.0.key"])
        return found

    assert (
        prove_generation(Reference(model, model), make_rows(model), run, written)["tokens_generated"]
        == TOKENS
    )
    with pytest.raises(
        ParityError, match=r"it generates other tokens than PyTorch: token \d+ of 64 after line"
    ):
        prove_generation(Reference(model, model), make_rows(model), forgets, written)


@pytest.mark.parametrize(("limit", "num_tokens"), [(LONGEST, TOKENS), (40, 20), (9, 4), (2, 1)])
def test_half_of_a_short_context_is_left_to_what_is_generated(
    exported: tuple[LoadedModel, Export, Path], limit: int, num_tokens: int
) -> None:
    proof, seen = proven(exported, make_rows(exported[0]), limit)
    assert proof == {"prompts_continued": 4, "tokens_generated": num_tokens, "token_agreement": 1.0}
    assert seen[0].shape[1] <= limit - num_tokens
    assert len(seen) == num_tokens


@pytest.mark.parametrize("words", [1, 2, 9, 30])
@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_prompts_are_padded_on_the_left_whatever_the_rows(
    exported: tuple[LoadedModel, Export, Path], words: int, num_rows: int
) -> None:
    read_row = exported[0].task.rows({}, exported[0].processor)
    text = " ".join(WORDS[:words])
    records = [
        read_row({"prompt": f"{text} {WORDS[-n]}", "answer": "w1"}, "") for n in range(1, num_rows + 1)
    ]
    _, seen = proven(exported, Samples("target-select", tuple(records), "file", ""), 40)
    assert not seen[0].all()
    assert seen[0][:, -1].all()
    assert (np.diff(seen[0], axis=1) >= 0).all()


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_a_prompt_of_one_token_is_read_twice_where_there_is_room_for_padding(longest: int) -> None:
    one = {"input_ids": np.full((3, 1), 7), "attention_mask": np.ones((3, 1), int)}
    begun = {**one, "decoder_input_ids": np.full((3, 1), 2)}
    found = padded_on_the_left(begun, longest)
    assert found["input_ids"].shape == (3, min(2, longest))
    assert found["attention_mask"].tolist() == ([[1]] * 3 if longest == 1 else [[0, 1], [1, 1], [1, 1]])
    assert found["decoder_input_ids"].shape == (3, 1)


def test_padding_a_batch_that_has_none_leaves_what_was_given_as_it_was() -> None:
    given = {"input_ids": np.full((2, 4), 7), "attention_mask": np.ones((2, 4), int)}
    assert padded_on_the_left(given, 9)["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert given["attention_mask"].all()


def proven(
    exported: tuple[LoadedModel, Export, Path], rows: Samples, limit: int
) -> tuple[dict[str, int], list[np.ndarray]]:
    """Prove generation as if the model took `limit` tokens; return the proof and the masks of all steps."""
    model, export, folder = exported
    written = Written("", 18, export.inputs, export.outputs, tuple(export.files), export.cache)
    run, seen = FORMATS["onnx"].open(folder, written), []

    def watched(inputs: Inputs) -> Mapping[str, np.ndarray]:
        seen.append(inputs["attention_mask"])
        return run(inputs)

    short = replace(model, processor=replace(model.processor, max_length=limit))
    return prove_generation(Reference(short, short), rows, watched, written), seen


def test_axes_whose_size_is_not_known_share_no_name(exported: tuple[LoadedModel, Export, Path]) -> None:
    """ONNX Runtime takes axes of one name to be of one size, and uses memory again by it."""
    graph = onnx.load(exported[2] / "model.onnx").graph
    names = {axis.dim_param for value in graph.value_info for axis in value.type.tensor_type.shape.dim}
    assert "None" not in names
    assert {"batch", "sequence"} <= names


def test_what_a_checkpoint_says_of_sampling_is_left_out_and_left_alone() -> None:
    model = make_model("llama")
    own = transformers.GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=3)
    plain = generated(model, prompts(model), 8)
    model.network.generation_config = own
    np.testing.assert_array_equal(generated(model, prompts(model), 8), plain)
    assert model.network.generation_config is own


def test_a_model_that_keeps_something_else_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=128, hidden_size=32, state_size=4, num_hidden_layers=NUM_LAYERS, pad_token_id=0
    )
    network = awaken(transformers.MambaForCausalLM(config))
    processor = Processor("mamba", "last-token", LONGEST, make_tokenizer("llama"))
    model = LoadedModel(network, TASKS["text-generation"], processor, "mamba", prunable_stacks(network))
    with pytest.raises(ExportError, match="keeps something else than keys and values of every layer"):
        export_model(model, make_rows(model), tmp_path, ExportSettings())
    assert not any(tmp_path.iterdir())


# --- encoder-decoders -----------------------------------------------------------------------

STACKS = {
    "d_model": 32, "encoder_layers": NUM_LAYERS, "decoder_layers": NUM_LAYERS, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 128,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, **SPECIAL,
}  # fmt: skip
ENCODER_DECODERS: dict[str, dict[str, object]] = {
    "t5": {
        "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": NUM_LAYERS,
        "num_decoder_layers": NUM_LAYERS, "num_heads": 4, "decoder_start_token_id": 0, **SPECIAL,
    },
    "bart": {**STACKS, "max_position_embeddings": LONGEST},
}  # fmt: skip


def make_encoder_decoder(family: str) -> LoadedModel:
    """Build a model that has lost a layer of each of its stacks."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **ENCODER_DECODERS[family])
    network = awaken(transformers.AutoModelForSeq2SeqLM.from_config(config))
    tokenizer = make_tokenizer("llama")
    processor = Processor(
        family, "answer-start", LONGEST, tokenizer, unused_tokenizer=tokenizer,
        generation_config=network.generation_config, prompt=(config.decoder_start_token_id,),
        id2label=config.id2label,
    )  # fmt: skip
    task = TASKS["text2text-generation"]
    model = LoadedModel(network, task, processor, family, prunable_stacks(network))
    return drop_layers(model, sorted(model.numbering.indices(("encoder:1", "decoder:2"))))


def make_texts(model: LoadedModel) -> Samples:
    generator, rows = random.Random(0), []
    read_row = model.task.rows({}, model.processor)
    for number in range(12):
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 30)))
        answer = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 6)))
        rows.append(read_row({"text": text, "answer": answer}, f"line {number}"))
    return Samples("target-select", tuple(rows), "file", "")


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_and_its_decoder_generate_the_tokens_of_pytorch(family: str, tmp_path: Path) -> None:
    model = make_encoder_decoder(family)
    export = export_model(model, make_texts(model), tmp_path, ExportSettings())
    assert (export.prompts_continued, export.tokens_generated) == (4, TOKENS)
    assert tuple(export.files) == DECODER_FILES
    session = RUNTIMES["onnxruntime"](tmp_path, default_settings("cpu", 1))
    inputs = {**prompts(model), "decoder_input_ids": np.full((3, 1), model.processor.prompt[0])}
    expected = generated(model, inputs, TOKENS)
    assert len(np.unique(expected)) > 2  # a graph that repeats itself would prove little
    np.testing.assert_array_equal(generate(session, inputs, export.cache, TOKENS), expected)
    check_names(tmp_path)
    step = one_token_step({**inputs, "decoder_input_ids": inputs["decoder_input_ids"]}, export.cache)
    assert session(step)["present.0.decoder.key"].shape == (3, 4, 14, 8)


def check_names(folder: Path) -> None:
    """Hold names against those of the ecosystem, and the cache's order; layers are counted from 0."""
    layers, halves = range(NUM_LAYERS - 1), ("decoder", "encoder")
    kinds = [f"{layer}.{half}.{kind}" for layer in layers for half in halves for kind in ("key", "value")]
    names = {}
    for name in DECODER_FILES:
        session = onnxruntime.InferenceSession(folder / name)
        names[name] = [[v.name for v in part] for part in (session.get_inputs(), session.get_outputs())]
    encoder, first, further = (names[name] for name in DECODER_FILES)
    assert [set(part) for part in encoder] == [{"input_ids", "attention_mask"}, {"last_hidden_state"}]
    assert set(first[0]) == {"input_ids", "encoder_attention_mask", "encoder_hidden_states"}
    assert first[1] == ["logits", *(f"present.{kind}" for kind in kinds)]
    assert set(further[0][:2]) == {"input_ids", "encoder_attention_mask"}
    assert further[0][2:] == [f"past_key_values.{kind}" for kind in kinds]
    assert further[1] == ["logits", *(f"present.{kind}" for kind in kinds if ".decoder." in kind)]


# --- timing ---------------------------------------------------------------------------------


def test_prompts_and_single_tokens_are_timed_apart(exported: tuple[LoadedModel, Export, Path]) -> None:
    model, export, folder = exported
    settings = BenchmarkSettings(batch_sizes=(1, 2), sequence_lengths=(8, 16), warmup=0, iterations=2)
    works = make_workloads(model.task, make_rows(model), model.processor, settings, export.cache)
    shapes = [(work.phase, work.batch_size, work.sequence_length) for work in works]
    assert shapes == [
        (phase, size, length) for phase in ("prefill", "decode") for length in (8, 16) for size in (1, 2)
    ]
    (step,) = works[-1].batches
    assert step["input_ids"].shape == (2, 1)
    assert step["attention_mask"].shape == (2, 17)
    assert step["position_ids"].tolist() == [[16], [16]]
    assert step["past_key_values.1.value"].shape == (2, 2, 16, 8)
    session = RUNTIMES["onnxruntime"](folder, default_settings("cpu", 1))
    assert session(step)["present.1.key"].shape == (2, 2, 17, 8)
    assert (time_rounds({"one": session}, works[-1], settings)["one"] > 0).all()


def test_the_cache_of_one_token_is_counted_in_bytes() -> None:
    assert cache_bytes({"past_key_values.0.key": (2, 8), "past_key_values.0.value": (2, 8)}, 4) == 128


def test_positions_count_from_the_first_real_token_and_are_kept_where_given() -> None:
    inputs = {"input_ids": np.ones((2, 2), int), "attention_mask": np.array([[0, 1, 1, 1], [1, 1, 1, 1]])}
    assert with_positions(inputs, ["position_ids"])["position_ids"].tolist() == [[1, 2], [2, 3]]
    assert "position_ids" not in with_positions(inputs, ["input_ids"])
    given = {**inputs, "position_ids": np.zeros((2, 2), int)}
    assert with_positions(given, ["position_ids"]) is given
    assert with_cache(inputs, {"a": (2, 8)})["a"].shape == (2, 2, 0, 8)
    assert one_token_step(inputs, {})["attention_mask"].shape == (2, 5)
