"""Do pruned models export right? Every family that exporters are usually tried on, tiny, from end to end.

    python benchmarks/exports.py              # print the table, some minutes on two cores
    python benchmarks/exports.py --write      # and write it to docs/exports.md and exports.json
    python benchmarks/exports.py bert t5      # some families only

A checkpoint with random weights and four layers a stack loses one layer of each stack (`prune`), and is
exported to ONNX (`export`), which compares the file with PyTorch on rows of other shapes than the one it
was traced on, padded left and right, and, where the model generates, 64 greedy tokens with its cache.
Exit code 1 if a family fails.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from recording import origin, put_between
from tiny_networks import one_line, small_config
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm

from tapioca_export import RunConfig, TapiocaError, export, prune

HERE = Path(__file__).parent
PAGE, RESULTS = HERE.parent / "docs" / "exports.md", HERE / "exports.json"
BEGIN, END = "<!-- begin: python benchmarks/exports.py --write -->", "<!-- end -->"
CLASSIFIERS = ("bert", "roberta", "distilbert", "deberta-v2", "electra", "albert", "modernbert")
DECODERS = (
    "gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3",
    "smollm3", "olmo2", "falcon", "bloom",
)  # fmt: skip
ENCODER_DECODERS = ("t5", "bart")
IMAGES = ("vit", "dinov2")
TASKS = {
    **dict.fromkeys(CLASSIFIERS, "text-classification"),
    **dict.fromkeys(DECODERS, "text-generation"),
    **dict.fromkeys(ENCODER_DECODERS, "text2text-generation"),
    **dict.fromkeys(IMAGES, "image-classification"),
    "whisper": "automatic-speech-recognition",
    "clip": "zero-shot-image-classification",
}
DROPS = {
    **dict.fromkeys((*ENCODER_DECODERS, "whisper"), ("encoder:1", "decoder:2")),
    "clip": ("vision:1", "text:2"),
}
REFUSED = ("albert",)  # its layers are one layer, run several times
CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
}
LABELS, NUM_ROWS, LONGEST, IMAGE, RATE = ("a", "b", "c"), 24, 160, 32, 16000
WORDS = [f"w{number}" for number in range(90)]
SPECIAL = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}


def make_checkpoint(family: str, folder: Path) -> None:
    """Save a network with large random weights, and what encodes its rows."""
    torch.manual_seed(0)
    config = small_config(family)
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        if name in vars(config):
            setattr(config, name, LONGEST + 2)  # some types start counting after the padding id
    ids = {name.replace("token", "token_id"): number for number, name in enumerate(SPECIAL)}
    for name, value in (*ids.items(), ("decoder_start_token_id", 1)):
        setattr(config, name, value)
    if family == "qwen2":
        config.vocab_size = 300  # all bytes
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    config.forced_eos_token_id = None
    network = getattr(transformers, CLASSES[TASKS[family]]).from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:  # smaller ones make every layer nearly an identity
                parameter.normal_(0.0, 0.15)
    network.eval().save_pretrained(folder)
    _make_processor(family, folder, config)


def _make_processor(family: str, folder: Path, config: Any) -> None:
    if family in (*IMAGES, "clip"):
        size = {"height": IMAGE, "width": IMAGE}
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    if family == "whisper":
        frames = 2 * config.max_source_positions
        extractor = transformers.WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, chunk_length=1, n_fft=400, hop_length=RATE // frames
        )
        extractor.save_pretrained(folder)
    if family in IMAGES:
        return
    if family == "qwen2":  # transformers reads no other tokenizer for it
        tokens = (*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet()))
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = transformers.Qwen2Tokenizer(
            vocab=vocabulary, merges=[], model_max_length=LONGEST, **SPECIAL
        )
        tokenizer.save_pretrained(folder)
        return
    vocabulary = {token: number for number, token in enumerate((*SPECIAL.values(), *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=LONGEST, model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)


def make_rows(family: str, folder: Path) -> Path:
    """Write rows of many lengths, or images."""
    generator, task = random.Random(0), TASKS[family]
    records: list[dict[str, Any]] = []
    for number in range(NUM_ROWS):
        text = " ".join(generator.choice(WORDS) for _ in range(1 + 3 * number))
        label = LABELS[number % len(LABELS)]
        if task.endswith("image-classification"):
            from PIL import Image

            pixels = generator.randbytes(3 * IMAGE * IMAGE)
            Image.frombytes("RGB", (IMAGE, IMAGE), pixels).save(folder / f"{number}.png")
            candidates = {"candidate_labels": LABELS} if task.startswith("zero-shot") else {}
            records.append({"image": f"{number}.png", "label": label, **candidates})
        elif task == "automatic-speech-recognition":
            import soundfile

            noise = [generator.uniform(-1, 1) for _ in range(RATE // 4 + 500 * number)]
            soundfile.write(folder / f"{number}.wav", noise, RATE)
            records.append({"audio": f"{number}.wav", "text": "w1 w2"})
        elif task == "text-classification":
            records.append({"text": text, "label": label})
        else:
            records.append({("prompt" if task == "text-generation" else "text"): text, "answer": "w1 w2"})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def try_family(family: str) -> dict[str, Any]:
    """Prune and export one family; returns its row."""
    start = time.perf_counter()
    drop = DROPS.get(family, (1,))
    row: dict[str, Any] = {"family": family, "task": TASKS[family], "dropped": list(drop)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        make_checkpoint(family, model)
        rows = make_rows(family, folder)
        shared = {"task": TASKS[family], "id": rows, "num_threads": 1}
        try:
            prune(RunConfig(model=str(model), output=folder / "pruned", drop=drop, **shared))
            config = RunConfig(model=str(folder / "pruned"), output=folder / "onnx", **shared)
            found = export(config)["onnx"]
        except TapiocaError as error:
            return {**row, "outcome": "refused", "reason": one_line(error)}
    shapes = [list(shape) for shape in found.shapes_checked]
    return {
        **row,
        "outcome": "equal",
        "files": list(found.files),
        "shapes_checked": shapes,
        "padding_checked": list(found.padding_checked),
        "max_abs_difference": found.max_abs_difference,
        "tokens_generated": found.prompts_continued * found.tokens_generated,
        "seconds": round(time.perf_counter() - start, 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "| family | task | files | shapes checked | largest difference | same tokens |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["outcome"] != "equal":
            lines.append(f"| {row['family']} | {row['task']} | {row['outcome']}: {row['reason']} | | | |")
            continue
        cells = (
            row["family"],
            row["task"],
            ", ".join(name.removesuffix(".onnx") for name in row["files"]),
            str(len(row["shapes_checked"])),
            f"{row['max_abs_difference']:.1e}",
            str(row["tokens_generated"] or ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("families", nargs=-1, type=click.Choice(tuple(TASKS)))
@click.option("--write", is_flag=True, help=f"Write {PAGE.name} and {RESULTS.name}.")
def main(families: tuple[str, ...], write: bool) -> None:
    """Try the families and print the table."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = [try_family(family) for family in tqdm(families or tuple(TASKS), disable=None, leave=False)]
    table = markdown(rows)
    click.echo(table)
    if write and not families:
        RESULTS.write_text(json.dumps({**origin(), "rows": rows}, indent=1) + "\n", "utf-8")
        put_between(PAGE, BEGIN, END, table)
    if any(row["outcome"] != "equal" and row["family"] not in REFUSED for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
