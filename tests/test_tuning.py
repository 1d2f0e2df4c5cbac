"""The search for the fastest sessions finds what is planted, on a clock of its own, and believes no luck."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from reports import benchmark as reported_benchmark
from reports import latency, report
from test_benchmarking import CLASSIFICATION, QUICK, TEXT, VOCABULARY, make_text_export, text_samples

from tapioca_export.artifacts import (
    Benchmark,
    Latency,
    OrtSession,
    Ratio,
    SessionSettings,
    Timing,
    read,
    write,
)
from tapioca_export.benchmarking import (
    BenchmarkSettings,
    benchmark,
    default_settings,
    fastest_sessions,
    runtimes,
    stage,
    timing,
    tuning,
)
from tapioca_export.benchmarking.sessions import (
    CPU,
    CUDA,
    CUDA_GRAPH,
    _Captured,
    open_session,
    session_options,
)
from tapioca_export.benchmarking.timing import Workload
from tapioca_export.benchmarking.tuning import changes, tune
from tapioca_export.cli import main
from tapioca_export.errors import BenchmarkError
from tapioca_export.reporting import render_html, render_markdown
from tapioca_export.reporting.sessions import session_text

ROOT = Path(__file__).parent.parent
SETTINGS = BenchmarkSettings(num_threads=4, warmup=1, iterations=20)
WORKS = tuple(Workload(1, n, tuple({"x": np.full((1, n), float(i))} for i in range(3))) for n in (4, 8))
Cost = Callable[[SessionSettings, int], float]


class Clock:
    """Time that passes only while a session runs, a little unevenly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.noise = 0.0, np.random.default_rng(0)
        for module in (timing, tuning):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.noise.normal(1, 0.01)


class Folder:
    """An export whose sessions cost what a function of their settings and the runs so far says.

    It is all that the search asks of a folder; what a session gives is its batch, and `error` more.
    """

    def __init__(self, clock: Clock, cost: Cost) -> None:
        self.clock, self.cost = clock, cost
        self.export = SimpleNamespace(tolerance=1e-4, sha256="abc")
        self.opened: list[SessionSettings] = []
        self.runs: list[SessionSettings] = []
        self.error: Callable[[SessionSettings, np.ndarray], float] = lambda settings, x: 0.0

    def open(self, settings: SessionSettings) -> Any:
        self.opened.append(settings)

        def run(batch: Any) -> dict[str, np.ndarray]:
            self.clock.spend(self.cost(settings, len(self.runs)))
            self.runs.append(settings)
            return {"y": batch["x"] + self.error(settings, batch["x"])}

        return run


def option(settings: SessionSettings, name: str) -> Any:
    return settings.session_options[name]


def searched(
    *folders: Folder, budget: float = 1e6, settings: BenchmarkSettings = SETTINGS
) -> dict[str, OrtSession]:
    one, other = folders
    return tune(one, other, WORKS, "cpu", settings, budget)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def even(settings: SessionSettings, num_runs: int) -> float:
    return 1.0


def test_each_file_gets_the_settings_that_are_faster_for_it_and_no_others(clock: Clock) -> None:
    def of_original(settings: SessionSettings, num_runs: int) -> float:
        one = 0.8 if settings.num_threads == 1 else 1.0
        return one * (0.9 if option(settings, "graph_optimization_level") == "ORT_ENABLE_BASIC" else 1.0)

    def of_pruned(settings: SessionSettings, num_runs: int) -> float:
        return 1.0 if option(settings, "enable_cpu_mem_arena") else 0.5

    found = searched(Folder(clock, of_original), Folder(clock, of_pruned))
    plain = default_settings("cpu", 4)
    fast = {"intra_op_num_threads": 1, "graph_optimization_level": "ORT_ENABLE_BASIC"}
    assert found["original"].session_options == {**plain.session_options, **fast}
    assert found["pruned"].session_options == {**plain.session_options, "enable_cpu_mem_arena": False}
    for name, speedup in (("original", 1 / 0.72), ("pruned", 2.0)):
        made = found[name]
        assert made.tuned
        assert made.config_entries == plain.config_entries
        assert made.speedup is not None
        assert made.speedup.median == pytest.approx(speedup, rel=0.01)
        assert made.speedup.interval[0] > 1
        assert (made.rounds, made.candidates, made.planned) == (20, 9, 9)
        assert made.shapes == ((1, 4, "forward"), (1, 8, "forward"))
        assert made.sha256 == "abc"


def test_where_nothing_matters_the_default_stays(clock: Clock) -> None:
    found = searched(Folder(clock, even), Folder(clock, even))
    for made in found.values():
        assert not made.tuned
        assert made.session_options == default_settings("cpu", 4).session_options
        assert not made.io_binding


def test_what_is_slower_in_either_half_of_the_rounds_is_not_faster() -> None:
    assert tuning._halves_are_faster(np.log([1.3, 1.01, 0.9, 0.9, 1.2, 1.1]))
    assert not tuning._halves_are_faster(np.log([1.3, 1.3, 1.3, 1.3, 0.99, 0.99]))
    assert not tuning._halves_are_faster(np.log([0.99, 0.99, 1.3, 1.3, 1.3, 1.3]))


def test_what_may_as_well_be_slower_is_not_kept() -> None:
    """Of ten rounds six are faster, by much, in either half: the interval has no change in it."""
    logs = np.tile([0.5, -0.1, 0.5, -0.1, 0.5], 2)
    assert tuning._halves_are_faster(logs)
    assert not tuning._is_confirmed(tuning._ratio(logs), logs)
    assert tuning._is_confirmed(tuning._ratio(abs(logs)), abs(logs))


def test_a_duel_is_decided_by_rounds_on_one_side() -> None:
    """Of 8 rounds all, of 16 all but one: two-sided p of 0.008 and 0.0005; 13 of 16 would be 0.02."""
    decided = {
        (won, of): tuning._is_one_sided(np.r_[np.ones(won), -np.ones(of - won)])
        for won, of in ((8, 8), (0, 8), (7, 8), (15, 16), (13, 16), (8, 16))
    }
    assert [key for key, value in decided.items() if value] == [(8, 8), (0, 8), (15, 16)]


def test_luck_while_choosing_is_not_believed(clock: Clock) -> None:
    """It is faster as long as it is looked for, and no more when it is timed again."""
    lucky: list[int] = []

    def cost(settings: SessionSettings, num_runs: int) -> float:
        if option(settings, "enable_mem_pattern"):
            return 1.0
        lucky.append(num_runs)
        return 0.8 if len(lucky) < 60 else 1.0

    found = searched(Folder(clock, cost), Folder(clock, even))["original"]
    assert len(lucky) > 60
    assert not found.tuned
    assert found.speedup is not None  # it was timed again, and the report says so
    assert found.speedup.median == pytest.approx(1.0, abs=0.02)
    assert option(found, "enable_mem_pattern") is True


def test_both_files_are_given_the_same_changes_and_the_same_turns(clock: Clock) -> None:
    one, other = Folder(clock, even), Folder(clock, lambda settings, num_runs: 0.6)
    searched(one, other)
    assert one.opened == other.opened
    assert len(one.opened) == 1 + 9
    assert sorted(map(str, one.runs)) == sorted(map(str, other.runs))


def test_sessions_take_turns_so_that_drift_touches_all(clock: Clock) -> None:
    """A machine that becomes slower all the time, by much, makes no session look slower than another."""

    def drifting(settings: SessionSettings, num_runs: int) -> float:
        return 1.001**num_runs

    found = searched(Folder(clock, drifting), Folder(clock, drifting))
    assert not any(made.tuned for made in found.values())


def test_the_search_ends_with_its_budget(clock: Clock) -> None:
    folders = Folder(clock, even), Folder(clock, even)
    found = searched(*folders, budget=500, settings=replace(SETTINGS, iterations=2))
    # Four sessions, two shapes, eight rounds: 64 seconds a look.
    assert 500 - 2 * 64 < clock.now < 500 + 64
    assert 0 < found["pruned"].candidates <= 9
    assert searched(Folder(clock, even), Folder(clock, even), budget=20)["pruned"].candidates == 0


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_what_computes_something_else_is_not_taken_however_fast(clock: Clock, error: float) -> None:
    def cost(settings: SessionSettings, num_runs: int) -> float:
        return 0.5 if settings.io_binding else 1.0

    wrong, right = Folder(clock, cost), Folder(clock, cost)
    wrong.error = lambda settings, x: error if settings.io_binding else 0.0
    right.error = lambda settings, x: 5e-5 if settings.io_binding else 0.0
    found = searched(wrong, right)
    assert not found["original"].tuned
    assert not found["original"].io_binding
    assert found["pruned"].io_binding
    assert found["pruned"].max_abs_difference == pytest.approx(5e-5)


def test_all_batches_that_are_timed_are_compared(clock: Clock) -> None:
    def cost(settings: SessionSettings, num_runs: int) -> float:
        return 0.5 if settings.io_binding else 1.0

    folder = Folder(clock, cost)  # errs on the last batch alone, which no duel compares
    folder.error = lambda settings, x: 1.0 if settings.io_binding and x[0, 0] == 2 else 0.0
    found = searched(folder, Folder(clock, cost))
    assert not found["original"].tuned
    assert not found["original"].io_binding
    assert found["pruned"].tuned


def test_settings_that_onnx_runtime_refuses_are_passed_over(clock: Clock) -> None:
    class Refusing(Folder):
        def open(self, settings: SessionSettings) -> Any:
            if option(settings, "execution_mode") == "ORT_PARALLEL":
                raise BenchmarkError("no")
            return super().open(settings)

    def cost(settings: SessionSettings, num_runs: int) -> float:
        return 1.0 if option(settings, "enable_mem_pattern") else 0.7

    found = searched(Refusing(clock, cost), Folder(clock, cost))
    assert found["original"].tuned
    assert found["original"].candidates == 9


def test_threads_are_halved_down_to_one_and_a_gpu_has_none() -> None:
    def threads(count: int) -> list[Any]:
        tried = (change.options.get("intra_op_num_threads") for change in changes(CPU, count))
        return [number for number in tried if number]

    assert [threads(count) for count in (1, 2, 3, 8)] == [[], [1], [2, 1], [4, 2, 1]]
    alone = changes(CPU, 1)
    assert not any("execution_mode" in change.options or change.entries for change in alone)
    assert {key for change in changes("CUDAExecutionProvider", 8) for key in change.options} == {
        "graph_optimization_level"
    }


# --- ONNX Runtime ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", changes(CPU, 2), ids=str)
def test_every_change_reaches_onnx_runtime_and_computes_the_same(change: Any, tmp_path: Path) -> None:
    plain = default_settings("cpu", 2)
    settings = change.of(plain)
    assert settings != plain
    options = session_options(settings)
    for name, value in settings.session_options.items():
        held = getattr(options, name)
        assert (held.name if isinstance(value, str) else held) == value
    for key, value in settings.config_entries.items():
        assert options.get_session_config_entry(key) == value
    file = make_text_export(tmp_path / "export") / "model.onnx"
    ids = {"input_ids": np.arange(12).reshape(2, 6)[:, ::2]}  # not in one piece
    one, other = (open_session(file, own)(ids)["logits"] for own in (plain, settings))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_bound_inputs_do_not_go_through_the_usual_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ids = make_text_export(tmp_path / "export") / "model.onnx", {"input_ids": np.array([[1, 2, 3]])}
    plain = default_settings("cpu", 1)
    expected = open_session(file, plain)(ids)["logits"]

    def fail(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    np.testing.assert_array_equal(
        open_session(file, replace(plain, io_binding=True))(ids)["logits"], expected
    )


def test_what_cuda_would_record_runs_on_tensors_that_stay(tmp_path: Path) -> None:
    file, plain = make_text_export(tmp_path / "export") / "model.onnx", default_settings("cpu", 1)
    run, expected = (
        open_session(file, replace(plain, provider_options={CUDA_GRAPH: "1"})),
        open_session(file, plain),
    )
    generator = np.random.default_rng(0)
    for shape in ((1, 3), (2, 5), (1, 3), (5, 2), (2, 5)):
        ids = {"input_ids": generator.integers(0, VOCABULARY, shape)}
        first = run(ids)["logits"]
        kept = first.copy()
        np.testing.assert_array_equal(first, expected(ids)["logits"])
        run({"input_ids": np.zeros(shape, np.int64)})
        np.testing.assert_array_equal(first, kept)  # a result is the caller's, whatever runs next


def test_every_shape_is_recorded_once_under_a_number_of_its_own(tmp_path: Path) -> None:
    file = make_text_export(tmp_path / "export") / "model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    run = _Captured(session, ["logits"], "cpu")
    numbers = []
    given = session.run_with_iobinding
    session.run_with_iobinding = lambda binding, options: (
        numbers.append(options.get_run_config_entry("gpu_graph_id")), given(binding, options)
    )  # fmt: skip
    for shape in ((1, 3), (2, 3), (1, 3), (2, 3)):
        run({"input_ids": np.ones(shape, np.int64)})
    assert numbers == ["-1", "1", "-1", "2", "1", "2"]


def test_cuda_graphs_are_tried_on_cuda_alone() -> None:
    tried = {provider: changes(provider, 2) for provider in ("CPUExecutionProvider", CUDA, "OtherProvider")}
    graphs = {
        name: [change for change in found if change.provider_options.get(CUDA_GRAPH) == "1"]
        for name, found in tried.items()
    }
    assert {name: len(found) for name, found in graphs.items()} == {
        "CPUExecutionProvider": 0, CUDA: 1, "OtherProvider": 0,
    }  # fmt: skip
    made = graphs[CUDA][0].of(default_settings("cpu", 1))
    assert made.io_binding
    assert made.provider_options == {CUDA_GRAPH: "1"}
    assert session_text(made) == "1 thread, I/O binding, CUDA graphs"


def test_a_batch_that_is_bound_and_refused_is_one_clear_error(tmp_path: Path) -> None:
    file = make_text_export(tmp_path / "export") / "model.onnx"
    session = open_session(file, replace(default_settings("cpu", 1), io_binding=True))
    with pytest.raises(BenchmarkError, match=r"cannot run .* on input_ids \(1, 1\)"):
        session({"input_ids": np.array([[10**6]])})


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return make_text_export(folder / "original"), make_text_export(folder / "pruned", drop=(1, 2))


def test_a_tuned_benchmark_says_with_what_it_timed(exports: tuple[Path, Path], tmp_path: Path) -> None:
    samples = {"target": text_samples(labelled=False)}
    settings = replace(QUICK, batch_sizes=(1,), num_threads=2, tune_seconds=1.0)
    found = benchmark(*exports, CLASSIFICATION, samples, TEXT, settings)
    (original,), (pruned,) = found.sessions["original"], found.sessions["pruned"]
    for made in (original, pruned):
        assert made.providers == (CPU,)
        assert made.planned == len(changes(CPU, 2))
        assert made.max_abs_difference <= made.tolerance
        assert made.onnxruntime == onnxruntime.__version__
    for row in found.latency:
        assert row.threads == pruned.num_threads
        assert (row.original_threads or row.threads) == original.num_threads
    write(tmp_path / "benchmark.json", found)
    assert read(tmp_path / "benchmark.json", Benchmark) == found


def test_each_file_is_timed_and_its_memory_measured_with_its_own_settings(
    exports: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = {"original": tuned_session(), "pruned": replace(tuned_session(), io_binding=True)}
    two = {**sessions["original"].session_options, "intra_op_num_threads": 2}
    sessions["original"] = replace(sessions["original"], session_options=two)
    monkeypatch.setattr(stage, "tune", lambda *arguments: sessions)
    measured = []

    def measure(folder: Path, settings: SessionSettings, inputs: Any) -> tuple[int, float]:
        measured.append((folder, settings))
        return 1, 1.0

    monkeypatch.setattr(stage, "measure_memory_and_load", measure)
    opened = []
    real = runtimes.open_session

    def note(file: Path, settings: SessionSettings) -> Any:
        opened.append((file.parent, settings))
        return real(file, settings)

    monkeypatch.setattr(runtimes, "open_session", note)
    settings = replace(QUICK, batch_sizes=(1,), tune_seconds=1.0)
    found = benchmark(*exports, CLASSIFICATION, {"target": text_samples(labelled=False)}, TEXT, settings)
    both = [sessions["original"], sessions["pruned"]]
    assert measured == list(zip(exports, both, strict=True))
    assert opened == [(exports[0], both[0])] * 2 + [(exports[1], both[1])]
    assert {(row.threads, row.original_threads) for row in found.latency} == {(1, 2)}


def test_the_provider_that_took_a_file_the_least_time_comes_first() -> None:
    def rows(provider: str, before: float, after: float) -> list[Latency]:
        times = {"original": before, "pruned": after}
        timed = {name: Timing(ms, None, 5, 1.0) for name, ms in times.items()}
        return [latency(provider=provider, **timed), latency(8, provider=provider, **timed)]

    tuned = {name: dict.fromkeys(("original", "pruned"), tuned_session(providers=(name,))) for name in "AB"}
    found = stage._fastest_first(tuned, [*rows("A", 1.0, 3.0), *rows("B", 2.0, 2.0)])
    assert {name: [session.provider for session in own] for name, own in found.items()} == {
        "original": ["A", "B"],
        "pruned": ["B", "A"],
    }
    assert stage._fastest_first({}, []) == {}


def test_without_tuning_nothing_is_said_of_it(exports: tuple[Path, Path], tmp_path: Path) -> None:
    found = benchmark(*exports, CLASSIFICATION, {"target": text_samples(labelled=False)}, TEXT, QUICK)
    write(tmp_path / "benchmark.json", found)
    assert not {"sessions", "original_threads"} & set((tmp_path / "benchmark.json").read_text().split('"'))


# --- files, the command line, the report ----------------------------------------------------


def tuned_session(**changed: Any) -> OrtSession:
    plain = default_settings("cpu", 1)
    options = {
        **plain.session_options,
        "enable_mem_pattern": False,
        "graph_optimization_level": "ORT_ENABLE_BASIC",
    }
    entries = {**plain.config_entries, tuning.SPINNING: "0"}
    made = OrtSession(plain.providers, options, entries, tuned=True, candidates=8, planned=9)
    return replace(made, **changed)


def test_the_documented_lines_open_a_session_with_the_settings(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/tuning.md").read_text(encoding="utf-8"), re.S)
    assert code
    folder = make_text_export(tmp_path / "export")
    saved = reported_benchmark(sessions={"original": (tuned_session(),), "pruned": (tuned_session(),)})
    ((_, session),) = fastest_sessions(saved, folder, folder).items()
    write(folder / "ort_session.json", session)
    known: dict[str, Any] = {"folder": folder}
    exec(code.group(1), known)
    options = known["session"].get_session_options()
    assert options.enable_mem_pattern is False
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry(tuning.SPINNING) == "0"
    assert known["session"].get_providers() == [CPU]


def test_the_fastest_provider_is_written_into_each_folder(tmp_path: Path) -> None:
    cpu, other = tuned_session(), tuned_session(providers=("OtherExecutionProvider",))
    folders = [tmp_path / name for name in ("original", "pruned")]
    found = reported_benchmark(sessions={"original": (cpu, other), "pruned": (other, cpu)})
    assert fastest_sessions(found, *folders) == dict(zip(folders, (cpu, other), strict=True))


def invoke_benchmark(exports: tuple[Path, Path], tmp_path: Path, *more: object) -> Any:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b c"}\n')
    arguments = ["benchmark", *exports, "--target", rows, "-o", tmp_path / "out", *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    exports: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = os.access

    def denied(path: Any, mode: int, **options: Any) -> bool:
        return not (Path(path) == exports[1] and mode & os.W_OK) and may(path, mode, **options)

    monkeypatch.setattr(os, "access", denied)
    result = invoke_benchmark(exports, tmp_path, "--tune")
    assert result.exit_code == 1
    assert f"{exports[1]} cannot be written" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_budget_of_nothing_is_refused(exports: tuple[Path, Path], tmp_path: Path) -> None:
    result = invoke_benchmark(exports, tmp_path, "--tune", "--tune-seconds", 0)
    assert result.exit_code == 1
    assert "--tune-seconds 0.0 must be a number above 0" in result.stderr


def test_the_report_says_what_was_found_and_what_was_not() -> None:
    faster = tuned_session(speedup=Ratio(1.21, (1.18, 1.25)), io_binding=True)
    lucky = replace(tuned_session(tuned=False), **tuning._settings_of(default_settings("cpu", 2)))
    lucky = replace(lucky, speedup=Ratio(1.01, (0.97, 1.04)))
    made = report(benchmark=reported_benchmark(sessions={"original": (lucky,), "pruned": (faster,)}))
    (sentence,) = (finding for finding in made.findings if finding.startswith("Sessions were tuned"))
    assert "on CPU, 8 of 9 changes" in sentence
    assert (
        "original: 2 threads (the default: what looked faster was not when timed again (1.01 times"
        in sentence
    )
    assert (
        "pruned: 1 thread, ORT_ENABLE_BASIC, no memory pattern, no spinning, I/O binding (1.21 times"
        in sentence
    )
    for page in (render_markdown(made), render_html(made)):
        assert "no memory pattern" in page
    assert "Settings of ONNX Runtime" not in render_markdown(report())
