"""From the raised float32 graph to the precision that was asked for: what to try, and what was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vitdeploy import environment
from vitdeploy.errors import QuantizeError
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear, Structure
from vitdeploy.progress import Progress
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

if TYPE_CHECKING:
    from vitdeploy.graph.model import Graph
    from vitdeploy.quantize import Calibration, Quantized
    from vitdeploy.quantize.observe import Observed
    from vitdeploy.search import Choice, Trial

_FULL_RANGE = 127
_HALF_RANGE = 64
"""255 · 64 · 2 = 32,640 fits int16: AVX2 adds pairs of u8 x s8 products there and saturates beyond 32,767."""


def quantize(
    graph: Graph,
    structure: Structure,
    precision: PrecisionSpec,
    dialect: Dialect,
    calibration: Calibration | None,
    progress: Progress,
) -> Quantized:
    """Lower the raised and folded `graph` to `precision`, for a compiler that wants `dialect`.

    Raises:
        QuantizeError: calibration data is missing, or the format cannot hold what the graph computes.
    """
    from vitdeploy.quantize import Quantized, half

    if precision.kind == "fp16":
        with progress.step("Check ranges and convert to float16"):
            return half.quantize(graph, structure, precision, calibration)
    if precision.kind == "int8-dynamic":
        return _dynamic(graph, structure, precision, calibration, progress)
    if precision.kind in ("int8", "fp8"):
        found = _static(graph, structure, precision, dialect, calibration, progress)
        if not dialect.half_around:
            return found
        with progress.step("Check ranges and convert the rest to float16"):
            around = half.quantize(found.graph, structure, PrecisionSpec(kind="fp16"), calibration)
        return Quantized(around.graph, {**found.record, **{f"around: {k}": v for k, v in around.record.items()}})
    return Quantized(graph, {})


def _static(
    graph: Graph,
    structure: Structure,
    precision: PrecisionSpec,
    dialect: Dialect,
    calibration: Calibration | None,
    progress: Progress,
) -> Quantized:
    """Q/DQ pairs on every placed linear, after the migration that keeps the outputs best."""
    from vitdeploy.quantize import Quantized, qdq
    from vitdeploy.quantize.placement import place

    if calibration is None or calibration.synthetic:
        raise QuantizeError(
            f"{precision.kind} needs calibration images: ranges are never invented",
            fix="Give --calibration DATA (a folder of images is enough), or use --precision int8-dynamic.",
        )
    placed, kept = place(structure, precision.keep)
    kind: qdq.Kind = "e4m3" if precision.kind == "fp8" else dialect.activation_codes
    largest = _largest_weight() if kind == "uint8" else _FULL_RANGE

    def written(candidate: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:
        form = qdq.Format(kind, largest, choice.ranges, choice.correct_bias)
        qdq.write(candidate, _nodes(placed), observed, form)

    best, record = _searched(graph, placed, precision, calibration, written, progress, ranges=True)
    return Quantized(
        best,
        {
            "method": "static Q/DQ",
            "activations": {"uint8": "uint8", "int8": "int8, symmetric", "e4m3": "FP8 E4M3"}[kind] + ", per tensor",
            "weight_bits": "8" if largest == _FULL_RANGE else "7",
            **record,
            "quantized": str(len(placed)),
            **{f"float: {name}": rule for name, rule in kept.items()},
        },
    )


def _dynamic(
    graph: Graph, structure: Structure, precision: PrecisionSpec, calibration: Calibration | None, progress: Progress
) -> Quantized:
    """ONNX Runtime's dynamic operator on every placed linear; migrated first, if there are images to learn from."""
    from vitdeploy.quantize import Quantized, dynamic
    from vitdeploy.quantize.placement import place

    placed, kept = place(structure, precision.keep)
    largest = _largest_weight()

    def written(candidate: Graph, observed: Mapping[str, Observed], choice: Choice) -> None:  # noqa: ARG001  as static
        dynamic.write(candidate, _nodes(placed), largest)

    record: Mapping[str, str]
    if calibration is None or calibration.synthetic:
        dynamic.write(graph, _nodes(placed), largest)
        best, record = graph, {"migration": "none: it needs calibration images (--calibration)"}
    else:
        best, record = _searched(graph, placed, precision, calibration, written, progress, ranges=False)
    return Quantized(
        best,
        {
            "method": "dynamic",
            "weight_bits": "8" if largest == _FULL_RANGE else "7",
            **record,
            "quantized": str(len(placed)),
            **{f"float: {name}": rule for name, rule in kept.items()},
        },
    )


def _searched(
    graph: Graph,
    placed: Sequence[Linear],
    precision: PrecisionSpec,
    calibration: Calibration,
    written: Callable[[Graph, Mapping[str, Observed], Choice], None],
    progress: Progress,
    *,
    ranges: bool,
) -> tuple[Graph, dict[str, str]]:
    """The graph of the choice whose outputs are nearest to float32's, and the path to it."""
    from vitdeploy import search
    from vitdeploy.graph.model import Graph, operand
    from vitdeploy.passes.migrate_outliers import MigrateOutliers
    from vitdeploy.quantize.observe import observe

    names = set(_nodes(placed))
    inputs = {operand(n, 0).name or "" for n in graph.nodes if n.name in names and n.op_type == "MatMul"}
    with progress.step("Observe activations", calibration.count) as advance:
        observed = observe(graph, inputs, _counted(calibration, advance), calibration.count)
    maxima = {name: seen.magnitude for name, seen in observed.items()}
    moved = 0

    def built(choice: Choice) -> Graph:
        nonlocal moved
        candidate, seen = Graph(graph.model.clone()), dict(observed)
        if choice.alpha is not None:
            migrate = MigrateOutliers(maxima=maxima, alpha=choice.alpha)
            factors = migrate.factors(candidate)
            migrate.apply(candidate)
            seen.update({name: observed[name].divided(f) for name, f in factors.items() if name in observed})
            moved = len(factors)
        written(candidate, seen, choice)
        return candidate

    alphas: tuple[float | None, ...] = search.ALPHAS
    if precision.smooth_alpha != "auto":
        alphas = (None if precision.smooth_alpha == "off" else float(precision.smooth_alpha),)
    judge = search.Judge(graph, calibration)
    with progress.step("Search migration and ranges"):
        choice, trials = search.choose(lambda c: judge.sqnr_db(built(c)), alphas=alphas, tune_ranges=ranges)
    best = built(choice)
    return best, {
        "migration": "off" if choice.alpha is None else f"alpha {choice.alpha:g}, inputs of {moved} places",
        **({"ranges": choice.ranges, "bias_correction": "on" if choice.correct_bias else "off"} if ranges else {}),
        "output_sqnr_db": f"{_of(trials, choice).sqnr_db:.1f}",
        "tried": "; ".join(f"{t.choice}: {t.sqnr_db:.1f} dB" for t in trials),
        "calibration": calibration.spec,
        "calibration_digest": calibration.digest,
        "calibration_images": str(calibration.images),
    }


def _of(trials: Sequence[Trial], choice: Choice) -> Trial:
    return next(t for t in trials if t.choice == choice)


def _nodes(placed: Sequence[Linear]) -> list[str]:
    return [name for linear in placed for name in linear.nodes]


def _counted(calibration: Calibration, advance: Callable[[int], None]) -> Iterator[Array]:
    for batch in calibration.batches():
        yield batch
        advance(1)


def _largest_weight() -> int:
    """Of CPUs: without VNNI, sums of u8 x s8 saturate with weights of 8 bits."""
    return _FULL_RANGE if environment.host().int8_dot_product else _HALF_RANGE
