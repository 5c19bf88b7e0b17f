"""Which nodes float16 cannot hold: by the ranges of activations, and by the constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims
from vitdeploy.quantize.ranges import LARGEST_HALF, Range, masked

HEADROOM = 4.0
"""float16's largest number over the largest activation that calibration may show.

On the trained digits model 600 unseen images reach up to 1.2 times what 32 to 128 calibration images did, in the worst
of its 118 tensors. The rest is for images of another kind, and for kernels that keep partial sums in float16.
"""

LIMIT = LARGEST_HALF / HEADROOM

MASKED = -1e9
"""Down from here stands what models write for minus infinity in a mask (-1e9, -9e15, float32's lowest number), and no
weight; float16's lowest number serves as well."""

_SQUARES = {"ReduceL2", "ReduceSumSquare"}
_SUMS = {"GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum", *_SQUARES}
"""Their sum overflows where neither what they read nor what they give does: a mean over 384 squares of 300 each.
Products of matrices are left to `HEADROOM`: terms have both signs, and tensor cores can add them up in float32."""

FLOAT32_INPUTS = {"Resize": {1, 2}, "Upsample": {1}}
"""Inputs that an operator defines as float32 (region, scales), whatever its data is. From opset 19 on the scales of
Q/DQ pairs are not among them: they have the type of what stands around."""


def with_scores(graph: Graph) -> Graph:
    """A copy of a raised graph in which each attention's scores, q kᵀ · scale, are a tensor: `SITE/Attention/scores`.

    ONNX's `Attention` gives them as its fourth output, before any mask. They are all that is inside of it and may be
    larger than what it reads: probabilities are at most 1, and so its result is no larger than v.
    """
    probe = Graph(graph.model.clone())
    probe.infer_shapes()
    for node in [n for n in probe.nodes if n.op_type == "Attention" and n.domain == ""]:
        if len(node.outputs) > 3 and node.outputs[3].uses():
            continue  # the model reads them, in a mode of its own: measured like any tensor
        node.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", 0)
        node.resize_outputs(4)
        for value in node.outputs[1:3]:
            value.name = value.name if value.uses() or value.is_graph_output() else ""
        scores = node.outputs[3]
        scores.name, scores.type = f"{node.name}/scores", ir.TensorType(ir.DataType.FLOAT)
    return probe


def too_large(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, str]:
    """The nodes to keep in float32, with the reason: what they read or write is beyond `LIMIT`.

    Args:
        graph: what they were measured in.
        ranges: of the tensors of `graph`.
    """
    reasons = {}
    for node in graph.nodes:
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name in ranges]
        worst = max(values, key=lambda v: ranges[v.name or ""].magnitude, default=None)
        if worst is not None and ranges[worst.name or ""].magnitude > LIMIT:
            reasons[node.name or ""] = f"{worst.name} reaches {ranges[worst.name or ''].magnitude:.3g}"
        elif (sums := _largest_sum(node, ranges)) > LIMIT:
            reasons[node.name or ""] = f"its sums may reach {sums:.3g}"
    return reasons


def _largest_sum(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    """A bound of what a mean or another sum over a tensor adds up on its way; 0 for other operators."""
    x = node.inputs[0] if node.op_type in _SUMS else None
    found = ranges.get(x.name or "") if x is not None else None
    before, after = dims(x), dims(node.outputs[0])
    if found is None or before is None or after is None:
        return 0.0
    count = math.prod(d or 1 for d in before) / max(1, math.prod(d or 1 for d in after))
    return count * (found.magnitude**2 if node.op_type in _SQUARES else found.magnitude)


def unfit_constants(graph: Graph) -> dict[str, str]:
    """The nodes that read a constant float16 cannot hold, with the reason: beyond ±65,504, or a number that becomes 0.

    A tensor of weights may well have entries that become 0; a single number (an epsilon of 1e-12, a factor) may not.
    """
    masks = masked(graph)
    reasons: dict[str, str] = {}
    for value in graph.model.graph.initializers.values():
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size:
            continue
        reason = _unfit(tensor, is_mask=value.name in masks)
        if reason is None:
            continue
        for use in value.uses():
            if use.idx not in FLOAT32_INPUTS.get(use.node.op_type, ()):
                reasons[use.node.name or ""] = f"{value.name} {reason}"
    return reasons


def _unfit(tensor: ir.TensorProtocol, *, is_mask: bool) -> str | None:
    numbers = np.abs(in_half_range(tensor, is_mask=is_mask))
    largest = float(numbers.max(initial=0.0, where=np.isfinite(numbers)))
    if largest > LARGEST_HALF:
        return f"reaches {largest:.3g}"
    if tensor.size == 1 and largest > 0 and np.float16(largest) == 0:
        return f"is {largest:.3g}, which float16 rounds to 0"
    return None


def in_half_range(tensor: ir.TensorProtocol, *, is_mask: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The numbers of a float32 tensor, those that only mask lifted to float16's lowest."""
    numbers = np.asarray(tensor.numpy(), np.float32)
    bound = -LARGEST_HALF if is_mask else MASKED
    return np.where(numbers <= bound, np.float32(-LARGEST_HALF), numbers)
