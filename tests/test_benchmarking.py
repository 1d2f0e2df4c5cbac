"""Laws of the benchmark, on ONNX graphs of a few nodes; PyTorch takes no part."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from tapioca_export.artifacts import Benchmark, Export, OrtSession, read, sha256, write
from tapioca_export.benchmarking import (
    RUNTIMES,
    BenchmarkSettings,
    benchmark,
    compare,
    default_settings,
    make_workloads,
    measure_memory_and_load,
    resolve_provider,
    score_exported,
    stage,
)
from tapioca_export.benchmarking.statistics import bootstrap_interval
from tapioca_export.benchmarking.timing import Workload, noise_floor, summarize, time_rounds
from tapioca_export.errors import BenchmarkError, ConfigError, LoadError
from tapioca_export.generation import Session
from tapioca_export.samples import Row, Samples
from tapioca_export.tasks import TASKS, Inputs, Processor, Scores

CLASSIFICATION = TASKS["text-classification"]
REGRESSION = TASKS["polynomial-regression"]
VOCABULARY = 50
QUICK = BenchmarkSettings(batch_sizes=(1, 4), num_threads=1, warmup=1, iterations=4)


class WordTokenizer:
    """One token a word, padded on the right: all that the task asks of a tokenizer."""

    def __call__(
        self, texts: Sequence[str], pairs: Any, *, max_length: int, **options: Any
    ) -> dict[str, np.ndarray]:
        rows = [[1 + len(word) % (VOCABULARY - 1) for word in t.split()][:max_length] for t in texts]
        longest = max(map(len, rows))
        ids = [row + [0] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return {"input_ids": np.array(ids), "attention_mask": np.array(mask)}


TEXT = Processor("", "mean", 32, WordTokenizer(), {0: "no", 1: "yes"})
PROMPTS = Processor("", "x-positions", 40)


def text_samples(num_rows: int = 20, *, labelled: bool = True) -> Samples:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(num_rows):
        lengths = generator.integers(1, 12, size=2 + i % 10)
        text = " ".join("w" * length for length in lengths)
        rows.append(Row({"text": text}, i % 2 if labelled else None, text, f"row {i}"))
    return Samples("target-report", tuple(rows), "texts", "")


def prompt_samples(num_rows: int = 12, num_points: int = 5) -> Samples:
    values = np.random.default_rng(0).normal(size=(num_rows, 2 * num_points)).astype(np.float32)
    rows = (Row({"values": v}, v[1::2], str(i), f"row {i}") for i, v in enumerate(values))
    return Samples("target-report", tuple(rows), "prompts", "")


def save_graph(folder: Path, nodes: list[Any], inputs: list[Any], weights: dict[str, np.ndarray]) -> None:
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


def save_export(folder: Path, num_layers: int, drop: tuple[int, ...], task: str) -> None:
    digest = sha256(folder / "model.onnx")
    export = Export(
        model="tiny", task=task, format="onnx", files={"model.onnx": digest}, exporter="test", opset=18,
        inputs=("input_ids", "attention_mask"), outputs=("logits",), max_abs_difference=0.0,
        tolerance=1e-4, label_agreement=1.0, rows_checked=1, shapes_checked=((1, 2),),
        padding_checked=("right",), sha256=digest, num_layers=num_layers, drop=drop,
        size_bytes=(folder / "model.onnx").stat().st_size,
    )  # fmt: skip
    write(folder / "export.json", export)


def make_text_export(folder: Path, drop: tuple[int, ...] = (), width: int = 16) -> Path:
    """A classifier of four layers, each one product: words -> mean -> two logits."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "table": generator.normal(size=(VOCABULARY, width)).astype(np.float32),
        "head": generator.normal(size=(width, 2)).astype(np.float32),
    }
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["h"])]
    kept = [layer for layer in range(4) if layer not in drop]
    for layer, state in zip(kept, ["h", *(f"h{n}" for n in kept)], strict=False):
        weights[f"w{layer}"] = generator.normal(size=(width, width)).astype(np.float32) / 4
        nodes.append(helper.make_node("MatMul", [state, f"w{layer}"], [f"h{layer}"]))
    weights["axes"] = np.array([1])
    nodes += [
        helper.make_node("ReduceMean", [f"h{kept[-1]}", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    save_graph(folder, nodes, [tokens], weights)
    save_export(folder, 4, drop, "text-classification")
    return folder


def make_prompt_export(folder: Path, factor: float, drop: tuple[int, ...] = ()) -> Path:
    """Predicts y as `factor` times x; there is nothing to learn from what precedes it."""
    folder.mkdir()
    weights: dict[str, np.ndarray] = {
        name: np.array([n]) for name, n in zip("sea2", (0, 1 << 30, 1, 2), strict=True)
    }
    weights["factor"] = np.array(factor, dtype=np.float32)
    nodes = [
        helper.make_node("Slice", ["values", "s", "e", "a", "2"], ["x"]),
        helper.make_node("Mul", ["x", "factor"], ["logits"]),
    ]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", "values"])
    save_graph(folder, nodes, [values], weights)
    save_export(folder, 4, drop, "polynomial-regression")
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return make_text_export(folder / "original"), make_text_export(folder / "pruned", drop=(1, 2))


def right_or_wrong(*values: int) -> Scores:
    return Scores(np.array(values, dtype=np.float64), np.zeros(len(values)))


def losses(values: ArrayLike) -> Scores:
    return Scores(np.asarray(values, dtype=np.float64), np.asarray(values, dtype=np.float64))


# --- statistics -----------------------------------------------------------------------------


def test_one_gained_and_five_lost_rows_give_the_textbook_mcnemar_p() -> None:
    original = right_or_wrong(0, *[1] * 5, *[1] * 10, *[0] * 4)
    pruned = right_or_wrong(1, *[0] * 5, *[1] * 10, *[0] * 4)
    accuracy = compare(CLASSIFICATION, original, pruned)
    assert (accuracy.gained, accuracy.lost, accuracy.n) == (1, 5, 20)
    assert accuracy.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    assert accuracy.difference == pytest.approx(-4 / 20)
    low, high = accuracy.interval
    assert -0.5 < low < -0.2 < high < 0.1


def test_wilson_intervals_agree_with_the_closed_form() -> None:
    accuracy = compare(CLASSIFICATION, right_or_wrong(*[1] * 8, 0, 0), right_or_wrong(*[1] * 10))
    z, n, share = 1.959964, 10, 0.8
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert accuracy.original_interval == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert accuracy.pruned_interval == pytest.approx((n / (n + z**2), 1.0), abs=1e-6)


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.name)
def test_equal_results_give_an_interval_of_no_width_and_no_evidence(task: Any) -> None:
    accuracy = compare(task, right_or_wrong(1, 0, 1, 1), right_or_wrong(1, 0, 1, 1))
    assert accuracy.interval == (0.0, 0.0)
    assert (accuracy.difference, accuracy.p_value) == (0.0, 1.0)
    assert (accuracy.gained, accuracy.lost) == (0, 0)


def test_the_permutation_test_enumerates_small_samples_exactly() -> None:
    # All five rows fall: of the 2^5 swaps only none and all are as extreme.
    original, pruned = losses([1.0, 2.0, 3.0, 4.0, 5.0]), losses([0.9, 1.8, 2.7, 3.6, 4.5])
    accuracy = compare(REGRESSION, original, pruned)
    assert accuracy.p_value == pytest.approx(2 / 2**5)
    assert accuracy.difference == pytest.approx(-0.3)
    # Lower is better here, so that falling is gaining.
    assert (accuracy.gained, accuracy.lost) == (5, 0)
    assert accuracy.gain == pytest.approx(0.3)


def test_bootstrap_intervals_agree_with_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap_interval(values, np.mean) == pytest.approx(expected, abs=0.03)


def test_a_mean_of_skewed_rows_has_a_bootstrap_t_interval() -> None:
    rows = np.exp(np.random.default_rng(0).normal(0.0, 1.5, size=100))
    found = compare(REGRESSION, losses(rows), losses(rows[::-1]))
    drawn = rows[np.random.default_rng(1).integers(0, 100, (20_000, 100))]
    t = (drawn.mean(axis=1) - rows.mean()) / (drawn.std(axis=1, ddof=1) / 10)
    ends = rows.mean() - np.percentile(t, [97.5, 2.5]) * rows.std(ddof=1) / 10
    assert found.original_interval == pytest.approx(ends, abs=0.03 * float(np.ptp(ends)))
    assert found.pruned_interval == pytest.approx(found.original_interval, abs=0.03 * float(np.ptp(ends)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    assert found.original_interval[0] > low
    assert found.original_interval[1] > high + 0.1 * (high - low), "the long tail is above"


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("num_wrong", [0, 1, 3])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_rows_that_are_nearly_all_alike_have_an_interval_of_percentiles(
    value: float, num_wrong: int, noise: float
) -> None:
    rows = value + noise * np.random.default_rng(0).random(50)
    rows[:num_wrong] = 1.0
    low, high = compare(REGRESSION, losses(rows), losses(rows)).original_interval
    if num_wrong == 0:
        assert value <= low <= high <= value + noise
    else:  # 5 % of resamples of three in 50 have none of them
        assert value - 1e-12 <= low <= value + noise
        assert rows.mean() < high < 0.3


@pytest.mark.parametrize(("task", "best"), [("polynomial-regression", 0.0), ("question-answering", 1.0)])
def test_no_interval_leaves_the_range_of_its_metric(task: str, best: float) -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).beta(0.3, 3, size=6)
        rows = rows if best == 0.0 else 1 - rows
        low, high = compare(TASKS[task], losses(rows), losses(rows)).original_interval
        assert low <= rows.mean() <= high
        assert low >= 0.0
        assert high <= 1.0 or best == 0.0


def test_the_same_results_give_the_same_statistics() -> None:
    generator = np.random.default_rng(0)
    original, pruned = losses(generator.random(50)), losses(generator.random(50))
    first, second = (compare(REGRESSION, original, pruned) for _ in range(2))
    assert first == second


def test_a_percentile_is_given_only_with_enough_runs() -> None:
    seconds = np.linspace(0.01, 0.03, 21)
    timing = summarize(seconds, Workload(4, 16, ()))
    assert timing.p50_ms == pytest.approx(20.0)
    assert timing.p90_ms == pytest.approx(28.0)
    assert timing.throughput_per_s == pytest.approx(4 / 0.02)
    assert summarize(seconds[:19], Workload(4, 16, ())).p90_ms is None
    assert timing.tokens_per_s is None


def test_prompts_count_all_their_tokens_and_a_step_one_a_sequence() -> None:
    seconds = np.full(20, 0.01)
    assert summarize(seconds, Workload(4, 16, (), "prefill")).tokens_per_s == pytest.approx(6400)
    assert summarize(seconds, Workload(4, 16, (), "decode")).tokens_per_s == pytest.approx(400)


def test_the_noise_floor_is_symmetric_and_covers_both_halves() -> None:
    ratios = np.array([1.0] * 10 + [1.25] * 10)
    low, high = noise_floor(ratios)
    assert high >= 1.25
    assert low == pytest.approx(1 / high)
    assert noise_floor(np.ones(10)) == (1.0, 1.0)


# --- runtimes and providers -----------------------------------------------------------------


def test_short_names_mean_onnx_runtimes_providers() -> None:
    assert resolve_provider("cpu") == resolve_provider("CPUExecutionProvider")


@pytest.mark.parametrize("name", ["cuda", "CUDAExecutionProvider", "gpu"])
def test_a_missing_provider_is_named_with_those_available(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BenchmarkError, match=rf"{name}.*available: CPUExecutionProvider") as caught:
        resolve_provider(name)
    assert caught.value.hint


def test_a_silent_fallback_is_an_error(exports: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = staticmethod(lambda: ["OtherExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", fallen)
    with pytest.raises(BenchmarkError, match=r"CPUExecutionProvider was asked for.*fell back to"):
        RUNTIMES["onnxruntime"](exports[0], default_settings("cpu", 1))


def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    save_export(tmp_path, 2, (), "text-classification")
    with pytest.raises(BenchmarkError, match=r"cannot open .*model\.onnx") as caught:
        RUNTIMES["onnxruntime"](tmp_path, default_settings("cpu", 1))
    assert "\n" not in caught.value.message


def test_a_session_takes_what_it_needs_in_its_own_number_type(exports: tuple[Path, Path]) -> None:
    session = RUNTIMES["onnxruntime"](exports[0], default_settings("cpu", 1))
    ids = np.array([[1, 2, 3]])
    logits = session({"input_ids": ids.astype(np.int32), "attention_mask": np.ones_like(ids)})["logits"]
    np.testing.assert_array_equal(logits, session({"input_ids": ids})["logits"])
    with pytest.raises(BenchmarkError, match="needs input input_ids; the task gives values"):
        session({"values": ids})
    with pytest.raises(BenchmarkError, match=r"cannot run .* on input_ids \(1, 1\)"):
        session({"input_ids": np.array([[VOCABULARY]])})


# --- scoring --------------------------------------------------------------------------------


def test_results_come_back_in_the_order_of_the_rows(exports: tuple[Path, Path]) -> None:
    samples = text_samples(70)  # several batches, sorted by length inside
    scores = score_exported(exports[0], CLASSIFICATION, samples, TEXT, QUICK)
    session = RUNTIMES["onnxruntime"](exports[0], default_settings("cpu", 1))
    lengths = [len(row.features["text"].split()) for row in samples.rows]
    # Without a mask in the graph only rows padded to themselves are comparable.
    same = [i for i in range(70) if lengths[i] == max(lengths)]
    logits = [session(CLASSIFICATION.encode([samples.rows[i]], TEXT))["logits"][0] for i in same]
    right = [float(row.argmax() == samples.rows[i].label) for i, row in zip(same, logits, strict=True)]
    np.testing.assert_array_equal(scores.values[same], right)


def test_the_metric_of_a_regression_is_that_of_its_predictions(tmp_path: Path) -> None:
    samples = prompt_samples()
    scores = score_exported(make_prompt_export(tmp_path / "m", 0.5), REGRESSION, samples, PROMPTS, QUICK)
    expected = REGRESSION.score(
        np.stack([0.5 * row.features["values"][0::2] for row in samples.rows]), samples
    )
    np.testing.assert_allclose(scores.values, expected.values, rtol=1e-6)


# --- workloads and timing -------------------------------------------------------------------


def test_text_batches_have_exactly_the_shape_and_no_padding() -> None:
    settings = BenchmarkSettings(batch_sizes=(3, 1), sequence_lengths=(4, 17))
    workloads = make_workloads(CLASSIFICATION, text_samples(), TEXT, settings)
    shapes = [(work.batch_size, work.sequence_length) for work in workloads]
    assert shapes == [(1, 4), (3, 4), (1, 17), (3, 17)]
    for work in workloads:
        for inputs in work.batches:
            assert {value.shape for value in inputs.values()} == {(work.batch_size, work.sequence_length)}
            assert inputs["attention_mask"].all()
        ids = [inputs["input_ids"].tobytes() for inputs in work.batches]
        assert len(set(ids)) > 1


def test_too_few_rows_are_used_again() -> None:
    settings = BenchmarkSettings(batch_sizes=(8,), sequence_lengths=(4,))
    (work,) = make_workloads(CLASSIFICATION, text_samples(3), TEXT, settings)
    assert [inputs["input_ids"].shape for inputs in work.batches] == [(8, 4)]


def test_typical_lengths_are_those_of_the_samples() -> None:
    workloads = make_workloads(CLASSIFICATION, text_samples(40), TEXT, QUICK)
    # Texts of 2 to 11 words: the median rounds to 8, the 95th percentile to 16.
    assert {work.sequence_length for work in workloads} == {8, 16}
    prompts = make_workloads(REGRESSION, prompt_samples(), PROMPTS, QUICK)
    assert {work.sequence_length for work in prompts} == {10}


def test_prompts_are_cut_to_whole_points() -> None:
    settings = BenchmarkSettings(batch_sizes=(2,), sequence_lengths=(7, 13))
    workloads = make_workloads(REGRESSION, prompt_samples(), PROMPTS, settings)
    assert [work.batches[0]["values"].shape for work in workloads] == [(2, 6), (2, 12)]


def test_a_length_beyond_the_model_is_refused() -> None:
    settings = BenchmarkSettings(sequence_lengths=(33,))
    with pytest.raises(ConfigError, match="33 is longer than the model's 32"):
        make_workloads(CLASSIFICATION, text_samples(), TEXT, settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"providers": ()},
        {"batch_sizes": (0,)},
        {"sequence_lengths": (1,)},
        {"num_threads": 0},
        {"warmup": -1},
        {"iterations": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_cannot_be_measured_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BenchmarkSettings(**wrong)


def record_calls(seed: int) -> list[tuple[str, int]]:
    """Return who ran which batch, in order, after the warm-up."""
    calls: list[tuple[str, int]] = []

    def session(name: str) -> Session:
        def run(inputs: Inputs) -> np.ndarray:
            calls.append((name, hash(inputs["input_ids"].tobytes())))
            return np.zeros(1)

        return run

    settings = BenchmarkSettings(batch_sizes=(1,), warmup=2, iterations=12, seed=seed)
    (work, *_) = make_workloads(CLASSIFICATION, text_samples(), TEXT, settings)
    time_rounds({name: session(name) for name in "ABC"}, work, settings)
    return calls[3 * 2 :]


def test_rounds_interleave_all_sessions_on_the_same_batch() -> None:
    calls = record_calls(seed=0)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 12
    assert all({name for name, _ in turn} == set("ABC") for turn in rounds)
    assert all(len({batch for _, batch in turn}) == 1 for turn in rounds)
    assert len({turn[0][1] for turn in rounds}) > 1  # several different batches
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 1  # several orders


def test_the_order_of_the_rounds_follows_from_the_seed() -> None:
    assert record_calls(seed=0) == record_calls(seed=0)
    assert record_calls(seed=0) != record_calls(seed=1)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("started_measures")
def test_memory_and_load_time_are_measured_in_a_fresh_process(exports: tuple[Path, Path]) -> None:
    ballast = np.ones(400 << 20, dtype=np.uint8)  # resident here, not there
    inputs = {"input_ids": np.ones((2, 4), dtype=np.int64)}
    peak_bytes, load_seconds = measure_memory_and_load(exports[0], default_settings("cpu", 1), inputs)
    assert 1 << 20 < peak_bytes < len(ballast)
    assert 0 < load_seconds < 60


@pytest.mark.usefixtures("started_measures")
def test_errors_of_the_fresh_process_arrive_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    save_export(tmp_path, 2, (), "text-classification")
    inputs = {"input_ids": np.ones((2, 4), dtype=np.int64)}
    with pytest.raises(BenchmarkError, match="ONNX Runtime cannot open"):
        measure_memory_and_load(tmp_path, default_settings("cpu", 1), inputs)


def test_the_fresh_process_imports_neither_pytorch_nor_scipy(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "inputs.npz", input_ids=np.ones((2, 4), dtype=np.int64))
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from tapioca_export.benchmarking.child import main\n"
        "assert main(sys.argv[1:])['peak_bytes'] > 0\n"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    settings = json.dumps(asdict(default_settings("cpu", 1)))
    arguments = [str(exports[0]), settings]
    with (tmp_path / "inputs.npz").open("rb") as inputs:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], stdin=inputs, capture_output=True, check=True
        )
    assert done.stdout.strip() == b"[]"


# --- the stage ------------------------------------------------------------------------------


def test_a_benchmark_is_whole_and_survives_json(exports: tuple[Path, Path], tmp_path: Path) -> None:
    samples = {"id": text_samples(), "target": text_samples(30)}
    result = benchmark(*exports, CLASSIFICATION, samples, TEXT, QUICK)
    assert set(result.accuracy) == {"id", "target"}
    assert result.accuracy["target"].n == 30
    assert result.drop == (1, 2)
    assert result.optimism_gap is None
    assert result.size_bytes.original > result.size_bytes.pruned > 0
    assert min(result.peak_memory_bytes.original, result.peak_memory_bytes.pruned) > 0
    assert min(result.load_seconds.original, result.load_seconds.pruned) > 0
    assert [(row.sequence_length, row.batch_size) for row in result.latency] == [
        *itertools.product((8, 16), (1, 4))
    ]
    for row in result.latency:
        assert row.ideal_speedup == 2.0
        assert (row.threads, row.original.runs, row.original.p90_ms) == (1, 4, None)
        assert row.speedup.interval[0] <= row.speedup.median <= row.speedup.interval[1]
        assert row.noise_floor[0] <= 1 <= row.noise_floor[1]
    write(tmp_path / "benchmark.json", result)
    assert read(tmp_path / "benchmark.json", Benchmark) == result


def test_a_file_is_as_fast_as_itself(tmp_path: Path) -> None:
    folder = make_text_export(tmp_path / "same", width=256)
    settings = BenchmarkSettings(batch_sizes=(8,), sequence_lengths=(32,), num_threads=1)
    samples = {"target": text_samples(labelled=False)}
    result = benchmark(folder, folder, CLASSIFICATION, samples, TEXT, settings)
    (row,) = result.latency
    assert row.ideal_speedup == 1.0
    # A generous band: the machine may be busy with other work.
    assert 0.5 < row.speedup.median < 2.0
    assert row.original.p90_ms is not None
    assert result.accuracy == {}


def test_missing_cuda_is_a_sentence_by_default_and_an_error_when_asked_for(
    exports: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    samples = {"target": text_samples(labelled=False)}
    result = benchmark(*exports, CLASSIFICATION, samples, TEXT, QUICK)
    (sentence,) = result.skipped
    assert sentence == (
        "CUDAExecutionProvider: not in this build of onnxruntime "
        "(available: CPUExecutionProvider); GPU latency was not measured."
    )
    asked = BenchmarkSettings(providers=("cuda",))
    with pytest.raises(BenchmarkError, match="cuda"):
        benchmark(*exports, CLASSIFICATION, samples, TEXT, asked)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_cannot_start_is_a_sentence_by_default(
    exports: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("no CUDA"))
    samples = {"target": text_samples(labelled=False)}
    result = benchmark(*exports, CLASSIFICATION, samples, TEXT, QUICK)
    assert {row.provider for row in result.latency} == {"CPUExecutionProvider"}
    (sentence,) = result.skipped
    assert sentence.startswith("CUDAExecutionProvider: ")
    assert sentence.endswith("; GPU latency was not measured.")
    assert capsys.readouterr().out == ""  # ONNX Runtime's own messages stay off stdout


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_of_a_device_that_was_tuned_for_and_not_timed_no_settings_are_reported(
    exports: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)

    def tuned(*arguments: object) -> dict[str, OrtSession]:
        (provider,) = (argument for argument in arguments if argument in both)
        made = OrtSession(**vars(default_settings(str(provider), 1)))
        return {"original": made, "pruned": made}

    monkeypatch.setattr(stage, "tune", tuned)
    samples = {"target": text_samples(labelled=False)}
    result = benchmark(*exports, CLASSIFICATION, samples, TEXT, replace(QUICK, tune_seconds=1.0))
    assert [session.provider for session in result.sessions["pruned"]] == ["CPUExecutionProvider"]


def test_a_regression_is_benchmarked_like_a_classifier(tmp_path: Path) -> None:
    original = make_prompt_export(tmp_path / "original", 3.0)
    pruned = make_prompt_export(tmp_path / "pruned", 0.0, drop=(3,))
    samples = {"target": prompt_samples()}
    accuracy = benchmark(original, pruned, REGRESSION, samples, PROMPTS, QUICK).accuracy["target"]
    assert not accuracy.higher_is_better
    assert accuracy.gain > 0  # y has nothing to do with x: 0 is a better guess than 3 x
    assert accuracy.gained > accuracy.lost


@pytest.mark.parametrize("name", ["export.json", "model.onnx"])
def test_a_folder_with_a_file_missing_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_text_export(tmp_path / "export")
    (folder / name).unlink()
    with pytest.raises(BenchmarkError, match=f"has no {name}"):
        benchmark(folder, folder, CLASSIFICATION, {"target": text_samples()}, TEXT)


def test_a_file_that_failed_its_parity_check_is_refused(tmp_path: Path) -> None:
    folder = make_text_export(tmp_path / "export")
    (folder / "model.onnx").rename(folder / "model.onnx.invalid")
    with pytest.raises(BenchmarkError, match="failed its parity check"):
        benchmark(folder, folder, CLASSIFICATION, {"target": text_samples()}, TEXT)


def test_folders_of_different_tasks_are_refused(tmp_path: Path) -> None:
    texts = make_text_export(tmp_path / "texts")
    prompts = make_prompt_export(tmp_path / "prompts", 1.0)
    with pytest.raises(BenchmarkError, match="for task polynomial-regression, not text-class"):
        benchmark(texts, prompts, CLASSIFICATION, {"target": text_samples()}, TEXT)


def test_a_malformed_export_file_is_refused(tmp_path: Path) -> None:
    folder = make_text_export(tmp_path / "export")
    (folder / "export.json").write_text("{}")
    with pytest.raises(LoadError, match=r"is not an? export file"):
        benchmark(folder, folder, CLASSIFICATION, {"target": text_samples()}, TEXT)
