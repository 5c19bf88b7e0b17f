"""INT8 linears whose activation ranges are computed anew for each image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph, SearchResult
from vitdeploy.calibrate.choice import Choice
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.weight_only import quantize_weights
from vitdeploy.calibrate.weight_range import largest_weight, weight_bits
from vitdeploy.calibrate.writers import DynamicWriter, WeightWriter, Writer, node_names
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.weights import WeightStorage

_NO_IMAGES = "none: it needs calibration images (--calibration)"
_BY_ENGINE = "weights only; the engine rounds activations to int8 at run time"


class Int8Dynamic(LinearPrecision):
    """ONNX Runtime's dynamic kernels, or INT8 weights for an engine that rounds activations by itself (OpenVINO).

    Images are not needed. If there are any, outliers are migrated first.
    """

    numbers: ClassVar[Numbers] = Numbers("int8-dynamic", weights="int8", products="int8", dynamic=True)

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Write the kernels, or the weights."""
        result = self._search(calibrated, dialect) if calibrated.has_images else None
        quantized = self._write(calibrated, dialect, result)
        assert quantized.record is not None
        if result is None:
            record = replace(quantized.record, migration_note=_NO_IMAGES)
        else:
            record = calibrated.record_search(quantized.record, result, tune_ranges=False)
            if dialect.int8_linears == "qdq":  # the search measured ONNX Runtime's kernels, not this engine
                record = replace(record, output_sqnr_db=None)
        return dataclasses.replace(quantized, record=record)

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> Writer:
        """Return the writer of the kernels, or of the weights."""
        if dialect.int8_linears == "qdq":
            return WeightWriter(node_names(linears), _storage(dialect))
        return DynamicWriter(node_names(linears), largest_weight(dialect))

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:
        """Search the migration."""
        return self._search(calibrated, dialect).choice

    def _search(self, calibrated: CalibratedGraph, dialect: Dialect) -> SearchResult:
        """Search the migration with ONNX Runtime's kernels, whatever the engine is.

        The rounding of another engine happens only inside that engine. ONNX Runtime's dynamic INT8 stands in for it.
        Its one scale per tensor suffers more from outliers than a scale for each group of channels does.
        """
        linears, _ = self.select_linears(calibrated.structure)
        writer = DynamicWriter(node_names(linears), largest_weight(dialect))
        return calibrated.search(writer, self.alphas(), tune_ranges=False)

    def _write(self, calibrated: CalibratedGraph, dialect: Dialect, result: SearchResult | None) -> Quantized:
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import record_placement

        choice = Choice() if result is None else result.choice
        selection = linears, rules = self.select_linears(calibrated.structure, dialect)
        if dialect.int8_linears == "qdq":
            return quantize_weights(
                calibrated, dialect, _storage(dialect), selection, stored="int8", method=_BY_ENGINE, alpha=choice.alpha
            )  # fmt: skip
        writer = DynamicWriter(node_names(linears), largest_weight(dialect))
        if result is None:
            graph = calibrated.copy()
            writer.write(graph, {}, choice)
        else:
            graph = calibrated.write(writer, choice)
        bits = weight_bits(writer.largest_weight)
        record = Quantization(method="dynamic", weight_bits=bits, quantized=len(linears))
        return Quantized(graph, record, record_placement(calibrated.structure, rules, "int8", dialect))


def _storage(dialect: Dialect) -> WeightStorage:
    from vitdeploy.quantize.weights import WeightStorage

    return WeightStorage(8, dialect.int8_weight_group)
