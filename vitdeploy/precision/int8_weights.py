"""INT8 weights; activations and products stay in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.calibrate.weight_only import WeightPrecision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize.weights import WeightStorage


class Int8Weights(WeightPrecision):
    """INT8 weights, with a scale per output channel or per group of inputs, as the compiler needs."""

    numbers: ClassVar[Numbers] = Numbers("int8-weights", weights="int8")
    takes_nncf: ClassVar[bool] = True

    def storage(self, dialect: Dialect) -> WeightStorage:
        """Return 8 bits, in the groups that the compiler needs."""
        from vitdeploy.quantize.weights import WeightStorage

        return WeightStorage(8, dialect.int8_weight_group)
