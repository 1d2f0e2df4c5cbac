"""The commands that write, each on files so small that it takes a few seconds, and what they are given."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUM_ROWS = 40
LIGHT = ("--num-threads", "1", "--local-files-only")
MODEL = ("-m", "{world}/model", "--id", "{world}/id.jsonl", *LIGHT)
SAMPLES = ("--target", "{world}/target.jsonl")
SEARCH = ("--epsilon", "1", "--max-drop-layers", "2", "--eval-batch-size", "8")
TIMING = ("--iterations", "3", "--warmup", "1", "--batch-size", "1", "--sequence-length", "8")
EXPORTS = ("{world}/run/original/onnx", "{world}/run/pruned/onnx")


@dataclass(frozen=True)
class Subject:
    """A command, with `{world}` for where its inputs are and `{out}` for its output.

    `amends` names a folder of the world, to a copy of which it adds in place of an output of its own;
    `resumes` says that a killed one leaves a journal, `measures` that neither its numbers nor the bytes of
    files that PyTorch writes are those of another run.
    """

    name: str
    arguments: tuple[str, ...]
    amends: str | None = None
    resumes: bool = False
    measures: bool = False
    output: str = "out"

    def command(self, world: Path, out: str) -> list[str]:
        """Return the words after `tapioca-export`."""
        return [word.format(world=world, out=out) for word in self.arguments]

    def replacing(self) -> Subject:
        """Return the command with --overwrite, if it may replace what is there."""
        flag = () if "--junit" in self.arguments or self.amends or not self.writes else ("--overwrite",)
        if self.amends and self.arguments[0] == "intervene":
            flag = ("--overwrite",)
        return replace(self, arguments=(*self.arguments, *flag))

    def on_wide(self) -> Subject:
        """Return the command on a model that takes 50 MB."""
        words = tuple(word.replace("{world}/model", "{world}/wide") for word in self.arguments)
        return replace(self, name=f"{self.name}, 50 MB", arguments=words)

    @property
    def writes(self) -> bool:
        """Tell whether there is an output at all."""
        return self.arguments[0] != "verify"


OUT = ("-o", "{out}")
PYTORCH = ("--format", "torchscript", "--format", "pt2")
DOSES = ("--layers", "1", "--alphas", "0,1", "--draws", "2")
LIMITS = ("--min-speedup", "0.001", "--max-size-ratio", "9")
SUBJECTS = (
    Subject("profile", ("profile", *MODEL, *SAMPLES, *OUT)),
    Subject("select", ("select", *MODEL, *SAMPLES, *SEARCH, *OUT), resumes=True),
    Subject("prune", ("prune", *MODEL, "--drop", "1", *OUT)),
    Subject("prune --proof weights", ("prune", *MODEL[:2], "--drop", "1", "--proof", "weights", *OUT)),
    Subject("prune FILE.onnx", ("prune", "{world}/run/original/onnx/model.onnx", "--drop", "1", *OUT)),
    Subject("export", ("export", *MODEL, *OUT)),
    Subject("export --quantize", ("export", *MODEL, "--quantize", "int8", "--max-drop", "1", *OUT)),
    Subject("export, PyTorch's", ("export", *MODEL, *PYTORCH, *OUT), measures=True),
    Subject("benchmark", ("benchmark", *EXPORTS, *MODEL[2:], *SAMPLES, *TIMING, *OUT), measures=True),
    Subject("intervene", ("intervene", *MODEL, *SAMPLES, *DOSES, *OUT)),
    Subject("intervene in a run", ("intervene", *MODEL, *SAMPLES, *DOSES, *OUT), amends="run"),
    Subject("report", ("report", "{out}"), amends="run"),
    Subject("report --compare", ("report", "--compare", "{world}/run", "{world}/run2", *OUT)),
    Subject("run", ("run", *MODEL, *SAMPLES, *SEARCH, *TIMING, *OUT), resumes=True, measures=True),
    Subject("check --junit", ("check", "{world}/run", *LIMITS, "--junit", "{out}"), output="junit.xml"),
    Subject("init", ("init", "{out}", *MODEL, *SAMPLES), output="tapioca.toml"),
    Subject("verify", ("verify", "{world}/run"), output="nothing"),
    Subject("demo", ("demo", *SEARCH[2:4], *LIGHT[:2], *OUT), resumes=True, measures=True),
)  # fmt: skip


def named(*names: str) -> list[Subject]:
    """Return subjects by their names."""
    by_name = {subject.name: subject for subject in SUBJECTS}
    return [by_name[name] for name in names]


def put_inputs(world: Path) -> None:
    """Write the model and the rows that the commands are given."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import save_model, text_records, write_jsonl

    world.mkdir(parents=True)
    save_model(world / "model", "bert")
    save_model(world / "wide", "bert", hidden_size=512, intermediate_size=2048)
    for seed, name in enumerate(("id", "target")):
        write_jsonl(world / f"{name}.jsonl", text_records(NUM_ROWS, seed))
