"""`torch.export`, the successor of TorchScript: batch and sequence are dynamic, weights keep their names.

The file takes inputs by name and gives a dict of outputs, and nothing in it is of transformers: whoever
has PyTorch loads it. It keeps no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ExportError, first_line
from ..models import LoadedModel, to_tensors
from ..programs import open_program
from ..stopping import unstopped
from ..tasks import Inputs
from .formats import FORMATS, Dialect, Format, Written
from .tracing import dynamic, exported, exporter_name
from .writing import stream_into

MODEL_FILE = "model.pt2"


def write_pt2(model: LoadedModel, example: Inputs, folder: Path, dialect: Dialect) -> Written:
    """Write what `torch.export` makes of the network.

    Raises:
        ExportError: If the network cannot be traced, or the trace not be saved.
    """
    import torch
    from transformers.exporters import DynamoConfig, DynamoExporter

    sample = to_tensors(example, dtype=model.network.dtype)
    axes = {name: dynamic(range(len(model.task.axes(name)))) for name in sample}
    config = DynamoConfig(dynamic=True, dynamic_shapes=axes)
    with _tensors_only(model):
        program = exported(model.source, model.network, sample, DynamoExporter(), config)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of source under the paths of this machine
    # Whatever is raised within PyTorch's writer, by a signal too, ends the process.
    with unstopped(), stream_into(folder / MODEL_FILE) as stream:
        try:
            torch.export.save(program, stream)
        # Of what has no place in the file, PyTorch's serializer raises errors of its own.
        except Exception as error:
            raise ExportError(f"torch.export cannot save {model.source}: {first_line(error)}") from error
    return Written(exporter_name("DynamoExporter"), None, tuple(example), model.task.outputs, (MODEL_FILE,))


@contextmanager
def _tensors_only(model: LoadedModel) -> Iterator[None]:
    """Let the network's forward give what the task reads, in a plain dict, and cache nothing."""
    network, options = model.network, model.forward_options
    own = network.forward

    def forward(**inputs: object) -> dict[str, object]:
        found = own(**inputs, **options)
        return {name: found[name] for name in model.task.outputs}

    network.forward = forward
    try:
        yield
    finally:
        del network.forward  # the class has its own


FORMATS.add("pt2")(
    Format(
        write_pt2,
        lambda folder, written: open_program(folder / MODEL_FILE, "pt2", written.inputs, written.outputs),
        "torch.export, batch and sequence dynamic, for PyTorch.",
    )
)
