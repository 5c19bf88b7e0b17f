"""bfloat16: the range of float32 in 16 bits, so nothing overflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import Precision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized


class BFloat16(Precision):
    """The whole graph in bfloat16, or only its weights for engines that compute in bfloat16 by themselves.

    TensorRT takes the type of each computation from the graph, so it needs the first.
    """

    numbers: ClassVar[Numbers] = Numbers("bf16", weights="bf16", products="bf16", rest="bf16")

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Convert the graph or its weights. No images are needed."""
        from vitdeploy.quantize import Quantized, bfloat16

        graph = calibrated.copy()
        record = bfloat16.quantize(graph, calibrated.structure, self.keep, typed=dialect.half_around)
        return Quantized(graph, Quantization(method=str(record), half=record))
