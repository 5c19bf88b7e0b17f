"""Q/DQ pairs on every selected linear, with the ranges and the migration that change the outputs least."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.choice import NORMS
from vitdeploy.calibrate.nncf_static import NNCF_ALPHAS, quantize_static
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.weight_range import FULL_RANGE, largest_weight, weight_bits
from vitdeploy.calibrate.writers import PairWriter, node_names
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear
from vitdeploy.recipe import NNCF

if TYPE_CHECKING:
    from vitdeploy.calibrate.choice import Choice
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.qdq import CodeType

_CODE_TYPES = {"uint8": "uint8", "int8": "int8, symmetric", "e4m3": "FP8 E4M3"}


class StaticPrecision(LinearPrecision, ABC):
    """A precision that writes Q/DQ pairs around linears, with ranges from calibration images."""

    needs_images: ClassVar[bool] = True

    def code_type(self, dialect: Dialect) -> CodeType:
        """Return the type of the codes of activations."""
        return dialect.activation_codes

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Put the pairs on the linears; convert everything around them to float16 if the dialect says so."""
        quantized = self.quantize_linears(calibrated, dialect)
        return _convert_rest_to_half(calibrated, quantized) if dialect.half_around else quantized

    def quantize_linears(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Put the pairs on the linears, after the migration that changes the outputs least.

        Raises:
            QuantizeError: there are no images, or no linear can be quantized.
        """
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import keep_zero_inputs, record_placement

        selection = self.select_linears(calibrated.structure, dialect)
        linears, rules = keep_zero_inputs(*selection, calibrated.zero_nodes)
        if self.quantizer == NNCF:
            if self.smooth_alpha == NORMS:
                raise QuantizeError("NNCF does not fold norms", fix="Set another `smooth_alpha`, or `quantizer: own`.")
            given = tuple(alpha for alpha in self.alphas() if not isinstance(alpha, str))
            alphas = NNCF_ALPHAS if self.smooth_alpha == "auto" else given
            return quantize_static(
                calibrated, dialect, self.numbers, alphas, (linears, rules), float_decoder=self.float_decoder
            )
        writer = self.writer(linears, dialect)
        result = calibrated.search(writer, self.alphas())
        record = Quantization(
            method="static Q/DQ",
            activations=f"{_CODE_TYPES[writer.code_type]}, per tensor",
            weight_bits=weight_bits(writer.largest_weight),
            quantized=len(linears),
        )
        return Quantized(
            calibrated.write(writer, result.choice),
            calibrated.record_search(record, result),
            record_placement(calibrated.structure, rules, self.numbers.weights, dialect),
        )

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> PairWriter:
        """Return the writer of the pairs."""
        code_type = self.code_type(dialect)
        largest = largest_weight(dialect) if code_type == "uint8" else FULL_RANGE
        return PairWriter(node_names(linears), code_type, largest)

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:
        """Search migration, ranges and bias correction."""
        linears, _ = self.select_linears(calibrated.structure, dialect)
        return calibrated.search(self.writer(linears, dialect), self.alphas()).choice


def _convert_rest_to_half(calibrated: CalibratedGraph, quantized: Quantized) -> Quantized:
    """Convert everything but the Q/DQ pairs to float16, in place, where it does not overflow."""
    from vitdeploy.quantize import half

    with calibrated.progress.step("Check ranges and convert the rest to float16"):
        record = half.quantize(quantized.graph, calibrated.structure, (), calibrated.calibration)
    assert quantized.record is not None
    return dataclasses.replace(quantized, record=replace(quantized.record, half=record))
