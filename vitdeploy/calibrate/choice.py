"""A way to quantize, of those that the search compares. Without heavy libraries: boards import precisions, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitdeploy.quantize.qdq import Ranges


@dataclass(frozen=True)
class Choice:
    """A way to quantize: migration strength (None: off), how ranges are taken, whether biases are corrected."""

    alpha: float | None = None
    ranges: Ranges = "minmax"
    correct_bias: bool = False

    def __str__(self) -> str:
        migration = "no migration" if self.alpha is None else f"migration {self.alpha:g}"
        return f"{migration}, {self.ranges} ranges{', bias correction' if self.correct_bias else ''}"
