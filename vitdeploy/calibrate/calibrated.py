"""The raised float32 graph with its calibration images: what every precision is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vitdeploy.artifact.quantization import Migration, Quantization
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.structure import Structure
from vitdeploy.progress import Progress
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice, Judge, ScoredChoice
    from vitdeploy.calibrate.writers import Writer
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.migrate_outliers import MigrateOutliers
    from vitdeploy.quantize import Calibration
    from vitdeploy.quantize.observe import Observed

Alphas = tuple[float | None, ...]


@dataclass(frozen=True)
class Searched:
    """The best way to quantize, and every way that was tried."""

    choice: Choice
    tried: tuple[ScoredChoice, ...]

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise of the model's outputs with the best way, in dB; None where they were not finite."""
        return next(step.record.output_sqnr_db for step in self.tried if step.choice == self.choice)


class CalibratedGraph:
    """A raised and folded float32 graph, and all that calibration images show about it.

    Images are looked at when something is asked for, and once for each thing, whatever number of precisions is made of
    it. The `graph` is left as it is.

    Attributes:
        graph: in float32.
        structure: its sites and linears.
        calibration: images; None where there are none.
        progress: told about the steps.
    """

    def __init__(self, graph: Graph, structure: Structure, calibration: Calibration | None, progress: Progress) -> None:
        self.graph = graph
        self.structure = structure
        self.calibration = calibration
        self.progress = progress
        self._searches: dict[tuple[Writer, Alphas, bool], Searched] = {}

    @property
    def has_images(self) -> bool:
        """Return whether there are real calibration images."""
        return self.calibration is not None and not self.calibration.synthetic

    def require_images(self) -> Calibration:
        """Return the calibration images.

        Raises:
            QuantizeError: there are none, or they are made up.
        """
        if self.calibration is None or self.calibration.synthetic:
            raise QuantizeError(
                "ranges need calibration images: they are never invented",
                fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
            )
        return self.calibration

    def copy(self) -> Graph:
        """Return a copy of the graph to write to."""
        from vitdeploy.graph.model import Graph

        return Graph(self.graph.model.clone())

    def stream(self, title: str) -> Iterator[Array]:
        """Yield the calibration batches, as one step of the progress."""
        calibration = self.require_images()
        with self.progress.step(title, calibration.count) as advance:
            for batch in calibration.batches():
                yield batch
                advance(1)

    @cached_property
    def observed(self) -> Mapping[str, Observed]:
        """The inputs of all linears over the calibration images, by their names."""
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.observe import observe
        from vitdeploy.quantize.placement import place

        linears, _ = place(self.structure, ())
        names = {name for linear in linears for name in linear.nodes}
        inputs = {operand(n, 0).name or "" for n in self.graph.nodes if n.name in names and n.op_type == "MatMul"}
        return observe(self.graph, inputs, self.stream("Observe activations"), self.require_images().count)

    @property
    def silent_nodes(self) -> set[str]:
        """The products whose input is 0 on every image."""
        from vitdeploy.graph.model import operand

        silent = {name for name, observed in self.observed.items() if observed.silent}
        products = (node for node in self.graph.nodes if node.op_type == "MatMul")
        return {node.name or "" for node in products if operand(node, 0).name in silent}

    @cached_property
    def judge(self) -> Judge:
        """Compares outputs with those of the float32 graph."""
        from vitdeploy.calibrate.search import Judge

        return Judge(self.graph, self.require_images())

    def migrate(self, alpha: float | None) -> tuple[Graph, Mapping[str, Observed]]:
        """Return a copy of the graph with its outliers moved into the weights, and what would be observed in it."""
        graph = self.copy()
        if alpha is None:
            return graph, self.observed
        migration = self._migration(alpha)
        factors = migration.factors(graph)
        migration.apply(graph)
        divided = {name: self.observed[name].divided(f) for name, f in factors.items() if name in self.observed}
        return graph, {**self.observed, **divided}

    def search(self, writer: Writer, alphas: Alphas, *, tune_ranges: bool = True) -> Searched:
        """Find the way to quantize with `writer` whose outputs are nearest to those of float32; each search runs once.

        Args:
            writer: quantizes linears in a copy of the graph.
            alphas: migration strengths to begin with; a single one is taken as given.
            tune_ranges: whether ranges and bias correction are chosen too.
        """
        from vitdeploy.calibrate import search

        key = (writer, alphas, tune_ranges)
        if key not in self._searches:
            judge = self.judge
            with self.progress.step("Search migration and ranges" if tune_ranges else "Search migration"):
                choice, tried = search.choose(
                    lambda c: judge.sqnr_db(self.write(writer, c)), alphas=alphas, tune_ranges=tune_ranges
                )
            self._searches[key] = Searched(choice, tuple(tried))
        return self._searches[key]

    def write(self, writer: Writer, choice: Choice) -> Graph:
        """Return a copy of the graph, migrated and then quantized with `writer`."""
        graph, observed = self.migrate(choice.alpha)
        writer.write(graph, observed, choice)
        return graph

    def record_search(self, record: Quantization, searched: Searched, *, tune_ranges: bool = True) -> Quantization:
        """Add to a record what a search chose and tried."""
        choice = searched.choice
        return replace(
            record,
            migration=self._migration_record(choice.alpha),
            ranges=choice.ranges if tune_ranges else None,
            bias_correction=choice.correct_bias if tune_ranges else None,
            output_sqnr_db=searched.sqnr_db,
            tried=tuple(step.record for step in searched.tried),
            calibration=self.require_images().data,
        )

    def _migration_record(self, alpha: float | None) -> Migration | None:
        if alpha is None:
            return None
        return Migration(alpha=alpha, inputs=len(self._migration(alpha).factors(self.copy())))

    def _migration(self, alpha: float) -> MigrateOutliers:
        from vitdeploy.passes.migrate_outliers import MigrateOutliers

        return MigrateOutliers(
            maxima={name: observed.magnitude for name, observed in self.observed.items()}, alpha=alpha
        )
