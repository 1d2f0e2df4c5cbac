"""Rows -> what a decoder reads: templates, conversations, and solved examples in front.

A template makes the prompt of any columns of a row. Solved examples, the same for every row, stand
before it, joined by blank lines; or, with a chat template, as turns of the conversation. Knows nothing
about answers and how they are scored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Prompting
from ..errors import ConfigError, LoadError, first_line
from ..samples import Row, check_exists, read_records
from .base import Processor
from .tokenizing import require_text

# A column that holds a whole conversation, in place of a prompt.
MESSAGES = "messages"
Message = Mapping[str, str]
LARGEST = 1 << 20  # what a template may multiply
# What a row asks: a text, or a conversation.
Prompt = str | tuple[Message, ...]


# --- what the user asks for -----------------------------------------------------------------


def load_prompting(
    template: str | None, chat: bool, few_shot: Path | None, num_fewshot: int | None, seed: int
) -> Prompting:
    """Read the template, and draw the solved examples.

    Args:
        template: A Jinja template, or the path of a file that holds one.
        chat: Whether prompts go through the tokenizer's chat template.
        few_shot: A sample file.
        num_fewshot: How many of its rows to draw.
        seed: Draws them, and their order.

    Raises:
        ConfigError: If the template is no Jinja, or names no column.
        LoadError: If a file cannot be read, or has too few rows.
    """
    text = None if template is None else _template_text(template)
    shots = () if few_shot is None else _draw(few_shot, num_fewshot or 1, seed)
    return Prompting(text, chat, shots)


def _template_text(template: str) -> str:
    """Return the text of a template that is given as such, or by its file.

    Raises:
        ConfigError: If it is neither.
        LoadError: If the file cannot be read.
    """
    text = template
    if "{" not in template:  # a text without is a template of nothing
        try:
            text = Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LoadError(
                f"Cannot read --prompt-template {template}: {first_line(error)}.",
                "Name a file, or write a template such as 'Question: {{question}}'.",
            ) from error
    try:
        _compiled(text)
    except Exception as error:  # besides errors of syntax, whatever a nested or huge one breaks
        raise ConfigError(f"--prompt-template is malformed: {first_line(error)}") from error
    return text


def _draw(path: Path, count: int, seed: int) -> tuple[str, ...]:
    """Draw records of a sample file, as JSON.

    Raises:
        LoadError: If there are too few, or one holds what JSON cannot.
    """
    check_exists(path)
    records = list(read_records(path))
    if len(records) < count:
        raise LoadError(f"{path} has {len(records)} rows, --num-fewshot asks for {count}.")
    chosen = np.random.default_rng(seed).choice(len(records), count, replace=False)
    shots = []
    for record, where in (records[i] for i in chosen):
        try:
            shots.append(json.dumps(record, ensure_ascii=False))
        except TypeError as error:
            raise LoadError(f"{where} holds what is no text, number or list.") from error
    return tuple(shots)


# --- prompts --------------------------------------------------------------------------------


def with_prompt(
    record: Mapping[str, Any], column: str, prompting: Prompting, where: str
) -> Mapping[str, Any]:
    """Return a record whose `column` holds what the template, or its own conversation, says.

    Raises:
        LoadError: If the template wants a column that the record does not have, or fails, or the
            conversation is none.
    """
    if prompting.template is not None:
        return {**record, column: _rendered(prompting.template, record, where)}
    if prompting.chat and MESSAGES in record:
        messages = record[MESSAGES]
        if not isinstance(messages, (list, tuple)):
            raise LoadError(f"{where}: {MESSAGES} is {type(messages).__name__}, not a list.")
        return {**record, column: messages}
    return record


def _rendered(template: str, record: Mapping[str, Any], where: str) -> str:
    """Fill in a template."""
    from jinja2 import UndefinedError

    try:
        return str(_compiled(template).render(record))
    except UndefinedError as error:
        raise LoadError(
            f"{where}: --prompt-template: {first_line(error)}.", f"The row has: {', '.join(record)}."
        ) from error
    except Exception as error:  # a template raises what it pleases
        raise LoadError(f"{where}: --prompt-template fails: {first_line(error)}") from error


@lru_cache
def _compiled(template: str) -> Any:
    """Return a template that can reach nothing but what it is given."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})  # those that make much of little

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _size_of(operator, left, right) > LARGEST:
                raise OverflowError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

    return Sandbox(undefined=StrictUndefined).from_string(template)


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Return how large a result may be, in characters, entries or bits."""
    if operator == "%":
        if not isinstance(left, str):
            return 0
        widths = f"{left} {right}" if "*" in left else left  # a text's, which a star takes from the right
        return max((int(digits) for digits in re.findall(r"\d{1,18}", widths)), default=0)
    one, other = (abs(value).bit_length() if isinstance(value, int) else 1 for value in (left, right))
    if operator == "**":
        return one * right if isinstance(right, int) and right > 0 else 0
    times = next((value for value in (left, right) if isinstance(value, int)), 0)
    lengths = [len(value) for value in (left, right) if isinstance(value, (str, list, tuple, bytes))]
    return max(lengths) * times if lengths else one + other


def require_prompt(value: Any, name: str, where: str) -> Prompt:
    """Return a text or a conversation, if it is one.

    Raises:
        LoadError: If it is something else, or empty.
    """
    if not isinstance(value, (list, tuple)):
        return require_text(value, name, where)
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise LoadError(
                f"{where}: {MESSAGES} holds what is no message.",
                'Such as {"role": "user", "content": "2 + 2 ="}.',
            )
        messages.append({key: require_text(message[key], f"a message's {key}", where) for key in message})
    if not messages or messages[-1]["role"] == "assistant":
        raise LoadError(
            f"{where}: {MESSAGES} must end with what the assistant is to answer.", "Put that into the answer."
        )
    return tuple(messages)


def key_of(prompt: Prompt) -> str:
    """Return what makes two prompts the same."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def context_of(prompt: Prompt, processor: Processor, where: str) -> str:
    """Return the text that the model reads before it answers: examples, then the prompt.

    Examples are joined by blank lines, and an answer follows its prompt after a space. With a chat
    template each example is a turn of the user and one of the assistant, behind any system message of the
    row; its own is left out.

    Raises:
        LoadError: If the tokenizer's chat template refuses the conversation, or none is asked for.
    """
    solved = [(row.features["prompt"], answer_text(row)) for row in processor.solved]
    if not processor.prompting.chat:
        if not isinstance(prompt, str):
            raise LoadError(f"{where}: prompt is a conversation.", "Add --chat-template.")
        return "\n\n".join([*(f"{asked} {answer}" for asked, answer in solved), prompt])
    own = _conversation(prompt)
    start = next((i for i, message in enumerate(own) if message["role"] != "system"), len(own))
    turns: list[Message] = []
    for asked, answer in solved:
        turns += [message for message in _conversation(asked) if message["role"] != "system"]
        turns.append({"role": "assistant", "content": answer})
    try:
        text = processor.tokenizer.apply_chat_template(
            [*own[:start], *turns, *own[start:]], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template raises what it pleases
        raise LoadError(f"{where}: the tokenizer's chat template fails: {first_line(error)}") from error
    return str(text)


def _conversation(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def answer_text(row: Row) -> str:
    """Return the right answer of a row: its label is the answer, or the index of one of several."""
    return row.label if isinstance(row.label, str) else str(row.features["texts"][row.label])


def check_chat(tokenizer: Any, folder: Path | str) -> None:
    """Refuse a tokenizer that has no chat template.

    Raises:
        ConfigError: Saying so.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"The tokenizer of {folder} has no chat template.",
            "Leave out --chat-template, or save a tokenizer that has one.",
        )
