"""Finished runs side by side: what of them is comparable, in one line; JSON, Markdown and one HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import artifacts
from ..artifacts import Quantity, RunComparison, RunDifference
from .markdown import md_captioned, md_table, md_text
from .pages import Section, render_page
from .run_figures import speed_figures, trade_figures
from .run_tables import facts_table, runs_table, scores_table, settings_table

QUANTITY: dict[Quantity, str] = {"target": "target metric", "id": "ID metric", "speed": "speed and memory"}
# What is said of a fact that differs: what it is here, and what in the first run.
_UNLIKE = {
    "task": "another task ({}, not {})",
    "target metric": "another metric ({}, not {})",
    "ID metric": "another metric ({}, not {})",
    "target report rows": "other report rows",
    "ID report rows": "other report rows",
    "prompts": "other prompts",
    "longest input": "inputs cut at another length ({}, not {})",
    "machine": "another machine ({}, not {})",
    "ONNX Runtime": "another ONNX Runtime ({}, not {})",
    "timed settings": "timed at other settings",
}
_NOT = ("not measured", "not recorded")


# --- words ----------------------------------------------------------------------------------


def run_verdict(found: RunComparison) -> str:
    """Return one line that says which runs are comparable, in what, and why others are not."""
    first = found.runs[0].name
    measured = [words for quantity, words in QUANTITY.items() if found.groups[quantity]]
    missing = [words for quantity, words in QUANTITY.items() if not found.groups[quantity]]
    absent = f" Measured in none of them: {_listed(missing)}." if missing else ""
    if not measured:
        return f"The {len(found.runs)} runs have nothing to compare.{absent}"
    odd = list(dict.fromkeys(part.run for part in found.differences))
    if not odd:
        return f"All {len(found.runs)} runs are comparable in {_listed(measured)}.{absent}"
    alike = [run.name for run in found.runs[1:] if run.name not in odd]
    clauses = [f"comparable throughout: {_listed(alike)}"] if alike else []
    reasons: dict[str, list[str]] = {}
    for name in odd:
        reason = _unlike_clause([part for part in found.differences if part.run == name])
        reasons.setdefault(reason, []).append(name)
    clauses += [f"not comparable {reason}: {_listed(names)}" for reason, names in reasons.items()]
    return f"Held against {first}: {'; '.join(clauses)}.{_others_clause(found)}{absent}"


def _unlike_clause(parts: list[RunDifference]) -> str:
    """Say in what a run is not comparable, quantities of one reason together."""
    reasons: dict[str, list[str]] = {}
    for part in parts:
        said = dict.fromkeys(_unlike_text(fact, *values) for fact, values in part.facts.items())
        reasons.setdefault(", ".join(said), []).append(QUANTITY[part.quantity])
    shown = (f"in {_listed(quantities)} ({reason})" for reason, quantities in reasons.items())
    return _listed(list(shown))


def _unlike_text(fact: str, here: str, there: str) -> str:
    if here in _NOT or there in _NOT:
        rows = "rows" if fact.endswith("rows") else fact.removeprefix("target ").removeprefix("ID ")
        return f"{rows} {here}" if here in _NOT else f"{rows} {there} there"
    return _UNLIKE[fact].format(here, there)


def _others_clause(found: RunComparison) -> str:
    """Say which runs are comparable with each other, though not with the first."""
    first, together = found.runs[0].name, dict[tuple[str, ...], list[str]]()
    for quantity, words in QUANTITY.items():
        for group in found.groups[quantity]:
            if len(group) > 1 and first not in group:
                together.setdefault(group, []).append(words)
    said = (f"{_listed(list(names))} in {_listed(words)}" for names, words in together.items())
    text = "; ".join(said)
    return f" With each other: {text}." if text else ""


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _notes(found: RunComparison) -> tuple[str, ...]:
    return (
        "Each change is that of a pruned model against its own original, on the report rows of its run.",
        f"The best of {len(found.runs)} runs looks better than it is: intervals are of one run each, and a "
        "run that was picked by them should be reported on rows of its own.",
        "No pair of runs was tested row by row: where the intervals of two overlap, no difference between "
        "them is shown.",
        "Speed-up and A/A noise in the first table are of the setting with the lowest bound.",
    )


# --- files ----------------------------------------------------------------------------------


def render_runs_html(found: RunComparison) -> str:
    """Return runs side by side as one HTML file that needs no network."""
    is_whole = not found.differences
    return render_page(
        "runs.html.j2",
        list(_sections(found)),
        runs=found.runs,
        tone="neutral" if is_whole else "warn",
        label="Comparable" if is_whole else "Not all comparable",
        verdict=found.verdict,
        findings=_notes(found),
    )


def _sections(found: RunComparison) -> Iterator[Section]:
    yield Section("runs", "Runs", tables=(runs_table(found),))
    scores, settings = scores_table(found), settings_table(found)
    shown = (scores,) if scores.rows else ()
    intro = "" if shown else "No run has labelled report rows."
    yield Section("accuracy", "Task metric", intro, figures=tuple(trade_figures(found)), tables=shown)
    shown = (settings,) if settings.rows else ()
    intro = "" if shown else "Latency was not measured."
    yield Section("latency", "Speed", intro, figures=tuple(speed_figures(found)), tables=shown)
    yield Section("facts", "What the numbers rest on", tables=(facts_table(found),))


def render_runs_markdown(found: RunComparison) -> str:
    """Return runs side by side as Markdown."""
    parts = [
        "# Pruning runs side by side",
        f"**{md_text(found.verdict)}**",
        "\n".join(f"- {md_text(note)}" for note in _notes(found)),
    ]
    parts += md_captioned("Runs", runs_table(found))
    for title, table in (("Task metric", scores_table(found)), ("Speed", settings_table(found))):
        parts += [f"## {title}", md_table(table) or "Not measured."]
    parts += md_captioned("What the numbers rest on", facts_table(found))
    return "\n\n".join(parts) + "\n"


def write_run_comparison(found: RunComparison, folder: Path) -> None:
    """Write `run_comparison.json`, `.md` and `.html` into the folder.

    Raises:
        OutputError: If the folder cannot be written.
    """
    artifacts.write(folder / "run_comparison.json", found)
    artifacts.write_text(folder / "run_comparison.md", render_runs_markdown(found))
    artifacts.write_text(folder / "run_comparison.html", render_runs_html(found))
