"""Long names in narrow columns."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PATH = re.compile(r"/?[\w.@+~-]+(?:/[\w.@+~-]+){2,}")
_FEWEST_PARTS, _MOST_PARTS = 2, 7
_PIECES = re.compile(r"(?:…/)?[^-./ ]*[-./ ]?")


def fold_name(name: str, width: int) -> str:
    """Break a name into lines of at most `width`, after hyphens, dots, slashes and spaces where it has them."""
    lines = [""]
    for piece in filter(None, _PIECES.findall(name)):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def shorten_paths(texts: Iterable[str]) -> dict[str, str]:
    """Leave out the first folders of paths: `/home/me/work/model.py:build` becomes `…/work/model.py:build`.

    As many folders stay as it takes to keep different texts different.

    Returns:
        text -> shorter text; only those that become shorter.
    """
    every = dict.fromkeys(texts)
    for count in range(_FEWEST_PARTS, _MOST_PARTS + 1):
        shorter = {text: _leave_last_parts(text, count) for text in every}
        if len(set(shorter.values())) == len(every):
            return {text: short for text, short in shorter.items() if short != text}
    return {}


def _leave_last_parts(text: str, count: int) -> str:
    """Replace each path in a text by its last parts, as many as `count`."""

    def shorten(path: re.Match[str]) -> str:
        parts = path[0].split("/")
        return path[0] if len(parts) <= count else "/".join(("…", *parts[-count:]))

    return _PATH.sub(shorten, text)
