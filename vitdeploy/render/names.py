"""Long names in narrow columns."""

from __future__ import annotations

import re

_PIECES = re.compile(r"[^-./ ]*[-./ ]?")


def fold_name(name: str, width: int) -> str:
    """Break a name into lines of at most `width`, after hyphens, dots, slashes and spaces where it has them."""
    lines = [""]
    for piece in filter(None, _PIECES.findall(name)):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
