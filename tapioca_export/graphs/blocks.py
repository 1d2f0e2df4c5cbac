"""Find the residual blocks of a transformer in an ONNX graph, whoever wrote it, by structure alone.

Names are no guide: exporters merge weights that are equal, under the name of one of them, and optimisers
drop names and scopes. What all have in common is the residual stream: everything that flows from the
input to the output passes through it, and each sublayer adds to it what it makes of it. A block is a run
of sublayers that begins with attention and comes back again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import UnsupportedModelError
from .flow import Flow, read_by

if TYPE_CHECKING:
    import onnx_ir as ir

# What changes how numbers are stored, and not what they stand for.
_STORED = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})
# What a value goes through on its way along the residual stream.
_ALONG = frozenset({"Add", "Sum", "Cast", "Identity", "Dropout", "SimplifiedAdd"})


@dataclass(frozen=True)
class Block:
    """One layer: the values of the residual stream before and behind it, (B, S, H)."""

    start: ir.Value
    end: ir.Value


@dataclass(frozen=True)
class Stretch:
    """What lies between two neighbouring narrows of the stream."""

    start: ir.Value
    end: ir.Value
    is_residual: bool
    has_attention: bool
    weights: tuple[tuple[int, ...], ...]  # shapes of its matrices, sorted

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """Return what two stretches have in common that do the same at different depths."""
        return (self.is_residual, self.has_attention, self.weights)


def find_blocks(flow: Flow) -> tuple[Block, ...]:
    """Return the blocks of a graph, from input to output.

    Raises:
        UnsupportedModelError: If the graph has no chain of blocks, or several.
    """
    chains: list[list[Block]] = []
    stretch = cache(partial(_stretch, flow))  # many ways lead along the same stream
    for between in flow.ways():
        for chain in _chains_among(flow, between, stretch):
            ends = {block.end for block in chain}
            same = [old for old in chains if any(block.end in ends for block in old)]
            if all(len(old) < len(chain) for old in same):
                chains = [*(old for old in chains if old not in same), chain]
    if not chains:
        raise UnsupportedModelError(
            "No chain of residual blocks with attention leads from an input of the graph to an output.",
            "Prune the checkpoint and export it again.",
        )
    if len(chains) > 1:
        sizes = ", ".join(str(len(chain)) for chain in chains)
        raise UnsupportedModelError(
            f"The graph has {len(chains)} chains of blocks ({sizes}); a number alone names no layer.",
            "Prune the checkpoint and export it again.",
        )
    return tuple(chains[0])


def _chains_among(
    flow: Flow, between: Sequence[ir.Value], stretch: Callable[[ir.Value, ir.Value], Stretch]
) -> list[list[Block]]:
    """Return the chains of blocks among all values between an input and an output.

    What is made of the input first may be a better beginning: token ids flow into the embedding, and past
    all layers to where the last token is chosen.
    """
    made = (value for node in flow.readers.get(between[0], ()) for value in node.outputs)
    narrows = [flow.narrows(between), *(flow.narrows(flow.beginning(value, between)) for value in made)]
    found = (_chains([stretch(*ends) for ends in pairwise(values)]) for values in narrows)
    return max(found, key=lambda chains: sum(map(len, chains)))


def _stretch(flow: Flow, start: ir.Value, end: ir.Value) -> Stretch:
    inside = flow.after([start], stop=[end]) - {start}
    nodes = {node for value in (*inside, end) if (node := value.producer()) is not None}
    return Stretch(
        start,
        end,
        _is_residual(flow, start, end),
        any("Attention" in node.op_type or node.op_type == "Softmax" for node in nodes),
        tuple(sorted(_matrices(nodes))),
    )


def _matrices(nodes: set[ir.Node]) -> list[tuple[int, ...]]:
    return [
        tuple(int(size) for size in value.shape)
        for node in nodes
        for value in read_by(node)
        if value.is_initializer() and value.shape is not None and len(value.shape) > 1 and _is_weight(value)
    ]


def _is_weight(value: ir.Value) -> bool:
    return min(int(size) for size in value.shape or (0,)) > 1


def _is_residual(flow: Flow, start: ir.Value, end: ir.Value) -> bool:
    """Tell whether what comes in is added, as it is, to what is made of it."""
    along, waiting, ways = set(), [start], 0
    while waiting:
        value = waiting.pop()
        if value is end or value in along:
            continue
        along.add(value)
        for node in flow.readers.get(value, ()):
            if node.op_type in _ALONG:
                waiting.append(node.outputs[0])
                ways += node.outputs[0] is end
    beside = flow.after([start], stop=[end]) - along
    return bool(ways) and bool(beside)


def _chains(stretches: Sequence[Stretch]) -> list[list[Block]]:
    """Return the chains of blocks among stretches, those with the most sublayers first.

    A chain is a run of sublayers that comes back, and is as long as there are such runs. Runs beside it
    that have other weights belong to it where they are attention and feed-forward parts in the same order.
    """
    residual = [index for index, stretch in enumerate(stretches) if stretch.is_residual]
    count, first, period = _longest_run([stretches[index] for index in residual])
    if count < 2:
        return []
    runs = [residual[first + n * period : first + (n + 1) * period] for n in range(count)]
    period = _shortest([stretches[index].has_attention for index in runs[0]])
    runs = [run[at : at + period] for run in runs for at in range(0, len(run), period)]
    attention = [stretches[index].has_attention for index in runs[0]]
    if attention != sorted(attention, reverse=True) or not attention[0]:
        raise UnsupportedModelError(
            f"The graph repeats {period} sublayers that do not begin with attention: no layer can be told.",
            "Prune the checkpoint and export it again.",
        )
    step = runs[1][0] - runs[0][0]

    shape = [(index - runs[0][0], stretches[index].has_attention) for index in runs[0]]

    def alike(run: Sequence[int]) -> bool:
        return [(index - run[0], stretches[index].has_attention) for index in run] == shape

    before, behind = residual[: residual.index(runs[0][0])], residual[residual.index(runs[-1][-1]) + 1 :]
    while before[-period:] and runs[0][0] - before[-period:][0] == step and alike(before[-period:]):
        runs.insert(0, before[-period:])
        before = before[:-period]
    while behind[:period] and behind[0] - runs[-1][0] == step and alike(behind[:period]):
        runs.append(behind[:period])
        behind = behind[period:]
    values = [stretches[0].start, *(stretch.end for stretch in stretches)]
    # A block begins where its first sublayer does, and ends where the next one begins, or would.
    starts = [run[0] for run in runs]
    ends = [*starts[1:], starts[-1] + step]
    usual, last = (
        [_made_by(value) for value in values[run[-1] + 2 : end + 1]]
        for run, end in zip(runs[-2:], ends[-2:], strict=True)
    )
    # What is chosen of the last block's end (one token, say) may stand before that is stored.
    same = next((place for place, made in enumerate(usual) if last[place : place + 1] != [made]), len(usual))
    if not _STORED.issuperset(usual[same:]):
        raise UnsupportedModelError(
            "The last block of the graph ends otherwise than the others.",
            "Prune the checkpoint and export it again.",
        )
    ends[-1] -= len(usual) - same
    chain = [Block(values[start], values[end]) for start, end in zip(starts, ends, strict=True)]
    return [chain, *_chains(stretches[: starts[0]]), *_chains(stretches[ends[-1] :])]


def _made_by(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else str(node.op_type)


def _longest_run(sublayers: Sequence[Stretch]) -> tuple[int, int, int]:
    """Return how often a run of sublayers comes back, where it begins, and how many sublayers it has.

    It is the run that covers most; of those that cover as much one that begins with attention, the
    shortest, the earliest.
    """
    numbers: dict[object, int] = {}
    kinds = [numbers.setdefault(sublayer.kind, len(numbers)) for sublayer in sublayers]
    best, found = (0, False), (0, 0, 0)
    for period in range(1, len(kinds) // 2 + 1):
        for first in range(len(kinds) - 2 * period + 1):
            count = 1
            while (
                kinds[first : first + period] == kinds[first + count * period : first + (count + 1) * period]
            ):
                count += 1
            covered = (count * period, sublayers[first].has_attention)
            if count > 1 and covered > best:
                best, found = covered, (count, first, period)
    return found


def _shortest(attention: Sequence[bool]) -> int:
    """Return after how many sublayers their order of attention and others comes back."""
    size = len(attention)
    return next(
        period
        for period in range(1, size + 1)
        if size % period == 0 and list(attention) == list(attention[:period]) * (size // period)
    )
