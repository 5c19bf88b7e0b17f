"""Find the coordinates and angles behind a sine or cosine: float16 is too coarse for them."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.model import Graph

REASON = "an angle: float16 has steps of 0.5 between 512 and 1024, such as pixels of a point"
_SINES = ("Sin", "Cos")
_STEPS = {
    "Add", "Cast", "Concat", "Div", "Expand", "Flatten", "Gather", "Gemm", "Identity", "MatMul", "Mul", "Neg",
    "Reshape", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators between a coordinate and its angle."""
_DEEPEST = 12
"""Operators between a coordinate and its sine. The prompt encoder of SAM has seven."""


def find_angles(graph: Graph) -> dict[str, str]:
    """Find the nodes that compute the argument of a sine or cosine, with the reason.

        point_coords ─ Add(0.5) ─ Div(1024) ─ MatMul ─ Mul(2 pi) ─ Sin      a point of a prompt

    Left alone: what other operators compute, such as a layer that predicts the coordinate, and constants, which are
    folded before.
    """
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in _SINES and node.domain == "":
            reasons.update(dict.fromkeys(_list_steps(node, 0), REASON))
    return reasons


def _list_steps(node: ir.Node, depth: int) -> list[str]:
    names = [node.name or ""]
    for value in node.inputs:
        above = None if value is None else value.producer()
        if above is not None and above.op_type in _STEPS and depth < _DEEPEST:
            names += _list_steps(above, depth + 1)
    return names
