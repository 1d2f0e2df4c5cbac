"""What does each version of ONNX Runtime read? The source of `tapioca_export/exporting/targets.py`.

    python benchmarks/ort_versions.py           # print the table; installs some 300 MB aside, a few minutes
    python benchmarks/ort_versions.py --write   # and write it to ort_versions.json

Each version is installed into a folder of its own, and opens a graph of one operator, of every opset and of
every version of the file format (IR); the newest that it opens stand in the table. The newest version is the
one that is installed here.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import onnxruntime
from onnx import TensorProto, helper
from recording import origin

RESULTS = Path(__file__).with_name("ort_versions.json")
VERSIONS = (
    "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2", "1.24.1", "1.25.0",
    "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.0",
)  # fmt: skip
# Built against NumPy 1.
NUMPY_1 = ("1.16.3", "1.17.3", "1.18.1")
OPSETS, IR_VERSIONS = range(15, 30), range(7, 16)
OLD_OPSET, OLD_IR = 15, 8
PROBE = """
import base64, json, sys
import onnxruntime
onnxruntime.set_default_logger_severity(4)
opened = []
for graph in json.load(sys.stdin):
    try:
        onnxruntime.InferenceSession(base64.b64decode(graph), providers=["CPUExecutionProvider"])
        opened.append(True)
    except Exception:
        opened.append(False)
print(json.dumps([onnxruntime.__version__, opened]))
"""


def graph_of(opset: int, ir_version: int) -> str:
    """Return a graph of one operator, in base 64."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "relu", values[:1], values[1:])
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return base64.b64encode(made.SerializeToString()).decode()


def newest_read(folders: list[str]) -> dict[str, int | str]:
    """Return the newest opset and IR version that the version in these folders opens.

    Raises:
        AssertionError: If it refuses one older than another that it opens.
    """
    graphs = [graph_of(opset, OLD_IR) for opset in OPSETS]
    graphs += [graph_of(OLD_OPSET, ir_version) for ir_version in IR_VERSIONS]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(graphs),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=True,
    )
    version, opened = json.loads(done.stdout.splitlines()[-1])
    parts = opened[: len(OPSETS)], opened[len(OPSETS) :]
    for part in parts:
        assert part[0]
        assert part == sorted(part, reverse=True)
    opset, ir_version = (
        kinds[sum(part) - 1] for kinds, part in zip((OPSETS, IR_VERSIONS), parts, strict=True)
    )
    return {"onnxruntime": version, "opset": opset, "ir_version": ir_version}


def install(package: str, folder: Path) -> None:
    """Install a package alone into a folder."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), package]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)


@click.command(help=__doc__)
@click.option("--write", is_flag=True, help=f"Write {RESULTS.name}.")
def main(write: bool) -> None:
    """Ask every version, and print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        numpy_1 = Path(scratch) / "numpy"
        install("numpy==1.26.4", numpy_1)
        for version in VERSIONS:
            folder = Path(scratch) / version
            install(f"onnxruntime=={version}", folder)
            rows.append(newest_read([str(folder), *([str(numpy_1)] if version in NUMPY_1 else [])]))
    if onnxruntime.__version__ not in VERSIONS:
        rows.append(newest_read([]))
    for row in rows:
        click.echo(f"{row['onnxruntime']:8s} opset {row['opset']}, IR {row['ir_version']}")
    if write:
        RESULTS.write_text(json.dumps({**origin(), "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
