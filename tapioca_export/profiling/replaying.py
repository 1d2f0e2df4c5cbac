"""Forwards of a network with layers skipped, replaying what is below the first that differs.

Batches are outermost: one pass a batch records what the layers return, and a candidate that drops
layer l computes only the layers above l. Memory is one batch times the depth, never the data set.
Knows nothing about which candidates are worth a pass, or why.

Shapes: B rows of a batch, T tokens, H hidden size, L layers of S stacks, L+S boundaries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..artifacts import Choices
from ..errors import NotFiniteError, UnsupportedModelError
from ..memory import give_back_free_memory
from ..models import (
    FAILURES,
    INTACT,
    Change,
    Damped,
    EndOfForward,
    LoadedModel,
    LoadOptions,
    StandIn,
    changes_of,
    damping_weights,
    load_model,
    stand_ins,
    stream_of,
)
from ..samples import Samples
from ..tasks import Batch, Processor, Scores
from .accumulating import norms_of, refuse_not_finite
from .filling import division_on
from .gathering import read_states
from .narrowing import can_narrow, is_same, last_layer, narrowed, rows_of_all_lengths
from .sharing import shares_context
from .stacking import answers_of_stack, stacks_of


@dataclass(frozen=True)
class Work:
    """One batch of rows to score, with `base` and one more of `layers` skipped, or damped: both are choices.

    Without `layers`, the model with `base` alone is scored. If `together`, candidates may share forwards, and
    score as they would alone but for rounding. This is what an engine hands out.
    """

    base: tuple[int, ...]
    layers: tuple[int, ...]
    rows: np.ndarray
    together: bool = False


@dataclass(frozen=True)
class Found:
    """Scores of one `Work`: `values` (candidates, B, ...), `losses` (candidates, B), and what they cost.

    `layer_forwards` counts sequences through one layer, `layer_tokens` their tokens with padding.
    """

    values: np.ndarray
    losses: np.ndarray
    layer_forwards: int
    layer_tokens: int


@dataclass(frozen=True)
class Trace:
    """One forward: its result, what each layer returned, and the residual stream at each boundary.

    A stack's boundaries are one before its first layer and one behind each of its layers.
    """

    answers: np.ndarray | None
    outputs: list[object]
    boundaries: list[torch.Tensor]


@dataclass(frozen=True)
class Shortcuts:
    """What a pass for scores need not do, where it was proven on rows.

    The last layer is narrowed to the tokens `read`, (S, T) booleans. Candidates, each a layer to be dropped,
    go through one forward as far as they have `most_tokens` together.
    """

    read: np.ndarray | None = None
    most_tokens: int = 0


def forwards_of(places: Sequence[StandIn]) -> tuple[int, int]:
    """Return sequences and tokens through layers."""
    return sum(place.num_forwards for place in places), sum(place.num_tokens for place in places)


class Changes:
    """What choices come to on a model: units dropped, or layers damped by their own weights.

    Args:
        model: The network under study.
        scales: What layers may be multiplied by.

    Raises:
        UnsupportedModelError: If there are scales but 0, and a layer cannot be damped.
    """

    def __init__(self, model: LoadedModel, scales: tuple[float, ...] = (0.0,)) -> None:
        self.model, self.choices = model, Choices(model.units, scales)
        layers = range(model.num_layers)
        self._weights = damping_weights(model, layers) if self.choices.damps else {}

    def __call__(self, chosen: Iterable[int]) -> dict[int, Change]:
        """Return what becomes of which layers."""
        scales = {self.choices.unit(choice): self.choices.scale(choice) for choice in chosen}
        return {
            **changes_of(self.model, [unit for unit, scale in scales.items() if not scale]),
            **{layer: Damped(scale, self._weights[layer]) for layer, scale in scales.items() if scale},
        }


class Replayer:
    """Scores batches of one role's rows on one network; the worker of every engine.

    Args:
        model: The network; its stack is the model's own again whenever no batch is being worked on.
        samples: The rows that `Work` names.
        processor: What encodes them (default: found out on the rows).
        changes: What choices come to (default: they are layers to be dropped).
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Samples,
        processor: Processor | None = None,
        changes: Changes | None = None,
    ) -> None:
        self.model = model
        self.changes = changes or Changes(model)
        self.samples = samples
        self.processor = shares_context(model, samples) if processor is None else processor
        self.narrows = samples.is_labelled and can_narrow(model, samples, self.processor)
        self._kinds: dict[type, bool] = {}
        division = division_on(model.device, torch.get_num_threads())
        most_tokens = division.batch_tokens if division else 0
        self.most_tokens = most_tokens if self._can_stack(most_tokens) else 0

    def __call__(self, work: Work) -> Found:
        """Score one batch under every candidate."""
        task = self.model.task
        batch = task.batch(self.samples, work.rows, self.processor)
        most_tokens = self.most_tokens if work.together and not batch.continuation else 0
        scores: dict[int | None, Scores] = {}
        with stand_ins(self.model, self._kinds) as places:
            for key, trace in self._passes(places, batch, work, most_tokens):
                if trace.answers is not None:
                    try:
                        scores[key] = task.score_by_domain(trace.answers, self.samples, work.rows)
                    except NotFiniteError:
                        self._refuse_states(places, work.rows, (*work.base, *([] if key is None else [key])))
                        raise
                del trace  # or this candidate's states are held while those of the next are made
            in_order = [scores[key] for key in work.layers or (None,)]
            found = Found(
                np.stack([score.values for score in in_order]),
                np.stack([score.losses for score in in_order]),
                *forwards_of(places),
            )
        give_back_free_memory()
        return found

    def _passes(
        self, places: Sequence[StandIn], batch: Batch, work: Work, most_tokens: int
    ) -> Iterator[tuple[int | None, Trace]]:
        read = self.model.task.read_tokens(batch, self.processor) if self.narrows else None
        shortcuts = Shortcuts(read, most_tokens)
        return passes(self.model, places, batch, work.base, work.layers, self.changes, shortcuts=shortcuts)

    def _can_stack(self, most_tokens: int) -> bool:
        """Tell whether answers stay the same when candidates go through one forward, on rows of all lengths.

        One joins at the bottom and one just below the last layer: so layers between see a part of what
        was made for both.
        """
        model, samples, task = self.model, self.samples, self.model.task
        choices = self.changes.choices
        whole_layers_go = len(model.stacks) == 1 and not model.branches and not choices.damps
        if not (samples.is_labelled and whole_layers_go and model.num_layers > 2):
            return False
        if 2 * min(task.lengths(samples.rows, self.processor)) > most_tokens:
            return False  # no two rows would ever go together
        rows = rows_of_all_lengths(model, samples, self.processor, 3)
        batch = task.batch(samples, rows, self.processor)
        if batch.continuation:
            return False
        work = Work((), (0, model.num_layers - 2), rows)
        found = []
        for limit in (0, sys.maxsize):
            try:
                with stand_ins(model) as places:
                    traces = [trace for _, trace in self._passes(places, batch, work, limit)]
                found.append([task.score(t.answers, samples, rows) for t in traces if t.answers is not None])
            # What a model makes of several groups is its own affair; numbers that are none are refused later.
            except (UnsupportedModelError, NotFiniteError, *FAILURES):
                return False
        return all(map(is_same, *found))

    def _refuse_states(self, places: Sequence[StandIn], rows: np.ndarray, chosen: Sequence[int]) -> None:
        """Name the layer behind which states are not finite, if there is one.

        Raises:
            NotFiniteError: If there is.
        """
        model = self.model
        batch = model.task.profile_batch(self.samples, rows, self.processor)
        trace = _forward(model, places, batch, self.changes(chosen), {}, keeps=True)
        states, *_ = read_states(model, self.processor, batch, trace.boundaries)
        names = model.units.names([self.changes.choices.unit(choice) for choice in chosen])
        skipped = f", without {', '.join(map(str, names))}," if names else ""
        where = [self.samples.rows[index].where for index in rows]
        refuse_not_finite(norms_of(states), where, model.numbering, skipped)


@dataclass(frozen=True)
class MakeReplayer:
    """Loads the model and returns a replayer of it: what an engine sends to its workers.

    `num_threads` are PyTorch's, in each worker; `scales` are what layers may be multiplied by.
    """

    source: str
    task: str
    options: LoadOptions
    samples: Samples
    num_threads: int
    scales: tuple[float, ...] = (0.0,)

    def __call__(self) -> Replayer:
        """Load the weights here, once."""
        torch.set_num_threads(self.num_threads)
        model = load_model(self.source, self.task, self.options)
        return Replayer(model, self.samples, changes=Changes(model, self.scales))


@torch.no_grad()
def passes(
    model: LoadedModel,
    places: Sequence[StandIn],
    batch: Batch,
    base: Sequence[int],
    layers: Sequence[int],
    changes: Changes | None = None,
    *,
    whole: bool = False,
    shortcuts: Shortcuts | None = None,
) -> Iterator[tuple[int | None, Trace]]:
    """Yield the pass without `base` (key None), then one without each layer too, replayed; both are choices.

    The first pass ends below the highest of `layers`, and then has no answers, unless `whole`. States are
    kept of a pass that is replayed, and of all passes if `whole`.
    """
    changes, shortcuts = changes or Changes(model), shortcuts or Shortcuts()
    choices = changes.choices

    def last_of(chosen: Sequence[int]) -> int:
        return last_layer(model.num_layers, choices.whole(chosen))

    def run(chosen: Sequence[int], below: Mapping[int, object], ends: int | None = None) -> Trace:
        wanted = changes(chosen)
        # What is replayed has to be whole.
        with narrowed(places[last_of(chosen)].layer, shortcuts.read if ends is None else None):
            return _forward(model, places, batch, wanted, below, ends, keeps=whole or ends is not None)

    def run_together(stack: Sequence[int], recorded: Trace) -> list[np.ndarray]:
        of_all = None if shortcuts.read is None else np.tile(shortcuts.read, (len(stack), 1))
        with narrowed(places[last_of(base)].layer, of_all):
            return answers_of_stack(model, places, batch, changes(base), stack, recorded.outputs)

    recorded = run(base, {}, choices.layer_of(max(layers)) if layers and not whole else None)
    yield None, recorded
    stacks: Iterable[tuple[int, ...]] = [(choice,) for choice in layers]
    if shortcuts.most_tokens and layers:
        sequences, tokens = recorded.boundaries[0].shape[:2]
        stacks = stacks_of(layers, last_of(base), shortcuts.most_tokens // (sequences * tokens))
    for stack in stacks:
        if len(stack) > 1:
            for choice, answers in zip(stack, run_together(stack, recorded), strict=True):
                yield choice, Trace(answers, [], [])
            continue
        (choice,) = stack
        below = {index: recorded.outputs[index] for index in range(choices.layer_of(choice))}
        yield choice, run((*base, choice), below)


@torch.no_grad()
def changed_passes(
    model: LoadedModel,
    places: Sequence[StandIn],
    batch: Batch,
    variants: Sequence[Mapping[int, Change]],
) -> Iterator[Trace]:
    """Yield a pass of each variant in turn: all replay the intact one below the lowest layer they change."""
    intact = _forward(model, places, batch, {}, {}, keeps=True)
    for changes in variants:
        if not changes:
            yield intact
            continue
        below = {index: intact.outputs[index] for index in range(min(changes))}
        yield _forward(model, places, batch, changes, below, keeps=True)


def _forward(
    model: LoadedModel,
    places: Sequence[StandIn],
    batch: Batch,
    changes: Mapping[int, Change],
    answers: Mapping[int, object],
    ends: int | None = None,
    *,
    keeps: bool,
) -> Trace:
    """Run the network's own forward, with some layers changed and some answering from a recording."""
    outputs: list[object] = []
    boundaries: list[torch.Tensor] = []
    starts = {layers.start for layers in model.numbering.ranges}

    def see(stream: torch.Tensor, output: object) -> None:
        if len(outputs) in starts:
            boundaries.append(stream)
        boundaries.append(stream_of(output))
        outputs.append(output)

    for index, place in enumerate(places):
        place.answer, place.see = answers.get(index), see if keeps else None
        place.become(changes.get(index, INTACT))
        place.ends = index == ends
    try:
        found = model.read(batch)
        for place in places:  # what is generated from here on was not recorded
            place.answer = place.see = None
        return Trace(model.finished(batch, *found), outputs, boundaries)
    except EndOfForward as end:
        return Trace(None, outputs, boundaries or [end.stream])
