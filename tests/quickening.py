"""What tests would pay at every export and need once a process; the files are the same to the byte.

`torch.onnx` reads the source of all functions it has for operators anew for each graph, and onnxscript tries
every rule on every node, where one look at the node's operator says that it does not match. Of a process
that has imported PyTorch and transformers, Python's collector looks through a million objects that stay.
"""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
from types import SimpleNamespace
from typing import Any

import onnx_ir
import pytest
import torch
from onnxscript.rewriter import RewriteRule
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tapioca_export.benchmarking import timing

LARGE_BYTES = 20 * 10**6  # larger ones are not kept
TRANSLATIONS = "custom_translation_table"  # always that of transformers


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Patch PyTorch, onnxscript, and the collections before latency is timed, for the time of a session."""
    brief = SimpleNamespace(
        isenabled=gc.isenabled, disable=gc.disable, enable=gc.enable, collect=lambda: gc.collect(0)
    )
    patch.setattr(timing, "gc", brief)
    patch.setattr(torch.onnx, "export", _translated_once(torch.onnx.export))
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


def _translated_once(export: Any) -> Any:
    """Translate a traced program to ONNX once, and return copies wherever an equal one is given again.

    Equal are programs with the same nodes, shapes, symbols, names of modules, and weights to the bit. Each is
    traced itself, so that whatever changes what a network computes makes it another one.
    """
    translated: dict[str, Any] = {}

    def translate(program: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(program, torch.export.ExportedProgram) or arguments:
            return export(program, *arguments, **options)
        weights = {**program.state_dict, **program.constants}
        if sum(value.nbytes for value in weights.values() if isinstance(value, torch.Tensor)) > LARGE_BYTES:
            return export(program, **options)
        key = _digest(program, weights, options)
        if key not in translated:
            translated[key] = export(program, **options)
            for value in translated[key].model.graph.initializers.values():  # those of a network may change
                held = value.const_value
                value.const_value = onnx_ir.Tensor(held.numpy().copy(), dtype=held.dtype, name=held.name)
        found = copy.copy(translated[key])
        found.model = found.model.clone()
        return found

    return translate


def _digest(program: torch.export.ExportedProgram, weights: dict[str, Any], options: dict[str, Any]) -> str:
    digest = hashlib.sha256(f"{program.graph_signature} {program.range_constraints}".encode())
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            said = (node.op, node.name, node.target, node.args, node.kwargs)
            meta = (node.meta.get(name) for name in ("val", "nn_module_stack", "torch_fn"))
            digest.update(repr((*said, *meta)).encode())
    for name, value in sorted(weights.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {value.shape} {value.stride()}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    asked = {name: value for name, value in options.items() if name not in ("kwargs", TRANSLATIONS)}
    digest.update(repr((asked, sorted(map(str, options.get(TRANSLATIONS) or ())))).encode())
    return digest.hexdigest()


def _tried_where_it_may_match(try_rewrite: Any) -> Any:
    """Try a rule only where the node is of the operator that the first output of its pattern is of."""

    def tried(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        operator = rule._target_pattern.output_nodes[0].op_identifier()  # None, if any may match
        if operator is not None and operator[:2] != (node.domain, node.op_type):
            return None
        return try_rewrite(rule, model, graph, node, **options)

    return tried
