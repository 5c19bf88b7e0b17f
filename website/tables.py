"""Markdown for generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table without its empty columns, and an empty line after it."""
    rows = list(rows)
    filled = [number for number in range(len(head)) if any(row[number] for row in rows)]
    shown = [[row[number] for number in filled] for row in (head, *rows)]
    return [_line(shown[0]), "|" + "---|" * len(filled), *map(_line, shown[1:]), ""]


def as_code(text: object) -> str:
    """Return text as code."""
    return f"`{text}`"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()) or "–" for cell in cells) + " |"
