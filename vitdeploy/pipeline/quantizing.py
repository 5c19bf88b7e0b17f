"""From the raised float32 graph to the precision that was asked for: what to try, and what was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from vitdeploy import environment
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.passes.migrate_outliers import MigrateOutliers
    from vitdeploy.quantize import Calibration, Quantized
    from vitdeploy.quantize.observe import Observed
    from vitdeploy.quantize.qdq import Format, Kind
    from vitdeploy.quantize.sensitivity import Agreement
    from vitdeploy.search import Choice, Judge, Trial

_WEIGHTS = ("int8-weights", "int4-weights")
_FULL_RANGE = 127
_HALF_RANGE = 64
"""255 · 64 · 2 = 32,640 fits int16: AVX2 adds pairs of u8 x s8 products there and saturates beyond 32,767."""

QUANTIZED = ("int8", "int8-dynamic", "fp8", *_WEIGHTS)
"""The precisions that quantize linear by linear, so that some can stay in float."""

FLOAT = "float: "
"""Before the name of a linear that stayed in float, in what the manifest tells of a precision."""

_ACTIVATIONS = {"uint8": "uint8", "int8": "int8, symmetric", "e4m3": "FP8 E4M3"}

Write = Callable[["Graph", Mapping[str, "Observed"], "Choice"], None]
"""Quantizes linears of a graph in place, with what was observed of their inputs, in the way that was chosen."""


def quantize(
    graph: Graph,
    structure: Structure,
    precision: PrecisionSpec,
    dialect: Dialect,
    calibration: Calibration | None,
    progress: Progress,
) -> Quantized:
    """One precision of a graph; see `Quantizer`, which makes several."""
    return Quantizer(graph, structure, dialect, calibration, progress).quantize(precision)


class Quantizer:
    """Makes the precisions of one raised and folded `graph`, which it leaves as it is, for a compiler of `dialect`.

    What the images show is looked at once, whatever number of precisions is made of it.
    """

    def __init__(
        self,
        graph: Graph,
        structure: Structure,
        dialect: Dialect,
        calibration: Calibration | None,
        progress: Progress,
    ) -> None:
        self.graph = graph
        self.structure = structure
        self.dialect = dialect
        self.calibration = calibration
        self._progress = progress
        self._chosen: dict[PrecisionSpec, Choice] = {}

    def quantize(self, precision: PrecisionSpec) -> Quantized:
        """A copy of the graph in this precision, and what was done.

        Raises:
            QuantizeError: calibration data is missing, or the format cannot hold what the graph computes.
        """
        made = self._made(precision)
        if self.calibration is None or precision.kind in ("fp32", "bf16"):
            return made
        doubts = {f"doubt: {number}": doubt for number, doubt in enumerate(self._calibration_doubts)}
        return replace(made, record={**made.record, **doubts})

    @cached_property
    def _calibration_doubts(self) -> list[str]:
        return self.calibration.doubts() if self.calibration is not None else []

    def _made(self, precision: PrecisionSpec) -> Quantized:
        from vitdeploy.quantize import Quantized, bfloat16, half, weights

        if precision.attention:
            self._check_attention(precision)
        if precision.kind == "fp16":
            with self._progress.step("Check ranges and convert to float16"):
                return half.quantize(self._copy(), self.structure, precision, self.calibration)
        if precision.kind == "bf16":
            return bfloat16.quantize(self._copy(), self.structure, precision, typed=self.dialect.half_around)
        if self._weights_only(precision):
            seen = None if self.calibration is None or self.calibration.synthetic else self.observed
            return weights.quantize(self._copy(), self.structure, precision, self.dialect, seen)
        if precision.kind == "int8-dynamic":
            return self._dynamic(precision)
        if precision.kind in ("int8", "fp8"):
            found = self._static(precision)
            if precision.attention:
                found = self._with_attention(found)
            return self._half_around(found) if self.dialect.half_around else found
        return Quantized(self._copy(), {})

    def sensitivity(
        self, precision: PrecisionSpec, images: int, agreement: Agreement | None = None
    ) -> tuple[tuple[LayerSensitivity, ...], Choice]:
        """What each linear that can be quantized costs when it alone is, worst first; and how it was done.

        The way is the one that `quantize` found for all of them together, or finds now; what `precision` keeps in float
        is told as well.

        Args:
            precision: one that quantizes linears.
            images: how many calibration images are looked at, at least.
            agreement: of the model's task.

        Raises:
            QuantizeError: the precision quantizes no linear, calibration data is missing, or there is no linear.
        """
        from vitdeploy.graph.model import Graph
        from vitdeploy.quantize.placement import place
        from vitdeploy.quantize.sensitivity import measure
        from vitdeploy.search import Choice

        if precision.kind not in QUANTIZED:
            raise QuantizeError(
                f"{precision.kind} quantizes no linear, so there is nothing to compare",
                fix=f"Ask for {', '.join(QUANTIZED)}.",
            )
        calibration = self._images()
        kept, everything = (place(self.structure, keep)[0] for keep in (precision.keep, ()))
        choice = self._chosen.get(precision)
        if choice is None:
            weights_only = self._weights_only(precision)
            choice = Choice() if weights_only else self._searched(precision, self._writer(precision, kept))[1]
        graph, observed = self.migrated(choice.alpha)
        quantized = Graph(graph.model.clone())
        self._writer(precision, everything)(quantized, observed, choice)
        count = min(calibration.count, -(-images * calibration.count // calibration.images))
        with self._progress.step(f"Measure {len(everything)} linears one by one", count) as advance:
            batches = islice(calibration.batches(), count)
            return measure(graph, quantized, everything, batches, agreement=agreement, advance=advance), choice

    def _weights_only(self, precision: PrecisionSpec) -> bool:
        """Whether the graph tells of weights only; with dynamic INT8 the engine then rounds activations by itself."""
        left_to_the_engine = precision.kind == "int8-dynamic" and self.dialect.int8_linears == "qdq"
        return precision.kind in _WEIGHTS or left_to_the_engine

    def format(self, precision: PrecisionSpec, choice: Choice) -> Format:
        """How this precision writes the Q/DQ pairs of a linear."""
        from vitdeploy.quantize.qdq import Format

        kind: Kind = "e4m3" if precision.kind == "fp8" else self.dialect.activation_codes
        largest = largest_weight() if kind == "uint8" else _FULL_RANGE
        return Format(kind, largest, choice.ranges, choice.correct_bias)

    @cached_property
    def observed(self) -> Mapping[str, Observed]:
        """What the inputs of all linears are like over the calibration images, by their names."""
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.observe import observe
        from vitdeploy.quantize.placement import place

        calibration = self._images()
        placed, _ = place(self.structure, ())
        names = set(_nodes(placed))
        inputs = {operand(n, 0).name or "" for n in self.graph.nodes if n.name in names and n.op_type == "MatMul"}
        with self._progress.step("Observe activations", calibration.count) as advance:
            return observe(self.graph, inputs, _counted(calibration, advance), calibration.count)

    @cached_property
    def _judge(self) -> Judge:
        from vitdeploy.search import Judge

        return Judge(self.graph, self._images())

    def _images(self) -> Calibration:
        if self.calibration is None or self.calibration.synthetic:
            raise QuantizeError(
                "int8 and fp8 need calibration images: ranges are never invented",
                fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
            )
        return self.calibration

    def _copy(self) -> Graph:
        from vitdeploy.graph.model import Graph

        return Graph(self.graph.model.clone())

    def _static(self, precision: PrecisionSpec) -> Quantized:
        """Q/DQ pairs on every placed linear, after the migration that keeps the outputs best."""
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import place

        self._images()
        placed, kept = self._with_range(*place(self.structure, precision.keep))
        best, choice, record = self._searched(precision, self._writer(precision, placed))
        form = self.format(precision, choice)
        told = {
            "method": "static Q/DQ",
            "activations": f"{_ACTIVATIONS[form.kind]}, per tensor",
            "weight_bits": _bits(form.largest_weight),
        }
        return Quantized(best, {**told, **record, **_placement(placed, kept)}, choice.alpha)

    def _with_range(self, placed: list[Linear], kept: dict[str, str]) -> tuple[list[Linear], dict[str, str]]:
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.placement import with_range

        inputs = {n.name or "": operand(n, 0).name or "" for n in self.graph.nodes if n.op_type == "MatMul"}
        return with_range(placed, kept, inputs, {name for name, seen in self.observed.items() if seen.silent})

    def _dynamic(self, precision: PrecisionSpec) -> Quantized:
        """ONNX Runtime's dynamic operator on every placed linear; migrated first, if there are images to learn from."""
        from vitdeploy.quantize import Quantized, dynamic
        from vitdeploy.quantize.placement import place

        placed, kept = place(self.structure, precision.keep)
        told = {"method": "dynamic", "weight_bits": _bits(largest_weight())}
        if self.calibration is None or self.calibration.synthetic:
            graph = self._copy()
            dynamic.write(graph, _nodes(placed), largest_weight())
            told["migration"] = "none: it needs calibration images (--calibration)"
            return Quantized(graph, {**told, **_placement(placed, kept)})
        best, choice, record = self._searched(precision, self._writer(precision, placed))
        return Quantized(best, {**told, **record, **_placement(placed, kept)}, choice.alpha)

    def _writer(self, precision: PrecisionSpec, placed: Sequence[Linear]) -> Write:
        """What quantizes these linears in this precision."""
        from vitdeploy.quantize import dynamic, qdq, weights

        def write(graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:
            if self._weights_only(precision):
                weights.write(graph, _nodes(placed), weights.format_of(precision, self.dialect), observed)
            elif precision.kind == "int8-dynamic":
                dynamic.write(graph, _nodes(placed), largest_weight())
            else:
                qdq.write(graph, _nodes(placed), observed, self.format(precision, choice))

        return write

    def _check_attention(self, precision: PrecisionSpec) -> None:
        if self.dialect.int8_attention is None or precision.kind != "int8":
            raise QuantizeError(
                f"attention: true is not for {precision.kind} here: only TensorRT keeps quantized attention in one "
                "kernel, and gains by it in int8 alone",
                fix="Leave `attention` out of the recipe's precision.",
            )

    def _with_attention(self, found: Quantized) -> Quantized:
        """Q/DQ pairs on q, k, v and the probabilities too, in place, wherever attention then stays one kernel."""
        from vitdeploy.graph.model import operand
        from vitdeploy.passes.lower_primitives import LowerPrimitives
        from vitdeploy.quantize import Quantized, attention
        from vitdeploy.quantize.ranges import collect

        assert self.dialect.int8_attention is not None
        calibration, graph = self._images(), found.graph
        cores, left = attention.place(graph, self.dialect.int8_attention)
        if not cores:
            why = next(iter(left.values()), "there is none")
            raise QuantizeError(
                f"no attention can be INT8 and stay fused: {why}", fix="Leave `attention` out of the recipe's precision."
            )
        LowerPrimitives(only=frozenset(cores)).apply(graph)
        names = {operand(node, index).name or "" for node, index in attention.operands(graph, cores)}
        with self._progress.step("Observe attention", calibration.count) as advance:
            ranges = collect(graph, _counted(calibration, advance), names)
        attention.write(graph, cores, ranges)
        told = {
            "attention": f"int8: q, k, v and probabilities of {len(cores)} of {len(cores) + len(left)} sites",
            "output_sqnr_db": f"{self._judge.sqnr_db(graph):.1f}",
            "output_sqnr_db_without_attention": found.record["output_sqnr_db"],
        }
        return Quantized(graph, {**found.record, **told, **{f"float: {core}": why for core, why in left.items()}}, found.alpha)

    def _half_around(self, found: Quantized) -> Quantized:
        from vitdeploy.quantize import Quantized, half

        with self._progress.step("Check ranges and convert the rest to float16"):
            around = half.quantize(found.graph, self.structure, PrecisionSpec(kind="fp16"), self.calibration)
        record = {**found.record, **{f"around: {key}": value for key, value in around.record.items()}}
        return Quantized(around.graph, record, found.alpha)

    def _searched(self, precision: PrecisionSpec, write: Write) -> tuple[Graph, Choice, dict[str, str]]:
        """The graph of the choice whose outputs are nearest to float32's, and the path to it."""
        from vitdeploy import search

        alphas: tuple[float | None, ...] = search.ALPHAS
        if precision.smooth_alpha != "auto":
            alphas = (None if precision.smooth_alpha == "off" else float(precision.smooth_alpha),)
        calibration, judge = self._images(), self._judge
        tune_ranges = precision.kind != "int8-dynamic"
        with self._progress.step("Search migration and ranges" if tune_ranges else "Search migration"):
            choice, trials = search.choose(
                lambda c: judge.sqnr_db(self._built(c, write)), alphas=alphas, tune_ranges=tune_ranges
            )
        ranges = {"ranges": choice.ranges, "bias_correction": "on" if choice.correct_bias else "off"}
        record = {
            "migration": self._told(choice.alpha),
            **(ranges if tune_ranges else {}),
            "output_sqnr_db": f"{_of(trials, choice).sqnr_db:.1f}",
            "tried": "; ".join(f"{t.choice}: {t.sqnr_db:.1f} dB" for t in trials),
            "calibration": calibration.spec,
            "calibration_digest": calibration.digest,
            "calibration_images": str(calibration.images),
        }
        self._chosen[precision] = choice
        return self._built(choice, write), choice, record

    def _built(self, choice: Choice, write: Write) -> Graph:
        graph, observed = self.migrated(choice.alpha)
        write(graph, observed, choice)
        return graph

    def migrated(self, alpha: float | None) -> tuple[Graph, Mapping[str, Observed]]:
        """A copy of the graph with its outliers moved into the weights, and what would have been observed in it."""
        graph = self._copy()
        if alpha is None:
            return graph, self.observed
        migrate = self._migration(alpha)
        factors = migrate.factors(graph)
        migrate.apply(graph)
        moved = {name: self.observed[name].divided(f) for name, f in factors.items() if name in self.observed}
        return graph, {**self.observed, **moved}

    def _migration(self, alpha: float) -> MigrateOutliers:
        from vitdeploy.passes.migrate_outliers import MigrateOutliers

        return MigrateOutliers(maxima={name: seen.magnitude for name, seen in self.observed.items()}, alpha=alpha)

    def _told(self, alpha: float | None) -> str:
        if alpha is None:
            return "off"
        return f"alpha {alpha:g}, inputs of {len(self._migration(alpha).factors(self._copy()))} places"


def largest_weight() -> int:
    """The largest INT8 weight code of CPUs: without VNNI, sums of u8 x s8 saturate with weights of 8 bits."""
    return _FULL_RANGE if environment.host().int8_dot_product else _HALF_RANGE


def _bits(largest: int) -> str:
    return "8" if largest == _FULL_RANGE else "7"


def _placement(placed: Sequence[Linear], kept: Mapping[str, str]) -> dict[str, str]:
    return {"quantized": str(len(placed)), **{f"{FLOAT}{name}": rule for name, rule in kept.items()}}


def _of(trials: Sequence[Trial], choice: Choice) -> Trial:
    return next(t for t in trials if t.choice == choice)


def _nodes(placed: Sequence[Linear]) -> list[str]:
    return [name for linear in placed for name in linear.nodes]


def _counted(calibration: Calibration, advance: Callable[[int], None]) -> Iterator[Array]:
    for batch in calibration.batches():
        yield batch
        advance(1)
