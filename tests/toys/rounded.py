"""A toy precision: weights of linears are rounded to few bits and computed with in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import Precision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized

_STEPS = 1 << 7


class Rounded(Precision):
    """Each weight is rounded to a multiple of a 128th of the largest one in its tensor."""

    numbers: ClassVar[Numbers] = Numbers("rounded")
    saves_time: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Round the weights; no images are needed."""
        import onnx_ir as ir

        from vitdeploy.quantize import Quantized

        graph = calibrated.copy()
        for linear in calibrated.structure.linears:
            value = graph.model.graph.initializers[linear.initializer]
            weight = value.const_value.numpy()
            scale = np.abs(weight).max() / _STEPS
            value.const_value = ir.tensor((np.round(weight / scale) * scale).astype(np.float32), name=value.name)
        return Quantized(graph, Quantization(method="rounded weights", quantized=len(calibrated.structure.linears)))
