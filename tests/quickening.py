"""What tests would pay at every export and need once a process; the files are the same to the byte.

`torch.onnx` reads the source of all functions it has for operators anew for each graph, and onnxscript tries
every rule on every node, where one look at the node's operator says that it does not match. Of a process
that has imported PyTorch and transformers, Python's collector looks through a million objects that stay.
"""

from __future__ import annotations

import copy
import functools
import gc
from types import SimpleNamespace
from typing import Any

import pytest
from onnxscript.rewriter import RewriteRule
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tapioca_export.benchmarking import timing


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Patch PyTorch, onnxscript, and the collections before latency is timed, for the time of a session."""
    brief = SimpleNamespace(
        isenabled=gc.isenabled, disable=gc.disable, enable=gc.enable, collect=lambda: gc.collect(0)
    )
    patch.setattr(timing, "gc", brief)
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_read_once(ONNXRegistry.from_torchlib)))
    patch.setattr(RewriteRule, "try_rewrite", _tried_where_it_may_match(RewriteRule.try_rewrite))


def collect_less() -> None:
    """Leave out of every collection what is there by then, the imported libraries above all; make fewer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _read_once(from_torchlib: Any) -> Any:
    """Return a registry that is the caller's own, of functions that are read once."""
    read = functools.cache(from_torchlib)

    def registry(*arguments: Any, **options: Any) -> Any:
        found = copy.copy(read(*arguments, **options))
        found.functions = {target: list(functions) for target, functions in found.functions.items()}
        return found

    return registry


def _tried_where_it_may_match(try_rewrite: Any) -> Any:
    """Try a rule only where the node is of the operator that the first output of its pattern is of."""

    def tried(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        operator = rule._target_pattern.output_nodes[0].op_identifier()  # None, if any may match
        if operator is not None and operator[:2] != (node.domain, node.op_type):
            return None
        return try_rewrite(rule, model, graph, node, **options)

    return tried
