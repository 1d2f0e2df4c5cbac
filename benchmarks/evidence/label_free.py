"""Criteria that need no labels, of which the best is looked for: each says how soon a layer should go.

Every one is a hypothesis with a direction: the layer of the highest number goes first. What they are made of
was measured on unlabelled rows of ID and of the target. Knows nothing about networks, or how good one is.

Shapes: L layers of one stack, L+1 boundaries, M answer states (rows x answer positions), H hidden size,
K numbers of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import rankdata

from tapioca_export.artifacts import Numbering
from tapioca_export.profiling import surviving_boundaries
from tapioca_export.profiling.accumulating import log_ratio
from tapioca_export.selection.criteria import NUM_PROPOSING
from tapioca_export.tasks.changing import divergence, square

# How much of the mean variance is added to each direction, so that covariances of few rows can be inverted.
SHRINKAGE = 0.1
# Of the updates on ID, the variance that their subspace holds.
HELD = 0.95
FEW = NUM_PROPOSING  # rows that will do where a criterion has to be cheap
# What the shortlist of `tapioca+tale` goes by, and `--criterion tapioca`: outputs on 256 of the rows at most.
PROPOSES = "head turns on a few target rows"
SHIPPED = f"{PROPOSES} + output changes on the target"
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Seen:
    """What unlabelled rows of one role show of a model, intact and without each of its layers.

    Attributes:
        states: Where answers are read, (L+1, M, H).
        influences: Block influence over all real tokens, (L,).
        turns: How far the library says that the head's state turns without each layer, on a few rows, (L,).
        norms: Mean norm of the states, (L+1,).
        distances: Mean distance between two rows' states, (L+1,).
        dropped_norms: The same without each layer, (L, L+1).
        dropped_distances: The same without each layer, (L, L+1).
        heads: The last boundary's states without each layer, (L, M, H).
        outputs: Of the head, (M', K): logits, or predicted numbers.
        dropped_outputs: The same without each layer, (L, M', K).
        are_logits: Whether outputs are logits.
    """

    states: np.ndarray
    influences: np.ndarray
    turns: np.ndarray
    norms: np.ndarray
    distances: np.ndarray
    dropped_norms: np.ndarray
    dropped_distances: np.ndarray
    heads: np.ndarray
    outputs: np.ndarray
    dropped_outputs: np.ndarray
    are_logits: bool

    @property
    def updates(self) -> np.ndarray:
        """What each layer adds, (L, M, H)."""
        return np.diff(self.states, axis=0)


Score = Callable[[Seen, Seen], np.ndarray]
SCORES: dict[str, Score] = {}
# Those that only the outputs of a head with logits have.
OF_LOGITS = ("agreement on the target", "entropy falls")


def score(name: str) -> Callable[[Score], Score]:
    """Register a criterion: what ID and target rows show, to a number a layer (L,)."""

    def add(function: Score) -> Score:
        SCORES[name] = function
        return function

    return add


# --- how much a layer does --------------------------------------------------------------------


@score("influence on both")
def _influence(id_: Seen, target: Seen) -> np.ndarray:
    return -id_.influences - target.influences


@score("head moves on both")
def _head(id_: Seen, target: Seen) -> np.ndarray:
    return -np.log(_head_moves(id_)) - np.log(_head_moves(target))


@score("head turns on the target")
def _head_turns(id_: Seen, target: Seen) -> np.ndarray:
    return -_turns_of_heads(target)


@score(PROPOSES)
def _head_turns_few(id_: Seen, target: Seen) -> np.ndarray:
    return -target.turns


@score("own answers on the target")
def _own_answers(id_: Seen, target: Seen) -> np.ndarray:
    return -_surprises(target, slice(None))


@score("own answers on a few target rows")
def _own_answers_few(id_: Seen, target: Seen) -> np.ndarray:
    return -_surprises(target, _few(len(target.outputs)))


@score("agreement on the target")
def _agreement(id_: Seen, target: Seen) -> np.ndarray:
    said = target.outputs.argmax(axis=-1)
    return np.asarray((target.dropped_outputs.argmax(axis=-1) == said).mean(axis=-1))


# --- how much otherwise it does it on the target ----------------------------------------------


@score("norm is amplified")
def _norm_amplified(id_: Seen, target: Seen) -> np.ndarray:
    return np.diff(np.log(target.norms + TINY)) - np.diff(np.log(id_.norms + TINY))


@score("distance is amplified")
def _distance_amplified(id_: Seen, target: Seen) -> np.ndarray:
    nothing = 1e-6 * id_.norms  # states can be equal in all rows
    return np.diff(np.log(target.distances + nothing)) - np.diff(np.log(id_.distances + nothing))


@score("deviation grows")
def _deviation_grows(id_: Seen, target: Seen) -> np.ndarray:
    return np.diff(_deviations(id_, target.norms, target.distances))


@score("Mahalanobis distance of the update")
def _mahalanobis_update(id_: Seen, target: Seen) -> np.ndarray:
    pairs = zip(id_.updates, target.updates, strict=True)
    return np.asarray([np.log(_mahalanobis(own, there)) for own, there in pairs])


@score("Mahalanobis distance grows")
def _mahalanobis_grows(id_: Seen, target: Seen) -> np.ndarray:
    pairs = zip(id_.states, target.states, strict=True)
    return np.diff([np.log(_mahalanobis(own, there)) for own, there in pairs])


@score("update leaves the subspace")
def _subspace(id_: Seen, target: Seen) -> np.ndarray:
    return np.asarray([_outside(own, there) for own, there in zip(id_.updates, target.updates, strict=True)])


@score("update turns")
def _turns(id_: Seen, target: Seen) -> np.ndarray:
    own, there = id_.updates.mean(axis=1), target.updates.mean(axis=1)  # (L, H)
    norms = np.linalg.norm(own, axis=-1) * np.linalg.norm(there, axis=-1) + TINY
    return 1 - (own * there).sum(axis=-1) / norms


# --- what its removal does --------------------------------------------------------------------


@score("realignment")
def _realignment(id_: Seen, target: Seen) -> np.ndarray:
    """The rule of `--criterion realignment`: how far the mean deviation of the boundaries left falls."""
    before = _deviations(id_, target.norms, target.distances)  # (L+1,)
    after = _deviations(id_, target.dropped_norms, target.dropped_distances)  # (L, L+1)
    falls, one_stack = before - after, Numbering.of({}, len(after))
    return np.asarray(
        [fall[surviving_boundaries((layer,), one_stack)].mean() for layer, fall in enumerate(falls)]
    )


@score("realignment at the head")
def _realignment_at_head(id_: Seen, target: Seen) -> np.ndarray:
    before = _deviations(id_, target.norms, target.distances)[-1]
    return np.asarray(before - _deviations(id_, target.dropped_norms, target.dropped_distances)[:, -1])


@score("entropy falls")
def _entropy_falls(id_: Seen, target: Seen) -> np.ndarray:
    before = _entropy(target.outputs)
    return np.asarray([before - _entropy(part) for part in target.dropped_outputs])


# --- what is one number on ID and another on the target ---------------------------------------


def _on_each(does: str, measure: Callable[[Seen], np.ndarray], grows: str | None = None) -> None:
    """Register that a layer does little on ID, that it does little on the target, that it does more there."""
    SCORES[f"{does} on ID"] = lambda id_, target: -measure(id_)
    SCORES[f"{does} on the target"] = lambda id_, target: -measure(target)
    if grows is not None:
        SCORES[grows] = lambda id_, target: np.log(measure(target) + TINY) - np.log(measure(id_) + TINY)


# --- all of them, and pairs -------------------------------------------------------------------


def scores(id_: Seen, target: Seen) -> dict[str, np.ndarray]:
    """Return the numbers (L,) of every criterion that the rows can be asked for."""
    return {
        name: np.asarray(function(id_, target), dtype=np.float64)
        for name, function in SCORES.items()
        if id_.are_logits or name not in OF_LOGITS
    }


def with_pairs(single: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return criteria and all pairs of them: of a pair, a layer's number is the mean of its two ranks."""
    ranks = {name: rankdata(found) for name, found in single.items()}
    pairs = {f"{one} + {other}": (ranks[one] + ranks[other]) / 2 for one, other in combinations(ranks, 2)}
    return {**single, **pairs}


def order(numbers: np.ndarray) -> list[int]:
    """Return the layers, first the one that goes first; ties go to the lower index."""
    return [int(layer) for layer in np.argsort(-numbers, kind="stable")]


# --- arithmetic -------------------------------------------------------------------------------


def _relative_updates(seen: Seen) -> np.ndarray:
    norms = np.linalg.norm(seen.states[:-1], axis=-1) + TINY
    return np.asarray((np.linalg.norm(seen.updates, axis=-1) / norms).mean(axis=-1) + TINY)


def _head_moves(seen: Seen) -> np.ndarray:
    """Return the mean relative distance that the last boundary's states are moved by each removal, (L,)."""
    last = seen.states[-1]
    moved = np.linalg.norm(seen.heads - last, axis=-1) / (np.linalg.norm(last, axis=-1) + TINY)
    return np.asarray(moved.mean(axis=-1) + TINY)


def _turns_of_heads(seen: Seen) -> np.ndarray:
    """Return by how much the last boundary's states are turned by each removal, 1 - cosine, (L,)."""
    last = seen.states[-1]
    norms = np.linalg.norm(seen.heads, axis=-1) * np.linalg.norm(last, axis=-1) + TINY
    return np.asarray((1 - (seen.heads * last).sum(axis=-1) / norms).mean(axis=-1))


def _surprises(seen: Seen, rows: Any) -> np.ndarray:
    """Return how unlikely each removal makes the model's own answers, or the mean squared change, (L,)."""
    before, after = seen.outputs[rows], seen.dropped_outputs[:, rows]
    if not seen.are_logits:
        return _squares(before, after)
    said = before.argmax(axis=-1)
    return np.asarray(-log_softmax(after, axis=-1)[:, np.arange(len(said)), said].mean(axis=-1))


def _squares(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean squared change of predicted numbers, (L,)."""
    return np.asarray([square(before, part).mean() for part in after])


def _few(num_rows: int) -> np.ndarray:
    """Return the places of a few rows, drawn at random."""
    return np.random.default_rng(0).permutation(num_rows)[:FEW]


def _output_changes(seen: Seen) -> np.ndarray:
    """Return the mean KL divergence of what the head says, or its mean squared change, (L,)."""
    if not seen.are_logits:
        return _squares(seen.outputs, seen.dropped_outputs)
    return np.asarray([divergence(seen.outputs, after).mean() for after in seen.dropped_outputs])


def _entropy(logits: np.ndarray) -> float:
    logs = log_softmax(logits, axis=-1)
    return float(-(np.exp(logs) * logs).sum(axis=-1).mean())


def _deviations(id_: Seen, norms: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the deviation from ID at each boundary, (..., L+1), of norms and distances."""
    return (log_ratio(norms, id_.norms, id_.norms) + log_ratio(distances, id_.distances, id_.norms)) / 2


def _mahalanobis(own: np.ndarray, there: np.ndarray) -> float:
    """Return the mean squared Mahalanobis distance of states (M, H) there, as a ratio to that on ID."""
    mean, size = own.mean(axis=0), own.shape[1]
    covariance = np.cov(own, rowvar=False).reshape(size, size)
    scale = np.trace(covariance) / size
    if scale == 0:
        return 1.0
    inverse = np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(size))
    far, near = (np.einsum("mh,hk,mk->m", x - mean, inverse, x - mean).mean() for x in (there, own))
    return float(far / near)


def _outside(own: np.ndarray, there: np.ndarray) -> float:
    """Return the share of updates (M, H) there that is outside the subspace of those on ID."""
    _, values, directions = np.linalg.svd(own, full_matrices=False)
    energy = np.cumsum(np.square(values))
    kept = directions[: int(np.searchsorted(energy, HELD * energy[-1])) + 1]
    total = float(np.square(there).sum())
    return 1 - float(np.square(there @ kept.T).sum()) / total if total else 0.0


_on_each("influence", lambda seen: seen.influences, grows="influence grows")
_on_each("update", _relative_updates, grows="update grows")
_on_each("head moves", _head_moves, grows="head moves more")
_on_each("output changes", _output_changes)
