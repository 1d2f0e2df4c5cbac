"""What a gate says: every check with what was found, and the exit code."""

from __future__ import annotations

from dataclasses import dataclass

from ..showing import html_table


@dataclass(frozen=True)
class Check:
    """One threshold and whether it was met."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True)
class Verdict:
    """Every check that was asked for."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def _repr_html_(self) -> str:
        rows = [(check.name, "pass" if check.passed else "FAIL", check.message) for check in self.checks]
        return html_table("Checks", ("check", "result", "what was found"), rows)

    @property
    def exit_code(self) -> int:
        """0 when every check passed, else 3."""
        return 0 if self.passed else 3


def not_measured(name: str, reason: str) -> Check:
    """Return the failed check of a quantity that there is no number of."""
    return Check(name, False, f"Not measured: {reason}. What was not measured does not pass.")
