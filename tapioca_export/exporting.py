"""Export: checkpoint -> file, then proof that the file computes what PyTorch computes.

The proof runs on the user's own samples, at several lengths and batch sizes, padded on either
side; a file that fails it is left as `<name>.invalid` and the export is an error. To add a format,
write one function and register a `Format` in `FORMATS`. Knows nothing about why layers are gone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifacts import Export, sha256, write
from .errors import ExportError, ParityError, first_line
from .models import LoadedModel, reference_logits, to_tensors
from .registry import Table
from .samples import Samples
from .tasks import Inputs, Task

# Above this the weights go to one file beside the graph: protobuf ends at 2 GB.
INLINE_WEIGHTS_BYTES = 1 << 30
# Batches of the user's rows that parity is checked on, by number of rows.
PARITY_BATCHES = (1, 1, 2, 3, 8, 8)
OLDEST_OPSET = 18

Run = Callable[[Inputs], list[np.ndarray]]


@dataclass(frozen=True)
class Written:
    """What an exporter says about the file it wrote."""

    exporter: str
    opset: int | None
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """One file format: how to write it, and how to run it back.

    `write(model, example, path, opset)` traces the model on the example and writes the file;
    `open(path, outputs)` returns a function from inputs to the outputs of these names.
    """

    file: str
    write: Callable[[LoadedModel, Inputs, Path, int | None], Written]
    open: Callable[[Path, tuple[str, ...]], Run]
    help: str
    note: str | None = None


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how closely it must agree; `tolerance` is absolute, on logits."""

    format: str = "onnx"
    opset: int | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse a name or an opset that cannot be written.

        Raises:
            UnknownNameError: If there is no such format.
            ExportError: If the opset is older than the exporter writes.
        """
        FORMATS[self.format]
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise ExportError(
                f"Opset {self.opset} is too old: the exporter writes {OLDEST_OPSET} and newer.",
                "Leave out --opset.",
            )


FORMATS: Table[Format] = Table("format")


def export_model(
    model: LoadedModel,
    samples: Samples,
    folder: Path,
    settings: ExportSettings,
    drop: tuple[int, ...] = (),
) -> Export:
    """Export a model and prove the file equal to it.

    Args:
        model: The model, in evaluation mode on the CPU.
        samples: The user's rows to compare on.
        folder: An existing folder; gets the file, config.json, tokenizer files and export.json.
        settings: Format, opset, tolerance.
        drop: Layers already removed, recorded.

    Raises:
        ExportError: If the exporter refuses the model.
        ParityError: If file and model differ; the file is then `<name>.invalid`.
    """
    format_ = FORMATS[settings.format]
    path = folder / format_.file
    assert not any(module.training for module in model.network.modules())
    with _quiet():
        written = format_.write(model, model.task.examples(model.processor)[0], path, settings.opset)
        run = format_.open(path, model.task.outputs)
    try:
        proof = _prove(model, samples, run, settings.tolerance)
    except ParityError as error:
        for file in _files(path):
            file.rename(file.with_name(file.name + ".invalid"))
        raise ParityError(f"{model.source} as {settings.format}: {error.message}", error.hint) from error
    model.network.config.save_pretrained(folder)
    model.processor.save(folder)
    export = Export(
        model=model.source,
        task=model.task.name,
        format=settings.format,
        file=path.name,
        exporter=written.exporter,
        opset=written.opset,
        inputs=written.inputs,
        outputs=model.task.outputs,
        tolerance=settings.tolerance,
        size_bytes=sum(file.stat().st_size for file in _files(path)),
        sha256=sha256(path),
        num_layers=model.num_layers + len(drop),
        drop=drop,
        max_length=model.processor.max_length,
        note=format_.note,
        **proof,
    )
    write(folder / "export.json", export)
    return export


# --- parity ---------------------------------------------------------------------------------


def _prove(model: LoadedModel, samples: Samples, run: Run, tolerance: float) -> dict[str, Any]:
    """Compare file and model on the user's rows; returns the fields of the proof.

    Raises:
        ParityError: If an output is off by more than the tolerance, or a label changes.
    """
    worst, shapes, sides, num_rows, agreeing = 0.0, [], [], 0, 0.0
    for side, batch in parity_batches(model, samples):
        expected = reference_logits(model, batch)
        try:
            found = run(batch)
        # ONNX Runtime's errors share no base class but this one; TorchScript raises RuntimeError.
        except Exception as error:
            raise ParityError(f"the file does not run on your rows: {first_line(error)}") from error
        actual = model.task.compared(model.task.joined(found), batch)
        shape = next(iter(batch.values())).shape
        difference = np.inf
        if actual.shape == expected.shape and np.isfinite(actual).all():
            difference = float(np.abs(actual - expected).max())
        agreement = model.task.agreement(expected, actual) if np.isfinite(difference) else 0.0
        if difference > tolerance or agreement < 1:
            raise ParityError(
                f"logits differ by {difference:.2g} (tolerance {tolerance:.2g}), labels agree on "
                f"{agreement:.0%} of the rows, at batch {' x '.join(map(str, shape))} values, padded {side}.",
                "The file is not usable. Try another --format or --opset; raise --atol only if you know why.",
            )
        worst = max(worst, difference)
        shapes.append(tuple(map(int, shape)))
        sides.append(side)
        num_rows += shape[0]
        agreeing += agreement * shape[0]
    return {
        "max_abs_difference": worst,
        "label_agreement": agreeing / num_rows,
        "rows_checked": int(num_rows),
        "shapes_checked": tuple(dict.fromkeys(shapes)),
        "padding_checked": tuple(dict.fromkeys(sides)),
    }


def parity_batches(model: LoadedModel, samples: Samples) -> Iterator[tuple[str, Inputs]]:
    """Yield (padding side, inputs): shortest, longest and mixed rows, one and several at a time."""
    order = np.argsort(model.task.lengths(samples.rows, model.processor), kind="stable")
    rows = [samples.rows[i] for i in order]
    # Short and long rows meet in a batch, so that padding occurs.
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    start = 0
    for number, size in enumerate(PARITY_BATCHES):
        if number == 0:
            chosen = rows[:1]
        elif number == 1:
            chosen = rows[-1:]
        else:
            chosen = [mixed[(start + i) % len(mixed)] for i in range(size)]
            start += size
        sides = ("none",) if size == 1 else model.task.padding_sides
        for side in sides:
            inputs = model.task.encode(chosen, model.processor, None if side == "none" else side)
            yield side, inputs
            if model.task.is_prompt:  # rows of one length: check a shorter one as well
                half = next(iter(inputs.values())).shape[1] // 4 * 2
                yield side, {name: values[:, :half] for name, values in inputs.items()}


# --- formats --------------------------------------------------------------------------------


def _tensors_only(model: LoadedModel, names: tuple[str, ...]) -> Any:
    """Return a module from tensors, in the order of `names`, to the tuple of what the task reads."""
    from torch import nn

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network
            # A fresh module is in training mode, and exporters would put the network there as well.
            self.eval()

        def forward(self, *tensors: Any) -> Any:
            inputs = dict(zip(names, tensors, strict=True))
            found = self.network(**inputs, **model.forward_options)
            return tuple(found[name] for name in model.task.outputs)

    return Outputs()


def write_onnx(model: LoadedModel, example: Inputs, path: Path, opset: int | None) -> Written:
    """Write ONNX with transformers' own exporter, batch and sequence dynamic.

    Raises:
        ExportError: If the exporter refuses the model, or writes another opset.
    """
    import onnx_ir
    import torch
    import transformers
    from transformers.exporters import OnnxConfig, OnnxExporter

    # AUTO, as models bound the sequence by their positions, and a named dimension must state the bound.
    auto = torch.export.Dim.AUTO
    config = OnnxConfig(
        dynamic=True,
        opset_version=opset,
        dynamic_shapes={name: dict.fromkeys(range(len(model.task.axes(name))), auto) for name in example},
    )
    had_cache = getattr(model.network.config, "use_cache", None)
    try:
        if had_cache:
            model.network.config.use_cache = False
        exported = OnnxExporter().export(model.network, to_tensors(example), config=config)
    # The exporter, torch.export and onnxscript raise errors of their own without a common base.
    except Exception as error:
        raise ExportError(
            f"The ONNX exporter refuses {model.source}: {type(error).__name__}: {first_line(error)}",
            "Try --format torchscript, or another --opset.",
        ) from error
    finally:
        if had_cache is not None:
            model.network.config.use_cache = had_cache
    # transformers 5.23 returns a model of its own, 5.20 (Python 3.10) torch's ONNXProgram.
    program = exported.program if hasattr(exported, "program") else exported.model
    written = program.opset_imports.get("")
    if opset not in (None, written):
        raise ExportError(f"Opset {opset} was asked for, the exporter wrote {written}.", "Leave out --opset.")
    _name_axes(program.graph, model.task)
    num_bytes = sum(p.numel() * p.element_size() for p in model.network.parameters())
    external = f"{path.name}.data" if num_bytes > INLINE_WEIGHTS_BYTES else None
    onnx_ir.save(program, str(path), external_data=external)
    return Written(
        f"transformers {transformers.__version__} OnnxExporter, torch {torch.__version__}",
        written,
        tuple(str(value.name) for value in program.graph.inputs),
    )


def _name_axes(graph: Any, task: Task) -> None:
    """Call the dynamic axes of the inputs by the task's names, wherever they occur."""
    names = {
        str(value.shape[axis]): name
        for value in graph.inputs
        for axis, name in enumerate(task.axes(value.name))
    }
    symbol = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        for axis, dimension in enumerate(value.shape or ()):
            if not isinstance(dimension, int):  # a symbol, or an expression of symbols
                value.shape[axis] = symbol.sub(lambda match: names[match.group()], str(dimension))


def open_onnx(path: Path, outputs: tuple[str, ...]) -> Run:
    """Run an ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Inputs) -> list[np.ndarray]:
        return list(session.run(outputs, {name: inputs[name] for name in names}))

    return run


FORMATS.add("onnx")(
    Format("model.onnx", write_onnx, open_onnx, "ONNX, batch and sequence dynamic, for ONNX Runtime.")
)


def write_torchscript(model: LoadedModel, example: Inputs, path: Path, opset: int | None) -> Written:
    """Write TorchScript by tracing; inputs are positional, in the order of export.json.

    Raises:
        ExportError: If the model cannot be traced.
    """
    import torch

    names = tuple(example)
    try:
        with torch.no_grad():
            traced = torch.jit.trace(_tensors_only(model, names), tuple(to_tensors(example).values()))
            torch.jit.save(traced, str(path))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"TorchScript cannot trace {model.source}: {first_line(error)}") from error
    return Written(f"torch.jit.trace, torch {torch.__version__}", None, names)


def open_torchscript(path: Path, outputs: tuple[str, ...]) -> Run:
    """Run a TorchScript file, whose outputs are positional."""
    import torch

    module = torch.jit.load(str(path)).eval()

    def run(inputs: Inputs) -> list[np.ndarray]:
        with torch.no_grad():
            return [np.asarray(found) for found in module(*to_tensors(inputs).values())]

    return run


FORMATS.add("torchscript")(
    Format(
        "model.pt",
        write_torchscript,
        open_torchscript,
        "TorchScript by tracing; deprecated by PyTorch.",
        note="TorchScript is deprecated by PyTorch in favour of torch.export.",
    )
)


def _files(path: Path) -> list[Path]:
    """Return the exported file and, where the weights are beside it, theirs."""
    return [file for file in (path, path.with_name(path.name + ".data")) if file.exists()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters: they print to stdout and warn about packages that are not needed."""
    previous = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
