"""Fold the scale of an attention into the linear that makes its query."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, scale_of
from vitdeploy.passes._linear import Linear, linear_ending_at, scale_outputs
from vitdeploy.passes._moved import MOVING, arrivals
from vitdeploy.session import Array


class FoldAttentionScale(Pass):
    """The factor 1/√d on every score costs nothing once it is in the query's weights.

        x ─ MatMul(W) ─ Add b ─ Reshape ─ Transpose ─ Split ─ q ─ Attention(scale s)
     ─▶ x ─ MatMul(W') ─ Add b' ─ Reshape ─ Transpose ─ Split ─ q ─ Attention(scale 1)

    W' and b' are W and b with the query's columns times s. In a packed projection these columns are wherever the
    operators in between take the query from. Left alone and refused: a query that something else than moving stands
    before (a normalization, rotary embedding), and one whose columns something else reads as well.
    """

    def apply(self, graph: Graph) -> PassResult:
        """Fold every scale."""
        refused: dict[str, str] = {}
        fired = 0
        for core in attention_cores(graph):
            scale = scale_of(core)
            if scale == 1.0 and core.attributes.get("scale") is not None:
                continue
            reason = _fold(graph, core, scale)
            if reason:
                refused[core.name or ""] = reason
            else:
                fired += 1
        return PassResult(fired, refused)


def _fold(graph: Graph, core: ir.Node, scale: float) -> str | None:
    """Fold, or say why not."""
    if core.attributes.get("scale") is None:
        return "its head size is not known"
    linear = _linear_of_query(operand(core, 0))
    if isinstance(linear, str):
        return linear
    columns = _columns_of_query(core, linear)
    if isinstance(columns, str):
        return columns
    if not scale_outputs(graph, linear, np.where(columns, scale, 1.0)):
        return "the weights' type cannot hold the scaled query"
    core.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return None


def _linear_of_query(query: ir.Value) -> Linear | str:
    value = query
    while (linear := linear_ending_at(value)) is None:
        node = producer(value)
        if node is None:
            return "its query is no linear's output"
        if node.op_type not in MOVING or node.domain != "":
            return f"{node.name} ({node.op_type}) stands between its query and a linear"
        value = operand(node, 0)
    return linear


def _columns_of_query(core: ir.Node, linear: Linear) -> Array | str:
    """The output channels of the linear that make the query, as (channels,) booleans, if nothing else reads them."""
    query, others = (np.zeros(linear.channels, bool) for _ in range(2))
    try:
        for reader, index, channels in arrivals(linear.output, linear.axis):
            (query if reader is core and index == 0 else others)[channels] = True
    except ValueError as error:
        return f"its query's columns are not known: {error}"
    if (query & others).any():
        return "something else reads its query too"
    return query
