"""Casts between float32 and the half types, for rewrites that change what a part of a graph computes in."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph

HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

FLOAT32_INPUTS = {"Resize": {1, 2}, "Upsample": {1}}
"""Inputs that an operator defines as float32 (region, scales), whatever the type of its data. The scales of Q/DQ pairs
are not among them: from opset 19 on they have the type of the data."""


def make_cast(graph: Graph, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of `value`, which the caller inserts. Its name and that of its output say the type."""
    label = "float" if dtype == ir.DataType.FLOAT else "half"
    cast = ir.node("Cast", [value], {"to": dtype}, name=graph.fresh_name(f"{value.name}/to_{label}"))
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    cast.outputs[0].name = graph.fresh_value_name(f"{value.name}/{label}")
    return cast


def insert_cast(graph: Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Insert a Cast right behind `value`, or at the start of the graph for a constant or an input."""
    cast, node = make_cast(graph, value, dtype), value.producer()
    if node is None:
        graph.model.graph.insert_before(graph.model.graph[0], cast)
    else:
        assert node.graph is not None
        node.graph.insert_after(node, cast)
    return cast.outputs[0]
