"""Fold the scale of an attention into the linear that computes its query."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.model import Graph, operand, producer
from vitdeploy.passes import Pass, PassResult
from vitdeploy.passes._attention import attention_cores, scale_of
from vitdeploy.passes._linear import LinearMatch, match_linear_ending_at, scale_outputs
from vitdeploy.passes._trace_channels import MOVING, trace_channels
from vitdeploy.session import Array


class FoldAttentionScale(Pass):
    """Fold the factor 1/√d, which multiplies every score, into the weights of the query.

        x ─ MatMul(W) ─ Add b ─ Reshape ─ Transpose ─ Split ─ q ─ Attention(scale s)
     ─▶ x ─ MatMul(W') ─ Add b' ─ Reshape ─ Transpose ─ Split ─ q ─ Attention(scale 1)

    W' and b' are W and b with the columns of the query times s. In a packed projection, the operators between the two
    decide which columns these are. Left alone and refused: a query that goes through operators that do more than move
    numbers (a normalization, a rotary embedding), and a query whose columns another node reads too.
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
    """Fold the scale, or return why that is impossible."""
    if core.attributes.get("scale") is None:
        return "its head size is not known"
    linear = _find_query_linear(operand(core, 0))
    if isinstance(linear, str):
        return linear
    columns = _find_query_columns(core, linear)
    if isinstance(columns, str):
        return columns
    if not scale_outputs(graph, linear, np.where(columns, scale, 1.0)):
        return "the data type of its weights cannot hold the scaled numbers"
    core.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return None


def _find_query_linear(query: ir.Value) -> LinearMatch | str:
    value = query
    while (linear := match_linear_ending_at(value)) is None:
        node = producer(value)
        if node is None:
            return "its query is not the output of a linear"
        if node.op_type not in MOVING or node.domain != "":
            return f"{node.name} ({node.op_type}) stands between its query and a linear"
        value = operand(node, 0)
    return linear


def _find_query_columns(core: ir.Node, linear: LinearMatch) -> Array | str:
    """Return which output channels of the linear are the query, as (channels,) booleans, or why they are unknown."""
    query, others = (np.zeros(linear.channels, bool) for _ in range(2))
    try:
        for reader, index, channels in trace_channels(linear.output, linear.axis):
            (query if reader is core and index == 0 else others)[channels] = True
    except ValueError as error:
        return f"the columns of its query are not known: {error}"
    if (query & others).any():
        return "another node reads its query too"
    return query
