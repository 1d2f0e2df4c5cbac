"""Sections of plots and tables -> one self-contained HTML page.

The page opens from disk and loads nothing: Plotly's script stands in it once, packed, and its own content
policy forbids every request. Everything a user can name (model, files, configuration) is escaped.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..showing import visible
from .drawing import Figure
from .tables import TextTable

_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


@dataclass(frozen=True)
class Section:
    """A heading with its plots and tables; those that are long are folded away."""

    name: str
    title: str
    intro: str = ""
    findings: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[TextTable, ...] = ()
    folded: tuple[TextTable, ...] = ()


def render_page(template: str, sections: Sequence[Section], **values: Any) -> str:
    """Return the page that a template makes of sections and of what else it names.

    Args:
        template: A file beside `page.html.j2`, which it extends.
        sections: In reading order.
        values: At least `label` and `tone` (a word, and its colour class), `verdict` and `findings`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # no markup of ours
        trim_blocks=True,
        lstrip_blocks=True,
    )
    specs = {f.name: _checked(f.spec) for section in sections for f in section.figures}
    made = environment.get_template(template)
    return made.render(sections=sections, specs=specs, plotly=_packed_plotly(), **values)


@cache
def _packed_plotly() -> str:
    """Return Plotly's script, packed by gzip, in base64: the page unpacks it."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,unused-ignore]

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _checked(spec: dict[str, Any]) -> Any:
    """Let Plotly refuse a misspelt attribute, and turn non-finite numbers into gaps."""
    import plotly.graph_objects as go  # type: ignore[import-untyped,unused-ignore]

    return _seen(json.loads(go.Figure(spec["data"], spec["layout"] | {"template": None}).to_json()))


def _seen(value: Any) -> Any:
    """Return plain values with all texts in them visible."""
    if isinstance(value, dict):
        return {key: _seen(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_seen(part) for part in value]
    return visible(value) if isinstance(value, str) else value
