"""Which model types can lose layers: every one in the installed transformers, built tiny and tried.

    python benchmarks/families.py            # print the table, five minutes on one core
    python benchmarks/families.py --write    # and write it to docs/families.md
    python benchmarks/families.py bert t5    # some model types only

A type is built with random weights from a small config, by the first auto class of `CLASSES` that
knows it. For each of its layer stacks that the inputs reach, every layer that may go is skipped in
memory and dropped for good: the outputs must be equal to the bit, and other than the whole model's.
Then two layers are dropped, saved and loaded again: equal to the bit, no weight missing or left over.
Where it generates, greedy tokens with a cache must be those without one, as they are before.
Exit code 1 if a type is broken.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
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
from tqdm import tqdm
from transformers.models.auto import modeling_auto

from tapioca_export.errors import UnsupportedModelError
from tapioca_export.models import LoadedModel, Stack, drop_layers, droppable_layers, find_stacks, skipping
from tapioca_export.models.loading import aligned
from tapioca_export.models.stacks import config_at
from tapioca_export.models.surgery import refuse_dependent_layers

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- begin: python benchmarks/families.py --write -->", "<!-- end -->"
CLASSES = (
    "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM",
    "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "MASKED_LM", "",
)  # fmt: skip
MOST_WEIGHTS = 40_000_000
DEPTH, VOCABULARY, ROWS, TOKENS = 4, 128, 2, 13

# --- small configs --------------------------------------------------------------------------

# What a size is made, by its name in a config. Windows are shorter than the inputs: what was local
# and is not any more, or the other way round, shows.
SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (
            32,
            "hidden_size d_model n_embd dim embed_dim encoder_hidden_size decoder_hidden_size "
            "projection_dim embedding_size hidden_dims word_embed_proj_dim n_embed hidden_channels emb_dim "
            "d_embed encoder_hidden_dim attention_hidden_size codebook_dim dim_model out_hidden_size "
            "lru_width perceiver_hidden_dim text_embed_dim hidden_size_per_layer_input image_size",
        ),
        (
            4,
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "attention_heads num_encoder_attention_heads num_decoder_attention_heads num_experts "
            "num_local_experts n_routed_experts moe_num_experts sliding_window local_attention "
            "attention_chunk_size rotary_dim",
        ),
        (
            2,
            "num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_topk "
            "moe_k router_top_k top_k_experts",
        ),
        (
            64,
            "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner hidden_dim "
            "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size mlp_hidden_size "
            "expert_ffn_hidden_size ffn_hidden_size feed_forward_size intermediate_size_mlp "
            "encoder_intermediate_size dense_intermediate_size moe_shared_expert_intermediate_size "
            "dim_feedforward prefix_dim share_expert_dim",
        ),
        (
            8,
            "head_dim d_kv attention_head_size attention_head_dim qk_nope_head_dim qk_rope_head_dim "
            "v_head_dim mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim "
            "global_head_dim key_length patch_size",
        ),
        (
            16,
            "q_lora_rank kv_lora_rank mamba_d_state ssm_state_size state_size index_head_dim num_mel_bins "
            "input_feat_per_channel",
        ),
        (
            66,
            "max_position_embeddings n_positions max_target_positions max_source_positions n_ctx "
            "max_seq_len max_sequence_length",
        ),
        (VOCABULARY, "vocab_size text_vocab_size vocab_size_per_layer_input"),
        (
            DEPTH,
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth "
            "num_encoder_layers num_decoder_layers encoder_num_layers decoder_num_layers "
            "encoder_num_hidden_layers decoder_num_hidden_layers num_transformer_layers",
        ),
        (1, "n_group topk_group"),
        (0, "num_nextn_predict_layers num_kv_shared_layers"),
    )
    for name in names.split()
}
# Sizes that stay away where a config leaves them out: naming them would switch something on.
SWITCHES = ("intermediate_size_mlp", "sliding_window", "attention_chunk_size", "n_inner",
            "num_kv_shared_layers", "num_nextn_predict_layers", "rotary_dim")  # fmt: skip
NUMBERS_OF_LAYERS = {
    "cross_attention_layers", "deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes",
    "window_block_indices",
}  # fmt: skip
TOKEN_IDS = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
# What else a type needs to be small, or to have layers of all its kinds.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], DEPTH // 2]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "longformer": {"attention_window": [4] * DEPTH},
    "led": {"attention_window": [4] * DEPTH},
}


def small_config(model_type: str) -> Any:
    """Return a small config of a model type.

    Raises:
        Exception: Whatever its class raises at these sizes.
    """
    config_class = transformers.CONFIG_MAPPING[model_type]
    return config_class(**{**_sizes(config_class), **OTHERS.get(model_type, {})})


def _sizes(config_class: Any) -> dict[str, Any]:
    """Return the small sizes of a config class, and those of the configs inside it."""
    default = _default(config_class)
    names = {*vars(default), *inspect.signature(config_class.__init__).parameters}
    names |= set(getattr(config_class, "__dataclass_fields__", {}))
    sizes: dict[str, Any] = {}
    other_names = {name for name, real in getattr(config_class, "attribute_map", {}).items() if name != real}
    for name in names - other_names:
        value = vars(default).get(name)
        if name in TOKEN_IDS and value is not None:
            sizes[name] = TOKEN_IDS[name]
        elif name in SIZES and isinstance(value, (list, tuple)):
            if name in ("image_size", "patch_size"):
                sizes[name] = type(value)([SIZES[name]] * len(value))
        elif name in SIZES and not (value is None and name in SWITCHES):
            sizes[name] = SIZES[name]
    for name in NUMBERS_OF_LAYERS & names:
        if vars(default).get(name):
            sizes[name] = [1, 3]
    heads = vars(default).get("num_attention_heads")
    if heads and heads == vars(default).get("num_key_value_heads"):  # latent attention shares no heads
        sizes["num_key_value_heads"] = SIZES["num_attention_heads"]
    if "mrope_section" in (getattr(config_class, "ignore_keys_at_rope_validation", None) or ()):
        rope = vars(default).get("rope_parameters") or {}
        turned = int(SIZES["head_dim"] * rope.get("partial_rotary_factor", 1) / 2)
        sizes["rope_parameters"] = {**rope, "mrope_section": [turned - turned // 2, turned // 2, 0]}
    for name, inner in (getattr(config_class, "sub_configs", None) or {}).items():
        value = vars(default).get(name)
        if value is not None:
            named = inner is transformers.AutoConfig
            inner = type(value) if named else inner
            sizes[name] = {**_sizes(inner), **({"model_type": inner.model_type} if named else {})}
    depths = {vars(default).get(name) for name in sizes if SIZES.get(name) == DEPTH}
    for name, value in vars(default).items():  # lists with one entry a layer, written out in the class
        is_open = name not in sizes and not name.startswith("_")
        if is_open and isinstance(value, (list, tuple)) and DEPTH < len(value) in depths:
            sizes[name] = list(value)[:DEPTH]
    return sizes


def _default(config_class: Any) -> Any:
    try:
        return config_class()
    except Exception:  # some have no defaults
        return type("Nothing", (), {})()


# --- trying ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of a stack, or of a whole type: its status, and why or how."""

    status: str  # proven, refused, broken, not reached, not tried
    reason: str = ""


class NotTriedError(Exception):
    """The type cannot be tried here, for reasons that are not this project's."""


def model_class(model_type: str) -> Any:
    """Return the class to try, of the first auto class that knows the type; None if there is none."""
    for name in CLASSES:
        names = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES")
        if model_type in names:
            found = names[model_type]
            return getattr(transformers, found if isinstance(found, str) else found[0], None)
    return None


def build(model_type: str) -> Any:
    """Build a tiny random network whose layers all matter.

    Raises:
        NotTriedError: If it cannot be built here.
    """
    chosen = model_class(model_type)
    if chosen is None:
        raise NotTriedError("no auto class of a task")
    try:
        config = small_config(model_type)
        if "is_decoder" in vars(config) and chosen.__name__ in CAUSAL_CLASSES:
            config.is_decoder = True
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in chosen(config).parameters())
        if size > MOST_WEIGHTS:
            raise NotTriedError(f"no small config: {size / 1e6:.0f} million weights")
        torch.manual_seed(0)
        network = chosen(config)
    except NotTriedError:
        raise
    except Exception as error:  # whatever a class raises at sizes it was not made for
        raise NotTriedError(f"no small config: {_line(error)}") from error
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.12)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if network.can_generate():
        network.generation_config.decoder_start_token_id = TOKEN_IDS["decoder_start_token_id"]
    return network.eval()


CAUSAL_CLASSES = frozenset(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def inputs_of(network: Any) -> dict[str, torch.Tensor]:
    """Return a batch for a network.

    Raises:
        NotTriedError: If what it takes is none of texts, images and sounds.
    """
    generator = torch.Generator().manual_seed(0)
    config, taken = network.config, set(inspect.signature(network.forward).parameters)

    def ids() -> torch.Tensor:
        size = min(vars(config.get_text_config()).get("vocab_size") or VOCABULARY, VOCABULARY)
        return torch.randint(5, size - 1, (ROWS, TOKENS), generator=generator)

    def pixels() -> torch.Tensor:
        vision = vars(config).get("vision_config") or config
        side = vars(vision).get("image_size") or SIZES["image_size"]
        side = side if isinstance(side, int) else side[0]
        return torch.randn(ROWS, vars(vision).get("num_channels") or 3, side, side, generator=generator)

    main = network.main_input_name
    if main == "input_ids":
        batch = {"input_ids": ids()}
        # Two encoders side by side take both; what turns images into tokens would want them among the ids.
        if "pixel_values" in taken and not network.can_generate():
            batch["pixel_values"] = pixels()
    elif main == "pixel_values":
        batch = {"pixel_values": pixels()}
    elif main == "input_features":
        bins = vars(config).get("num_mel_bins") or SIZES["num_mel_bins"]
        frames = 2 * (vars(config).get("max_source_positions") or 33)
        batch = {"input_features": torch.randn(ROWS, bins, frames, generator=generator)}
    elif main == "input_values":
        batch = {"input_values": torch.randn(ROWS, 3000, generator=generator)}
    else:
        raise NotTriedError(f"takes {main}, which is none of texts, images and sounds")
    if "decoder_input_ids" in taken and config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids()
    return batch


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
            raise NotTriedError(f"does not run on plain inputs: {_line(error)}") from error
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
    model = LoadedModel(network, None, None, network.config.model_type, stack)  # type: ignore[arg-type]
    reached = _reached(model, batch)
    if not reached:
        return Verdict("not reached", "these inputs do not get to it")
    try:
        refuse_dependent_layers(model)
    except UnsupportedModelError as error:
        return Verdict("refused", error.message)
    layers = [layer for layer in droppable_layers(model) if layer in reached]
    if not layers:
        return Verdict("refused", "its class builds no shorter network of the same layers")
    try:
        for layer in layers:
            if problem := _difference_of_drop(model, [layer], batch, whole):
                return Verdict("broken", f"layer {layer}: {problem}")
        drop = _two(model, layers)
        pruned = drop_layers(model, drop).network
        problem = _difference_of_drop(model, drop, batch, whole) or _difference_of_reload(pruned, batch)
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
                return Verdict("refused", f"transformers does not generate from it: {_line(error)}")
            if not torch.equal(*after):
                return Verdict("broken", f"layers {drop}: a cache changes what is generated")
            said += ", generates"
    except Exception as error:  # whatever breaks is what is looked for
        return Verdict("broken", _line(error))
    return Verdict("proven", said)


def _reached(model: LoadedModel, batch: dict[str, torch.Tensor]) -> set[int]:
    """Return the layers that a forward calls."""
    called: set[int] = set()

    def note(index: int) -> Any:
        def hook(*_: Any) -> None:
            called.add(index)

        return hook

    hooks = [layer.register_forward_hook(note(index)) for index, layer in enumerate(model.stack)]
    outputs_of(model.network, batch)
    for hook in hooks:
        hook.remove()
    return called


def _difference_of_drop(
    model: LoadedModel, drop: Sequence[int], batch: dict[str, torch.Tensor], whole: Sequence[torch.Tensor]
) -> str:
    """Return how dropping layers differs from skipping them, "" if it does not."""
    with skipping(model, drop):
        skipped = outputs_of(model.network, batch)
    dropped = outputs_of(drop_layers(model, drop).network, batch)
    if not are_equal(skipped, dropped):
        return "dropping is not skipping"
    return "dropping changes nothing" if are_equal(skipped, whole) else ""


def _two(model: LoadedModel, layers: Sequence[int]) -> list[int]:
    """Choose two layers to drop so that a layer of every kind is left; one where no two will do."""
    config = vars(config_at(model.network.config, model.place.config))
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


def _line(error: BaseException) -> str:
    text = re.sub(r"0x[0-9a-f]+", "...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:90]}".rstrip(": ")


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


HEAD = ("| model type | stacks |", "| --- | --- |")
STATUSES = ("proven", "refused", "broken", "not reached", "not tried")


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
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    if any(status_of(verdicts) == "broken" for verdicts in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
