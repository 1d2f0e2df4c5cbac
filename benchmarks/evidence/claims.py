"""What the numbers say of each claim, in one word, by rules that are the same for all.

A claim is split into cases: a model, or a model under one shift. A case is `for` the claim, `against` it, or
`open`, by its 95 % interval:

- that something gains: for, if the interval is above 0 and the gain at least LEAST; against, if the
  interval is below LEAST (so: about zero, or worse); otherwise open;
- that something does not gain: the reverse;
- that something goes one way, or is larger: for, if the interval is above 0; against, if below;
- of ranks among random sets and trends over a dose: as `intervene` judges them.

A claim is `supported` where at least two thirds of its cases are for it, `not supported` where more than one
third are against it, and `undecided` otherwise. Its effect is the mean over cases; the interval is of
models drawn anew, and each case from a normal distribution as wide as its own interval.

Knows nothing about models or files; a record is what `Protocol.record` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tapioca_export.artifacts import Interval
from tapioca_export.benchmarking.statistics import interval

from .measuring import effect, spearman_over

LEAST = 0.01  # of the error: a smaller gain is about zero
MOST_FOR, MOST_AGAINST = 2 / 3, 1 / 3
USELESS = 0.9  # of the error that a constant answer makes: beyond it a model does nothing
NUM_DRAWS = 2000
SUPPORTED, NOT_SUPPORTED, UNDECIDED, NO_CASE = "supported", "not supported", "undecided", "no case"

Record = Mapping[str, Any]
Side = Literal["for", "against", "open"]


@dataclass(frozen=True)
class Case:
    """One piece of evidence, of one model."""

    model: str
    size: str
    effect: float
    interval: Interval | None
    side: Side


@dataclass(frozen=True)
class Claim:
    """A prediction: the number of its test, what it says, the unit of its effect, and its cases."""

    name: str
    test: str
    says: str
    unit: str
    cases: Callable[[Record], Iterator[tuple[float, Interval | None, Side]]]


@dataclass(frozen=True)
class Verdict:
    """What all cases together say: the mean effect, its interval, how many are for and against."""

    word: str
    effect: float = float("nan")
    interval: Interval = (float("nan"), float("nan"))
    num_for: int = 0
    num_against: int = 0
    num_cases: int = 0


# --- sides ----------------------------------------------------------------------------------


def gains(value: float, bounds: Interval) -> Side:
    """Judge whether something gains."""
    if bounds[0] > 0 and value >= LEAST:
        return "for"
    return "against" if bounds[1] < LEAST else "open"


def gains_nothing(value: float, bounds: Interval) -> Side:
    """Judge whether something does not gain."""
    reverse: dict[Side, Side] = {"for": "against", "against": "for", "open": "open"}
    return reverse[gains(value, bounds)]


def is_above(bounds: Interval, least: float = 0.0) -> Side:
    """Judge whether a quantity is above a number."""
    return "for" if bounds[0] > least else "against" if bounds[1] < least else "open"


# --- cases ----------------------------------------------------------------------------------

Found = Iterator[tuple[float, Interval | None, Side]]


def _judged(part: Record, judge: Callable[[float, Interval], Side]) -> tuple[float, Interval, Side]:
    bounds = tuple(part["interval"])
    return part["effect"], bounds, judge(part["effect"], bounds)


def _above(value: float, bounds: Interval) -> Side:
    return is_above(bounds)


def _id_gain(record: Record) -> Found:
    yield _judged(record["id"]["gain"], gains_nothing)


def _target_gain(record: Record) -> Found:
    for shift in record["shifts"]:
        yield _judged(shift["gain"], gains)


def _dose(record: Record) -> Found:
    """Yield an axis: does the gain grow with the shift, from none up to where the model is useless?"""
    for axis, origin in record["origins"].items():
        on_axis = [shift for shift in record["shifts"] if axis in shift["levels"]]
        useful = [shift for shift in on_axis if shift["error"] < USELESS * record["constant_error"]]
        levels = [origin, *(shift["levels"][axis] for shift in useful)]
        yield from _growth(levels, [record["id"]["gain"], *(shift["gain"] for shift in useful)])


def _deviation_dose(record: Record) -> Found:
    for axis in record["origins"]:
        on_axis = [shift for shift in record["shifts"] if axis in shift["levels"]]
        yield from _growth(
            [shift["levels"][axis] for shift in on_axis], [shift["deviation"] for shift in on_axis]
        )


def _growth(levels: Sequence[float], parts: Sequence[Record]) -> Found:
    """Yield Spearman's correlation with the level, where there are at least three."""
    if len(levels) < 3:
        return
    drawn = np.stack([_draw(part["effect"], part["interval"], place) for place, part in enumerate(parts)])
    found = effect(
        spearman_over(levels, np.asarray([[part["effect"]] for part in parts]))[0],
        spearman_over(levels, drawn),
    )
    yield found["effect"], found["interval"], is_above(found["interval"])


def _deviation(record: Record) -> Found:
    for shift in record["shifts"]:
        found, floor = shift["deviation"], shift["deviation"]["noise_floor"]
        low, high = (bound - floor for bound in found["interval"])
        yield found["effect"] - floor, (low, high), is_above((low, high))


def _realignment(record: Record) -> Found:
    """Yield the lesser of what is gone of norms and of distances: both are claimed."""
    for shift in record["shifts"]:
        if shift["realignment"]:
            parts = [shift["realignment"][name] for name in ("norms", "distances")]
            lesser = min(parts, key=lambda part: part["effect"])
            bounds = tuple(min(part["interval"][place] for part in parts) for place in (0, 1))
            yield lesser["effect"], bounds, is_above(bounds)


def _realignment_at_head(record: Record) -> Found:
    for shift in record["shifts"]:
        if shift["realignment"]:
            yield _judged(shift["realignment"]["head"], _above)


def _rank(name: str) -> Callable[[Record], Found]:
    """Return what yields the selected layers' lead over the median of random sets."""
    sides: dict[str, Side] = {"distinguishable": "for", "not distinguishable": "against", "undecided": "open"}

    def cases(record: Record) -> Found:
        for shift in record["shifts"]:
            if rank := (shift.get("intervention") or {}).get(name):
                # Gains are in units of the metric, deviations are shares as they are.
                whole = shift["error"] if name == "metric_rank" else 1.0
                yield (rank["selected"] - rank["median"]) / whole, None, sides[rank["judgement"]]

    return cases


def _over(name: str) -> Callable[[Record], Found]:
    """Return what yields how much more TALE's choice gains than another one."""

    def cases(record: Record) -> Found:
        for shift in record["shifts"]:
            if name in shift and shift["drop"]:
                yield _judged(shift[name], gains)

    return cases


def _is_more(name: str) -> Callable[[Record], Found]:
    """Return what yields a quantity that is claimed to be above zero."""

    def cases(record: Record) -> Found:
        for shift in record["shifts"]:
            if found := shift.get(name):
                yield _judged(found, _above)

    return cases


def _single_layers(record: Record) -> Found:
    for shift in record["shifts"]:
        if found := shift.get("singles"):
            is_shown = found["p_value"] < 0.05
            side: Side = "open" if not is_shown else "for" if found["effect"] > 0 else "against"
            yield found["effect"], None, side


def _sweeps(record: Record, name: str = "intervention") -> Iterator[Record]:
    return (shift[name] for shift in record["shifts"] if shift.get(name))


def _metric_trend(record: Record) -> Found:
    """Yield the error's correlation with alpha from 0 to 1."""
    for sweep in _sweeps(record):
        sign = -1 if sweep["higher_is_better"] else 1
        yield _trend(sweep["metric_trend"], sign)


def _deviation_trend(record: Record) -> Found:
    for sweep in _sweeps(record):
        yield _trend(sweep["deviation_trend"], 1)


def _trend(trend: Record, sign: int) -> tuple[float, Interval, Side]:
    wanted = "rises" if sign > 0 else "falls"
    side: Side = "for" if trend["judgement"] == wanted else "against"
    low, high = sorted(sign * bound for bound in trend["interval"])
    return sign * trend["spearman"], (low, high), "open" if trend["judgement"] == "undecided" else side


def _amplified(record: Record) -> Found:
    """Yield by how much of the error the largest alpha is worse than 1."""
    for shift in record["shifts"]:
        if sweep := shift.get("intervention"):
            value, (low, high) = _dose_gain(sweep, sweep["target"][-1], shift["error"])
            yield -value, (-high, -low), gains(-value, (-high, -low))


def _id_doses(record: Record) -> Found:
    """Yield whether any other alpha gains on ID."""
    for sweep in _sweeps(record):
        yield _no_dose_gains(sweep, sweep["id"], record["id"]["error"])


def _other_layers(record: Record) -> Found:
    """Yield whether any alpha of other layers gains on the target."""
    for shift in record["shifts"]:
        if sweep := shift.get("other_layers"):
            yield _no_dose_gains(sweep, sweep["target"], shift["error"])


def _no_dose_gains(sweep: Record, doses: Sequence[Record], error: float) -> tuple[float, Interval, Side]:
    """Judge whether no alpha but 1 gains, by one that does, or else by the one that could gain most."""
    found = [_dose_gain(sweep, dose, error) for dose in doses if dose["alpha"] != 1]
    value, bounds = max(found, key=lambda gain: (gains(*gain) == "for", gain[1][1]))
    return value, bounds, gains_nothing(value, bounds)


def _dose_gain(sweep: Record, dose: Record, error: float) -> tuple[float, Interval]:
    """Return the share of the intact model's error that a dose takes away."""
    sign = 1 if sweep["higher_is_better"] else -1
    low, high = sorted(sign * bound / error for bound in dose["difference_interval"])
    return sign * dose["difference"] / error, (low, high)


def _over_norms(record: Record) -> Found:
    for shift in record["shifts"]:
        if sweep := shift.get("intervention"):
            found, error = sweep["over_norms"], shift["error"]
            low, high = (bound / error for bound in found["interval"])
            yield found["effect"] / error, (low, high), gains(found["effect"] / error, (low, high))


def _transfer(record: Record) -> Found:
    for shift in record["shifts"]:
        for found in shift["transfer"].values():
            yield _judged(found, gains)


def _unrelated(record: Record) -> Found:
    for found in record.get("unrelated", ()):
        yield _judged(found, gains_nothing)


def _on_id(record: Record) -> Found:
    for shift in record["shifts"]:
        if shift["drop"]:
            yield _judged(shift["on_id"], gains_nothing)


_ERROR, _DEVIATION, RHO = "share of the error", "share of the deviation", "rank correlation"
CLAIMS = (
    Claim("ID null", "10", "Chosen on ID, layers gain nothing on fresh ID rows.", _ERROR, _id_gain),
    Claim(
        "OOD gain", "11", "Chosen on a shift, layers gain on fresh rows of that shift.", _ERROR, _target_gain
    ),
    Claim("Dose", "12", "The gain grows with the shift while the model is of use.", RHO, _dose),
    Claim("Deviation", "13", "Profiles deviate above the noise floor.", "log ratio", _deviation),
    Claim("Deviation: dose", "13", "The deviation grows with the shift.", RHO, _deviation_dose),
    Claim(
        "Realignment", "14", "Dropping lowers the deviation of norms and of distances.", _DEVIATION,
        _realignment,
    ),
    Claim(
        "Realignment at the head", "14", "... at the last boundary, which the head reads.", _DEVIATION,
        _realignment_at_head,
    ),
    Claim(
        "Specificity: random sets", "15", "Chosen layers gain more than random sets of their size.", _ERROR,
        _rank("metric_rank"),
    ),
    Claim(
        "Specificity: influence", "15", "... more than as many layers of least influence.", _ERROR,
        _over("over_influence"),
    ),
    Claim(
        "Specificity: geometry", "15", "Chosen layers realign more than random sets.", _DEVIATION,
        _rank("deviation_rank"),
    ),
    Claim(
        "Specificity: geometry, influence", "15", "... more than as many layers of least influence.",
        _DEVIATION, _is_more("realigns_over_influence"),
    ),
    Claim(
        "Specificity: single layers", "15", "Of single layers, those that realign more gain more.", RHO,
        _single_layers,
    ),
    Claim(
        "Residual scaling: error", "16", "The error falls as the dose of the layers falls from 1 to 0.", RHO,
        _metric_trend,
    ),
    Claim("Residual scaling: deviation", "16", "... and so does the deviation.", RHO, _deviation_trend),
    Claim("Residual scaling: amplified", "16", "A dose above 1 makes the error larger.", _ERROR, _amplified),
    Claim(
        "Residual scaling: amplified deviation", "16", "... and the deviation.", _DEVIATION,
        _is_more("amplified_deviation"),
    ),
    Claim("Residual scaling: ID", "16", "On ID no other dose gains.", _ERROR, _id_doses),
    Claim(
        "Residual scaling: other layers", "16", "No dose of as many other layers, drawn once, gains.", _ERROR,
        _other_layers,
    ),
    Claim("Norms alone", "17", "Dropping gains more than the norms of ID alone.", _ERROR, _over_norms),
    Claim("Transfer", "18", "Chosen on a shift, layers gain on neighbouring shifts.", _ERROR, _transfer),
    Claim("Transfer: ID", "18", "... and not on ID.", _ERROR, _on_id),
    Claim(
        "Transfer: unrelated tasks", "18", "Chosen on one task, layers gain nothing on unrelated ones.",
        _ERROR, _unrelated,
    ),
    Claim(
        "Leakage: chosen on ID", "A", "Chosen on the shift, layers gain more than chosen on ID.", _ERROR,
        _over("over_chosen_on_id"),
    ),
    Claim(
        "Leakage: random search", "A",
        "... more than the best of no more random sets than the search scored.", _ERROR, _over("over_chance"),
    ),
    Claim(
        "Leakage: amplifying", "A", "... more than a search of equal size that amplifies layers.", _ERROR,
        _over("over_amplified"),
    ),
)  # fmt: skip
# Test 19 repeats these at every size.
REPEATED = tuple(claim for claim in CLAIMS if claim.test.isdecimal() and int(claim.test) <= 16)


# --- verdicts -------------------------------------------------------------------------------


def cases_of(claim: Claim, records: Sequence[Record]) -> list[Case]:
    """Return all cases of a claim."""
    return [Case(r["name"], r["size"], *found) for r in records for found in claim.cases(r)]


def verdict(cases: Sequence[Case]) -> Verdict:
    """Put cases together."""
    if not cases:
        return Verdict(NO_CASE)
    num_for, num_against = (sum(case.side == side for case in cases) for side in ("for", "against"))
    word = UNDECIDED
    if num_for >= MOST_FOR * len(cases):
        word = SUPPORTED
    elif num_against > MOST_AGAINST * len(cases):
        word = NOT_SUPPORTED
    mean = float(np.mean([case.effect for case in cases]))
    return Verdict(word, mean, interval(_pooled(cases)), num_for, num_against, len(cases))


def _pooled(cases: Sequence[Case]) -> np.ndarray:
    """Return replicates (R,) of the mean effect."""
    drawn: dict[str, list[np.ndarray]] = {}
    for place, case in enumerate(cases):
        drawn.setdefault(case.model, []).append(_draw(case.effect, case.interval, place))
    sums = np.stack([np.sum(parts, axis=0) for parts in drawn.values()])  # (models, R)
    counts = np.asarray([len(parts) for parts in drawn.values()])
    chosen = np.random.default_rng(0).integers(0, len(sums), (NUM_DRAWS, len(sums)))
    return np.asarray(sums[chosen, np.arange(NUM_DRAWS)[:, None]].sum(axis=1) / counts[chosen].sum(axis=1))


def _draw(value: float, bounds: Sequence[float] | None, seed: int) -> np.ndarray:
    """Draw R values around one, as wide as its 95 % interval; without an interval, the value itself."""
    width = 0.0 if bounds is None else (bounds[1] - bounds[0]) / (2 * 1.96)
    return np.asarray(np.random.default_rng(seed).normal(value, width, NUM_DRAWS))


def words_by_size(claim: Claim, records: Sequence[Record]) -> dict[str, str]:
    """Return the word for the models of each size alone."""
    cases = cases_of(claim, records)
    sizes = dict.fromkeys(record["size"] for record in records)
    return {size: verdict([case for case in cases if case.size == size]).word for size in sizes}


def words_of(claim: Claim, records: Sequence[Record]) -> set[str]:
    """Return the words that sizes have, of those with cases."""
    return set(words_by_size(claim, records).values()) - {NO_CASE}


def scale(records: Sequence[Record]) -> tuple[str, int, int]:
    """Judge test 19: of the repeated claims that a size decides, how many have the same word at every size.

    Supported, if at least two thirds have; not supported, if more than a third have not. Fewer than three
    sizes, or three seeds of each, show nothing.
    """
    seeds: dict[str, set[int]] = {}
    for record in records:
        seeds.setdefault(record["size"], set()).add(record["seed"])
    if len(seeds) < 3 or min(map(len, seeds.values())) < 3:
        return NO_CASE, 0, 0
    told = [found for claim in REPEATED if (found := words_of(claim, records)) - {UNDECIDED}]
    same = sum(len(found) == 1 for found in told)
    if same >= MOST_FOR * len(told):
        return SUPPORTED, same, len(told)
    return NOT_SUPPORTED if len(told) - same > MOST_AGAINST * len(told) else UNDECIDED, same, len(told)
