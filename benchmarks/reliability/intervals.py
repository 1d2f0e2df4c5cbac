"""Do 95 % intervals cover the truth 95 times in 100, and do tests see an effect where there is none?

    python -m benchmarks.reliability.intervals            # writes intervals.json
    python -m benchmarks.reliability.intervals --quick    # what CI runs: fewer populations and samples
    python -m benchmarks.reliability.intervals --only nmse --only log-perplexity    # the others are kept

Rows are drawn from populations whose truth is known (populations.py), again and again, and given to the
comparison that every benchmark makes. Counted is how often its intervals hold the truth, and where the
models do not differ, how often the verdict is that they do. Its p-values and intervals are held against
those of statsmodels and SciPy on random results.

Exit code 1 if an interval covers less than 93 % or more than 97 % of the time, a test is fooled in more
than 5 %, or the libraries do not agree; a share of simulations is taken for what it is within its 99 %
interval.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.stats import binomtest, bootstrap

from benchmarks.recording import origin
from tapioca_export.benchmarking.statistics import LEVEL, bootstrap_interval, compare
from tapioca_export.reporting.wording import effect
from tapioca_export.tasks import Scores

from .ending import finish, write
from .populations import CLASSIFICATION, POPULATIONS, REGRESSION, Population, speedups, squared_errors

COVER, FOOLED = (0.93, 0.97), 0.05
SIZES = (100, 400)  # report rows, of each domain
COSTLY = 4  # times fewer simulations
QUICK = ("accuracy", "accuracy, no effect", "log-perplexity")
ROUNDS = 100  # of timing, as a benchmark has them by default
TABLES = 1000
P_WITHIN, WIDTHS_WITHIN = 1e-12, 0.05
OUTPUT = Path(__file__).with_suffix(".json")


def simulate(name: str, num_rows: int, times: int) -> dict[str, Any]:
    """Compare two models on fresh rows, many times; returns the shares of what was found."""
    population = POPULATIONS[name]
    truth = population.truth
    wanted = {"difference": truth[1] - truth[0], "original": truth[0], "pruned": truth[1]}
    if not population.has_effect:  # known without drawing a row
        wanted["difference"] = 0.0
    covered, effects = dict.fromkeys(wanted, 0), {"gain": 0, "harm": 0}
    for number in range(times):
        original, pruned, domains = population.sample(np.random.default_rng([number, num_rows]), num_rows)
        found = compare(population.task, original, pruned, domains)
        intervals = {
            "difference": found.interval, "original": found.original_interval, "pruned": found.pruned_interval
        }  # fmt: skip
        for what, (low, high) in intervals.items():
            covered[what] += low <= wanted[what] <= high
        if (seen := effect(found)) != "unclear":
            effects[seen] += 1
    shares = {what: count / times for what, count in covered.items()}
    fooled = None if population.has_effect else {what: count / times for what, count in effects.items()}
    return {"population": name, "rows": num_rows, "times": times, "covered": shares, "fooled": fooled}


def simulate_timing(times: int) -> dict[str, Any]:
    """Give fresh rounds of timing to what makes the interval of a speed-up."""
    covered = 0
    for number in range(times):
        ratios = speedups(np.random.default_rng([number, ROUNDS]), ROUNDS)
        low, high = bootstrap_interval(ratios, np.median)
        covered += low <= 1.25 <= high
    shares = {"ratio": covered / times}
    return {"population": "speed-up", "rows": ROUNDS, "times": times, "covered": shares, "fooled": None}


def agreement(tables: int) -> dict[str, Any]:
    """Hold p-values and intervals of random results against those of statsmodels and of SciPy."""
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import proportion_confint

    generator = np.random.default_rng(7)
    p_off, share_off, widths_off = 0.0, 0.0, 0.0
    for number in range(tables):
        num_rows = int(generator.integers(5, 300))
        rows = (generator.random((2, num_rows)) < generator.random(2)[:, None]).astype(float)
        found = compare(CLASSIFICATION, *(Scores(model, np.zeros(num_rows)) for model in rows))
        counts = [[np.sum((rows[0] == a) & (rows[1] == b)) for b in (0, 1)] for a in (0, 1)]
        p_off = max(p_off, abs(found.p_value - mcnemar(counts, exact=True).pvalue))
        for model, interval in zip(rows, (found.original_interval, found.pruned_interval), strict=True):
            other = proportion_confint(int(model.sum()), num_rows, LEVEL, "wilson")
            share_off = max(share_off, float(np.abs(np.subtract(interval, other)).max()))
        if number % 10 == 0:  # SciPy's own bootstrap of pairs, of another seed
            original, pruned = squared_errors(0.8)(generator, 200)
            found = compare(REGRESSION, *(Scores(model, np.zeros(200)) for model in (original, pruned)))
            paired = bootstrap(
                (pruned, original),
                lambda x, y, axis: np.mean(x - y, axis=axis),
                paired=True, method="percentile", n_resamples=9999, rng=number,
            ).confidence_interval  # fmt: skip
            off = np.abs(np.subtract(found.interval, (paired.low, paired.high))).max()
            widths_off = max(widths_off, float(off / (paired.high - paired.low)))
    return {
        "tables": tables,
        "p_value_off": p_off,
        "wilson_off": share_off,
        "bootstraps": -(-tables // 10),
        "bootstrap_off_in_widths": widths_off,
    }


def broken(found: dict[str, Any]) -> list[str]:
    """Name what does not hold, if anything."""
    lines = []
    for case in found["cases"]:
        what = f"{case['population']}, {case['rows']} rows"
        for name, share in case["covered"].items():
            low, high = plausible(share, case["times"])
            if high < COVER[0] or low > COVER[1]:
                lines.append(f"{what}: the interval of the {name} covers {share:.1%}")
        for name, share in (case["fooled"] or {}).items():
            if plausible(share, case["times"])[0] > FOOLED:
                lines.append(f"{what}: a {name} is seen {share:.1%} of the time where there is none")
    agreed = found["agreement"]
    if max(agreed["p_value_off"], agreed["wilson_off"]) > P_WITHIN:
        lines.append("McNemar or Wilson differ from statsmodels")
    if agreed["bootstrap_off_in_widths"] > WIDTHS_WITHIN:
        lines.append("the bootstrap differs from SciPy's own of pairs")
    return lines


def plausible(share: float, times: int) -> tuple[float, float]:
    """Return the 99 % interval of a share of simulations."""
    found = binomtest(round(share * times), times).proportion_ci(0.99, "wilson")
    return float(found.low), float(found.high)


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was counted, and the numbers in words."""
    shares = [share for case in found["cases"] for share in case["covered"].values()]
    outside = [line for line in broken(found) if "covers" in line]
    fooled = [share for case in found["cases"] if case["fooled"] for share in case["fooled"].values()]
    agreed = found["agreement"]
    return [
        (
            f"95 % intervals that cover the truth, of {found['simulations']:,} samples (of costly metrics "
            f"{found['simulations'] // COSTLY}) in each of {len(found['cases'])} settings",
            "; ".join([f"{min(shares):.1%} to {max(shares):.1%}", *outside]),
        ),
        ("Gains or harms seen where there is neither, each at most", f"{max(fooled):.1%}"),
        (
            f"{agreed['tables']} tables: McNemar's p and Wilson's intervals differ from statsmodels by",
            f"{max(agreed['p_value_off'], agreed['wilson_off']):.0e}",
        ),
        (
            f"{agreed['bootstraps']} bootstraps of pairs: ends differ from SciPy's, at most",
            f"{agreed['bootstrap_off_in_widths']:.1%} of the width",
        ),
    ]


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield a line a setting."""
    yield f"{'population':32} rows   covered: difference, original, pruned   seen: gain, harm"
    for case in found["cases"]:
        covered = ", ".join(f"{share:.1%}" for share in case["covered"].values())
        fooled = ", ".join(f"{share:.1%}" for share in (case["fooled"] or {}).values())
        yield f"{case['population']:32} {case['rows']:4}   {covered:38}   {fooled}"


def measure(
    populations: Sequence[Population], times: int, tables: int, jobs: int, *, quick: bool = False
) -> dict[str, Any]:
    """Simulate every population, with few rows and, where asked for, with more."""
    with ProcessPoolExecutor(jobs) as pool:
        agreed = pool.submit(agreement, tables)
        cases = [
            pool.submit(simulate, population.name, size, times // COSTLY if population.is_costly else times)
            for population in populations
            for size in SIZES[: 1 if quick or population.is_costly else None]
        ]
        cases.append(pool.submit(simulate_timing, times))
        found = [case.result() for case in cases]
        return {"simulations": times, "cases": found, "agreement": agreed.result()}


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="What CI runs.")
@click.option(
    "--only", multiple=True, type=click.Choice(list(POPULATIONS)), help="Measure these; keep the others."
)
@click.option("--simulations", default=1000, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
def main(quick: bool, only: Sequence[str], simulations: int, jobs: int, output: Path) -> None:
    """Measure, print and write."""
    clock = time.perf_counter()
    chosen = [POPULATIONS[name] for name in only or (QUICK if quick else POPULATIONS)]
    before = json.loads(output.read_text(encoding="utf-8"))["cases"] if only else []
    given = (300, 100) if quick else (simulations, TABLES)
    found = {**origin(), **measure(chosen, *given, jobs, quick=quick)}
    found["minutes"] = round((time.perf_counter() - clock) / 60, 1)
    for case in found["cases"]:
        case["commit"] = found["commit"]
    again = {(case["population"], case["rows"]) for case in found["cases"]}
    found["cases"] = [
        *(case for case in before if (case["population"], case["rows"]) not in again),
        *found["cases"],
    ]
    click.echo("\n".join(table(found)))
    write(found, output)
    finish(rows(found), broken(found))


if __name__ == "__main__":
    main()
