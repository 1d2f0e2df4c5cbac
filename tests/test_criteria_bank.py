"""Criteria without labels, and which of them is best: formulas by hand, judgements of banks made up here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.evidence import criteria, criteria_page, judging, label_free, language, polynomial, results  # noqa: E402
from benchmarks.evidence.label_free import Seen  # noqa: E402
from tapioca_export.profiling import Probe  # noqa: E402
from tapioca_export.selection import select_layers  # noqa: E402
from tapioca_export.selection.criteria import CRITERIA  # noqa: E402
from tapioca_export.selection.rounds import Round, SelectionSettings  # noqa: E402

NUM_LAYERS, NUM_STATES, WIDTH = 3, 40, 5
PARTS = label_free.SHIPPED.split(" + ")
SUBJECTS = {
    "polynomial": lambda: polynomial.untrained("tiny", 0),
    "language": lambda: language.untrained("tiny", 0, "likelihood"),
}


def made_up(seed: int = 0, *, are_logits: bool = True) -> Seen:
    """Return random numbers that go together: heads and outputs of a network that was never there."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(NUM_LAYERS + 1, NUM_STATES, WIDTH)).cumsum(axis=0)
    shape = (NUM_LAYERS, NUM_LAYERS + 1)
    return Seen(
        states=states,
        influences=generator.uniform(0.1, 1, NUM_LAYERS),
        turns=generator.uniform(0.1, 1, NUM_LAYERS),
        norms=generator.uniform(1, 2, NUM_LAYERS + 1),
        distances=generator.uniform(1, 2, NUM_LAYERS + 1),
        dropped_norms=generator.uniform(1, 2, shape),
        dropped_distances=generator.uniform(1, 2, shape),
        heads=states[-1] + generator.normal(size=(NUM_LAYERS, NUM_STATES, WIDTH)),
        outputs=generator.normal(size=(NUM_STATES, 4)),
        dropped_outputs=generator.normal(size=(NUM_LAYERS, NUM_STATES, 4)),
        are_logits=are_logits,
    )


# --- formulas -------------------------------------------------------------------------------


def test_a_layer_that_does_nothing_goes_first_by_what_layers_do() -> None:
    found = made_up()
    states, heads = found.states.copy(), found.heads.copy()
    states[2], heads[1] = states[1], states[3]
    idle = replace(
        found,
        states=states,
        heads=heads,
        influences=np.asarray([0.3, 0.0, 0.2]),
        turns=np.asarray([0.3, 0.0, 0.2]),
        dropped_outputs=np.stack([found.dropped_outputs[0], found.outputs, found.dropped_outputs[2]]),
    )
    numbers = label_free.scores(idle, idle)
    does = [
        n for n in numbers if n.startswith(("influence on", "update on", "head moves on", "head turns on"))
    ]
    does += [n for n in numbers if n.startswith(("output changes", "agreement"))]
    assert len(does) == 13
    for name in does:
        assert label_free.order(numbers[name])[0] == 1, name
    assert numbers["agreement on the target"][1] == 1.0
    assert numbers["output changes on the target"][1] == 0.0
    assert numbers["entropy falls"][1] == 0.0


def test_what_the_target_does_as_id_does_is_no_distortion() -> None:
    own = made_up()
    numbers = label_free.scores(own, own)
    nothing = ("influence grows", "update grows", "head moves more", "norm is amplified",
               "distance is amplified", "deviation grows", "Mahalanobis distance of the update",
               "Mahalanobis distance grows", "update turns")  # fmt: skip
    for name in nothing:
        np.testing.assert_allclose(numbers[name], 0, atol=1e-9, err_msg=name)
    assert (numbers["update leaves the subspace"] <= 1 - label_free.HELD + 1e-9).all()


def test_numbers_that_can_be_worked_out_by_hand() -> None:
    own = made_up()
    states = own.states.copy()
    states[1:] += 4.0 * (states[1] - states[0])  # the first update is five times as large, others are equal
    there = replace(
        own,
        states=states,
        influences=own.influences * (2, 1, 1),
        norms=own.norms * (1, 3, 3, 3),
    )
    numbers = label_free.scores(own, there)
    np.testing.assert_allclose(numbers["influence grows"], [np.log(2), 0, 0], atol=1e-9)
    np.testing.assert_allclose(numbers["norm is amplified"], [np.log(3), 0, 0], atol=1e-9)
    np.testing.assert_allclose(numbers["update grows"][0], np.log(5))
    np.testing.assert_allclose(numbers["update turns"], 0, atol=1e-9)
    deviations = np.log([1, 3, 3, 3]) / 2
    np.testing.assert_allclose(numbers["deviation grows"], np.diff(deviations), atol=1e-6)
    last = np.linalg.norm(own.heads - states[-1], axis=-1) / np.linalg.norm(states[-1], axis=-1)
    np.testing.assert_allclose(numbers["head moves on the target"], -last.mean(axis=1))


def test_mahalanobis_distance_counts_in_the_spread_of_id() -> None:
    generator = np.random.default_rng(0)
    own = generator.normal(size=(4000, 2)) * (1.0, 10.0)
    narrow, wide = own + np.asarray([3.0, 0.0]), own + np.asarray([0.0, 3.0])
    assert label_free._mahalanobis(own, own) == pytest.approx(1)
    assert label_free._mahalanobis(own, narrow) > label_free._mahalanobis(own, wide) > 1


def test_an_update_across_those_of_id_is_outside_their_subspace() -> None:
    own, across = np.zeros((10, 3)), np.zeros((10, 3))
    own[:, 0], across[:, 1] = np.arange(1, 11), 2.0
    assert label_free._outside(own, own) == pytest.approx(0, abs=1e-12)
    assert label_free._outside(own, across) == pytest.approx(1)
    assert label_free._outside(own, own + across) == pytest.approx(
        np.square(across).sum() / np.square(own + across).sum()
    )


def test_entropy_falls_where_a_head_gets_surer() -> None:
    sure = np.zeros((2, 4))
    sure[:, 0] = 50.0
    found = replace(made_up(), outputs=np.zeros((2, 4)), dropped_outputs=np.stack([sure, np.zeros((2, 4))]))
    np.testing.assert_allclose(label_free._entropy_falls(found, found), [np.log(4), 0], atol=1e-9)


def test_a_regression_is_not_asked_for_what_needs_logits() -> None:
    numbers = label_free.scores(made_up(are_logits=False), made_up(1, are_logits=False))
    assert set(label_free.SCORES) - set(numbers) == set(label_free.OF_LOGITS)


def test_a_pair_is_the_mean_of_two_ranks() -> None:
    pairs = label_free.with_pairs({"a": np.asarray([5.0, 1.0, 1.0]), "b": np.asarray([0.0, 9.0, 2.0])})
    assert list(pairs) == ["a", "b", "a + b"]
    assert pairs["a + b"].tolist() == [2.0, 2.25, 1.75]
    assert label_free.order(np.asarray([1.0, 2.0, 2.0])) == [1, 2, 0]


# --- what is measured -----------------------------------------------------------------------


@pytest.mark.parametrize("family", SUBJECTS)
def test_what_is_seen_is_what_the_library_measures(family: str) -> None:
    subject = SUBJECTS[family]()
    id_rows, rows = subject.draw("id", "id-select"), subject.draw(subject.shifts[0].name, "target-select")
    probe = Probe(subject.model, {"id": id_rows, "target": rows})
    own = criteria.look(Probe(subject.model, {"id": id_rows, "target": id_rows}))
    seen = criteria.look(probe)
    profile = probe.profile("target")
    np.testing.assert_allclose(seen.influences, profile.influences, atol=1e-5)
    assert len(rows) == label_free.FEW  # all rows are few
    np.testing.assert_allclose(
        seen.turns, -label_free.SCORES["head turns on the target"](own, seen), atol=1e-6
    )
    found = CRITERIA["realignment"](Round(probe, (), tuple(range(4)), SelectionSettings()))
    expected = [candidate.score for candidate in found.candidates]
    np.testing.assert_allclose(label_free.scores(own, seen)["realignment"], expected, atol=1e-5)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_tapioca_goes_as_the_bank_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapioca_export.selection.criteria._no_shift", lambda round_: None)
    subject = SUBJECTS[kind]()
    id_rows, target = (
        subject.draw(*name) for name in (("id", "id-select"), (subject.shifts[-1].name, "target-select"))
    )
    model = subject.model
    numbers = label_free.scores(
        *(criteria.look(Probe(model, {"id": rows, "target": rows})) for rows in (id_rows, target))
    )
    one, other = label_free.SHIPPED.split(" + ")
    expected = label_free.with_pairs({name: numbers[name] for name in (one, other)})[label_free.SHIPPED]
    probe = Probe(model, {"id": id_rows, "target": target})
    changes = probe.output_changes(range(model.num_layers), 256)
    assert list(changes.values()) == pytest.approx((-numbers[other]).tolist(), rel=1e-4)
    settings = SelectionSettings(criterion="tapioca", max_drop_layers=3, epsilon=None, pick="final")
    found = select_layers(probe, settings, model="m", task=model.task, num_samples=probe.num_rows)
    assert [step.layer for step in found.steps] == label_free.order(expected)[:3]


def test_labels_have_no_say_in_what_is_seen() -> None:
    subject = SUBJECTS["polynomial"]()
    rows = subject.draw("degree 3", "target-select")
    turned = replace(rows, rows=tuple(replace(row, label=row.label[::-1].copy()) for row in rows.rows))
    one, other = (
        criteria.look(Probe(subject.model, {"id": part, "target": part})) for part in (rows, turned)
    )
    for name in ("states", "heads", "dropped_outputs", "dropped_distances"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_case_tells_what_fresh_rows_say_of_every_choice() -> None:
    subject = SUBJECTS["polynomial"]()
    made = criteria.record(subject)
    case = made["cases"][0]
    report = subject.draw(case["name"], "target-report")
    probe = Probe(subject.model, {"id": report, "target": report})
    intact, without = probe.metric().metric, [probe.metric([layer]).metric for layer in range(4)]
    np.testing.assert_allclose(case["gains"], 1 - np.asarray(without) / intact, atol=1e-6)
    dropped = {found["drop"] for found in case["sets"]}
    assert tuple(sorted(case["tale"])) in dropped
    for numbers in label_free.with_pairs({n: np.asarray(s) for n, s in case["scores"].items()}).values():
        assert tuple(sorted(label_free.order(numbers)[: case["num_dropped"]])) in dropped


# --- judging --------------------------------------------------------------------------------


def bank(task: str, seeds: int = 4, **kinds: float) -> list[dict[str, Any]]:
    """Return models of one size whose criteria are what layers gain, with as much noise as is given."""
    generator = np.random.default_rng(0)
    models = []
    for seed in range(seeds):
        cases = []
        for _ in range(5):
            gains = generator.normal(size=6)
            scores = {n: (gains + noise * generator.normal(size=6)).tolist() for n, noise in kinds.items()}
            orders = [label_free.order(np.asarray(s)) for s in label_free.with_pairs(
                {n: np.asarray(s) for n, s in scores.items()}).values()]  # fmt: skip
            tale = label_free.order(gains)[:2]
            sets = {tuple(sorted(chosen[:2])) for chosen in [tale, *orders]}
            found = [{"drop": layers, "gain": float(gains[list(layers)].sum())} for layers in sorted(sets)]
            cases.append({"name": "shift", "gains": gains.tolist(), "sets": found, "num_dropped": 2,
                          "tale": tale, "scores": scores})  # fmt: skip
        models.append({"task": task, "num_layers": 6, "seed": seed, "cases": cases})
    return models


def test_a_criterion_that_knows_has_no_regret_and_is_chosen() -> None:
    found = judging.Worths({"a": bank("a", knows=0.0, guesses=3.0), "b": bank("b", knows=0.0, guesses=3.0)})
    worth = found.of("knows")
    assert (worth.correlation, worth.regret, worth.regret_of_several) == (1.0, 0.0, 0.0)
    assert found.best() == "knows"
    guess = found.of("guesses")
    assert guess.correlation < 0.7
    assert guess.regret > 0
    assert guess.regret_of_several > 0


def test_worth_is_a_mean_over_cases_models_and_families_in_this_order() -> None:
    one, other = bank("a", 1, guess=1.0), bank("b", 3, guess=1.0)
    other[0]["cases"] = other[0]["cases"][:1]
    found = judging.Worths({"a": one, "b": other}).of("guess")

    def mean(model: dict[str, Any]) -> float:
        return float(np.mean([spearmanr(c["scores"]["guess"], c["gains"]).statistic for c in model["cases"]]))

    assert found.correlation == pytest.approx((mean(one[0]) + np.mean([mean(m) for m in other])) / 2)


def test_gains_are_cut_off() -> None:
    models = bank("a", 1, guess=1.0)
    case = models[0]["cases"][0]
    models[0]["cases"] = [case]
    first = label_free.order(np.asarray(case["scores"]["guess"]))[0]
    case["gains"][first] = -50.0
    best = case["gains"][case["tale"][0]]
    assert judging.Worths({"a": models}).of("guess").regret == pytest.approx(max(best, -1) + 1)


def test_models_that_choose_do_not_tell() -> None:
    chooses, tells = judging.halves({"a": bank("a", guess=1.0)})
    assert [model["seed"] for model in chooses["a"]] == [0, 2]
    assert [model["seed"] for model in tells["a"]] == [1, 3]


def test_what_one_family_has_not_is_no_candidate() -> None:
    rich, poor = bank("a", both=1.0, one=0.0), bank("b", both=1.0)
    assert judging.names({"a": rich, "b": poor}) == judging.names({"b": poor, "a": rich}) == ["both"]


def test_no_criterion_at_all_is_a_reference() -> None:
    models = bank("a", 1, guess=1.0)
    found = judging.references({"a": models})
    best = [max(max(case["gains"]), -1) for case in models[0]["cases"]]
    assert found[judging.NOTHING].regret == pytest.approx(np.mean(best))
    means = [np.maximum(case["gains"], -1).mean() for case in models[0]["cases"]]
    assert found[judging.ANY].regret == pytest.approx(np.mean(best) - np.mean(means))


def test_an_interval_holds_its_number_and_a_difference_is_of_the_same_models() -> None:
    found = judging.Worths({"a": bank("a", 6, good=0.5, bad=4.0)})
    low, high = found.interval("good")[0]
    assert low <= found.of("good").correlation <= high
    assert found.interval("good", "good") == [(0.0, 0.0)] * 3
    assert found.interval("good", "bad")[0][0] > 0


def test_the_page_tells_the_best_and_what_it_is_worth_elsewhere() -> None:
    kinds = {"own answers on the target": 0.0, **dict.fromkeys(PARTS, 0.4), judging.INFLUENCE: 4.0}
    text = criteria_page.text({"commit": "0" * 40, "models": bank("a", 6, **kinds) + bank("b", 6, **kinds)})
    told = f"**own answers on the target** is chosen; `--criterion tapioca` goes by **{label_free.SHIPPED}**."
    assert f"{told} On the other half it beats *{judging.INFLUENCE}*: correlation" in text
    worths = judging.Worths({"a": bank("a", 6, **kinds)})
    assert "it is beaten by *own" in criteria_page._instead_of(worths, judging.INFLUENCE, next(iter(kinds)))
    row = "| **own answers on the target** | 1 | +1.000 | +0.000 | +0.000 | +1.000 | +0.000 | +0.000 |"
    assert row in text
    words = " ".join(text.split())
    assert "60 cases: 12 networks under shifts, 0 of them judged in two ways" in words
    assert "6 models choose" in words
    for half in ("chooses", "tells"):
        assert f"| {half} | 6 | 30 | 100% | 100% | " in text
    assert text.count(" | 83% |\n") == 2  # by chance
    chosen = criteria_page._shipped(label_free.SHIPPED)
    assert chosen == ", and what `--criterion tapioca` goes by"
    assert "Without" not in text


def test_the_page_tells_what_is_left_without_a_kind_of_one_network() -> None:
    names = (*PARTS, judging.INFLUENCE)
    kinds = dict(
        zip(names, (0.4, 0.4, 0.4), strict=True)
    )  # where there are several, one is as good as another
    lonely = dict(zip(names, (0.0, 0.0, 4.0), strict=True))
    worths = judging.Worths({"a": bank("a", 6, **kinds), "b": bank("b", 1, **lonely)}, names)
    found = criteria_page._without_lonely(worths, names[0])
    alone = criteria_page._instead_of(judging.Worths({"a": worths.bank["a"]}, names), names[0], names[2])
    assert found == f" Without b, of which that half has a single network: o{alone[1:]}"
    assert criteria_page._instead_of(worths, names[0], names[2]) != alone


def test_one_criterion_beats_another_by_a_sure_correlation_and_no_more_regret() -> None:
    sure, unsure = [(0.1, 0.3)] * 3, [(-0.1, 0.3)] * 3
    assert judging.beats(np.asarray([0.2, -0.1, 0.0]), sure)
    assert not judging.beats(np.asarray([0.2, -0.1, 0.0]), unsure)
    assert not judging.beats(np.asarray([0.2, 0.1, 0.0]), sure)
    assert not judging.beats(np.asarray([0.2, 0.0, 0.1]), sure)


def test_the_page_can_leave_out_the_kind_that_lacks_what_the_others_have() -> None:
    kinds = {**dict.fromkeys(PARTS, 0.4), judging.INFLUENCE: 4.0}
    sure = dict.fromkeys(label_free.OF_LOGITS, 0.0)  # better than all others, where there are logits
    models = bank("polynomial-regression", 6, **kinds) + bank("text-classification", 6, **kinds, **sure)
    text = criteria_page.text({"commit": "0" * 40, "models": models})
    assert f"| polynomial-regression | 3 | {label_free.PROPOSES}" in text
    assert f"| {label_free.OF_LOGITS[0]} | +1.000 | +0.000 | +0.000 |" in text


def test_models_that_are_one_network_are_drawn_together() -> None:
    one = bank("a", 6, good=0.5)
    alone = judging.Worths({"a": one}).replicates("good")
    twice = judging.Worths({"a": one, "b": one}).replicates("good")
    np.testing.assert_allclose(alone, twice)
    others = [{**model, "seed": model["seed"] + 10} for model in one]
    apart = judging.Worths({"a": one, "b": others}).replicates("good")
    assert apart[:, 0].std() < 0.9 * alone[:, 0].std()


def test_recall_counts_what_tale_chooses_first() -> None:
    models = bank("a", 2, knows=0.0, guess=2.0)
    assert judging.recall({"a": models}, "knows", 1) == 1.0
    cases = [case for model in models for case in model["cases"]]
    orders = [label_free.order(np.asarray(case["scores"]["guess"])) for case in cases]
    hits = [case["tale"][0] in found[:2] for case, found in zip(cases, orders, strict=True)]
    assert judging.recall({"a": models}, "guess", 2) == np.mean(hits)
    shallow = [{**model, "num_layers": 2} for model in bank("a", 1, guess=9.0)]
    assert judging.recall({"a": models, "b": shallow}, "guess", 2) == np.mean(hits)


def test_what_tapioca_goes_by_is_what_the_bank_chooses() -> None:
    """On the bank that is committed."""
    models = judging.families(json.loads(results.BANK.read_text(encoding="utf-8")))
    chooses = judging.Worths(judging.halves(models)[0])
    assert chooses.best() == label_free.SHIPPED


def test_the_numbers_of_the_page_are_those_of_the_bank() -> None:
    """Worked out here from the JSON, for one criterion and one family, and not by the code that judges."""
    file = json.loads(results.BANK.read_text(encoding="utf-8"))
    correlations = []
    _, tells = judging.halves(judging.families(file))
    for model in tells["multiple-choice"]:
        each = [
            spearmanr(sum(rankdata(case["scores"][part]) for part in PARTS), case["gains"]).statistic
            for case in model["cases"]
        ]
        correlations.append(np.mean(each))
    mean = np.mean(correlations)
    told = f"| multiple-choice | {len(correlations)} | {label_free.SHIPPED} | {mean:+.3f} |"
    assert told in criteria_page.text(file)


@pytest.mark.slow
def test_the_command_runs_and_its_bank_can_be_judged(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.evidence.criteria", "--smoke", "--output", "found.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    file = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    found = judging.Worths(judging.families(file))
    assert set(found.bank) == {"polynomial-regression", "multiple-choice"}
    singles = set(label_free.SCORES) - set(label_free.OF_LOGITS)
    assert len(found.names) == len(singles) * (len(singles) + 1) // 2
    assert np.isfinite(found.mean()).all()
