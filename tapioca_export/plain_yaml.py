"""YAML of strangers: without aliases, by which a few lines stand for more than there is memory for."""

from __future__ import annotations

from typing import Any


def load(text: str) -> Any:
    """Return what a text says, as plain values.

    Raises:
        ValueError: If it is malformed, or refers to what is written elsewhere in it.
    """
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"*{self.peek_event().anchor} stands for what is written elsewhere")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Plain)
    except Exception as error:  # of a tag that does not fit its text, PyYAML lets through what Python raises
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
