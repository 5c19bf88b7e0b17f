"""The raised float32 graph with its calibration images, from which every precision is made."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vitdeploy.artifact.quantization import Migration, Quantization
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.structure import Structure
from vitdeploy.progress import Progress
from vitdeploy.session import Inputs

if TYPE_CHECKING:
    from vitdeploy.calibrate.choice import Alpha, Choice
    from vitdeploy.calibrate.nncf_static import NNCFRun
    from vitdeploy.calibrate.search import Judge, ScoredChoice
    from vitdeploy.calibrate.writers import Writer
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.migrate_outliers import MigrateOutliers
    from vitdeploy.quantize import Calibration
    from vitdeploy.quantize.observe import InputStatistics

Alphas = tuple["Alpha", ...]
"""Migration strengths; None is no migration."""


@dataclass(frozen=True)
class SearchResult:
    """The best way to quantize, and every way that was tried."""

    choice: Choice
    tried: tuple[ScoredChoice, ...]

    @property
    def sqnr_db(self) -> float | None:
        """The best signal-to-noise ratio of the model's outputs, in dB; None if it is not finite."""
        return next(step.record.output_sqnr_db for step in self.tried if step.choice == self.choice)


class CalibratedGraph:
    """A raised and folded float32 graph, with what calibration images show about it.

    Nothing is computed before it is needed, and nothing twice, however many precisions are made from it. The `graph` is
    not changed.

    Attributes:
        graph: in float32.
        structure: its sites and linears.
        calibration: images; None where there are none.
        progress: shows the steps.
        nncf_runs: what NNCF made of it, by settings.
    """

    def __init__(self, graph: Graph, structure: Structure, calibration: Calibration | None, progress: Progress) -> None:
        self.graph = graph
        self.structure = structure
        self.calibration = calibration
        self.progress = progress
        self.nncf_runs: dict[Hashable, NNCFRun] = {}
        self._searches: dict[tuple[Writer, Alphas, bool], SearchResult] = {}

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
                "activation ranges need calibration images, and none were given",
                fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
            )
        return self.calibration

    def copy(self) -> Graph:
        """Return a copy of the graph to write to."""
        from vitdeploy.graph.model import Graph

        return Graph(self.graph.model.clone())

    def stream_batches(self, title: str) -> Iterator[Inputs]:
        """Yield the calibration batches, shown as one step of the progress."""
        calibration = self.require_images()
        with self.progress.step(title, calibration.count) as advance:
            for batch in calibration.batches():
                yield batch
                advance(1)

    @cached_property
    def statistics(self) -> Mapping[str, InputStatistics]:
        """Statistics of the inputs of all linears over the calibration images, by input name."""
        return self._observe(self.graph, "Observe activations")

    def _observe(self, graph: Graph, title: str) -> Mapping[str, InputStatistics]:
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.observe import collect_statistics
        from vitdeploy.quantize.placement import select_linears

        linears, _ = select_linears(self.structure, ())
        names = {name for linear in linears for name in linear.nodes}
        inputs = {operand(n, 0).name or "" for n in graph.nodes if n.name in names and n.op_type == "MatMul"}
        return collect_statistics(graph, inputs, self.stream_batches(title), self.require_images().count)

    @cached_property
    def folded_norms(self) -> int:
        """The number of LayerNorms that can only normalise, with scale and bias in the linears behind them."""
        from vitdeploy.passes.fold_norm_affine import FoldNormAffine

        return len(FoldNormAffine().list_linears(self.graph))

    @cached_property
    def _folded_statistics(self) -> Mapping[str, InputStatistics]:
        """Statistics of the inputs of all linears where norms are folded."""
        return self._observe(self._fold_norms(), "Observe activations behind folded norms")

    def _fold_norms(self) -> Graph:
        """Return a copy with folded norms, made anew each time: it has weights of its own."""
        from vitdeploy.passes.fold_norm_affine import FoldNormAffine

        graph = self.copy()
        FoldNormAffine().apply(graph)
        return graph

    @property
    def zero_nodes(self) -> set[str]:
        """The products whose input is 0 on every image."""
        from vitdeploy.graph.model import operand

        zero = {name for name, statistics in self.statistics.items() if statistics.is_zero}
        products = (node for node in self.graph.nodes if node.op_type == "MatMul")
        return {node.name or "" for node in products if operand(node, 0).name in zero}

    @cached_property
    def judge(self) -> Judge:
        """A judge that compares outputs with those of the float32 graph."""
        from vitdeploy.calibrate.search import Judge

        return Judge(self.graph, self.require_images())

    def migrate(self, alpha: Alpha) -> tuple[Graph, Mapping[str, InputStatistics]]:
        """Return a copy with outliers moved into the weights, and the statistics of its inputs."""
        if alpha is None:
            return self.copy(), self.statistics
        graph, statistics, migration = self._prepare_migration(alpha)
        factors = migration.factors(graph)
        migration.apply(graph)
        divided = {name: statistics[name].divide(f) for name, f in factors.items() if name in statistics}
        return graph, {**statistics, **divided}

    def _prepare_migration(
        self, alpha: float | Literal["norms"]
    ) -> tuple[Graph, Mapping[str, InputStatistics], MigrateOutliers]:
        """Return a graph to write to, the statistics of its inputs, and what migrates its outliers."""
        from vitdeploy.calibrate.choice import NORMS, VALUES_ALPHA
        from vitdeploy.graph.model import operand
        from vitdeploy.passes.fold_norm_affine import FoldNormAffine
        from vitdeploy.passes.migrate_outliers import MigrateOutliers

        if alpha != NORMS:
            maxima = {name: statistics.magnitude for name, statistics in self.statistics.items()}
            return self.copy(), self.statistics, MigrateOutliers(maxima=maxima, alpha=float(alpha))
        graph, statistics = self._fold_norms(), self._folded_statistics
        linears = {name for names in FoldNormAffine().list_linears(graph).values() for name in names}
        folded = {operand(node, 0).name for node in graph.nodes if node.name in linears}
        maxima = {name: one.magnitude for name, one in statistics.items() if name not in folded}
        return graph, statistics, MigrateOutliers(maxima=maxima, alpha=VALUES_ALPHA)

    def search(self, writer: Writer, alphas: Alphas, *, tune_ranges: bool = True) -> SearchResult:
        """Find the way to quantize with `writer` that changes the outputs least. Each search runs once.

        Args:
            writer: quantizes linears in a copy of the graph.
            alphas: migration strengths to begin with; a single one is used as it is.
            tune_ranges: whether to choose ranges and bias correction too.
        """
        from vitdeploy.calibrate import search
        from vitdeploy.calibrate.choice import NORMS, VALUES_ALPHA

        if NORMS in alphas and not self.folded_norms:  # then "norms" is this strength alone, and is recorded as that
            alphas = tuple(VALUES_ALPHA if alpha == NORMS else alpha for alpha in alphas)
        key = (writer, alphas, tune_ranges)
        if key not in self._searches:
            judge = self.judge
            with self.progress.step("Search migration and ranges" if tune_ranges else "Search migration"):
                choice, tried = search.find_best_choice(
                    lambda c: judge.sqnr_db(self.write(writer, c)), alphas=alphas, tune_ranges=tune_ranges
                )
            self._searches[key] = SearchResult(choice, tuple(tried))
        return self._searches[key]

    def write(self, writer: Writer, choice: Choice) -> Graph:
        """Return a copy of the graph, migrated and then quantized with `writer`."""
        graph, statistics = self.migrate(choice.alpha)
        writer.write(graph, statistics, choice)
        return graph

    def record_search(self, record: Quantization, result: SearchResult, *, tune_ranges: bool = True) -> Quantization:
        """Add the choice of a search, and every way that it tried, to a record."""
        choice = result.choice
        return replace(
            record,
            migration=self._migration_record(choice.alpha),
            ranges=choice.ranges if tune_ranges else None,
            bias_correction=choice.correct_bias if tune_ranges else None,
            output_sqnr_db=result.sqnr_db,
            tried=tuple(step.record for step in result.tried),
            calibration=self.require_images().data,
        )

    def _migration_record(self, alpha: Alpha) -> Migration | None:
        from vitdeploy.calibrate.choice import NORMS, VALUES_ALPHA

        if alpha is None:
            return None
        graph, _, migration = self._prepare_migration(alpha)
        inputs = len(migration.factors(graph))
        if alpha == NORMS:
            return Migration(alpha=VALUES_ALPHA, inputs=inputs, norms=self.folded_norms)
        return Migration(alpha=alpha, inputs=inputs)
