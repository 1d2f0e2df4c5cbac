"""Which tokens a causal model is asked for, and what its logits say of them.

Shapes: B rows of a batch, S sequences, T tokens, V of a vocabulary, R tokens asked for, K of them at most
a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Readings:
    """Which tokens a causal model is asked for: R of them, row by row, each predicted at one position.

    All of shape (R,): the row of the batch that a token belongs to, the sequence and the position
    whose logits predict it, and its id. `ends` (B,) is where each row's context ends. With
    `asks_for_all`, the logits of the whole vocabulary are asked for at these positions.
    """

    rows: np.ndarray
    sequences: np.ndarray
    positions: np.ndarray
    tokens: np.ndarray
    ends: np.ndarray
    asks_for_all: bool = False

    def at_ends(self) -> Readings:
        """Ask for the logits of all tokens, where each row's context ends (or its mask stands)."""
        rows = np.arange(len(self.ends))
        return Readings(rows, rows, self.ends, np.zeros_like(rows), self.ends, asks_for_all=True)

    def repeated(self, times: int, num_sequences: int) -> Readings:
        """Ask the same of copies of the batch, which has so many sequences, one behind the other."""
        copies = np.arange(times)[:, None]
        return replace(
            self,
            rows=(self.rows + copies * len(self.ends)).ravel(),
            sequences=(self.sequences + copies * num_sequences).ravel(),
            positions=np.tile(self.positions, times),
            tokens=np.tile(self.tokens, times),
            ends=np.tile(self.ends, times),
        )

    def arranged(self, found: np.ndarray) -> np.ndarray:
        """Turn what was found of each token, (R, F), into (B, K, F), K tokens at most a row, 0 elsewhere."""
        counts = np.bincount(self.rows, minlength=len(self.ends))
        slots = np.arange(len(self.rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        arranged = np.zeros((len(self.ends), max(1, counts.max(initial=0)), found.shape[1]), found.dtype)
        arranged[self.rows, slots] = found
        return arranged

    def found_in(self, logits: np.ndarray) -> np.ndarray:
        """Return (B, K, 2) of logits (S, T, V): each token's log-probability, and whether it is likeliest."""
        from scipy.special import log_softmax

        found = np.empty((len(self.tokens), 2))
        for start in range(0, len(found), 128):  # all at once would take V doubles a token
            part = slice(start, start + 128)
            rows, tokens = logits[self.sequences[part], self.positions[part]], self.tokens[part]
            shares = log_softmax(rows.astype(np.float64), axis=-1)
            found[part, 0], found[part, 1] = shares[np.arange(len(rows)), tokens], rows.argmax(-1) == tokens
        return self.arranged(found)

    def read_in(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return which tokens' logits are asked for, booleans of that shape (S, T)."""
        read = np.zeros(shape, dtype=bool)
        read[self.sequences, self.positions] = True
        return read
