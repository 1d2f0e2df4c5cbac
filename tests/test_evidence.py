"""The evidence of benchmarks/: rows, effects and words by hand, and pages that say what the JSON says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tapioca_export.models import skipping
from tapioca_export.polynomial import sample_prompts
from tapioca_export.profiling import surviving_boundaries
from tapioca_export.tasks import TASKS, Scores

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.evidence import claims, language, measuring, polynomial, results, running  # noqa: E402
from benchmarks.evidence.protocol import Effort, Protocol  # noqa: E402
from benchmarks.evidence.shifts import ID  # noqa: E402
from benchmarks.language import lists  # noqa: E402
from benchmarks.polynomial.prompts import Distribution  # noqa: E402

ACCURACY, ERROR = TASKS["text-classification"], TASKS["polynomial-regression"]

# --- pages ----------------------------------------------------------------------------------


def test_the_pages_say_what_the_json_files_say() -> None:
    files = results.read()
    bank = json.loads(results.BANK.read_text(encoding="utf-8"))
    assert results.PAGE.read_text(encoding="utf-8") == results.page(files, bank)
    readme = results.README.read_text(encoding="utf-8")
    assert readme == results.readme(readme, files)
    for name, path in results.FIGURES.items():
        assert path.read_text(encoding="utf-8") == results.figure(files[name])


def test_the_grid_of_the_readme_is_in_the_json() -> None:
    """Read here off the JSON, and not by the code that prints it."""
    file = results.read()["polynomial"]
    size = file["models"][0]["size"]
    shifts = [
        shift
        for record in file["models"]
        if record["size"] == size
        for shift in record["shifts"]
        if shift["name"] == "c=5 x=2"
    ]
    gain = sum(shift["gain"]["effect"] for shift in shifts) / len(shifts)
    readme = results.README.read_text(encoding="utf-8")
    (row,) = re.findall(rf"### {size}\n.*?(\| \*\*c=5\*\* \|.*?)\n", readme, re.S)
    assert f", {gain:+.3f} (" in row.split("|")[3]


def test_the_readme_shows_the_embedded_example_as_it_was_measured() -> None:
    """Read here off the JSON, and not by the code that prints it."""
    shown = results.README.read_text(encoding="utf-8").split("## The embedded example")[1]
    for title, name in (("Shipped weights", "shifts.json"), ("Shorter training", "shifts-short.json")):
        rows = json.loads((results.README.parent / name).read_text(encoding="utf-8"))["rows"]
        lines = [
            line for line in shown.split(f"### {title}")[1].split("###")[0].splitlines() if "| c=" in line
        ]
        assert len(lines) == len(rows) == 8
        for line, row in zip(lines, rows, strict=True):
            numbers = [float(n) for n in re.findall(r"[+-]?\d+\.\d{4}", line)]
            target, id_ = row["target"], row["id"]
            expected = [target["original"], target["pruned"], target["difference"], *target["interval"]]
            assert numbers == pytest.approx([*expected, id_["original"], id_["pruned"]], abs=6e-5)
            assert line.startswith(f"| c={row['coefficient_scale']} x={row['input_scale']} | ")
            assert line.split("|")[2].strip() == (", ".join(map(str, row["drop"])) or "-")


@pytest.mark.parametrize("family", ["polynomial", "language"])
def test_a_command_takes_half_an_hour_of_two_cores_at_most(family: str) -> None:
    """Training included, by the logs of the models; read here off the JSON."""
    file = results.read()[family]
    training = {(record["size"], record["seed"]): record["training"] for record in file["models"]}
    assert len(training) == 9
    assert file["jobs"] == file["environment"]["cores"] == 2
    seconds = sum(part["seconds"] for part in training.values()) / 2 + file["seconds"]
    assert seconds <= 30 * 60
    page = results.PAGE.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if f"evidence.{family}`" in line)
    told = [float(number) for number in re.findall(r"(\d+\.\d) [+m]", row)]
    assert sum(told) == pytest.approx(seconds / 60, abs=0.11)


def test_the_page_says_which_words_the_smaller_grid_moved_and_why() -> None:
    """Counted here off the JSON of the wider grid, by the rule of the claim."""
    files = results.read()
    names = {shift["name"] for shift in files["polynomial"]["models"][0]["shifts"]}
    counts = {True: [0, 0, 0], False: [0, 0, 0]}
    for record in files[results.WIDER]["models"]:
        for shift in record["shifts"]:
            low, high = shift["gain"]["interval"]
            found = counts[shift["name"] in names]
            found[0] += low > 0 and shift["gain"]["effect"] >= 0.01
            found[1] += high < 0.01 and not (low > 0 and shift["gain"]["effect"] >= 0.01)
            found[2] += 1
    page = results.PAGE.read_text(encoding="utf-8").replace("\n", " ")
    told = [f"{a} for, {b} against of {c}" for a, b, c in (counts[True], counts[False])]
    assert f"the 24 shifts that both have: {told[0]}; under the 9 others: {told[1]}." in page
    assert "OOD gain (not supported to supported)" in page
    words = {
        line.split("**")[1]: [cell.split("**")[1] for cell in line.split("|")[3:5] if "**" in cell]
        for line in results.PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| **") and "(" in line.split("<br>")[0]
    }
    assert set(words) == {claim.name for claim in claims.CLAIMS} | {"Scale"}
    for name, told in words.items():
        if name != "Scale" and len(told) == 2:
            assert (f" {name} ({told[1]} to {told[0]})" in page) is (told[0] != told[1]), name


def test_the_files_are_of_the_grids_that_the_commands_name() -> None:
    default = {option.name: option.default for option in polynomial.main.params}["scales"]
    files = results.read()
    for family, scales in (("polynomial", default), (results.WIDER, "to-10")):
        assert tuple(files[family]["scales"]) == polynomial.SCALES[scales]
        expected = {*polynomial.grid(polynomial.SCALES[scales]), *polynomial.others()}
        for record in files[family]["models"]:
            assert {shift["name"] for shift in record["shifts"]} == expected
    assert (
        f"--scales to-10 --output benchmarks/evidence/{results.WIDER}.json" in results.COMMANDS[results.WIDER]
    )


def test_the_last_go_first_and_records_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def one_by_one(function: Any, arguments: Any, jobs: int) -> Iterator[Any]:
        for given in arguments:
            yield function(*given)

    monkeypatch.setattr(running, "each", one_by_one)
    running.train_each(begun.append, [("small",), ("large",)], 2)
    assert begun == ["large", "small"]
    begun.clear()

    def make(name: str) -> str:
        begun.append(name)
        return name

    members = [("small",), ("large",)]
    running.run(
        make, members, tmp_path / "f.json", jobs=2, record=lambda name: {"name": name}, about={"family": "f"}
    )
    assert begun == ["large", "small"]
    file = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [record["name"] for record in file["models"]] == ["small", "large"]
    assert file["family"] == "f"


# --- rows -----------------------------------------------------------------------------------


def test_an_unshifted_distribution_is_the_one_trained_on() -> None:
    one = Distribution(3, 2).prompts(20, 12, (1, 2))
    assert np.array_equal(one, sample_prompts(20, (1, 2), 3, 2, 12))


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_prompts_of_a_degree_are_polynomials_of_it(degree: int) -> None:
    for prompt in Distribution(degree=degree).prompts(5, 20, (0,)).astype(np.float64):
        x, y = prompt[::2], prompt[1::2]
        for fitted, fits in ((degree, True), (degree - 1, False)):
            residual = np.abs(np.polyval(np.polyfit(x, y, fitted), x) - y).max()
            assert (residual < 1e-5) == fits


def test_normal_prompts_are_normal_and_scaled() -> None:
    prompts = Distribution(1, 3, is_normal=True).prompts(500, 20, (0,))
    assert prompts[:, ::2].std() == pytest.approx(3, rel=0.03)
    assert np.abs(prompts[:, ::2]).max() > 9


def test_neighbours_are_one_step_away_and_mutual() -> None:
    shifts = {name: shift for name, (shift, _) in polynomial.grid((1, 2, 5)).items()}
    assert len(shifts) == 8
    assert set(shifts["c=2 x=2"].neighbours) == {"c=1 x=2", "c=5 x=2", "c=2 x=1", "c=2 x=5"}
    assert set(shifts["c=2 x=1"].neighbours) == {"c=5 x=1", "c=2 x=2"}
    assert all(name in shifts[other].neighbours for name in shifts for other in shifts[name].neighbours)
    assert shifts["c=5 x=1"].levels == {polynomial.COEFFICIENTS: 5}
    assert shifts["c=2 x=2"].levels == {}


def answered(prompt: str) -> str:
    function, *words = prompt.removesuffix(" =").split()
    if function == "after":
        return words[words.index(words[0], 1) + 1]
    ranked = sorted(words)
    return {
        "first": words[0],
        "last": words[-1],
        "max": ranked[-1],
        "min": ranked[0],
        "ends": f"{words[0]} {words[-1]}",
        "range": f"{ranked[0]} {ranked[-1]}",
    }[function]


def test_questions_on_lists_have_the_right_answer_among_different_choices() -> None:
    rows = lists.questions(300, (3, 12), "seed")
    assert len({row["prompt"] for row in rows}) == 300
    assert {row["prompt"].split()[0] for row in rows} == set(lists.FUNCTIONS)
    for row in rows:
        assert row["answer"] == answered(row["prompt"]) == row["choices"][row["label"]]
        assert len(set(row["choices"])) == lists.NUM_CHOICES
        assert {len(choice.split()) for choice in row["choices"]} == {len(row["answer"].split())}
    assert len({row["label"] for row in rows}) == lists.NUM_CHOICES


def test_unrelated_questions_are_asked_by_functions_that_have_nothing_in_common() -> None:
    assert {*lists.BY_PLACE, *lists.BY_ORDER} == set(lists.FUNCTIONS)
    assert not {*lists.BY_PLACE} & {*lists.BY_ORDER}
    subject = language.untrained("tiny", 0, "generated")
    assert subject.unrelated == (
        ("14-17 by place", "14-17 by order"),
        ("14-17 by order", "14-17 by place"),
    )
    for name, functions in (("14-17 by place", lists.BY_PLACE), ("14-17 by order", lists.BY_ORDER)):
        rows = subject.draw(name, "target-report").rows
        asked = {row.features["prompt"].split()[0] for row in rows}
        assert asked <= set(functions)
        assert len(asked) > 1


def test_no_row_of_a_language_model_has_two_roles() -> None:
    subject = language.untrained("tiny", 0, "likelihood")
    for name, side in ((ID, "id"), ("14-17", "target")):
        select, report = (subject.draw(name, f"{side}-{end}") for end in ("select", "report"))
        assert not {row.key for row in select.rows} & {row.key for row in report.rows}
        assert len(select) == len(report) == 32


# --- effects --------------------------------------------------------------------------------


def scores(*values: float) -> Scores:
    return Scores(np.asarray(values), np.asarray(values))


def test_a_gain_is_the_share_of_the_error_that_is_gone() -> None:
    right = {(): scores(1, 0, 0, 0), (2,): scores(1, 1, 0, 0), (3,): scores(0, 0, 0, 0)}
    found = measuring.Gains(ACCURACY, right)
    assert found.errors[()] == 0.75
    assert found.of((2,))["effect"] == pytest.approx(1 / 3)
    assert found.of((3,))["effect"] == pytest.approx(-1 / 3)
    assert found.of((2,), instead_of=(3,))["effect"] == pytest.approx(2 / 3)
    squares = measuring.Gains(ERROR, {(): scores(2, 4), (0,): scores(1, 2)})
    assert squares.of((0,))["effect"] == 0.5
    assert squares.of((0,))["interval"] == pytest.approx((0.5, 0.5))  # each row loses half: nothing to draw
    assert squares.of(())["interval"] == (0, 0)


def test_the_interval_of_a_gain_is_paired() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(1, 9, 400)
    found = measuring.Gains(ERROR, {(): scores(*hard), (1,): scores(*(hard * 0.9))}).of((1,))
    assert found["interval"] == pytest.approx((0.1, 0.1))
    both = {(): scores(*hard), (1,): scores(*(hard * 0.9)), (2,): scores(*(hard * 0.7))}
    more = measuring.Gains(ERROR, both).of((2,), instead_of=(1,))
    assert more["interval"] == pytest.approx((0.2, 0.2))


def test_ranks_correlate_as_scipy_says() -> None:
    one, other = [3.0, 1.0, 2.0, 2.0, 9.0, 0.0], [1.0, 2.0, 2.0, 4.0, 8.0, -1.0]
    expected = spearmanr(one, other)
    found = measuring.rank_correlation(one, other)
    assert found["effect"] == pytest.approx(expected.statistic)
    assert 0.02 < found["p_value"] < 0.3
    assert measuring.rank_correlation([1, 1, 1, 1], other[:4]) == {"effect": 0.0, "p_value": 1.0, "num": 4}
    assert measuring.rank_correlation(range(7), range(7))["p_value"] < 0.01
    columns = measuring.spearman_over(one, np.asarray([other, [0.0] * 6]).T)
    assert columns.tolist() == pytest.approx([expected.statistic, 0])


class Fixed:
    """A response with given deviations: of norms and of distances at every boundary."""

    def __init__(self, norms: Sequence[float], distances: Sequence[float]) -> None:
        self.norms, self._both = np.asarray([norms]), np.asarray([norms, distances], dtype=float)
        self.noise_floor = SimpleNamespace(norms=[0.1] * 4, distances=[0.2] * 4, mean=0.15)

    def deviations(self, reference: Any, boundaries: Sequence[int]) -> np.ndarray:
        return self._both[:, list(boundaries)].mean(axis=1)

    def deviation_replicates(self, reference: Any, boundaries: Sequence[int]) -> np.ndarray:
        return np.repeat(self.deviations(reference, boundaries)[:, None], 5, axis=1)


def test_realignment_is_over_the_boundaries_that_are_left_and_at_the_head() -> None:
    intact = Fixed([0.0, 0.4, 9.0, 0.8], [0.0, 0.2, 9.0, 0.4])
    pruned = Fixed([0.0, 0.4, 5.0, 0.2], [0.0, 0.2, 5.0, 0.7])
    found = measuring.realignment(intact, pruned, intact, (1,))  # boundary 2 is gone
    assert found["norms"]["effect"] == pytest.approx(1 - 0.6 / 1.2)
    assert found["distances"]["effect"] == pytest.approx(1 - 0.9 / 0.6)
    assert found["head"]["effect"] == pytest.approx(1 - 0.9 / 1.2)
    assert measuring.removed(intact, pruned, intact, (1,)) == pytest.approx(1 - 0.75 / 0.9)
    assert measuring.removed_drawn(intact, pruned, intact, (1,)) == pytest.approx([1 - 0.75 / 0.9] * 5)


def test_a_boundary_is_above_the_floor_if_norms_and_distances_are() -> None:
    found = measuring.deviation(Fixed([0.0, 0.4, 0.3, 0.05], [0.0, 0.3, 0.1, 0.9]), Fixed([0] * 4, [0] * 4))
    assert found["boundaries_above"] == 0.25
    assert found["effect"] == pytest.approx((0.75 + 1.3) / 8)
    assert found["noise_floor"] == 0.15


# --- one model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Protocol, dict[str, Any]]:
    subject = polynomial.untrained("tiny", 0)
    protocol = Protocol(subject, Effort(draws=3, alphas=(0.0, 0.5, 1.0, 1.5)))
    return subject, protocol, running.rounded(protocol.record())


def test_deviation_and_realignment_are_those_of_the_profiles(measured: Any) -> None:
    subject, protocol, record = measured
    shift = next(shift for shift in record["shifts"] if shift["drop"])
    probe = protocol._probe(subject.draw(shift["name"], "target-report"))
    drop = tuple(shift["drop"])
    before, after = probe.deviation(over=drop), probe.deviation(drop)
    assert shift["deviation"]["effect"] == pytest.approx(probe.deviation().mean, rel=1e-4)
    kept = surviving_boundaries(drop, subject.model.numbering)
    for name, places in (("norms", kept), ("distances", kept), ("head", [-1])):
        names = ("norms", "distances") if name == "head" else (name,)
        sums = [sum(abs(getattr(d, n)[b]) for n in names for b in places) for d in (before, after)]
        assert shift["realignment"][name]["effect"] == pytest.approx(1 - sums[1] / sums[0], rel=1e-3)


def error_without(subject: Any, layers: Sequence[int], name: str, role: str) -> float:
    """Return the normalised squared error by one forward of all rows."""
    samples, model = subject.draw(name, role), subject.model
    with skipping(model, layers):
        predicted = model.logits(model.task.encode(samples.rows, model.processor))
    residual = (predicted - samples.labels)[:, 3:].astype(np.float64)
    return float(np.square(residual).mean() / samples.labels[:, 3:].astype(np.float64).var())


def test_gains_are_of_fresh_rows_and_equal_whole_forwards(measured: tuple[Any, Protocol, dict]) -> None:
    subject, _, record = measured
    assert any(shift["drop"] for shift in record["shifts"])
    for shift in record["shifts"]:
        name, drop = shift["name"], shift["drop"]
        before, after = (error_without(subject, d, name, "target-report") for d in ((), drop))
        assert shift["error"] == pytest.approx(before, rel=1e-5)
        assert shift["gain"]["effect"] == pytest.approx(1 - after / before, abs=1e-5)
        seen = [error_without(subject, d, name, "target-select") for d in ((), drop)]
        assert shift["select_gain"] == pytest.approx(1 - seen[1] / seen[0], abs=1e-5)
        on_id = [error_without(subject, d, ID, "id-report") for d in ((), drop)]
        assert shift["on_id"]["effect"] == pytest.approx(1 - on_id[1] / on_id[0], abs=1e-5)
        for other, found in shift["transfer"].items():
            (theirs,) = (s["drop"] for s in record["shifts"] if s["name"] == other)
            assert found["drop"] == theirs
            after = error_without(subject, theirs, name, "target-report")
            assert found["effect"] == pytest.approx(1 - after / before, abs=1e-5)


def test_controls_stand_beside_what_was_chosen(measured: tuple[Any, Protocol, dict]) -> None:
    _, _, record = measured
    (shift,) = (shift for shift in record["shifts"] if shift["name"] == "c=5 x=1")
    drop = shift["drop"]
    assert shift["intervention"]["layers"] == drop
    assert len(shift["other_layers"]["layers"]) == len(drop)
    assert not set(shift["other_layers"]["layers"]) & set(drop)
    assert len(shift["over_influence"]["drop"]) == len(drop)
    dropped = shift["intervention"]["target"][0]
    assert dropped["alpha"] == 0
    assert 1 - dropped["metric"] / shift["error"] == pytest.approx(shift["gain"]["effect"], abs=1e-4)
    single = shift["singles"]["gains"][shift["single"]["layer"]]
    assert single == pytest.approx(shift["single"]["gain"]["effect"], abs=1e-4)


def test_what_is_chosen_on_one_task_is_tried_on_another(measured: tuple[Any, Protocol, dict]) -> None:
    subject, _, record = measured
    chosen = {shift["name"]: shift["drop"] for shift in record["shifts"]}
    assert {(found["chosen_on"], found["tried_on"]) for found in record["unrelated"]} == set(
        subject.unrelated
    )
    for found in record["unrelated"]:
        assert found["drop"] == chosen[found["chosen_on"]] != []
        before, after = (
            error_without(subject, layers, found["tried_on"], "target-report")
            for layers in ((), found["drop"])
        )
        assert found["effect"] == pytest.approx(1 - after / before, abs=1e-5)


def test_geometry_is_held_against_least_influence_and_a_dose_above_one(
    measured: tuple[Any, Protocol, dict],
) -> None:
    subject, protocol, record = measured
    (shift,) = (shift for shift in record["shifts"] if shift["name"] == "c=5 x=1")
    own, others = tuple(shift["drop"]), tuple(shift["over_influence"]["drop"])
    probe = protocol._probe(subject.draw(shift["name"], "target-report"))
    shares = [1 - probe.deviation(drop).mean / probe.deviation(over=drop).mean for drop in (own, others)]
    assert shift["realigns_over_influence"]["effect"] == pytest.approx(shares[0] - shares[1], rel=1e-3)
    dose = shift["intervention"]["target"][-1]
    assert dose["alpha"] == 1.5
    (one,) = (dose for dose in shift["intervention"]["target"] if dose["alpha"] == 1)
    means = [found["norm_deviation"] + found["distance_deviation"] for found in (dose, one)]
    assert shift["amplified_deviation"]["effect"] == pytest.approx(means[0] / means[1] - 1, rel=1e-3)


def test_amplifying_takes_a_layer_only_if_it_helps(measured: tuple[Any, Protocol, dict]) -> None:
    _, protocol, _ = measured
    probe = protocol.probes["c=5 x=1"]
    (intact,) = measuring_respond(probe, ())
    for chosen in (protocol._by_amplifying(probe, rounds) for rounds in (0, 1, 3)):
        (found,) = measuring_respond(probe, chosen)
        assert found < intact if chosen else found == intact
    assert protocol._by_amplifying(probe, 0) == ()


def measuring_respond(probe: Any, layers: Sequence[int]) -> list[float]:
    from benchmarks.evidence.protocol import AMPLIFIED, respond

    return [r.scores.values.mean() for r in respond(probe, [dict.fromkeys(layers, AMPLIFIED)], 0)]


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "bounds", "side"),
    [
        (0.05, (0.02, 0.08), "for"),
        (0.005, (0.001, 0.009), "against"),  # above zero, and about zero
        (0.0, (0.0, 0.0), "against"),
        (-0.2, (-0.3, -0.1), "against"),
        (0.05, (-0.01, 0.1), "open"),
        (0.008, (0.001, 0.02), "open"),
    ],
)
def test_a_case_is_judged_by_its_interval(value: float, bounds: tuple[float, float], side: str) -> None:
    assert claims.gains(value, bounds) == side
    reverse = {"for": "against", "against": "for", "open": "open"}
    assert claims.gains_nothing(value, bounds) == reverse[side]


def case(side: str, effect: float = 0.5, model: str = "a", size: str = "s") -> claims.Case:
    return claims.Case(model, size, effect, (effect - 0.1, effect + 0.1), side)


@pytest.mark.parametrize(
    ("sides", "word"),
    [
        (["for", "for", "open"], "supported"),
        (["for", "for", "against"], "supported"),
        (["for", "open", "open"], "undecided"),
        (["for", "open", "against"], "undecided"),
        (["for", "against", "against"], "not supported"),
        ([], "no case"),
    ],
)
def test_a_word_needs_two_thirds_for_or_more_than_a_third_against(sides: list[str], word: str) -> None:
    assert claims.verdict([case(side) for side in sides]).word == word


def test_the_interval_of_the_mean_is_as_wide_as_models_differ() -> None:
    alike = claims.verdict([case("for", 0.5, model) for model in "abcdef"])
    unlike = claims.verdict([case("for", x, m) for x, m in zip((0, 1, 0, 1, 0, 1), "abcdef", strict=True)])
    assert alike.effect == unlike.effect == 0.5
    # Of six alike, drawn with replacement: some twice, with the same error of their own.
    assert alike.interval[1] - alike.interval[0] == pytest.approx(0.2 * np.sqrt((2 - 1 / 6) / 6), rel=0.15)
    assert unlike.interval[1] - unlike.interval[0] > 0.5
    # One model's cases stand and fall together.
    one = claims.verdict([case("for", x, "a") for x in (0, 1, 0, 1)])
    assert one.interval[1] - one.interval[0] == pytest.approx(0.2 / 2, rel=0.15)


def effect(value: float, width: float = 0.0) -> dict[str, Any]:
    return {"effect": value, "interval": [value - width, value + width]}


def record(gains: Mapping[float, float], errors: Mapping[float, float] | None = None) -> dict[str, Any]:
    shifts = [
        {
            "levels": {"s": level},
            "drop": [1],
            "error": (errors or {}).get(level, 0.5),
            "gain": effect(gain),
            "deviation": {**effect(gain), "noise_floor": 0.04},
        }
        for level, gain in gains.items()
    ]
    id_ = {"gain": effect(0.0), "error": 0.1}
    return {
        "name": "m", "size": "1", "seed": 0, "constant_error": 1.0, "origins": {"s": 1}, "id": id_,
        "shifts": shifts,
    }  # fmt: skip


def found_by(name: str, found: Any) -> list[tuple[float, Any, str]]:
    (claim,) = (claim for claim in claims.CLAIMS if claim.name == name)
    return list(claim.cases(found))


def test_a_dose_counts_up_to_where_the_model_is_useless() -> None:
    rising = {2: 0.01, 3: 0.05, 5: 0.1, 10: 0.0}
    assert found_by("Dose", record(rising, {10: 0.95})) == [(1.0, (1.0, 1.0), "for")]
    ((value, _, side),) = found_by("Dose", record(rising, {10: 0.8}))
    assert value < 0.5
    assert side == "for"  # exact effects, and a correlation above zero
    assert found_by("Dose", record({2: 0.1})) == []  # two points are always in order


def test_growth_that_is_within_the_intervals_is_open() -> None:
    noisy = record({2: 0.01, 3: 0.02, 5: 0.03})
    for shift in noisy["shifts"]:
        shift["gain"] = effect(shift["gain"]["effect"], 0.5)
    ((_, _, side),) = found_by("Dose", noisy)
    assert side == "open"


def test_deviation_is_held_against_the_noise_floor() -> None:
    assert [side for *_, side in found_by("Deviation", record({2: 0.01, 3: 0.05}))] == ["against", "for"]


def test_realignment_needs_norms_and_distances() -> None:
    found = record({2: 0.1, 3: 0.1, 5: 0.1})
    for shift, (norms, distances) in zip(found["shifts"], ((0.3, 0.2), (0.3, -0.2), (0, 0)), strict=True):
        parts = {"norms": effect(norms, 0.1), "distances": effect(distances, 0.1), "head": effect(norms, 0.1)}
        shift["realignment"] = parts
    found["shifts"][2]["realignment"] = None  # nothing was dropped
    assert [(value, side) for value, _, side in found_by("Realignment", found)] == [
        (0.2, "for"),
        (-0.2, "against"),
    ]
    assert [side for *_, side in found_by("Realignment at the head", found)] == ["for", "for"]


@pytest.mark.parametrize(
    ("higher", "judgement", "side"),
    [
        (False, "rises", "for"),
        (False, "falls", "against"),
        (False, "not monotone", "against"),
        (True, "falls", "for"),
        (True, "rises", "against"),
        (True, "undecided", "open"),
    ],
)
def test_a_trend_counts_as_the_errors(higher: bool, judgement: str, side: str) -> None:
    found, spearman = record({2: 0.1}), -0.8 if higher else 0.8
    trend = {"judgement": judgement, "spearman": spearman, "interval": sorted([spearman, spearman / 2])}
    found["shifts"][0]["intervention"] = {"higher_is_better": higher, "metric_trend": trend}
    assert found_by("Residual scaling: error", found) == [(0.8, (0.4, 0.8), side)]


def test_doses_are_judged_as_shares_of_the_error() -> None:
    def dose(alpha: float, difference: float) -> dict[str, Any]:
        interval = [difference - 0.01, difference + 0.01]
        return {"alpha": alpha, "difference": difference, "difference_interval": interval}

    found = record({2: 0.1})  # of an error of 0.5 on the target, and of 0.1 on ID
    sweep = {"target": [dose(0, -0.05), dose(1, 0), dose(1.5, 0.1)], "id": [dose(0, 0.05), dose(1.5, -0.03)]}
    found["shifts"][0]["intervention"] = {"higher_is_better": False, **sweep}
    found["shifts"][0]["other_layers"] = {"higher_is_better": False, **sweep}
    ((amplified, bounds, side),) = found_by("Residual scaling: amplified", found)
    assert (amplified, side) == (pytest.approx(0.2), "for")
    assert bounds == pytest.approx((0.18, 0.22))
    ((best, _, side),) = found_by("Residual scaling: ID", found)
    assert (best, side) == (pytest.approx(0.3), "against")
    ((other, _, side),) = found_by("Residual scaling: other layers", found)
    assert (other, side) == (pytest.approx(0.1), "against")


@pytest.mark.parametrize(
    ("doses", "effect", "side"),
    [
        ({0.0: (-0.05, -0.06, -0.04), 1.5: (0.0, 0.0, 0.0)}, 0.0, "for"),
        # A dose that might gain leaves it open, however surely another gains nothing.
        ({0.0: (-0.01, -0.04, 0.04), 1.5: (0.0, 0.0, 0.0)}, -0.1, "open"),
        # One that gains speaks against, however much another might.
        ({0.0: (0.02, 0.01, 0.03), 0.5: (0.0, -0.09, 0.09)}, 0.2, "against"),
    ],
)
def test_that_no_dose_gains_is_judged_over_all_doses(
    doses: dict[float, tuple[float, float, float]], effect: float, side: str
) -> None:
    found = record({2: 0.1})
    found["id"]["error"] = found["shifts"][0]["error"] = 0.1
    parts = [
        {"alpha": alpha, "difference": value, "difference_interval": [low, high]}
        for alpha, (value, low, high) in {**doses, 1.0: (0.0, 0.05, 0.05)}.items()
    ]
    sweep = {"higher_is_better": True, "target": parts, "id": parts}
    found["shifts"][0] |= {"intervention": sweep, "other_layers": sweep}
    for claim in ("Residual scaling: ID", "Residual scaling: other layers"):
        ((judged, _, told),) = found_by(claim, found)
        assert (judged, told) == (pytest.approx(effect), side)


def test_leads_over_random_sets_are_shares_of_the_error_and_of_the_deviation() -> None:
    found = record({2: 0.1})  # of an error of 0.5
    rank = {"selected": 0.2, "median": 0.1, "judgement": "distinguishable"}
    found["shifts"][0]["intervention"] = {"metric_rank": rank, "deviation_rank": rank}
    assert found_by("Specificity: random sets", found) == [(pytest.approx(0.2), None, "for")]
    assert found_by("Specificity: geometry", found) == [(pytest.approx(0.1), None, "for")]


def test_more_deviation_and_more_realignment_are_above_zero_and_unrelated_tasks_gain_nothing() -> None:
    found = record({2: 0.1, 3: 0.1})
    for name in ("realigns_over_influence", "amplified_deviation"):
        found["shifts"][0][name], found["shifts"][1][name] = effect(0.3, 0.1), effect(-0.3, 0.1)
    found["unrelated"] = [effect(0.3, 0.1), effect(-0.3, 0.1), effect(0.0, 0.2)]
    for name in ("Specificity: geometry, influence", "Residual scaling: amplified deviation"):
        assert [side for *_, side in found_by(name, found)] == ["for", "against"]
    sides = [side for *_, side in found_by("Transfer: unrelated tasks", found)]
    assert sides == ["against", "for", "open"]
    assert found_by("Transfer: unrelated tasks", record({2: 0.1})) == []  # of files that are older


def test_scale_needs_three_sizes_of_three_seeds_and_equal_words() -> None:
    def family(gain_of: Mapping[str, float], seeds: int = 3) -> list[dict[str, Any]]:
        found = [
            {**record({2: gain, 3: 2 * gain}), "name": f"{size}{seed}", "size": size, "seed": seed}
            for size, gain in gain_of.items()
            for seed in range(seeds)
        ]
        for model in found:
            for shift in model["shifts"]:
                shift["realignment"] = shift["transfer"] = {}
                shift["on_id"] = effect(0.0)
        return found

    def scale(*args: Any, **more: Any) -> tuple[str, int, int]:
        return claims.scale(family(*args, **more))

    assert scale({"1": 0.1, "2": 0.1}) == ("no case", 0, 0)
    assert scale({"1": 0.1, "2": 0.1, "3": 0.1}, seeds=2) == ("no case", 0, 0)
    word, same, told = scale({"1": 0.1, "2": 0.1, "3": 0.1})
    assert word == "supported"
    assert same == told >= 3
    # A claim that has no case is not counted as supported, either.
    row = results._claims_table({"made up": family({"1": 0.1, "2": 0.1, "3": 0.1})}).splitlines()[-1]
    assert f"{told} of {told} claims, {told} of them supported" in row
    word, same, fewer = scale({"1": 0.1, "2": 0.1, "3": -0.1})
    assert word == "not supported"
    assert same < fewer
    # Nor are those that no size decides counted as the same: the gain on ID, and its growth from there.
    models = family({"1": 0.1, "2": 0.1, "3": 0.1})
    for model in models:
        model["id"]["gain"] = effect(0.0, 0.5)
    assert claims.scale(models) == ("supported", told - 2, told - 2)


def test_an_interval_of_correlations_ends_where_correlations_do() -> None:
    found = claims.Verdict("supported", 0.95, (0.8, 1.1), 3, 0, 3)
    assert "+0.950 (+0.800 to +1.000)" in results._cell(found, claims.RHO)
    assert "+0.950 (+0.800 to +1.100)" in results._cell(found, "share of the error")


# --- commands -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["polynomial", "language"])
def test_every_command_runs_and_its_claims_can_be_told(family: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.evidence.{family}", "--smoke", "--output", "found.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    file = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert {"commit", "environment", "models"} <= file.keys()
    told = {c.name: claims.verdict(claims.cases_of(c, file["models"])).num_cases for c in claims.CLAIMS}
    assert told["OOD gain"] == sum(len(model["shifts"]) for model in file["models"])
    assert told["ID null"] == len(file["models"])
    if family == "polynomial":
        assert min(count for name, count in told.items() if "dose" not in name.lower()) > 0
