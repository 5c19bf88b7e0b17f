"""Where precision drops, and how: placement in the model's own terms, then one file a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.graph.model import Graph
from vitdeploy.graph.structure import Structure
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array


@dataclass(frozen=True)
class Quantized:
    """The graph with its precision lowered, and what was done, for the manifest."""

    graph: Graph
    record: Mapping[str, str]


@dataclass(frozen=True)
class Calibration:
    """Images that ranges are taken from.

    `batches` streams full NCHW batches anew at each call; `count` is their number.
    """

    batches: Callable[[], Iterable[Array]]
    count: int
    images: int
    spec: str
    digest: str


def quantize(
    graph: Graph,
    structure: Structure,
    precision: PrecisionSpec,
    calibration: Calibration | None,
    workdir: Path,
) -> Quantized:
    """Lower the raised `graph` to `precision`.

    Raises:
        QuantizeError: calibration data is missing, or a tensor does not fit the format.
    """
    if precision.kind == "int8":
        from vitdeploy.quantize import static

        return static.quantize(graph, structure, precision, calibration, workdir)
    if precision.kind == "int8-dynamic":
        from vitdeploy.quantize import dynamic

        return dynamic.quantize(graph, structure, precision)
    if precision.kind == "fp16":
        from vitdeploy.quantize import half

        return half.convert(graph)
    return Quantized(graph, {})
