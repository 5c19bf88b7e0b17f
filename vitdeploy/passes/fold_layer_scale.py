"""Fold a constant factor behind a linear into its weight and bias."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import LinearMatch, broadcast_per_channel, bypass, match_linear_above, scale_outputs
from vitdeploy.session import Array


class FoldLayerScale(Pass):
    """Fold LayerScale, a factor γ for each channel or for all, into the linear before it.

        x ─ MatMul(W) ─ [Add b] ─ Mul γ   ─▶   x ─ MatMul(W·γ) ─ [Add b·γ]

    The linear may also be a Conv. A Transpose, or a Reshape that keeps the channels together, may stand between linear
    and factor. Left alone: a linear whose output another node reads too, and a factor that varies over tokens.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such factor."""
        fired = 0
        for multiply in [n for n in graph.nodes if n.op_type == "Mul" and n.domain == ""]:
            for index in (0, 1):
                match = _match_scaled_linear(operand(multiply, index), operand(multiply, 1 - index))
                if match is not None and scale_outputs(graph, *match):
                    bypass(graph, multiply, index)
                    fired += 1
                    break
        return PassResult(fired)


def _match_scaled_linear(value: ir.Value, other: ir.Value) -> tuple[LinearMatch, Array] | None:
    """Return the linear that computes `value`, and `other` as a factor for each of its channels."""
    tensor, rank = constant(other), len(dims(value) or ())
    if tensor is None or not 0 < rank >= len(tensor.shape):
        return None
    shape = (1,) * (rank - len(tensor.shape)) + tuple(tensor.numpy().shape)
    varying_axes = [axis for axis, size in enumerate(shape) if size != 1]
    for axis in varying_axes or range(rank):  # a single number scales every channel, whatever their axis
        linear = match_linear_above(value, axis)
        factor = None if linear is None else broadcast_per_channel(other, rank, axis, linear.channels)
        if linear is not None and factor is not None:
            return linear, factor
    return None
