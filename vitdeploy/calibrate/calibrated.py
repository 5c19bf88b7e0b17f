"""What calibration images teach about a float32 graph: the inputs of its linears, and the best way to quantize them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vitdeploy.errors import QuantizeError
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice, Judge
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.migrate_outliers import MigrateOutliers
    from vitdeploy.quantize import Calibration
    from vitdeploy.quantize.observe import Observed

Write = Callable[["Graph", Mapping[str, "Observed"], "Choice"], None]
"""Quantizes linears of a graph in place, with what was observed of their inputs, in the way that was chosen."""


class Learned:
    """Looks at the images when something is asked for, and at each thing once. The `graph` is left as it is."""

    def __init__(self, graph: Graph, structure: Structure, calibration: Calibration | None, progress: Progress) -> None:
        self._graph = graph
        self._structure = structure
        self._calibration = calibration
        self._progress = progress

    @property
    def has_images(self) -> bool:
        """Whether there are real ones."""
        return self._calibration is not None and not self._calibration.synthetic

    def images(self) -> Calibration:
        """The calibration images.

        Raises:
            QuantizeError: there are none, or they are made up.
        """
        if self._calibration is None or self._calibration.synthetic:
            raise QuantizeError(
                "int8 and fp8 need calibration images: ranges are never invented",
                fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
            )
        return self._calibration

    def copy(self) -> Graph:
        """The graph, to write to."""
        from vitdeploy.graph.model import Graph

        return Graph(self._graph.model.clone())

    def counted(self, title: str) -> Iterator[Array]:
        """The batches, as one step of the progress."""
        calibration = self.images()
        with self._progress.step(title, calibration.count) as advance:
            for batch in calibration.batches():
                yield batch
                advance(1)

    @cached_property
    def observed(self) -> Mapping[str, Observed]:
        """What the inputs of all linears are like over the calibration images, by their names."""
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.observe import observe
        from vitdeploy.quantize.placement import place

        placed, _ = place(self._structure, ())
        names = set(nodes_of(placed))
        inputs = {operand(n, 0).name or "" for n in self._graph.nodes if n.name in names and n.op_type == "MatMul"}
        return observe(self._graph, inputs, self.counted("Observe activations"), self.images().count)

    @cached_property
    def judge(self) -> Judge:
        """Compares outputs with those of the float32 graph."""
        from vitdeploy.calibrate.search import Judge

        return Judge(self._graph, self.images())

    def migrated(self, alpha: float | None) -> tuple[Graph, Mapping[str, Observed]]:
        """A copy of the graph with its outliers moved into the weights, and what would have been observed in it."""
        graph = self.copy()
        if alpha is None:
            return graph, self.observed
        migrate = self._migration(alpha)
        factors = migrate.factors(graph)
        migrate.apply(graph)
        moved = {name: self.observed[name].divided(f) for name, f in factors.items() if name in self.observed}
        return graph, {**self.observed, **moved}

    def searched(self, precision: PrecisionSpec, write: Write) -> tuple[Graph, Choice, dict[str, str]]:
        """The graph of the choice whose outputs are nearest to float32's, the choice, and the path to it."""
        from vitdeploy.calibrate import search

        alphas: tuple[float | None, ...] = search.ALPHAS
        if precision.smooth_alpha != "auto":
            alphas = (None if precision.smooth_alpha == "off" else float(precision.smooth_alpha),)
        calibration, judge = self.images(), self.judge
        tune_ranges = precision.kind != "int8-dynamic"
        with self._progress.step("Search migration and ranges" if tune_ranges else "Search migration"):
            choice, trials = search.choose(
                lambda c: judge.sqnr_db(self.built(c, write)), alphas=alphas, tune_ranges=tune_ranges
            )
        ranges = {"ranges": choice.ranges, "bias_correction": "on" if choice.correct_bias else "off"}
        record = {
            "migration": self._told(choice.alpha),
            **(ranges if tune_ranges else {}),
            "output_sqnr_db": f"{next(t.sqnr_db for t in trials if t.choice == choice):.1f}",
            "tried": "; ".join(f"{t.choice}: {t.sqnr_db:.1f} dB" for t in trials),
            "calibration": calibration.spec,
            "calibration_digest": calibration.digest,
            "calibration_images": str(calibration.images),
        }
        return self.built(choice, write), choice, record

    def built(self, choice: Choice, write: Write) -> Graph:
        """The graph of a choice."""
        graph, observed = self.migrated(choice.alpha)
        write(graph, observed, choice)
        return graph

    def _migration(self, alpha: float) -> MigrateOutliers:
        from vitdeploy.passes.migrate_outliers import MigrateOutliers

        return MigrateOutliers(maxima={name: seen.magnitude for name, seen in self.observed.items()}, alpha=alpha)

    def _told(self, alpha: float | None) -> str:
        if alpha is None:
            return "off"
        return f"alpha {alpha:g}, inputs of {len(self._migration(alpha).factors(self.copy()))} places"


def nodes_of(linears: Sequence[Linear]) -> list[str]:
    """The names of the nodes that compute these linears."""
    return [name for linear in linears for name in linear.nodes]
