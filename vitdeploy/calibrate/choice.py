"""A way to quantize, of those that the search compares. Without heavy libraries: boards import precisions, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vitdeploy.quantize.qdq import Ranges

Alpha = float | Literal["norms"] | None
"""The strength of a migration of outliers; None: off; "norms": see `NORMS`."""
NORMS: Literal["norms"] = "norms"
"""The scale and bias of each LayerNorm go whole into the linears behind it. Attention's values are migrated."""
VALUES_ALPHA = 0.5
"""The strength at attention's values where norms are folded: SmoothQuant's default."""


@dataclass(frozen=True)
class Choice:
    """A way to quantize: migration strength, how ranges are taken, whether biases are corrected."""

    alpha: Alpha = None
    ranges: Ranges = "minmax"
    correct_bias: bool = False

    def __str__(self) -> str:
        migration = "no migration" if self.alpha is None else f"migration {self.alpha}"
        migration = "norms folded" if self.alpha == NORMS else migration
        return f"{migration}, {self.ranges} ranges{', bias correction' if self.correct_bias else ''}"
