"""Find the nodes that float16 cannot hold: by the ranges of activations, and by the constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.casts import FLOAT32_INPUTS
from vitdeploy.graph.model import Graph, constant, dims
from vitdeploy.quantize.ranges import LARGEST_HALF, Range, find_masks

HEADROOM = 4.0
"""float16's largest number, divided by the largest activation that calibration may show.

On the trained digits model, 600 unseen images reach up to 1.2 times the maximum of 32 to 128 calibration images, in the
worst of its 118 tensors. The rest is for images of another kind, and for kernels that keep partial sums in float16.
"""

LIMIT = LARGEST_HALF / HEADROOM

_MINUS_INFINITY_BELOW = -1e9
"""Constants at or below this stand for minus infinity in a mask (-1e9, -9e15, float32's lowest number); no weight is so
low. float16's lowest number has the same effect."""

_SQUARES = {"ReduceL2", "ReduceSumSquare"}
_SUMS = {"GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum", *_SQUARES}
"""Operators whose sum can overflow although neither input nor output does, such as a mean over 384 squares of 300 each.
Matrix products are covered by `HEADROOM`: their terms have both signs, and tensor cores can add them up in float32."""


def expose_scores(graph: Graph) -> Graph:
    """Return a copy of a raised graph that names the scores of each attention.

    The scores, q kᵀ · scale, are `SITE/Attention/scores`: the fourth output of ONNX's `Attention`, before any mask.
    Nothing else inside of it can be larger than what it reads: probabilities are at most 1, and so its result is no
    larger than v.
    """
    probe = Graph(graph.model.clone())
    probe.infer_shapes()
    for node in [n for n in probe.nodes if n.op_type == "Attention" and n.domain == ""]:
        if len(node.outputs) > 3 and node.outputs[3].uses():
            continue  # the model reads them, with a mode of its own: they are measured like any tensor
        node.attributes["qk_matmul_output_mode"] = ir.AttrInt64("qk_matmul_output_mode", 0)
        node.resize_outputs(4)
        for value in node.outputs[1:3]:
            value.name = value.name if value.uses() or value.is_graph_output() else ""
        scores = node.outputs[3]
        scores.name, scores.type = f"{node.name}/scores", ir.TensorType(ir.DataType.FLOAT)
    return probe


def find_overflow(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, str]:
    """Find the nodes that read or write activations beyond `LIMIT`, with the reason.

    Args:
        graph: the graph that was measured.
        ranges: of its tensors.
    """
    reasons = {}
    for node in graph.nodes:
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name in ranges]
        worst = max(values, key=lambda v: ranges[v.name or ""].magnitude, default=None)
        if worst is not None and ranges[worst.name or ""].magnitude > LIMIT:
            reasons[node.name or ""] = f"{worst.name} reaches {ranges[worst.name or ''].magnitude:.3g}"
        elif (sums := _bound_sum(node, ranges)) > LIMIT:
            reasons[node.name or ""] = f"its sums may reach {sums:.3g}"
    return reasons


def _bound_sum(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    """Return an upper bound of the partial sums of a reduction; 0 for other operators."""
    x = node.inputs[0] if node.op_type in _SUMS else None
    input_range = ranges.get(x.name or "") if x is not None else None
    before, after = dims(x), dims(node.outputs[0])
    if input_range is None or before is None or after is None:
        return 0.0
    count = math.prod(d or 1 for d in before) / max(1, math.prod(d or 1 for d in after))
    return count * (input_range.magnitude**2 if node.op_type in _SQUARES else input_range.magnitude)


def find_unfit_constants(graph: Graph) -> dict[str, str]:
    """Find the nodes that read a constant which float16 cannot hold, with the reason.

    It is beyond ±65,504, or it is a single number (an epsilon of 1e-12, a factor) that becomes 0. Entries of a weight
    tensor may become 0.
    """
    masks = find_masks(graph)
    reasons: dict[str, str] = {}
    for value in graph.model.graph.initializers.values():
        tensor = constant(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size:
            continue
        reason = _unfit_reason(tensor, is_mask=value.name in masks)
        if reason is None:
            continue
        for use in value.uses():
            if use.idx not in FLOAT32_INPUTS.get(use.node.op_type, ()):
                reasons[use.node.name or ""] = f"{value.name} {reason}"
    return reasons


def _unfit_reason(tensor: ir.TensorProtocol, *, is_mask: bool) -> str | None:
    numbers = np.abs(clip_masks(tensor, is_mask=is_mask))
    largest = float(numbers.max(initial=0.0, where=np.isfinite(numbers)))
    if largest > LARGEST_HALF:
        return f"reaches {largest:.3g}"
    if tensor.size == 1 and largest > 0 and np.float16(largest) == 0:
        return f"is {largest:.3g}, which float16 rounds to 0"
    return None


def clip_masks(tensor: ir.TensorProtocol, *, is_mask: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the numbers of a float32 tensor, with minus infinities of masks as float16's lowest number."""
    numbers = np.asarray(tensor.numpy(), np.float32)
    bound = -LARGEST_HALF if is_mask else _MINUS_INFINITY_BELOW
    return np.where(numbers <= bound, np.float32(-LARGEST_HALF), numbers)
