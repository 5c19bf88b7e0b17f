"""Fold a constant factor behind a linear into its weight and bias."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims, operand
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._linear import Linear, bypass, linear_behind, per_channel, scale_outputs
from vitdeploy.session import Array


class FoldLayerScale(Pass):
    """LayerScale, one factor γ for each channel or one for all, costs nothing once it is inside.

        x ─ MatMul(W) ─ [Add b] ─ Mul γ   ─▶   x ─ MatMul(W·γ) ─ [Add b·γ]

    So too behind a Conv, and where a Transpose, or a Reshape that keeps the channels together, stands before the
    factor. A linear whose output something else reads too is left alone, and so is a factor that varies over tokens.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every such factor."""
        fired = 0
        for multiply in [n for n in graph.nodes if n.op_type == "Mul" and n.domain == ""]:
            for index in (0, 1):
                found = _scaled_linear(operand(multiply, index), operand(multiply, 1 - index))
                if found is not None and scale_outputs(graph, *found):
                    bypass(graph, multiply, index)
                    fired += 1
                    break
        return PassResult(fired)


def _scaled_linear(value: ir.Value, other: ir.Value) -> tuple[Linear, Array] | None:
    """The linear behind `value`, and `other` as a factor for each of its channels."""
    tensor, rank = constant(other), len(dims(value) or ())
    if tensor is None or not 0 < rank >= len(tensor.shape):
        return None
    shape = (1,) * (rank - len(tensor.shape)) + tuple(tensor.numpy().shape)
    several = [axis for axis, size in enumerate(shape) if size != 1]
    # One number scales every channel, wherever they are.
    for axis in several or range(rank):
        linear = linear_behind(value, axis)
        factor = None if linear is None else per_channel(other, rank, axis, linear.channels)
        if linear is not None and factor is not None:
            return linear, factor
    return None
