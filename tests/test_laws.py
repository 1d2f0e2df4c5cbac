"""What must hold for every family: removal, replay, round trip, profiles."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALL_FAMILIES, NUM_LAYERS
from said import assert_changes, of_classes, of_next_token
from scipy.spatial.distance import pdist, squareform
from torch import nn

from tapioca_export.errors import UnsupportedModelError
from tapioca_export.models import LoadedModel, drop_layers, load_model, proof, skipping
from tapioca_export.models.proof import save_pruned
from tapioca_export.polynomial import WEIGHTS, sample_prompts
from tapioca_export.profiling import Probe
from tapioca_export.profiling.accumulating import distances_between
from tapioca_export.samples import Samples, load_roles, read_samples
from tapioca_export.tasks import Batch, Inputs

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
FreshProcess = Callable[[str], subprocess.CompletedProcess[str]]


def load_rows(model: LoadedModel, path: Path) -> Samples:
    return read_samples(path, model.task.rows({}, model.processor), role="id-select")


def some_batches(model: LoadedModel, samples: Samples) -> list[Inputs]:
    return [batch.inputs for batch in model.task.batches(samples, model.processor, 7)]


def drop_by_hand(model: LoadedModel, layers: tuple[int, ...]) -> LoadedModel:
    """Return a deep copy without the layers: nothing but a shorter list and new indices."""
    other = copy.deepcopy(model)
    parent, _, name = other.stacks[0].path.rpartition(".")
    kept = [layer for i, layer in enumerate(other.layers) if i not in layers]
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    setattr(other.network.get_submodule(parent), name, nn.ModuleList(kept))
    config = other.network.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [kind for i, kind in enumerate(config.layer_types) if i not in layers]
    config.num_hidden_layers = len(kept)
    return other


@pytest.fixture(params=ALL_FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Tiny) -> LoadedModel:
    return load_model(tiny(request.param))


@pytest.fixture
def rows(model: LoadedModel, sample_files: Files) -> Samples:
    family = "polynomial" if model.processor.tokenizer is None else "text"
    return load_rows(model, sample_files(family)["id"])


def test_skipping_no_layers_changes_no_bit(model: LoadedModel, rows: Samples) -> None:
    for batch in some_batches(model, rows):
        plain = model.logits(batch)
        with skipping(model, ()):
            assert np.array_equal(model.logits(batch), plain)


def test_every_layer_matters_so_that_the_laws_can_fail(model: LoadedModel, rows: Samples) -> None:
    batch = some_batches(model, rows)[-1]
    plain = model.logits(batch)
    for layer in range(NUM_LAYERS):
        with skipping(model, [layer]):
            assert np.abs(model.logits(batch) - plain).max() > 1e-3


@pytest.mark.parametrize("layers", [(1,), (0, 2), (3,)])
def test_skipping_equals_dropping_to_the_bit(
    model: LoadedModel, rows: Samples, layers: tuple[int, ...]
) -> None:
    by_hand = drop_by_hand(model, layers)
    for batch in some_batches(model, rows):
        with skipping(model, layers):
            skipped = model.logits(batch)
        assert np.array_equal(skipped, by_hand.logits(batch))


def test_the_network_is_left_as_it_was_found(model: LoadedModel, rows: Samples) -> None:
    layers, batch = list(model.layers), some_batches(model, rows)[0]
    plain = model.logits(batch)
    with pytest.raises(RuntimeError), skipping(model, [1]):
        raise RuntimeError
    Probe(model, {"id": rows, "target": rows}).metrics((), [1, 2])
    assert all(one is other for one, other in zip(model.layers, layers, strict=True))
    assert np.array_equal(model.logits(batch), plain)


def test_on_a_cpu_batches_are_divided_where_padding_costs_more(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    texts = [f"{'w1 ' * size} w{number + 2}" for number, size in enumerate([1, 2, 40, 1, 41, 2])]
    path.write_text("\n".join(json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)))
    model = load_model(tiny("bert"))
    rows = load_rows(model, path)

    def batches() -> list[list[int]]:
        probe = Probe(model, {"id": rows, "target": rows}, batch_size=6)
        return [sorted(batch.tolist()) for batch in probe.length_sorted(rows)]

    assert batches() == [[0, 1, 3, 5], [2, 4]]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("tapioca_export.profiling.filling.THREAD_TOKENS", 60)
    assert batches() == [[0, 1, 3, 5], [2], [4]]
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert batches() == [[0, 1, 2, 3, 4, 5]]


def test_what_a_batch_is_cut_off_changes_nothing() -> None:
    """Else a proof by a fresh process, which reads batches from a file, would refuse what is right."""
    model = load_model(WEIGHTS)
    prompts = np.asarray(sample_prompts(40, 0), dtype=np.float32)
    for start in range(0, 40, 8):
        cut = prompts[start : start + 8, :20]
        assert not cut.flags.c_contiguous
        assert np.array_equal(model.logits({"values": cut}), model.logits({"values": cut.copy()}))


@pytest.mark.parametrize("dropped", [(), (2,)])
def test_replayed_candidates_equal_full_forwards_to_the_bit(
    model: LoadedModel, rows: Samples, dropped: tuple[int, ...]
) -> None:
    probe = Probe(model, {"id": rows, "target": rows}, batch_size=7)
    layers = [layer for layer in range(NUM_LAYERS) if layer not in dropped]
    for batch, layer, trace in probe._passes(rows, dropped, layers):
        left_out = dropped if layer is None else (*dropped, layer)
        assert np.array_equal(trace.answers, drop_by_hand(model, left_out).logits(batch.inputs))


def test_a_saved_checkpoint_reloads_as_the_skipped_model(
    model: LoadedModel, rows: Samples, tmp_path: Path
) -> None:
    batches = some_batches(model, rows)
    with skipping(model, [1, 3]):
        expected = [model.logits(batch) for batch in batches]
    save_pruned(model, [1, 3], tmp_path, batches)  # raises unless a fresh process agrees to the bit
    again = load_model(tmp_path)
    assert again.num_layers == NUM_LAYERS - 2
    assert all(np.array_equal(again.logits(b), e) for b, e in zip(batches, expected, strict=True))


def test_a_process_of_its_own_proves_what_a_forked_one_does(
    tiny: Tiny,
    sample_files: Files,
    tmp_path: Path,
    fresh_process: FreshProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model(tiny("bert"))
    batches = some_batches(model, load_rows(model, sample_files("bert")["id"]))
    save_pruned(model, [1, 3], tmp_path, batches)
    forked = proof.reload_logits(tmp_path, model, batches)
    monkeypatch.setattr(proof, "_run_fresh", fresh_process)
    started = proof.reload_logits(tmp_path, model, batches)
    assert all(np.array_equal(one, other) for one, other in zip(forked, started, strict=True))


def test_a_checkpoint_that_lacks_weights_does_not_reload(
    tiny: Tiny, sample_files: Files, tmp_path: Path
) -> None:
    model = load_model(tiny("bert"))
    batches = some_batches(model, load_rows(model, sample_files("bert")["id"]))
    save_pruned(model, [1, 3], tmp_path, batches)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UnsupportedModelError, match=r"not reload: missing keys: bert\.encoder\.layer\.2\."):
        proof.reload_logits(tmp_path, model, batches)


def test_profiles_depend_on_neither_batch_size_nor_row_order(model: LoadedModel, rows: Samples) -> None:
    backwards = Samples(rows.role, rows.rows[::-1], rows.source, rows.sha256)
    one = Probe(model, {"id": rows, "target": rows}, batch_size=5).profile("id", (1,))
    other = Probe(model, {"id": backwards, "target": rows}, batch_size=64).profile("id", (1,))
    for name in ("norms", "distances", "norms_band", "distances_band"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    kept = [i for i in range(NUM_LAYERS) if i != 1]
    np.testing.assert_allclose(
        [one.influences[i] for i in kept], [other.influences[i] for i in kept], rtol=1e-4, atol=1e-6
    )
    assert (one.num_samples, one.num_tokens) == (other.num_samples, other.num_tokens)


def test_distances_far_from_the_origin_lose_nothing_to_rounding() -> None:
    states = torch.randn(2, 200, 64, generator=torch.manual_seed(0)) + 1e5  # float32 holds a hundredth there
    states[:, 7] = states[:, 3]
    found = distances_between(states)
    by_hand = np.mean([squareform(pdist(part.double().numpy())) for part in states], axis=0)
    apart = by_hand > 0
    np.testing.assert_allclose(found[apart], by_hand[apart], rtol=1e-6)
    assert found[~apart].max() < 1e-6
    assert (np.diag(found) == 0).all()
    assert distances_between(torch.full((2, 5, 8), 1e4)).max() < 1e-6


def test_turns_are_those_of_the_state_behind_the_last_layer(model: LoadedModel, rows: Samples) -> None:
    """By hand: copies without a layer, and a hook on whatever layer is their last."""
    few = sorted(sorted(range(len(rows)), key=lambda i: rows.hashes[i])[:32])

    def heads(network: LoadedModel) -> np.ndarray:
        caught = []
        hook = network.layers[-1].register_forward_hook(lambda module, given, output: caught.append(output))
        found = []
        for index in few:
            batch = network.task.profile_batch(rows, np.asarray([index]), network.processor)
            network.logits(batch.inputs)
            output = caught.pop()
            state = (output[0] if isinstance(output, tuple) else output).double().numpy()  # (1, T, H)
            batch = replace(batch, num_states=state.shape[1])
            found.append(network.task.readout(batch, network.processor).astype(np.float64) @ state)
        hook.remove()
        return np.stack(found)  # (rows, 1, P, H)

    intact = heads(model)
    turns = Probe(model, {"id": rows, "target": rows}, batch_size=7).turns(range(NUM_LAYERS), 32)
    for layer, turn in turns.items():
        other = heads(drop_by_hand(model, (layer,)))
        cosine = (intact * other).sum(-1) / np.linalg.norm(intact, axis=-1) / np.linalg.norm(other, axis=-1)
        assert turn == pytest.approx(float((1 - cosine).mean()), rel=1e-4, abs=1e-6)


def test_what_the_head_says_changes_as_single_rows_say(model: LoadedModel, rows: Samples) -> None:
    def of_curves(one: Any, other: Any, inputs: Inputs) -> float:
        changes = np.asarray(other[0] - one[0], np.float64)[0]
        return float(np.square(changes[model.task.FIRST_SCORED_POINT :]).mean())

    compare = {"polynomial-regression": of_curves, "text-classification": of_classes}
    assert_changes(model, rows, compare.get(model.task.name, of_next_token), (0, 2))


def test_turns_depend_on_neither_batch_size_nor_row_order_nor_labels(
    model: LoadedModel, rows: Samples
) -> None:
    unlabelled = tuple(replace(row, label=None) for row in rows.rows[::-1])
    backwards = Samples(rows.role, unlabelled, rows.source, rows.sha256)
    one = Probe(model, {"id": rows, "target": rows}, batch_size=5).turns((1, 3), 50)
    other = Probe(model, {"id": rows, "target": backwards}, batch_size=64).turns((3, 0, 1), 50)
    assert list(one) == [1, 3]
    assert one == pytest.approx({layer: other[layer] for layer in one}, rel=1e-4, abs=1e-6)


def test_turns_that_are_known_are_not_measured_again(model: LoadedModel, rows: Samples) -> None:
    probe = Probe(model, {"id": rows, "target": rows})
    first = probe.turns((1, 2), 16)
    cost = probe.ledger.layer_forwards
    assert cost > 0
    assert probe.turns((2, 1), 16) == first
    assert probe.ledger.layer_forwards == cost
    probe.turns((1, 2), 17)
    assert probe.ledger.layer_forwards > cost


def test_a_layer_that_adds_nothing_turns_nothing(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("llama"))
    for projection in (model.layers[2].self_attn.o_proj, model.layers[2].mlp.down_proj):
        projection.weight.data.zero_()
    rows = load_rows(model, sample_files("llama")["id"])
    turns = Probe(model, {"id": rows, "target": rows}).turns(range(NUM_LAYERS), 64)
    assert turns[2] == pytest.approx(0, abs=1e-9)
    assert min(turn for layer, turn in turns.items() if layer != 2) > 1e-5


def test_identical_samples_show_no_deviation(model: LoadedModel, rows: Samples) -> None:
    deviation = Probe(model, {"id": rows, "target": rows}).deviation()
    assert deviation.mean == 0
    assert deviation.noise_floor.mean > 0


def test_a_profile_reads_boundaries_and_not_the_final_norm(model: LoadedModel, rows: Samples) -> None:
    stream: list[torch.Tensor] = []
    hook = model.layers[-1].register_forward_hook(
        lambda _, __, output: stream.append(output[0] if isinstance(output, tuple) else output)
    )
    total = 0.0
    for batch in some_batches(model, rows):
        model.logits(batch)
        weights = torch.from_numpy(model.task.readout(Batch(np.arange(2), batch), model.processor))
        total += float((weights @ stream.pop()).norm(dim=-1).mean(dim=-1).sum())
    hook.remove()
    profile = Probe(model, {"id": rows, "target": rows}).profile("id")
    assert profile.norms[-1] == pytest.approx(total / len(rows), rel=1e-5)


def test_the_split_roles_of_one_file_never_share_a_row(model: LoadedModel, sample_files: Files) -> None:
    family = "polynomial" if model.processor.tokenizer is None else "text"
    roles = load_roles(sample_files(family), model.task.rows({}, model.processor))
    keys = [row.key for samples in roles.values() for row in samples.rows]
    assert len(keys) == len(set(keys))


def test_dropping_mends_config_and_indices(model: LoadedModel) -> None:
    model = drop_layers(model, [0, 2] if model.network.config.model_type != "modernbert" else [1, 2])
    config = model.network.config
    assert config.num_hidden_layers == len(model.layers) == NUM_LAYERS - 2
    if getattr(config, "layer_types", None) is not None:
        assert len(config.layer_types) == NUM_LAYERS - 2
    for index, layer in enumerate(model.layers):
        for module in layer.modules():
            assert getattr(module, "layer_idx", index) == index
