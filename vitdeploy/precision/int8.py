"""INT8 linears with ranges from calibration images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.static import StaticPrecision
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.recipe import NNCF, VALUES, Int8Attention

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized


class Int8(StaticPrecision):
    """Q/DQ pairs on the linears; with `attention`, also on attention that stays one kernel."""

    numbers: ClassVar[Numbers] = Numbers("int8", weights="int8", products="int8")
    takes_nncf: ClassVar[bool] = True
    attention: Int8Attention = False

    def quantize_linears(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Put the pairs on the linears, and on attention if the recipe says so.

        Raises:
            QuantizeError: as for any static precision; or NNCF and the recipe both decide about attention.
        """
        if self.attention and self.quantizer == NNCF and dialect.partial_int8_attention:
            raise QuantizeError(
                "NNCF itself decides for this target which operands of attention are INT8",
                fix="Leave `attention` out of the recipe's precision, or set `quantizer: own`.",
            )
        quantized = super().quantize_linears(calibrated, dialect)
        if not self.attention:
            return quantized
        from vitdeploy.calibrate.int8_attention import quantize_attention

        return quantize_attention(
            calibrated, dialect, quantized, values_alone=self.attention == VALUES, float_decoder=self.float_decoder
        )
