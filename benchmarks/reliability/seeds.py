"""Valid files of every kind that the product reads, made by the product and its tests' tiny models.

    make(folder)    folder/KIND/...: one folder for each kind of thing that is read

Knows nothing about what is done to them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))

import pyarrow  # noqa: E402
import reports  # noqa: E402
import token_models  # noqa: E402
import torch  # noqa: E402
from conftest import (  # noqa: E402
    make_decoder,
    make_tokenizer,
    prompt_records,
    save_model,
    text_records,
    write_jsonl,
)
from media import save_media_model  # noqa: E402
from onnx_graphs import pre_norm  # noqa: E402
from pyarrow import parquet  # noqa: E402

from tapioca_export.artifacts import (  # noqa: E402
    Benchmark,
    Journal,
    OrtSession,
    Provenance,
    SessionSettings,
    Verification,
    hashes,
    sha256,
    write,
    write_sealed,
)

GENAI = {"model": {"decoder": {"head_size": 8, "num_hidden_layers": 4, "filename": "model.onnx"}}}
CONFIG = {
    "epsilon": 0.05, "max-drop-layers": 3, "pick": "best", "protect-first": 1, "seed": 7, "format": ["onnx"],
    "columns": {"text": "review", "label": "stars"}, "target": {"airline": "a.jsonl", "banking": "b.jsonl"},
    "weights": {"airline": 2, "banking": 1}, "objective": "weights", "id": "id.jsonl", "drop": [1, 2],
    "alphas": [0, 0.5], "local-files-only": True, "overwrite": False, "prompt-template": "{{ text }}",
}  # fmt: skip
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def make(folder: Path) -> None:
    """Write all of them."""
    _samples(folder / "samples")
    _configs(folder / "config")
    _checkpoints(folder)
    _graph(folder / "graph", folder / "gpt2")
    _run(folder / "run", reports.benchmark())
    _run(folder / "other", reports.benchmark(optimism_gap=0.01))
    _rows(folder / "rows")
    _media(folder / "media")


def _samples(folder: Path) -> None:
    folder.mkdir(parents=True)
    records = text_records(6, 0)
    write_jsonl(folder / "rows.jsonl", records)
    for name, sign in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [f'"{row["text"]}"{sign}{row["label"]}' for row in records]
        (folder / name).write_text("\n".join([f"text{sign}label", *lines]) + "\n")
    table = pyarrow.Table.from_pylist([{**row, "n": 1, "list": [1.5], "s": {"a": b"x"}} for row in records])
    parquet.write_table(table, folder / "rows.parquet")
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = [{"text": row["text"], "label": number % 2} for number, row in enumerate(records)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")


def _configs(folder: Path) -> None:
    import yaml

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    lines, tables = [], []
    for key, value in CONFIG.items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{name} = {json.dumps(part)}" for name, part in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    (folder / "config.toml").write_text("\n".join([*lines, *tables]) + "\n")


def _checkpoints(folder: Path) -> None:
    save_model(folder / "bert", "bert")
    for family in ("gpt2", "llama"):
        torch.manual_seed(0)
        make_decoder(family).save_pretrained(folder / family)
        tokenizer = make_tokenizer(family)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder / family)
    for family in ("vit", "wav2vec2"):
        save_media_model(folder / family, family)
    make_decoder("llama").save_pretrained(folder / "sharded", max_shard_size="40KB")
    for kind in token_models.MODELS:
        token_models.save(folder / kind.replace(" ", "-"), kind)
    (folder / "vectors" / "1_Pooling").mkdir()
    (folder / "vectors" / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "vectors" / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True})
    )
    (folder / "bert" / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A card\n")


def _graph(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "model.onnx"
    file.write_bytes(pre_norm(cached=False).model().SerializeToString())
    write(
        folder / "export.json",
        reports.export(files={file.name: sha256(file)}, drop=(), task="text-generation"),
    )
    (folder / "genai_config.json").write_text(json.dumps(GENAI))
    cached = pre_norm(cached=True).model().SerializeToString()
    (folder / "cached.onnx").write_bytes(cached)


def _run(folder: Path, benchmark: Benchmark) -> None:
    """Write a run folder of hand-written numbers, and beside it an artifact of each kind."""
    folder.mkdir(parents=True)
    report = reports.report(intervention=reports.intervention(), benchmark=benchmark)
    write(folder / "report.json", report)
    for name in ("selection", "profile", "benchmark", "intervention"):
        write(folder / f"{name}.json", getattr(report, name))
    export = folder / "pruned" / "onnx"
    export.mkdir(parents=True)
    write(export / "export.json", reports.export())
    record = Provenance(
        "export", "bert-tiny", {"seed": 0}, {"python": "3.11"}, {"id.jsonl": "ab" * 32}, {}, "x"
    )
    write_sealed(export / "provenance.json", replace(record, outputs=hashes(export)))
    write_sealed(folder / "run.json", replace(reports.run(), outputs=hashes(folder)))
    settings = SessionSettings(("CPUExecutionProvider",), {"intra_op_num_threads": 2}, {"session.x": "1"})
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    write(folder / "ort_session.json", OrtSession(**values))
    write(folder / "verification.json", Verification("run", True, ("all is well",), (), (), {}))
    _journal(folder / "search.jsonl")


FINGERPRINT = {"model": "bert-tiny", "seed": 0, "rows": "x"}


def _journal(file: Path) -> None:
    journal = Journal(file, FINGERPRINT, 4)
    found = {"sets": [[0], [1]], "rows": [0, 1], "values": [[1.0, 0.0]] * 2, "losses": [[0.5, 0.25]] * 2,
             "layer_forwards": 8, "layer_tokens": 80}  # fmt: skip
    journal.add_rows(found, 4)
    journal.add_rows({**found, "rows": [2, 3]}, 4)
    journal.add_deviations({"sets": [[0]], "deviations": [0.1], "layer_forwards": 2, "layer_tokens": 9})
    journal.note({"kind": "candidate", "layer": 1, "dropped": [0], "metric": 0.5})


def _rows(folder: Path) -> None:
    """Write rows of every task that reads texts."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for kind, (_, _, make_row, _) in token_models.MODELS.items():
        write_jsonl(folder / f"{kind.replace(' ', '-')}.jsonl", [make_row(draw) for _ in range(4)])
    write_jsonl(folder / "classification.jsonl", text_records(4, 0))
    write_jsonl(
        folder / "generation.jsonl",
        [{"prompt": f"w1 w{n}", "answer": f"w{n}", "text": f"w{n} w2"} for n in range(4)],
    )
    write_jsonl(
        folder / "choice.jsonl",
        [{"context": f"w1 w{n}", "choices": ["w2", "w3", "w4"], "label": n % 3} for n in range(4)],
    )
    asked: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"w{n}"}], "answer": f"w{n}"} for n in range(4)
    ]
    write_jsonl(folder / "chats.jsonl", asked)
    write_jsonl(folder / "polynomial.jsonl", prompt_records(4, 0))


def _media(folder: Path) -> None:
    import numpy as np
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        Image.fromarray(pixels).save(folder / f"image.{ending}")
    wave = np.sin(np.arange(400) / 5)
    for ending in ("wav", "flac", "ogg"):
        soundfile.write(folder / f"sound.{ending}", wave, 8000)
