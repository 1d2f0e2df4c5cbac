"""The published searches, replayed: what the selector drops, in which order, and what BEST and BSBA are.

From the search logs of TALE's authors (omyokun/tale, commit f4aee88): percent of right answers of the model
as it was, then after every layer that went, in order; and what ended the search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from test_selection import FakeProbe, search

from tapioca_export.selection import pick_depth

# The first round on ARC-Easy, layers 0..31, to three decimals.
ARC_EASY = (
    0.000, 0.025, 0.715, 0.729, 0.782, 0.731, 0.787, 0.760, 0.822, 0.782, 0.822, 0.764, 0.802, 0.851, 0.853,
    0.864, 0.685, 0.771, 0.878, 0.882, 0.876, 0.880, 0.875, 0.880, 0.882, 0.864, 0.875, 0.875, 0.875, 0.876,
    0.876, 0.882,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One search; `best` and `bsba` are how many layers of `order` they drop, `next_metric` what ended it."""

    num_layers: int
    base: float
    order: tuple[int, ...]
    metrics: tuple[float, ...]
    best: int
    bsba: int
    next_metric: float | None = None

    def metric(self, dropped: frozenset[int]) -> float:
        """Return the log's number on the way it went, and less for whatever it turned down."""
        depth = len(dropped)
        if dropped == frozenset(self.order[:depth]):
            return (self.base, *self.metrics)[depth]
        if depth > len(self.order):
            return (self.next_metric or 0.0) - min(dropped - set(self.order))
        return self.metrics[depth - 1] - 1.0


SEARCHES = {
    "ARC-Easy": Published(
        32, 87.45, (19, 18, 20, 28, 31, 21, 24, 26),
        (88.18, 88.00, 88.18, 90.00, 90.55, 89.64, 89.64, 87.82), 5, 8,
    ),
    "ARC-Challenge": Published(32, 75.86, (18, 26, 19), (78.97, 78.28, 77.59), 1, 3),
    "fine-tuned": Published(
        32, 84.14, (21, 20, 29, 19, 18, 24, 23, 26, 14, 25),
        (85.17, 85.17, 85.52, 85.17, 84.83, 84.83, 84.83, 86.21, 80.69, 81.03), 8, 8, 75.86,
    ),
    "pruned, then fine-tuned": Published(
        28, 80.00, (20, 19, 22, 27, 21), (81.03, 81.38, 80.34, 81.03, 80.00), 2, 5, 71.72,
    ),
}  # fmt: skip


@pytest.fixture(params=SEARCHES)
def published(request: pytest.FixtureRequest) -> Published:
    return SEARCHES[request.param]


def replay(published: Published, **settings: object):
    cap = len(published.order) if published.next_metric is None else None
    probe = FakeProbe(published.num_layers, published.metric)
    return search(probe, epsilon=8.0, max_drop_layers=cap, **settings)


def test_the_selector_drops_the_published_layers_in_their_order(published: Published) -> None:
    found = replay(published, pick="final")
    assert tuple(step.layer for step in found.steps) == published.order
    assert tuple(step.metric for step in found.steps) == published.metrics
    assert found.drop == tuple(sorted(published.order))


@pytest.mark.parametrize("pick", ["best", "bsba"])
def test_best_and_bsba_are_the_published_sets(published: Published, pick: str) -> None:
    found = replay(published, pick=pick)
    assert found.drop == tuple(sorted(published.order[: getattr(published, pick)]))
    metrics = [published.base, *published.metrics]
    assert pick_depth([-metric for metric in metrics], pick, False) == getattr(published, pick)


def test_a_search_ends_where_it_ended_and_costs_what_is_left_every_round(published: Published) -> None:
    found = replay(published, pick="final")
    rounds = len(published.order) + (published.next_metric is not None)
    assert found.cost.evaluations == 1 + sum(published.num_layers - done for done in range(rounds))
    if published.next_metric is not None:
        assert max(candidate.metric for candidate in found.rejected) < found.floor == published.base - 8


def test_the_set_in_the_authors_readme_is_best_on_arc_easy() -> None:
    assert replay(SEARCHES["ARC-Easy"]).drop == (18, 19, 20, 28, 31)


@pytest.mark.parametrize(
    "tied", [(19, 24, 31), (18, 22), (20, 22, 24, 28), (19, 26), (14, 25), (20, 24)], ids=str
)
def test_published_ties_go_to_the_lowest_index(tied: tuple[int, ...]) -> None:
    probe = FakeProbe(32, lambda dropped: 0.9 if dropped & set(tied) else 0.8)
    assert search(probe, max_drop_layers=1, pick="1").drop == (tied[0],)


def test_of_the_published_first_round_13_layers_may_go_for_nothing() -> None:
    probe = FakeProbe(32, lambda dropped: ARC_EASY[min(dropped)] if dropped else 0.8745)
    found = search(probe, max_drop_layers=1)
    assert found.drop == (19,)
    assert sum(candidate.metric >= 0.8745 for candidate in found.steps[0].candidates) == 13


def test_among_equals_best_drops_the_fewest_and_bsba_the_most() -> None:
    probe = FakeProbe(5, lambda dropped: 0.9 + 0.05 * (len(dropped) in (1, 3)))
    assert search(probe).drop == (0,)
    assert search(probe, pick="bsba").drop == (0, 1, 2, 3)


@pytest.mark.parametrize("seed", range(20))
def test_laws_of_any_search_on_the_rows_it_saw(seed: int) -> None:
    """BEST and BSBA are no worse than the baseline, BSBA no smaller; the floor is kept."""
    noise = np.random.default_rng(seed).integers(-8, 5, (7, 7)) / 100

    def metric(dropped: frozenset[int]) -> float:
        return 0.8 + sum(noise[layer, len(dropped)] for layer in sorted(dropped))

    best, bsba = (search(FakeProbe(7, metric), pick=pick) for pick in ("best", "bsba"))
    assert best.steps == bsba.steps
    assert best.selected_metric >= best.baseline_metric - 1e-9
    assert bsba.selected_metric >= bsba.baseline_metric - 1e-9
    assert len(bsba.drop) >= len(best.drop)
    assert all(step.metric >= best.floor - 1e-9 for step in best.steps)
    if best.rejected:
        assert max(candidate.metric for candidate in best.rejected) < best.floor
