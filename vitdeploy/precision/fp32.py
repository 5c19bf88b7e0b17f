"""float32: no quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import Precision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized


class Float32(Precision):
    """The graph in float32, unchanged."""

    is_float32: ClassVar[bool] = True
    numbers: ClassVar[Numbers] = Numbers("fp32")

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:  # noqa: ARG002  nothing to decide
        """Return a copy of the graph."""
        from vitdeploy.quantize import Quantized

        return Quantized(calibrated.copy())
