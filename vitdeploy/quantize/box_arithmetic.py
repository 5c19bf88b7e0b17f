"""Find the arithmetic of a detector's boxes, which 16 bits round step by step."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph, constant, dims
from vitdeploy.graph.products import weight_of

REASON = "box arithmetic: refined boxes move by up to two pixels of 640 in float16"
"""The 99th percentile in a small RT-DETR with six layers; a sixth of that with this rule."""

_BOX = 4
_BOX_RANK = 3
_STEPS = {
    "Add", "Cast", "Clip", "Concat", "Div", "Exp", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Log",
    "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Reshape", "Sigmoid", "Slice", "Softplus", "Split",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators between the layer that predicts a change of a box and the box."""
_REFINES = {"Div", "Exp", "Log", "Reciprocal"}
"""One of these is in every refinement: of an inverse sigmoid, or of a width and a height."""
_MOST_NODES = 2000
"""A bound for hostile graphs. Deformable DETR with six layers has 118."""


def find_box_arithmetic(graph: Graph) -> dict[str, str]:
    """Find the nodes that refine the boxes of a graph from layer to layer, with the reason.

        boxes ─ Clip ─ Div ─ Log ─┐
        queries ─ MatMul ─ Add ───┴─ Add ─ Sigmoid ─ boxes (batch, queries, 4)     all but MatMul and its Add

    They have four numbers for each query, so float32 costs nothing, and each layer reads what the one before rounded.
    Left alone: boxes that are a sigmoid of one layer (DETR, YOLOS), which gain nothing, and the layers themselves.
    """
    reasons: dict[str, str] = {}
    for output in graph.model.graph.outputs:
        shape = dims(output)
        if shape is None or len(shape) != _BOX_RANK or shape[-1] != _BOX:
            continue
        nodes = _list_steps(output)
        if any(node.op_type in _REFINES for node in nodes):
            reasons.update({node.name or "": REASON for node in nodes})
    return reasons


def _list_steps(boxes: ir.Value) -> list[ir.Node]:
    """Return the nodes from the layers that predict boxes to the boxes, without these layers."""
    visited: dict[ir.Node, None] = {}
    pending: list[ir.Value | None] = [boxes]
    while pending and len(visited) < _MOST_NODES:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None or node in visited or not _is_step(node):
            continue
        visited[node] = None
        pending += node.inputs
    return list(visited)


def _is_step(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type == "MatMul":  # the mean of a distribution over one side (D-FINE), which has a column of weights
        weight = weight_of(node)
        return weight is not None and weight[1] == 1
    return node.op_type in _STEPS and not _is_bias(node)


def _is_bias(node: ir.Node) -> bool:
    """Return whether a node adds the bias of a layer."""
    has_bias = node.op_type == "Add" and any(constant(value) is not None for value in node.inputs)
    return has_bias and any(
        value is not None and (layer := value.producer()) is not None and weight_of(layer) is not None
        for value in node.inputs
    )
