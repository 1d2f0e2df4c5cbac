"""Save a pruned checkpoint, and prove in a fresh process that it is the model that was measured."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from ..errors import ConfigError, UnsupportedModelError
from ..memory import available_bytes
from ..tasks import Inputs
from .damping import Damped
from .folding import folding
from .loaded import LoadedModel, answer_of
from .loading import aligned, auto_class, find_task
from .rewriting import UnmappedNamesError, write_pruned
from .settings import prove_settings
from .silencing import zeroed
from .skipping import Change, changes_of, changing
from .surgery import drop_layers, renamed, silent_weights

# Of two ways to compute a damped layer: absolute and relative, on logits in float32.
TOLERANCE = 1e-4


def save_pruned(
    model: LoadedModel,
    units: Sequence[int],
    folder: Path,
    batches: Sequence[Inputs],
    damped: Mapping[int, Damped] | None = None,
) -> str | None:
    """Save a checkpoint without units, and prove that it is the model that was measured.

    The weights are those in the source's files, byte for byte, but for zeros where a layer has lost its
    attention or its MLP alone: no stock class has half a layer. Only where those cannot be told apart by
    layer, they are saved from memory, in float32.

    The proof: a fresh process loads the folder with the stock auto class and its logits on
    `batches` must equal, bit for bit, those of the model in memory with the layers skipped. Of layers that
    are damped, these logits are within `TOLERANCE` of those with the branches multiplied as they are added.

    Args:
        model: The loaded model; afterwards it is on the CPU.
        units: Layers, or branches of them, to drop; may be empty.
        folder: An existing folder to write to.
        batches: Encoded samples to compare on.
        damped: Layers to damp, each with the weights that do it.

    Returns:
        Why the weights were saved from memory, if they were.

    Raises:
        ConfigError: If the layers do not exist or are all there are.
        LoadError: If the source's files cannot be read any more.
        UnsupportedModelError: If the checkpoint does not reload as the same model.
        OutputError: If the folder cannot be written.
    """
    model.network.to("cpu")  # where the fresh process computes, bit for bit
    damped = damped or {}
    expected = _expected(model, units, batches, damped)
    note = None
    try:
        write_pruned(model, units, folder, damped)
    except UnmappedNamesError as error:
        whole = model.units.split(units)[0]
        with folding(model, damped):
            pruned, zeros = drop_layers(model, whole).network, silent_weights(model, units)
            with zeroed(pruned, renamed(zeros, model, whole)):
                pruned.save_pretrained(folder)
        model.processor.save(folder)
        prove_settings(folder, model, pruned.config)
        note = f"{error.message} The weights were saved from memory, in float32."
    _refuse_another(folder, model, batches, expected)
    return note


def prove_saved(
    model: LoadedModel,
    units: Sequence[int],
    folder: Path,
    batches: Sequence[Inputs],
    damped: Mapping[int, Damped] | None = None,
) -> None:
    """Prove again that a checkpoint is the model without units, as `save_pruned` does.

    Raises:
        UnsupportedModelError: If it does not reload as that model.
    """
    _refuse_another(folder, model, batches, _expected(model, units, batches, damped or {}))


def _expected(
    model: LoadedModel, units: Sequence[int], batches: Sequence[Inputs], damped: Mapping[int, Damped]
) -> list[np.ndarray]:
    """Return the logits of the model in memory with layers skipped and damped.

    Raises:
        UnsupportedModelError: If damped layers do not compute what they are to.
    """
    changes = changes_of(model, model.units.checked(units))
    with changing(model, {**changes, **damped}):
        expected = [reference_logits(model, batch) for batch in batches]
    if damped:
        _prove_damped(model, changes, damped, batches, expected)
    return expected


def _refuse_another(
    folder: Path, model: LoadedModel, batches: Sequence[Inputs], expected: Sequence[np.ndarray]
) -> None:
    """Refuse a checkpoint whose logits, in a fresh process, are not the expected ones to the bit.

    Raises:
        UnsupportedModelError: Saying how far they are off.
    """
    actual = reload_logits(folder, model, batches)
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        if not np.array_equal(one, other):
            difference = float(np.abs(one - other).max())
            raise UnsupportedModelError(
                f"The saved checkpoint is not the model that was measured: logits differ by {difference:.3g} "
                f"on batch {number} of {len(batches)}.",
                "This family cannot be pruned correctly at these layers; protect them "
                "(--protect-first, --protect-last) or report the family.",
            )


def _prove_damped(
    model: LoadedModel,
    changes: Mapping[int, Change],
    damped: Mapping[int, Damped],
    batches: Sequence[Inputs],
    folded: Sequence[np.ndarray],
) -> None:
    """Compare logits of folded weights with those of branches that are multiplied as they are added.

    Raises:
        UnsupportedModelError: If they differ by more than rounding.
    """
    by_definition = {layer: replace(change, weights=None) for layer, change in damped.items()}
    with changing(model, {**changes, **by_definition}):
        for batch, found in zip(batches, folded, strict=True):
            expected = reference_logits(model, batch)
            if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                names = ", ".join(map(str, model.numbering.names(damped)))
                raise UnsupportedModelError(
                    f"Layers {names} of {model.source} cannot be damped: folded weights move logits by "
                    f"{np.abs(found - expected).max():.3g} from those of "
                    f"branches that are scaled (tolerance {TOLERANCE:g}).",
                    "Drop layers instead, or report the family.",
                )


def refuse_larger_than_memory(model: LoadedModel) -> None:
    """Refuse to load what cannot be: the system would end the process without a word.

    Args:
        model: An outline of it.

    Raises:
        ConfigError: If its weights in float32 alone are more than the memory that is free.
    """
    needed = sum(4 * weight.numel() for weight in model.network.parameters())  # what is tied, once
    free = available_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"{model.source} takes {needed / 1e9:.1f} GB in float32, "
            f"and {free / 1e9:.1f} GB of memory are free.",
            "Add --proof weights: it prunes the files, and loads nothing.",
        )


def reference_logits(model: LoadedModel, inputs: Inputs) -> np.ndarray:
    """Return the model's logits that mean something, which something saved is to be held against.

    Raises:
        UnsupportedModelError: If they are not finite: nothing can be proven equal to NaN.
    """
    logits = model.task.compared(model.logits(inputs), inputs)
    if not np.isfinite(logits).all():
        raise UnsupportedModelError(
            f"The logits of {model.source} are not finite (NaN or infinite).",
            "Check the checkpoint's weights.",
        )
    return logits


def reload_logits(folder: Path, model: LoadedModel, batches: Sequence[Inputs]) -> list[np.ndarray]:
    """Load a checkpoint in a fresh process with the stock auto class; return its logits that mean something.

    Raises:
        UnsupportedModelError: If the checkpoint does not load, or loads with missing, unexpected or
            mismatched weights.
    """
    job = {
        "folder": str(folder.resolve()),
        "task": model.task.name,
        "trust_remote_code": model.trust_remote_code,
        "num_batches": len(batches),
        "num_threads": torch.get_num_threads(),
    }
    # Through pipes, not files: nothing is left of a process that is killed, and no room is needed.
    arrays = {f"{i}.{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    child = _run_fresh(json.dumps(job).encode() + b"\n" + _packed(arrays))
    if child.returncode != 0:
        said = child.stderr.decode(errors="replace")
        reason = (said.strip().splitlines() or [f"it ended with code {child.returncode}"])[-1]
        raise UnsupportedModelError(f"The saved checkpoint does not reload: {reason}")
    with np.load(io.BytesIO(child.stdout), allow_pickle=False) as outputs:
        return [outputs[str(i)] for i in range(len(batches))]


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the bytes of an npz file."""
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    return packed.getvalue()


def _run_fresh(job: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run `_reload` on a job, in a process that has nothing of this one."""
    return subprocess.run(
        [sys.executable, "-c", "from tapioca_export.models.proof import _reload; _reload()"],
        input=job,
        capture_output=True,
        check=False,
    )


def _reload() -> None:
    """Run the fresh process's side of `reload_logits`: JSON and arrays on stdin, arrays on stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no answer
    job = json.loads(sys.stdin.buffer.readline())
    given = io.BytesIO(sys.stdin.buffer.read())
    torch.set_num_threads(job["num_threads"])  # the same threads, hence the same order of sums
    config = AutoConfig.from_pretrained(
        job["folder"], local_files_only=True, trust_remote_code=job["trust_remote_code"]
    )
    task = find_task(config, job["task"])
    network, info = auto_class(task).from_pretrained(
        job["folder"],
        dtype=torch.float32,  # in which the model was measured, whatever the file has
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=job["trust_remote_code"],
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, info[kind]))[:3])}")
    aligned(network).eval()
    outputs = {}
    with np.load(given, allow_pickle=False) as inputs:
        for i in range(job["num_batches"]):
            batch = {k.split(".", 1)[1]: v for k, v in inputs.items() if k.startswith(f"{i}.")}
            outputs[str(i)] = task.compared(answer_of(network, task, batch), batch)
    with answers:
        answers.write(_packed(outputs))
