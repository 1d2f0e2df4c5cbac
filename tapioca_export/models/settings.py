"""Prove what stands beside weights or a graph: its config, what encodes inputs, and what names labels.

Logits say nothing of either: they are compared on inputs that are encoded already, and have no names. Classes
of configs and tokenizers save themselves, each in its own way, and what was saved is what others load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LoadError, UnsupportedModelError
from ..tasks import Processor, random_texts
from .loaded import LoadedModel, LoadOptions
from .loading import load_config, load_processor

_HINT = "Do not use the folder, and report the family."


def prove_settings(folder: Path, model: LoadedModel, config: Any) -> None:
    """Read config, tokenizer and the like back, and hold them against what was meant.

    Args:
        folder: Holds them.
        model: Whose inputs and labels are meant.
        config: The config that was saved there.

    Raises:
        UnsupportedModelError: If they are others, or cannot be read.
    """
    prove_config(folder, config)
    if model.processor.tokenizer is None and model.processor.extractor is None:
        return  # rows are numbers, and outputs have no names
    options = LoadOptions(trust_remote_code=model.trust_remote_code, local_files_only=True)
    try:
        found = load_processor(model.task, folder, load_config(folder, options), options)
    except LoadError as error:
        raise UnsupportedModelError(f"What was saved cannot be read: {error.message}", _HINT) from error
    if what := _difference(model.processor, found):
        raise UnsupportedModelError(f"What was saved has other {what} than {model.source}.", _HINT)


def prove_config(folder: Path, config: Any) -> None:
    """Hold a folder's config.json against what was saved there.

    Raises:
        UnsupportedModelError: Naming a field that is another.
    """
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    meant = json.loads(config.to_json_string())
    if other := sorted(name for name in said.keys() | meant.keys() if said.get(name) != meant.get(name)):
        raise UnsupportedModelError(
            f"config.json is not what was saved: {other[0]} is {said.get(other[0])!r}, "
            f"not {meant.get(other[0])!r}.",
            _HINT,
        )


def _difference(one: Processor, other: Processor) -> str | None:
    """Return what two processors differ by, in words; None where there is nothing."""
    if one.id2label != other.id2label:
        return f"labels ({other.id2label})"
    if one.tokenizer is not None and other.tokenizer is not None:
        if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
            return "token ids"
        texts = [text for batch in random_texts(one) for text in batch]
        if one.tokenizer(texts)["input_ids"] != other.tokenizer(texts)["input_ids"]:
            return "tokens for the same texts"
        special = (part.tokenizer.special_tokens_map for part in (one, other))
        if len({json.dumps(tokens, sort_keys=True, default=str) for tokens in special}) > 1:
            return "special tokens"
    if one.extractor is not None and one.extractor.to_dict() != other.extractor.to_dict():
        return "settings for images or sound"
    return "files of its own" if one.files != other.files else None
