"""The base classes of precisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vitdeploy.calibrate.calibrated import Alphas, CalibratedGraph
from vitdeploy.evidence import LayerSensitivity
from vitdeploy.frozen import Frozen
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.graph.structure import Linear

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice
    from vitdeploy.calibrate.writers import Writer
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.sensitivity import Agreement


class Precision(Frozen, ABC):
    """One precision with its options. Final classes: one subclass a file.

    Attributes:
        keep: roles (`head`) or name patterns (`blocks.0.*`) of linears that stay in float.
        smooth_alpha: the strength with which outliers are migrated from activations into weights, from 0 to 1.
    """

    is_float32: ClassVar[bool] = False
    """It changes nothing, so there is nothing to lose."""
    needs_images: ClassVar[bool] = False
    """Its ranges come from calibration images; without them it is refused."""
    saves_time: ClassVar[bool] = True
    """`auto` tries it. Others save memory only."""
    numbers: ClassVar[Numbers]
    """What it stores and computes in; the name of the precision is the name of its file."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Targets that take it and do not name it themselves in `Target.precisions`."""

    keep: tuple[str, ...] = ()
    smooth_alpha: Literal["auto", "off"] | Annotated[float, Field(ge=0, le=1)] = "auto"

    @property
    def name(self) -> str:
        """The name as users write it."""
        return self.numbers.precision

    @property
    def per_linear(self) -> bool:
        """Return whether single linears can stay in float, so that it can keep an accuracy budget."""
        return isinstance(self, LinearPrecision)

    @abstractmethod
    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Make a copy of the float32 graph in this precision, for a compiler of `dialect`.

        Raises:
            QuantizeError: calibration images are missing, or the format cannot hold what the graph computes.
        """

    def alphas(self) -> Alphas:
        """The migration strengths that a search begins with."""
        from vitdeploy.calibrate.search import ALPHAS

        if self.smooth_alpha == "auto":
            return ALPHAS
        return (None if self.smooth_alpha == "off" else float(self.smooth_alpha),)


class LinearPrecision(Precision, ABC):
    """A precision that quantizes linear by linear."""

    @abstractmethod
    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> Writer:
        """Return what quantizes these linears."""

    @abstractmethod
    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:
        """Return the way to quantize that keeps the outputs best."""

    def measure_sensitivity(
        self, calibrated: CalibratedGraph, dialect: Dialect, images: int, agreement: Agreement | None = None
    ) -> tuple[tuple[LayerSensitivity, ...], Choice]:
        """Measure what each linear costs when it alone is quantized, worst first; and return how it was quantized.

        Linears that `keep` names are measured as well.

        Args:
            calibrated: with real images.
            dialect: of the compiler.
            images: how many calibration images are looked at, at least.
            agreement: of the model's task.

        Raises:
            QuantizeError: there are no images, or there is no linear.
        """
        from vitdeploy.graph.model import Graph
        from vitdeploy.quantize.placement import place
        from vitdeploy.quantize.sensitivity import measure

        calibration = calibrated.require_images()
        linears, _ = place(calibrated.structure, ())
        choice = self.best_choice(calibrated, dialect)
        graph, observed = calibrated.migrate(choice.alpha)
        quantized = Graph(graph.model.clone())
        self.writer(linears, dialect).write(quantized, observed, choice)
        count = min(calibration.count, -(-images * calibration.count // calibration.images))
        with calibrated.progress.step(f"Measure {len(linears)} linears one by one", count) as advance:
            batches = islice(calibration.batches(), count)
            return measure(graph, quantized, linears, batches, agreement=agreement, advance=advance), choice
