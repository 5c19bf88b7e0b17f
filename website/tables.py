"""Markdown for generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, with an empty line after it."""
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows), ""]


def as_code(text: object) -> str:
    """Return text as code."""
    return f"`{text}`"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()) or "–" for cell in cells) + " |"
