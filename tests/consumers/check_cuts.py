"""Cut layers out of graphs that others made, and hold them against PyTorch without the layers.

    python tests/consumers/check_cuts.py FOLDER

FOLDER is what `make_graphs.py` wrote. Every file is cut as a user would, which proves it against the whole
file in pieces, and is then run on the same tokens as the network. Prints a table; exit code 1 where a file is
refused, or says anything else than the network. Weights of four bits have no network to be held against.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from click.testing import CliRunner

from tapioca_export.cli import main as cli
from tapioca_export.models import LoadedModel, drop_layers, load_model

DROP = (1, 2)
IDS = np.array([[5, 17, 6, 90, 44, 7, 31, 12]])
EXACT, APPROXIMATE = 1e-4, 1e-3  # O3 computes GELU by tanh


def answers(file: Path, config: Any) -> np.ndarray:
    """Run a graph on one text, with nothing cached."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feed = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feed[value.name] = IDS
        elif value.name == "attention_mask":
            feed[value.name] = np.ones_like(IDS)
        elif value.name == "position_ids":
            feed[value.name] = np.arange(IDS.shape[1])[None]
        elif value.name == "token_type_ids":
            feed[value.name] = np.zeros_like(IDS)
        else:  # a cache, (batch, heads, length, head size)
            heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
            size = config.hidden_size // config.num_attention_heads
            feed[value.name] = np.zeros((1, heads, 0, size), np.float32)
    return np.asarray(session.run(["logits"], feed)[0])


def expected(model: LoadedModel) -> np.ndarray:
    """Return what the network without the layers says."""
    return drop_layers(model, DROP).logits({"input_ids": IDS, "attention_mask": np.ones_like(IDS)})


def check(folder: Path, model: LoadedModel, scratch: Path) -> tuple[str, bool]:
    """Cut one file; return what came of it, and whether it is right."""
    drop = ",".join(map(str, DROP))
    result = CliRunner().invoke(
        cli, ["prune", str(folder / "model.onnx"), "--drop", drop, "-o", str(scratch / folder.name), "-q"]
    )
    if result.exit_code:
        return result.output.strip().splitlines()[0], False
    found = answers(scratch / folder.name / "model.onnx", model.network.config)
    if folder.name.endswith("int4"):
        return "cut, proven against the whole file, and runs", bool(np.isfinite(found).all())
    wanted = expected(model)
    difference = float(np.abs(found.reshape(wanted.shape) - wanted).max())
    allowed = APPROXIMATE if folder.name.endswith("O3") else EXACT
    return f"cut; differs from PyTorch by {difference:.1e}", difference <= allowed


def main(folder: Path) -> int:
    """Check every graph."""
    models = {path.name: load_model(path) for path in sorted((folder / "models").iterdir())}
    failed = 0
    with TemporaryDirectory() as scratch:
        files = sorted(folder.glob("*/model.onnx"))
        for file in files:
            told, is_right = check(file.parent, models[file.parent.name.split()[0]], Path(scratch))
            failed += not is_right
            print(f"{'ok  ' if is_right else 'FAIL'} {file.parent.name:<28} {told}", flush=True)
    print(f"{len(files)} files, {failed} failed")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
