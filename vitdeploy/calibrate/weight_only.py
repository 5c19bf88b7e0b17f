"""Weights in few bits; activations and products stay in float, or the engine rounds activations by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.precision import LinearPrecision
from vitdeploy.calibrate.search import Choice
from vitdeploy.calibrate.writers import WeightWriter, nodes_of
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.weights import WeightStorage


class WeightPrecision(LinearPrecision, ABC):
    """A precision that stores weights in few bits and multiplies in float: it saves memory, not time."""

    saves_time: ClassVar[bool] = False

    @abstractmethod
    def storage(self, dialect: Dialect) -> WeightStorage:
        """Return the bits of a weight, and how many inputs share a scale."""

    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Store the weights; calibration images, where there are any, make the rounding better."""
        return quantize_weights(
            calibrated, dialect, self.storage(dialect), stored=f"{self.numbers.weights} weights", keep=self.keep
        )

    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> WeightWriter:
        """Return what writes the weights."""
        return WeightWriter(nodes_of(linears), self.storage(dialect))

    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:  # noqa: ARG002  nothing to choose
        """Return the one way there is."""
        return Choice()


def quantize_weights(
    calibrated: CalibratedGraph,
    dialect: Dialect,
    storage: WeightStorage,
    *,
    stored: str,
    keep: tuple[str, ...],
    method: str = "weights only",
    alpha: float | None = None,
) -> Quantized:
    """Store the weights of every placed linear in few bits.

    Rounding errors are compensated on calibration images, where there are any (see `quantize.weights.compensated`).

    Args:
        calibrated: the graph; images are not needed.
        dialect: of the compiler.
        storage: bits, and how many inputs share a scale.
        stored: what the record calls such a linear.
        keep: roles or names of linears that stay in float.
        method: for the record.
        alpha: the strength of a migration before it; None: off. It takes images.

    Raises:
        QuantizeError: a `keep` entry matches nothing, or nothing is left to quantize.
    """
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.placement import place, placements

    linears, kept = place(calibrated.structure, keep)
    writer = WeightWriter(nodes_of(linears), storage)
    shared = "each output channel" if storage.group is None else f"up to {storage.group} inputs of an output channel"
    codes = "uint4 with a zero point" if storage.bits == 4 else "int8, symmetric"
    record = Quantization(
        method=method,
        weights=f"{codes}, a scale for {shared}",
        rounding="compensated on calibration images" if calibrated.has_images else "nearest",
        quantized=len(linears),
        calibration=calibrated.require_images().data if calibrated.has_images else None,
    )
    if calibrated.has_images:
        graph = calibrated.write(writer, Choice(alpha=alpha))
    else:
        graph = calibrated.copy()
        writer.write(graph, {}, Choice())
    return Quantized(graph, record, placements(calibrated.structure, kept, stored, dialect))
