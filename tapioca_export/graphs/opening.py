"""What lies between some values of a graph and others, run in ONNX Runtime; weights stay where they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TapiocaError, first_line, onnxruntime_errors
from ..sessions import SPINNING, session_on_cpu

if TYPE_CHECKING:
    import onnx_ir as ir

Arrays = Mapping[str, np.ndarray]
# Where ONNX Runtime looks for the weights of a graph that is given to it in memory.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@contextmanager
def refused_as(kind: Callable[[str, str], TapiocaError], what: str, hint: str) -> Iterator[None]:
    """Say what a user is told, and what to do, in place of what ONNX Runtime raises.

    Raises:
        TapiocaError: Of that kind, with ONNX Runtime's reason.
    """
    try:
        yield
    except onnxruntime_errors() as error:
        raise kind(f"{what}: {first_line(error)}", hint) from error


@dataclass(frozen=True)
class Piece:
    """An open session; none where nothing is computed, and what goes in comes out."""

    stream: str
    outputs: tuple[str, ...]
    session: Any

    def run(self, beside: Arrays, stream: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the outputs, in order.

        Raises:
            Exception: One of `onnxruntime_errors`, if ONNX Runtime does not compute them.
        """
        given = beside if stream is None else {**beside, self.stream: stream}
        found = dict(given)
        if self.session is not None:
            feed = {value.name: given[value.name] for value in self.session.get_inputs()}
            names = [value.name for value in self.session.get_outputs()]
            found.update(zip(names, self.session.run(names, feed), strict=True))
        return [found[name] for name in self.outputs]


class Opener:
    """Opens pieces of a model, from input to output: each says of what type the next one's inputs are.

    Args:
        model: The model.
        folder: Where its weights are.
        num_threads: Of each operator; 0: as many as there are cores.
        is_literal: Whether pieces are run as they are written.
    """

    def __init__(
        self, model: ir.Model, folder: Path, num_threads: int = 0, *, is_literal: bool = False
    ) -> None:
        self.model, self.num_threads, self.is_literal = model, num_threads, is_literal
        self.types: dict[str, ir.DataType] = {}
        # Threads of one session that wait busily would take the cores from the next.
        self.entries = {SPINNING: "0", WEIGHTS_FOLDER: str(_follow_links(model, folder))}

    def take(self, value: ir.Value, other: ir.Value) -> None:
        """Take a value to be of another's type: as a piece before it said, else as the graph says."""
        if (known := self.types.get(str(other.name), other.dtype)) is not None:
            self.types[str(value.name)] = known

    def open(
        self, streams: Sequence[ir.Value], targets: Sequence[ir.Value], beside: Sequence[ir.Value]
    ) -> Piece:
        """Open the piece between what flows in, the stream and what is beside it, and the targets.

        Raises:
            Exception: One of `onnxruntime_errors`, if ONNX Runtime refuses it.
        """
        inputs = list(dict.fromkeys((*streams, *beside)))
        computed = [value for value in dict.fromkeys(targets) if value not in inputs]
        return Piece(
            str(streams[0].name) if streams else "",
            tuple(str(value.name) for value in targets),
            self._session(inputs, computed) if computed else None,
        )

    def _session(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Any:
        import onnx_ir

        model = self.model
        graph = onnx_ir.convenience.extract(model.graph, inputs, outputs)
        graph.inputs[:] = [value for value in graph.inputs if value.uses()]
        for value in graph.inputs:
            if (known := self.types.get(str(value.name))) is not None:
                value.dtype = known
        piece = onnx_ir.Model(graph, ir_version=model.ir_version, functions=[*model.functions.values()])
        written = onnx_ir.to_proto(piece).SerializeToString()
        session = session_on_cpu(written, self.num_threads, self.entries, is_literal=self.is_literal)
        for value in session.get_outputs():
            kind = value.type.removeprefix("tensor(").removesuffix(")")  # "tensor(uint8)", say
            self.types[value.name] = onnx_ir.DataType[kind.upper()]
        return session


def _follow_links(model: ir.Model, folder: Path) -> Path:
    """Name the files with weights by what links to them lead to; return the folder that these are in.

    Of a graph in memory ONNX Runtime takes no file outside that folder, and in the cache of the Hugging Face
    hub every file is a link to one of another name.
    """
    import onnx_ir

    weights = model.graph.initializers.values()
    outside = [value for value in weights if isinstance(value.const_value, onnx_ir.ExternalTensor)]
    files = {value: (folder / str(value.const_value.location)).resolve() for value in outside}
    if not files:
        return folder.resolve()
    home = Path(os.path.commonpath([file.parent for file in files.values()]))
    for value, file in files.items():
        old = value.const_value
        value.const_value = onnx_ir.ExternalTensor(
            file.relative_to(home).as_posix(),
            old.offset,
            old.length,
            old.dtype,
            shape=old.shape,
            name=old.name,
            base_dir=home,
        )
    return home
