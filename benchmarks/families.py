"""Which model types can lose layers: every one in the installed transformers, built tiny and tried.

    python benchmarks/families.py            # print the table, a few minutes on one core
    python benchmarks/families.py --write    # and write it to docs/families.md
    python benchmarks/families.py bert t5    # some model types only

A type is built with random weights from a small config, by the first auto class that knows it
(`tiny_networks.py`). For each of its layer stacks that the inputs reach, every layer that may go is
skipped in memory and dropped for good: the outputs must be equal to the bit, and other than the whole
model's. Then two layers are dropped, saved and loaded again: equal to the bit, no weight missing or
left over. Where it generates, greedy tokens with a cache must be those without one, as they are before.
Exit code 1 if a type is broken.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from recording import put_between
from tiny_networks import NotTriedError, build, inputs_of, one_line
from tqdm import tqdm

from tapioca_export.errors import UnsupportedModelError
from tapioca_export.models import LoadedModel, Stack, drop_layers, droppable_layers, find_stacks, skipping
from tapioca_export.models.loading import aligned
from tapioca_export.models.stacks import config_at
from tapioca_export.models.surgery import refuse_dependent_layers

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
HEAD = ("| model type | stacks |", "| --- | --- |")
STATUSES = ("proven", "refused", "broken", "not reached", "not tried")
BEGIN, END = "<!-- begin: python benchmarks/families.py --write -->", "<!-- end -->"

# --- trying ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a stack, or of a whole type: its status, and why or how."""

    status: str  # proven, refused, broken, not reached, not tried
    reason: str = ""


@torch.no_grad()
def outputs_of(network: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return what a network computes; tuples with an entry a layer are left out."""
    takes_cache = "use_cache" in inspect.signature(network.forward).parameters
    options = {"use_cache": False} if takes_cache or vars(network.config).get("use_cache") is not None else {}
    torch.manual_seed(0)

    def tensors(value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from tensors(inner)

    found = network(**batch, **options)
    return list(tensors(dict(found) if isinstance(found, dict) else dict(enumerate(found))))


def are_equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    """Tell whether outputs are equal to the bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def tokens_of(network: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return greedy tokens with a cache, then without."""
    asked = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    first = {network.main_input_name: batch[network.main_input_name]}
    return [network.generate(**first, **asked, use_cache=cached) for cached in (True, False)]


def has_own_round_trip(network: Any, batch: dict[str, torch.Tensor]) -> bool:
    """Tell whether transformers itself saves the whole network and loads it as it was."""
    try:
        return not _difference_of_reload(copy.deepcopy(network), batch)  # saving writes into a config
    except Exception:  # whatever its class raises
        return False


def _difference_of_reload(network: Any, batch: dict[str, torch.Tensor]) -> str:
    """Save and load a network; return what is different, "" if nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        again, info = type(network).from_pretrained(folder, output_loading_info=True)
        if wrong := {kind: sorted(map(str, found))[:2] for kind, found in info.items() if found}:
            return f"reloads with {wrong}"
        same = are_equal(outputs_of(aligned(again).eval(), batch), outputs_of(network, batch))
    return "" if same else "reloads as another model"


def try_type(model_type: str) -> dict[str, Verdict]:
    """Try a model type; returns a verdict a stack, or one named "" for the whole type."""
    try:
        network = build(model_type)
        batch = inputs_of(network)
        try:
            whole = outputs_of(network, batch)
        except Exception as error:  # whatever it raises on inputs that it was not made for
            raise NotTriedError(f"does not run on plain inputs: {one_line(error)}") from error
        if not all(bool(value.isfinite().all()) for value in whole):
            raise NotTriedError("random weights overflow")
        if not are_equal(whole, outputs_of(network, batch)):
            raise NotTriedError("computes something else each time")
        stacks = find_stacks(network)
        if stacks and not has_own_round_trip(network, batch):
            raise NotTriedError("transformers does not reload the whole model as it was")
    except NotTriedError as error:
        return {"": Verdict("not tried", str(error))}
    if not stacks:
        return {"": Verdict("refused", "no list of layers that the config counts")}
    return {stack.name: try_stack(network, stack, batch, whole) for stack in stacks}


def try_stack(
    network: Any, stack: Stack, batch: dict[str, torch.Tensor], whole: Sequence[torch.Tensor]
) -> Verdict:
    """Try one stack: each layer that may go, then two of them saved and loaded."""
    model = LoadedModel(network, None, None, network.config.model_type, (stack,))  # type: ignore[arg-type]
    reached = _reached(model, batch)
    if not reached:
        return Verdict("not reached", "these inputs do not get to it")
    try:
        refuse_dependent_layers(model)
    except UnsupportedModelError as error:
        return Verdict("refused", error.message)
    try:
        layers = [layer for layer in droppable_layers(model) if layer in reached]
        if not layers:
            return Verdict("refused", "its class builds no shorter network of the same layers")
        for layer in layers:
            pruned = drop_layers(model, [layer]).network
            if problem := _difference_of_drop(model, [layer], pruned, batch, whole):
                return Verdict("broken", f"layer {layer}: {problem}")
        drop = _two(model, layers)
        pruned = drop_layers(model, drop).network
        problem = _difference_of_drop(model, drop, pruned, batch, whole)
        problem = problem or _difference_of_reload(pruned, batch)
        if problem:
            return Verdict("broken", f"layers {drop}: {problem}")
        said = f"{len(layers)} of {model.num_layers} layers can go"
        try:
            before = tokens_of(network, batch) if network.can_generate() else []
        except Exception:  # needs more to generate than to be run
            before = []
        if before and torch.equal(*before):
            try:
                after = tokens_of(pruned, batch)
            except Exception as error:  # the class does not take a config that it was built from
                return Verdict("refused", f"transformers does not generate from it: {one_line(error)}")
            if not torch.equal(*after):
                return Verdict("broken", f"layers {drop}: a cache changes what is generated")
            said += ", generates"
    except Exception as error:  # whatever breaks is what is looked for
        return Verdict("broken", one_line(error))
    return Verdict("proven", said)


def _reached(model: LoadedModel, batch: dict[str, torch.Tensor]) -> set[int]:
    """Return the layers that a forward calls."""
    called: set[int] = set()

    def note(index: int) -> Any:
        def hook(*_: Any) -> None:
            called.add(index)

        return hook

    hooks = [layer.register_forward_hook(note(index)) for index, layer in enumerate(model.layers)]
    try:
        outputs_of(model.network, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _difference_of_drop(
    model: LoadedModel,
    drop: Sequence[int],
    pruned: Any,
    batch: dict[str, torch.Tensor],
    whole: Sequence[torch.Tensor],
) -> str:
    """Return how dropping layers differs from skipping them, "" if it does not."""
    with skipping(model, drop):
        skipped = outputs_of(model.network, batch)
    if not are_equal(skipped, outputs_of(pruned, batch)):
        return "dropping is not skipping"
    return "dropping changes nothing" if are_equal(skipped, whole) else ""


def _two(model: LoadedModel, layers: Sequence[int]) -> list[int]:
    """Choose two layers to drop so that a layer of every kind is left; one where no two will do."""
    config = vars(config_at(model.network.config, model.stacks[0].config))
    kinds = config.get("layer_types") or config.get("layers_block_type") or [None] * model.num_layers
    for pair in itertools.combinations(layers, 2):
        left = [kind for index, kind in enumerate(kinds) if index not in pair]
        if len(left) and set(left) == set(kinds) and droppable_together(model, pair):
            return list(pair)
    return [layers[0]]


def droppable_together(model: LoadedModel, drop: Sequence[int]) -> bool:
    """Tell whether layers that can go one by one can go together."""
    try:
        drop_layers(model, drop)
    except UnsupportedModelError:
        return False
    return True


# --- the table ------------------------------------------------------------------------------


def status_of(verdicts: dict[str, Verdict]) -> str:
    """Return the status of a type: the worst of its stacks."""
    order = ("broken", "refused", "not tried", "not reached", "proven")
    found = {verdict.status for verdict in verdicts.values()}
    return next(status for status in order if status in found)


def try_all(model_types: Sequence[str]) -> dict[str, dict[str, Verdict]]:
    """Try model types, alphabetically."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tqdm(sorted(model_types), disable=None, leave=False) as bar:
        found = {}
        for model_type in bar:
            bar.set_postfix_str(model_type)
            found[model_type] = try_type(model_type)
    return found


def markdown(found: dict[str, dict[str, Verdict]]) -> str:
    """Return the table of what was found."""
    counts = Counter(map(status_of, found.values()))
    lines = [
        f"transformers {transformers.__version__}, {len(found)} model types: "
        + ", ".join(f"{counts[status]} {status}" for status in STATUSES),
    ]
    for status in STATUSES:
        chosen = {name: verdicts for name, verdicts in found.items() if status_of(verdicts) == status}
        if not chosen:
            continue
        lines += ["", f"### {status.capitalize()}", "", *HEAD]
        for name, verdicts in chosen.items():
            cells = [
                f"{stack + ': ' if stack else ''}"
                f"{'' if verdict.status == status else verdict.status + ', '}{verdict.reason}"
                for stack, verdict in verdicts.items()
            ]
            lines.append(f"| {name} | {'; '.join(cells).replace('|', '/')} |")
    return "\n".join(lines)


def rows_of(table: str) -> dict[str, tuple[str, str]]:
    """Return what a table says of each model type: its status and the rest of its row."""
    found, status = {}, ""
    for line in table.splitlines():
        if line.startswith("### "):
            status = line.removeprefix("### ").lower()
        elif line.startswith("| ") and line not in HEAD:
            _, name, said, _ = (cell.strip() for cell in line.split("|"))
            found[name] = (status, said)
    return found


@click.command(help=__doc__)
@click.argument("model_types", nargs=-1)
@click.option("--write", is_flag=True, help=f"Write the table into {PAGE.name}.")
def main(model_types: tuple[str, ...], write: bool) -> None:
    """Try the model types and print the table."""
    found = try_all(model_types or tuple(transformers.CONFIG_MAPPING))
    table = markdown(found)
    click.echo(table)
    if write and not model_types:
        put_between(PAGE, BEGIN, END, table)
    if any(status_of(verdicts) == "broken" for verdicts in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
