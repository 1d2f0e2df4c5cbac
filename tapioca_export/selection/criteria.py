"""Criteria: with these layers gone, how good is it to drop each of the others?

To add one, write a function and register it in `CRITERIA`; its first docstring line is its help.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..artifacts import Candidate
from ..errors import SelectionError
from ..registry import Table
from .forecasting import statistical_race
from .racing import exact_race
from .rounds import Round, Scored

# Target rows on which tapioca looks at what the head says, and at the state that it reads.
NUM_SAYING, NUM_PROPOSING = 256, 32

Criterion = Callable[[Round], Scored]
CRITERIA: Table[Criterion] = Table("criterion")


def need_labels(round_: Round, name: str) -> None:
    """Refuse rows without labels.

    Raises:
        SelectionError: If the rows that drive the search have none.
    """
    if not round_.probe.is_labelled:
        raise SelectionError(
            f"Criterion {name} needs labels, and the {round_.probe.select_on} rows have none.",
            "Label them, use --select-on id, or choose --criterion tapioca.",
        )


def _measured(round_: Round, *, by_loss: bool = False) -> Scored:
    """Score candidates by metric or loss: in full, or only as far as it takes to tell the winner."""
    if round_.settings.search == "racing":
        return Scored(statistical_race(round_, by_loss))
    races = round_.settings.search == "greedy" and not round_.settings.full_scores
    # Where the metric is no mean over rows, the rows scored do not bound what the others make of it.
    if races and round_.probe.best_value is not None:
        return Scored(exact_race(round_, by_loss))
    evaluations = round_.probe.metrics(round_.dropped, round_.layers)
    sign = -1 if by_loss or not round_.probe.higher_is_better else 1
    candidates = []
    for layer, found in sorted(evaluations.items()):
        number = found.loss if by_loss else found.metric
        candidate = Candidate(layer, math.nan if number is None else sign * number, found.metric, found.loss)
        round_.on_finished(candidate)
        candidates.append(candidate)
    return Scored(tuple(candidates))


@CRITERIA.add("tale")
def tale(round_: Round) -> Scored:
    """Drop the layer whose removal leaves the best task metric (needs labels).

    Every candidate is scored with what is dropped so far plus itself removed. The search ends when
    the best candidate falls below a floor fixed at baseline - epsilon.

    Source: Naim et al. 2025, "TALE", arXiv:2510.22767, algorithm as in the released search code.
    """
    need_labels(round_, "tale")
    return _measured(round_)


@CRITERIA.add("damp")
def damp(round_: Round) -> Scored:
    """Drop a layer, or damp it to one of --alphas, whichever leaves the best task metric (needs labels).

    As tale, over pairs of a layer and a factor of what its branches add to the residual stream; 0 drops it.
    Each layer is changed once. Ties go to the lowest layer, then to the lowest factor.

    Source: this project's definition: the residual scaling that Sharma et al. 2026, arXiv:2605.14738,
        intervene with, in the search of Naim et al. 2025, "TALE", arXiv:2510.22767.
    """
    need_labels(round_, "damp")
    return _measured(round_)


@CRITERIA.add("loss")
def loss(round_: Round) -> Scored:
    """Drop the layer whose removal leaves the lowest mean loss (needs labels).

    Deviation from the source: the task's own loss instead of next-token loss, and no layer is
    protected unless --protect-first and --protect-last say so.

    Source: Song et al. 2024, "SLEB", arXiv:2402.09025, algorithm 1.
    """
    need_labels(round_, "loss")
    return _measured(round_, by_loss=True)


@CRITERIA.add("tapioca+tale")
def tapioca_tale(round_: Round) -> Scored:
    """Let tapioca propose --shortlist layers and the task metric choose among them (needs labels).

    It proposes by how far the state that the head reads turns on a few target rows, the half of its score
    that costs least: a sweep without each layer once. The metric then decides as in tale, at the cost of the
    layers proposed.

    Source: this project's definition: see tapioca and tale.
    """
    need_labels(round_, "tapioca+tale")
    turns = round_.probe.turns(_asked(round_), NUM_PROPOSING)
    ranked = sorted(round_.layers, key=lambda layer: (turns[layer], layer))
    proposed = tuple(sorted(ranked[: round_.settings.shortlist]))
    return _measured(replace(round_, layers=proposed))


@CRITERIA.add("tapioca")
def tapioca(round_: Round) -> Scored:
    """Drop the layer without which what the head reads and says changes least (needs no labels).

    The score is minus the mean of two ranks among the layers, measured once: of 1 - cosine of the state at
    the last boundary with and without the layer, where answers are read, on at most 32 target rows; and of
    how much the output changes, on at most 256: the Kullback-Leibler divergence of its classes, or of the
    token that an answer begins with; the squared change of its numbers; of vectors, 1 - cosine. Nothing is
    dropped where the target deviates from ID no more than two halves of ID do. Without labels nothing says
    that a layer's loss gains anything, or when to stop: of what was compared, this foretold best what each
    layer is worth (benchmarks/RESULTS.md, "A criterion without labels").

    Source: this project's definition. Sharma et al. 2026, arXiv:2605.14738, propose no selection rule.
    """
    from scipy.stats import rankdata

    probe = round_.probe
    if not round_.dropped and (told := _no_shift(round_)):
        return Scored((), told)
    asked = _asked(round_)
    found = (probe.turns(asked, NUM_PROPOSING), probe.output_changes(asked, NUM_SAYING))
    ranks = [rankdata([numbers[layer] for layer in asked]) for numbers in found]
    means = dict(zip(asked, np.mean(ranks, axis=0).tolist(), strict=True))
    scores = {layer: -means[layer] for layer in round_.layers}
    if round_.dropped or not probe.is_labelled:
        return Scored(tuple(Candidate(n, score) for n, score in scores.items()))
    # The first round says how well the score foretold what the metric makes of each layer.
    metrics = probe.metrics((), round_.layers)
    return Scored(tuple(Candidate(n, scores[n], metrics[n].metric, metrics[n].loss) for n in round_.layers))


def _asked(round_: Round) -> list[int]:
    # With those that are gone: what is asked for is the same in every round, and measured in the first.
    return sorted({*round_.layers, *round_.dropped})


def _no_shift(round_: Round) -> str | None:
    """Return why nothing is to be dropped, where the target's profiles are those of ID."""
    now = round_.probe.deviation(round_.dropped)
    within = now.mean <= now.noise_floor.mean
    return "the target deviates from ID no more than two halves of ID do" if within else None


@CRITERIA.add("realignment")
def realignment(round_: Round) -> Scored:
    """Drop the layer whose removal brings the target's geometry closest to ID (needs no labels).

    The score is by how much the target's mean deviation from the ID norm and distance profiles
    falls. Ends when the deviation is within the ID noise floor, or no removal lowers it.

    Source: this project's definition. Sharma et al. 2026, arXiv:2605.14738, observe the deviation and
    its repair by pruning; they propose no selection rule, and the paper's formulas were not available.
    """
    probe = round_.probe
    if told := _no_shift(round_):
        return Scored((), told)
    evaluations = probe.deviations(round_.dropped, round_.layers)
    # A fall counts on the boundaries that both models have: dropping an identity scores nothing.
    scores = {
        n: probe.deviation(round_.dropped, over={*round_.dropped, n}).mean - (e.deviation or 0.0)
        for n, e in evaluations.items()
    }
    scored = Scored(tuple(Candidate(n, scores[n], e.metric, e.loss) for n, e in sorted(evaluations.items())))
    if max(candidate.score for candidate in scored.candidates) <= 0:
        return Scored(scored.candidates, "no removal brings the target's profiles closer to ID")
    return scored


@CRITERIA.add("block-influence")
def block_influence(round_: Round) -> Scored:
    """Drop the layer that changes the residual stream least (needs no labels).

    The score is minus the block influence, 1 - mean over real tokens of cos(input, output), measured
    once on the full model.

    Source: Men et al. 2024, "ShortGPT", arXiv:2403.03853, definition of Block Influence.
    """
    influences = round_.probe.profile(round_.probe.select_on).influences
    return Scored(tuple(Candidate(n, -float(influences[n] or 0.0)) for n in round_.layers))


@CRITERIA.add("random")
def random(round_: Round) -> Scored:
    """Drop layers in a seeded random order: the baseline every criterion has to beat.

    Source: a control, as used throughout the depth-pruning literature.
    """
    order = np.random.default_rng(round_.settings.seed).permutation(round_.probe.num_layers)
    return Scored(tuple(Candidate(n, float(order[n])) for n in round_.layers))


@CRITERIA.add("last")
def last(round_: Round) -> Scored:
    """Drop the deepest layer first; of several stacks, those of the last to run go first.

    Source: Gromov et al. 2024, arXiv:2403.17887, the simple variant (theirs keeps the very last
    layer: --protect-last 1).
    """
    return Scored(tuple(Candidate(n, float(n)) for n in round_.layers))


@CRITERIA.add("fixed")
def fixed(round_: Round) -> Scored:
    """Drop the layers named by --drop, in that order.

    Source: the user.
    """
    order = round_.settings.drop
    return Scored(tuple(Candidate(n, -float(order.index(n))) for n in round_.layers))
