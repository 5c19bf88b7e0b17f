"""Weights in few bits. Activations and products stay in float, or the engine rounds activations by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.choice import Alpha, Choice
from vitdeploy.calibrate.nncf_weights import compress_weights
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.writers import WeightWriter, node_names
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear
from vitdeploy.recipe import NNCF

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.weights import WeightStorage


class WeightPrecision(LinearPrecision, ABC):
    """A precision that stores weights in few bits and multiplies in float. It saves memory, not time."""

    saves_time: ClassVar[bool] = False
    rounds_activations: ClassVar[bool] = False

    @abstractmethod
    def storage(self, dialect: Dialect) -> WeightStorage:
        """Return the number of bits, and how many inputs share a scale."""

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Store the weights. Calibration images, if there are any, reduce the rounding errors."""
        selection = self.select_linears(calibrated.structure, dialect)
        stored = f"{self.numbers.weights} weights"
        if self.quantizer == NNCF:
            return compress_weights(calibrated, dialect, self.storage(dialect), selection)
        return quantize_weights(calibrated, dialect, self.storage(dialect), selection, stored=stored)

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> WeightWriter:
        """Return the writer of the weights."""
        return WeightWriter(node_names(linears), self.storage(dialect))

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:  # noqa: ARG002  nothing to choose
        """Return the only choice."""
        return Choice()


def quantize_weights(
    calibrated: CalibratedGraph,
    dialect: Dialect,
    storage: WeightStorage,
    selection: tuple[list[Linear], dict[str, str]],
    *,
    stored: str,
    method: str = "weights only",
    alpha: Alpha = None,
) -> Quantized:
    """Store the weights of every selected linear in few bits.

    With calibration images, rounding errors are compensated (see `quantize.weights.compensate_rounding`).

    Args:
        calibrated: the graph; images are not needed.
        dialect: of the compiler.
        storage: the number of bits, and how many inputs share a scale.
        selection: the linears to quantize, and the rule for each other one.
        stored: the record's name for the precision of such a linear.
        method: for the record.
        alpha: the strength of a migration before it, which needs images; None: off.
    """
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.placement import record_placement

    linears, rules = selection
    writer = WeightWriter(node_names(linears), storage)
    record = Quantization(
        method=method,
        weights=storage.describe(),
        rounding="compensated on calibration images" if calibrated.has_images else "nearest",
        quantized=len(linears),
        calibration=calibrated.require_images().data if calibrated.has_images else None,
    )
    if calibrated.has_images:
        graph = calibrated.write(writer, Choice(alpha=alpha))
    else:
        graph = calibrated.copy()
        writer.write(graph, {}, Choice())
    return Quantized(graph, record, record_placement(calibrated.structure, rules, stored, dialect))
