"""INT8 attention: Q/DQ pairs on q, k, v and the probabilities, where it stays one kernel."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.artifact.quantization import Int8AttentionCount
from vitdeploy.calibrate.calibrated import CalibratedGraph
from vitdeploy.errors import QuantizeError
from vitdeploy.frozen import replace
from vitdeploy.graph.dialect import Dialect

if TYPE_CHECKING:
    from vitdeploy.quantize import Quantized

_FIX = "Leave `attention` out of the recipe's precision."


def quantize_attention(
    calibrated: CalibratedGraph,
    dialect: Dialect,
    quantized: Quantized,
    *,
    values_alone: bool = False,
    float_decoder: bool = True,
) -> Quantized:
    """Quantize attention in place, wherever the compiler has a kernel for it. Linears are quantized already.

    Args:
        calibrated: with real images.
        dialect: of the compiler.
        quantized: the graph, with pairs on its linears.
        values_alone: the probabilities and v are INT8, and q and k stay in float.
        float_decoder: leave the attention of a detector's decoder in float, as its linears.

    Raises:
        QuantizeError: the compiler has none, or none for this model's attention.
    """
    from vitdeploy.graph.model import operand
    from vitdeploy.passes.lower_primitives import LowerPrimitives
    from vitdeploy.quantize import attention
    from vitdeploy.quantize.placement import record_attention_placement, regions_in_float
    from vitdeploy.quantize.ranges import collect_ranges

    kernel = dialect.int8_attention
    if kernel is None:
        raise QuantizeError(
            "`attention: true` is not for this target: only TensorRT, and OpenVINO on a CPU with INT8 dot products, "
            "keep quantized attention in one kernel", fix=_FIX,
        )  # fmt: skip
    if values_alone and not kernel.values_alone:
        raise QuantizeError(
            "`attention: values` is not for this target, which quantizes all operands of an attention or none",
            fix="Use `attention: true`, or leave it out.",
        )
    graph, record = quantized.graph, quantized.record
    assert record is not None
    in_float = regions_in_float(calibrated.structure) if float_decoder else {}
    cores, rules = attention.select_cores(graph, kernel, in_float)
    refused = [site.refused for site in calibrated.structure.attention if site.refused is not None]  # not raised
    if not cores:
        reason = next(iter((*rules.values(), *refused)), "there is none")
        raise QuantizeError(f"no attention can be INT8 and stay fused: {reason}", fix=_FIX)
    LowerPrimitives(only=frozenset(cores)).apply(graph)
    graph.infer_shapes()  # ranges are collected of values that are known to be floats
    operands = attention.find_operands(graph, cores, values_alone=values_alone)
    names = {operand(node, index).name or "" for node, index in operands}
    ranges = collect_ranges(graph, calibrated.stream_batches("Observe attention"), names)
    attention.write_pairs(graph, operands, ranges, kernel)
    count = len(cores) + len(rules) + len(refused)
    record = replace(
        record,
        attention=Int8AttentionCount(sites=len(cores), of=count, values_alone=values_alone),
        output_sqnr_db=calibrated.judge.sqnr_db(graph),
        output_sqnr_db_without_attention=record.output_sqnr_db,
    )
    sites = record_attention_placement(calibrated.structure, cores, rules, values_alone=values_alone)
    return dataclasses.replace(quantized, record=record, placement={**quantized.placement, **sites})
