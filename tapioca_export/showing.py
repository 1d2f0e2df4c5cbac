"""Results that a notebook shows as HTML, and the small table that stands there.

Knows nothing about any result: `tapioca_export` says, when it is imported, who renders them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

Render = Callable[[Any], str]
_renderers: list[Callable[[], Render]] = []


def rendered_by(load: Callable[[], Render]) -> None:
    """Name what loads the function that renders any result, when one is first shown."""
    _renderers.append(load)


class Shown:
    """A result that displays itself in Jupyter."""

    def _repr_html_(self) -> str:
        """Return a sentence and small tables, as HTML that needs nothing else."""
        render = _renderers[-1]()
        return render(self)


def html_text(text: str) -> str:
    """Return a paragraph."""
    return f'<p dir="auto">{html.escape(text)}</p>'


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align: left">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: Sequence[str]) -> str:
    first, *others = (html.escape(cell) for cell in row)
    return f'<th scope="row" dir="auto">{first}</th>' + "".join(f'<td dir="auto">{c}</td>' for c in others)
