"""Models: load one, find its layer stack, drop layers physically, save, prove the round trip.

A model's own `forward` is never re-implemented: blocks are skipped by a stand-in at their place.
Knows nothing about metrics, selection or export formats. A layer index is always the 0-based index
in the model that was loaded, counted through its stacks in the order in which they run.
"""

from ..tensors import to_tensors
from .casting import cast
from .damping import Damped, Offsets
from .folding import damping_weights
from .graph_network import GraphNetwork, refuse_graph
from .joining import Join
from .loaded import FAILURES, SPREAD, LoadedModel, LoadOptions, generated
from .loading import find_task, load_config, load_model, load_processor, outline_model
from .proof import prove_saved, reference_logits, refuse_larger_than_memory, save_pruned
from .rewriting import mend_config_file, write_pruned
from .settings import prove_settings
from .shards import fingerprint_of
from .skipping import (
    DROPPED,
    INTACT,
    Change,
    EndOfForward,
    Rescaled,
    Scaled,
    StandIn,
    changes_of,
    changing,
    lacking,
    skipping,
    stand_ins,
    stream_of,
    with_stream,
)
from .stacks import Stack, config_at, find_stacks, in_order, prunable_stacks
from .surgery import drop_layers, droppable_layers

__all__ = [
    "DROPPED",
    "FAILURES",
    "INTACT",
    "SPREAD",
    "Change",
    "Damped",
    "EndOfForward",
    "GraphNetwork",
    "Join",
    "LoadOptions",
    "LoadedModel",
    "Offsets",
    "Rescaled",
    "Scaled",
    "Stack",
    "StandIn",
    "cast",
    "changes_of",
    "changing",
    "config_at",
    "damping_weights",
    "drop_layers",
    "droppable_layers",
    "find_stacks",
    "find_task",
    "fingerprint_of",
    "generated",
    "in_order",
    "lacking",
    "load_config",
    "load_model",
    "load_processor",
    "mend_config_file",
    "outline_model",
    "prove_saved",
    "prove_settings",
    "prunable_stacks",
    "reference_logits",
    "refuse_graph",
    "refuse_larger_than_memory",
    "save_pruned",
    "skipping",
    "stand_ins",
    "stream_of",
    "to_tensors",
    "with_stream",
    "write_pruned",
]
