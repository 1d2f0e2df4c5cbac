"""Candidates that run abreast: the scores that they have apart, in fewer calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALL_FAMILIES, DECODERS, NUM_LAYERS, make_decoder, make_tokenizer, write_jsonl

from tapioca_export.costing.calibrating import Calibration
from tapioca_export.costing.rehearsing import Item
from tapioca_export.models import LoadedModel, load_model, stand_ins
from tapioca_export.profiling.abreast import groups
from tapioca_export.profiling.replaying import THREAD_TOKENS, Replayer, Work, passes, tokens_at_once
from tapioca_export.samples import Samples, read_samples

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


def rows_of(model: LoadedModel, path: Path) -> Samples:
    return read_samples(path, model.task.rows({}, model.processor), role="id-select")


def scored(model: LoadedModel, rows: Samples, base: tuple[int, ...], most_tokens: int) -> tuple[object, int]:
    """Return what a replayer finds, and how often layers were called for it."""
    replayer, calls = Replayer(model, rows), 0
    assert replayer.most_tokens > 0, "proven on the rows"
    replayer.most_tokens = most_tokens

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hooks = [layer.register_forward_pre_hook(count) for layer in model.layers]
    layers = tuple(layer for layer in range(NUM_LAYERS) if layer not in base)
    found = replayer(Work(base, layers[::-1], np.arange(9)))
    for hook in hooks:
        hook.remove()
    return found, calls


def assert_alike(model: LoadedModel, rows: Samples, base: tuple[int, ...]) -> None:
    found, few = scored(model, rows, base, sys.maxsize)
    expected, many = scored(model, rows, base, 0)
    assert few < many
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.values, expected.values)
    assert len(np.unique(expected.losses.round(6), axis=0)) == len(expected.losses), "no two alike"
    costs = [(one.layer_forwards, one.layer_tokens) for one in (found, expected)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("base", [(), (0,), (2,), (3,)])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_candidates_abreast_get_the_scores_that_they_get_apart(
    tiny: Tiny, sample_files: Files, family: str, base: tuple[int, ...]
) -> None:
    model = load_model(tiny(family))
    assert_alike(model, rows_of(model, sample_files(family)["id"]), base)


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    answers = [["w1", "w2 w3", "w4"], ["w5 w6 w7", "w8", "w9"]]
    rows = [
        {"context": "w1 " * (n % 5 + 1) + f"w{n + 20}", "choices": answers[n % 2], "label": n % 3}
        for n in range(12)
    ]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def chooser(family: str, folder: Path) -> LoadedModel:
    make_decoder(family).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return load_model(folder, "multiple-choice")


@pytest.mark.parametrize("family", sorted(set(DECODERS) - {"bloom", "qwen2"}))
def test_answers_to_one_context_may_run_abreast_too(family: str, choices: Path, tmp_path: Path) -> None:
    model = chooser(family, tmp_path)
    assert_alike(model, rows_of(model, choices), (1,))


def test_layers_that_return_more_than_the_stream_run_apart(choices: Path, tmp_path: Path) -> None:
    model = chooser("bloom", tmp_path)
    assert Replayer(model, rows_of(model, choices)).most_tokens == 0


def test_layers_that_look_beyond_their_sequence_run_candidates_apart(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["id"])
    assert Replayer(model, rows).most_tokens > 0
    hook = model.layers[2].register_forward_hook(lambda _, __, output: output - output.mean(dim=0))
    assert Replayer(model, rows).most_tokens == 0
    hook.remove()
    hook = model.layers[2].register_forward_hook(lambda _, __, output: output.view(4, -1, 32))
    assert Replayer(model, rows).most_tokens == 0
    hook.remove()


def test_gpus_get_full_batches_and_their_candidates_one_by_one() -> None:
    assert tokens_at_once(torch.device("cpu")) == THREAD_TOKENS
    assert tokens_at_once(torch.device("cuda")) == 0


def test_a_pass_that_keeps_its_states_runs_alone(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["id"])
    batch = model.task.batch(rows, np.arange(3), model.processor)
    with stand_ins(model) as places:
        found = passes(model, places, batch, (), (0, 1), whole=True, most_tokens=sys.maxsize)
        assert all(len(trace.boundaries) == NUM_LAYERS + 1 for _, trace in found)


@pytest.mark.parametrize(
    ("base", "layers", "shape", "most_tokens", "expected"),
    [
        ((), (0, 1, 2, 3), (2, 5), 10**9, [(0, 1, 2), (3,)]),  # without the last, another is the last
        ((), (2, 0, 1), (2, 5), 20, [(0, 1), (2,)]),
        ((), (0, 1, 2), (2, 5), 19, [(0,), (1,), (2,)]),
        ((), (0, 1, 2), (5, 5), 10**9, [(0,), (1,), (2,)]),
        ((3,), (0, 1, 2), (2, 5), 10**9, [(0, 1), (2,)]),
        ((), (), (2, 5), 10**9, []),
    ],
)
def test_who_runs_abreast(
    base: tuple[int, ...],
    layers: tuple[int, ...],
    shape: tuple[int, int],
    most_tokens: int,
    expected: list[tuple[int, ...]],
) -> None:
    assert list(groups(4, base, layers, shape, most_tokens)) == expected


def test_a_plan_counts_calls_that_candidates_share() -> None:
    calibration = Calibration((0.0, 0.0, 0.0), (1.0, 0.5, 0.0), (0.25, 0.0, 0.0), (0.0, 0.0, 0.0), row=0.0)
    item = Item(rows=1, sequences=1, tokens=2, starts=1, layers=6, heads=0, narrowed=2)
    assert calibration.time(item) == 4 * (1 + 1) + 2 * 0.25
    shared = Item(
        rows=1, sequences=1, tokens=2, starts=1, layers=6, heads=0, narrowed=2, shared=3, narrowed_shared=1
    )
    assert calibration.time(shared) == calibration.time(item) - 2 * 1 - 0.25
