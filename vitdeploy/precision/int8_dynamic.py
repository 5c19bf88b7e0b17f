"""INT8 linears whose activation ranges are taken from each image as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph, Searched
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.search import Choice
from vitdeploy.calibrate.weight_only import quantize_weights
from vitdeploy.calibrate.weight_range import largest_weight, weight_bits
from vitdeploy.calibrate.writers import DynamicWriter, WeightWriter, Writer, nodes_of
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.weights import WeightStorage

_NO_IMAGES = "none: it needs calibration images (--calibration)"
_BY_ENGINE = "weights only; the engine rounds activations to int8 at run time"


class Int8Dynamic(LinearPrecision):
    """ONNX Runtime's dynamic kernels; or INT8 weights for an engine that rounds activations by itself (OpenVINO).

    Images are not needed. With them outliers are migrated first.
    """

    numbers: ClassVar[Numbers] = Numbers("int8-dynamic", weights="int8", products="int8", dynamic=True)

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Write the kernels, or the weights."""
        searched = self._search(calibrated) if calibrated.has_images else None
        quantized = self._write(calibrated, dialect, searched)
        assert quantized.record is not None
        if searched is None:
            record = replace(quantized.record, migration_note=_NO_IMAGES)
        else:
            record = calibrated.record_search(quantized.record, searched, tune_ranges=False)
            if dialect.int8_linears == "qdq":  # the search judged the stand-in, not what the engine gives
                record = replace(record, output_sqnr_db=None)
        return type(quantized)(quantized.graph, record, quantized.placement)

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> Writer:
        """Return what writes the kernels, or the weights."""
        if dialect.int8_linears == "qdq":
            return WeightWriter(nodes_of(linears), _storage(dialect))
        return DynamicWriter(nodes_of(linears), largest_weight())

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:  # noqa: ARG002  the same for all
        """Search the migration."""
        return self._search(calibrated).choice

    def _search(self, calibrated: CalibratedGraph) -> Searched:
        """Search the migration, judged with ONNX Runtime's kernels whatever the engine is.

        How an engine rounds by itself can be seen in it alone. ONNX Runtime's dynamic INT8 stands in, whose one scale
        for a tensor suffers more from outliers than a scale for each group of channels.
        """
        from vitdeploy.quantize.placement import place

        linears, _ = place(calibrated.structure, self.keep)
        writer = DynamicWriter(nodes_of(linears), largest_weight())
        return calibrated.search(writer, self.alphas(), tune_ranges=False)

    def _write(self, calibrated: CalibratedGraph, dialect: Dialect, searched: Searched | None) -> Quantized:
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import place, placements

        choice = Choice() if searched is None else searched.choice
        if dialect.int8_linears == "qdq":
            return quantize_weights(
                calibrated, dialect, _storage(dialect), stored="int8", keep=self.keep, method=_BY_ENGINE,
                alpha=choice.alpha,
            )  # fmt: skip
        linears, kept = place(calibrated.structure, self.keep)
        writer = DynamicWriter(nodes_of(linears), largest_weight())
        graph = calibrated.copy()
        if searched is None:
            writer.write(graph, {}, choice)
        else:
            graph = calibrated.write(writer, choice)
        bits = weight_bits(writer.largest_weight)
        record = Quantization(method="dynamic", weight_bits=bits, quantized=len(linears))
        return Quantized(graph, record, placements(calibrated.structure, kept, "int8", dialect))


def _storage(dialect: Dialect) -> WeightStorage:
    from vitdeploy.quantize.weights import WeightStorage

    return WeightStorage(8, dialect.int8_weight_group)
