"""Text, tables and JSON -> inert Markdown."""

from __future__ import annotations

import html
import json
from typing import Any

from ..showing import visible
from .tables import TextTable


def md_captioned(title: str, table: TextTable) -> list[str]:
    """Return a heading, the table's caption and the table."""
    return [f"## {title}", f"{md_text(table.caption)}:", md_table(table)]


def md_text(text: str) -> str:
    """Make text inert in Markdown and in the HTML that Markdown lets through."""
    escaped = html.escape(visible(text), quote=False).replace("\\", "\\\\")
    for mark in "|`*[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def md_table(table: TextTable) -> str:
    """Return a table, or nothing where it has no rows."""
    if not table.rows:
        return ""
    rule = ["---", *(["---:" if table.is_numeric else "---"] * (len(table.columns) - 1))]
    rows = [[md_text(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    return "\n".join(lines)


def md_json(title: str, values: dict[str, Any]) -> str:
    """Return JSON as an indented code block: unlike a fence, nothing in it can end the block."""
    lines = visible(json_text(values)).splitlines()
    return f"{title}:\n\n" + "\n".join(f"    {line}" for line in lines)


def json_text(values: dict[str, Any]) -> str:
    """Return plain values as JSON that people read."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=str)
