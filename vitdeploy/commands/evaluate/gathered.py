"""Arrays with a row for each sample, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitdeploy.session import Array

_PIECES = 512


class Gathered:
    """Rows by name. Small arrays are joined now and then: an array of one number takes 112 bytes besides the number."""

    def __init__(self) -> None:
        self._joined: list[Mapping[str, Array]] = []
        self._pieces: list[Mapping[str, Array]] = []

    def add(self, rows: Mapping[str, Array]) -> None:
        """Add rows to each array; all calls have the same names."""
        self._pieces.append(rows)
        if len(self._pieces) >= _PIECES:
            self._joined.append(_join(self._pieces))
            self._pieces = []

    def join(self) -> dict[str, Array]:
        """Return the whole arrays; an empty map if nothing was added."""
        every = [*self._joined, *self._pieces]
        return _join(every) if every else {}


def _join(pieces: list[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
