"""Layers scaled and streams rescaled: exact at the ends, right between them, at the least cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NUM_LAYERS, text_records, write_jsonl
from test_causal_tasks import choice_records, samples_of
from test_causal_tasks import make_model as make_chooser
from test_laws import drop_by_hand, load_rows, some_batches
from test_several_stacks import FAMILIES as SEVERAL_STACKS
from test_several_stacks import make as make_stacks

from tapioca_export.models import LoadedModel, Rescaled, Scaled, changing, load_model, stand_ins
from tapioca_export.models.skipping import StandIn
from tapioca_export.profiling import Probe, dosing, respond
from tapioca_export.profiling.replaying import changed_passes
from tapioca_export.samples import Samples
from tapioca_export.tasks import Batch

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
FAMILIES = ("bert", "llama", "modernbert", "polynomial")


@contextmanager
def scaled_by_hand(model: LoadedModel, alphas: Mapping[int, float]) -> Iterator[None]:
    """Scale layers with hooks of PyTorch's own: h + alpha * (layer(h) - h), the rest of a tuple kept."""

    def hook(alpha: float) -> Callable[..., Any]:
        def scale(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            behind = output[0] if isinstance(output, tuple) else output
            stream = before + alpha * (behind - before)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return scale

    with ExitStack() as hooks:
        for layer, alpha in alphas.items():
            handle = model.layers[layer].register_forward_hook(hook(alpha), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    return load_model(tiny(request.param))


@pytest.fixture
def rows(model: LoadedModel, sample_files: Files) -> Samples:
    family = "polynomial" if model.processor.tokenizer is None else "text"
    return load_rows(model, sample_files(family)["target"])


# --- one layer ------------------------------------------------------------------------------


def test_alpha_0_drops_and_alpha_1_leaves_to_the_bit(model: LoadedModel, rows: Samples) -> None:
    dropped = drop_by_hand(model, (1, 3))
    for batch in some_batches(model, rows):
        plain = model.logits(batch)
        with changing(model, {1: Scaled(0.0), 3: Scaled(0.0)}):
            assert np.array_equal(model.logits(batch), dropped.logits(batch))
        with changing(model, {1: Scaled(1.0), 3: Scaled(1.0)}):
            assert np.array_equal(model.logits(batch), plain)


def test_the_ends_take_the_paths_on_which_nothing_is_computed() -> None:
    place = StandIn(torch.nn.Identity(), {})
    found = []
    for alpha in (0.0, 1.0, 0.5, 0.0, 1.0):
        place.become(Scaled(alpha))
        found.append((place.skips, place.change))
    assert found == [(True, None), (False, None), (False, Scaled(0.5)), (True, None), (False, None)]


@pytest.mark.parametrize("alpha", [0.5, 1.5])
def test_other_alphas_equal_hooks_written_by_hand(model: LoadedModel, rows: Samples, alpha: float) -> None:
    alphas = {0: alpha, 2: 1 - alpha / 2}
    batch = some_batches(model, rows)[-1]
    plain = model.logits(batch)
    with scaled_by_hand(model, alphas):
        expected = model.logits(batch)
    with changing(model, {layer: Scaled(value) for layer, value in alphas.items()}):
        found = model.logits(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - plain).max() > 1e-3


def test_halfway_equals_a_forward_written_by_hand(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("polynomial"))
    (batch,) = model.task.batches(load_rows(model, sample_files("polynomial")["id"]), model.processor, 64)
    network = model.network
    with torch.no_grad():
        (values,) = batch.inputs.values()
        prompts = torch.from_numpy(values)
        gpt2 = network.transformer
        stream = network.read_in(prompts[..., None]) + gpt2.wpe.weight[: prompts.shape[1]]
        for index, block in enumerate(gpt2.h):
            out = block(stream)
            out = out[0] if isinstance(out, tuple) else out
            stream = stream + (0.5 if index == 2 else 1.0) * (out - stream)
        expected = network.read_out(gpt2.ln_f(stream))[:, 0::2, 0]
    with changing(model, {2: Scaled(0.5)}):
        found = model.logits(batch.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SEVERAL_STACKS)
def test_layers_of_every_stack_scale_and_keep_the_rest_of_their_tuples(family: str) -> None:
    model, inputs = make_stacks(family)
    plain = model.logits(inputs)
    for layer in range(model.num_layers):
        with scaled_by_hand(model, {layer: 0.5}):
            expected = model.logits(inputs)
        with changing(model, {layer: Scaled(0.5)}):
            np.testing.assert_allclose(model.logits(inputs), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - plain).max() > 1e-5
    assert np.array_equal(model.logits(inputs), plain)


def test_rescaling_multiplies_the_stream_behind_a_layer(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("llama"))
    rows = load_rows(model, sample_files("text")["id"])
    probe = Probe(model, {"id": rows, "target": rows})
    intact, rescaled = respond(probe, [{}, {1: Rescaled(1.5)}])
    np.testing.assert_allclose(rescaled.norms[0, 2], 1.5 * intact.norms[0, 2], rtol=1e-5)
    np.testing.assert_allclose(rescaled.norms[0, :2], intact.norms[0, :2], rtol=1e-6)


# --- passes and responses -------------------------------------------------------------------


def test_passes_replay_what_is_below_the_lowest_changed_layer() -> None:
    model, inputs = make_stacks("bart")
    variants = [{}, {3: Scaled(0.5)}, {2: Scaled(0.0), 4: Scaled(1.5)}]
    counts = []
    with stand_ins(model) as places:
        for trace in changed_passes(model, places, Batch(np.arange(2), inputs), variants):
            counts.append([place.num_forwards for place in places])
            assert len(trace.boundaries) == model.num_layers + 2
    first, second, third = counts
    assert first == [2, 2, 2, 2, 2]
    assert np.subtract(second, first).tolist() == [0, 0, 0, 2, 2]
    assert np.subtract(third, second).tolist()[:2] == [0, 0]
    assert np.subtract(third, second).tolist()[3:] == [2, 2]


def test_responses_are_those_of_whole_forwards(model: LoadedModel, rows: Samples) -> None:
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=7)
    variants = [{}, {2: Scaled(0.5)}, {1: Scaled(0.0), 3: Scaled(0.0)}, {1: Scaled(1.0)}]
    found = respond(probe, variants)
    for changes, response in zip(variants, found, strict=True):
        expected = np.empty(len(rows))
        for indices in probe.length_sorted(rows):
            batch = model.task.batch(rows, indices, model.processor)
            with changing(model, changes):
                expected[indices] = model.task.score(model.answers(batch), rows, indices).values
        assert np.array_equal(response.scores.values, expected)
    for response, dropped in ((found[0], ()), (found[2], (1, 3)), (found[3], ())):
        profile = probe.profile("target", dropped)
        assert response.norms[0].tolist() == list(profile.norms)
        assert response.distances[0].tolist() == list(profile.distances)
    assert found[0].noise_floor == probe._measure("id", frozenset()).noise_floor
    assert found[1].noise_floor is None


def test_variants_measured_a_few_at_a_time_are_the_same(
    model: LoadedModel, rows: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(model, {"id": rows, "target": rows})
    variants = [{layer: Scaled(0.5)} for layer in range(NUM_LAYERS)]
    at_once = respond(probe, variants)
    monkeypatch.setattr(dosing, "NUM_AT_ONCE", 3)
    for one, other in zip(at_once, respond(probe, variants), strict=True):
        assert np.array_equal(one.norm_replicates, other.norm_replicates)
        assert np.array_equal(one.scores.losses, other.scores.losses)


def test_replicates_draw_the_same_rows_for_every_variant(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("bert"))
    rows = load_rows(model, sample_files("text")["id"])
    probe = Probe(model, {"id": rows, "target": rows})
    intact, again, damped = respond(probe, [{}, {1: Scaled(1.0)}, {1: Scaled(0.25)}])
    boundaries = range(NUM_LAYERS + 1)
    assert not again.deviation_replicates(intact, boundaries).any()
    drawn = damped.deviation_replicates(intact, boundaries)
    assert drawn.shape == (2, 200)
    assert (np.std(drawn, axis=1) > 0).all()
    low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
    assert (low <= damped.deviations(intact, boundaries)).all()
    assert (damped.deviations(intact, boundaries) <= high).all()


def test_rows_without_labels_have_no_scores(tiny: Tiny, tmp_path: Path) -> None:
    model = load_model(tiny("bert"))
    rows = load_rows(model, write_jsonl(tmp_path / "t.jsonl", text_records(32, 0, labelled=False)))
    (response,) = respond(Probe(model, {"id": rows, "target": rows}), [{0: Scaled(0.5)}])
    assert response.scores is None
    assert response.norms.shape == (1, NUM_LAYERS + 1)


def test_where_rows_are_scored_in_other_batches_than_they_are_profiled_both_are_changed() -> None:
    model = make_chooser("llama")
    rows = samples_of(model, choice_records(24))
    probe = Probe(model, {"id": rows, "target": rows})
    intact, dropped = respond(probe, [{}, {1: Scaled(0.0)}])
    every = np.arange(len(rows))
    for response, layers in ((intact, ()), (dropped, (1,))):
        values, losses = probe.scores(layers, (), every)[None]
        assert np.array_equal(response.scores.values, values)
        np.testing.assert_allclose(response.scores.losses, losses, rtol=1e-5, atol=1e-6)
        assert response.norms[0].tolist() == list(probe.profile("target", layers).norms)
    assert not np.allclose(intact.scores.losses, dropped.scores.losses)
