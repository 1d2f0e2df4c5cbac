"""How rows become prompts, as earlier steps hand it to later ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompting:
    """What is made of a row before a decoder reads it; the default leaves it as it is.

    `template` is the text of a Jinja template; `chat` puts the prompt through the tokenizer's chat
    template; `shots` are solved examples that stand before it: records of a sample file, as JSON.
    """

    template: str | None = None
    chat: bool = False
    shots: tuple[str, ...] = ()
