"""Print what the JSON files say: benchmarks/RESULTS.md, and the tables of polynomial/README.md.

    python -m benchmarks.evidence.results            # writes both, and the figures beside the README

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.recording import with_table

from . import criteria_page
from .claims import (
    CLAIMS,
    LEAST,
    NO_CASE,
    REPEATED,
    RHO,
    SUPPORTED,
    Record,
    cases_of,
    scale,
    verdict,
    words_by_size,
    words_of,
)
from .tables import table

HERE = Path(__file__).parent
PAGE = HERE.parent / "RESULTS.md"
README = HERE.parent / "polynomial" / "README.md"
BEGIN, END = "<!-- begin: python -m benchmarks.evidence.results -->", "<!-- end -->"
BEGIN_EXAMPLE = "<!-- begin: python -m benchmarks.evidence.results, the embedded example -->"
EXAMPLE = {
    "Shipped weights": README.parent / "shifts.json",
    "Shorter training": README.parent / "shifts-short.json",
}
WIDER = "polynomial-to-10"
COMMANDS = {
    "polynomial": "python -m benchmarks.evidence.polynomial",
    WIDER: "python -m benchmarks.evidence.polynomial --scales to-10 --output "
    f"benchmarks/evidence/{WIDER}.json",
    "language": "python -m benchmarks.evidence.language",
    "encoder": "python -m benchmarks.evidence.encoder --data FOLDER",
}
FIGURES = {name: README.parent / f"{name}.svg" for name in ("polynomial", WIDER)}
BANK = HERE / "criteria.json"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#808080")
Files = Mapping[str, Mapping[str, Any]]


def read() -> dict[str, dict[str, Any]]:
    """Return the JSON files that there are, by family."""
    paths = {name: HERE / f"{name}.json" for name in COMMANDS}
    return {n: json.loads(p.read_text(encoding="utf-8")) for n, p in paths.items() if p.is_file()}


def columns(files: Files) -> dict[str, list[Record]]:
    """Return the records by column; a language model is judged in two ways, each a column."""
    found: dict[str, list[Record]] = {}
    for family, file in files.items():
        for record in file["models"]:
            judged = f", {record['name'].rpartition('-')[2]}" if family == "language" else ""
            found.setdefault(family + judged, []).append(record)
    return found


# --- RESULTS.md -----------------------------------------------------------------------------


def page(files: Files, bank: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    by_column = columns(files)
    parts = [
        _HEAD,
        _grids(by_column),
        _claims_table(by_column),
        "## What the search saw, and what was left of it\n\n" + _curse_table(by_column),
        _nothing_on_id(by_column),
        "## Random sets\n\n" + _random_table(by_column),
        "## Answers without a valid form\n\n" + _invalid_table(by_column),
        "## Size by size\n\n" + _size_table(by_column),
        "## A criterion without labels\n\n" + criteria_page.text(bank),
        "## How this was measured\n\n" + _RULES + "\n\n" + _origin_table(files),
    ]
    return "\n\n".join(parts) + "\n"


_HEAD = f"""# The evidence, claim by claim

Does dropping layers help out of distribution (OOD) and not in distribution (ID), because it brings the
target's states back to those of ID? These are the predictions that follow from TALE (arXiv:2510.22767) and
TAPIOCA (arXiv:2605.14738), tested on models that are small enough to rebuild. A claim that fails here is
printed as failing. This page is written by `python -m benchmarks.evidence.results` from the JSON files in
`benchmarks/evidence/`; nothing in it is typed by hand but the explanations.

Each cell has the word, the mean effect with its 95 % interval, and how many cases are for the claim and
against it, of all. Layers are always chosen on other rows than those reported here. A gain is the share of
the intact model's error that is gone; of the error, less than {LEAST:.0%} counts as about zero."""

_GRIDS = """The grid of *polynomial*, scales up to 5, was cut from that of *{wider}* when the results of that
were known, so that the command ends within half an hour of two cores. Other words by that: {moved}.
Of {claim}, {wider} itself says under the {num_shared} shifts that both have: {shared}; under the {num_others}
others: {others}. Rows of a shift are drawn by its place in the grid, so that most are others here and there:
claims on two shifts alone (tests 15 to 17, leakage) can move by that as well."""

_RULES = f"""A case is a model, or a model under one shift. It is *for* a claim that something gains, if its
95 % interval is above zero and the gain at least {LEAST:.0%} of the error; *against*, if the interval is
below {LEAST:.0%}: about zero, or worse; else open. For a claim that something does not gain, the reverse. For
a claim that something goes one way, the interval has to exclude zero; trends and ranks are judged as
`tapioca-export intervene` does.
**Supported**: at least two thirds of the cases are for it. **Not supported**: more than one third are
against it. **Undecided**: neither. The interval of the mean draws models anew, and each case by its own
interval. Of four layers, no correlation of ranks is told from chance (the least two-sided p is 1/12): such
cases stay open. These rules are one module, `benchmarks/evidence/claims.py`; they were written after one
model (the smallest polynomial one, seed 0) had been measured on trial, and before all others; three claims
(unrelated tasks, realignment against least influence, the deviation at a dose above 1) when results of the
rest were known. With all results known, a review made two rules stricter: that no dose gains, on ID or of
other layers, had been judged by one dose of each sweep, and a claim undecided at every size had counted as
the same at every size. Unrelated to a scale are the degrees that were not trained
on, which are shifts of their own as well; to questions by the place of a letter, those by its order."""


def _grids(by_column: Mapping[str, list[Record]]) -> str:
    """Tell what became of the words when the grid of polynomials was cut."""
    here, wider = by_column["polynomial"], by_column[WIDER]
    words = {
        claim.name: [verdict(cases_of(claim, records)).word for records in (wider, here)] for claim in CLAIMS
    }
    moved = [
        f"{name} ({before} to {now})"
        for name, (before, now) in words.items()
        if before != now and before != NO_CASE
    ]
    names = {shift["name"] for record in here for shift in record["shifts"]}
    claim = next(claim for claim in CLAIMS if claim.name == "OOD gain")
    parts: list[list[Record]] = [[], []]
    for record in wider:
        for place, is_shared in enumerate((True, False)):
            shifts = [shift for shift in record["shifts"] if (shift["name"] in names) is is_shared]
            parts[place].append({**record, "shifts": shifts})
    told = []
    for records in parts:
        found = verdict(cases_of(claim, records))
        told.append(f"{found.num_for} for, {found.num_against} against of {found.num_cases}")
    text = _GRIDS.format(
        wider=WIDER, moved=", ".join(moved) or "none", claim=claim.name, shared=told[0], others=told[1],
        num_shared=len(parts[0][0]["shifts"]), num_others=len(parts[1][0]["shifts"]),
    )  # fmt: skip
    return textwrap.fill(text, 110)


def _claims_table(by_column: Mapping[str, list[Record]]) -> str:
    rows = []
    for claim in CLAIMS:
        cells = [_cell(verdict(cases_of(claim, records)), claim.unit) for records in by_column.values()]
        rows.append([f"**{claim.name}** ({claim.test})<br>{claim.says}", claim.unit, *cells])
    told = []
    for records in by_column.values():
        word, same, num = scale(records)
        agreed = sum(words_of(claim, records) == {SUPPORTED} for claim in REPEATED)
        of_all = f"{same} of {num} claims, {agreed} of them supported"
        told.append(word if word == NO_CASE else f"**{word}**<br>{of_all}")
    says = "**Scale** (19)<br>Of claims 10 to 16 that a size decides, two thirds have one word at all sizes."
    rows.append([says, "claims", *told])
    return table(["claim (test)", "effect", *by_column], rows)


def _cell(found: Any, unit: str) -> str:
    if found.word == NO_CASE:
        return NO_CASE
    # Draws are normal, and may be more than a correlation can be.
    low, high = np.clip(found.interval, -1, 1) if unit == RHO else found.interval
    bounds = "no interval" if low == high and found.num_cases == 1 else f"{low:+.3f} to {high:+.3f}"
    return (
        f"**{found.word}**<br>{found.effect:+.3f} ({bounds})"
        f"<br>{found.num_for} for, {found.num_against} against of {found.num_cases}"
    )


def _curse_table(by_column: Mapping[str, list[Record]]) -> str:
    """Compare the gain on the rows that chose the layers with that on fresh rows."""
    rows = []
    for name, records in by_column.items():
        shifts = [shift for record in records for shift in record["shifts"] if shift["drop"]]
        num_all = sum(len(record["shifts"]) for record in records)
        seen = _mean(shift["select_gain"] for shift in shifts)
        left = _mean(shift["gain"]["effect"] for shift in shifts)
        rows.append(
            [name, f"{len(shifts)} of {num_all}", f"{seen:+.3f}", f"{left:+.3f}", f"{seen - left:+.3f}"]
        )
    text = (
        "The best of many candidates looks better on the rows it was chosen by (the winner's curse). Of the "
        "shifts under which the search dropped anything:"
    )
    return f"{text}\n\n" + table(
        ["", "shifts", "gain on the rows that chose", "gain on fresh rows", "difference"], rows
    )


def _nothing_on_id(by_column: Mapping[str, list[Record]]) -> str:
    """Tell how often a search on ID rows dropped nothing, which gains nothing whatever is claimed."""
    counts = [
        f"{name} {sum(not record['id']['drop'] for record in records)} of {len(records)}"
        for name, records in by_column.items()
    ]
    text = (
        f"A search on ID rows dropped nothing at all in: {'; '.join(counts)} models. Those are for *ID null*."
    )
    return textwrap.fill(text, 110)


def _random_table(by_column: Mapping[str, list[Record]]) -> str:
    """Tell how many random sets chosen layers were held against."""
    counts = {
        name: [
            shift["intervention"]["metric_rank"]["num_sets"]
            for record in records
            for shift in record["shifts"]
            if shift.get("intervention")
        ]
        for name, records in by_column.items()
    }
    most = max(count for found in counts.values() for count in found)
    rows = [
        [name, str(len(found)), str(found.count(most)), str(min(found)), f"{np.median(found):g}"]
        for name, found in counts.items()
    ]
    text = (
        f"Chosen layers were held against {most} random sets of as many other layers, or all that there are. "
        "Models of few layers have few sets, and to be first of few says little."
    )
    return f"{text}\n\n" + table(["", "cases", f"with {most} sets", "fewest sets", "median"], rows)


def _invalid_table(by_column: Mapping[str, list[Record]]) -> str:
    rows = []
    for name, records in by_column.items():
        counted = [shift for record in records for shift in record["shifts"] if shift["invalid"]]
        if counted:
            before, after = (sum(shift["invalid"][place] for shift in counted) for place in (0, 1))
            rows.append([name, str(len(counted)), str(before), str(after)])
    if not rows:
        return "No model here writes its answers."
    text = (
        "Dropping layers may mend the form of answers and nothing else. Where answers are written, those of "
        "no valid form are wrong, and counted apart; over all models and shifts:"
    )
    return f"{text}\n\n" + table(["", "models x shifts", "intact", "pruned"], rows)


def _size_table(by_column: Mapping[str, list[Record]]) -> str:
    words: dict[str, list[dict[str, str]]] = {
        claim.name: [words_by_size(claim, records) for records in by_column.values()] for claim in REPEATED
    }
    several = [
        place for place, records in enumerate(by_column.values()) if len({r["size"] for r in records}) > 1
    ]
    heads = [f"{list(by_column)[p]}: {', '.join(next(iter(words.values()))[p])}" for p in several]
    rows = [[name, *(", ".join(found[p].values()) for p in several)] for name, found in words.items()]
    return table(["claim", *heads], rows)


def _origin_table(files: Files) -> str:
    rows = []
    for family, file in files.items():
        sizes = Counter(size for size, _ in {(r["size"], r["seed"]): None for r in file["models"]})
        rows.append(
            [
                family,
                f"`{COMMANDS[family]}`",
                ", ".join(f"{size} x {count}" for size, count in sizes.items()),
                _time_of(file),
                f"[{family}.json](evidence/{family}.json), `{file['commit'][:10]}`",
            ]
        )
    return table(["models", "command", "sizes x seeds", "time: training + measuring", "from"], rows)


def _time_of(file: Mapping[str, Any]) -> str:
    """Return how long training took, by the models' logs, and measuring, where that was done in one go."""
    trained = {(r["size"], r["seed"]): r["training"].get("seconds") for r in file["models"]}
    if None in trained.values() or "seconds" not in file:
        return "not recorded"
    training, measuring = sum(trained.values()) / file["jobs"] / 60, file["seconds"] / 60
    return f"{training:.1f} + {measuring:.1f} min in {file['jobs']} processes"


# --- polynomial/README.md -------------------------------------------------------------------


def readme(text: str, files: Files) -> str:
    """Return the README with the family's tables in their place."""
    example = "\n\n".join(
        f"### {title}\n\n" + shifts_table(json.loads(path.read_text(encoding="utf-8"))["rows"])
        for title, path in EXAMPLE.items()
    )
    return with_table(with_table(text, BEGIN, END, _family(files["polynomial"])), BEGIN_EXAMPLE, END, example)


def shifts_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what benchmarks/polynomial/shifts.py found for one model, a row a shift."""
    rows = []
    for row in found:
        target, id_ = row["target"], row["id"]
        low, high = target["interval"]
        rows.append(
            [
                f"c={row['coefficient_scale']} x={row['input_scale']}",
                ", ".join(map(str, row["drop"])) or "-",
                f"{target['original']:.4f} -> {target['pruned']:.4f}",
                f"{target['difference']:+.4f} ({low:+.4f} to {high:+.4f})",
                f"{id_['original']:.4f} -> {id_['pruned']:.4f}",
            ]
        )
    return table(["shift", "drop", "target nmse", "change (95 % interval)", "ID nmse"], rows)


def _family(file: Mapping[str, Any]) -> str:
    by_size: dict[str, list[Record]] = {}
    for record in file["models"]:
        by_size.setdefault(record["size"], []).append(record)
    scales = file["scales"]
    trained = [
        [
            size,
            str(len(records)),
            " ".join(f"{record['training']['evaluation_mse']:.4f}" for record in records),
            " ".join(f"{record['id']['error']:.3f}" for record in records),
            " ".join(f"{record['training']['seconds'] / 60:.1f}" for record in records),
            " ".join(f"{record['id']['single']['gain']['effect']:+.2f}" for record in records),
        ]
        for size, records in by_size.items()
    ]
    parts = [
        table(
            ["size", "seeds", "ID error after training", "ID nmse", "minutes of training",
             "gain of the best single drop on ID"],
            trained,
        )
    ]  # fmt: skip
    for size, records in by_size.items():
        found = {shift["name"]: [] for shift in records[0]["shifts"]}
        for record in records:
            for shift in record["shifts"]:
                found[shift["name"]].append(shift)
        rows = [[f"**c={c}**", *(_grid_cell(found.get(f"c={c} x={x}")) for x in scales)] for c in scales]
        parts.append(f"### {size}\n\n" + table([size, *(f"x={x}" for x in scales)], rows))
        rest = [name for name in found if name.startswith(("degree", "normal"))]
        parts.append(table(["other shifts", "nmse, gain"], [[n, _grid_cell(found[n])] for n in rest]))
    return "\n\n".join(parts)  # fmt: skip


def _grid_cell(shifts: Sequence[Record] | None) -> str:
    """Return nmse of the intact models and the gain, means over seeds, and of how many seeds it is shown."""
    if not shifts:
        return "ID"
    error, gain = _mean(s["error"] for s in shifts), _mean(s["gain"]["effect"] for s in shifts)
    shown = sum(shift["gain"]["interval"][0] > 0 for shift in shifts)
    return f"{error:.2f}, {gain:+.3f} ({shown}/{len(shifts)})"


def figure(file: Mapping[str, Any]) -> str:
    """Return a picture: gain over each axis, a line a size (mean over seeds)."""
    width, height, left, top = 300, 180, 48, 24
    axes = list(file["models"][0]["origins"])
    sizes = list(dict.fromkeys(record["size"] for record in file["models"]))
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for axis in axes:
        for size in sizes:
            records = [record for record in file["models"] if record["size"] == size]
            names = [shift["name"] for shift in records[0]["shifts"] if axis in shift["levels"]]
            points = [(1.0, _mean(record["id"]["gain"]["effect"] for record in records))]
            for name in names:
                shifts = [s for record in records for s in record["shifts"] if s["name"] == name]
                points.append((shifts[0]["levels"][axis], _mean(s["gain"]["effect"] for s in shifts)))
            lines[axis, size] = sorted(points)
    most = max(y for points in lines.values() for _, y in points) or 1.0
    least = min(0.0, *(y for points in lines.values() for _, y in points))
    furthest = max(x for points in lines.values() for x, _ in points)
    drawn = []
    for place, axis in enumerate(axes):
        origin = left + place * (width + left)
        at = _scaler(origin, width, furthest), lambda y: top + height * (most - y) / (most - least)
        drawn.append(
            f'<rect x="{origin}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#808080"/>'
            f'<text x="{origin + width / 2:.0f}" y="{top + height + 32}" text-anchor="middle">{axis}</text>'
            f'<text x="{origin - 4}" y="{top + 10}" text-anchor="end">{most:.2f}</text>'
            f'<text x="{origin - 4}" y="{at[1](0):.0f}" text-anchor="end">0</text>'
        )
        for x, _ in lines[axis, sizes[0]]:
            drawn.append(
                f'<text x="{at[0](x):.1f}" y="{top + height + 15}" text-anchor="middle">{x:g}</text>'
            )
        for size, colour in zip(sizes, COLOURS, strict=False):
            path = " ".join(f"{at[0](x):.1f},{at[1](y):.1f}" for x, y in lines[axis, size])
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for place, (size, colour) in enumerate(zip(sizes, COLOURS, strict=False)):
        drawn.append(f'<text x="{left + 80 * place}" y="16" fill="{colour}">{size}</text>')
    total, tall = len(axes) * (width + left) + left, top + height + 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {tall}" width="{total}" '
        f'font-family="sans-serif" font-size="12" fill="#808080">\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _scaler(origin: float, width: float, furthest: float) -> Callable[[float], float]:
    return lambda x: origin + 12 + (width - 24) * np.log(x) / np.log(furthest)


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


@click.command(help=__doc__)
def main() -> None:
    """Write what the JSON files say."""
    files = read()
    PAGE.write_text(page(files, json.loads(BANK.read_text(encoding="utf-8"))), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), files), encoding="utf-8")
    for name, path in FIGURES.items():
        path.write_text(figure(files[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
