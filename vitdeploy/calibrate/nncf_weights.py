"""Weights in few bits by NNCF's `compress_weights`: AWQ and scale estimation, where there are images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.artifact.manifest import FLOAT, Placement
from vitdeploy.artifact.quantization import Quantization
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.calibrate.writers import node_names
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.structure import Linear
from vitdeploy.recipe import NNCF

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.weights import WeightStorage

_LEFT = "NNCF left it in float"


def compress_weights(
    calibrated: CalibratedGraph,
    dialect: Dialect,
    storage: WeightStorage,
    selection: tuple[list[Linear], dict[str, str]],
) -> Quantized:
    """Store the weights of the selected linears in few bits, as NNCF rounds them.

    4 bits use images for AWQ and scale estimation. 8 bits are rounded to the nearest code: NNCF has nothing else.
    GPTQ is not there: NNCF 3.4 refuses it on ONNX graphs.

    Args:
        calibrated: the graph; images are not needed.
        dialect: of the compiler.
        storage: the number of bits, and how many inputs share a scale.
        selection: the linears to quantize, and the rule for each other one.

    Raises:
        QuantizeError: NNCF is not installed, or fails on this graph.
    """
    from vitdeploy.quantize import Quantized
    from vitdeploy.quantize.nncf_pairs import bits_of_weight, group_weights, tidy_weights
    from vitdeploy.quantize.nncf_process import WeightSettings, run_nncf
    from vitdeploy.quantize.placement import record_placement

    linears, rules = selection
    names = set(node_names(linears))
    ignored = tuple(node.name or "" for node in calibrated.graph.nodes if node.name not in names)
    by_images = storage.bits == 4 and calibrated.has_images
    batches = calibrated.require_images().batches() if by_images else ()
    settings = WeightSettings(ignored=ignored, bits=storage.bits, group=storage.group or -1)
    with calibrated.progress.step("Compress weights with NNCF"):
        (graph,) = run_nncf(calibrated.graph, [settings], batches)
    tidy_weights(graph)
    if storage.bits == 8 and storage.group is not None:
        group_weights(graph, storage)
    bits = {node.name: bits_of_weight(node) for node in graph.nodes if node.name in names}
    stored = {one.name: {bits.get(name) for name in one.nodes} for one in linears}
    placement = record_placement(calibrated.structure, rules, f"int{storage.bits} weights", dialect)
    for name, widths in stored.items():
        if widths != {storage.bits}:  # a group size that does not divide its inputs, for example
            width = None if None in widths else max(width for width in widths if width is not None)
            precision = FLOAT if width is None else f"int{width} weights"
            placement[name] = Placement(precision=precision, rule=_LEFT if width is None else "as NNCF stored it")
    record = Quantization(
        quantizer=NNCF,
        method="weights only",
        weights=storage.describe(),
        rounding="AWQ and scale estimation on calibration images" if by_images else "nearest",
        quantized=sum(None not in widths for widths in stored.values()),
        calibration=calibrated.require_images().data if by_images else None,
        output_sqnr_db=_decibels(calibrated.judge.sqnr_db(graph)) if calibrated.has_images else None,
    )
    return Quantized(graph, record, placement)


def _decibels(ratio: float) -> float | None:
    return ratio if np.isfinite(ratio) else None
