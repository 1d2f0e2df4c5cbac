"""Faults between the stages: what is searched, measured, told apart, recorded, reported and gated."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tapioca_export import RunConfig, benchmark, pipeline, prune, report, run, select, verify
from tapioca_export.artifacts import Provenance, Run, Selection, read, sha256, write, write_sealed
from tapioca_export.benchmarking import scoring, sessions
from tapioca_export.profiling import replaying
from tapioca_export.samples import roles

from .base import Job, Mutant, Patch, Scenario, before, behind, gate, passed
from .checkpoints import change_json, rotated
from .models import HOME, checkpoint, rows

ROWS = {"id": ("id", 80, 11), "target": ("target", 80, 12)}
FAST = {"iterations": 5, "warmup": 1, "num_threads": 1, "batch_size": (1,)}


def files() -> dict[str, Path]:
    """Return ID and target rows."""
    return {name: rows(*given) for name, given in ROWS.items()}


@functools.cache
def finished(criterion: str = "tale") -> Path:
    """Return the folder of a run that dropped two layers; do not write in it."""
    output = HOME / f"run-{criterion}"
    run(searching(output, criterion=criterion))
    return output


def searched() -> str:
    """Return the model of that run."""
    return str(read(finished() / "run.json", Run).config["model"])


def searching(output: Path, **changes: Any) -> RunConfig:
    """Return the configuration of a run."""
    given = {"model": str(checkpoint("bert")), "epsilon": 1.0, "pick": "2", **files(), **FAST, **changes}
    return RunConfig(output=output, **given)


# --- scenarios ------------------------------------------------------------------------------


def _running(**changes: Any) -> Scenario:
    def go(job: Job) -> None:
        run(searching(job.output, **changes))

    said = "".join(f", {name} {value}" for name, value in changes.items())
    return Scenario(f"run bert{said}", "run", lambda job: {}, go, is_quick=False)


def _on_folder(name: str, command: str, go: Callable[[Path], None]) -> Scenario:
    """Return a scenario on a copy of a finished run folder."""

    def prepare(job: Job) -> dict[str, Any]:
        return {"run": job.copied(finished(), "run")}

    return Scenario(name, command, prepare, lambda job: go(job["run"]))


def _verify(folder: Path) -> None:
    passed(verify(folder))


def _verify_hashes(folder: Path) -> None:
    passed(verify(folder, proofs=False))


def _report(folder: Path) -> None:
    report(folder)


def _check(folder: Path) -> None:
    gate(folder, "--min-target-gain", "-1", "--max-id-loss", "1")


def _benchmarking() -> Scenario:
    def prepare(job: Job) -> dict[str, Any]:
        folder = job.copied(finished(), "run")
        return {"run": folder, "original": folder / "original/onnx", "pruned": folder / "pruned/onnx"}

    def go(job: Job) -> None:
        config = RunConfig(output=job.output, **files(), **FAST)
        benchmark(job["original"], job["pruned"], config)

    return Scenario("benchmark bert", "benchmark", prepare, go)


def _benchmarking_on(provider: str) -> Scenario:
    """Return the scenario that asks for a provider, of which the library says that it is there."""

    def prepare(job: Job) -> dict[str, Any]:
        folder = job.copied(finished(), "run")
        return {"original": folder / "original/onnx", "pruned": folder / "pruned/onnx", "provider": ("cpu",)}

    def go(job: Job) -> None:
        config = RunConfig(output=job.output, provider=job["provider"], **files(), **FAST)
        benchmark(job["original"], job["pruned"], config)

    return Scenario(f"benchmark bert, --provider {provider}", "benchmark", prepare, go)


def _selecting() -> Scenario:
    def prepare(job: Job) -> dict[str, Any]:
        """Leave the journal of a search that was interrupted behind."""
        folder = job.output.with_name(f".{job.output.name}.tapioca-partial")
        folder.mkdir()
        shutil.copyfile(finished() / "search.jsonl", folder / "search.jsonl")
        return {"journal": folder / "search.jsonl", "model": searched()}

    def go(job: Job) -> None:
        select(searching(job.output, model=job["model"]))

    return Scenario("select bert, resumed", "select", prepare, go)


def _replaying_selection() -> Scenario:
    def prepare(job: Job) -> dict[str, Any]:
        shutil.copyfile(finished() / "selection.json", job.folder / "selection.json")
        return {"selection": job.folder / "selection.json", "model": searched()}

    def go(job: Job) -> None:
        chosen = read(job["selection"], Selection)
        prune(RunConfig(model=str(job["model"]), output=job.output, num_threads=1), chosen)

    return Scenario("prune bert by a selection", "prune", prepare, go)


# --- what is broken -------------------------------------------------------------------------


def whole_exported(patch: Patch, job: Job) -> None:
    """The whole model is exported in place of the checkpoint without layers."""
    own = pipeline.load_model

    def load(source: Any, *more: Any) -> Any:
        return own(str(checkpoint("bert")) if "pruned" in Path(source).parts else source, *more)

    patch.setattr(pipeline, "load_model", load)


def measured_above(patch: Patch, job: Job) -> None:
    """While it searches, the probe skips the layer above the one that it says."""

    def shifted(found: dict[int, Any], changes: Any, *_: Any) -> dict[int, Any]:
        depth = changes.model.num_layers
        return {(layer + 1) % depth: change for layer, change in found.items()}

    behind(patch, replaying.Changes, "__call__", shifted)


def written_above(patch: Patch, job: Job) -> None:
    """The checkpoint, and what it is compared with, lack the layer below the one that was chosen."""
    from tapioca_export import checkpoints

    own = checkpoints.save_checkpoint

    def save(folder: Path, model: Any, selection: Selection, batches: Any) -> Selection:
        others = tuple(layer for layer in range(model.num_layers) if layer not in selection.drop)
        found = own(folder, model, replace(selection, drop=others[: len(selection.drop)]), batches)
        write(folder / "selection.json", selection)
        return found

    patch.setattr(checkpoints, "save_checkpoint", save)


def report_rows_searched(patch: Patch, job: Job) -> None:
    """The search is driven by the rows that are reported."""
    from tapioca_export import steps

    own = steps.probing

    def probing(config: Any, model: Any, samples: Any, journal: Any = None, side: str = "select") -> Any:
        swapped = {**samples, **{f"{n}-select": samples[f"{n}-report"] for n in ("id", "target")}}
        return own(config, model, swapped, journal, side)

    patch.setattr(steps, "probing", probing)


def halves_overlap(patch: Patch, job: Job) -> None:
    """A few rows are in both halves of a file."""

    def overlap(found: Any, samples: Any, *_: Any) -> Any:
        first, second = found
        return first, replace(second, rows=(*second.rows, *first.rows[:3]))

    behind(patch, roles, "halves", overlap)


def report_rows_chosen(patch: Patch, job: Job) -> None:
    """The rows that are reported are those that chose."""
    from tapioca_export import reading

    def swap(found: Any, *_: Any) -> Any:
        return {**found, **{f"{n}-report": found[f"{n}-select"] for n in ("id", "target")}}

    behind(patch, reading, "load_roles", swap)


def another_benchmark(patch: Patch, job: Job) -> None:
    """The report is made of numbers that are not those of benchmark.json."""
    from tapioca_export import reporting

    def other(record: Any, selection: Any, profile: Any, measured: Any, *more: Any) -> Any:
        accuracy = {
            name: replace(part, pruned=1.0, difference=1.0 - part.original, interval=(0.4, 0.6))
            for name, part in measured.accuracy.items()
        }
        return (record, selection, profile, replace(measured, accuracy=accuracy), *more)

    before(patch, reporting, "make_report", other)


def swapped_pair(patch: Patch, job: Job) -> None:
    """Original and pruned are taken for each other."""
    job.given.update(original=job["pruned"], pruned=job["original"])


def same_twice(patch: Patch, job: Job) -> None:
    """Both folders are that of the original."""
    copy = job.folder / "copy"
    shutil.copytree(job["original"], copy)
    shutil.copyfile(job["pruned"] / "export.json", copy / "export.json")
    fields = json.loads((job["original"] / "export.json").read_text(encoding="utf-8"))
    change_json(copy / "export.json", "files", fields["files"])
    change_json(copy / "export.json", "sha256", fields["sha256"])
    job.given["pruned"] = copy


def another_file(patch: Patch, job: Job) -> None:
    """The pruned folder holds the original's file."""
    shutil.copyfile(job["original"] / "model.onnx", job["pruned"] / "model.onnx")


def flipped_file(patch: Patch, job: Job) -> None:
    """One bit of the pruned file is another."""
    file = job["pruned"] / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def labels_permuted(patch: Patch, job: Job) -> None:
    """The pruned model calls its outputs otherwise than the original."""
    change_json(job["pruned"] / "config.json", "id2label", rotated)


def another_depth(patch: Patch, job: Job) -> None:
    """The pruned file is of a model with another number of layers."""
    change_json(job["pruned"] / "export.json", "num_layers", 6)


def failed_parity(patch: Patch, job: Job) -> None:
    """The file failed its proof, and has the name that says so."""
    shutil.copyfile(job["pruned"] / "model.onnx", job["pruned"] / "model.onnx.invalid")


def fell_back(patch: Patch, job: Job) -> None:
    """CUDA is asked for, the library says that it is there, and the session computes on the CPU."""
    import onnxruntime

    patch.setattr(sessions, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    job.given["provider"] = ("cuda",)
    own = onnxruntime.InferenceSession

    def session(*arguments: Any, **named: Any) -> Any:
        return own(*arguments, **{**named, "providers": ["CPUExecutionProvider"]})

    patch.setattr(onnxruntime, "InferenceSession", session)
    patch.setattr(onnxruntime, "preload_dlls", lambda *_, **__: None, raising=False)


def _in_run(name: str, field: str, value: Any) -> Callable[[Patch, Job], None]:
    return lambda patch, job: change_json(job["run"] / name, field, value)


def numbers_of_another_run(name: str) -> Callable[[Patch, Job], None]:
    """One of the run's artifacts is replaced by one with better numbers."""

    def better(fields: dict[str, Any]) -> dict[str, Any]:
        for part in fields.values():
            part["pruned"], part["difference"], part["interval"] = 1.0, 1.0 - part["original"], [0.4, 0.6]
        return fields

    def spoil(patch: Patch, job: Job) -> None:
        file = job["run"] / name
        if name == "report.json":
            change_json(file, "benchmark", lambda found: {**found, "accuracy": better(found["accuracy"])})
        else:
            change_json(file, "accuracy", better)

    return spoil


def other_drop(patch: Patch, job: Job) -> None:
    """selection.json says that other layers were dropped."""
    change_json(job["run"] / "selection.json", "drop", lambda found: [(found[0] + 1) % 4])


def _resealed(job: Job, name: str, change: Callable[[Any], Any]) -> None:
    path = job["run"] / name
    cls = Run if name == "run.json" else Provenance
    write_sealed(path, change(read(path, cls)))


def hash_of_another(patch: Patch, job: Job) -> None:
    """The record has the hash of one file beside the name of another."""

    def change(record: Run) -> Run:
        outputs = dict(record.outputs)
        one, other = "original/onnx/model.onnx", "pruned/onnx/model.onnx"
        outputs[one], outputs[other] = outputs[other], outputs[one]
        return replace(record, outputs=outputs)

    _resealed(job, "run.json", change)


def hash_forgotten(patch: Patch, job: Job) -> None:
    """The record does not know one of the files."""

    def change(record: Run) -> Run:
        return replace(
            record, outputs={n: h for n, h in record.outputs.items() if n != "pruned/onnx/model.onnx"}
        )

    _resealed(job, "run.json", change)


def of_itself(patch: Patch, job: Job) -> None:
    """The record of the checkpoint names the checkpoint itself as what it was made of."""
    place = job["run"] / "pruned/checkpoint"
    for name in ("provenance.json",):
        record = read(place / name, Provenance)
        own = str(place)
        inputs = {own: sha256(place), **{n: h for n, h in record.inputs.items() if n != record.model}}
        write_sealed(
            place / name, replace(record, model=own, config={**record.config, "model": own}, inputs=inputs)
        )
    outputs = {"pruned/checkpoint/provenance.json": sha256(place / "provenance.json")}
    _resealed(job, "run.json", lambda run: replace(run, outputs={**run.outputs, **outputs}))


def file_of_another(patch: Patch, job: Job) -> None:
    """The pruned file is the original's, and every hash says so."""
    place = job["run"] / "pruned/onnx"
    shutil.copyfile(job["run"] / "original/onnx/model.onnx", place / "model.onnx")
    digest = sha256(place / "model.onnx")
    change_json(place / "export.json", "files", {"model.onnx": digest})
    change_json(place / "export.json", "sha256", digest)
    new = {name: sha256(place / name) for name in ("model.onnx", "export.json")}
    _resealed(job, "pruned/onnx/provenance.json", lambda r: replace(r, outputs={**r.outputs, **new}))
    new["provenance.json"] = sha256(place / "provenance.json")
    named = {f"pruned/onnx/{name}": digest for name, digest in new.items()}
    _resealed(job, "run.json", lambda r: replace(r, outputs={**r.outputs, **named}))


def seed_of_another(patch: Patch, job: Job) -> None:
    """Rows are split by another seed than when the layers were chosen."""
    change_json(job["pruned"] / "selection.json", "seed", 7)


def _journal(change: Callable[[dict[str, Any]], None]) -> Callable[[Patch, Job], None]:
    def spoil(patch: Patch, job: Job) -> None:
        lines = job["journal"].read_text(encoding="utf-8").splitlines(keepends=True)
        header = json.loads(lines[0])
        change(header["fingerprint"])
        job["journal"].write_text(json.dumps(header) + "\n" + "".join(lines[1:]), encoding="utf-8")

    return spoil


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({name: value})


def selection_of_deeper(patch: Patch, job: Job) -> None:
    """The selection is of a model with more layers."""
    change_json(job["selection"], "num_layers", 6)


def selection_of_another(patch: Patch, job: Job) -> None:
    """The selection is of a model of the same shape, one tensor of which is another."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(job["model"], job.folder / "other"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].add_(0.01)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    job.given["model"] = folder


def scores_swapped(patch: Patch, job: Job) -> None:
    """Each model's rows are scored with the other's file."""
    other = {job["original"]: job["pruned"], job["pruned"]: job["original"]}
    before(patch, scoring.Scoring, "answered", lambda self, folder: (self, other[folder]))


def padding_counted(patch: Patch, job: Job) -> None:
    """Padding counts as tokens in the profile."""
    from tapioca_export.tasks.base import Task

    patch.setattr(
        Task, "state_mask", lambda self, batch, processor: np.ones_like(self.token_mask(batch.inputs))
    )


RUN = _running()
BENCHMARK, CUDA = _benchmarking(), _benchmarking_on("cuda")
VERIFY, HASHES = (
    _on_folder("verify a run", "verify", _verify),
    _on_folder("verify hashes", "verify", _verify_hashes),
)
REPORT, CHECK = _on_folder("report a run", "report", _report), _on_folder("check a run", "check", _check)
SELECT, REPLAY = _selecting(), _replaying_selection()

MUTANTS = (
    Mutant(
        "the original exported", "the whole model goes out as the one without layers", RUN, whole_exported
    ),
    Mutant("the neighbour measured", "the search skips the layer above the one it says", RUN, measured_above),
    Mutant("other layers dropped", "the checkpoint lacks other layers than were chosen", RUN, written_above),
    Mutant(
        "report rows searched", "the search is driven by rows that are reported", RUN, report_rows_searched
    ),
    Mutant("halves overlap", "some rows choose and are reported", RUN, halves_overlap),
    Mutant("rows shared", "the rows that are reported are those that chose", RUN, report_rows_chosen),
    Mutant(
        "another benchmark reported",
        "the report has other numbers than benchmark.json",
        RUN,
        another_benchmark,
    ),
    Mutant("padding counted", "padding counts as tokens in the profile", RUN, padding_counted),
    Mutant("swapped", "original and pruned are taken for each other", BENCHMARK, swapped_pair),
    Mutant("the same model twice", "the original is measured against itself", BENCHMARK, same_twice),
    Mutant("another file", "the pruned folder holds the original's file", BENCHMARK, another_file),
    Mutant("scores swapped", "each model's rows are scored with the other's file", BENCHMARK, scores_swapped),
    Mutant("a flipped bit", "one bit of the pruned file is another", BENCHMARK, flipped_file),
    Mutant("labels permuted", "the pruned model calls its outputs otherwise", BENCHMARK, labels_permuted),
    Mutant("another depth", "the pruned file is of a model with other layers", BENCHMARK, another_depth),
    Mutant("a failed proof", "the file is one that failed its proof", BENCHMARK, failed_parity),
    Mutant("another seed", "rows that chose would be reported", BENCHMARK, seed_of_another),
    Mutant("halves overlap", "some rows choose and are reported", BENCHMARK, halves_overlap),
    Mutant("a provider that fell back", "CUDA was asked for, and the CPU computes", CUDA, fell_back),
    Mutant(
        "numbers of another run",
        "report.json has better numbers",
        CHECK,
        numbers_of_another_run("report.json"),
    ),
    Mutant(
        "numbers of another run",
        "benchmark.json has better numbers",
        REPORT,
        numbers_of_another_run("benchmark.json"),
    ),
    Mutant("another selection", "selection.json names other layers", REPORT, other_drop),
    *(
        Mutant(
            "a changed export.json",
            "it says that the file is less far off",
            s,
            _in_run("pruned/onnx/export.json", "max_abs_difference", 0.0),
        )
        for s in (REPORT, HASHES)
    ),
    *(
        Mutant(name, what, HASHES, spoil)
        for name, what, spoil in (
            ("another selection", "selection.json names other layers", other_drop),
            (
                "numbers of another run",
                "report.json has better numbers",
                numbers_of_another_run("report.json"),
            ),
            ("the hash of another file", "two files have each other's hash", hash_of_another),
            ("a hash forgotten", "the record does not know the pruned file", hash_forgotten),
            ("an unsealed record", "run.json was changed", _in_run("run.json", "seconds", {"select": 1.0})),
        )
    ),
    Mutant("compared with itself", "the checkpoint is recorded as made of itself", VERIFY, of_itself),
    Mutant(
        "the original's file",
        "the pruned file is the original's, and every hash says so",
        VERIFY,
        file_of_another,
    ),
    *(
        Mutant(name, what, SELECT, _journal(change))
        for name, what, change in (
            ("a journal of another model", "its numbers are of another model", _set("model", "0" * 64)),
            ("a journal of another metric", "its numbers are another metric's", _set("metric", "f1")),
            ("a journal of another direction", "lower was better", _set("higher_is_better", False)),
            (
                "a journal of other rows",
                "its numbers are of other rows",
                lambda fields: fields["samples"].update({"target-select": "0" * 32}),
            ),
            ("a journal of another side", "ID rows drove the search", _set("select_on", "id")),
            ("a journal of another length", "texts were cut otherwise", _set("max_length", 8)),
        )
    ),
    Mutant("a selection of another model", "it is of a model with more layers", REPLAY, selection_of_deeper),
    Mutant("a selection of other weights", "it is of a model as deep", REPLAY, selection_of_another),
)
