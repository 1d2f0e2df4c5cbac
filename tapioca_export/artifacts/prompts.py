"""How rows become prompts, and what answers to them are, as earlier steps hand it to later ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompting:
    """What is made of a row before a decoder reads it, and of what it writes; the default leaves both be.

    `template` is the text of a Jinja template; `chat` puts the prompt through the tokenizer's chat
    template; `shots` are solved examples that stand before it: records of a sample file, as JSON.

    With `max_new_tokens`, answers are written; `extract` is a regular expression whose first match in them
    (with `extract_last`, its last) is what counts.
    """

    template: str | None = None
    chat: bool = False
    shots: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    extract: str | None = None
    extract_last: bool = False

    @property
    def makes_prompts(self) -> bool:
        """Tell whether a row is read otherwise than as it is."""
        return self.template is not None or self.chat or bool(self.shots)
