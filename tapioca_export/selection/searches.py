"""Ways through the sets of layers: greedy, in races or not; beam; exhaustive.

Each walks from the full model to sets of more and more dropped layers and returns, for every depth,
the path to the best set it found there. Knows nothing about how a candidate is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ..artifacts import Candidate, Evaluation, Step
from ..errors import ConfigError, SelectionError
from ..registry import Table
from .criteria import CRITERIA
from .rounds import Prober, Round, SelectionSettings

Path = tuple[Step, ...]
# Sets that an exhaustive search scores at most: all of 12 layers.
MOST_SETS = 1 << 12
BY_METRIC = ("tale", "loss", "damp")


class BudgetSpent(Exception):  # noqa: N818  (no error: the search ends with what it has)
    """The budget of a search is spent; the message says which."""


@dataclass
class Walk:
    """What a search has to go by, and what it has found so far.

    `paths[k]` is the path to the best set of k layers; `rejected` are the candidates of the round that
    ended the search. `begin` is told of every round, `finish` of every candidate; either may raise
    `BudgetSpent`. `plain_layers` counts layers that full forwards of every candidate would have run.
    """

    probe: Prober
    settings: SelectionSettings
    floor: float | None
    allowed: tuple[int, ...]
    cap: int | None
    finish: Callable[[tuple[int, ...], Candidate], None]
    begin: Callable[[int, int], None]
    paths: list[Path] = field(default_factory=lambda: [()])
    rejected: tuple[Candidate, ...] = ()
    tried: list[Candidate] = field(default_factory=list)
    plain_layers: int = 0

    def __post_init__(self) -> None:
        """Look up what may be done to layers, and together."""
        self.choices = self.settings.choices(self.probe.num_layers)
        self.most = self.choices.most(self.allowed)

    def left(self, dropped: Collection[int]) -> tuple[int, ...]:
        """Return the layers of which any one can follow those that are dropped."""
        return self.choices.left(self.allowed, dropped)

    def ask(
        self, dropped: tuple[int, ...], layers: tuple[int, ...]
    ) -> tuple[tuple[Candidate, ...], str | None]:
        """Have the criterion score candidates; returns them, and why to stop if it says so."""
        self.tried = []

        def finish(candidate: Candidate) -> None:
            self.tried.append(candidate)
            self.finish(dropped, candidate)

        scored = CRITERIA[self.settings.criterion](Round(self.probe, dropped, layers, self.settings, finish))
        told = {candidate.layer for candidate in self.tried}
        for candidate in scored.candidates:
            if candidate.layer not in told:  # ranked by one measurement, not scored one by one
                finish(candidate)
        measured = [c.layer for c in scored.candidates if c.metric is not None or c.bound is not None]
        # Where a criterion scores no candidate, the one that is dropped is scored.
        num_plain = max(len(measured), int(self.probe.is_labelled))
        num_dropping = len(self.choices.dropped(measured)) if measured else num_plain
        num_left = self.probe.num_layers - len(self.choices.dropped(dropped))
        self.plain_layers += num_plain * num_left - num_dropping
        return scored.candidates, scored.stop

    def take_best(self, found: Iterable[Path]) -> None:
        """Take the best of the sets that were scored before a budget cut their size short."""
        ranked = sorted(found, key=_rank)
        if ranked and not self.is_below_floor(ranked[0][-1]):
            self.paths.append(ranked[0])

    def step(self, dropped: tuple[int, ...], candidates: tuple[Candidate, ...]) -> Step:
        """Return the step to the best of the candidates, its metric measured where there are labels."""
        best = best_of(candidates, self.settings.tie_break, self.choices.name)
        found = Evaluation(best.metric, best.loss)
        if found.metric is None and self.probe.is_labelled:
            found = self.probe.metric((*dropped, best.layer))
        return Step(best.layer, best.score, found.metric, found.loss, candidates)

    def is_below_floor(self, step: Step) -> bool:
        """Tell whether a step's metric is worse than the worst that is accepted."""
        if self.floor is None or step.metric is None:
            return False
        if math.isclose(step.metric, self.floor, rel_tol=0, abs_tol=1e-9):  # rounding is no difference
            return False
        return step.metric < self.floor if self.probe.higher_is_better else step.metric > self.floor

    def end(self, depth: int) -> str | None:
        """Return why no layer can follow the `depth` that are dropped, if none can."""
        changed = "dropped or damped" if self.choices.damps else "dropped"
        if depth == self.cap:
            asked = self.settings.max_drop_layers is not None or self.settings.criterion == "fixed"
            unasked = "the most that go without labels unless --max-drop-layers says otherwise"
            why = "the most that was asked for" if asked else unasked
            return f"{self.cap} {self.choices.units.noun} {changed}, {why}"
        if depth == self.most:
            return f"no layer is left that may be {changed}"
        return None

    def beyond_floor(self, step: Step) -> str:
        """Say that a step was not taken."""
        doing = "damping" if self.choices.scale(step.layer) else "dropping"
        name = self.choices.name(step.layer)
        return f"{doing} layer {name} next gives {step.metric:.6g}, beyond the floor of {self.floor:.6g}"


Search = Callable[[Walk], str]
SEARCHES: Table[Search] = Table("search")


@SEARCHES.add("greedy")
def greedy(walk: Walk) -> str:
    """Drop the best candidate, round by round, each candidate scored until it is proven worse.

    Source: Naim et al. 2025, "TALE", arXiv:2510.22767; Song et al. 2024, "SLEB", arXiv:2402.09025.
    """
    while True:
        path = walk.paths[-1]
        dropped = tuple(step.layer for step in path)
        if reason := walk.end(len(path)):
            return reason
        layers = walk.left(dropped)
        walk.begin(len(path) + 1, len(layers))
        try:
            candidates, stop = walk.ask(dropped, layers)
        except BudgetSpent:
            _take_best_of_cut_round(walk, dropped)
            raise
        if stop is not None:
            walk.rejected = candidates
            return stop
        step = walk.step(dropped, candidates)
        if walk.is_below_floor(step):
            walk.rejected = candidates
            return walk.beyond_floor(step)
        walk.paths.append((*path, step))


@SEARCHES.add("racing")
def racing(walk: Walk) -> str:
    """Like greedy, but a candidate is stopped at --confidence instead of at certainty.

    Source: Maron and Moore 1994, "Hoeffding Races", NIPS 6 (the bounds here are normal).
    """
    return greedy(walk)


@SEARCHES.add("beam")
def beam(walk: Walk) -> str:
    """Keep the best --width sets of each size and go on from all of them.

    Source: Lowerre 1976, the HARPY system; a classic of search.
    """
    _need_metric(walk)
    kept: list[Path] = [()]
    while True:
        depth = len(kept[0])
        if reason := walk.end(depth):
            return reason
        walk.begin(depth + 1, sum(len(walk.allowed) - depth for _ in kept))
        found: dict[frozenset[int], Path] = {}
        for path in kept:
            dropped = tuple(step.layer for step in path)
            left = walk.left(dropped)
            layers = tuple(layer for layer in left if frozenset({*dropped, layer}) not in found)
            try:
                _go_on(walk, path, layers, found)
            except BudgetSpent:
                walk.take_best(found.values())
                raise
        ranked = sorted(found.values(), key=_rank)
        if walk.is_below_floor(ranked[0][-1]):
            walk.rejected = ranked[0][-1].candidates
            return walk.beyond_floor(ranked[0][-1])
        walk.paths.append(ranked[0])
        kept = [p for p in ranked[: walk.settings.width] if not walk.is_below_floor(p[-1])]


@SEARCHES.add("exhaustive")
def exhaustive(walk: Walk) -> str:
    """Score every set of up to --max-drop-layers layers: the oracle, for about 12 layers at most.

    Like every search it ends at the floor: at the first size of which no set stays above it.

    Source: brute force; what every other search is held against.
    """
    _need_metric(walk)
    most = min(walk.most, walk.cap if walk.cap is not None else 10**6)
    num_sets = sum(walk.choices.num_sets(walk.allowed)[1 : most + 1])
    if num_sets > MOST_SETS:
        raise ConfigError(
            f"--search exhaustive would score {num_sets:,} sets of {walk.choices.units.noun}; "
            f"{MOST_SETS:,} are the most.",
            "Lower --max-drop-layers, protect layers, or use --search beam.",
        )
    paths: dict[frozenset[int], Path] = {frozenset(): ()}
    for depth in range(1, most + 1):
        walk.begin(depth, walk.choices.num_sets(walk.allowed)[depth])
        for dropped in combinations(walk.allowed, depth - 1):
            if frozenset(dropped) not in paths:  # a stack would be empty
                continue
            layers = tuple(layer for layer in walk.left(dropped) if not dropped or layer > dropped[-1])
            try:
                _go_on(walk, paths[frozenset(dropped)], layers, paths)
            except BudgetSpent:
                walk.take_best(path for path in paths.values() if len(path) == depth)
                raise
        best = min((path for path in paths.values() if len(path) == depth), key=_rank)
        if walk.is_below_floor(best[-1]):
            return f"no set of {depth} {walk.choices.units.noun} stays above the floor of {walk.floor:.6g}"
        walk.paths.append(best)
    return f"all {num_sets:,} sets of up to {most} {walk.choices.units.noun} were scored"


def _go_on(walk: Walk, path: Path, layers: tuple[int, ...], found: dict[frozenset[int], Path]) -> None:
    """Score every set that has one of the layers more, and add the paths to them by set.

    Raises:
        BudgetSpent: If the budget has no room for all of them; those that were scored are added.
    """
    dropped = tuple(step.layer for step in path)
    candidates: tuple[Candidate, ...] = ()
    try:
        candidates = walk.ask(dropped, layers)[0] if layers else ()
    except BudgetSpent:
        candidates = tuple(walk.tried)
        raise
    finally:
        for c in candidates:
            step = Step(c.layer, c.score, c.metric, c.loss, candidates)
            found[frozenset({*dropped, c.layer})] = (*path, step)


def best_of(
    candidates: Sequence[Candidate], tie_break: str, name: Callable[[int], object] = int
) -> Candidate:
    """Return the candidate to drop; ties go to the lowest loss if asked for, then the lowest index.

    Raises:
        SelectionError: If a score is not finite.
    """
    for candidate in candidates:
        if not math.isfinite(candidate.score):
            raise SelectionError(f"The score of layer {name(candidate.layer)} is {candidate.score}.")

    def rank(candidate: Candidate) -> tuple[bool, float, float, int]:
        loss = candidate.loss if tie_break == "loss" and candidate.loss is not None else 0.0
        # Who was given up against another has lost, though a bound may tie with the winner's score, and
        # an estimate from fewer rows look better than the winner's.
        return (candidate.against is not None, -candidate.score, loss, candidate.layer)

    return min(candidates, key=rank)


def _rank(path: Path) -> tuple[float, tuple[int, ...]]:
    """Rank paths to sets of one size: best score first, then the lowest layers."""
    return (-path[-1].score, tuple(sorted(step.layer for step in path)))


def _need_metric(walk: Walk) -> None:
    if walk.settings.criterion not in BY_METRIC:
        raise ConfigError(
            f"--search {walk.settings.search} compares sets by what is measured of them; criterion "
            f"{walk.settings.criterion} ranks single layers.",
            f"Choose --criterion {' or '.join(BY_METRIC)}, or --search greedy.",
        )


def _take_best_of_cut_round(walk: Walk, dropped: tuple[int, ...]) -> None:
    """Take the best candidate of a round that a budget cut, if one was scored in full and improves."""
    whole = tuple(c for c in walk.tried if c.outcome == "full" and c.metric is not None)
    if not whole:
        return
    path = walk.paths[-1]
    step = walk.step(dropped, whole)
    before = path[-1].metric if path else walk.probe.metric(()).metric
    sign = 1 if walk.probe.higher_is_better else -1
    if before is not None and step.metric is not None and sign * step.metric >= sign * before:
        walk.paths.append((*path, step))
