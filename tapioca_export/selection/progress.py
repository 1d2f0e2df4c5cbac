"""One bar for a whole search, its budget, and its lines in the journal."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from ..artifacts import Candidate
from ..bars import progress_bar
from .rounds import Prober, SelectionSettings
from .searches import BudgetSpent

logger = logging.getLogger(__name__)


class Progress:
    """Counts rows of candidates over all rounds that there can be.

    A candidate that is given up counts as done. The time left is that of all rounds, which a floor or
    a criterion may end early.

    Args:
        settings: For the budgets.
        rounds: Rounds that there can be.
        probe: Its ledger gets a line a candidate.
        metric: The metric's name.
    """

    def __init__(self, settings: SelectionSettings, rounds: int, probe: Prober, metric: str) -> None:
        self.settings = settings
        self.probe = probe
        self.metric = metric
        self.rounds = rounds
        self.started = time.monotonic()
        self.num_finished = 0
        self.num_pending = 0  # rows scored of candidates that are not finished
        self.round = self.num_left = 0
        self.best: float | None = None
        layers = sum(max(0, probe.num_layers - n) for n in range(rounds))
        total = layers * len(settings.scales) * probe.num_rows
        self.bar = progress_bar(
            total=total, leave=False, unit="row", unit_scale=True, desc="Scoring the original"
        )

    def __enter__(self) -> Progress:
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.bar.close()

    def on_round(self, number: int, num_candidates: int) -> None:
        """Begin a round.

        Raises:
            BudgetSpent: If the budget has no room for a candidate more.
        """
        self.round, self.num_left, self.num_pending = number, num_candidates, 0
        # Beam and exhaustive search try more candidates than there are layers.
        self.bar.total = max(self.bar.total, (self.num_finished + num_candidates) * self.probe.num_rows)
        self._check_time()
        self._check_candidates()
        self._describe()

    def on_rows(self, num_scores: int) -> None:
        """Go on after so many rows times candidates were scored.

        Raises:
            BudgetSpent: If no time is left.
        """
        self.num_pending += num_scores
        self._move()
        self._check_time()

    def on_finished(self, dropped: tuple[int, ...], candidate: Candidate) -> None:
        """Count and record a candidate.

        Raises:
            BudgetSpent: If there are more in the round than the budget has room for.
        """
        line = {
            "kind": "candidate",
            "criterion": self.settings.criterion,
            "search": self.settings.search,
            "dropped": list(dropped),
            "layer": candidate.layer,
            "outcome": candidate.outcome,
            "metric": candidate.metric,
            "loss": candidate.loss,
            "score": candidate.score,
        }
        for name in ("rows", "bound", "against"):
            if getattr(candidate, name) is not None:
                line[name] = getattr(candidate, name)
        self.probe.ledger.note(line)
        layer = self.settings.choices(self.probe.num_layers).name(candidate.layer)
        scores = {self.metric: candidate.metric, "loss": candidate.loss, "score": candidate.score}
        said = ", ".join(f"{name} {value:.6g}" for name, value in scores.items() if value is not None)
        logger.debug("Round %d: layer %s, %s: %s", self.round, layer, candidate.outcome, said)
        self.num_finished += 1
        self.num_pending = max(0, self.num_pending - (candidate.rows or self.probe.num_rows))
        self._move()
        sign = 1 if self.probe.higher_is_better else -1
        if candidate.metric is not None and (self.best is None or sign * candidate.metric > sign * self.best):
            self.best = candidate.metric
        self._describe(candidate.layer)
        self.num_left -= 1
        if self.num_left > 0:
            self._check_candidates()

    def _move(self) -> None:
        self.bar.n = min(self.num_finished * self.probe.num_rows + self.num_pending, self.bar.total)
        self.bar.refresh()

    def _check_time(self) -> None:
        budget = self.settings.budget_seconds
        if budget is not None and time.monotonic() - self.started >= budget:
            raise BudgetSpent(f"cut by --budget-seconds {budget:g}, in round {self.round}")

    def _check_candidates(self) -> None:
        budget = self.settings.budget_evaluations
        if budget is not None and self.num_finished >= budget:
            raise BudgetSpent(f"cut by --budget-evaluations {budget}, in round {self.round}")

    def _describe(self, layer: int | None = None) -> None:
        best = "" if self.best is None else f", best {self.metric} {self.best:.4g}"
        name = self.settings.choices(self.probe.num_layers).name
        last = "" if layer is None else f", layer {name(layer)}"
        self.bar.set_description_str(f"Round {self.round}/{self.rounds}{last}{best}")
