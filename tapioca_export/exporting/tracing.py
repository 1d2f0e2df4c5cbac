"""A network traced by transformers' exporters, which all rest on `torch.export`.

Knows nothing about formats, tasks, or what is made of a trace.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from ..errors import ExportError, first_line


def exporter_name(exporter: str) -> str:
    """Return what traces and writes, with versions."""
    import torch
    import transformers

    return f"transformers {transformers.__version__} {exporter}, torch {torch.__version__}"


def dynamic(axes: Iterable[int]) -> dict[int, Any]:
    """Let axes vary from batch to batch."""
    import torch

    # AUTO, as models bound the sequence by their positions, and a named dimension must state the bound.
    return dict.fromkeys(axes, torch.export.Dim.AUTO)


def exported(source: str, network: Any, sample: dict[str, Any], exporter: Any, config: Any) -> Any:
    """Trace a network, or a part of one, on a sample; return the program that an exporter makes of it.

    Args:
        source: What the network is of, for messages.
        network: What is traced.
        sample: Its inputs; no axis that is to vary may be one long.
        exporter: One of transformers'.
        config: Its settings, with the axes that vary.

    Raises:
        ExportError: If the exporter refuses the network.
    """
    import torch

    try:
        with _taking_values_as_finite() if network.dtype == torch.float16 else nullcontext():
            found = exporter.export(network, sample, config=config)
    # The exporter, torch.export and onnxscript raise errors of their own without a common base.
    except Exception as error:
        raise ExportError(
            f"{type(exporter).__name__} refuses {source}: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        _clear_fake_tensor_caches()
    # transformers 5.23 returns a model of its own; 5.20 (Python 3.10) torch's ExportedProgram or ONNXProgram.
    if hasattr(found, "program"):
        return found.program
    return getattr(found, "model", found)


def _clear_fake_tensor_caches() -> None:
    """Empty the caches of traces' symbolic shapes: PyTorch would keep them, and so the traces, for good.

    Their entries refer to sizes that tensors of C++ hold, where no garbage collection looks. Exporters do
    not say which environment a trace had; a cache that is needed fills again.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    for found in gc.get_objects():
        if type(found) is ShapeEnv:
            found.fake_tensor_cache.clear()


def _taking_values_as_finite() -> Any:
    """Answer `torch.isfinite(...).all()` with True while a network is traced.

    Layers of BART and its kin ask it in float16 alone, to clamp what is infinite, and a graph has no
    branches. Where values are not finite, PyTorch clamps and the file does not, so that the proof fails.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Finite(TorchFunctionMode):
        asked: Any = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.all and args[0] is self.asked:
                return True
            found = function(*args, **(kwargs or {}))
            if function is torch.isfinite:
                self.asked = found
            return found

    return Finite()
