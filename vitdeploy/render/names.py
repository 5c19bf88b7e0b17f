"""Long names in narrow columns."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PATH = re.compile(r"/?[\w.@+~-]+(?:/[\w.@+~-]+){2,}")
_LEAST_KEPT, _MOST_KEPT = 2, 8
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
    for kept in range(_LEAST_KEPT, _MOST_KEPT):
        shorter = {text: _cut_paths(text, kept) for text in every}
        if len(set(shorter.values())) == len(every):
            return {text: short for text, short in shorter.items() if short != text}
    return {}


def _cut_paths(text: str, kept: int) -> str:
    def cut(path: re.Match[str]) -> str:
        parts = path[0].split("/")
        return path[0] if len(parts) <= kept else "/".join(("…", *parts[-kept:]))

    return _PATH.sub(cut, text)
