"""Tiny models of every family, and samples for them; no network, CPU, seeded."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import re
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two test processes must not spin on two cores
# Ray reads it when it is first imported, which some tests do before the engine could.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from forbidding import forbid_network_everywhere
from forking import fork_measures, fork_proofs
from quickening import collect_less, quicken
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from tapioca_export import pipeline, steps
from tapioca_export.benchmarking import memory
from tapioca_export.cli import main
from tapioca_export.models import LoadedModel, LoadOptions, load_model, load_processor, proof
from tapioca_export.polynomial import PolynomialConfig, PolynomialModel, sample_prompts
from tapioca_export.tasks import TASKS, Processor

pytest.register_assert_rewrite("planting")

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = [f"w{i}" for i in range(92)]
LABELS = ("negative", "neutral", "positive")
NUM_LAYERS = 4
TOKEN = "hf_ThisTokenIsNobodysBusiness0123456789"

_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
_BASE = {
    "vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS, "max_position_embeddings": 64, **_TOKENS,
}  # fmt: skip
_DECODER = {**_BASE, "num_key_value_heads": 2}
# Sequences in the tests are longer than any sliding window: else a wrong layer pattern goes unnoticed.
FAMILIES: dict[str, dict[str, object]] = {
    "bert": _BASE,
    "roberta": {**_BASE, "max_position_embeddings": 66},
    "distilbert": {
        "vocab_size": 128, "dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": NUM_LAYERS,
        "max_position_embeddings": 64, "pad_token_id": 0,
    },
    "electra": {**_BASE, "embedding_size": 16},
    "modernbert": {**_BASE, "local_attention": 4, "global_attn_every_n_layers": 2},
    "gpt2": {
        "vocab_size": 128, "n_embd": 32, "n_head": 4, "n_layer": NUM_LAYERS, "n_positions": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama": _DECODER,
    "qwen2": {
        **_DECODER, "vocab_size": 300, "use_sliding_window": True, "sliding_window": 4,
        "max_window_layers": 2,
    },
}  # fmt: skip
DECODERS: dict[str, dict[str, object]] = {
    **{family: {**FAMILIES[family], "vocab_size": 128} for family in ("gpt2", "llama", "qwen2")},
    "bloom": {
        "vocab_size": 128, "hidden_size": 32, "n_head": 4, "n_layer": NUM_LAYERS, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gemma2": {**_DECODER, "head_dim": 8, "sliding_window": 64},
    "gpt_neox": _BASE,
    "mistral": {**_DECODER, "sliding_window": None},
    "opt": {**_BASE, "ffn_dim": 64, "word_embed_proj_dim": 32},
}  # fmt: skip
ALL_FAMILIES = (*FAMILIES, "polynomial")
THREE_FAMILIES = ("bert", "llama", "polynomial")


def make_model(family: str, **overrides: object) -> transformers.PreTrainedModel:
    """Build a tiny random model whose layers all matter."""
    torch.manual_seed(0)
    if family == "polynomial":
        config = PolynomialConfig(
            vocab_size=1, n_positions=40, n_embd=32, n_layer=NUM_LAYERS, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=None, eos_token_id=None, **overrides,
        )  # fmt: skip
        network = PolynomialModel(config)
    else:
        config = AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
        config.num_labels = len(LABELS)
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {name: i for i, name in enumerate(LABELS)}
        network = AutoModelForSequenceClassification.from_config(config)
    return awaken(network)


def make_decoder(family: str, **overrides: object) -> transformers.PreTrainedModel:
    """Build a tiny random causal language model whose layers all matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**DECODERS[family], **overrides})
    return awaken(AutoModelForCausalLM.from_config(config))


def awaken(network: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Make weights large: the default makes every layer nearly an identity, and dropping one invisible."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.15)
    return network.eval()


def make_tokenizer(family: str) -> transformers.PreTrainedTokenizerBase:
    """Build a word-level tokenizer with a BERT-like template; byte-level for Qwen2, which insists."""
    if family == "qwen2":
        tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        return Qwen2Tokenizer(
            vocab={token: i for i, token in enumerate(tokens)}, merges=[], pad_token="[PAD]",
            eos_token="[SEP]", unk_token="[UNK]", model_max_length=64,
        )  # fmt: skip
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def processor_of(
    network: transformers.PreTrainedModel, tokenizer: Any, task: str, **changes: Any
) -> Processor:
    """Return what a folder of both is read with: some types of models read tokenizers in their own way."""
    with tempfile.TemporaryDirectory() as folder:
        network.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        read = load_processor(TASKS[task], folder, network.config, LoadOptions(local_files_only=True))
    return replace(read, folder=network.config.model_type, **changes)


def save_model(folder: Path, family: str, **overrides: object) -> Path:
    """Save a tiny model with its tokenizer."""
    make_model(family, **overrides).save_pretrained(folder)
    if family != "polynomial":
        make_tokenizer(family).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the checkpoint folder of a tiny model of a family; do not write in it."""
    folders: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family not in folders:
            folders[family] = save_model(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return checkpoint


def complaint(result: Result) -> list[str]:
    """Return the lines of a command's stderr but those that say what it is at."""
    return [line for line in result.stderr.splitlines() if not re.match(r"\[\d+:\d\d\] \w", line)]


def text_records(num_rows: int, seed: int, *, labelled: bool = True) -> list[dict[str, str]]:
    """Make records of random words, 1 to 40 of them, labelled by their first word."""
    generator = random.Random(seed)
    records = []
    for _ in range(num_rows):
        words = [generator.choice(WORDS) for _ in range(generator.randint(1, 40))]
        record = {"text": " ".join([*words, f"w{generator.randrange(92)}", f"n{generator.randrange(10**6)}"])}
        if labelled:
            record["label"] = LABELS[int(words[0][1:]) % len(LABELS)]
        records.append(record)
    return records


def prompt_records(num_rows: int, seed: int, coefficient_scale: float = 1.0) -> list[dict[str, list[float]]]:
    """Make prompts of the embedded example's task."""
    prompts = sample_prompts(num_rows, seed, coefficient_scale=coefficient_scale)
    return [{"x": p[0::2].tolist(), "y": p[1::2].tolist()} for p in prompts]


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sample_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Return ID and target files of 64 rows each, fit for a family."""
    folder = tmp_path_factory.mktemp("samples")

    def files(family: str) -> dict[str, Path]:
        kind = "prompts" if family == "polynomial" else "texts"
        paths = {name: folder / f"{name}-{kind}.jsonl" for name in ("id", "target")}
        for seed, (name, path) in enumerate(paths.items()):
            if not path.exists():
                scale = 3.0 if name == "target" else 1.0
                rows = prompt_records(64, seed, scale) if kind == "prompts" else text_records(64, seed)
                write_jsonl(path, rows)
        return paths

    return files


@pytest.fixture(scope="session")
def held_when_loading() -> list[bool]:
    """Return whether a model was still in memory at each time that `finished` loaded one."""
    return []


@pytest.fixture(scope="session")
def bars_of_files() -> list[Any]:
    """Return the bar of the files that `finished` exported."""
    return []


@pytest.fixture(scope="session")
def finished(
    tiny: Callable[[str], Path],
    held_when_loading: list[bool],
    bars_of_files: list[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the run folder of a tiny BERT that lost two layers; leave it as it is.

    It ran with a token, and could not have reached the network. What it said is in `said.txt` beside it.
    """
    folder = tmp_path_factory.mktemp("run")
    files = {
        name: write_jsonl(folder / f"{name}.jsonl", text_records(80, seed))
        for seed, name in ((11, "id"), (12, "target"))
    }
    arguments = [
        "run", "-m", tiny("bert"), "--id", files["id"], "--target", files["target"], "-o", folder / "out",
        "--epsilon", 1, "--pick", 2, "--format", "torchscript", "--format", "pt2", "--tune",
        "--tune-seconds", 1, "--iterations", 5, "--warmup", 1, "--num-threads", 1,
        "--local-files-only",
    ]  # fmt: skip
    networks: list[weakref.ref[Any]] = []

    def load(*given: Any) -> LoadedModel:
        gc.collect()
        held_when_loading.append(any(network() is not None for network in networks))
        model = load_model(*given)
        networks.append(weakref.ref(model.network))
        return model

    exporting_bar = steps.exporting_bar

    def bar(num_layers: int) -> Any:
        bars_of_files.append(exporting_bar(num_layers))
        return bars_of_files[-1]

    logged: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_model", load)
        patch.setattr(steps, "exporting_bar", bar)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.setenv(name, TOKEN)
        forbid_network_everywhere(patch)
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    logging.getLogger().removeHandler(handler)
    (folder / "said.txt").write_text("\n".join([result.output, *logged]), encoding="utf-8")
    assert result.exit_code == 0, result.output
    assert str((folder / "out" / "report.html").resolve()) in result.stdout
    return folder / "out"


@pytest.fixture(scope="session", autouse=True)
def fresh_process() -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Fork the process of each proof, rather than start it; returns what starts it for users."""
    started = proof._run_fresh
    with pytest.MonkeyPatch.context() as patch:
        fork_proofs(patch)
        yield started


@pytest.fixture(scope="session", autouse=True)
def forked_measures() -> Iterator[int]:
    """Measure memory and load time once, in a fork, unless `started_measures` is asked for.

    Returns:
        How often they are measured for users.
    """
    often = memory.NUM_CHILDREN
    with pytest.MonkeyPatch.context() as patch:
        fork_measures(patch)
        yield often


@pytest.fixture
def started_measures(forked_measures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure memory and load time in processes that start Python, as often as for users."""
    monkeypatch.setattr(memory, "NUM_CHILDREN", forked_measures)
    monkeypatch.setattr(memory, "subprocess", subprocess)


@pytest.fixture(scope="session", autouse=True)
def quick_exports() -> Iterator[None]:
    """Pay once a process for what is the same at every export."""
    collect_less()
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep results to the bit the same, and the tests from fighting for two cores."""
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, and make what a file's tests share once, in one of two processes."""
    longest = ("test_real_model.py", "test_end_to_end.py", "test_docs.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else 3)
    for item in items:
        if item.get_closest_marker("xdist_group") is None and _shares_with_its_file(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _shares_with_its_file(item: pytest.Item) -> bool:
    fixtures = [fixture for found in item._fixtureinfo.name2fixturedefs.values() for fixture in found]
    return any(
        fixture.scope != "function" and fixture.baseid == item.nodeid.split("::")[0] for fixture in fixtures
    )
