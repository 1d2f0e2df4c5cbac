"""What the config of a model says of its layers: how many there are, and what is said of single ones.

Knows neither networks nor transformers' classes: a config is names and values here, as in its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from .errors import UnsupportedModelError

# Config numbers that count layers.
DEPTH_FIELDS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_encoder_layers", "depth",
)  # fmt: skip
# Types whose layers are not blocks of their own; the proof of a checkpoint finds others, later.
DEPENDENT_TYPES = {
    "albert": "its layers share one set of weights",
    "beam": "each layer adds up what all layers below it added to the stream",
    "diffllama": "the difference that attention takes starts from a number of the layer's place",
    "esmc": "what a layer adds is scaled by the number of layers",
    "flaubert": "the parts of a layer stand in lists of their own",
    "hy_v4": "layers attend to the tokens that layers below them chose",
    "minicpm3": "what a layer adds is scaled by the number of layers",
    "pegasus_x": "every second layer of the encoder shifts its blocks",
    "squeezebert": "layers hand on dictionaries, not a residual stream",
    "xlm": "the parts of a layer stand in lists of their own",
}
# Config switches under which layers are no blocks of their own.
DEPENDENT_SWITCHES = {
    "scale_attn_by_inverse_layer_idx": "attention is scaled by the layer's index, which dropping changes",
    "use_weighted_layer_sum": "the head reads a weighted sum of all layers",
    "num_kv_shared_layers": "the last layers use keys and values of layers below",
}
# How a value of a config that says something of single layers says it of those that are kept.
Mend = Callable[[Any, Sequence[int], int], Any]


def _sliced(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Keep the entries of a list with one a layer."""
    if isinstance(value, (list, tuple)) and len(value) == depth:
        return type(value)(value[i] for i in keep)
    return value


def _renumbered(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Give the layers that a list names their new numbers; those that are gone are no longer named."""
    if isinstance(value, (list, tuple)):
        named = {number + depth if number < 0 else number for number in value}
        return type(value)(new for new, old in enumerate(keep) if old in named)
    return value


def _counted(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Count those of the lowest layers that are kept."""
    return sum(layer < value for layer in keep) if isinstance(value, int) else value


def _spelled_out(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Keep the entries of a list that is written as patterns with the times each is repeated."""
    entries = [entry for pattern, times in value for entry in pattern * times]
    return [[[entries[i] for i in keep], 1]]


def outputs_left(value: Any, keep: Sequence[int], depth: int) -> Any:
    """Let the outputs of layers that are gone be those of the next below that are kept.

    Raises:
        UnsupportedModelError: If two outputs would be one, or one would be below all layers.
    """
    found = [
        sum(layer <= (number % depth if number < 0 else number) for layer in keep) - 1 for number in value
    ]
    if -1 in found or len(set(found)) < len(found):
        raise UnsupportedModelError("Layers whose outputs are used apart cannot become one.")
    return type(value)(found)


# Named, not guessed: other lists may have the same length.
PER_LAYER: dict[str, Mend] = {
    # One entry a layer.
    "attention_layers": _sliced,
    "attention_window": _sliced,
    "head_dim": _sliced,
    "indexer_types": _sliced,
    "intermediate_size": _sliced,
    "layer_rope_theta": _sliced,
    "layer_types": _sliced,
    "layers_block_type": _sliced,
    "mlp_layer_types": _sliced,
    "no_rope_layers": _sliced,
    "num_attention_heads": _sliced,
    "num_key_value_heads": _sliced,
    "attention_types": _spelled_out,
    # Numbers of layers.
    "attn_layer_indices": _renumbered,
    "cross_attention_layers": _renumbered,
    "full_attn_idxs": _renumbered,
    "fullatt_block_indexes": _renumbered,
    "global_attn_indexes": _renumbered,
    "mlp_only_layers": _renumbered,
    "moe_layers": _renumbered,
    "rope_scaling_layers": _renumbered,
    "window_block_indices": _renumbered,
    # So many from the bottom.
    "first_k_dense_replace": _counted,
    "max_window_layers": _counted,
    "moe_layer_start_index": _counted,
    "num_dense_layers": _counted,
    # Layers whose outputs are used apart from the last one's.
    "deepstack_visual_indexes": outputs_left,
}


# Of few types a list; where these are null, a class fills in one number for all layers.
_NUMBERS = frozenset({"head_dim", "intermediate_size", "num_attention_heads", "num_key_value_heads"})
# What a class makes more of than it says in the file, or what is refused when it is read.
_OF_CLASSES = frozenset({"auto_map", "per_layer_config", "quantization_config", "stage_names"})


def mended_values(values: Mapping[str, Any], keep: Sequence[int], depth: int) -> dict[str, Any]:
    """Return what else than their number is said of layers, where only those of `keep` are left.

    Raises:
        UnsupportedModelError: If nothing can be said of these.
    """
    found = ((name, mend, values.get(name)) for name, mend in PER_LAYER.items())
    return {name: mend(value, keep, depth) for name, mend, value in found if value is not None}


def mended_text(text: str, keep: Sequence[int], depth: int) -> str | None:
    """Return a config for the layers `keep`, given that of all; all else that it says stays as it is.

    transformers is not imported for that, which would take longer than to cut a graph. What a config as its
    version at hand writes it is mended to is what it would write itself.

    Args:
        text: The config of the whole model.
        keep: Indices of the layers that are left.
        depth: How many layers the whole model has.

    Returns:
        None where only transformers can tell: where other configs are inside it, it counts not these layers
        alone, its class makes more of it than it says or says what it leaves out, its layers are none of
        their own, or a list has as many entries as there are layers, and it is not known what they are.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: If it is no config, or none that can be.
    """
    said: dict[str, Any] = json.loads(text)
    if said.get("model_type") in DEPENDENT_TYPES or any(map(said.get, DEPENDENT_SWITCHES)):
        return None
    counts = [name for name in DEPTH_FIELDS if name in said]
    inner = [value for value in said.values() if isinstance(value, dict) and "model_type" in value]
    unknown = [
        name
        for name, value in said.items()
        if isinstance(value, list) and len(value) == depth and name not in PER_LAYER
    ]
    is_plain = not (inner or unknown or said.get("is_encoder_decoder") or _OF_CLASSES & said.keys())
    if not is_plain or [said[name] for name in counts] != [depth] or not _is_spelled_out(said):
        return None
    mended = {**said, **mended_values(said, keep, depth), counts[0]: len(keep)}
    return json.dumps(mended, indent=2, sort_keys=True) + "\n"


def _is_spelled_out(said: Mapping[str, Any]) -> bool:
    """Tell whether a config says all that its class would say of single layers where it is left out.

    Classes make lists of it by the number of layers: of those that are left they would make others.
    """
    transformers = util.find_spec("transformers")
    models = Path(transformers.origin or "").parent / "models" if transformers else Path()
    names = str(said["model_type"]).replace("-", "_").split("_")
    # A type that is a part of others has its class beside theirs.
    folders = ("_".join(names[:count]) for count in range(len(names), 0, -1))
    found = next(filter(None, (sorted((models / name).glob("configuration_*.py")) for name in folders)), None)
    if found is None:  # a class of somebody's own
        return False
    source = "\n".join(file.read_text(encoding="utf-8") for file in found)
    needed = (name for name in PER_LAYER if re.search(rf"^\s+(self\.|def )?{name}\s*[:=(]", source, re.M))
    return all(said.get(name) is not None or (name in said and name in _NUMBERS) for name in needed)
