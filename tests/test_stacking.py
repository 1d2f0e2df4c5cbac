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
from test_written_answers import asked, written
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from tapioca_export.artifacts import Ledger
from tapioca_export.models import Join, LoadedModel, load_model
from tapioca_export.models.joining import lengths_of
from tapioca_export.profiling import Probe, filling
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


@pytest.fixture
def bert(tiny: Tiny, sample_files: Files) -> Replayer:
    model = load_model(tiny("bert"))
    return Replayer(model, rows_of(model, sample_files("bert")["target"]))


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
    assert replayer.most_tokens == filling.THREAD_TOKENS * torch.get_num_threads()
    together = found_by(replayer, replayer.most_tokens)
    alone = found_by(replayer, 0)
    np.testing.assert_array_equal(together.values, alone.values)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-4, atol=1e-5)
    assert len(np.unique(alone.losses[:, 0])) == len(LEFT)  # each candidate says something else
    assert (together.layer_forwards, together.layer_tokens) == (alone.layer_forwards, alone.layer_tokens)


def test_they_go_through_fewer_forwards_and_come_back_in_the_order_that_was_asked(bert: Replayer) -> None:
    assert count_forwards(bert.model, lambda: found_by(bert, 0)) == 4
    assert count_forwards(bert.model, lambda: found_by(bert, 10**6)) == 3  # recorded; 0 and 1; 3, the last
    one, other = (found_by(bert, 10**6, layers).losses for layers in ((0, 1, 3), (3, 1, 0)))
    np.testing.assert_array_equal(one, other[::-1])


def test_full_scores_are_made_alone(bert: Replayer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the pruned model to the bit; a batch of another size rounds otherwise."""
    monkeypatch.setattr(filling, "THREAD_TOKENS", 10**6)
    rows = bert.samples
    probe = Probe(bert.model, {"id": rows, "target": rows}, batch_size=6)
    probe.metric()  # what is found out on rows is found out here

    def calls(act: Callable[[], object]) -> int:
        return count_forwards(bert.model, act)

    layers, all_rows, num_batches = (0, 1, 2), np.arange(len(rows)), len(probe.length_sorted(rows))
    assert calls(lambda: probe.scores((), layers, all_rows)) == 2 * num_batches  # one records
    probe.ledger = Ledger()
    assert calls(lambda: probe.metrics((), layers)) == (1 + len(layers)) * num_batches


def test_no_layer_sees_more_tokens_than_one_batch_may_have(bert: Replayer) -> None:
    tokens = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[0] * given[0].shape[1]))
        for layer in bert.model.layers
    ]
    bert.most_tokens = 0
    bert(Work((), (0, 1, 2), np.arange(6), together=True))
    of_one = max(tokens)
    for times in (1, 2, 3):
        tokens.clear()
        bert.most_tokens = times * of_one + of_one // 2
        bert(Work((), (0, 1, 2), np.arange(6), together=True))
        assert max(tokens) == times * of_one
    for hook in hooks:
        hook.remove()


def test_a_candidate_joins_with_what_entered_its_layer(
    bert: Replayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with what left the layer below: some networks do more between two layers."""
    encoder = bert.model.network.bert.encoder

    def forward(stream: torch.Tensor, **more: object) -> BaseModelOutputWithPastAndCrossAttentions:
        for number, layer in enumerate(encoder.layer):
            stream = layer(stream if number != 1 else 2 * stream.flip(-1), more["attention_mask"])
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=stream)

    monkeypatch.setattr(encoder, "forward", forward)
    replayer = Replayer(bert.model, bert.samples)
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
def test_a_model_whose_sequences_are_not_apart_goes_alone(kind: type[nn.Module], bert: Replayer) -> None:
    assert bert.most_tokens > 0
    layers = bert.model.layers_of(bert.model.stacks[0])
    layers[NUM_LAYERS - 1] = kind(layers[NUM_LAYERS - 1])
    assert Replayer(bert.model, bert.samples).most_tokens == 0


def test_what_has_no_labels_or_is_written_or_runs_elsewhere_goes_alone(
    bert: Replayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = tuple(replace(row, label=None) for row in bert.samples.rows)
    assert Replayer(bert.model, replace(bert.samples, rows=unlabelled)).most_tokens == 0
    assert not count_forwards(
        bert.model, lambda: Replayer(bert.model, replace(bert.samples, rows=unlabelled))
    )
    reader, writer = make_model("llama", ANSWERS), written("llama")
    assert Replayer(reader, planted_answers(reader, 8)).most_tokens > 0
    assert Replayer(writer, asked(writer, 8)[0]).most_tokens == 0
    monkeypatch.setattr("tapioca_export.profiling.replaying.division_on", lambda *_: None)
    assert Replayer(bert.model, bert.samples).most_tokens == 0


def test_rows_of_which_no_two_go_together_are_not_tried(
    bert: Replayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayers: list[Replayer] = []

    def make() -> None:
        replayers.append(Replayer(bert.model, bert.samples))

    tried = count_forwards(bert.model, make)
    monkeypatch.setattr(filling, "THREAD_TOKENS", 1)
    assert count_forwards(bert.model, make) < tried
    assert [replayer.most_tokens > 0 for replayer in replayers] == [True, False]


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
