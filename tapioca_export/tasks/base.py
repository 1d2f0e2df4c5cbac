"""What every task answers, and the table of tasks.

Shapes: N samples, B rows of a batch, T tokens, P positions where an answer is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..artifacts import Prompting
from ..errors import ConfigError, LoadError, NotFiniteError
from ..registry import Table
from ..samples import GROUP, Row, Samples, group_of
from .asking import Readings
from .changing import divergence, over_read
from .continuing import Continuation
from .dividing import Division, cheapest_starts
from .saving import name_for_older
from .scoring import Scores, averaged

Inputs = dict[str, np.ndarray]
Position = Literal["answer-start", "first-token", "last-token", "mask-token", "mean", "x-positions"]


@dataclass(frozen=True)
class Batch:
    """Rows `indices` of the samples, encoded; the first of `inputs` starts with axis B.

    With `readings`, the network is asked for the probabilities of these tokens only. `num_states` is T
    of the residual stream, once a forward has shown it: images and sounds do not show it themselves.
    """

    indices: np.ndarray
    inputs: Inputs
    readings: Readings | None = None
    continuation: Continuation | None = None
    num_states: int | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.indices)


@dataclass(frozen=True)
class Processor:
    """What a checkpoint or export folder says about inputs and labels.

    `tokenizer` is None for tasks without text; `max_length` is in tokens (or prompt values);
    `position` is where the model's head reads the answer. `extractor` makes arrays of images or sounds;
    where it makes all rows equally long, `fixed_length` is how long. Convolutions that shorten a row are
    `convolutions`, (kernel, stride) each. With `pads_freely`, padding changes no answer.
    """

    folder: str
    position: Position
    max_length: int
    tokenizer: Any = None
    id2label: Mapping[int, str] = field(default_factory=dict)
    extractor: Any = None
    fixed_length: int | None = None
    convolutions: tuple[tuple[int, int], ...] = ()
    pads_freely: bool = True
    # A fast tokenizer keeps the padding and truncation of its last call, and saves them.
    unused_tokenizer: Any = None
    # Answers to one context stand in one sequence, each blind to the others; proven before it is used.
    shares_context: bool = False
    # Texts of other files that say how the model is to be used, by their paths in its folder.
    files: Mapping[str, str] = field(default_factory=dict)
    # Of an encoder-decoder: what `generate` is told, and the tokens that its answers begin with.
    generation_config: Any = None
    prompt: tuple[int, ...] = ()
    # How a decoder's rows become prompts, and the solved examples that stand before each.
    prompting: Prompting = field(default_factory=Prompting)
    solved: tuple[Row, ...] = ()
    # Tokens that its decoder has room for, where `max_length` is of something else.
    max_answer: int | None = None

    def save(self, folder: Path) -> None:
        """Write what the model is used with, as it was loaded: tokenizer or extractor, other files."""
        for part in (self.unused_tokenizer, self.extractor, self.generation_config):
            if part is not None:
                part.save_pretrained(folder)
        name_for_older(folder / "tokenizer_config.json")
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class ProcessorOptions:
    """How to load a processor: safety switches, the user's `--max-length`, and how prompts are made."""

    max_length: int | None = None
    trust_remote_code: bool = False
    local_files_only: bool = False
    prompting: Prompting = field(default_factory=Prompting)


class Task(ABC):
    """One kind of job; a subclass holds nothing but what a model's config says (`for_model`)."""

    name: ClassVar[str]
    optimum_task: ClassVar[str]  # the name by which Optimum's TasksManager knows the auto class
    # Which auto class, where that name stands for several.
    model_class: ClassVar[str | None] = None
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    columns: ClassVar[tuple[str, ...]]
    optional_columns: ClassVar[tuple[str, ...]] = ()
    is_right_or_wrong: ClassVar[bool]  # values are 0 or 1, so that McNemar's test applies
    # The network's outputs that an answer is made of, by the names that transformers gives them.
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    # What no row's value can be better than: it bounds rows not scored yet, so that a search can race.
    # None where the metric is no mean over rows.
    best_value: ClassVar[float | None]
    # Its models generate token by token, and go out with a cache of keys and values.
    generates: ClassVar[bool] = False
    # The batches that are scored show the states that are profiled, so that one pass gives both.
    profiles_while_scoring: ClassVar[bool] = True
    # Where rows are padded, in turn, when a saved file is proven.
    padding_sides: ClassVar[tuple[str, ...]] = ("right", "left")
    # Rows are prompts of (x, y) pairs, all of one length; the model takes shorter ones as well.
    is_prompt: ClassVar[bool] = False
    unit: ClassVar[str] = "tokens"  # of a row's length, in words
    # The stack whose states `readout` reads; None: the last to run.
    answer_stack: ClassVar[str | None] = None
    # Stacks whose sequences are no rows: those of a batch have them in common.
    shared_stacks: ClassVar[tuple[str, ...]] = ()
    # A row has several answers to one context, which could be encoded once.
    has_shared_contexts: ClassVar[bool] = False
    # Its rows are prompts of a decoder, for which templates and solved examples have a meaning.
    has_prompts: ClassVar[bool] = False

    def for_model(self, config: Any) -> Task:
        """Return the task as the model with this config does it, under the same name.

        Heads of one kind of model may answer with a label or with a number: each is a task of its own,
        with one metric and one direction.

        Raises:
            ConfigError: If the model's head does not do the task.
        """
        return self

    def metrics(self) -> Mapping[str, Task]:
        """Return the metrics by which rows can be scored, the default first, and the task with each."""
        return {self.metric: self}

    @abstractmethod
    def load_processor(self, folder: Path | str, config: Any, options: ProcessorOptions) -> Processor:
        """Load what encodes rows for the model in `folder`, with its transformers config."""

    @abstractmethod
    def read_row(self, record: Mapping[str, Any], where: str, processor: Processor) -> Row:
        """Turn one record, its columns already renamed, into a row."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], processor: Processor, padding_side: str | None = None) -> Inputs:
        """Encode rows as one batch, padded to its longest row."""

    @abstractmethod
    def lengths(self, rows: Sequence[Row], processor: Processor) -> list[int]:
        """Return how many tokens (or prompt values) each row has, as the model will read it."""

    @abstractmethod
    def examples(self, processor: Processor) -> list[Inputs]:
        """Return batches for when there are no samples; the first is fit to trace with.

        That is: several rows, one of them padded, and no axis of length one.
        """

    @abstractmethod
    def readout(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Return weights (B, P, T) that read the answer's states off hidden states (B, T, H).

        Of a model with several stacks, these are the states of `answer_stack`.
        """

    def readout_of(self, stack: str, batch: Batch, shape: tuple[int, int]) -> np.ndarray:
        """Return weights that read one state a row off a stack that the head does not read.

        Here: the mean over the real tokens of each row's own sequence; where sequences are no rows (the
        texts of all labels, say), over all of them. A token without weight is taken for padding.

        Args:
            stack: Its name; the head reads `answer_stack`, which is `readout`'s.
            batch: B rows.
            shape: (S, T) of its hidden states (S, T, H).

        Returns:
            Weights (B, S, T); those of a row add up to one.
        """
        mask = batch.inputs.get("attention_mask")
        real = mask if mask is not None and mask.shape == shape else np.ones(shape)
        if stack in self.shared_stacks or shape[0] != len(batch):
            return np.repeat((real / real.sum())[None], len(batch), axis=0).astype(np.float32)
        own = np.eye(len(batch))[:, :, None]  # each row has its own sequence
        weights: np.ndarray = own * (real / real.sum(axis=1, keepdims=True))
        return weights.astype(np.float32)

    def read_tokens(self, batch: Batch, processor: Processor) -> np.ndarray | None:
        """Return which tokens the head reads, (S, T) booleans; None where it reads all."""
        if processor.position == "mean":
            return None
        return np.asarray(self.readout(batch, processor).any(axis=1))

    @abstractmethod
    def score(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray | None = None) -> Scores:
        """Score outputs against the samples' labels.

        Args:
            outputs: What the model says, of shape (N, ...), or of as many rows as `rows` names.
            samples: All rows of a role; what a metric is normalised by is taken over all of them.
            rows: Indices of the samples that the outputs are of, in order (default: all).
        """

    def score_by_domain(self, outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> Scores:
        """Score outputs as `score` does, those of each target domain among the rows of that domain alone."""
        if samples.named is None:
            return self.score(outputs, samples, rows)
        return Scores.joined(
            [
                (inside, self.score(outputs[inside], domain, own))
                for inside, domain, own in samples.domains_of(rows)
            ]
        )

    def answers(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return what the model answers to each of the rows, in words; here: it has none.

        Args:
            outputs: What `score` takes, of as many rows.
            samples: All rows of a role.
            rows: Indices of the samples that the outputs are of, in order.
            processor: What the checkpoint says about labels.
        """
        return [None] * len(rows)

    def answers_by_domain(
        self, outputs: np.ndarray, samples: Samples, rows: np.ndarray, processor: Processor
    ) -> list[str | None]:
        """Return what `answers` does, those of each target domain among the rows of that domain alone."""
        if samples.named is None:
            return self.answers(outputs, samples, rows, processor)
        found: dict[int, str | None] = {}
        for inside, domain, own in samples.domains_of(rows):
            found |= dict(zip(inside, self.answers(outputs[inside], domain, own, processor), strict=True))
        return [found[place] for place in range(len(rows))]

    def judged(self, answer: str) -> str | None:
        """Return what of an answer in words is right or wrong."""
        return answer

    def aggregate(self, values: np.ndarray) -> np.ndarray:
        """Return the metric (...) of the values of N rows, (..., N) or (..., N, k), as `score` has them.

        It is their mean, unless a task says otherwise.
        """
        return np.asarray(values.mean(axis=-1))

    def row_values(self, values: np.ndarray) -> np.ndarray | None:
        """Return what each row is worth alone, (N,), of values as `score` has them; None if no row is."""
        return None if self.best_value is None else averaged(values)

    def exchangeable(self, values: np.ndarray) -> np.ndarray:
        """Return values (N, k) that mean the same whichever model gave them: a test swaps them by rows."""
        return values

    def num_invalid(self, values: np.ndarray) -> int | None:
        """Count the rows whose answer the rule for answers found none in; None where there is no rule."""
        return None

    def output_changes(
        self, before: np.ndarray, after: np.ndarray, batch: Batch, processor: Processor
    ) -> np.ndarray:
        """Return by how much what is said of each profiled row changes, (B,); here: divergence of classes."""
        found = divergence(before, after)
        batch = replace(batch, num_states=before.shape[1])  # sounds that were squeezed are stretched again
        return found if found.ndim == 1 else over_read(found, self.readout(batch, processor))

    @abstractmethod
    def agreement(self, expected: np.ndarray, actual: np.ndarray) -> float:
        """Return the share of rows with the same label; 1.0 where the task has none."""

    def joined(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the network's `outputs` as one array, (B, ...): what is compared and scored."""
        (logits,) = outputs
        return logits

    def axes(self, name: str) -> tuple[str, ...]:
        """Name the axes of an input that may differ from batch to batch, from the first on.

        What does not start with "batch" is the same for all rows of a batch.
        """
        return ("batch", "sequence")

    def cached_lengths(self, inputs: Inputs, processor: Processor) -> tuple[int, int]:
        """Return how many states of an encoder, and how many tokens, are cached amid an answer to a batch."""
        length = next(iter(inputs.values())).shape[1]
        return length, length

    def check_labels(self, samples: Samples) -> None:  # noqa: B027  (most labels will do)
        """Refuse labels that no metric can be computed from."""

    def num_answers(self, samples: Samples) -> int:
        """Return how many sequences a row takes where nothing is shared (the most of any row)."""
        return 1

    def training_inputs(self, batch: Batch, samples: Samples) -> Inputs:
        """Return what the model's own training loss takes beside the inputs of a batch.

        Raises:
            ConfigError: If its loss on a batch is not the mean over the rows of one that fits the task.
        """
        return {"labels": samples.labels[batch.indices]}

    def token_mask(self, inputs: Inputs) -> np.ndarray:
        """Return 1 for real tokens and 0 for padding, shape (B, T)."""
        if "attention_mask" in inputs:
            return inputs["attention_mask"]
        first = next(iter(inputs.values()))
        return np.ones(first.shape[:2], dtype=np.int64)

    def state_mask(self, batch: Batch, processor: Processor) -> np.ndarray:
        """Return 1 for real positions of the hidden states that `readout` reads, 0 for padding, (B, T)."""
        return self.token_mask(batch.inputs)

    def rows(
        self, columns: Mapping[str, str], processor: Processor
    ) -> Callable[[Mapping[str, Any], str], Row]:
        """Return the function that reads a record of a file whose columns may be named otherwise.

        Args:
            columns: This task's name of a column -> the file's.
            processor: What the model says about labels.

        Raises:
            ConfigError: If `columns` names something that the task does not read.
        """
        own = (*self.columns, *self.optional_columns)
        # A column that is something else already is not what rows are counted to.
        known = own if GROUP in columns.values() and GROUP not in columns else (*own, GROUP)
        for name in columns:
            if name not in known:
                raise ConfigError(
                    f"--columns: task {self.name} has no column {name!r}.",
                    f"It has: {', '.join((*own, GROUP))}.",
                )

        def read(record: Mapping[str, Any], where: str) -> Row:
            renamed = {}
            for name in known:
                source = columns.get(name, name)
                if source in record:
                    renamed[name] = record[source]
                elif name in self.columns or name in columns:
                    raise LoadError(
                        f"{where} has no column {source!r}; it has: {', '.join(map(str, record))}.",
                        f"Name it with --columns {name}=...",
                    )
            group = group_of(renamed.pop(GROUP, None), where, GROUP in columns)
            return replace(self.read_row(renamed, where, processor), group=group)

        return read

    def batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode these rows as one batch."""
        return Batch(indices, self.encode([samples.rows[i] for i in indices], processor))

    def profile_batch(self, samples: Samples, indices: np.ndarray, processor: Processor) -> Batch:
        """Encode these rows as one batch whose states are profiled: one sequence a row."""
        return self.batch(samples, indices, processor)

    def compared(self, logits: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Return the logits that mean something, which something saved is held against."""
        return logits

    def evidence(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return, of an exported file's logits, what `score` takes."""
        return logits

    def group(self, row: Row, processor: Processor) -> Hashable:
        """Tell with which rows a row may share a batch: those of the same group."""
        return None

    def batches(
        self, samples: Samples, processor: Processor, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Encode samples (default: all) in batches of similar length: little work goes to padding."""
        for indices in self.length_sorted(samples, processor, batch_size, rows):
            yield self.batch(samples, indices, processor)

    def length_sorted(
        self,
        samples: Samples,
        processor: Processor,
        batch_size: int,
        rows: np.ndarray | None = None,
        division: Division | None = None,
    ) -> list[np.ndarray]:
        """Return the indices of each batch: group after group, the shortest rows of each first.

        Without a `division`, all batches but the last of a group are full.
        """
        groups: dict[Hashable, list[int]] = {}
        for index in range(len(samples)) if rows is None else rows.tolist():
            groups.setdefault(self.group(samples.rows[index], processor), []).append(index)
        found = []
        for group in groups.values():
            lengths = np.asarray(self.lengths([samples.rows[i] for i in group], processor), dtype=np.int64)
            order = np.argsort(lengths, kind="stable")
            if division is None:
                starts = list(range(0, len(order), batch_size))
            else:
                width = 1 if processor.shares_context else self.num_answers(samples)
                starts = cheapest_starts(width * lengths[order], batch_size, division)
            found += [np.asarray(group)[part] for part in np.split(order, starts[1:])]
        return found


TASKS: Table[Task] = Table("task")


def all_rows(samples: Samples, rows: np.ndarray | None) -> np.ndarray:
    """Return the rows that outputs are of: those named, or all."""
    return np.arange(len(samples)) if rows is None else rows


def no_training_loss(name: str) -> ConfigError:
    """Return what is raised where gradients of a fitting loss are not to be had."""
    return ConfigError(f"Criterion taylor is not there for {name}.", "Choose another --criterion.")


def check_finite(outputs: np.ndarray, samples: Samples, rows: np.ndarray) -> None:
    """Refuse outputs that no metric can be computed from.

    Raises:
        NotFiniteError: If one is NaN or infinite; the message names the first such row.
    """
    finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
    if not finite.all():
        raise NotFiniteError("The model's logits are", samples.rows[int(rows[np.argmin(finite)])].where)
