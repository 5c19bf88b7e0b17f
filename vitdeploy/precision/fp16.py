"""float16 everywhere except for what would overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import Precision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized


class Float16(Precision):
    """Weights and activations in half precision. Calibration images, if there are any, show what overflows."""

    numbers: ClassVar[Numbers] = Numbers("fp16", weights="fp16", products="fp16", rest="fp16")

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:  # noqa: ARG002  the same for all
        """Convert the graph, and keep in float32 what would overflow."""
        from vitdeploy.quantize import Quantized, half

        graph = calibrated.copy()
        with calibrated.progress.step("Check ranges and convert to float16"):
            record = half.quantize(graph, calibrated.structure, self.keep, calibrated.calibration)
        return Quantized(graph, Quantization(method=str(record), half=record))
