"""Sample files -> rows in four roles, with no row in two of them.

Roles: id-select and target-select drive the choice of layers; id-report and target-report are only
ever reported. Of a target with named domains, each is dealt out on its own, and then they are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..config import UNNAMED
from ..domains import Domains
from ..errors import LoadError
from .rows import ReadRow, Samples, check_layout, read_samples, row_hash

ROLES = ("id-select", "target-select", "id-report", "target-report")
# Fewer rows give intervals that say nothing.
MIN_ROWS = 8
Side = Literal["select", "report"]
_SIDES: tuple[Side, ...] = ("select", "report")


def load_roles(
    files: Mapping[str, Path | Mapping[str, Path] | None],
    read_row: ReadRow,
    *,
    sides: Sequence[Side] = ("select", "report"),
    seed: int = 0,
    limit: int | None = None,
    drop_leaks: bool = False,
    objective: str = "mean",
    weights: Mapping[str, float] | None = None,
) -> dict[str, Samples]:
    """Read the sample files and deal the rows out to the roles.

    A distribution with one file is split in half by a seeded hash of each row's content, stratified
    by label, so that equal rows never part; with a report file, the files are the roles. Of a target
    with named domains each is dealt out so on its own, and a row that is in two of them is in two roles.

    Args:
        files: Paths by "id", "target", "id-report", "target-report"; None where not given, a path for
            each name where domains are named.
        read_row: Turns one record and its place into a row.
        sides: The sides wanted; the split is the same whichever are asked for.
        seed: Seed of the hash.
        limit: At most this many rows a role, chosen by the same hash after the split.
        drop_leaks: Remove rows that stand in two roles instead of refusing them. A row stays in the
            first of its roles in the order of `ROLES`, so that report rows go before select rows.
        objective: How the numbers of named domains become one, as in `Domains`.
        weights: What each of them counts for, with objective "weights".

    Raises:
        LoadError: If a file cannot be read, files do not fit each other, a role has too few rows,
            or a row is in two roles.
    """
    roles: dict[tuple[str, str], Samples] = {}
    for name in ("id", "target"):
        given, report_files = (_by_domain(files.get(key)) for key in (name, f"{name}-report"))
        for domain in given:
            role, report_role = (f"{name}-{side}{f' ({domain})' if domain else ''}" for side in _SIDES)
            samples = read_samples(given[domain], read_row, role=role)
            if domain in report_files:
                select, report = samples, read_samples(report_files[domain], read_row, role=report_role)
            else:
                select, report = halves(samples, seed)
            roles[f"{name}-select", domain] = _limited(select, seed, limit)
            roles[f"{name}-report", domain] = _limited(replace(report, role=report_role), seed, limit)
    check_layout([row for samples in roles.values() for row in samples.rows[:1]])
    if "report" not in sides:
        roles = {key: samples for key, samples in roles.items() if key[0].endswith("select")}
    # Where rows are reported, those that drove the choice count, though they be not asked for.
    roles = _without_leaks(roles, drop_leaks)
    roles = {key: samples for key, samples in roles.items() if key[0].rpartition("-")[2] in sides}
    for samples in roles.values():
        if len(samples) < MIN_ROWS:
            raise LoadError(
                f"{samples.source} gives {len(samples)} {samples.role} rows, at least {MIN_ROWS} are needed.",
                "Give more rows, or a separate report file.",
            )
    found: dict[str, dict[str, Samples]] = {}
    for (name, domain), samples in roles.items():
        found.setdefault(name, {})[domain] = samples
    return {name: _joined(name, domains, objective, weights) for name, domains in found.items()}


def _by_domain(files: Path | Mapping[str, Path] | None) -> Mapping[str, Path]:
    """Return the file of each domain; one file is that of a domain without a name."""
    if files is None:
        return {}
    return files if isinstance(files, Mapping) else {UNNAMED: files}


def _joined(
    role: str, domains: Mapping[str, Samples], objective: str, weights: Mapping[str, float] | None
) -> Samples:
    """Return the rows of all domains of a role as one set.

    Raises:
        LoadError: If some domains have labels and others have none.
    """
    if UNNAMED in domains:
        return domains[UNNAMED]
    labelled = {samples.is_labelled: samples for samples in domains.values()}
    if len(labelled) > 1:
        raise LoadError(
            f"{labelled[False].source} has no labels, {labelled[True].source} has labels.",
            "Label the rows of all target domains, or of none.",
        )
    sizes = {name: len(samples) for name, samples in domains.items()}
    return Samples(
        role,
        tuple(row for samples in domains.values() for row in samples.rows),
        ", ".join(samples.source for samples in domains.values()),
        "\n".join(samples.sha256 for samples in domains.values()),
        Domains.of(sizes, objective, weights),
    )


def _without_leaks(roles: dict[tuple[str, str], Samples], drop_leaks: bool) -> dict[tuple[str, str], Samples]:
    """Refuse, or remove from the later role, rows that stand in two roles."""
    first_seen: dict[str, tuple[str, str]] = {}
    clean: dict[tuple[str, str], Samples] = {}
    contents = [{row.key for row in samples.rows} for samples in roles.values()]
    # The same file given twice, where nothing is reported, is a control: no shift, nothing to drop.
    if [name for name, _ in roles] == ["id-select", "target-select"] and contents[0] == contents[1]:
        return roles
    for key in sorted(roles, key=lambda key: (ROLES.index(key[0]), key[1])):
        role, kept = roles[key].role, []
        for row in roles[key].rows:
            other, where = first_seen.setdefault(row.key, (role, row.where))
            if other == role:
                kept.append(row)
            elif not drop_leaks:
                raise LoadError(
                    f"The same row is in two roles: {where} ({other}) and {row.where} ({role}).",
                    f"{_why_apart(other, role)} Remove it, or add --drop-leaks.",
                )
        clean[key] = replace(roles[key], rows=tuple(kept))
    return clean


def refuse_shared(chosen: Iterable[Samples], reported: Iterable[Samples]) -> None:
    """Refuse to report rows that helped to choose, whatever roles they came by.

    Raises:
        LoadError: Naming one, and how many there are.
    """
    seen = {row.key for samples in chosen for row in samples.rows}
    if shared := [row.where for samples in reported for row in samples.rows if row.key in seen]:
        raise LoadError(
            f"{len(shared)} rows that helped to choose would be reported, such as {shared[0]}.",
            "Give other rows to report, or report this if the files are apart.",
        )


def _why_apart(one: str, other: str) -> str:
    """Say why a row may not be in two roles."""
    if one.split(" ")[0] == other.split(" ")[0]:
        return "A row belongs to one domain."
    return "A row that helped to choose cannot be reported."


@dataclass(frozen=True)
class Split:
    """Rows apart: some choose, such as how a file is quantised, and what that loses is measured on others.

    `report` None: on all that there are beside those that choose.
    """

    calibration: Samples | None = None
    report: Samples | None = None


NO_SPLIT = Split()


def halves(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Halve the samples by a seeded hash of their content, label by label."""
    # Equal rows with unequal labels belong to one stratum, whichever of them comes first.
    labels: dict[str, str] = {}
    for row in samples.rows:
        # A text is an answer, not a class: each would be a stratum of its own.
        label = str(row.label) if np.isscalar(row.label) and not isinstance(row.label, str) else ""
        labels[row.key] = min(label, labels.get(row.key, label))
    strata: dict[str, list[str]] = {}
    for key, label in labels.items():
        strata.setdefault(label, []).append(key)
    chosen: set[str] = set()
    for number, stratum in enumerate(sorted(strata)):
        keys = sorted(strata[stratum], key=lambda key: (row_hash(key, seed), key))
        # An odd row out goes to either side in turn.
        chosen.update(keys[: (len(keys) + number % 2) // 2])
    select = tuple(row for row in samples.rows if row.key in chosen)
    report = tuple(row for row in samples.rows if row.key not in chosen)
    return replace(samples, rows=select), replace(samples, rows=report)


def _limited(samples: Samples, seed: int, limit: int | None) -> Samples:
    """Keep at most `limit` rows, in file order."""
    if limit is None or len(samples) <= limit:
        return samples
    order = sorted(range(len(samples)), key=lambda i: (row_hash(samples.rows[i].key, seed), i))
    return replace(samples, rows=tuple(samples.rows[i] for i in sorted(order[:limit])))
