"""Models: load one, find its layer stack, drop layers physically, save, prove the round trip.

A model's own `forward` is never re-implemented: blocks are skipped by a stand-in at their place.
Knows nothing about metrics, selection or export formats. A layer index is always the 0-based index
in the model that was loaded, counted through its stacks in the order in which they run.
"""

from .loaded import SPREAD, LoadedModel, LoadOptions, to_tensors
from .loading import infer_task, load_config, load_model, load_processor
from .proof import reference_logits, save_pruned
from .skipping import EndOfForward, StandIn, skipping, stand_ins, stream_of, with_stream
from .stacks import Stack, config_at, find_stacks, in_order, prunable_stacks
from .surgery import drop_layers, droppable_layers

__all__ = [
    "SPREAD",
    "EndOfForward",
    "LoadOptions",
    "LoadedModel",
    "Stack",
    "StandIn",
    "config_at",
    "drop_layers",
    "droppable_layers",
    "find_stacks",
    "in_order",
    "infer_task",
    "load_config",
    "load_model",
    "load_processor",
    "prunable_stacks",
    "reference_logits",
    "save_pruned",
    "skipping",
    "stand_ins",
    "stream_of",
    "to_tensors",
    "with_stream",
]
