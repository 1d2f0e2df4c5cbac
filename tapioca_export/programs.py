"""PyTorch programs in files, TorchScript and torch.export: what opens and runs them.

Both kinds of file hold code. `torch.export.load` unpickles parts of an archive that its own index marks
so, and follows names in it through PyTorch's modules; PyTorch's security policy takes a TorchScript file
for code as well. Whoever opens one here has made it, or was told to trust it. Knows nothing about how a
file is made or what is measured.

Source: `torch.export.load`, its warning; SECURITY.md of pytorch/pytorch, "TorchScript models".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError, LoadError, first_line
from .generation import Session
from .registry import Table
from .tasks import Inputs
from .tensors import to_tensors

# What a file is opened with: a module, and what calls it with tensors by name.
Opener = Callable[[Path], tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]]
PROGRAMS: Table[Opener] = Table("format of PyTorch programs")


@PROGRAMS.add("torchscript")
def _torchscript(file: Path) -> tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]:
    """Inputs and outputs are positional."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said where the file is written
        module = torch.jit.load(str(file)).eval()
    return module, lambda module, tensors: module(*tensors.values())


@PROGRAMS.add("pt2")
def _pt2(file: Path) -> tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]:
    """Inputs are named, and outputs are values of a dict."""
    import torch

    module = torch.export.load(file).module()
    return module, lambda module, tensors: tuple(module(**tensors).values())


def open_program(file: Path, format_: str, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
    """Open a file that is trusted; return what runs it on the CPU.

    Args:
        file: The program.
        format_: A name of `PROGRAMS`.
        inputs: The names of its inputs, in their order.
        outputs: The names of its outputs, in theirs.

    Returns:
        A function from inputs to outputs, by name. It feeds the file's inputs, and ignores others; outputs
        are float32, as NumPy has no bfloat16.

    Raises:
        LoadError: If PyTorch refuses the file.
        BenchmarkError: From the function, if an input is missing or the file does not run on a batch.
    """
    import torch

    try:
        module, call = PROGRAMS[format_](file)
    # A zip file that is none, an index that is no JSON, a graph of another version: no common base.
    except Exception as error:
        raise LoadError(f"PyTorch cannot open {file}: {first_line(error)}", "Export it again.") from error
    dtype = next((weight.dtype for weight in module.parameters()), torch.float32)

    def run(batch: Inputs) -> dict[str, np.ndarray]:
        missing = [name for name in inputs if name not in batch]
        if missing:
            raise BenchmarkError(
                f"{file} needs input {', '.join(missing)}; the task gives {', '.join(sorted(batch))}."
            )
        tensors = to_tensors({name: batch[name] for name in inputs}, dtype=dtype)
        try:
            with torch.no_grad():
                found = call(module, tensors)
        except (RuntimeError, AssertionError, IndexError) as error:  # the last two from what a trace assumed
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
            raise BenchmarkError(f"PyTorch cannot run {file} on {shapes}: {first_line(error)}") from error
        return {name: np.asarray(value.float()) for name, value in zip(outputs, found, strict=True)}

    return run
