"""Magnitude, Taylor and angular distance: planted truths, and sums worked out another way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NUM_LAYERS, THREE_FAMILIES
from safetensors.numpy import load_file

from tapioca_export.artifacts import Evaluation, Ledger
from tapioca_export.domains import Domains
from tapioca_export.errors import SelectionError
from tapioca_export.models import LoadedModel, load_model, to_tensors
from tapioca_export.profiling.weighing import angular_distance, magnitudes, sensitivities
from tapioca_export.samples import Samples, read_samples
from tapioca_export.selection import Round, Scored, SelectionSettings, published, select_layers

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]


@dataclass
class FakeProbe:
    """Answers from hand-written numbers; unlabelled, so that nothing but the score has a say."""

    values: tuple[float, ...] = ()
    distances: dict[int, tuple[float, ...]] = field(default_factory=dict)
    is_labelled: bool = False
    select_on, higher_is_better = "target", True
    num_rows, num_answers = 10, 1
    domains = Domains.of({"": 10})
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def num_layers(self) -> int:
        return len(self.values or self.distances[1])

    def metric(self, dropped: Collection[int] = ()) -> Evaluation:
        return Evaluation(0.5, 1.0)

    def magnitudes(self) -> tuple[float, ...]:
        return self.values

    def sensitivities(self) -> tuple[float, ...]:
        return self.values

    def angular_distances(self, num_layers: int) -> tuple[float, ...]:
        return self.distances[num_layers]


# Layers 1 and 4 turn the state least one by one; of two adjacent ones, 2 and 3 undo each other.
TWO, THREE = (0.32, 0.22, 0.01, 0.25, 0.45), (0.40, 0.21, 0.09, 0.50)
TURNS = FakeProbe(distances={1: (0.30, 0.05, 0.20, 0.20, 0.10, 0.40), 2: TWO, 3: THREE})


def order(probe: object, criterion: str, **settings: object) -> list[int]:
    task = SimpleNamespace(name="text-classification", metric="accuracy", higher_is_better=True)
    chosen = SelectionSettings(criterion=criterion, pick="final", **settings)
    selection = select_layers(probe, chosen, model="m", task=task, num_samples=10)
    return [step.layer for step in selection.steps]


def load_with_biases(folder: Path) -> LoadedModel:
    """Load a model and draw its biases and norm scales: fresh ones are all 0 and all 1."""
    model = load_model(folder)
    torch.manual_seed(1)
    for parameter in model.network.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0, 0.2)
    return model


def read_rows(model: LoadedModel, files: Files) -> Samples:
    family = "polynomial" if model.processor.tokenizer is None else "text"
    rows = model.task.rows({}, model.processor)
    return read_samples(files(family)["target"], rows, role="target-select")


def by_hand(model: LoadedModel, samples: Samples) -> list[float]:
    """Return sum |w dL/dw| a layer from one batch of all rows, the loss written out."""
    other = copy.deepcopy(model)
    inputs = other.task.encode(samples.rows, other.processor)
    logits = other.network(**to_tensors(inputs), **other.forward_options).logits
    labels = torch.from_numpy(samples.labels)
    losses = (logits - labels).square() if labels.dim() == 2 else -logits.log_softmax(-1)[range(64), labels]
    scores = []
    for layer in other.layers:
        weights = [p for name, p in layer.named_parameters() if not name.endswith("bias")]
        gradients = torch.autograd.grad(losses.mean(), weights, retain_graph=True)
        scores.append(
            sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True))
        )
    return scores


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_magnitudes_are_the_absolute_sums_of_what_a_file_holds_but_biases(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    model = load_with_biases(tiny(family))
    model.network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = [0.0] * NUM_LAYERS
    for name, values in stored.items():
        if name.startswith(model.stacks[0].path) and not name.endswith(".bias"):
            layer = int(name.removeprefix(f"{model.stacks[0].path}.").split(".")[0])
            expected[layer] += float(np.abs(values.astype(np.float64)).sum())
    assert magnitudes(model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_layer_of_zero_weights_is_the_first_to_go_by_magnitude(tiny: Tiny, family: str) -> None:
    model = load_model(tiny(family))
    for parameter in model.layers[2].parameters():
        parameter.data.zero_()
    assert magnitudes(model)[2] == 0
    assert order(FakeProbe(magnitudes(model)), "magnitude", max_drop_layers=1) == [2]


@pytest.mark.parametrize("family", THREE_FAMILIES)
def test_sensitivities_equal_one_full_batch_by_hand_at_any_batch_size(
    tiny: Tiny, sample_files: Files, family: str
) -> None:
    model = load_with_biases(tiny(family))
    samples = read_rows(model, sample_files)
    expected = by_hand(model, samples)
    assert min(expected) > 0
    for batch_size in (7, 64):
        assert sensitivities(model, samples, batch_size) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_sensitive_to_no_weight_of_an_identity(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("llama"))
    model.layers[1].self_attn.o_proj.weight.data.zero_()
    model.layers[1].mlp.down_proj.weight.data.zero_()
    found = sensitivities(model, read_rows(model, sample_files), 16)
    assert found[1] == 0 < min(found[:1] + found[2:])
    assert order(FakeProbe(found, is_labelled=True), "taylor", max_drop_layers=1) == [1]
    assert magnitudes(model)[1] > 0


@pytest.mark.parametrize("breaks", [False, True])
def test_measuring_leaves_gradients_switches_and_config_as_they_were(
    tiny: Tiny, sample_files: Files, breaks: bool
) -> None:
    model = load_model(tiny("bert"))
    samples = read_rows(model, sample_files)
    parameters = list(model.network.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    before = [(p.requires_grad, p.grad) for p in parameters]
    config = model.network.config.to_dict()
    with torch.no_grad():
        if breaks:
            model.layers[2].register_full_backward_hook(lambda *_: pytest.fail("stop here"))
        with pytest.raises(pytest.fail.Exception) if breaks else nullcontext():
            sensitivities(model, samples, 16)
        assert not torch.is_grad_enabled()
    after = [(p.requires_grad, p.grad) for p in parameters]
    assert all(old[0] is new[0] and old[1] is new[1] for old, new in zip(before, after, strict=True))
    assert model.network.config.to_dict() == config
    assert not model.network.training


def test_gradients_are_held_for_the_layers_only(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("bert"))
    seen = set()
    for name, parameter in model.network.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.add(name))
    sensitivities(model, read_rows(model, sample_files), 64)
    assert seen == {f"{model.stacks[0].path}.{name}" for name, _ in model.layers.named_parameters()}


def test_the_angular_distance_of_equal_orthogonal_and_opposite_states_is_0_a_half_and_1() -> None:
    states = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0]])
    assert angular_distance(states[:1], states).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-7)


def test_states_equal_but_for_rounding_are_never_at_no_angle_at_all() -> None:
    states = torch.randn(4, 500, 64, generator=torch.Generator().manual_seed(0))
    found = angular_distance(states, states * (1 / 3))
    assert found.shape == (4, 500)
    assert bool(((found >= 0) & (found < 1e-3)).all())
    assert bool((angular_distance(states, -states) <= 1).all())


def test_the_angular_distance_is_that_of_the_formula() -> None:
    one, other = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    angle = math.acos(one @ other / (one.norm() * other.norm()))
    assert float(angular_distance(one, other)) == pytest.approx(angle / math.pi, rel=1e-5)


def test_the_block_that_turns_least_is_dropped_and_nothing_else() -> None:
    assert sorted(order(TURNS, "angular-distance", max_drop_layers=2)) == [2, 3]
    # As in the source, a longer block need not hold the shorter one.
    assert sorted(order(TURNS, "angular-distance", max_drop_layers=3)) == [2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "block"),
    [({"held": (2,)}, [3, 4]), ({"protect_last": 3}, [1, 2]), ({"protect_first": 4}, [4, 5])],
)
def test_no_block_holds_a_protected_layer(settings: dict[str, object], block: list[int]) -> None:
    assert sorted(order(TURNS, "angular-distance", max_drop_layers=2, **settings)) == block


@pytest.mark.parametrize(
    "settings", [{"protect_first": 5}, {"held": (1, 3, 5)}, {"max_drop_layers": 6}, {"max_drop_layers": 99}]
)
def test_where_no_block_may_go_angular_distance_says_so(settings: dict[str, object]) -> None:
    with pytest.raises(SelectionError, match=r"adjacent layers to drop.* one must stay") as caught:
        order(TURNS, "angular-distance", **{"max_drop_layers": 2, **settings})
    assert "--max-drop-layers" in caught.value.hint


def test_blocks_that_turn_alike_go_from_the_lowest_layer() -> None:
    probe = FakeProbe(distances={1: (0.1,) * 5, 2: (0.3, 0.2, 0.2, 0.2)})
    assert order(probe, "angular-distance", max_drop_layers=2) == [1, 2]


def test_without_a_number_angular_distance_ranks_layers_one_by_one() -> None:
    probe = FakeProbe(distances=TURNS.distances, is_labelled=True)
    assert order(probe, "angular-distance") == [1, 4, 2, 3, 0]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_the_lowest_goes_first_and_of_equals_the_lower_layer(criterion: str) -> None:
    probe = FakeProbe((5.0, 1.0, 3.0, 1.0, 2.0), is_labelled=True)
    assert order(probe, criterion, max_drop_layers=4) == [1, 3, 4, 2]


@pytest.mark.parametrize("ask", [published.angular_distance, published.magnitude, published.taylor])
def test_a_score_is_the_same_in_every_round(ask: Callable[[Round], Scored]) -> None:
    probe = FakeProbe((5.0, 1.0, 3.0, 1.0, 2.0, 4.0), TURNS.distances, is_labelled=True)
    settings = SelectionSettings(max_drop_layers=2)
    first = ask(Round(probe, (), (0, 1, 2, 3, 4, 5), settings)).candidates
    later = ask(Round(probe, (3,), (0, 1, 2, 4, 5), settings)).candidates
    assert later == tuple(candidate for candidate in first if candidate.layer != 3)


def test_taylor_without_labels_says_so() -> None:
    with pytest.raises(SelectionError, match="taylor needs labels"):
        order(FakeProbe((1.0, 2.0)), "taylor", max_drop_layers=1)
