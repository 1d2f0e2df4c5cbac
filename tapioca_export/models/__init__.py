"""Models: load one, find its layer stack, drop layers physically, save, prove the round trip.

A model's own `forward` is never re-implemented: blocks are skipped by a stand-in at their place.
Knows nothing about metrics, selection or export formats. A layer index is always the 0-based index
in the model that was loaded.
"""

from .loaded import SPREAD, LoadedModel, LoadOptions, to_tensors
from .loading import infer_task, load_config, load_model, load_processor, outline_model
from .proof import reference_logits, refuse_larger_than_memory, save_pruned
from .rewriting import write_pruned
from .skipping import EndOfForward, StandIn, skipping, stand_ins, stream_of, with_stream
from .stacks import Stack, find_stack, find_stacks
from .surgery import check_layers, drop_layers, droppable_layers

__all__ = [
    "SPREAD",
    "EndOfForward",
    "LoadOptions",
    "LoadedModel",
    "Stack",
    "StandIn",
    "check_layers",
    "drop_layers",
    "droppable_layers",
    "find_stack",
    "find_stacks",
    "infer_task",
    "load_config",
    "load_model",
    "load_processor",
    "outline_model",
    "reference_logits",
    "refuse_larger_than_memory",
    "save_pruned",
    "skipping",
    "stand_ins",
    "stream_of",
    "to_tensors",
    "with_stream",
    "write_pruned",
]
