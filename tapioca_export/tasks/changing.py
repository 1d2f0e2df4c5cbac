"""By how much what a head says changes, row by row: divergences of what it holds likely, squares of numbers.

Shapes: B rows of a batch, T tokens, K numbers of an output.
"""

from __future__ import annotations

import numpy as np

# Numbers of one part: logits of a large vocabulary are not all taken in double precision at once.
PART = 2**20


def divergence(before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the Kullback-Leibler divergence of what logits hold likely, in nats.

    Args:
        before: Logits, (..., K) if `axis` is the last.
        after: Others of the same shape, held against them.
        axis: Along which probabilities add up to one; the result lacks it.
    """
    from scipy.special import log_softmax

    one, other = (np.moveaxis(logits, axis, -1) for logits in (before, after))
    shape, size = one.shape[:-1], one.shape[-1]
    one, other = one.reshape(-1, size), other.reshape(-1, size)
    found, rows = np.empty(len(one)), max(1, PART // size)
    for start in range(0, len(one), rows):
        part = slice(start, start + rows)
        logs, others = (log_softmax(logits[part].astype(np.float64), axis=-1) for logits in (one, other))
        shares = np.exp(logs)
        # What was impossible counts nothing; the difference of two that are would be no number.
        gains = np.subtract(logs, others, out=np.zeros_like(logs), where=shares > 0)
        found[part] = (shares * gains).sum(axis=-1)
    return found.reshape(shape)


def divergence_of_labels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean divergence (...) of K labels, each there or not by its logit (..., K), in nats."""
    one, other = (np.stack([logits, np.zeros_like(logits)], axis=-1) for logits in (before, after))
    return np.asarray(divergence(one, other).mean(axis=-1))


def square(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean squared change of the numbers of each row, (B, ...) to (B,)."""
    changes = np.square(after.astype(np.float64) - before)
    return np.asarray(changes.reshape(len(changes), -1).mean(axis=1))


def over_read(changes: np.ndarray, readout: np.ndarray) -> np.ndarray:
    """Return the mean over the tokens that the head reads, (B,).

    Args:
        changes: One a token, (B, T).
        readout: Weights by which states are read, (B, P, T); of each row some. What has none is not read.
    """
    read = (readout != 0).any(axis=1)  # (B, T)
    return np.asarray(np.where(read, changes, 0.0).sum(axis=1) / read.sum(axis=1))
