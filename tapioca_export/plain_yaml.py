"""YAML of strangers: each key once, and without aliases, by which a few lines take all memory."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# A number of YAML 1.2 that PyYAML, which is of 1.1, takes for a text: with an exponent, and no dot or sign.
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


def load(text: str) -> Any:
    """Return what a text says, as plain values.

    Raises:
        ValueError: If it is malformed, names a key twice, or refers to what is written elsewhere in it.
    """
    import yaml

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"*{self.peek_event().anchor} stands for what is written elsewhere")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if len(names) < names.total():
                raise yaml.YAMLError(f"{names.most_common(1)[0][0]!r} is given twice")
            return super().construct_mapping(node, deep)

    Plain.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    try:
        return yaml.load(text, Plain)
    except Exception as error:  # of a tag that does not fit its text, PyYAML lets through what Python raises
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
