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

# What a file is opened with, on a device: a module, and what calls it with tensors by name.
Opener = Callable[[Path, str], tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]]
CPU = "cpu"
# How many shapes of one program are compiled before PyTorch gives up.
MOST_SHAPES = 64
PROGRAMS: Table[Opener] = Table("format of PyTorch programs")


@PROGRAMS.add("torchscript")
def _torchscript(file: Path, device: str) -> tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]:
    """Inputs and outputs are positional; tensors that a trace made on the CPU are made on the device."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said where the file is written
        module = torch.jit.load(str(file), map_location=device).eval()
    if device != CPU:
        for part in module.modules():
            for name in part._c._method_names():  # of a part that is only called by others, there are none
                _place_constants(part._c._get_method(name).graph, device)
    return module, lambda module, tensors: module(*tensors.values())


def _place_constants(graph: Any, device: str) -> None:
    """Set each device that a traced graph names: loading moves weights, and leaves those where they were."""
    for node in graph.findAllNodes("prim::Constant"):
        if node.output().type().kind() == "DeviceObjType":
            node.s_("value", device)


@PROGRAMS.add("pt2")
def _pt2(file: Path, device: str) -> tuple[Any, Callable[[Any, Mapping[str, Any]], Any]]:
    """Inputs are named, and outputs are values of a dict."""
    import torch
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(file)
    if device != CPU:
        # What a program asserts of its tensors' devices names one: to torch.compile, cuda is not cuda:0.
        program = move_to_device_pass(program, f"{device}:{torch.cuda.current_device()}")
    module = program.module()
    return module, lambda module, tensors: tuple(module(**tensors).values())


def open_program(
    file: Path,
    format_: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    device: str = CPU,
    compiled: bool = False,
) -> Session:
    """Open a file that is trusted; return what runs it.

    Args:
        file: The program.
        format_: A name of `PROGRAMS`.
        inputs: The names of its inputs, in their order.
        outputs: The names of its outputs, in theirs.
        device: PyTorch's name of where it runs.
        compiled: Whether `torch.compile` makes kernels of it first, once for every shape.

    Returns:
        A function from inputs to outputs, by name. It feeds the file's inputs, and ignores others; outputs
        are float32, as NumPy has no bfloat16.

    Raises:
        LoadError: If PyTorch refuses the file.
        BenchmarkError: From the function, if an input is missing or the file does not run on a batch.
    """
    import torch

    try:
        module, call = PROGRAMS[format_](file, device)
    # A zip file that is none, an index that is no JSON, a graph of another version: no common base.
    except Exception as error:
        raise LoadError(f"PyTorch cannot open {file}: {first_line(error)}", "Export it again.") from error
    # What PyTorch raises over a batch; the last two where a trace assumed what does not hold.
    refused: tuple[type[Exception], ...] = (RuntimeError, AssertionError, IndexError)
    if compiled:
        # Whole, or not at all: what falls back to single operators is not measured under this name.
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        # Files are held against their originals in the precision that PyTorch has by default.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        module = torch.compile(module, fullgraph=True, dynamic=False, mode="reduce-overhead")
        refused = (*refused, torch._dynamo.exc.FailOnRecompileLimitHit)
    dtype = next((weight.dtype for weight in module.parameters()), torch.float32)

    def run(batch: Inputs) -> dict[str, np.ndarray]:
        missing = [name for name in inputs if name not in batch]
        if missing:
            raise BenchmarkError(
                f"{file} needs input {', '.join(missing)}; the task gives {', '.join(sorted(batch))}."
            )
        tensors = to_tensors({name: batch[name] for name in inputs}, device, dtype)
        try:
            with torch.no_grad():
                found = call(module, tensors)
        except refused as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
            raise BenchmarkError(f"PyTorch cannot run {file} on {shapes}: {first_line(error)}") from error
        return {name: np.asarray(value.float().cpu()) for name, value in zip(outputs, found, strict=True)}

    return run
