"""TorchScript, by tracing: deprecated by PyTorch, and exported when asked for."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from ..errors import ExportError, first_line
from ..models import LoadedModel, to_tensors
from ..programs import open_program
from ..tasks import Inputs
from .formats import FORMATS, Dialect, Format, Written

MODEL_FILE = "model.pt"


def write_torchscript(model: LoadedModel, example: Inputs, folder: Path, dialect: Dialect) -> Written:
    """Write TorchScript by tracing; inputs are positional, in the order of export.json.

    Raises:
        ExportError: If the model cannot be traced.
    """
    import torch

    names = tuple(example)
    try:
        with torch.no_grad():
            tensors = to_tensors(example, dtype=model.network.dtype)
            # Its own check traces again, and keeps each trace for good; the proof compares on more rows.
            network, inputs = _tensors_only(model, names), tuple(tensors.values())
            traced = torch.jit.trace(network, inputs, check_trace=False)
            _save(traced, folder / MODEL_FILE)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"TorchScript cannot trace {model.source}: {first_line(error)}") from error
    return Written(
        f"torch.jit.trace, torch {torch.__version__}", None, names, model.task.outputs, (MODEL_FILE,)
    )


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


FORMATS.add("torchscript")(
    Format(
        write_torchscript,
        lambda folder, written: open_program(
            folder / MODEL_FILE, "torchscript", written.inputs, written.outputs
        ),
        "TorchScript by tracing; deprecated by PyTorch.",
        note="TorchScript is deprecated by PyTorch in favour of torch.export (--format pt2).",
    )
)


def _save(traced: Any, file: Path) -> None:
    """Write a file without what is for debugging: lines of source under the paths of this machine.

    It is made in memory, where it takes its size once: on a full disk, PyTorch's own writer ends the process.
    """
    made = io.BytesIO(traced.save_to_buffer())
    with zipfile.ZipFile(made) as before, zipfile.ZipFile(file, "w") as after:
        for entry in before.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                after.writestr(entry, before.read(entry))
