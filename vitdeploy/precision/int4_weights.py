"""INT4 weights; activations and products stay in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from vitdeploy.calibrate.weight_only import WeightPrecision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize.weights import WeightStorage


class Int4Weights(WeightPrecision):
    """INT4 weights. `group` inputs share a scale: smaller groups are more exact and larger."""

    numbers: ClassVar[Numbers] = Numbers("int4-weights", weights="int4")
    takes_nncf: ClassVar[bool] = True
    group: Literal[32, 64, 128] = 64

    def storage(self, dialect: Dialect) -> WeightStorage:  # noqa: ARG002  the same for all
        """Return 4 bits, in groups."""
        from vitdeploy.quantize.weights import WeightStorage

        return WeightStorage(4, self.group)
