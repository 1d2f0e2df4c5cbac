"""The product, broken on purpose, refuses: each kind of fault once; all are in benchmarks/reliability."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.reliability import mutants  # noqa: E402
from benchmarks.reliability.mutations import base, runs  # noqa: E402

pytestmark = pytest.mark.xdist_group("end-to-end")  # whose run folder is used here
QUICK = mutants.quick(mutants.all_mutants())


@pytest.fixture(scope="module", autouse=True)
def one_run(finished: Path) -> Iterator[None]:
    """Take the run folder that other tests made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "finished", lambda: finished)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("scenario", base.controls(QUICK), ids=lambda scenario: scenario.name)
def test_a_command_with_nothing_broken_succeeds(scenario: base.Scenario) -> None:
    assert base.attempt(scenario) == base.Outcome()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.full_name)
def test_a_fault_is_found_by_the_product(mutant: base.Mutant) -> None:
    found = base.attempt(mutant.scenario, mutant.spoil)
    assert found.is_caught, f"{mutant.broken}: {found}"


def test_every_kind_of_fault_is_tried_here_and_counted_in_the_json() -> None:
    every = mutants.all_mutants()
    assert len({mutant.full_name for mutant in every}) == len(every) >= 60
    measured = json.loads(mutants.OUTPUT.read_text(encoding="utf-8"))
    assert {f"{case['scenario']}: {case['name']}" for case in measured["cases"]} == {
        m.full_name for m in every
    }
    assert measured["survivors"] == []
    assert measured["caught"] == measured["mutants"] == len(every) == sum(measured["by"].values())
    assert all(measured["controls"].values())
    assert all(case["caught"] and case["by"] and case["message"] for case in measured["cases"])


def test_a_crash_is_no_proof_and_what_goes_through_is_a_survivor() -> None:
    def run(job: base.Job) -> None:
        if "error" in job.given:
            raise job["error"]

    scenario = base.Scenario("nothing", "nothing", lambda job: {}, run)
    for error, is_caught in ((None, False), (KeyError("x"), False), (base.NotPassedError("x"), True)):
        given = {} if error is None else {"error": error}
        assert (
            base.attempt(scenario, lambda _, job, given=given: job.given.update(given)).is_caught is is_caught
        )
