"""By how much outputs change: by hand, and by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from tapioca_export.tasks import changing


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    before, after = (generator.normal(size=(5, 7, 11)).astype(np.float32) for _ in range(2))
    return before, after


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("part", [1, 40, 2**20])
def test_the_divergence_is_scipys_in_parts_of_any_size(
    axis: int, part: int, pair: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "PART", part)
    shares = [softmax(logits.astype(np.float64), axis=axis) for logits in pair]
    found = changing.divergence(*pair, axis=axis)
    np.testing.assert_allclose(found, entropy(*shares, axis=axis), atol=1e-12)
    assert changing.divergence(pair[0], pair[0]).max() == 0


def test_what_was_impossible_counts_nothing_and_what_became_so_infinitely() -> None:
    ruled_out = np.array([[0.0, 0.0, -np.inf]])
    assert changing.divergence(ruled_out, ruled_out) == [0.0]
    assert changing.divergence(ruled_out, np.zeros((1, 3))) == pytest.approx([np.log(1.5)])
    assert changing.divergence(np.zeros((1, 3)), ruled_out) == [np.inf]


def test_labels_are_there_or_not_each_for_itself() -> None:
    before, after = np.array([[0.0, 2.0]]), np.array([[np.log(3), 2.0]])
    half = np.log(0.5 / 0.75) / 2 + np.log(0.5 / 0.25) / 2
    assert changing.divergence_of_labels(before, after) == pytest.approx([half / 2])


def test_squares_are_of_a_row_and_tokens_that_are_not_read_say_nothing() -> None:
    assert changing.square(np.zeros((2, 2)), np.array([[1.0, 3.0], [0.0, 2.0]])).tolist() == [5.0, 2.0]
    readout = np.array([[[0.5, 0.5, 0.0]], [[0.0, 1.0, 0.0]]])
    changes = np.array([[1.0, 3.0, np.nan], [9.0, 4.0, 9.0]])
    assert changing.over_read(changes, readout).tolist() == [2.0, 4.0]
