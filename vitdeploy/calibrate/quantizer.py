"""From the raised float32 graph to the precision that was asked for: what to try, and what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from vitdeploy.artifact.manifest import Placement
from vitdeploy.calibrate.calibrated import Learned, Write, nodes_of
from vitdeploy.calibrate.weight_range import FULL_RANGE, largest_weight, weight_bits
from vitdeploy.errors import QuantizeError
from vitdeploy.evidence import LayerSensitivity
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.progress import Progress
from vitdeploy.recipe import STATIC, PrecisionSpec

if TYPE_CHECKING:
    from vitdeploy.calibrate.search import Choice
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Calibration, Quantized
    from vitdeploy.quantize.observe import Observed
    from vitdeploy.quantize.qdq import Format, Kind
    from vitdeploy.quantize.sensitivity import Agreement

_WEIGHTS = ("int8-weights", "int4-weights")
QUANTIZED = (*STATIC, "int8-dynamic", *_WEIGHTS)
"""The precisions that quantize linear by linear, so that some can stay in float."""

_NO_IMAGES = "none: it needs calibration images (--calibration)"
_ACTIVATIONS = {"uint8": "uint8", "int8": "int8, symmetric", "e4m3": "FP8 E4M3"}


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
        self.learned = Learned(graph, structure, calibration, progress)
        self._progress = progress
        self._found: dict[PrecisionSpec, tuple[Choice, dict[str, str]]] = {}

    def quantize(self, precision: PrecisionSpec) -> Quantized:
        """A copy of the graph in this precision, and what was done.

        Raises:
            QuantizeError: calibration data is missing, or the format cannot hold what the graph computes.
        """
        made = self._made(precision)
        if precision.kind in ("fp32", "bf16"):
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
                return half.quantize(self.learned.copy(), self.structure, precision, self.calibration)
        if precision.kind == "bf16":
            return bfloat16.quantize(self.learned.copy(), self.structure, precision, typed=self.dialect.half_around)
        if precision.kind in _WEIGHTS:
            seen = self.learned.observed if self.learned.has_images else None
            return weights.quantize(self.learned.copy(), self.structure, precision, self.dialect, seen)
        if self._weights_only(precision):
            return self._left_to_the_engine(precision)
        if precision.kind == "int8-dynamic":
            return self._dynamic(precision)
        if precision.kind in STATIC:
            found = self._static(precision)
            if precision.attention:
                found = self._with_attention(found)
            return self._half_around(found) if self.dialect.half_around else found
        return Quantized(self.learned.copy(), {})

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
        from vitdeploy.calibrate.search import Choice
        from vitdeploy.graph.model import Graph
        from vitdeploy.quantize.placement import place
        from vitdeploy.quantize.sensitivity import measure

        if precision.kind not in QUANTIZED:
            raise QuantizeError(
                f"{precision.kind} quantizes no linear, so there is nothing to compare",
                fix=f"Ask for {', '.join(QUANTIZED)}.",
            )
        calibration = self.learned.images()
        kept, everything = (place(self.structure, keep)[0] for keep in (precision.keep, ()))
        choice = Choice() if precision.kind in _WEIGHTS else self._searched(precision, kept)[1]
        graph, observed = self.learned.migrated(choice.alpha)
        quantized = Graph(graph.model.clone())
        self._writer(precision, everything)(quantized, observed, choice)
        count = min(calibration.count, -(-images * calibration.count // calibration.images))
        with self._progress.step(f"Measure {len(everything)} linears one by one", count) as advance:
            batches = islice(calibration.batches(), count)
            return measure(graph, quantized, everything, batches, agreement=agreement, advance=advance), choice

    def format(self, precision: PrecisionSpec, choice: Choice) -> Format:
        """How this precision writes the Q/DQ pairs of a linear."""
        from vitdeploy.quantize.qdq import Format

        kind: Kind = "e4m3" if precision.kind == "fp8" else self.dialect.activation_codes
        largest = largest_weight() if kind == "uint8" else FULL_RANGE
        return Format(kind, largest, choice.ranges, choice.correct_bias)

    def _weights_only(self, precision: PrecisionSpec) -> bool:
        """Whether the graph tells of weights only; with dynamic INT8 the engine then rounds activations by itself."""
        left_to_the_engine = precision.kind == "int8-dynamic" and self.dialect.int8_linears == "qdq"
        return precision.kind in _WEIGHTS or left_to_the_engine

    def _left_to_the_engine(self, precision: PrecisionSpec) -> Quantized:
        """Weights in INT8, for an engine that rounds activations by itself; migrated first, if there are images."""
        from vitdeploy.quantize import weights
        from vitdeploy.quantize.placement import place

        if not self.learned.has_images:
            made = weights.quantize(self.learned.copy(), self.structure, precision, self.dialect, None)
            return replace(made, record={**made.record, "migration": _NO_IMAGES})
        _, choice, record = self._searched(precision, place(self.structure, precision.keep)[0])
        graph, observed = self.learned.migrated(choice.alpha)
        made = weights.quantize(graph, self.structure, precision, self.dialect, observed)
        found = {key: value for key, value in record.items() if key != "output_sqnr_db"}
        return replace(made, record={**made.record, **found}, alpha=choice.alpha)

    def _static(self, precision: PrecisionSpec) -> Quantized:
        """Q/DQ pairs on every placed linear, after the migration that keeps the outputs best."""
        from vitdeploy.quantize import Quantized
        from vitdeploy.quantize.placement import place

        placed, kept = self._with_range(*place(self.structure, precision.keep))
        best, choice, record = self._searched(precision, placed)
        form = self.format(precision, choice)
        method = {
            "method": "static Q/DQ",
            "activations": f"{_ACTIVATIONS[form.kind]}, per tensor",
            "weight_bits": weight_bits(form.largest_weight),
            "quantized": str(len(placed)),
        }
        return Quantized(best, {**method, **record}, choice.alpha, self._told(kept, precision))

    def _with_range(self, placed: list[Linear], kept: dict[str, str]) -> tuple[list[Linear], dict[str, str]]:
        from vitdeploy.graph.model import operand
        from vitdeploy.quantize.placement import with_range

        inputs = {n.name or "": operand(n, 0).name or "" for n in self.graph.nodes if n.op_type == "MatMul"}
        return with_range(placed, kept, inputs, {name for name, seen in self.learned.observed.items() if seen.silent})

    def _dynamic(self, precision: PrecisionSpec) -> Quantized:
        """ONNX Runtime's dynamic operator on every placed linear; migrated first, if there are images to learn from."""
        from vitdeploy.quantize import Quantized, dynamic
        from vitdeploy.quantize.placement import place

        placed, kept = place(self.structure, precision.keep)
        method = {"method": "dynamic", "weight_bits": weight_bits(largest_weight()), "quantized": str(len(placed))}
        where = self._told(kept, precision)
        if not self.learned.has_images:
            graph = self.learned.copy()
            dynamic.write(graph, nodes_of(placed), largest_weight())
            method["migration"] = _NO_IMAGES
            return Quantized(graph, method, placement=where)
        best, choice, record = self._searched(precision, placed)
        return Quantized(best, {**method, **record}, choice.alpha, where)

    def _searched(self, precision: PrecisionSpec, placed: Sequence[Linear]) -> tuple[Graph, Choice, dict[str, str]]:
        # How an engine rounds by itself can be seen in it alone: ONNX Runtime's dynamic INT8 stands in, whose one scale
        # for a tensor suffers more from outliers than a scale for each group of channels.
        stands_in = precision.kind == "int8-dynamic"
        write = self._dynamic_writer(placed) if stands_in else self._writer(precision, placed)
        # What an engine computes around INT8 linears changes nothing about where their ranges should be.
        same = precision.model_copy(update={"kind": "int8"}) if precision.kind == "int8-bf16" else precision
        if same in self._found:
            choice, record = self._found[same]
            return self.learned.built(choice, write), choice, record
        graph, choice, record = self.learned.searched(precision, write)
        self._found[same] = choice, record
        return graph, choice, record

    def _writer(self, precision: PrecisionSpec, placed: Sequence[Linear]) -> Write:
        """What quantizes these linears in this precision."""
        from vitdeploy.quantize import qdq, weights

        if precision.kind == "int8-dynamic" and not self._weights_only(precision):
            return self._dynamic_writer(placed)

        def write(graph: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:
            if self._weights_only(precision):
                weights.write(graph, nodes_of(placed), weights.format_of(precision, self.dialect), observed)
            else:
                qdq.write(graph, nodes_of(placed), observed, self.format(precision, choice))

        return write

    def _dynamic_writer(self, placed: Sequence[Linear]) -> Write:
        from vitdeploy.quantize import dynamic

        return lambda graph, *_: dynamic.write(graph, nodes_of(placed), largest_weight())

    def _check_attention(self, precision: PrecisionSpec) -> None:
        if self.dialect.int8_attention is None or precision.kind != "int8":
            raise QuantizeError(
                f"`attention: true` is not for {precision.kind} here: only TensorRT keeps quantized attention in one "
                "kernel, and gains by it in int8 alone",
                fix="Leave `attention` out of the recipe's precision.",
            )

    def _with_attention(self, found: Quantized) -> Quantized:
        """Q/DQ pairs on q, k, v and the probabilities too, in place, wherever attention then stays one kernel."""
        from vitdeploy.graph.model import operand
        from vitdeploy.passes.lower_primitives import LowerPrimitives
        from vitdeploy.quantize import attention
        from vitdeploy.quantize.placement import attention_told
        from vitdeploy.quantize.ranges import collect

        assert self.dialect.int8_attention is not None
        graph = found.graph
        cores, left = attention.place(graph, self.dialect.int8_attention)
        if not cores:
            why = next(iter(left.values()), "there is none")
            raise QuantizeError(
                f"no attention can be INT8 and stay fused: {why}",
                fix="Leave `attention` out of the recipe's precision.",
            )
        LowerPrimitives(only=frozenset(cores)).apply(graph)
        names = {operand(node, index).name or "" for node, index in attention.operands(graph, cores)}
        attention.write(graph, cores, collect(graph, self.learned.counted("Observe attention"), names))
        method = {
            "attention": f"int8: q, k, v and probabilities of {len(cores)} of {len(cores) + len(left)} sites",
            "output_sqnr_db": f"{self.learned.judge.sqnr_db(graph):.1f}",
            "output_sqnr_db_without_attention": found.record["output_sqnr_db"],
        }
        where = {**found.placement, **attention_told(self.structure, cores, left)}
        return replace(found, record={**found.record, **method}, placement=where)

    def _half_around(self, found: Quantized) -> Quantized:
        from vitdeploy.quantize import half

        with self._progress.step("Check ranges and convert the rest to float16"):
            around = half.quantize(found.graph, self.structure, PrecisionSpec(kind="fp16"), self.calibration)
        record = {**found.record, **{f"around: {key}": value for key, value in around.record.items()}}
        return replace(found, graph=around.graph, record=record)

    def _told(self, kept: Mapping[str, str], precision: PrecisionSpec) -> Mapping[str, Placement]:
        from vitdeploy.quantize.placement import told

        return told(self.structure, kept, precision.kind or "", self.dialect)
