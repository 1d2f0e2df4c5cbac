"""Tokenizers and texts: what tasks that read text have in common.

Knows nothing about labels, answers or metrics.
"""

from __future__ import annotations

import copy
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, LoadError, first_line
from .base import Position, Processor, ProcessorOptions

# Model types whose positions start after the padding id, so that the last ones are never used.
POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
NO_LIMIT_KNOWN = 512


def require_text(text: Any, name: str, where: str) -> str:
    """Return the text, if it is one.

    Raises:
        LoadError: If it is something else, empty, or holds what is no character.
    """
    if text is not None and not isinstance(text, str):
        raise LoadError(f"{where}: {name} is {type(text).__name__}, not a text.")
    if text is None or not text.strip():
        raise LoadError(f"{where}: {name} is empty.", "Remove the row or fill it in.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LoadError(
            f"{where}: {name} holds half a surrogate pair at character {error.start}.",
            "Write the text with ordinary UTF-8 characters.",
        ) from error
    return text


def content_of(text: str) -> str:
    """Return what makes two texts the same: no case, spacing, punctuation or composition."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC") or text


def load_processor(
    folder: Path | str,
    config: Any,
    options: ProcessorOptions,
    position: Position,
    *,
    least: int | None = None,
    needs_padding: bool = True,
) -> Processor:
    """Load what encodes texts.

    Args:
        folder: A local folder, or a name on the hub.
        config: The model's config.
        options: Safety switches, and the longest input in tokens.
        position: Where the model's head reads the answer.
        least: The fewest tokens of an input (default: one, and the special ones).
        needs_padding: The model has to know padding by its token; the attention mask is not enough.

    Raises:
        LoadError: If there is no tokenizer, or none that can pad or that fits the model.
        ConfigError: If `--max-length` is out of the model's range.
    """
    tokenizer = load_tokenizer(folder, config, options, needs_padding=needs_padding)
    limit = min(tokenizer.model_max_length, num_positions(config))
    least = least or tokenizer.num_special_tokens_to_add(pair=False) + 1
    if options.max_length is not None and not least <= options.max_length <= limit:
        raise ConfigError(
            f"--max-length {options.max_length} is outside {least}..{limit}, the model's range."
        )
    return Processor(
        folder=str(folder),
        position=position,
        max_length=options.max_length or limit,
        tokenizer=tokenizer,
        unused_tokenizer=copy.deepcopy(tokenizer),
        id2label={int(i): str(label) for i, label in config.id2label.items()},
    )


def load_tokenizer(
    folder: Path | str, config: Any, options: ProcessorOptions, *, needs_padding: bool = True
) -> Any:
    """Load a checkpoint's tokenizer.

    Args:
        folder: A local folder, or a name on the hub.
        config: The model's config.
        options: Safety switches.
        needs_padding: The model has to know padding by its token; the attention mask is not enough.

    Raises:
        LoadError: If there is none, or one that cannot pad or does not fit the model.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder),
            trust_remote_code=options.trust_remote_code,
            local_files_only=options.local_files_only,
        )
    except Exception as error:  # tokenizers raises Exception itself; other files, whatever breaks
        raise LoadError(
            f"No tokenizer can be loaded from {folder}: {first_line(error)}",
            "Save the tokenizer beside the model (tokenizer.save_pretrained).",
        ) from error
    longest = tokenizer.model_max_length
    if not isinstance(longest, (int, float)) or not longest >= 1:
        raise LoadError(
            f"The tokenizer of {folder} takes {longest!r} tokens at most (model_max_length).",
            "Mend tokenizer_config.json.",
        )
    ids = set(tokenizer.get_vocab().values())
    if ids <= set(tokenizer.all_special_ids):
        # Without files, transformers makes an empty tokenizer: every word would be unknown.
        raise LoadError(
            f"No tokenizer can be loaded from {folder}: it has no vocabulary.",
            "Save the tokenizer beside the model (tokenizer.save_pretrained).",
        )
    if max(ids) >= getattr(config, "vocab_size", np.inf):
        raise LoadError(
            f"The tokenizer of {folder} has token ids up to {max(ids)}, "
            f"the model embeds {config.vocab_size} only.",
            "Save the tokenizer that the model was trained with.",
        )
    if needs_padding and (tokenizer.pad_token_id is None or config.pad_token_id is None):
        raise LoadError(
            f"The tokenizer or the config of {folder} has no padding token, needed for batches.",
            "Set tokenizer.pad_token and config.pad_token_id, and save both.",
        )
    return tokenizer


def load_generation_config(
    folder: Path | str, config: Any, options: ProcessorOptions, *, starts: bool = False
) -> Any:
    """Load what `generate` is told; a folder without it has it in the config.

    Args:
        folder: A local folder, or a name on the hub.
        config: The model's config.
        options: Safety switches.
        starts: Fill in what a decoder begins with, as `generate` does for an encoder-decoder.

    Raises:
        LoadError: If it cannot be read.
    """
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(str(folder), local_files_only=options.local_files_only)
    except OSError:
        found = GenerationConfig.from_model_config(config)
    except Exception as error:  # whatever its values break
        raise LoadError(
            f"generation_config.json of {folder} cannot be read: {first_line(error)}.", "Mend it."
        ) from error
    for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id"):
        value = getattr(found, name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise LoadError(f"generation_config.json of {folder} has a {name} that is no token.", "Mend it.")
    if starts:
        start = found.decoder_start_token_id
        start = getattr(config, "decoder_start_token_id", None) if start is None else start
        found.decoder_start_token_id = found.bos_token_id if start is None else start
    return found


def ends_of(generation_config: Any) -> tuple[int, ...]:
    """Return the tokens that end what is generated."""
    ends = generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def num_positions(config: Any) -> int:
    """Return how many tokens the model can place."""
    num_positions = int(getattr(config, "max_position_embeddings", None) or NO_LIMIT_KNOWN)
    if config.model_type in POSITIONS_AFTER_PADDING:
        num_positions -= config.pad_token_id + 1
    return num_positions


def random_texts(processor: Processor) -> list[list[str]]:
    """Return random words of the tokenizer's vocabulary: a batch of short, then one of long texts."""
    generator = np.random.default_rng(0)
    tokenizer = processor.tokenizer
    batches = []
    for lengths in ((8, 4), (33, 5, 17)):
        words = (generator.integers(0, len(tokenizer), size) for size in lengths)
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in words]
        batches.append([text.strip() or "a b c" for text in texts])
    return batches


def weights_at(position: Position, mask: np.ndarray) -> np.ndarray:
    """Return weights (B, 1, T) that read the first or the last real token, or the mean of all.

    Args:
        position: "first-token", "last-token" or "mean".
        mask: 1 for real tokens, 0 for padding, (B, T).
    """
    mask = mask.astype(np.float32)
    num_rows, num_tokens = mask.shape
    if position == "mean":
        return np.expand_dims(mask / mask.sum(axis=1, keepdims=True), axis=1)
    weights = np.zeros((num_rows, 1, num_tokens), dtype=np.float32)
    first = mask.argmax(axis=1)
    last = num_tokens - 1 - mask[:, ::-1].argmax(axis=1)
    weights[np.arange(num_rows), 0, first if position == "first-token" else last] = 1.0
    return weights
