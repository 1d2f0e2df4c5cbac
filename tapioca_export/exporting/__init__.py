"""Export: checkpoint -> file, then proof that the file computes what PyTorch computes.

The proof runs on the user's own samples, at several lengths and batch sizes, padded on either
side; a file that fails it is left as `<name>.invalid` and the export is an error. A decoder that
generates goes out with its cache of keys and values, and the proof is then that it generates the
same tokens as well. To add a format, write one function and register a `Format` in `FORMATS` (`onnx`
and `pt2` show how). Knows nothing about why layers are gone.
"""

from . import onnx, pt2, torchscript  # noqa: F401  (they register their formats)
from .adopting import SKIPPED, describe
from .formats import FORMATS, OLDEST_OPSET, Dialect, ExportSettings, Format, Written
from .parity import parity_batches
from .stage import export_model, prove_again
from .targets import dialect_for, refuse_opset_beside

__all__ = [
    "FORMATS",
    "OLDEST_OPSET",
    "SKIPPED",
    "Dialect",
    "ExportSettings",
    "Format",
    "Written",
    "describe",
    "dialect_for",
    "export_model",
    "parity_batches",
    "prove_again",
    "refuse_opset_beside",
]
