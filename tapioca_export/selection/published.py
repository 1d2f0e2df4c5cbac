"""Criteria from the depth-pruning literature that rank layers by one measurement of the full model.

Each answers the same in every round of a search. Numbers only, as in `criteria`, whose table they
join; `profiling.weighing` is where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..artifacts import Candidate
from ..errors import SelectionError
from .criteria import CRITERIA, need_labels
from .rounds import Round, Scored


@CRITERIA.add("magnitude")
def magnitude(round_: Round) -> Scored:
    """Drop the layer with the smallest weights first (needs no labels).

    The score is minus the sum of |w| over the layer's weights, biases left out. It sees no sample, so
    it is a baseline: a layer's weights can be small and its work indispensable.

    Deviation from the source: no layer is protected unless --protect-first and --protect-last say so
    (its "+" rule is --protect-first 4 --protect-last 2).

    Source: Kim et al. 2024, "Shortened LLaMA", arXiv:2402.02834, Magnitude.
    """
    return _lowest_first(round_, round_.probe.magnitudes())


@CRITERIA.add("taylor")
def taylor(round_: Round) -> Scored:
    """Drop the layer whose weights the loss is least sensitive to first (needs labels).

    The score is minus the sum of |w dL/dw| over the layer's weights, biases left out: by how much, to
    first order, the loss would move if each weight went on its own.

    Deviations from the source: L is the task's own training loss over the rows that drive the search,
    instead of next-token loss on ten texts, and no layer is protected unless --protect-first and
    --protect-last say so (its "+" rule is --protect-first 4 --protect-last 2).

    Source: Kim et al. 2024, "Shortened LLaMA", arXiv:2402.02834, Taylor.
    """
    need_labels(round_, "taylor")
    return _lowest_first(round_, round_.probe.sensitivities())


@CRITERIA.add("angular-distance")
def angular_distance(round_: Round) -> Scored:
    """Drop the block of --max-drop-layers layers that turns the answer's state least (needs no labels).

    The block is the one of n adjacent layers l..l+n-1 with the least d(l, n), the mean angle over pi
    between the states entering and leaving it where the answer is read; n is --max-drop-layers, or 1.
    Scores are 2 - d(l, 1) inside the block and -d(l, 1) outside, so that the block goes first.

    Deviations from the source: the state is read where the task's head reads it, which need not be the
    last token; only blocks without a protected or held layer count; layers go one at a time, the least
    turning first, so that a floor or --pick may keep part of the block (--pick final, and an --epsilon
    out of reach, take it whole); without --max-drop-layers it is a ranking by d(l, 1). No healing.

    Raises:
        SelectionError: If no block of that many layers may be dropped.

    Source: Gromov et al. 2024, arXiv:2403.17887, algorithm of section 3 (similarity-informed pruning).
    """
    block = _flattest_block(round_, round_.settings.max_drop_layers or 1)
    turns = round_.probe.angular_distances(1)
    return Scored(tuple(Candidate(n, 2.0 * (n in block) - float(turns[n])) for n in round_.layers))


def _lowest_first(round_: Round, values: Sequence[float]) -> Scored:
    return Scored(tuple(Candidate(n, -float(values[n])) for n in round_.layers))


def _flattest_block(round_: Round, size: int) -> Collection[int]:
    """Return the block of droppable layers with the least d(l, size); ties go to the lowest l.

    Raises:
        SelectionError: If there is none.
    """
    num_layers = round_.probe.num_layers
    # What was dropped so far counts as droppable: the block is the same in every round.
    droppable = {*round_.layers, *round_.dropped}
    # All layers of a stack are no block: one must stay.
    stacks = [layers for layers in round_.settings.choices(num_layers).units.ranges if size < len(layers)]
    blocks = [layers[low : low + size] for layers in stacks for low in range(len(layers) - size + 1)]
    blocks = [block for block in blocks if droppable.issuperset(block)]
    if not blocks:
        each = " in each stack" if round_.settings.stacks else ""
        raise SelectionError(
            f"Criterion angular-distance finds no {size} adjacent layers to drop: of {num_layers}, "
            f"{len(droppable)} may go, and one must stay{each}.",
            "Lower --max-drop-layers, or protect fewer layers.",
        )
    distances = round_.probe.angular_distances(size)
    return min(blocks, key=lambda block: float(distances[block.start]))
