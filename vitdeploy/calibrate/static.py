"""Q/DQ pairs on every placed linear, with the ranges and the migration that keep the outputs best."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace as changed
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.weight_range import FULL_RANGE, largest_weight, weight_bits
from vitdeploy.calibrate.writers import PairWriter, nodes_of
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.qdq import Kind

_ACTIVATIONS = {"uint8": "uint8", "int8": "int8, symmetric", "e4m3": "FP8 E4M3"}


class StaticPrecision(LinearPrecision, ABC):
    """A precision that writes Q/DQ pairs around linears, with ranges from calibration images."""

    needs_images: ClassVar[bool] = True

    def codes(self, dialect: Dialect) -> Kind:
        """Return the codes of activations."""
        return dialect.activation_codes

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Put the pairs on the linears; where the dialect wants it, convert everything around them to float16."""
        quantized = self.quantize_linears(calibrated, dialect)
        return convert_rest_to_half(calibrated, quantized) if dialect.half_around else quantized

    def quantize_linears(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Put the pairs on the linears, after the migration that keeps the outputs best.

        Raises:
            QuantizeError: there are no images, or no linear can be quantized.
        """
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import leave_silent, place, placements

        linears, kept = leave_silent(*place(calibrated.structure, self.keep), calibrated.silent_nodes)
        writer = self.writer(linears, dialect)
        searched = calibrated.search(writer, self.alphas())
        record = Quantization(
            method="static Q/DQ",
            activations=f"{_ACTIVATIONS[writer.kind]}, per tensor",
            weight_bits=weight_bits(writer.largest_weight),
            quantized=len(linears),
        )
        return Quantized(
            calibrated.write(writer, searched.choice),
            calibrated.record_search(record, searched),
            placements(calibrated.structure, kept, self.numbers.weights, dialect),
        )

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> PairWriter:
        """Return what writes the pairs."""
        kind = self.codes(dialect)
        return PairWriter(nodes_of(linears), kind, largest_weight() if kind == "uint8" else FULL_RANGE)

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:
        """Search migration, ranges and bias correction."""
        from vitdeploy.quantize.placement import place

        linears, _ = place(calibrated.structure, self.keep)
        return calibrated.search(self.writer(linears, dialect), self.alphas()).choice


def convert_rest_to_half(calibrated: CalibratedGraph, quantized: Quantized) -> Quantized:
    """Convert everything but the Q/DQ pairs to float16, in place, where it does not overflow."""
    from vitdeploy.quantize import half

    with calibrated.progress.step("Check ranges and convert the rest to float16"):
        around = half.quantize(quantized.graph, calibrated.structure, (), calibrated.calibration)
    assert quantized.record is not None
    return changed(quantized, record=replace(quantized.record, half=around))
