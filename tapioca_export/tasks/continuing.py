"""Answers that a model writes by itself, beside what it is asked for.

Shapes: B rows of a batch, K tokens asked for at most a row, G tokens generated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..samples import Samples


@dataclass(frozen=True)
class Continuation:
    """What is generated greedily for each row, beside what is asked for: token by token behind a prompt.

    `prompts` are the tokens of each row. A row is ended by one of the tokens `ends`, or cut after as many
    tokens as `limits` (B,) says.
    """

    prompts: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    limits: np.ndarray

    def inputs(self, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what an exported model generates from.

        Args:
            asked: The inputs of the batch: of an encoder-decoder, what the encoder reads stays.
        """
        if "decoder_input_ids" in asked:
            return {**asked, "decoder_input_ids": np.asarray(self.prompts, dtype=np.int64)}
        longest = max(map(len, self.prompts))
        ids = np.zeros((len(self.prompts), longest), dtype=np.int64)  # padding is never attended to
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
        return {"input_ids": ids, "attention_mask": mask}

    def joined(self, found: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Join what was found of tokens asked for, and those generated, as (B, 2, max(K, G)).

        The first of the two are log-probabilities, 0 where none was asked for, the second generated tokens
        without those that end, -1 where there is none.

        Args:
            found: Log-probabilities of the tokens asked for, and whether they are likeliest, (B, K, 2).
            tokens: Generated ones, (B, G); -1 where there is none.
        """
        joined = np.zeros((len(found), 2, max(found.shape[1], tokens.shape[1])), dtype=np.float32)
        joined[:, 0, : found.shape[1]] = found[:, :, 0]
        is_left = (np.cumsum(np.isin(tokens, self.ends), axis=1) == 0) & (tokens >= 0)
        is_left &= np.arange(tokens.shape[1]) < self.limits[:, None]
        joined[:, 1] = -1
        joined[:, 1, : tokens.shape[1]] = np.where(is_left, tokens, -1)
        return joined


def written_texts(outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> list[str]:
    """Return what was generated for each of the rows, (B, 2, K) as `Continuation.joined` has it, in text."""
    asked = zip(outputs[:, 1], (samples.rows[row].features["tokenizer"] for row in rows), strict=True)
    return [
        tokenizer.decode(tokens[tokens >= 0].astype(int).tolist(), skip_special_tokens=True)
        for tokens, tokenizer in asked
    ]
