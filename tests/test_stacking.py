"""Candidates that go through one forward score as they would alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALL_FAMILIES, DECODERS, NUM_LAYERS
from test_causal_tasks import ANSWERS, choice_records, make_model, planted_answers, samples_of
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tapioca_export.models import Join, LoadedModel, load_model
from tapioca_export.models.joining import lengths_of
from tapioca_export.profiling import Probe, stacking
from tapioca_export.profiling.replaying import Found, Replayer, Work
from tapioca_export.profiling.stacking import stacks_of
from tapioca_export.samples import Samples, read_samples

Tiny = Callable[[str], Path]
Files = Callable[[str], dict[str, Path]]
LEFT = (0, 1, 3)  # where layer 2 is dropped; the last may go too


@pytest.fixture(
    params=[f"classifies {name}" for name in ALL_FAMILIES] + [f"chooses {name}" for name in DECODERS]
)
def replayer(request: pytest.FixtureRequest, tiny: Tiny, sample_files: Files) -> Replayer:
    task, family = request.param.split()
    if task == "chooses":
        model = make_model(family)
        return Replayer(model, samples_of(model, choice_records(24)))
    model = load_model(tiny(family))
    return Replayer(model, rows_of(model, sample_files(family)["target"]))


def rows_of(model: LoadedModel, path: Path) -> Samples:
    return read_samples(path, model.task.rows({}, model.processor), role="target-select")


def found_by(replayer: Replayer, most_tokens: int, layers: Sequence[int] = LEFT, size: int = 6) -> Found:
    replayer.most_tokens = most_tokens
    return replayer(Work((2,), tuple(layers), np.arange(size), together=True))


def count_forwards(model: LoadedModel, act: Callable[[], object]) -> int:
    calls: list[None] = []
    hook = model.network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        act()
    finally:
        hook.remove()
    return len(calls)


def test_candidates_score_together_as_alone_at_the_same_cost(replayer: Replayer) -> None:
    assert replayer.most_tokens == stacking.THREAD_TOKENS * torch.get_num_threads()
    together = found_by(replayer, replayer.most_tokens)
    alone = found_by(replayer, 0)
    np.testing.assert_array_equal(together.values, alone.values)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-4, atol=1e-5)
    assert len(np.unique(alone.losses[:, 0])) == len(LEFT)  # each candidate says something else
    assert (together.layer_forwards, together.layer_tokens) == (alone.layer_forwards, alone.layer_tokens)


def test_they_go_through_fewer_forwards_and_come_back_in_the_order_that_was_asked(
    tiny: Tiny, sample_files: Files
) -> None:
    model = load_model(tiny("bert"))
    replayer = Replayer(model, rows_of(model, sample_files("bert")["target"]))
    assert count_forwards(model, lambda: found_by(replayer, 0)) == 4
    assert count_forwards(model, lambda: found_by(replayer, 10**6)) == 3  # recorded; 0 and 1; 3, the last
    one, other = (found_by(replayer, 10**6, layers).losses for layers in ((0, 1, 3), (3, 1, 0)))
    np.testing.assert_array_equal(one, other[::-1])


def test_full_scores_are_made_alone(tiny: Tiny, sample_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the pruned model to the bit; a batch of another size rounds otherwise."""
    monkeypatch.setattr(stacking, "THREAD_TOKENS", 10**6)
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["target"])

    def calls(ask: Callable[[Probe], object]) -> int:
        probe = Probe(model, {"id": rows, "target": rows}, batch_size=6)
        probe.metric()  # what is found out on rows is found out here
        return count_forwards(model, lambda: ask(probe))

    layers, all_rows = (0, 1, 2), np.arange(len(rows))
    num_batches = len(Probe(model, {"id": rows, "target": rows}, batch_size=6).length_sorted(rows))
    assert calls(lambda probe: probe.scores((), layers, all_rows)) == 2 * num_batches  # one records
    assert calls(lambda probe: probe.metrics((), layers)) == (1 + len(layers)) * num_batches


def test_no_layer_sees_more_tokens_than_one_batch_may_have(tiny: Tiny, sample_files: Files) -> None:
    model = load_model(tiny("bert"))
    replayer = Replayer(model, rows_of(model, sample_files("bert")["target"]))
    tokens = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[0] * given[0].shape[1]))
        for layer in model.layers
    ]
    replayer.most_tokens = 0
    replayer(Work((), (0, 1, 2), np.arange(6), together=True))
    of_one = max(tokens)
    for times in (1, 2, 3):
        tokens.clear()
        replayer.most_tokens = times * of_one + of_one // 2
        replayer(Work((), (0, 1, 2), np.arange(6), together=True))
        assert max(tokens) == times * of_one
    for hook in hooks:
        hook.remove()


def test_a_candidate_joins_with_what_entered_its_layer(
    tiny: Tiny, sample_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with what left the layer below: some networks do more between two layers."""
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["target"])
    encoder = model.network.bert.encoder

    def forward(stream: torch.Tensor, **more: object) -> BaseModelOutputWithPastAndCrossAttentions:
        for number, layer in enumerate(encoder.layer):
            stream = layer(stream if number != 1 else 2 * stream.flip(-1), more["attention_mask"])
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=stream)

    monkeypatch.setattr(encoder, "forward", forward)
    replayer = Replayer(model, rows)
    assert replayer.most_tokens > 0
    found = []
    for most_tokens in (0, replayer.most_tokens):
        replayer.most_tokens = most_tokens
        found.append(replayer(Work((), (0, 1, 2, 3), np.arange(6), together=True)).losses)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


class Averaging(nn.Module):
    """A layer that looks at the other sequences of its batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: torch.Tensor, **more: object) -> torch.Tensor:
        output: torch.Tensor = self.layer(*given, **more)
        return output - output.mean(dim=0, keepdim=True)


class FirstOnly(nn.Module):
    """A layer with a mask of its own, made for one size of batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.size = layer, 0

    def forward(self, stream: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        self.size = self.size or len(stream)
        output: torch.Tensor = self.layer(stream, *given, **more)
        return output + torch.zeros(self.size, 1, 1)


@pytest.mark.parametrize("kind", [Averaging, FirstOnly])
def test_a_model_whose_sequences_are_not_apart_goes_alone(
    kind: type[nn.Module], tiny: Tiny, sample_files: Files
) -> None:
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["target"])
    assert Replayer(model, rows).most_tokens > 0
    layers = model.layers_of(model.stacks[0])
    layers[NUM_LAYERS - 1] = kind(layers[NUM_LAYERS - 1])
    assert Replayer(model, rows).most_tokens == 0


def test_what_is_generated_or_runs_elsewhere_goes_alone(
    tiny: Tiny, sample_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["target"])
    assert (
        Replayer(model, replace(rows, rows=tuple(replace(row, label=None) for row in rows.rows))).most_tokens
        == 0
    )
    writer = make_model("llama", ANSWERS)
    batch = writer.task.batch(samples := planted_answers(writer, 8), np.arange(8), writer.processor)
    assert (Replayer(writer, samples).most_tokens > 0) == (batch.continuation is None)
    monkeypatch.setattr("tapioca_export.profiling.replaying.division_on", lambda *_: None)
    assert Replayer(model, rows).most_tokens == 0


def test_rows_of_which_no_two_go_together_are_not_tried(
    tiny: Tiny, sample_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny("bert"))
    rows = rows_of(model, sample_files("bert")["target"])
    tried = count_forwards(model, lambda: Replayer(model, rows))
    monkeypatch.setattr(stacking, "THREAD_TOKENS", 1)
    replayers: list[Replayer] = []
    assert count_forwards(model, lambda: replayers.append(Replayer(model, rows))) < tried
    assert replayers[0].most_tokens == 0


def test_stacks_are_even_and_who_drops_the_last_layer_goes_alone() -> None:
    assert list(stacks_of((4, 0, 2, 1, 3, 5, 6, 7), 7, 6)) == [(0, 1, 2), (3, 4, 5, 6), (7,)]
    assert list(stacks_of((0, 1, 2), 7, 0)) == [(0,), (1,), (2,)]
    assert list(stacks_of((7,), 7, 5)) == [(7,)]
    assert list(stacks_of((), 7, 5)) == []


def test_only_what_grew_with_the_batch_is_cut() -> None:
    """Of three groups of two sequences, two have joined; a table of six positions is no batch of six."""
    table, mask, shared, slopes = torch.rand(6, 3), torch.rand(2, 1, 5, 5), torch.rand(1, 5), torch.rand(8, 1)
    lengths = lengths_of(((table, None), {"mask": mask, "shared": [shared], "slopes": slopes}))
    join = Join(size=2, num_groups=3, num_below=2)
    grown, of_heads = torch.cat([mask] * 3), torch.cat([slopes] * 3)
    given = ((table, None), {"mask": grown, "shared": [shared], "slopes": of_heads})
    (found_table, nothing), found = join.given(given, lengths)
    assert found_table is table
    assert nothing is None
    assert torch.equal(found["mask"], grown[:4])
    assert found["shared"][0] is shared
    assert torch.equal(found["slopes"], of_heads[:16])  # a row for each of four heads
    assert join.given(nine := torch.rand(9), 3) is nine  # three are no two sequences, whatever grew
