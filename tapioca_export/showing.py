"""Results that a notebook shows as HTML, and the small table that stands there.

Knows nothing about any result: `tapioca_export` says, when it is imported, who renders them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

# What no reader would see, and a terminal or a browser would obey: control characters but tab and line break,
# what turns the direction of the text behind it (it could be shown with another's label), and halves of
# characters, which no file can hold.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PICTURES, _DELETE = 0x2400, 0x2421  # Unicode's pictures of the first 32 control characters, and of the last

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


def visible(text: str) -> str:
    """Return a text with signs for what is unseen in it: pictures of control characters, or numbers."""
    return _UNSEEN.sub(lambda found: _sign(ord(found[0])), text)


def _sign(code: int) -> str:
    if code < 0x20:
        return chr(_PICTURES + code)
    return chr(_DELETE) if code == 0x7F else f"\\u{code:04x}"


def html_text(text: str) -> str:
    """Return a paragraph."""
    return f'<p dir="auto">{_escaped(text)}</p>'


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{_escaped(column)}</th>' for column in columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align: left">{_escaped(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: Sequence[str]) -> str:
    first, *others = (_escaped(cell) for cell in row)
    return f'<th scope="row" dir="auto">{first}</th>' + "".join(f'<td dir="auto">{c}</td>' for c in others)


def _escaped(text: str) -> str:
    return html.escape(visible(text))
