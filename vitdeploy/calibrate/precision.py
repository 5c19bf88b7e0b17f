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
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.recipe import Quantizer

if TYPE_CHECKING:
    from vitdeploy.calibrate.choice import Choice
    from vitdeploy.calibrate.writers import Writer
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.sensitivity import Agreement


class Precision(Frozen, ABC):
    """A precision with its options. Each file in `vitdeploy/precision/` has one subclass; it has none itself.

    Attributes:
        keep: roles (`head`), regions (`decoder`) or name patterns (`blocks.0.*`) of linears that stay in float.
        smooth_alpha: the strength with which outliers are migrated from activations into weights, from 0 to 1; "norms":
            scale and bias of LayerNorms go whole into the linears behind them.
        quantizer: what decides scales and rounding; None is vitdeploy's own.
    """

    is_float32: ClassVar[bool] = False
    """True for the precision that changes nothing."""
    needs_images: ClassVar[bool] = False
    """True if its ranges come from calibration images. It is refused without them."""
    saves_time: ClassVar[bool] = True
    """False if it saves only memory. `auto` does not try it then."""
    numbers: ClassVar[Numbers]
    """The types that it stores and computes in. They carry its name, which is the name of its file."""
    takes_nncf: ClassVar[bool] = False
    """True if NNCF can quantize to it."""
    targets: ClassVar[tuple[str, ...]] = ()
    """Targets that take it but do not name it in `Target.precisions`."""

    keep: tuple[str, ...] = ()
    smooth_alpha: Literal["auto", "off", "norms"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    quantizer: Quantizer | None = None

    @property
    def name(self) -> str:
        """The name as users write it."""
        return self.numbers.precision

    @property
    def per_linear(self) -> bool:
        """Return whether single linears can stay in float, which an accuracy budget needs."""
        return isinstance(self, LinearPrecision)

    @abstractmethod
    def lower(self, calibrated: CalibratedGraph, dialect: Dialect) -> Quantized:
        """Make a copy of the float32 graph in this precision, for a compiler of `dialect`.

        Raises:
            QuantizeError: calibration images are missing, or the format cannot hold what the graph computes.
        """

    def alphas(self) -> Alphas:
        """Return the migration strengths that a search begins with."""
        from vitdeploy.calibrate.choice import NORMS
        from vitdeploy.calibrate.search import ALPHAS

        if self.smooth_alpha == "auto":
            return ALPHAS
        if self.smooth_alpha in ("off", "norms"):
            return (None if self.smooth_alpha == "off" else NORMS,)
        return (float(self.smooth_alpha),)


class LinearPrecision(Precision, ABC):
    """A precision that quantizes linear by linear.

    Attributes:
        float_decoder: leave what `FLOAT_IN_DETECTORS` names in float. It concerns precisions that round activations.
    """

    rounds_activations: ClassVar[bool] = True
    """False if products read activations in float."""
    float_decoder: bool = True

    def select_linears(
        self, structure: Structure, dialect: Dialect | None = None
    ) -> tuple[list[Linear], dict[str, str]]:
        """Select the linears to quantize; give the rule for each that stays in float. None is no particular target.

        Raises:
            QuantizeError: a `keep` entry matches nothing, or nothing is left to quantize.
        """
        from vitdeploy.quantize.placement import select_linears

        least = dialect.least_pointwise if dialect is not None and self.rounds_activations else None
        is_kept = self.float_decoder and self.rounds_activations
        return select_linears(structure, self.keep, least, float_decoder=is_kept)

    @abstractmethod
    def writer(self, linears: Sequence[Linear], dialect: Dialect) -> Writer:
        """Return a writer that quantizes these linears."""

    @abstractmethod
    def best_choice(self, calibrated: CalibratedGraph, dialect: Dialect) -> Choice:
        """Return the way to quantize that changes the outputs least."""

    def measure_sensitivity(
        self, calibrated: CalibratedGraph, dialect: Dialect, images: int, agreement: Agreement | None = None
    ) -> tuple[tuple[LayerSensitivity, ...], Choice]:
        """Measure the loss when each linear alone is quantized, worst first. Also return how they were quantized.

        Linears that `keep` names are measured as well.

        Args:
            calibrated: with real images.
            dialect: of the compiler.
            images: the least number of calibration images to measure on.
            agreement: of the model's task.

        Raises:
            QuantizeError: there are no images, or there is no linear.
        """
        from vitdeploy.graph.model import Graph
        from vitdeploy.quantize.placement import select_linears
        from vitdeploy.quantize.sensitivity import measure_linears

        calibration = calibrated.require_images()
        linears, _ = select_linears(calibrated.structure, ())
        choice = self.best_choice(calibrated, dialect)
        graph, statistics = calibrated.migrate(choice.alpha)
        quantized = Graph(graph.model.clone())
        self.writer(linears, dialect).write(quantized, statistics, choice)
        count = min(calibration.count, -(-images * calibration.count // calibration.images))
        with calibrated.progress.step(f"Measure {len(linears)} linears one by one", count) as advance:
            batches = islice(calibration.batches(), count)
            layers = measure_linears(graph, quantized, linears, batches, agreement=agreement, advance=advance)
        return layers, choice
